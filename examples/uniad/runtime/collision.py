"""Collision optimisation of the plan on the host, equal to UniAD's planning_head.collision_optimization.

The original hands every point of the plan, p_t with the network's p_t as reference r_t and the occupied cells c_ti
within 5 m of r_t as obstacles, to CasADi and IPOPT:

    minimise  sum_t |p_t - r_t|^2 + alpha / (2.507 sigma) sum_ti exp(-|p_t - c_ti|^2 / (2 sigma^2)),  from p = r.

The six points do not interact in the objective, but it has many local minima, and which one is reached follows from
IPOPT's path, where the points do interact: one step length and one regularisation serve all of them. Without
constraints IPOPT (Waechter and Biegler 2006, Sections 2.3 and 3.1) is a Newton iteration with inertia correction
and an Armijo line search; `_minimise` takes the same steps.
"""

from __future__ import annotations

import math

import numpy as np

from config import UniADConfig

SIGMA = 1.0  # metres
ALPHA = 5.0
FILTER_RANGE = 5.0  # metres
CELL = 0.5  # metres; the original hard-wires it, whatever the size of the grid
_WEIGHT = ALPHA / (2.507 * SIGMA)

# IPOPT's defaults
_TOLERANCE = 1e-8
_MAX_ITERATIONS = 3000
_ETA_PHI = 1e-8
_FIRST_PERTURBATION, _MIN_PERTURBATION = 1e-4, 1e-20
_PERTURBATION_UP_FIRST, _PERTURBATION_UP, _PERTURBATION_DOWN = 100.0, 8.0, 1.0 / 3.0
_MAX_GRADIENT = 100.0
_EPSILON = float(np.finfo(np.float64).eps)

# Of a step's nine sums, of powers y^i x^j at 3 i + j: what each is multiplied by.
_SCALES = _WEIGHT / SIGMA ** np.array([0, 2, 4, 2, 4, 6, 4, 6, 8])
_DIAGONAL = np.array([1.0, 0.0, 1.0])  # of blocks that are kept as xx, xy, yy
_FAR = 1e6  # metres; no map reaches so far
_PLACES = 2 * int(FILTER_RANGE) + 2  # whole metres within FILTER_RANGE of any number, and one or two more


def cell_metres(cells: np.ndarray, middle: int) -> np.ndarray:
    """Where columns or rows lie along their axis, metres, whole numbers; `middle` is the first one after 0.

    The original stores the metres in an integer tensor, which cuts them towards zero; the released weights were
    evaluated with that.
    """
    return np.trunc((cells - middle) * CELL + CELL / 2)


