"""runtime/sequence.py against the original: can_bus, shift, rotation, times, over the tiny golden sequence."""

import dataclasses
import math

import numpy as np
import pytest
from support import assert_close, assert_differs, golden

from config import load_config
from data.frames import Frame
from errors import UniADError
from runtime.sequence import Sequence, SequenceState, bev_shift, rotation_matrix

TINY = load_config("tiny_e2e")
BASE = load_config("base_e2e")
SHIFT_ATOL = 1e-12  # float64 rounding; scalar and vector arctan2 of numpy differ by 1e-16


def golden_frame(index: int) -> tuple[Frame, dict[str, np.ndarray]]:
    recorded = golden("tiny", f"frame_{index}.npz")
    frame = Frame(
        img=recorded["in.img_u8"],
        can_bus=recorded["in.can_bus_raw"],
        lidar2img=recorded["in.lidar2img"],
        l2g_r_mat=recorded["in.l2g_r_mat"],
        l2g_t=recorded["in.l2g_t"],
        timestamp=float(recorded["in.timestamp"]),
        command=int(recorded["in.command"]),
        scene_token=str(recorded["in.scene_token"]),
        sample_token=f"sample_{index}",
    )
    return frame, recorded


@pytest.fixture(scope="module")
def recorded_frames():
    return [golden_frame(index) for index in range(8)]


def test_inputs_equal_the_original(recorded_frames):
    sequence = Sequence(TINY, "v2.0")
    for index, (frame, recorded) in enumerate(recorded_frames):
        inputs = sequence.inputs(frame)
        np.testing.assert_array_equal(inputs["can_bus"], recorded["in.can_bus_used"].astype(np.float32))
        assert inputs["has_prev"].tolist() == [int(index not in (0, 6))]
        if "bev.shift" in recorded:
            assert_close(inputs["shift"], recorded["bev.shift"][0], SHIFT_ATOL, f"shift {index}")
        if "velo.time_delta" in recorded:
            np.testing.assert_array_equal(inputs["time_delta"], recorded["velo.time_delta"])
            last = recorded_frames[index - 1][1]
            np.testing.assert_array_equal(inputs["l2g_r_prev"], last["in.l2g_r_mat"])
            way = inputs["l2g_t_prev"] - inputs["l2g_t"]
            assert_close(way, last["in.l2g_t"].astype(np.float64) - frame.l2g_t, 1e-6, "way since the last frame")
            assert np.abs(inputs["l2g_t_prev"]).max() < 50 < np.abs(frame.l2g_t).max()  # metres
        assert_close(inputs["l2g_r_inv"] @ frame.l2g_r_mat, np.eye(3), 1e-6, "inverse")
        assert {v.dtype.name for v in inputs.values()} == {"uint8", "float32", "int32"}
        assert all(np.isfinite(v).all() for v in inputs.values())


def test_float32_geometry_would_be_caught(recorded_frames):
    """Poses are ~1600 m: shift from float32 positions misses the recorded shift."""
    first, (frame, recorded) = recorded_frames[0][0], recorded_frames[1]
    can_bus = frame.can_bus.copy()
    can_bus[:3] = frame.can_bus[:3].astype(np.float32) - first.can_bus[:3].astype(np.float32)
    assert_differs(bev_shift(can_bus, TINY), recorded["bev.shift"][0], SHIFT_ATOL, "float32 shift")
    assert_differs(bev_shift(frame.can_bus, TINY), recorded["bev.shift"][0], SHIFT_ATOL, "absolute can_bus")


def test_scene_start_quirk_and_repair(recorded_frames):
    repaired = Sequence(TINY, "v2.0", fix_scene_start=True)
    for index, (frame, recorded) in enumerate(recorded_frames):
        can_bus = repaired.inputs(frame)["can_bus"]
        if index in (0, 6):
            assert can_bus[[0, 1, 2, -1]].tolist() == [0, 0, 0, 0]
            assert_differs(can_bus, recorded["in.can_bus_used"], 1.0, "repaired scene start")
        else:
            np.testing.assert_array_equal(can_bus, recorded["in.can_bus_used"].astype(np.float32))


