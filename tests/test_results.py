"""runtime/results.py, runtime/submission.py, runtime/session.py: records, submission, engines that aren't."""

import json
import struct

import numpy as np
import pytest
from fake_session import FakeSession
from frame_factory import SMALL, make_test_frame
from support import assert_close, assert_differs, golden, shared_path
from truth_support import devkit

from config import load_config
from data.frames import Pose
from errors import UniADError
from report.compare import STAGES, read_frame
from runtime import results
from runtime.boxes import box_corners, from_nuscenes
from runtime.sequence import Sequence
from runtime.session import SessionError, open_session, read_plan_metadata
from runtime.submission import matrix_to_quaternion, tracking_boxes


def fake_outputs():
    sequence, session = Sequence(SMALL, "v2.0"), FakeSession()
    for index in range(3):
        outputs = session.infer(sequence.inputs(make_test_frame(index)))
    return outputs


# --- records ---


def test_record_keeps_the_rows_that_mean_something(tmp_path):
    outputs = fake_outputs()
    record = results.make_record(outputs, "frame")
    record["sdc_traj"] = record["sdc_traj_raw"]
    assert record["track_ids"].tolist() == [0, 1, 2]
    assert record["boxes_3d"].shape == (3, 9)
    np.testing.assert_array_equal(record["traj"], outputs["traj"][[0, 1, 2, -1]])  # the ego last
    kept = outputs["det_mask"] == 1
    np.testing.assert_array_equal(record["boxes_3d_det"], outputs["boxes_3d_det"][kept])
    assert 0 < kept.sum() < 300
    assert record["map_drivable"].dtype == bool
    path = results.frame_path(tmp_path, 12, "token")
    assert path == tmp_path / "frames" / "000012_token.npz"
    results.write_record(path, record)
    first = path.read_bytes()
    results.write_record(path, record)
    assert path.read_bytes() == first
    read, sizes = read_frame(path)  # the reader of summarize.py
    assert sizes["N"] == 3
    for key, value in read.items():
        np.testing.assert_array_equal(value, record[key])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_tracks_and_pruned_outputs():
    outputs = fake_outputs()
    outputs["track_ids"][:] = -1
    record = results.make_record(outputs, "frame")
    assert record["boxes_3d"].shape == (0, 9)
    assert record["traj"].shape[0] == 1
    plan_only = {"sdc_traj_raw": outputs["sdc_traj_raw"], "occ_seg": outputs["occ_seg"]}
    assert set(results.make_record(plan_only, "frame")) == {"sdc_traj_raw", "occ_seg"}


def test_nan_is_an_error():
    outputs = fake_outputs()
    outputs["traj"][1, 0, 0, 0] = np.inf
    with pytest.raises(UniADError, match="frame 7: the engine's traj holds NaN or infinity"):
        results.make_record(outputs, "frame 7")
    outputs["traj"][1, 0, 0, 0] = 3e38  # finite, and its square is not
    assert results.make_record(outputs, "frame 7")["traj"][1, 0, 0, 0] == np.float32(3e38)


def test_latency_rows(tmp_path):
    rows = np.arange(12, dtype=float).reshape(2, 6) / 1000
    results.write_latency(tmp_path, rows)
    latency = json.loads((tmp_path / "latency.json").read_text())
    assert tuple(latency["frames"][1]) == results.STAGES == STAGES
    assert latency["frames"][1]["whole"] == 0.011
    assert latency["median"]["load"] == 0.003


def test_unwritable_result(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UniADError, match="cannot write"):
        results.write_json(tmp_path / "file" / "run.json", {})
    with pytest.raises(UniADError, match=r"exists and is not a result of run\.py"):
        results.read_run(tmp_path)
    with pytest.raises(UniADError, match=r"exists and is not a result of run\.py"):
        results.read_run(tmp_path / "file")
    assert results.read_run(tmp_path / "new") is None


def test_damaged_record(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UniADError, match=r"a\.npz: not readable"):
        results.read_arrays(tmp_path / "a.npz")


# --- submission ---


def test_quaternions():
    rng = np.random.default_rng(0)
    wxyz = rng.normal(size=(50, 4))
    wxyz /= np.linalg.norm(wxyz, axis=1, keepdims=True)
    wxyz[0] = 0, 0, 0, 1  # half a turn: no w
    w, x, y, z = wxyz.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrices = np.moveaxis(np.array(rows), -1, 0)
    quaternions = matrix_to_quaternion(matrices)
    assert_close(np.abs((quaternions * wxyz).sum(axis=1)), np.ones(50), 1e-12, "same rotation")
    assert (quaternions[:, 0] >= -1e-12).all()
    assert_differs(np.abs((matrix_to_quaternion(matrices.transpose(0, 2, 1)) * wxyz).sum(axis=1)), np.ones(50), 0.1)
    rounded = matrix_to_quaternion(matrices.astype(np.float32))
    assert_close(np.abs((rounded * wxyz).sum(axis=1)), np.ones(50), 1e-6, "float32 rotation")


