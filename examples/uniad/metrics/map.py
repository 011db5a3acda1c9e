"""Map segmentation: intersection over union per class.

Upstream: uniad/dense_heads/panseg_head.py (forward_test) and datasets/nuscenes_e2e_dataset.py (evaluate).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data.ground_truth import GroundTruth
from errors import UniADError
from metrics.results import Results, check_frames, frames, ratio


def evaluate_map(results: Results, truth: GroundTruth) -> dict[str, Any]:
    """Intersection over union of cells, pooled over all frames: `divider`, `crossing`, `boundary`, `drivable`, and
    `lanes` (cells of any class against cells of any class, as the published IoU-lane).

    None where a class is in neither. As in the original, what counts as a lane there are dividers, crossings and
    boundaries of the labels, but all three predicted classes. Needs `map_drivable`, `map_lane` and ground truth with
    maps. Raises UniADError.
    """
    check_frames(results, truth)
    common: Counter[str] = Counter()
    either: Counter[str] = Counter()
    for index in frames(truth, "map"):
        token, actual = truth.tokens[index], truth.maps(index)
        drivable, lane = results.arrays(token, "map_drivable", "map_lane")
        if drivable.shape != actual.shape[1:] or lane.shape != (3, *drivable.shape):
            raise UniADError(f"{results.where}: frame {token}: maps have {lane.shape}, ground truth {actual.shape}")
        lane, drivable = lane != 0, drivable != 0
        pairs = {name: (lane[i], actual[i]) for i, name in enumerate(("divider", "crossing", "boundary"))}
        pairs |= {"lanes": (lane.any(0), actual[:3].any(0)), "drivable": (drivable, actual[3])}
        for name, (a, b) in pairs.items():
            common[name] += int(np.count_nonzero(a & b))
            either[name] += int(np.count_nonzero(a | b))
    names = ("divider", "crossing", "boundary", "lanes", "drivable")
    return {**{name: ratio(common[name], either[name]) for name in names}, "frames": len(truth)}