def obstacles_near(plan: np.ndarray, occ_seg: np.ndarray, config: UniADConfig) -> tuple[np.ndarray, np.ndarray]:
    """The occupied cells within FILTER_RANGE of each point of a plan. As their metres are whole numbers, several are
    in one place, and all places are a small grid.

    Args:
        plan: float32 (6,2), x and y in metres.
        occ_seg: integer (5,H,W).
    Returns:
        The grid's x and its y, metres, float64 (6,2,R), and the number of occupied cells in each place, float64
        (6,R,R), y before x: 0 for places that are too far.
    """
    known = np.where(np.abs(plan) < _FAR, plan, 0)  # one that is far off, or not finite, is near to nothing
    first = np.floor(known) - np.float32(FILTER_RANGE)  # (6,2)
    metres = first[:, :, None] + np.arange(_PLACES, dtype=np.float32)  # (6,2,R)
    cells, lies_at = [], []
    for axis, (count, middle) in enumerate(zip(occ_seg.shape[:0:-1], (config.bev_h // 2, config.bev_w // 2))):
        window = int((_PLACES + 1) / CELL)  # cutting moves a cell by less than a metre
        start = np.minimum(np.maximum((first[:, axis] - 1) / CELL + middle, 0), max(count - window, 0)).astype(int)
        cells.append(start[:, None] + np.arange(min(window, count)))  # (6,c)
        at = cell_metres(cells[axis], middle)
        lies_at.append((at[:, None] == metres[:, axis, :, None]).astype(np.float64))  # (6,R,c)
    steps = np.minimum(np.arange(len(plan)) + 1, len(occ_seg) - 1)  # (6)
    occupied = occ_seg[steps[:, None, None], cells[1][:, :, None], cells[0][:, None]] != 0  # (6,rows,columns)
    counts = lies_at[1] @ occupied.astype(np.float64) @ lies_at[0].transpose(0, 2, 1)  # (6,R,R)
    squares = (plan[:, :, None] - metres) ** 2  # in float32, as the original compares
    return metres.astype(np.float64), counts * (squares[:, 0, None] + squares[:, 1, :, None] < FILTER_RANGE**2)


def optimise_plan(plan: np.ndarray, occ_seg: np.ndarray, config: UniADConfig) -> tuple[np.ndarray, bool]:
    """Move the plan away from predicted occupancy.

    Args:
        plan: float32 (6,2), x and y in metres at 0.5 s steps (`sdc_traj_raw`).
        occ_seg: integer (5,H,W), occupancy now and at four 0.5 s steps; later plan steps use the last one.
    Returns:
        The plan float32 (6,2), and whether an optimisation ran: without an occupied cell within 5 m of the plan it
        is returned as it is.
    """
    plan = np.asarray(plan, np.float32)
    metres, counts = obstacles_near(plan, occ_seg, config)
    if not counts.any():
        return plan, False
    return _minimise(plan.astype(np.float64), metres, counts).astype(np.float32), True


def _objective(
    position: np.ndarray, reference: np.ndarray, metres: np.ndarray, counts: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient (6,2) and the six blocks of the Hessian (6,3): xx, xy, yy of each."""
    offset = position - reference  # (6,2)
    away = position[:, :, None] - metres  # (6,2,R)
    powers = np.empty((3, *away.shape))  # along an axis: bump, bump * away, bump * away^2
    np.exp(-0.5 / SIGMA**2 * (away * away), out=powers[0])
    np.multiply(powers[0], away, out=powers[1])
    np.multiply(powers[1], away, out=powers[2])
    # A bump is the product of one along x and one along y, so that sums over all cells are products of matrices.
    sums = powers[:, :, 1].transpose(1, 0, 2) @ counts @ powers[:, :, 0].transpose(1, 2, 0)  # (6,3,3), powers of y, x
    sums = sums.reshape(-1, 9) * _SCALES
    value = float((offset * offset).sum() + sums[:, 0].sum())
    gradient = 2 * offset - sums[:, 1:4:2]  # (6,2)
    return value, gradient, sums[:, 2:7:2] + (2 - sums[:, :1] / SIGMA**2) * _DIAGONAL


def _lowest(blocks: list[list[float]]) -> float:
    """The lowest eigenvalue of symmetric 2x2 blocks (xx, xy, yy)."""
    return min((xx + yy) / 2 - math.hypot((xx - yy) / 2, xy) for xx, xy, yy in blocks)


def _solve(blocks: list[list[float]], shift: float, right: list[list[float]]) -> list[tuple[float, float]]:
    """Solve (block + shift * identity) z = right for each block. In plain floats: numpy's calls cost more than six
    such systems."""
    solved = []
    for (xx, xy, yy), (x, y) in zip(blocks, right):
        xx, yy = xx + shift, yy + shift
        determinant = xx * yy - xy * xy
        solved.append(((yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant))
    return solved


def _minimise(reference: np.ndarray, metres: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """IPOPT's path from `reference` (6,2) to a local minimum (6,2)."""
    position = reference
    value, gradient, hessian = _objective(position, reference, metres, counts)
    scale = min(1.0, _MAX_GRADIENT / max(np.abs(gradient).max(), 1e-300))  # gradient-based scaling at the start
    last_perturbation = 0.0
    for _ in range(_MAX_ITERATIONS):
        if scale * np.abs(gradient).max() <= _TOLERANCE:
            break
        # Inertia correction: the smallest tried multiple of the identity that makes every block positive definite.
        blocks = hessian.tolist()
        lowest = scale * _lowest(blocks)
        perturbation = 0.0
        if lowest <= 0:
            first = last_perturbation == 0.0
            perturbation = _FIRST_PERTURBATION if first else last_perturbation * _PERTURBATION_DOWN
            perturbation = max(perturbation, _MIN_PERTURBATION)
            while lowest + perturbation <= 0:
                perturbation *= _PERTURBATION_UP_FIRST if first else _PERTURBATION_UP
            last_perturbation = perturbation
        step = -np.array(_solve(blocks, perturbation / scale, gradient.tolist()))  # (6,2)
        slope = float((gradient * step).sum())
        # Armijo line search with IPOPT's allowance for rounding. The step shrinks to nothing before it can fail.
        length, slack = 1.0, 10 * _EPSILON * abs(value)
        trial = _objective(position + step, reference, metres, counts)
        while trial[0] - value > _ETA_PHI * length * slope + slack:
            length *= 0.5
            trial = _objective(position + length * step, reference, metres, counts)
        position = position + length * step
        value, gradient, hessian = trial
    return position
