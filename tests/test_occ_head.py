"""Occupancy head against the recorded tiny frames, padded rows, and no vehicle at all."""

import functools

import numpy as np
import pytest
import torch
from network_support import const, tiny_weights, torch_network, value
from support import assert_close, assert_differs, golden, noise_floor

from config import load_config
from layers.occ_head import OccHead, slicer_grid
from trtllm import vision as V

FACTOR = 4  # the recorded inputs are exact, so only rounding inside the head is left
FRAMES = [0, 1, 3, 6]


@functools.cache
def head() -> OccHead:
    module = OccHead(load_config("tiny_e2e"))
    module.load(tiny_weights("occ_head."))
    return module


def inputs(frame: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The head's recorded inputs in the first rows, noise in the padded ones."""
    count = frame["motion.out.track_query"].shape[1]
    rng = np.random.default_rng(0)

    def padded(array):
        out = rng.standard_normal((rows, *array.shape[1:])).astype(np.float32)
        out[:count] = array
        return out

    return {
        "bev_embed": frame["bev.out"][0],
        "traj_query": padded(frame["motion.out.traj_query"][-1, 0]),
        "track_query": padded(frame["motion.out.track_query"][0]),
        "track_query_pos": padded(frame["motion.out.track_query_pos"][0]),
        "track_scores": padded(frame["motion.out.track_scores"][0]),
        "vehicle": np.arange(rows) < count,
    }


def run(arrays: dict[str, np.ndarray]):
    with torch_network() as network:
        seg, ins = head()(**{name: const(array) for name, array in arrays.items()})
        return value(seg), value(ins), {name: value(t) for name, t in network.taps.items()}


@pytest.mark.parametrize("index", FRAMES)
def test_recorded_frames(index):
    frame = golden("tiny", f"frame_{index}.npz")
    count = frame["motion.out.track_query"].shape[1]
    seg, ins, taps = run(inputs(frame, count + 3))
    floor = noise_floor()
    for key, tensor in {
        "occ.ins_query": taps["occ.ins_query"][:count],
        "occ.bev_sampled": taps["occ.bev_sampled"],
        "occ.base_state": taps["occ.base_state"],
        "occ.future_states_in": taps["occ.future_states_in"],
        "occ.ins_occ_logits": taps["occ.ins_occ_logits"].transpose(1, 0, 2)[:count],
    }.items():
        assert_close(tensor, frame[key].reshape(tensor.shape), FACTOR * floor[key], key)
    for step in range(5):  # the original also resizes the masks to full size, for its loss only
        mask = torch.from_numpy(taps[f"occ.mask_logits.{step}"][None, :count]).unflatten(2, (5, 5))
        mask = torch.nn.functional.interpolate(mask, (40, 40), mode="bilinear")[0]
        assert_close(mask, frame["occ.mask_preds"][0, :, step], FACTOR * floor["occ.mask_preds"], f"mask {step}")
    np.testing.assert_array_equal(seg, frame["occ.seg_out"][0, :, 0])
    np.testing.assert_array_equal(ins, frame["occ.ins_seg_out"][0])
    assert seg.any() and not seg.all()


def test_a_wrong_input_is_seen():
    frame = golden("tiny", "frame_1.npz")
    arrays = inputs(frame, 12)
    arrays["track_query_pos"] = arrays["track_query_pos"][::-1].copy()
    _, _, taps = run(arrays)
    key = "occ.ins_query"
    assert_differs(taps[key][:10], frame[key][0], FACTOR * noise_floor()[key])


def test_padding_changes_nothing():
    frame = golden("tiny", "frame_3.npz")
    few, many = run(inputs(frame, 20)), run(inputs(frame, 60))
    np.testing.assert_array_equal(few[0], many[0])
    np.testing.assert_array_equal(few[1], many[1])
    leaking = inputs(frame, 60)
    leaking["vehicle"][:] = True
    assert (run(leaking)[1] != few[1]).any(), "padded rows that count must show"


def test_no_vehicle_gives_zeros():
    arrays = inputs(golden("tiny", "frame_0.npz"), 16)
    arrays["vehicle"][:] = False
    seg, ins, taps = run(arrays)
    assert not seg.any() and not ins.any()
    assert all(np.isfinite(t).all() for t in taps.values())


def test_slicer_grid():
    arrays = golden("ops", "occ_bev_slicer_200.npz")
    grid = slicer_grid(load_config("base_e2e"))
    assert_close(grid[0, 0, :, 0], arrays["norm_map_x"], 1e-6, "norm_map_x")
    with torch_network():
        out = value(V.grid_sample(const(arrays["x"]), const(grid), align_corners=True))
        wrong = value(V.grid_sample(const(arrays["x"]), const(grid), align_corners=False))
    assert_close(out, arrays["out"], 2e-5, "sampled")
    assert_differs(wrong, arrays["out"], 2e-5)
