"""results.pkl of the original repository, made up as its code would pickle it, as a base result."""

import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from summarize import main
from test_compare import make_frame, write_result

from errors import UniADError
from report.original import write_original

MODULE = "mmdet3d.core.bbox.structures.lidar_box3d"


class LiDARInstance3DBoxes:
    """As far as a pickle tells: a class of mmdet3d whose state is a dictionary."""

    def __init__(self, tensor):
        self.tensor, self.box_dim, self.with_yaw = tensor, tensor.shape[-1], True


@pytest.fixture
def mmdet3d(monkeypatch):
    """The class where a pickle looks for it; taken away before anything is read."""
    module = types.ModuleType(MODULE)
    module.LiDARInstance3DBoxes = LiDARInstance3DBoxes
    monkeypatch.setattr(LiDARInstance3DBoxes, "__module__", MODULE)
    packages = MODULE.split(".")
    for end in range(1, len(packages)):
        monkeypatch.setitem(sys.modules, ".".join(packages[:end]), types.ModuleType(packages[end - 1]))
    monkeypatch.setitem(sys.modules, MODULE, module)


def original(frame, number, mirrored=True):
    """One entry of bbox_results."""
    tensors = {k: torch.from_numpy(v) for k, v in frame.items() if v.dtype.kind != "b"}
    plan = tensors["sdc_traj"] * torch.tensor([-1.0 if mirrored else 1.0, 1.0])
    kept = ("scores_3d", "labels_3d", "track_scores", "track_ids", "scores_3d_det", "labels_3d_det")
    counts = {"intersection": torch.tensor([3.0 + number]), "union": torch.tensor([10.0])}
    names = ("drivable", "lanes", "divider", "crossing", "contour")
    return {
        "token": f"sample{number}",
        **{key: tensors[key] for key in (*kept, "traj", "traj_scores")},
        "traj_0": tensors["traj"],
        "boxes_3d": LiDARInstance3DBoxes(
            torch.cat([tensors["boxes_3d"], tensors["boxes_3d"]])[: len(frame["boxes_3d"])]
        ),
        "boxes_3d_det": LiDARInstance3DBoxes(tensors["boxes_3d_det"]),
        "track_bbox_results": [[LiDARInstance3DBoxes(tensors["boxes_3d"]), tensors["scores_3d"]]],
        "ret_iou": {f"{name}_{part}": value for name in names for part, value in counts.items()},
        "planning_traj": plan[None],
        "command": [torch.tensor([2])],
    }


def write_pickle(path, frames, **more):
    data = {
        "bbox_results": [original(frame, number, **more) for number, frame in enumerate(frames)],
        "occ_results_computed": {k: [60.0, 40.0] for k in ("pq", "sq", "rq", "iou")} | {"num_occ": 1, "ratio_occ": 0.5},
        "planning_results_computed": {k: torch.arange(1.0, 7.0) for k in ("obj_col", "obj_box_col", "L2")},
    }
    path.write_bytes(pickle.dumps(data, protocol=2))  # mmcv's
    return path


@pytest.fixture
def frames():
    return [make_frame(seed) for seed in range(3)]


def test_as_base_result(tmp_path, frames, mmdet3d, capsys, monkeypatch):
    base, wrong = write_pickle(tmp_path / "results.pkl", frames), tmp_path / "wrong.pkl"
    write_pickle(wrong, frames, mirrored=False)
    monkeypatch.delitem(sys.modules, MODULE)
    result = write_result(tmp_path / "result", frames)
    assert main(["-i", str(result), "-b", str(base)]) == 0
    summary = json.loads((result / "summary.json").read_text())
    assert summary["base"]["path"] == str(base)
    rows = {row["name"]: row for row in summary["metrics"]}
    for name in ("track_agreement", "detection_agreement", "best_mode_agreement"):
        assert rows[name]["mean"] == 1 and rows[name]["count"] > 0
    for name in ("track_centre_error", "traj_error", "plan_error"):
        assert rows[name]["worst"] == 0 and rows[name]["count"] > 0
    for name in ("occ_iou", "drivable_iou", "raw_plan_error"):
        assert rows[name]["mean"] is None and rows[name]["kept"] is True
    assert "convention, which results.pkl does not tell" in " ".join(capsys.readouterr().out.split())
    assert main(["-i", str(result), "-b", str(wrong)]) == 1  # its plan is not mirrored


def test_what_the_original_computed(tmp_path, frames, mmdet3d):
    path = write_pickle(tmp_path / "results.pkl", frames)
    names = {f"sample{i}": f"{i:06d}_sample{i}" for i in range(3)}
    write_original(path, names, "v1.0.1", tmp_path / "all")
    run = json.loads((tmp_path / "all" / "run.json").read_text())
    assert run["convention"] == "v1.0.1" and set(run["lacks"]) >= {"occ_seg", "map_lane", "sdc_traj_raw"}
    assert run["scores"]["map"]["boundary"] == pytest.approx((3 + 4 + 5) / 30)
    assert run["scores"]["occupancy"]["vpq_far"] == 0.4 and run["scores"]["occupancy"]["iou_near"] == 0.6
    plan = run["scores"]["planning"]["optimised"]
    assert plan["uniad"]["l2"] == {"1s": 2, "2s": 4, "3s": 6, "avg": 4}
    assert plan["stp3"]["obj_box_col"]["3s"] == 3.5
    # of fewer frames: what was summed over all of them says nothing
    write_original(path, {"sample1": "000000_sample1"}, "v1.0.1", tmp_path / "one")
    run = json.loads((tmp_path / "one" / "run.json").read_text())
    assert run["scores"].keys() == {"map"} and run["scores"]["map"]["lanes"] == 0.4
    assert [p.name for p in (tmp_path / "one" / "frames").iterdir()] == ["000000_sample1.npz"]


class _Evil:
    def __reduce__(self):
        return eval, ("1/0",)


def test_refusals(tmp_path, frames, mmdet3d):
    for content, reason in (
        ({"bbox_results": [_Evil()]}, "no plain data"),
        ({"bbox_results": [{"token": "sample0"}]}, "1 of 2 frames are not in it, e.g. sample1"),
        ({"other": 1}, "not a results.pkl"),
        (np.zeros(3), "not a results.pkl"),
    ):
        path = tmp_path / "results.pkl"
        path.write_bytes(pickle.dumps(content))
        names = {"sample0": "000000_sample0", "sample1": "000001_sample1"}
        with pytest.raises(UniADError, match=reason):
            write_original(path, names, "v2.0", tmp_path / "out")
        assert not (tmp_path / "out").exists()
