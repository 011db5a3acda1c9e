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


def occupied_points(occ: np.ndarray, config: UniADConfig, near: np.ndarray | None = None) -> np.ndarray:
    """Occupied cells of one occupancy frame (H,W) as points (M,2), x and y in metres, int64, row by row.

    The original stores the metres in an integer tensor, which cuts them towards zero; the released weights were
    evaluated with that.

    Args:
        near: a position (2); only a window around it is looked at, which holds all points within FILTER_RANGE.
    """
    top, left, bottom, right = 0, 0, *occ.shape
    if near is not None and np.isfinite(near).all():
        reach = FILTER_RANGE + 1 + CELL  # cutting moves a point by less than a metre
        corners = np.array([near - reach, near + reach]) // CELL + [config.bev_h // 2, config.bev_w // 2]
        (left, top), (right, bottom) = np.clip(corners, 0, occ.shape[::-1]).astype(int).tolist()
    rows, columns = np.nonzero(occ[top:bottom, left:right])
    x = (columns + left - config.bev_h // 2) * CELL + CELL / 2
    y = (rows + top - config.bev_w // 2) * CELL + CELL / 2
    return np.stack([x, y], axis=1).astype(np.int64)  # (M,2)


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
    points = []
    for step, position in enumerate(plan):
        obstacles = occupied_points(occ_seg[min(step + 1, len(occ_seg) - 1)], config, position)
        # Compared in float32, as the original does.
        distance2 = ((position - obstacles.astype(np.float32)) ** 2).sum(axis=-1)  # (M)
        points.append(obstacles[distance2 < FILTER_RANGE**2])
    most = max(len(p) for p in points)
    if most == 0:
        return plan, False
    obstacles = np.zeros((len(plan), most, 2))  # (6,M,2)
    present = np.zeros((len(plan), most))  # (6,M)
    for step, found in enumerate(points):
        obstacles[step, : len(found)] = found
        present[step, : len(found)] = 1.0
    return _minimise(plan.astype(np.float64), obstacles, present).astype(np.float32), True


def _objective(position, reference, obstacles, present) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient (6,2) and the six 2x2 blocks of the Hessian (6,2,2)."""
    offset = position - reference  # (6,2)
    away = position[:, None] - obstacles  # (6,M,2)
    bump = _WEIGHT * present * np.exp(-0.5 / SIGMA**2 * (away**2).sum(axis=-1))  # (6,M)
    value = float((offset**2).sum() + bump.sum())
    pushes = bump[..., None] * away / SIGMA**2  # (6,M,2)
    gradient = 2 * offset - pushes.sum(axis=1)  # (6,2)
    curvature = away.transpose(0, 2, 1) @ pushes / SIGMA**2  # (6,2,2)
    hessian = curvature + (2 - bump.sum(axis=1) / SIGMA**2)[:, None, None] * np.eye(2)  # (6,2,2)
    return value, gradient, hessian


def _minimise(reference: np.ndarray, obstacles: np.ndarray, present: np.ndarray) -> np.ndarray:
    """IPOPT's path from `reference` (6,2) to a local minimum (6,2)."""
    position = reference
    value, gradient, hessian = _objective(position, reference, obstacles, present)
    scale = min(1.0, _MAX_GRADIENT / max(np.abs(gradient).max(), 1e-300))  # gradient-based scaling at the start
    last_perturbation = 0.0
    for _ in range(_MAX_ITERATIONS):
        if scale * np.abs(gradient).max() <= _TOLERANCE:
            break
        # Inertia correction: the smallest tried multiple of the identity that makes every block positive definite.
        lowest = scale * np.linalg.eigvalsh(hessian).min()
        perturbation = 0.0
        if lowest <= 0:
            first = last_perturbation == 0.0
            perturbation = _FIRST_PERTURBATION if first else last_perturbation * _PERTURBATION_DOWN
            perturbation = max(perturbation, _MIN_PERTURBATION)
            while lowest + perturbation <= 0:
                perturbation *= _PERTURBATION_UP_FIRST if first else _PERTURBATION_UP
            last_perturbation = perturbation
        step = -np.linalg.solve(hessian + perturbation / scale * np.eye(2), gradient[..., None])[..., 0]  # (6,2)
        slope = float((gradient * step).sum())
        # Armijo line search with IPOPT's allowance for rounding. The step shrinks to nothing before it can fail.
        length, slack = 1.0, 10 * np.finfo(np.float64).eps * abs(value)
        trial = _objective(position + step, reference, obstacles, present)
        while trial[0] - value > _ETA_PHI * length * slope + slack:
            length *= 0.5
            trial = _objective(position + length * step, reference, obstacles, present)
        position = position + length * step
        value, gradient, hessian = trial
    return position
