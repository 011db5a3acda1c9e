"""Occupancy and map scores: perfect grids, and errors counted by hand."""

import json

import numpy as np
import pytest
from support import assert_close
from truth_support import BASE, HandTruth, changed, perfect_results, real_truth

from data.ground_truth import Occupancy
from errors import UniADError
from metrics.map import evaluate_map
from metrics.occupancy import evaluate_occupancy


def _occupancy(instance: np.ndarray, scored: bool = True) -> Occupancy:
    """Seven frames from five (5,200,200) of instance numbers."""
    instance = np.concatenate([instance, np.full((2, 200, 200), 255)]).astype(np.int32)
    segmentation = np.where(instance == 255, 255, instance > 0).astype(np.uint8)
    return Occupancy(segmentation, instance, np.ones(9, bool), scored)


def _prediction(instance: np.ndarray) -> dict[str, np.ndarray]:
    return {"occ_ins": instance, "occ_seg": (instance > 0).astype(np.int64)}


def _blocks(*blocks: tuple[int, int, int]) -> np.ndarray:
    """(5,200,200) with squares of 10 x 10 cells: number, first row, first column."""
    grid = np.zeros((5, 200, 200), np.int64)
    for number, row, column in blocks:
        grid[:, row : row + 10, column : column + 10] = number
    return grid


def _score(actual: np.ndarray, predicted: np.ndarray) -> dict:
    truth = HandTruth(occupancies=[_occupancy(actual)])
    return evaluate_occupancy(truth.results([_prediction(predicted)]), truth)


TWO = _blocks((5, 95, 95), (9, 20, 20))  # one near, one far
SHARES = ("iou", "vpq", "vsq", "vrq")


def test_real_ground_truth_against_itself():
    truth = real_truth()
    report = evaluate_occupancy(perfect_results(truth), truth)
    assert (report["scored"], report["frames"]) == (69, 81)
    assert all(report[f"{name}_{reach}"] == 1 for name in SHARES for reach in ("near", "far"))


def test_numbers_do_not_matter():
    report = _score(TWO, _blocks((1, 95, 95), (2, 20, 20)))
    assert all(report[f"{name}_{reach}"] == 1 for name in SHARES for reach in ("near", "far"))
    json.dumps(report, allow_nan=False)


def test_shift_by_two_cells():
    """A square of 10 cells moved by 2: 80 cells in common, 120 in either."""
    moved = _blocks((1, 95, 97), (2, 20, 20))
    report = _score(TWO, moved)
    assert_close(report["iou_near"], 80 / 120, 1e-12, "near")
    assert_close(report["iou_far"], 180 / 220, 1e-12, "far")
    assert_close(report["vpq_near"], 80 / 120, 1e-12, "still matched")
    assert_close(report["vpq_far"], (80 / 120 + 1) / 2, 1e-12, "mean of both")
    gone = _score(TWO, _blocks((1, 95, 100), (2, 20, 20)))  # a third in common: no match
    assert gone["vpq_near"] == 0 and gone["vsq_near"] is None and gone["vrq_near"] == 0
    assert_close(gone["vpq_far"], 1 / 2, 1e-12, "one matched, one missed, one false")
    assert_close(gone["iou_near"], 50 / 150, 1e-12, "near")


def test_half_is_no_match():
    """Two thirds are more than half; exactly half is not."""
    half = TWO.copy()
    half[:, 95:100, 95:105] = 0
    report = _score(TWO, half)
    assert report["iou_near"] == 0.5 and report["vpq_near"] == 0


def test_missing_and_false_objects():
    missing = _score(TWO, _blocks((1, 95, 95)))
    assert_close([missing["vpq_far"], missing["vpq_near"]], [1 / 1.5, 1], 1e-12, "one missed")
    false = _score(TWO, _blocks((1, 95, 95), (2, 20, 20), (3, 150, 150)))
    assert_close([false["vpq_far"], false["vsq_far"]], [2 / 2.5, 1], 1e-12, "one false")
    nothing = _score(TWO, np.zeros_like(TWO))
    assert nothing["iou_far"] == 0 and nothing["vpq_far"] == 0
    free = _score(np.zeros_like(TWO), np.zeros_like(TWO))
    assert free["iou_far"] is None and free["vpq_far"] is None