def test_conventions(recorded_frames):
    frame = recorded_frames[3][0]
    old, new = (Sequence(TINY, convention).inputs(frame)["can_bus"] for convention in ("v1.0.1", "v2.0"))
    w = np.float32(frame.can_bus[3])
    assert old[3:7].tolist() == [w, w, w, w]
    np.testing.assert_array_equal(new[3:7], frame.can_bus[3:7].astype(np.float32))
    np.testing.assert_array_equal(np.delete(old, range(3, 7)), np.delete(new, range(3, 7)))
    with pytest.raises(UniADError, match=r"v3.*v1\.0\.1, v2\.0"):
        Sequence(TINY, "v3")


def test_inputs_do_not_touch_the_frame(recorded_frames):
    frame = recorded_frames[1][0]
    before = frame.can_bus.copy()
    Sequence(TINY, "v1.0.1").inputs(frame)
    np.testing.assert_array_equal(frame.can_bus, before)


def test_timestamps_must_increase_within_a_scene(recorded_frames):
    sequence = Sequence(TINY, "v2.0")
    sequence.inputs(recorded_frames[1][0])
    with pytest.raises(UniADError, match="time order"):
        sequence.inputs(recorded_frames[0][0])
    sequence.inputs(dataclasses.replace(recorded_frames[0][0], scene_token="another"))


def test_restored_state_continues_exactly(recorded_frames):
    """A run that continues at scene_B gives what the whole run gave; one that forgets the state does not."""
    whole = Sequence(TINY, "v2.0")
    for frame, _ in recorded_frames[:6]:
        whole.inputs(frame)
    resumed = Sequence(TINY, "v2.0")
    resumed.state = SequenceState.from_arrays(whole.state.to_arrays())
    forgetful = Sequence(TINY, "v2.0")
    expected = whole.inputs(recorded_frames[6][0])
    actual = resumed.inputs(recorded_frames[6][0])
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key])
    assert_differs(forgetful.inputs(recorded_frames[6][0])["can_bus"], expected["can_bus"], 1.0, "forgotten state")


def rotate_nearest(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sample image (C,H,W) as `rotation_matrix` documents it, in float32 as torchvision's grid is."""
    height, width = image.shape[-2:]
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)
    grid = np.stack([*np.meshgrid(x, y), np.ones((height, width), np.float32)])  # (3,H,W)
    # torchvision normalises to -1..1 before sampling: keep its rounding, cells lie on ties at right angles
    u, v = np.einsum("kl,lhw->khw", matrix / np.array([[width / 2], [height / 2]], np.float32), grid)
    column = np.rint(((u + 1) * width - 1) / 2).astype(int)
    row = np.rint(((v + 1) * height - 1) / 2).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, image[:, row.clip(0, height - 1), column.clip(0, width - 1)], 0)


@pytest.mark.parametrize("config, size", [(TINY, 40), (BASE, 200)])
def test_rotation_equals_torchvision(config, size):
    recorded = golden("ops", "bev_rotate.npz")
    image = recorded[f"x{size}"]
    for key in [k for k in recorded if k.startswith(f"angle{size}_")]:
        angle, expected = float(recorded[key]), recorded[key.replace("angle", "out")]
        actual = rotate_nearest(image, rotation_matrix(angle, config).astype(np.float32))
        np.testing.assert_array_equal(actual, expected, err_msg=f"angle {angle}")
        if abs(math.sin(math.radians(angle))) > 0.01:
            wrong = rotate_nearest(image, rotation_matrix(-angle, config).astype(np.float32))
            assert np.mean(wrong != expected) > 0.05, angle


def test_rotation_about_another_centre():
    """The translation part: the named centre stays where it is."""
    config = TINY.replace(rotate_center=(10, 30))
    matrix = rotation_matrix(33.0, config)
    centre = np.array([10 - 20, 30 - 20, 1.0])
    assert_close(matrix @ centre, centre[:2], 1e-12, "centre")
    assert_differs(rotation_matrix(33.0, TINY) @ centre, centre[:2], 1.0, "other centre")
