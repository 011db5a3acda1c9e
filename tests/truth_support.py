"""Ground truth of the shared nuScenes tables, results that repeat it, and ground truth made by hand."""

import dataclasses
import functools
import pathlib
import tempfile

import numpy as np
from support import shared_path

from config import load_config
from data.frames import FrameInfo
from data.ground_truth import GroundTruth, Occupancy, Plan
from metrics.results import Results
from runtime.boxes import from_nuscenes, to_nuscenes

BASE = load_config("base_e2e")
_CACHE = tempfile.TemporaryDirectory(prefix="uniad-test-cache-")  # one index per test process


@functools.cache
def real_truth(folder: str = "mini_val", convention: str = "v1.0.1") -> GroundTruth:
    """Ground truth of shared/nuscenes/<folder>: mini_val (81 keyframes) or clip (4)."""
    root = shared_path("nuscenes", folder)
    return GroundTruth(root, BASE, maps=False, convention=convention, cache=pathlib.Path(_CACHE.name))


@functools.cache
def devkit(folder: str = "mini_val"):
    """The NuScenes object of shared/nuscenes/<folder>."""
    from nuscenes.nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(shared_path("nuscenes", folder)), verbose=False)


def perfect_record(truth: GroundTruth, index: int) -> dict[str, np.ndarray]:
    """The record of a model that is never wrong: objects of the ten classes with points, their future in all modes.

    Scores differ within a frame; a track keeps its score.
    """
    objects = truth.objects(index)
    rows = np.flatnonzero((objects.labels >= 0) & (objects.points + objects.radar_points > 0))
    boxes, count = objects.boxes[rows].astype(np.float32), len(rows)
    steps = objects.future[rows] - boxes[:, None, :2]  # relative to the object
    traj = np.zeros((count + 1, 6, 12, 5), np.float32)
    traj[:-1, :, :, :2] = np.where(objects.future_mask[rows][..., None], steps, 0)[:, None]
    occupancy, plan = truth.occupancy(index), truth.plan(index)
    segmentation, instance = occupancy.segmentation[:5], occupancy.instance[:5]
    return {
        "boxes_3d": boxes,
        "scores_3d": np.full(count, 0.8, np.float32),
        "labels_3d": objects.labels[rows],
        "track_scores": np.full(count, 0.8, np.float32),
        "track_ids": objects.instance[rows],
        "boxes_3d_det": boxes,
        "scores_3d_det": np.linspace(0.9, 0.5, count, dtype=np.float32),
        "labels_3d_det": objects.labels[rows],
        "traj": traj,
        "traj_scores": np.zeros((count + 1, 6), np.float32),
        "occ_seg": (segmentation == 1).astype(np.int32),
        "occ_ins": np.where(segmentation == 1, instance, 0),
        "sdc_traj_raw": plan.trajectory[:, :2].astype(np.float32),
        "sdc_traj": plan.trajectory[:, :2].astype(np.float32),
    }


def infos_of(truth: GroundTruth, convention: str) -> dict:
    """What uniad_nuscenes_converter.py writes of these keyframes, as far as it is read."""
    infos = []
    for index, token in enumerate(truth.tokens):
        _, scene, frame = truth._at(index)
        objects = truth.objects(index)
        centre, wlh, heading = to_nuscenes(objects.boxes, truth.convention)
        rows = from_nuscenes(centre, wlh, heading, np.zeros((len(wlh), 2)), convention)
        velocity = np.where(np.isnan(objects.velocity), np.nan, objects.boxes[:, 7:9])
        infos.append(
            {
                "token": token,
                "scene_token": truth.info(index).scene_token,
                "timestamp": truth.timestamp(index),
                "lidar2ego_rotation": scene.lidar2ego_rotation[frame].tolist(),
                "lidar2ego_translation": scene.lidar2ego_translation[frame].tolist(),
                "ego2global_rotation": scene.ego2global_rotation[frame].tolist(),
                "ego2global_translation": scene.ego2global_translation[frame].tolist(),
                "gt_boxes": np.concatenate([centre, rows[:, 3:7]], axis=1),
                "gt_names": objects.names,
                "gt_velocity": velocity,
                "num_lidar_pts": objects.points,
                "num_radar_pts": objects.radar_points,
                "gt_inds": objects.instance,
                "gt_ins_tokens": objects.instance_tokens,
                "can_bus": np.zeros(18),
                "sweeps": [],
            }
        )
    return {"infos": infos[::-1], "metadata": {"version": "v1.0-mini"}}


def perfect_results(truth: GroundTruth) -> Results:
    return Results({truth.tokens[i]: perfect_record(truth, i) for i in range(len(truth))}, truth.convention)


def changed(results: Results, change) -> Results:
    """Results whose records are `change(order, a copy of the record)`."""
    records = {token: change(i, dict(record)) for i, (token, record) in enumerate(results.records.items())}
    return Results(records, results.convention)


@dataclasses.dataclass
class HandTruth:
    """Stands in for GroundTruth where a metric only needs grids, maps or plans given by hand, frame by frame."""

    occupancies: list[Occupancy] = dataclasses.field(default_factory=list)
    masks: list[np.ndarray] = dataclasses.field(default_factory=list)
    plans: list[Plan] = dataclasses.field(default_factory=list)
    ahead: list[list[np.ndarray | None]] = dataclasses.field(default_factory=list)
    convention: str = "v1.0.1"
    config = BASE

    def __len__(self):
        return max(len(self.occupancies), len(self.masks), len(self.plans))

    @property
    def tokens(self):
        return [f"frame-{i}" for i in range(len(self))]

    def info(self, index):
        return FrameInfo("scene", self.tokens[index], "scene-0001")

    def occupancy(self, index, grid=None):
        return self.occupancies[index]

    def maps(self, index):
        return self.masks[index]

    def plan(self, index):
        return self.plans[index]

    def boxes_ahead(self, index, step):
        return self.ahead[index][step - 1]

    def results(self, records: list[dict[str, np.ndarray]]) -> Results:
        return Results(dict(zip(self.tokens, records)), self.convention)
