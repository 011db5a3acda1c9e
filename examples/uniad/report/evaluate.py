"""A result folder scored against ground truth, all five tasks: what report/scores.py sets side by side."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from config import config_from_dict
from data.frames import FrameError
from data.ground_truth import GroundTruth
from data.scene_index import cache_folder
from errors import UniADError
from metrics.detection import evaluate_detection
from metrics.map import evaluate_map
from metrics.motion import evaluate_motion
from metrics.occupancy import evaluate_occupancy
from metrics.planning import evaluate_planning
from metrics.results import read_results
from metrics.tracking import evaluate_tracking
from report.scores import Driven, lookup

# task -> (function, what it reads)
TASKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "tracking": (evaluate_tracking, ("boxes_3d", "scores_3d", "labels_3d", "track_ids")),
    "detection": (evaluate_detection, ("boxes_3d_det", "scores_3d_det", "labels_3d_det")),
    "map": (evaluate_map, ("map_drivable", "map_lane")),
    "motion": (evaluate_motion, ("boxes_3d", "scores_3d", "labels_3d", "traj")),
    "occupancy": (evaluate_occupancy, ("occ_seg", "occ_ins")),
    "planning": (evaluate_planning, ("sdc_traj_raw", "sdc_traj")),
}


def open_truth(
    root: pathlib.Path, run: Mapping[str, Any], infos: pathlib.Path | None = None
) -> tuple[GroundTruth, list[str]]:
    """Ground truth of the scenes of a run, and notes. Without the map expansion it has no maps and a note says so.

    `infos` is a nuscenes_infos_temporal_*.pkl whose annotations take the place of the tables'. Raises UniADError: no
    nuScenes root, not the run's scenes, no such infos.
    """
    try:
        config = config_from_dict(run["config"])
        scenes = [scene["token"] for scene in run["scenes"]]
    except (KeyError, TypeError) as error:
        raise UniADError(f"run.json of the result lacks {error}: make the result again with run.py") from error
    version = lookup(run, "identity.frames.version")
    choice = {"version": version, "scenes": scenes, "convention": run["convention"], "cache": cache_folder()}
    notes = [] if infos is None else [f"annotations of {infos}, which hold no attributes: NDS counts them as wrong"]
    try:
        return GroundTruth(root, config, infos=infos, **choice), notes
    except FrameError as error:
        truth = GroundTruth(root, config, maps=False, infos=infos, **choice)  # fails again unless only maps are missing
        return truth, [*notes, f"map: not scored ({error})"]


def evaluate(path: pathlib.Path, truth: GroundTruth, what: str) -> tuple[dict[str, Any], list[str]]:
    """The reports of all tasks for a result folder, by name, and notes on those left out. Raises UniADError.

    Scores that a run brings with it (report/original.py) stand in for what its frames don't hold.
    """
    results, brought = read_results(path), json.loads((path / "run.json").read_text()).get("scores", {})
    have = set(next(iter(results.records.values())))
    reports, notes = {}, []
    for task, (function, needed) in TASKS.items():
        missing = [key for key in needed if key not in have]
        if brought.get(task):
            reports[task] = brought[task]
            notes.append(f"{what}: {task} as the original computed it")
        elif missing:
            notes.append(f"{what}: {task} not scored, its frames have no {', '.join(missing)}")
        elif task != "map" or truth.has_maps:
            reports[task] = function(results, truth)
    return reports, notes


def driven_ways(truth: GroundTruth) -> dict[str, Driven]:
    """What the vehicle did after each keyframe, by sample token."""
    plans = [truth.plan(index) for index in range(len(truth))]
    names = [truth.info(index).scene_name for index in range(len(truth))]
    return {t: Driven(name, p.trajectory[:, :2], p.mask) for t, name, p in zip(truth.tokens, names, plans)}
