"""The five tasks' scores of a result and its base beside each other, and what they may lose.

`score_rows` picks the published figures out of both sides' reports (report/evaluate.py). A *drop* is how much worse
the result is than the base, in the score's own unit, whichever way is better.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from errors import UniADError
from report.compare import Result


class Score(NamedTuple):
    """One published figure: its name, where it stands in the tasks' reports, its unit, and what is better."""

    name: str
    path: str
    unit: str = ""
    more_is_better: bool = True


SCORES: tuple[Score, ...] = (
    Score("AMOTA", "tracking.amota"),
    Score("AMOTP", "tracking.amotp", "m", False),
    Score("Recall", "tracking.recall"),
    Score("IDS", "tracking.ids", "", False),
    Score("NDS", "detection.nds"),
    Score("mAP", "detection.mean_ap"),
    Score("mAP-present", "detection.mean_ap_present"),
    Score("IoU-lane", "map.lanes"),
    Score("IoU-drivable", "map.drivable"),
    Score("IoU-divider", "map.divider"),
    Score("IoU-crossing", "map.crossing"),
    Score("IoU-boundary", "map.boundary"),
    Score("minADE", "motion.merged.car.min_ade", "m", False),
    Score("minFDE", "motion.merged.car.min_fde", "m", False),
    Score("MR", "motion.merged.car.miss_rate", "", False),
    Score("EPA", "motion.merged.car.epa"),
    Score("IoU-n", "occupancy.iou_near"),
    Score("IoU-f", "occupancy.iou_far"),
    Score("VPQ-n", "occupancy.vpq_near"),
    Score("VPQ-f", "occupancy.vpq_far"),
    *(Score(f"L2-{at}", f"planning.optimised.uniad.l2.{at}", "m", False) for at in ("1s", "2s", "3s")),
    Score("L2", "planning.optimised.uniad.l2.avg", "m", False),
    Score("L2-raw", "planning.raw.uniad.l2.avg", "m", False),
    Score("L2-stp3", "planning.optimised.stp3.l2.avg", "m", False),
    Score("Col", "planning.optimised.uniad.obj_box_col.avg", "", False),
    Score("Col-raw", "planning.raw.uniad.obj_box_col.avg", "", False),
    Score("Col-stp3", "planning.optimised.stp3.obj_box_col.avg", "", False),
    Score("Col-yaw", "planning.optimised.uniad.collision_yaw.avg", "", False),
)


def find_score(name: str) -> Score:
    """A score by its name in any case. Raises UniADError."""
    for score in SCORES:
        if score.name.lower() == name.lower():
            return score
    raise UniADError(f"no score {name!r}; there are: {', '.join(score.name for score in SCORES)}")


def lookup(report: Mapping[str, Any], path: str) -> Any:
    """A value at a dotted path of nested mappings, None where there is none."""
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def score_rows(
    result: Mapping[str, Any], base: Mapping[str, Any], max_drops: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per score: name, task, unit, more_is_better, both values, difference, max_drop and `kept` (None: no
    threshold). A score that only the result lacks breaks its threshold; one that the base lacks can't be held to it.
    """
    rows = []
    for score in SCORES:
        ours, theirs = lookup(result, score.path), lookup(base, score.path)
        difference = None if ours is None or theirs is None else ours - theirs
        limit, kept = max_drops.get(score.name), None
        if limit is not None:
            drop = None if difference is None else -difference if score.more_is_better else difference
            kept = theirs is None if drop is None else drop <= limit + 1e-12
        row: dict[str, Any] = {"name": score.name, "task": score.path.split(".")[0], "unit": score.unit}
        row |= {"more_is_better": score.more_is_better, "result": ours, "base": theirs, "difference": difference}
        rows.append({**row, "max_drop": limit, "kept": kept})
    return rows


def truth_root(run: Mapping[str, Any]) -> pathlib.Path | None:
    """The nuScenes root that the frames of a run came from, where it is still there."""
    source = lookup(run, "identity.frames") or {}
    if source.get("kind") != "nuScenes":
        return None
    root = pathlib.Path(source.get("path", ""))
    return root if (root / source.get("version", "")).is_dir() else None


class Driven(NamedTuple):
    """The vehicle's way after a keyframe: points (6,2) in metres and which of them are known (6)."""

    scene: str
    points: np.ndarray
    known: np.ndarray


def plan_errors(result: Result, base: Result, driven: Mapping[str, Driven]) -> list[dict[str, Any]]:
    """Per frame: `name`, `scene`, mean distance in metres of the optimised plan to the base's (`to_base`) and to the
    driven way (`to_driven`); None where there is nothing to measure. `driven` is by sample token."""
    rows = []
    for name, path in result.frames.items():
        plan, other = _plan(path), _plan(base.frames[name])
        row: dict[str, Any] = {"name": name, "scene": None, "to_base": None, "to_driven": None}
        if plan is not None and other is not None:
            row["to_base"] = _mean_distance(plan, other)
        if way := driven.get(name.split("_", 1)[1]):
            row["scene"] = way.scene
            if plan is not None and way.known.any():
                row["to_driven"] = _mean_distance(plan[way.known], way.points[way.known])
        rows.append(row)
    return rows


def _plan(path: pathlib.Path) -> np.ndarray | None:
    with np.load(path, allow_pickle=False) as file:
        return file["sdc_traj"] if "sdc_traj" in file.files else None


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(a, np.float64) - b, axis=-1).mean())
