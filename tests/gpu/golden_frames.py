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

from config import UniADConfig, load_config  # noqa: E402
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


def largest(actual, expected) -> float:
    """Largest difference over the largest recorded magnitude."""
    return max_error(actual, expected) / max(float(np.abs(expected).max(initial=0.0)), 1e-6)


def norm(actual, expected) -> float:
    """Norm of the difference over the norm of the recording; NaN passes no bound."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / max(float(np.linalg.norm(expected)), 1e-6))


def _yaw_as_vector(boxes: np.ndarray) -> np.ndarray:
    """Boxes with the yaw, which jumps at +-pi, as cosine and sine: (N,9) to (N,10)."""
    yaw = boxes[:, 6:7]
    return np.concatenate([boxes[:, :6], boxes[:, 7:], np.cos(yaw), np.sin(yaw)], axis=1)


def _rows(values: np.ndarray, wanted: list[int]) -> np.ndarray:
    """Where the wanted ids stand."""
    return np.array([int(np.flatnonzero(values == i)[0]) for i in wanted], np.int64)


class Comparison:
    """Frames of one sequence against their recordings.

    `exact` (FP32): errors are largest ones, tracks are matched by id; ids, classes and life cycle must be equal.
    Otherwise (FP16) errors are norms over an output, because single values can be far off; a track whose score lies
    within MARGIN of a threshold may be there or not, after which later tracks have other ids: tracks are matched by
    place, and a matched track must keep its id as long as it lives.
    """

    MARGIN = 0.02  # of a score; float16 costs the torch executor up to 0.007
    REACH = 1.0  # metres between the centres of one track's boxes
    SCORE_STEP = 0.01  # lane scores that differ by more count as differing: at a mask's edge they jump

    def __init__(self, config: UniADConfig, exact: bool):
        self.config, self.exact = config, exact
        self.error = largest if exact else norm
        self.ids: dict[int, int] = {}  # recorded id -> ours

    def frame(
        self, recorded: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], list[str]]:
        """How far a frame is from its recording.

        Args:
            outputs, state: of the session, after the frame.
        Returns:
            Per output the relative error, for maps the share of cells that differ; and what is wrong with tracks.
        """
        wrong: list[str] = []
        ours, theirs = self._match(recorded, outputs, wrong)
        boxes = outputs["boxes_3d"][ours], recorded["active.boxes_3d"][theirs]
        errors = {"boxes_3d": self.error(*map(_yaw_as_vector, boxes))}
        for name in ("scores_3d", "track_scores"):
            errors[name] = self.error(outputs[name][ours], recorded[f"active.{name}"][theirs])
        self._carried(recorded, state, errors, wrong)
        for name in ("traj", "traj_scores"):
            if f"result.{name}" in recorded:  # the ego's row is last
                expected = recorded[f"result.{name}"][np.append(theirs, -1)]
                errors[name] = self.error(outputs[name][np.append(ours, -1)], expected)
        self._tasks(recorded, outputs, errors)
        if "bev.out@sample" in recorded:  # every so many elements
            step, bev = int(recorded["bev.out@meta"][0]), recorded["bev.out@sample"].ravel()
            errors["prev_bev"] = self.error(state["prev_bev"].ravel()[::step], bev)
        return errors, wrong

    def _match(self, recorded, outputs, wrong) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the same active tracks in our outputs and in the recording."""
        live, expected = outputs["track_ids"][outputs["track_ids"] >= 0], recorded["active.track_ids"]
        if self.exact:
            common = [i for i in expected.tolist() if i in set(live.tolist())]
            ours, theirs = _rows(live, common), _rows(expected, common)
            if set(live.tolist()) != set(expected.tolist()):
                wrong.append(f"active tracks {sorted(live.tolist())}, not {sorted(expected.tolist())}")
        else:
            offset = outputs["boxes_3d"][: len(live), None, :3] - recorded["active.boxes_3d"][None, :, :3]
            distance = np.linalg.norm(offset, axis=-1)  # (ours,theirs)
            theirs = np.flatnonzero(distance.min(axis=0, initial=np.inf) < self.REACH)
            ours = distance[:, theirs].argmin(axis=0) if len(live) else theirs  # NaN leaves no track
            unmatched = len(live) + len(expected) - 2 * len(theirs)
            if unmatched > self._borderline(recorded):
                wrong.append(f"{unmatched} tracks without a partner, {self._borderline(recorded)} are borderline")
            for mine, their in zip(live[ours].tolist(), expected[theirs].tolist()):
                if self.ids.setdefault(their, mine) != mine:
                    wrong.append(f"track {their} was {self.ids[their]}, now {mine}")
                    self.ids[their] = mine
        differing = (outputs["labels_3d"][ours] != recorded["active.labels_3d"][theirs]).sum()
        if differing > (0 if self.exact else self._borderline(recorded)):
            wrong.append(f"classes of {differing} active tracks")
        return ours, theirs

    def _borderline(self, recorded) -> int:
        """Queries whose fate a small change of their score can turn."""
        thresholds = (self.config.score_thresh, self.config.filter_score_thresh)
        return int(sum((np.abs(recorded["tracker.scores"] - t) < self.MARGIN).sum() for t in thresholds))

    def _carried(self, recorded, state, errors, wrong) -> None:
        theirs_all, ours_all = recorded["carried.obj_idxes"], state["track_obj_idxes"]
        ids = {i: i for i in theirs_all.tolist()} if self.exact else self.ids
        pairs = [(their, mine) for their, mine in ids.items() if their in theirs_all and mine in ours_all]
        theirs, ours = _rows(theirs_all, [p[0] for p in pairs]), _rows(ours_all, [p[1] for p in pairs])
        allowed = 0 if self.exact else self._borderline(recorded)
        if abs(int((ours_all >= 0).sum()) - int(recorded["qim.num_carried"])) > allowed:
            wrong.append(f"{int((ours_all >= 0).sum())} carried tracks, not {int(recorded['qim.num_carried'])}")
        if self.exact and len(pairs) < len(theirs_all):
            wrong.append("ids of carried tracks")
        if self.exact and int(state["max_obj_id"][0]) != int(recorded["tracker.max_obj_id"]):
            wrong.append(f"max_obj_id {int(state['max_obj_id'][0])}, not {int(recorded['tracker.max_obj_id'])}")
        if not pairs:
            wrong += ["no carried track"] * bool(len(theirs_all))
            return
        for name in ("disappear_time", "mem_padding_mask", "save_period"):
            differs = state[f"track_{name}"][ours] != recorded[f"carried.{name}"][theirs]
            if differs.reshape(len(pairs), -1).any(axis=1).sum() > allowed:
                wrong.append(f"carried {name}")
        for name in ("query", "ref_pts", "pred_boxes", "mem_bank"):
            errors[f"track_{name}"] = self.error(state[f"track_{name}"][ours], recorded[f"carried.{name}"][theirs])

    def _tasks(self, recorded, outputs, errors) -> None:
        if "result.scores_3d_det" in recorded:
            expected = np.sort(recorded["result.scores_3d_det"])
            scores = np.sort(outputs["scores_3d_det"][outputs["det_mask"] == 1])
            most = min(len(scores), len(expected))  # a box at the edge of the range may be in or out
            errors["scores_3d_det"] = self.error(scores[-most:], expected[-most:])
        maps = {"map_drivable": "seg.res.drivable", "map_lane": "seg.res.lane", "occ_seg": "occ.seg_out"}
        if self.exact:
            maps["occ_ins"] = "occ.ins_seg_out"  # instances are numbered by what tracks there are
        for name, key in maps.items():
            if key in recorded:
                errors[name] = float((outputs[name] != recorded[key].reshape(outputs[name].shape)).mean())
        if "seg.res.lane_score" in recorded:
            difference = np.abs(outputs["map_lane_score"] - recorded["seg.res.lane_score"])
            errors["map_lane_score"] = float((difference > self.SCORE_STEP).mean())
        key = "plan.sdc_traj_before_optim"
        if key in recorded:
            errors["sdc_traj_raw"] = self.error(outputs["sdc_traj_raw"], recorded[key][0])
