"""Planning scores: both protocols, collisions on the grid and of turned boxes, by hand."""

import json

import numpy as np
import pytest
import shapely
from support import assert_close
from truth_support import HandTruth, changed, perfect_results, real_truth

from data.ground_truth import Occupancy, Plan
from errors import UniADError
from metrics.planning import box_collisions, evaluate_planning, headings, overlap, point_collisions, turned_collisions

AHEAD = np.stack([np.zeros(6), 5.0 * np.arange(1, 7)], axis=1)  # 10 m/s straight on
NOBODY = [np.zeros((0, 5))] * 6


def _cell(x: float, y: float) -> tuple[int, int]:
    """Row and column of a point."""
    return int((y + 50) / 0.5), int((x + 50) / 0.5)


def _grid(*objects: tuple[float, float, int]) -> np.ndarray:
    """Occupied cells (7,200,200) uint8: x, y and step (0 = now) of one-cell objects."""
    grid = np.zeros((7, 200, 200), np.uint8)
    for x, y, step in objects:
        grid[(step, *_cell(x, y))] = 1
    return grid


def _truth(grid: np.ndarray, way: np.ndarray = AHEAD, known: int = 6, ahead=None) -> HandTruth:
    grid = grid.copy()
    grid[known + 1 :] = 255
    mask = np.arange(6) < known
    plan = Plan(np.where(mask[:, None], np.column_stack([way, np.full(6, np.pi / 2)]), 0), mask, 2)
    occupancy = Occupancy(grid, grid.astype(np.int32), np.ones(9, bool), True)
    return HandTruth(occupancies=[occupancy], plans=[plan], ahead=[ahead or NOBODY])


def _score(truth: HandTruth, plan: np.ndarray, raw: np.ndarray | None = None) -> dict:
    record = {"sdc_traj": plan.astype(np.float32), "sdc_traj_raw": (plan if raw is None else raw).astype(np.float32)}
    return evaluate_planning(truth.results([record] * len(truth)), truth)


def test_real_ground_truth_against_itself():
    truth = real_truth()
    results = perfect_results(truth)
    before = {token: record["sdc_traj"].copy() for token, record in results.records.items()}
    report = evaluate_planning(results, truth)
    assert (report["complete"], report["frames"]) == (69, 81)
    for plan in ("raw", "optimised"):
        for protocol in ("uniad", "stp3"):
            for metric, table in report[plan][protocol].items():
                assert max(table.values()) < 1e-5, (plan, protocol, metric)
    for token, record in results.records.items():  # the original flips x in the caller's arrays
        np.testing.assert_array_equal(record["sdc_traj"], before[token])
    shifted = changed(results, lambda _, record: {**record, "sdc_traj": record["sdc_traj"] + np.float32([1, 0])})
    report = evaluate_planning(shifted, truth)
    assert report["raw"]["uniad"]["l2"]["3s"] < 1e-5
    for name, step in (("1s", 1), ("2s", 3), ("3s", 5)):  # a keyframe without a future counts with 0
        known = sum(truth.plan(i).mask[step] for i in range(81))
        assert_close(report["optimised"]["uniad"]["l2"][name], known / 81, 1e-6, "shift by 1 m")
        assert_close(report["optimised"]["uniad"]["l2_complete"][name], 1.0, 1e-6, "shift by 1 m")
    json.dumps(report, allow_nan=False)


def test_protocols():
    """Errors of 0.1, 0.2, ... 0.6 m: `uniad` takes them, `stp3` their running means."""
    plan = AHEAD + np.stack([0.1 * np.arange(1, 7), np.zeros(6)], axis=1)
    report = _score(_truth(_grid()), AHEAD, raw=plan)["raw"]
    assert_close(list(report["uniad"]["l2"].values()), [0.2, 0.4, 0.6, 0.4], 1e-6, "uniad")
    assert_close(list(report["stp3"]["l2"].values()), [0.15, 0.25, 0.35, 0.25], 1e-6, "stp3")
    assert_close(report["steps"]["l2"], 0.1 * np.arange(1, 7), 1e-6, "steps")


def test_delay_and_optimisation():
    """Half a second late is 5 m at every step; a plan into an obstacle, and its optimised one that goes past."""
    late = _score(_truth(_grid()), np.concatenate([np.zeros((1, 2)), AHEAD[:-1]]))["raw"]
    for protocol in ("uniad", "stp3"):
        assert_close(list(late[protocol]["l2"].values()), [5.0] * 4, 1e-6, "delay")
    report = _score(_truth(_grid((3.1, 20.1, 4))), AHEAD, raw=AHEAD + [3, 0])
    assert report["raw"]["steps"]["obj_box_col"] == [0, 0, 0, 1, 0, 0]
    assert report["optimised"]["steps"]["obj_box_col"] == [0] * 6
    assert report["raw"]["uniad"]["obj_box_col"]["2s"] == 1 and report["raw"]["stp3"]["obj_box_col"]["2s"] == 0.25
    assert_close(report["raw"]["uniad"]["l2"]["avg"], 3.0, 1e-6, "raw")
    assert_close(report["optimised"]["uniad"]["l2"]["avg"], 0.0, 1e-6, "optimised")


