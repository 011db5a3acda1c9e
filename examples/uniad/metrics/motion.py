"""Motion forecasting of tracked agents: minADE, minFDE, miss rate, EPA, by UniAD's matching rule.

Predictions are matched to annotated objects as in nuScenes' detection task, best score first, each to the nearest free
object of its class within 2 m; errors are averaged over recall as the devkit averages its true-positive errors.
Upstream: datasets/eval_utils/{nuscenes_eval_motion,eval_utils,metric_utils}.py of OpenDriveLab/UniAD; EPA (end-to-end
prediction accuracy) is from ViP3D (Gu et al., CVPR 2023).
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import cummean
from nuscenes.eval.detection.algo import calc_ap, calc_tp
from nuscenes.eval.detection.data_classes import DetectionBox

from data.ground_truth import GroundTruth
from metrics.boxes import TRACKED, Tables, annotated_box, filtered, predicted_box, to_global
from metrics.results import Results, Shown, check_frames, frames, number

# "Merged" evaluation: every vehicle is a car. Predictions of other classes than the tracked ones do not count.
MERGED = {
    **dict.fromkeys(("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle"), "car"),
    "pedestrian": "pedestrian",
}
_MATCH = 2.0  # metres between centres
_MATCH_AP = 1.0  # the same for the average precision
_HIT = 2.0  # metres: a trajectory that ends (for the miss rate: stays) nearer is right
_FALSE_POSITIVE = 0.5  # weight in EPA
_RECALL_LEVELS = 101
_ERRORS = ("min_ade", "min_fde", "miss_rate")


def evaluate_motion(results: Results, truth: GroundTruth) -> dict[str, Any]:
    """Motion metrics of matched agents.

    Returns `merged` (car, pedestrian; the published figures) and `classes` (seven tracked ones), each class with

    min_ade, min_fde  metres, the best of six modes, over the known steps (six seconds at most)
    miss_rate         share of agents of which no mode stays within 2 m
    epa               (matched agents whose best mode ends within 2 m - 0.5 false positives) / annotated agents
    ap_min_fde        average precision where a match also needs that end, at 1 m between centres
    boxes             annotated agents

    and the number of `frames`. As in the original an agent whose future is not annotated counts with zero errors, but
    not as a hit of EPA (which a perfect result therefore keeps below 1); a class without any match has 1.0 for the
    three errors and an EPA of 0; one without annotated agents has None. Needs `boxes_3d`, `scores_3d`, `labels_3d`,
    `traj`. Raises UniADError.
    """
    check_frames(results, truth)
    config, tables = config_factory("detection_cvpr_2019"), Tables(truth)
    report: dict[str, Any] = {"merged": {}, "classes": {}, "frames": len(truth)}
    own_names = {name: name for name in TRACKED}
    for part, naming in (("merged", MERGED), ("classes", own_names)):
        annotated, predicted = _motion_boxes(results, truth, config.class_range, naming)
        annotated, predicted = filtered(annotated, config, tables), filtered(predicted, config, tables)
        for name in Shown(sorted(set(naming.values())), f"motion, {part}"):
            report[part][name] = _class_metrics(_of_class(annotated, name), _of_class(predicted, name), config)
    return report


def _motion_boxes(
    results: Results, truth: GroundTruth, class_range: dict[str, float], naming: dict[str, str]
) -> tuple[EvalBoxes, EvalBoxes]:
    """Annotated boxes with `future` (steps,2), predicted ones with `future` (modes,steps,2), lidar frame, metres."""
    annotated, predicted = EvalBoxes(), EvalBoxes()
    tracked_range = {name: class_range[name] for name in TRACKED}
    for index in frames(truth, "motion"):
        token, objects = truth.tokens[index], truth.objects(index)
        annotated.add_boxes(token, [])
        for row in np.flatnonzero(np.isin(objects.names, list(naming))):
            box = annotated_box(DetectionBox, token, objects, row, detection_name=naming[str(objects.names[row])])
            box.future = objects.future[row][objects.future_mask[row]]
            annotated.add_boxes(token, [box])
        boxes, scores, labels, traj = results.arrays(token, "boxes_3d", "scores_3d", "labels_3d", "traj")
        found = to_global(boxes, labels, truth, index, tracked_range)
        predicted.add_boxes(token, [])
        for i, (row, name) in enumerate(zip(found.rows, found.names)):
            names = {"detection_name": naming[name], "detection_score": float(scores[row])}
            box = predicted_box(DetectionBox, token, found, i, **names)
            box.future = (traj[row, ..., :2] + found.centre[i]).astype(np.float32).astype(np.float64)
            predicted.add_boxes(token, [box])
    return annotated, predicted


def _of_class(boxes: EvalBoxes, name: str) -> dict[str, list[Any]]:
    return {token: [box for box in boxes[token] if box.detection_name == name] for token in boxes.sample_tokens}


def _class_metrics(annotated: dict[str, list[Any]], predicted: dict[str, list[Any]], config: Any) -> dict[str, Any]:
    count = sum(len(boxes) for boxes in annotated.values())
    if count == 0:
        return {**dict.fromkeys((*_ERRORS, "epa", "ap_min_fde")), "boxes": 0}
    matched = _match(annotated, predicted, _MATCH)
    hits = _match(annotated, predicted, _MATCH, _HIT).hits.sum()
    false = (~matched.hits).sum() if matched.hits.any() else 0
    curves = _curves(matched, count)
    precise = _curves(_match(annotated, predicted, _MATCH_AP, _HIT), count)
    return {
        **{name: number(calc_tp(curves, config.min_recall, name)) for name in _ERRORS},
        "epa": number((hits - _FALSE_POSITIVE * false) / (count + 1e-5)),
        "ap_min_fde": number(calc_ap(precise, config.min_recall, config.min_precision)),
        "boxes": count,
    }


@dataclasses.dataclass(frozen=True)
class _Matches:
    """Predictions by falling score: score (P), whether matched (P), and the errors of the matched ones (M,3)."""

    scores: np.ndarray
    hits: np.ndarray
    errors: np.ndarray


def _match(
    annotated: dict[str, list[Any]], predicted: dict[str, list[Any]], limit: float, end_limit: float = np.inf
) -> _Matches:
    """Greedy matching to the nearest free object closer than `limit`; no match if no mode ends within `end_limit`."""
    boxes = [box for token in annotated for box in predicted[token]]
    order = sorted(range(len(boxes)), key=lambda i: (boxes[i].detection_score, i), reverse=True)
    places = {token: np.array([b.translation[:2] for b in found]).reshape(-1, 2) for token, found in annotated.items()}
    free = {token: np.ones(len(found), bool) for token, found in annotated.items()}
    hits, errors = np.zeros(len(boxes), bool), []
    for rank, box in enumerate(boxes[i] for i in order):
        token = box.sample_token
        distance = np.linalg.norm(places[token] - box.translation[:2], axis=1)
        distance[~free[token]] = np.inf
        if not len(distance) or distance.min() >= limit:
            continue
        nearest = int(distance.argmin())
        future = annotated[token][nearest].future
        if end_limit < np.inf and not _end_error(box.future, future) < end_limit:
            continue
        free[token][nearest] = False
        hits[rank] = True
        errors.append(_trajectory_errors(box.future, future))
    scores = np.array([boxes[i].detection_score for i in order])
    return _Matches(scores, hits, np.array(errors).reshape(-1, len(_ERRORS)))


def _end_error(modes: np.ndarray, future: np.ndarray) -> float:
    """Distance of the nearest mode from where the agent is at the last known step; infinite if none is known."""
    if not len(future):
        return float("inf")
    return float(np.linalg.norm(modes[:, len(future) - 1] - future[-1], axis=-1).min())


def _trajectory_errors(modes: np.ndarray, future: np.ndarray) -> tuple[float, float, float]:
    """minADE, minFDE and miss (0 or 1) of modes (modes,steps,2) against the known steps (steps,2)."""
    if not len(future):
        return 0.0, 0.0, 0.0
    distance = np.linalg.norm(modes[:, : len(future)] - future, axis=-1)  # (modes,steps)
    return distance.mean(1).min(), distance[:, -1].min(), float(distance.max(1).min() > _HIT)


def _curves(matches: _Matches, count: int) -> SimpleNamespace:
    """Precision, score and mean errors over recall, as the devkit's DetectionMetricData has them."""
    nothing = np.zeros(_RECALL_LEVELS)
    if not matches.hits.any():
        return SimpleNamespace(precision=nothing, confidence=nothing, max_recall_ind=0)
    true = np.cumsum(matches.hits)
    recall, levels = true / count, np.linspace(0, 1, _RECALL_LEVELS)
    precision = np.interp(levels, recall, true / np.arange(1, len(true) + 1), right=0)
    confidence = np.interp(levels, recall, matches.scores, right=0)
    scores = matches.scores[matches.hits]
    means = {
        name: np.interp(confidence[::-1], scores[::-1], cummean(column)[::-1])[::-1]
        for name, column in zip(_ERRORS, matches.errors.T)
    }
    reached = int(np.flatnonzero(confidence)[-1]) if confidence.any() else 0
    return SimpleNamespace(precision=precision, confidence=confidence, max_recall_ind=reached, **means)
