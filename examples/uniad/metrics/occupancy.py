"""Occupancy forecasting: intersection over union and video panoptic quality, near (30 m) and far (100 m).

Video panoptic quality is FIERY's (Hu et al., ICCV 2021): panoptic quality over all frames in which a match to another
prediction than in the frame before counts as a miss and a false alarm. Upstream: uniad/apis/test.py and
uniad/dense_heads/occ_head_plugin/metrics.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data.ground_truth import GroundTruth
from errors import UniADError
from metrics.results import Results, check_frames, frames, ratio

OCC_FRAMES = 5
_MATCH = 0.5  # intersection over union above which two segments are one
_RANGES = {"near": 15.0, "far": 50.0}  # metres to each side


@dataclasses.dataclass
class _Sums:
    """What is added up over all frames of one range."""

    common: int = 0  # cells
    either: int = 0
    quality: float = 0.0  # intersection over union of matched segments
    matched: int = 0
    false: int = 0
    missed: int = 0

    def report(self, suffix: str) -> dict[str, float | None]:
        segments = self.matched + self.false / 2 + self.missed / 2
        return {
            f"iou_{suffix}": ratio(self.common, self.either),
            f"vpq_{suffix}": ratio(self.quality, segments),
            f"vsq_{suffix}": ratio(self.quality, self.matched),
            f"vrq_{suffix}": ratio(self.matched, segments),
        }


def evaluate_occupancy(results: Results, truth: GroundTruth) -> dict[str, Any]:
    """Occupancy of vehicles at 0, 0.5, ... 2 s, pooled over frames, shares of 1.

    Returns `iou_near`, `iou_far`, video panoptic, segmentation and recognition quality `vpq_`, `vsq_`, `vrq_` of
    both ranges, and how many of the `frames` were `scored`: those with two keyframes before and four after. None
    where there is nothing. Needs `occ_seg`, `occ_ins` (0 free, ids from 1). Raises UniADError.
    """
    check_frames(results, truth)
    lower, upper, cell = truth.config.occ_grid
    size = truth.config.occ_size
    sums = {name: _Sums() for name in _RANGES}
    scored = 0
    for index in frames(truth, "occupancy"):
        token = truth.tokens[index]
        segmentation, instance = results.arrays(token, "occ_seg", "occ_ins")
        if segmentation.shape != (OCC_FRAMES, size, size) or instance.shape != segmentation.shape:
            raise UniADError(
                f"{results.where}: frame {token}: occupancy has {segmentation.shape} and {instance.shape}, "
                f"ground truth {(OCC_FRAMES, size, size)}"
            )
        actual = truth.occupancy(index)
        if not actual.scored:
            continue
        scored += 1
        true_segmentation, true_instance = actual.segmentation[:OCC_FRAMES] == 1, actual.instance[:OCC_FRAMES]
        for name, reach in _RANGES.items():
            middle = (lower + upper) / 2
            first, last = round((middle - reach - lower) / cell), round((middle + reach - lower) / cell)
            window = np.s_[:, max(first, 0) : last, max(first, 0) : last]
            a, b = segmentation[window] != 0, true_segmentation[window]
            sums[name].common += int(np.count_nonzero(a & b))
            sums[name].either += int(np.count_nonzero(a | b))
            _add_panoptic(sums[name], instance[window], true_instance[window])
    report: dict[str, Any] = {}
    for name, total in sums.items():
        report |= total.report(name)
    return {**report, "scored": scored, "frames": len(truth)}


def _add_panoptic(sums: _Sums, predicted: np.ndarray, actual: np.ndarray) -> None:
    """Add the matched, false and missed segments of one keyframe: instance maps (T,H,W), 0 = free."""
    last_match: dict[int, int] = {}  # annotated instance -> predicted instance it was matched to last
    for predicted_t, actual_t in zip(predicted, actual):
        ids_a, index_a, cells_a = np.unique(predicted_t, return_inverse=True, return_counts=True)
        ids_b, index_b, cells_b = np.unique(actual_t, return_inverse=True, return_counts=True)
        pairs = index_b.ravel() * len(ids_a) + index_a.ravel()
        common = np.bincount(pairs, minlength=len(ids_b) * len(ids_a)).reshape(len(ids_b), len(ids_a))
        iou = common / (cells_b[:, None] + cells_a - common)
        iou[ids_b == 0] = iou[:, ids_a == 0] = 0  # free cells are no segment
        rows, columns = np.nonzero(iou > _MATCH)  # at most one per row and column
        for row, column in zip(rows, columns):
            number, match = int(ids_b[row]), int(ids_a[column])
            if last_match.get(number, match) == match:
                sums.matched += 1
                sums.quality += float(iou[row, column])
            else:
                sums.missed += 1
                sums.false += 1
            last_match[number] = match
        sums.missed += int(np.count_nonzero(ids_b)) - len(rows)
        sums.false += int(np.count_nonzero(ids_a)) - len(rows)
