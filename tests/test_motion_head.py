"""The motion head against the original's recorded numbers, and under padding.

The recorded tensors have a batch dimension of 1 that ours lack, and only the rows of tracks and, last, of the ego;
ours have empty rows between them.
"""

import numpy as np
import pytest
from network_support import const, load_op_weights, tiny_weights, torch_network, value
from support import assert_close, assert_differs, golden, shared_path

from config import load_config
from layers import motion_head
from layers.motion_deform_attn import MotionDeformableAttention
from layers.motion_head import MotionHead, MotionOutput
from layers.motion_transformer import pos2posemb2d

CONFIG = load_config("tiny_e2e")
FRAMES = (0, 1, 3, 6)
# The inputs are the recorded ones, so the errors are one part's rounding: measured, times 4.
EMBEDDING_ATOL = 4e-6  # 7e-7
QUERY_ATOL = 4e-5  # 1e-5
METRES_ATOL = 8e-5  # 2e-5
ROTATION_ATOL = 1e-5  # 0; with pi instead of the original's 3.1415953 the goals move by 1.3e-4
PADDING_ATOL = 4e-5  # 1e-5: another number of rows, another order of sums in the matrix products


@pytest.fixture(scope="module")
def head() -> MotionHead:
    anchors = np.load(shared_path("golden", "motion_anchors_standin.npy")).astype(np.float32)
    module = MotionHead(CONFIG)
    module.load({**tiny_weights("motion_head."), "kmeans_anchors": anchors})
    return module


def pad(rows: np.ndarray, slots: int, fill: float) -> np.ndarray:
    """`rows` and then rows of `fill`, `slots` in all; integers are filled with a label that no table has."""
    empty = np.full((slots - len(rows), *rows.shape[1:]), fill if rows.dtype.kind == "f" else 99, rows.dtype)
    return np.concatenate([rows, empty])


def run_head(head, frame, slots=24, fill=np.nan, tracks=None, all_valid=False, sdc_label=None, dtype="float32"):
    """The head on a recorded frame's first `tracks` tracks in `slots` rows. Returns (MotionOutput, taps) as arrays,
    the track axis without its empty rows."""
    query, boxes = frame["motion.in.track_query"][0, 0], frame["motion.in.boxes"]
    labels = frame["motion.in.labels"].astype(np.int32)
    tracks = len(boxes) - 1 if tracks is None else tracks
    rows = [*range(tracks), slots]  # the ego's row is the last
    with torch_network(dtype) as network:
        out = head(
            const(pad(query[:-1][:tracks], slots, fill), dtype),
            const(pad(boxes[:-1][:tracks], slots, fill)),
            const(labels[:-1][:1].repeat(slots) if all_valid else pad(labels[:-1][:tracks], slots, fill)),
            const(np.arange(slots) < (slots if all_valid else tracks)),
            const(query[-1:], dtype),
            const(boxes[-1:]),
            const(labels[-1:] if sdc_label is None else np.array([sdc_label])),
            const(frame["bev.out"][0], dtype),
            const(frame["seg.query"][0], dtype),
            const(frame["seg.query_pos"][0], dtype),
        )
        taps = {key: value(tensor) for key, tensor in network.taps.items()}
    position = taps.pop("motion.track_query_pos")
    # All others have a row for each mode of each agent, or group.
    taps = {key: array.reshape(-1, CONFIG.predict_modes, *array.shape[1:]) for key, array in taps.items()}
    taps["motion.track_query_pos"] = position
    taps = {key: array[rows] if len(array) == slots + 1 else array for key, array in taps.items()}
    arrays = {key: value(tensor) for key, tensor in out._asdict().items()}
    for key in ("traj", "traj_scores", "traj_query", "track_query", "track_query_pos"):
        assert np.isfinite(arrays[key]).all() or all_valid, f"{key}: an empty row is not finite"
        arrays[key] = arrays[key][rows]
    assert not arrays["is_vehicle"][tracks:].any() or all_valid
    arrays["is_vehicle"] = arrays["is_vehicle"][:tracks]
    return MotionOutput(**arrays), taps


def test_pos2posemb2d():
    op = golden("ops", "pos_encodings.npz")
    points, expected = op["pos2posemb2d_in"], op["pos2posemb2d_out_128"]
    with torch_network():
        assert_close(value(pos2posemb2d(const(points), 256)), expected, 1e-6, "pos2posemb2d")  # measured 3.6e-7
        assert_differs(value(pos2posemb2d(const(points[:, ::-1]), 256)), expected, 1e-6, "x's half first")


def test_motion_deformable_attention():
    op = golden("ops", "motion_deform_attn.npz")
    rows, columns = (int(n) for n in op["bev_hw"])
    attention = load_op_weights(MotionDeformableAttention(CONFIG.replace(bev_h=rows, bev_w=columns)), op)

    def run(step):
        goal = op["reference_trajs"][0, :, :, step, 0] + op["boxes_3d"][:, None, :2]
        query = op["query"][0]
        pos = np.broadcast_to(op["query_pos"][0], query.shape)
        rows = (const(x.reshape(-1, x.shape[-1])) for x in (query, pos, op["value"], goal))
        return value(attention(*rows)).reshape(query.shape)

    with torch_network():
        assert_close(run(-1), op["out"][0], QUERY_ATOL, "motion_deform_attn")
        assert_differs(run(0), op["out"][0], QUERY_ATOL, "around the first step")