def test_unknown_future_counts_as_right():
    far = AHEAD + [10, 0]
    report = _score(_truth(_grid(), known=2), far)
    assert_close(report["raw"]["steps"]["l2"], [10, 10, 0, 0, 0, 0], 1e-5, "steps")
    assert report["raw"]["steps"]["obj_box_col"] == [0] * 6  # the frames that do not exist are no obstacles
    assert report["complete"] == 0 and report["raw"]["steps"]["l2_complete"] == [0] * 6


def test_collisions_on_the_grid():
    """An object on the plan at 1 s, one that only the vehicle's side touches at 2 s, one just beyond it at 3 s."""
    plan = AHEAD + [10.3, 0.3]
    grid = _grid((10.1, 10.1, 2), (10.8, 20.1, 4), (11.3, 30.1, 6), (10.1, 15.1, 1))
    steps = _score(_truth(grid), plan)["raw"]["steps"]
    assert steps["obj_col"] == [0, 1, 0, 0, 0, 0]
    assert steps["obj_box_col"] == [0, 1, 0, 1, 0, 0]
    assert _score(_truth(grid), AHEAD)["raw"]["steps"]["obj_box_col"] == [0] * 6
    mirrored = _score(_truth(grid), plan * [-1, 1])["raw"]["steps"]  # x to the right: the other side is free
    assert mirrored["obj_box_col"] == [0] * 6


def test_box_reaches_from_bumper_to_bumper():
    """The lidar is half a metre behind the middle: 1.54 m of the vehicle behind it, 2.54 m ahead."""
    way = np.zeros((1, 2))
    hit = np.zeros((200, 200), bool)
    for row in range(90, 112):
        for column in range(90, 111):
            cells = np.zeros((1, 200, 200), bool)
            cells[0, row, column] = True
            hit[row, column] = box_collisions(way, cells)[0]
    rows, columns = np.nonzero(hit)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (97, 104, 98, 101)
    assert hit.sum() == 8 * 4


def test_where_the_driven_way_collides_nothing_counts():
    plan = AHEAD + [1, 0]
    both = _grid((0.6, 10.1, 2))  # under the driven way and under the plan
    assert _score(_truth(both), plan)["raw"]["steps"]["obj_box_col"] == [0] * 6
    assert _score(_truth(both, way=AHEAD - [3, 0]), plan)["raw"]["steps"]["obj_box_col"] == [0, 1, 0, 0, 0, 0]


def test_edges_of_the_grid():
    cells = np.ones((3, 200, 200), bool)
    way = np.array([[0.0, 49.9], [0.0, 60.0], [-60.0, 0.0]])
    assert point_collisions(way, cells).tolist() == [True, False, False]
    assert box_collisions(way, cells).tolist() == [True, True, True]  # clipped to the edge, as in the original


# --- turned boxes ---


def test_headings():
    assert_close(headings(AHEAD), np.full(6, np.pi / 2), 1e-12, "straight on")
    right = np.stack([5.0 * np.arange(1, 7), np.zeros(6)], axis=1)
    assert_close(headings(right), np.zeros(6), 1e-12, "to the right")
    assert_close(headings(np.full((6, 2), 3.0)), np.full(6, np.pi / 2), 1e-12, "standing")


def test_overlap_is_that_of_polygons():
    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(-4, 4, (100, 2)), rng.uniform(0.5, 4, (100, 2)), rng.uniform(-4, 4, 100)])

    def polygon(box):
        shape = shapely.box(-box[3] / 2, -box[2] / 2, box[3] / 2, box[2] / 2)
        shape = shapely.affinity.rotate(shape, box[4], origin=(0, 0), use_radians=True)
        return shapely.affinity.translate(shape, box[0], box[1])

    polygons = [polygon(box) for box in boxes]
    for box, mine in zip(boxes[:20], polygons):
        expected = [mine.intersects(other) for other in polygons]
        assert overlap(box, boxes).tolist() == expected
        assert 1 < sum(expected) < 95


def test_turned_vehicle():
    """Driving to the right, the vehicle is 4 m long in x: it reaches what a box that never turns misses."""
    right = np.stack([5.0 * np.arange(1, 7), np.zeros(6)], axis=1)
    post = np.array([[12.4, 0.0, 0.2, 0.2, 0.0]])  # 2.4 m beyond the second point
    ahead = [post] * 6
    assert turned_collisions(right, ahead).tolist() == [False, True, False, False, False, False]
    report = _score(_truth(_grid((12.3, 0.1, 2)), ahead=ahead), right)["raw"]["steps"]
    assert report["collision_yaw"] == [0, 1, 0, 0, 0, 0] and report["obj_box_col"] == [0] * 6
    long = np.array([[0.0, 12.9, 2.0, 5.0, 0.0]])  # across the way, 2.9 m ahead of the second point
    assert turned_collisions(AHEAD, [long] * 6)[1] and not turned_collisions(AHEAD, [long - [0, 0, 1, 0, 0]] * 6).all()
    own = _score(_truth(_grid(), ahead=[long] * 6), AHEAD)["raw"]["steps"]
    assert own["collision_yaw"] == [0] * 6  # the driven way collides, too


def test_wrong_shape():
    with pytest.raises(UniADError, match=r"sdc_traj_raw has shape \(5, 2\), not \(6, 2\)"):
        _score(_truth(_grid()), AHEAD, raw=AHEAD[:5])
