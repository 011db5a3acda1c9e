"""Detection: NDS and mAP, by nuscenes-devkit's DetectionEval."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.evaluate import DetectionEval

from data.ground_truth import GroundTruth
from metrics.boxes import Tables, detection_boxes
from metrics.results import Results, Shown, check_frames, number


def evaluate_detection(results: Results, truth: GroundTruth) -> dict[str, Any]:
    """Detection metrics by the official code (detection_cvpr_2019: ten classes, 0.5, 1, 2 and 4 m).

    Returns `nds`, `mean_ap`, the five mean true-positive errors (`trans_err` m, `scale_err`, `orient_err` rad,
    `vel_err` m/s, `attr_err`), `classes` with `ap`, the same errors and the number of annotated `boxes`, and the
    number of `frames` and `boxes`. Classes that do not occur count as 0 in the means, as in the official score:
    `mean_ap_present` leaves them out. Needs `boxes_3d_det`, `scores_3d_det`, `labels_3d_det`. Raises UniADError.
    """
    check_frames(results, truth)
    config = config_factory("detection_cvpr_2019")
    annotated, predicted = detection_boxes(results, truth, config, Tables(truth))
    config.class_names = Shown(config.class_names, "detection")
    evaluation = DetectionEval.__new__(DetectionEval)  # its constructor would read JSON files
    evaluation.cfg, evaluation.verbose = config, False
    evaluation.gt_boxes, evaluation.pred_boxes = annotated, predicted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over nothing
        metrics, _ = evaluation.evaluate()
    boxes = Counter(box.detection_name for box in annotated.all)
    mean_ap = metrics.mean_dist_aps
    present = [mean_ap[name] for name in mean_ap if boxes[name]]
    return {
        "nds": number(metrics.nd_score),
        "mean_ap": number(metrics.mean_ap),
        "mean_ap_present": number(sum(present) / len(present)) if present else None,
        **{name: number(value) for name, value in metrics.tp_errors.items()},
        "classes": {
            name: {
                "ap": number(mean_ap[name]),
                **{error: number(metrics.get_label_tp(name, error)) for error in TP_METRICS},
                "boxes": boxes[name],
            }
            for name in mean_ap
        },
        "frames": len(truth),
        "boxes": len(annotated.all),
    }
