"""Tracking: AMOTA, AMOTP, recall, identity switches, by nuscenes-devkit's TrackingEval."""

from __future__ import annotations

import warnings
from typing import Any

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.tracking.evaluate import TrackingEval
from nuscenes.eval.tracking.loaders import interpolate_tracks

from data.ground_truth import GroundTruth
from metrics.boxes import Tables, tracking_boxes
from metrics.results import Results, Shown, check_frames, number

# Devkit's names. Counts (mt ... frag) are sums over classes, the others means over the classes that occur.
METRICS = (
    *("amota", "amotp", "recall", "motar", "mota", "motp", "gt", "mt", "ml"),
    *("faf", "tp", "fp", "fn", "ids", "frag", "tid", "lgd"),
)


def evaluate_tracking(results: Results, truth: GroundTruth) -> dict[str, Any]:
    """Tracking metrics by the official code (tracking_nips_2019: seven classes, 2 m, 40 recall levels).

    Returns the devkit's metrics over all classes, `classes` with the same per class, and the number of `frames`,
    `scenes` and annotated `boxes` (gaps of tracks filled); None where a class does not occur. Needs `boxes_3d`,
    `scores_3d`, `labels_3d`, `track_ids`. Raises UniADError.
    """
    check_frames(results, truth)
    config = config_factory("tracking_nips_2019")
    detection_range = config_factory("detection_cvpr_2019").class_range
    annotated, predicted = tracking_boxes(results, truth, config, detection_range, Tables(truth))
    config.class_names = Shown(config.class_names, "tracking")
    evaluation = TrackingEval.__new__(TrackingEval)  # its constructor would load the tables again, and JSON files
    evaluation.cfg, evaluation.verbose = config, False
    evaluation.output_dir, evaluation.render_classes = None, None
    evaluation.tracks_gt = _tracks(annotated, truth, average_scores=False)
    evaluation.tracks_pred = _tracks(predicted, truth, average_scores=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over classes that do not occur
        metrics, _ = evaluation.evaluate()
        summary = {name: number(metrics.compute_metric(name)) for name in METRICS}
    labels = metrics.label_metrics
    return {
        **summary,
        "classes": {c: {m: number(labels[m][c]) for m in METRICS} for c in list(config.class_names)},
        "frames": len(truth),
        "scenes": len(truth.heads),
        "boxes": sum(len(boxes) for scene in evaluation.tracks_gt.values() for boxes in scene.values()),
    }


def _tracks(boxes: EvalBoxes, truth: GroundTruth, average_scores: bool) -> dict[str, Any]:
    """Scene token -> timestamp -> boxes, gaps interpolated, as the devkit's create_tracks (which needs a split).

    With `average_scores` every box gets the mean score of its track in the scene.
    """
    tracks: dict[str, Any] = {}
    for index in range(len(truth)):
        info = truth.info(index)
        scene = tracks.setdefault(info.scene_token, {})
        scene[truth.timestamp(index)] = boxes.boxes[info.sample_token]
    for scene in tracks.values():
        if average_scores:
            scores: dict[str, list[float]] = {}
            for box in (box for frame in scene.values() for box in frame):
                scores.setdefault(box.tracking_id, []).append(box.tracking_score)
            for box in (box for frame in scene.values() for box in frame):
                box.tracking_score = sum(scores[box.tracking_id]) / len(scores[box.tracking_id])
    return {token: interpolate_tracks(scene) for token, scene in tracks.items()}
