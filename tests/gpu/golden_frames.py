"""The recorded sequences as input for any session, and how far its results are from the recordings. numpy only.

Weights, images and poses come from the recipes in tests/golden, so that nothing large has to be carried to the GPU
machine. The tiny sequence has eight frames, the full-size one two (its recordings are not in the repository).
"""

import importlib.util
import pathlib
import sys
from collections.abc import Mapping

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT / "examples" / "uniad"), str(ROOT / "tests")]

from closeness import max_error  # noqa: E402

from config import load_config  # noqa: E402
from data.frames import Frame  # noqa: E402
from weight import ANCHORS_KEY, COUNTER_SUFFIX, CModel, key_shapes  # noqa: E402

TINY, FULL = "tiny_e2e", "base_e2e"
CLASS_BIAS = {TINY: None, FULL: -6.3}


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_c_model(name: str, max_tracks: int = 96) -> CModel:
    """The model that made the recordings."""
    config = load_config(name).replace(max_tracks=max_tracks)
    make_tensor = _script("recipe_weights").make_tensor
    tensors = {
        key: make_tensor(key, shape, cls_bias=CLASS_BIAS[name])
        for key, shape in key_shapes(config).items()
        if not key.endswith(COUNTER_SUFFIX)
    }
    tensors[ANCHORS_KEY] = np.load(GOLDEN / "motion_anchors_standin.npy").astype(np.float32)
    return CModel(config, "v2.0", {"checkpoint": f"recipe {name}", "checkpoint_sha256": f"recipe {name}"}, tensors)


def frames(name: str, count: int) -> list[Frame]:
    """The recorded frames' inputs; images of the configuration's size."""
    config = load_config(name)
    sequence = _script("recipe_inputs").sequence(config.image_height, config.image_width, count)
    return [
        Frame(
            img=frame["img_u8"],
            can_bus=frame["can_bus"],
            lidar2img=frame["lidar2img"],
            l2g_r_mat=frame["l2g_r_mat"],
            l2g_t=frame["l2g_t"],
            timestamp=frame["timestamp"],
            command=frame["command"],
            scene_token=frame["scene_token"],
            sample_token=str(index),
        )
        for index, frame in enumerate(sequence)
    ]


def read_recording(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def relative(actual, expected) -> float:
    """Largest difference over the largest recorded magnitude."""
    return max_error(actual, expected) / max(float(np.abs(expected).max(initial=0.0)), 1e-6)


def compare(
    recorded: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], list[str]]:
    """How far a frame is from its recording.

    Args:
        outputs, state: of the session, after the frame; rows of tracks are matched by id.
    Returns:
        Per output the relative error, for integer maps the share of cells that differ; and what differs in track
        ids and life cycle, where everything must be equal.
    """
    ids, expected_ids = outputs["track_ids"], recorded["active.track_ids"]
    live = ids[ids >= 0]
    wrong = []
    if set(live) != set(expected_ids.tolist()):
        wrong.append(f"active tracks {sorted(live.tolist())}, not {sorted(expected_ids.tolist())}")
    common = [i for i in expected_ids.tolist() if i in set(live.tolist())]
    ours = np.array([int(np.flatnonzero(ids == i)[0]) for i in common], np.int64)
    theirs = np.array([int(np.flatnonzero(expected_ids == i)[0]) for i in common], np.int64)
    if (outputs["labels_3d"][ours] != recorded["active.labels_3d"][theirs]).any():
        wrong.append("classes of active tracks")
    errors = {}
    for name in ("boxes_3d", "scores_3d", "track_scores"):
        errors[name] = relative(outputs[name][ours], recorded[f"active.{name}"][theirs])
    _compare_carried(recorded, state, errors, wrong)
    errors |= _compare_tasks(recorded, outputs, ours, theirs)
    return errors, wrong


def _compare_carried(recorded, state, errors, wrong) -> None:
    count = int(recorded["qim.num_carried"])
    if int((state["track_obj_idxes"] >= 0).sum()) != count:
        wrong.append(f"{int((state['track_obj_idxes'] >= 0).sum())} carried tracks, not {count}")
        return
    for name in ("obj_idxes", "disappear_time", "mem_padding_mask", "save_period"):
        if (state[f"track_{name}"][:count] != recorded[f"carried.{name}"]).any():
            wrong.append(f"carried {name}")
    if int(state["max_obj_id"][0]) != int(recorded["tracker.max_obj_id"]):
        wrong.append(f"max_obj_id {int(state['max_obj_id'][0])}, not {int(recorded['tracker.max_obj_id'])}")
    for name in ("query", "ref_pts", "pred_boxes", "mem_bank"):
        errors[f"track_{name}"] = relative(state[f"track_{name}"][:count], recorded[f"carried.{name}"])
    if "bev.out@sample" in recorded:
        step = int(recorded["bev.out@meta"][0])
        errors["prev_bev"] = relative(state["prev_bev"].ravel()[::step], recorded["bev.out@sample"].ravel())


def _compare_tasks(recorded, outputs, ours, theirs) -> dict[str, float]:
    errors = {}
    for name in ("traj", "traj_scores"):
        if f"result.{name}" in recorded:
            expected = recorded[f"result.{name}"]  # the ego's row is last
            rows = np.concatenate([outputs[name][ours], outputs[name][-1:]])
            errors[name] = relative(rows, np.concatenate([expected[theirs], expected[-1:]]))
    if "result.scores_3d_det" in recorded:
        expected = np.sort(recorded["result.scores_3d_det"])
        scores = np.sort(outputs["scores_3d_det"][outputs["det_mask"] == 1])
        most = min(len(scores), len(expected))  # a box at the edge of the range may be in or out
        errors["scores_3d_det"] = relative(scores[-most:], expected[-most:])
    cells = {"map_drivable": "seg.res.drivable", "map_lane": "seg.res.lane"}
    cells |= {"occ_seg": "occ.seg_out", "occ_ins": "occ.ins_seg_out"}
    for name, key in cells.items():
        if key in recorded:
            errors[name] = float((outputs[name] != recorded[key].reshape(outputs[name].shape)).mean())
    if "seg.res.lane_score" in recorded:
        errors["map_lane_score"] = relative(outputs["map_lane_score"], recorded["seg.res.lane_score"])
    for key in ("plan.sdc_traj_before_optim",):
        if key in recorded:
            errors["sdc_traj_raw"] = relative(outputs["sdc_traj_raw"], recorded[key][0])
    return errors