@pytest.mark.parametrize("convention", ["v1.0.1", "v2.0"])
def test_real_annotations_survive_the_submission(convention):
    """Annotations -> the network's boxes -> submission = annotations, in the devkit's own terms."""
    pytest.importorskip("nuscenes")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.tracking.data_classes import TrackingBox

    from data.nuscenes_source import NuScenesSource

    config_factory("tracking_nips_2019")  # tells the devkit's classes which names there are
    config = load_config("base_e2e")
    source = NuScenesSource(shared_path("nuscenes", "clip"), config)
    nusc, sample = devkit("clip"), source._samples[1]
    _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    boxes = [box for box in boxes if box.name.split(".")[-1] == "car" and np.linalg.norm(box.center[:2]) < 45]
    heading = [np.arctan2(box.rotation_matrix[1, 0], box.rotation_matrix[0, 0]) for box in boxes]
    centres, sizes = [box.center for box in boxes], [box.wlh for box in boxes]
    rows = from_nuscenes(centres, sizes, heading, np.tile([3.0, 4.0], (len(boxes), 1)), convention)
    record = {
        "boxes_3d": rows.astype(np.float32),
        "scores_3d": np.linspace(0.9, 0.5, len(boxes)).astype(np.float32),
        "labels_3d": np.zeros(len(boxes), np.int32),
        "track_ids": np.arange(len(boxes)),
    }
    submitted = tracking_boxes(record, source.pose(1), sample["token"], config, convention)
    assert len(submitted) == len(boxes) >= 2
    json.dumps(submitted)
    for box, row, values in zip(boxes, submitted, rows):
        TrackingBox.deserialize(row)
        annotation = nusc.get("sample_annotation", box.token)
        assert_close(row["translation"], annotation["translation"], 2e-3, "translation")
        assert_close(row["size"], annotation["size"], 1e-5, "size")
        assert_close(abs(np.dot(row["rotation"], annotation["rotation"])), 1, 1e-3, "rotation")  # tilt of the lidar
        assert_close(np.hypot(*row["velocity"]), 5.0, 0.02, "speed")
        corners = box_corners(values[None], convention)[0] @ source.pose(1).l2g_r_mat + source.pose(1).l2g_t
        assert_close(corners.mean(axis=0), annotation["translation"], 2e-3, "corners agree")
    other = "v2.0" if convention == "v1.0.1" else "v1.0.1"
    wrong = tracking_boxes(record, source.pose(1), sample["token"], config, other)
    assert min(abs(np.dot(a["rotation"], b["rotation"])) for a, b in zip(wrong, submitted)) < 0.9


def test_submission_leaves_out_what_is_not_tracked_or_far():
    record = {
        "boxes_3d": np.tile(np.array([0, 10, 0, 2, 4, 1.5, 0, 0, 0], np.float32), (4, 1)),
        "scores_3d": np.ones(4, np.float32),
        "labels_3d": np.array([0, 5, 8, 8], np.int32),  # car, barrier, pedestrian, pedestrian
        "track_ids": np.array([7, 8, 9, 10], np.int32),
    }
    record["boxes_3d"][3, 1] = 45  # beyond 40 m, near enough for a car
    pose = Pose(np.eye(3), np.zeros(3), np.zeros(3))
    boxes = tracking_boxes(record, pose, "s", SMALL, "v2.0")
    assert [(b["tracking_id"], b["tracking_name"]) for b in boxes] == [("7", "car"), ("9", "pedestrian")]
    assert boxes[0]["translation"] == [0, 10, 0.75]


def test_detection_rows_of_the_original_are_recorded_whole():
    """The record's detection list equals the original's where the mask keeps all of it."""
    recorded = golden("tiny", "frame_1.npz")
    outputs = fake_outputs() | {k: recorded[f"result.{k}"] for k in ("boxes_3d_det", "scores_3d_det", "labels_3d_det")}
    outputs["det_mask"] = np.ones(300, np.int32)
    record = results.make_record(outputs, "frame")
    np.testing.assert_array_equal(record["boxes_3d_det"], recorded["result.boxes_3d_det"])


# --- engines ---


def plan_file(metadata, padding=b"\0" * 64) -> bytes:
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header + padding


NOT_ENGINES = {
    "empty": b"",
    "short": b"1234",
    "text": b"this is a text file, not an engine" * 10,
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "header beyond the end": struct.pack("<Q", 10_000) + b"{}",
    "header not JSON": struct.pack("<Q", 20) + b"x" * 40,
    "safetensors without metadata": struct.pack("<Q", 2) + b"{}" + b"\0" * 8,
    "header a list": struct.pack("<Q", 2) + b"[]" + b"\0" * 8,
    "metadata not text": plan_file({"kind": 1}),
}


@pytest.mark.parametrize("case", NOT_ENGINES)
def test_engine_that_is_something_else(case, tmp_path):
    (tmp_path / "engine.plan").write_bytes(NOT_ENGINES[case])
    with pytest.raises(SessionError, match=r"engine\.plan: not an engine of builder\.py") as caught:
        open_session(tmp_path / "engine.plan")
    assert "\n" not in str(caught.value)


def test_engine_dispatch(tmp_path):
    path = tmp_path / "engine.plan"
    with pytest.raises(SessionError, match=r"no such engine; builder\.py makes it"):
        open_session(path)
    with pytest.raises(SessionError, match="no such engine"):
        open_session(tmp_path)
    path.write_bytes(plan_file({"kind": "of the future", "convention": "v2.0"}))
    assert read_plan_metadata(path)["convention"] == "v2.0"
    with pytest.raises(SessionError, match="engine kind 'of the future' is not known here"):
        open_session(path)
    with pytest.raises(SessionError, match="device must be one of"):
        open_session(path, device="tpu")
    with pytest.raises(SessionError, match="dtype one of"):
        open_session(path, dtype="int4")
