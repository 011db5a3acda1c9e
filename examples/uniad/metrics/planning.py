"""Planning: distance to the driven way, and collisions, under both published protocols.

`uniad` reports the value at a time, `stp3` (ST-P3, VAD) the mean of the values up to it; the same outputs look better
under the latter. Collisions are counted twice: as the original counts them (a box that never turns, on a grid of
half-metre cells, drawn vehicles only), and with boxes that turn with the way against the outlines of all objects
(SparseDrive, Sun et al. 2024). L2 alone misleads: see docs/metrics.md.

Upstream: uniad/dense_heads/planning_head_plugin/planning_metrics.py of OpenDriveLab/UniAD. Its `update` flips the sign
of x in place, in the caller's tensors: trajectories in its results.pkl are mirrored, the metrics are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.ground_truth import FUTURE_FRAMES, GroundTruth
from errors import UniADError
from metrics.results import Results, check_frames, frames

PLANS = {"raw": "sdc_traj_raw", "optimised": "sdc_traj"}  # before and after collision optimisation
PROTOCOLS = ("uniad", "stp3")
GRID = (-50.0, 50.0, 0.5)
_LENGTH, _WIDTH = 4.084, 1.85  # of the vehicle, metres
_AHEAD = 0.5  # from the lidar to the middle of the vehicle, metres
_STANDING = 0.5  # metres between first and last point of a way that has no direction
_SECONDS = {"1s": 1, "2s": 3, "3s": 5}  # name -> step


def evaluate_planning(results: Results, truth: GroundTruth) -> dict[str, Any]:
    """L2 (metres) and collision rates (shares of 1) of the plan, before and after collision optimisation.

    Returns, under `raw` and `optimised`, for `uniad` and `stp3`, tables of `1s`, `2s`, `3s` and their mean `avg`:

    l2             distance to the driven way
    obj_col        the point of the plan lies in an occupied cell
    obj_box_col    the vehicle's box touches an occupied cell
    collision_yaw  the turned box touches the outline of an object with lidar points

    and with `steps` the six values behind them. In the original's three, every keyframe counts: where the future is
    not recorded the distance is 0 and there is no collision; steps at which the driven way itself collides are no
    collisions. `l2_complete` and `collision_yaw` are of keyframes with three known seconds (`complete` of `frames`).
    Needs `sdc_traj_raw`, `sdc_traj`. Raises UniADError.
    """
    check_frames(results, truth)
    sums = {name: {metric: np.zeros(FUTURE_FRAMES) for metric in METRICS} for name in PLANS}
    complete = 0
    for index in frames(truth, "planning"):
        token, driven = truth.tokens[index], truth.plan(index)
        way = driven.trajectory[:, :2]
        cells = truth.occupancy(index, GRID).segmentation[1:] != 0  # unknown frames are full: the driven way collides
        free = ~box_collisions(way, cells)
        whole = bool(driven.mask.all())
        complete += whole
        ahead = [truth.boxes_ahead(index, step) for step in range(1, FUTURE_FRAMES + 1)] if whole else []
        free_yaw = ~turned_collisions(way, ahead) if whole else np.zeros(FUTURE_FRAMES, bool)
        for name, key in PLANS.items():
            plan = np.asarray(results.arrays(token, key)[0], np.float64)
            if plan.shape != way.shape:
                raise UniADError(f"{results.where}: frame {token}: {key} has shape {plan.shape}, not {way.shape}")
            distance = np.linalg.norm(plan - way, axis=1) * driven.mask
            total = sums[name]
            total["l2"] += distance
            total["obj_col"] += point_collisions(plan, cells) & free
            total["obj_box_col"] += box_collisions(plan, cells) & free
            if whole:
                total["l2_complete"] += distance
                total["collision_yaw"] += turned_collisions(plan, ahead) & free_yaw
    report: dict[str, Any] = {}
    for name, total in sums.items():
        means = {m: values / max(complete if m in _OF_COMPLETE else len(truth), 1) for m, values in total.items()}
        report[name] = {p: {m: _table(values, p) for m, values in means.items()} for p in PROTOCOLS}
        report[name]["steps"] = {m: values.tolist() for m, values in means.items()}
    return {**report, "complete": complete, "frames": len(truth)}


METRICS = ("l2", "obj_col", "obj_box_col", "l2_complete", "collision_yaw")
_OF_COMPLETE = ("l2_complete", "collision_yaw")


def _table(values: np.ndarray, protocol: str) -> dict[str, float]:
    """Values at 1, 2 and 3 s and their mean, from six steps."""
    if protocol == "stp3":
        values = np.cumsum(values) / np.arange(1, len(values) + 1)
    table = {name: float(values[step]) for name, step in _SECONDS.items()}
    return {**table, "avg": sum(table.values()) / len(table)}


# --- on the grid, as the original ---


def _box_cells() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cells whose centres lie in the vehicle's box when the lidar is in the origin."""
    lower, upper, cell = GRID
    centres = np.arange(lower + cell / 2, upper, cell)
    rows = np.flatnonzero(np.abs(centres - _AHEAD) <= _LENGTH / 2)
    columns = np.flatnonzero(np.abs(centres) <= _WIDTH / 2)
    return np.repeat(rows, len(columns)), np.tile(columns, len(rows))