@pytest.mark.parametrize("number", FRAMES)
def test_recorded_frame(head, number):
    frame = golden("tiny", f"frame_{number}.npz")
    out, taps = run_head(head, frame)

    def check(actual, key, atol, expected=None):
        assert_close(actual, frame[key][0] if expected is None else expected, atol, key)

    group = np.array([next(i for i, g in enumerate(CONFIG.group_id_list) if n in g) for n in frame["motion.in.labels"]])
    key = "motion.former.agent_level_embedding"  # ours is computed once per group of classes
    check(taps[key + ".groups"][group], key, EMBEDDING_ATOL)
    for key in ("scene_level_ego_embedding", "scene_level_offset_embedding", "learnable_embed"):
        check(taps[f"motion.former.{key}"], f"motion.former.{key}", EMBEDDING_ATOL)
    key = "motion.former.init_reference"  # ours has the last step only: no other is used
    check(taps["motion.former.init_goal"], key, ROTATION_ATOL, frame[key][0, :, :, -1])
    for layer in range(CONFIG.motion_num_layers):
        for key in ("track_agent", "map", "bev"):
            check(taps[f"motion.layer{layer}.{key}"], f"motion.layer{layer}.{key}", QUERY_ATOL)
        key = "motion.traj_query"
        check(taps[f"{key}.{layer}"], key, QUERY_ATOL, frame[key][layer, 0])
        raw = taps[f"motion.former.trajectory.{layer}"]
        key = "motion.former.inter_references"
        check(raw[..., :2], key, METRES_ATOL, frame[key][layer, 0])
        key = "motion.all_traj_preds"
        active = np.concatenate([raw[..., :2], np.exp(raw[..., 2:4]), np.tanh(raw[..., 4:])], -1)
        check(active, key, METRES_ATOL, frame[key][layer, 0])

    check(out.traj, "result.traj", METRES_ATOL, frame["result.traj"])
    check(out.traj_scores, "result.traj_scores", QUERY_ATOL, frame["result.traj_scores"])
    check(out.track_query_pos, "motion.track_query_pos", EMBEDDING_ATOL)
    check(out.sdc_traj_query, "motion.out.sdc_traj_query", QUERY_ATOL, frame["motion.out.sdc_traj_query"][-1, 0])
    check(out.sdc_track_query, "motion.out.sdc_track_query", 0, frame["motion.out.sdc_track_query"])
    check(
        out.sdc_track_query_pos,
        "motion.out.sdc_track_query_pos",
        EMBEDDING_ATOL,
        frame["motion.track_query_pos"][0, -1:],
    )
    key, vehicle = "motion.out.traj_query", out.is_vehicle
    check(out.traj_query[:-1][vehicle], key, QUERY_ATOL, frame[key][-1, 0])
    check(out.track_query[:-1][vehicle], "motion.out.track_query", 0)
    check(out.track_query_pos[:-1][vehicle], "motion.out.track_query_pos", EMBEDDING_ATOL)


def test_ego_keeps_its_predicted_label(head):
    frame = golden("tiny", "frame_1.npz")
    label = int(frame["motion.in.labels"][-1])
    other = next(group[0] for group in CONFIG.group_id_list if label not in group)
    out, _ = run_head(head, frame, sdc_label=other)
    assert_differs(out.traj[-1], frame["result.traj"][-1], METRES_ATOL, "the anchors of another class")


def test_pi_is_the_originals(head, monkeypatch):
    frame = golden("tiny", "frame_1.npz")
    monkeypatch.setattr(motion_head, "UPSTREAM_PI", np.pi)
    _, taps = run_head(head, frame)
    expected = frame["motion.former.init_reference"][0, :, :, -1]
    assert_differs(taps["motion.former.init_goal"], expected, ROTATION_ATOL, "pi")


def test_padding_changes_nothing(head):
    frame = golden("tiny", "frame_0.npz")
    tracks = len(frame["motion.in.boxes"]) - 1
    expected, _ = run_head(head, frame, slots=tracks)
    for slots, fill in ((40, np.nan), (40, 1e4), (256, 0.0)):
        out, _ = run_head(head, frame, slots, fill)
        for key, actual, same in zip(out._fields, out, expected):
            assert_close(actual, same, PADDING_ATOL, f"{key} in {slots} rows of {fill}")
    broken, _ = run_head(head, frame, 40, 0.0, all_valid=True)
    assert_differs(broken.traj[-1], expected.traj[-1], PADDING_ATOL, "empty rows attended to")


def test_no_tracks(head):
    frame = golden("tiny", "frame_3.npz")
    alone, _ = run_head(head, frame, slots=1, tracks=0)
    assert alone.traj.shape == (1, CONFIG.predict_modes, CONFIG.predict_steps, 5)
    out, _ = run_head(head, frame, slots=24, tracks=0)
    for key, actual, same in zip(out._fields, out, alone):
        assert_close(actual, same, PADDING_ATOL, key)
    company, _ = run_head(head, frame, slots=24, tracks=1)
    assert_differs(company.traj[-1], alone.traj[-1], PADDING_ATOL, "with a track to look at")


def test_float16_keeps_metres_in_float32(head):
    frame = golden("tiny", "frame_1.npz")
    out, taps = run_head(head, frame, dtype="float16")
    assert out.traj.dtype == out.traj_scores.dtype == taps["motion.former.init_goal"].dtype == np.float32
    assert out.traj_query.dtype == np.float16
    assert_close(out.traj[..., :2], frame["result.traj"][..., :2], 0.1, "half precision")  # measured 0.024 m, times 4
    assert_differs(out.traj[..., :2], frame["result.traj"][..., :2], METRES_ATOL, "float16 that ran in float32")
    mirrored = out.traj[..., :2] * np.array([1, -1], np.float32)
    assert_differs(mirrored, frame["result.traj"][..., :2], 0.1, "y mirrored")