def test_swapped_ids_in_time():
    """Two objects that exchange their numbers after two frames: at that step two misses and two false ones."""
    actual, predicted = _blocks((1, 90, 80), (2, 90, 100)), _blocks((1, 90, 80), (2, 90, 100))
    predicted[2:] = _blocks((2, 90, 80), (1, 90, 100))[2:]
    report = _score(actual, predicted)
    assert report["iou_near"] == 1
    # Ten segments, of which two do not count as matches: 8 / (8 + 2 / 2 + 2 / 2).
    assert_close(report["vpq_near"], 8 / 10, 1e-12, "swap")


def test_delay_by_a_frame():
    """A square that moves by 5 cells a frame, predicted a frame late: a third in common in four of five frames."""
    actual, late = np.zeros((2, 5, 200, 200), np.int64)
    for t in range(5):
        actual[t, 95:105, 80 + 5 * t : 90 + 5 * t] = 1
        late[t, 95:105, 80 + 5 * max(t - 1, 0) : 90 + 5 * max(t - 1, 0)] = 1
    report = _score(actual, late)
    assert_close(report["iou_near"], (100 + 4 * 50) / (100 + 4 * 150), 1e-12, "IoU")
    assert_close(report["vpq_near"], 1 / (1 + 4 / 2 + 4 / 2), 1e-12, "VPQ")


def test_only_whole_futures_are_scored():
    truth = HandTruth(occupancies=[_occupancy(TWO), _occupancy(TWO, scored=False)])
    report = evaluate_occupancy(truth.results([_prediction(TWO), _prediction(np.zeros_like(TWO))]), truth)
    assert (report["scored"], report["frames"], report["vpq_far"]) == (1, 2, 1)


def test_wrong_shapes():
    truth = HandTruth(occupancies=[_occupancy(TWO)])
    with pytest.raises(UniADError, match=r"occupancy has \(5, 40, 40\)"):
        evaluate_occupancy(truth.results([_prediction(np.zeros((5, 40, 40), int))]), truth)


# --- map ---


def _map(*areas: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Masks (4,200,200) with ten rows per class, and the same as a prediction."""
    masks = np.zeros((4, 200, 200), bool)
    for index, rows in enumerate(areas):
        masks[index, rows] = True
    return masks, {"map_lane": masks[:3].astype(np.int32), "map_drivable": masks[3].copy()}


def test_map():
    masks, record = _map(np.s_[0:10], np.s_[20:30], np.s_[40:50], np.s_[0:100])
    truth = HandTruth(masks=[masks])
    perfect = evaluate_map(truth.results([record]), truth)
    assert perfect == {"divider": 1, "crossing": 1, "boundary": 1, "lanes": 1, "drivable": 1, "frames": 1}
    shifted = {key: np.roll(value, 5, axis=-2) for key, value in record.items()}
    report = evaluate_map(truth.results([shifted]), truth)
    assert_close([report[name] for name in ("divider", "crossing", "boundary", "lanes")], [5 / 15] * 4, 1e-12, "lines")
    assert_close(report["drivable"], 95 / 105, 1e-12, "area")
    flipped = evaluate_map(truth.results([{key: value[..., ::-1, :] for key, value in record.items()}]), truth)
    assert flipped["divider"] == flipped["drivable"] == 0
    swapped = {**record, "map_lane": record["map_lane"][[1, 0, 2]]}
    report = evaluate_map(truth.results([swapped]), truth)
    assert (report["divider"], report["crossing"], report["boundary"], report["lanes"]) == (0, 0, 1, 1)


def test_map_is_pooled_over_frames():
    """10 rows right in one frame, 30 wrong in the other: 10 of 70, not the mean of 1 and 0."""
    right, wrong = _map(np.s_[0:10]), _map(np.s_[0:30])
    wrong[1]["map_lane"] = np.roll(wrong[1]["map_lane"], 30, axis=1)
    truth = HandTruth(masks=[right[0], wrong[0]])
    report = evaluate_map(truth.results([right[1], wrong[1]]), truth)
    assert_close(report["divider"], 10 / 70, 1e-12, "pooled")
    assert report["crossing"] is None and report["frames"] == 2  # in neither
    with pytest.raises(UniADError, match=r"maps have \(3, 40, 40\)"):
        evaluate_map(
            truth.results([{"map_lane": np.zeros((3, 40, 40)), "map_drivable": np.zeros((40, 40))}] * 2), truth
        )


def test_engine_without_an_output():
    truth = real_truth("clip")
    pruned = changed(perfect_results(truth), lambda _, record: {k: v for k, v in record.items() if k != "occ_ins"})
    with pytest.raises(UniADError, match="has no occ_ins: the engine gave none"):
        evaluate_occupancy(pruned, truth)
    assert BASE.occ_size == 200
