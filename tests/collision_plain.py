"""The collision optimisation of runtime/collision.py in its plainest form: points listed cell by cell, sums over all of
them, LAPACK for the blocks of the Hessian."""

import numpy as np

from runtime.collision import ALPHA, CELL, FILTER_RANGE, SIGMA

_WEIGHT = ALPHA / (2.507 * SIGMA)


def occupied_points(occ, config):
    """Occupied cells of one occupancy frame (H,W) as points (M,2), x and y in metres, int64, row by row."""
    rows, columns = np.nonzero(occ)
    x = (columns - config.bev_h // 2) * CELL + CELL / 2
    y = (rows - config.bev_w // 2) * CELL + CELL / 2
    return np.stack([x, y], axis=1).astype(np.int64)


def near_points(plan, occ_seg, config):
    """For each point of the plan, the occupied ones within reach."""
    points = []
    for step, position in enumerate(plan):
        found = occupied_points(occ_seg[min(step + 1, len(occ_seg) - 1)], config)
        distance2 = ((position - found.astype(np.float32)) ** 2).sum(axis=-1)
        points.append(found[distance2 < FILTER_RANGE**2])
    return points


def optimise_plan(plan, occ_seg, config):
    points = near_points(plan, occ_seg, config)
    most = max(map(len, points))
    if most == 0:
        return plan, False
    obstacles, present = np.zeros((len(plan), most, 2)), np.zeros((len(plan), most))
    for step, found in enumerate(points):
        obstacles[step, : len(found)], present[step, : len(found)] = found, 1.0
    return _minimise(plan.astype(np.float64), obstacles, present).astype(np.float32), True


def _objective(position, reference, obstacles, present):
    offset = position - reference
    away = position[:, None] - obstacles  # (6,M,2)
    bump = _WEIGHT * present * np.exp(-0.5 / SIGMA**2 * (away**2).sum(axis=-1))
    pushes = bump[..., None] * away / SIGMA**2
    gradient = 2 * offset - pushes.sum(axis=1)
    curvature = away.transpose(0, 2, 1) @ pushes / SIGMA**2
    hessian = curvature + (2 - bump.sum(axis=1) / SIGMA**2)[:, None, None] * np.eye(2)
    return float((offset**2).sum() + bump.sum()), gradient, hessian


def _minimise(reference, obstacles, present):
    position, last = reference, 0.0
    value, gradient, hessian = _objective(position, reference, obstacles, present)
    scale = min(1.0, 100.0 / max(np.abs(gradient).max(), 1e-300))
    for _ in range(3000):
        if scale * np.abs(gradient).max() <= 1e-8:
            break
        lowest, perturbation = scale * np.linalg.eigvalsh(hessian).min(), 0.0
        if lowest <= 0:
            first = last == 0.0
            perturbation = max(1e-4 if first else last / 3.0, 1e-20)
            while lowest + perturbation <= 0:
                perturbation *= 100.0 if first else 8.0
            last = perturbation
        step = -np.linalg.solve(hessian + perturbation / scale * np.eye(2), gradient[..., None])[..., 0]
        slope, slack, length = float((gradient * step).sum()), 10 * np.finfo(np.float64).eps * abs(value), 1.0
        trial = _objective(position + step, reference, obstacles, present)
        while trial[0] - value > 1e-8 * length * slope + slack:
            length *= 0.5
            trial = _objective(position + length * step, reference, obstacles, present)
        position = position + length * step
        value, gradient, hessian = trial
    return position