def point_collisions(way: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """(T) bool: points (T,2) in occupied cells (T,S,S); outside of the grid there are none."""
    lower, _, cell = GRID
    size = occupied.shape[-1]
    # As the original: in float32, counted from the centre of the first cell and cut towards zero. A point in the
    # lower half of a cell is looked up in the cell before.
    start = np.float32(lower + cell / 2)
    columns, rows = ((way.astype(np.float32) - start) / np.float32(cell)).astype(np.int64).T
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)
    return occupied[np.arange(len(way)), rows, columns] & inside


def box_collisions(way: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """(T) bool: the vehicle's box at points (T,2), never turned, touches occupied cells (T,S,S).

    Cells beyond the edge of the grid count as those at the edge.
    """
    cell, size = GRID[2], occupied.shape[-1]
    rows, columns = _box_cells()
    shift = way.astype(np.float32).astype(np.float64) / cell
    at_rows = np.clip((rows + shift[:, 1:]).astype(np.int64), 0, size - 1)  # (T,cells)
    at_columns = np.clip((columns + shift[:, :1]).astype(np.int64), 0, size - 1)
    return occupied[np.arange(len(way))[:, None], at_rows, at_columns].any(axis=1)


# --- with turned boxes ---


def headings(way: np.ndarray) -> np.ndarray:
    """(T) radians: where the vehicle points along a way (T,2) that starts in the origin; ahead where it stands."""
    if np.linalg.norm(way[-1] - way[0]) < _STANDING:
        return np.full(len(way), np.pi / 2)
    points = np.concatenate([np.zeros((1, 2)), way])
    step = np.concatenate([points[2:] - points[:-2], points[-1:] - points[-2:-1]])
    return np.arctan2(step[:, 1], step[:, 0])


def turned_collisions(way: np.ndarray, boxes: list[np.ndarray | None]) -> np.ndarray:
    """(T) bool: the vehicle's box, turned along the way (T,2), touches one of the boxes (N,5) of that step.

    A box is x, y, width, length, heading.
    """
    heading = headings(way)
    direction = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    vehicles = np.column_stack([way + _AHEAD * direction, np.tile([_WIDTH, _LENGTH], (len(way), 1)), heading])
    return np.array([there is not None and overlap(vehicle, there).any() for vehicle, there in zip(vehicles, boxes)])


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N) bool: rectangles (N,5) that touch a rectangle (5), by separating axes."""
    apart = np.zeros(len(others), bool)
    mine, theirs = _rectangle(box[None]), _rectangle(others)  # (1,4,2) (N,4,2)
    for first, second in ((mine, theirs), (theirs, mine)):
        for axis in (first[:, 1] - first[:, 0], first[:, 3] - first[:, 0]):  # two edges of a rectangle, (1|N,2)
            a, b = (
                np.einsum("nkd,nd->nk", np.broadcast_to(r, theirs.shape), np.broadcast_to(axis, (len(others), 2)))
                for r in (first, second)
            )
            apart |= (a.max(1) < b.min(1)) | (b.max(1) < a.min(1))
    return ~apart


def _rectangle(boxes: np.ndarray) -> np.ndarray:
    """Corners (N,4,2) of boxes (N,5)."""
    along, across = boxes[:, 3:4] / 2, boxes[:, 2:3] / 2
    forward = np.stack([np.cos(boxes[:, 4]), np.sin(boxes[:, 4])], axis=1)
    left = np.stack([-forward[:, 1], forward[:, 0]], axis=1)
    offsets = [sign * along * forward + other * across * left for sign, other in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
    return boxes[:, None, :2] + np.stack(offsets, axis=1)
