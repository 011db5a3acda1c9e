"""Boxes of other keyframes in the lidar frame of now, and the occupancy grids drawn from them.

In float32 and step by step through the vehicle and the global frame, as the original moves its box tensors: cells at a
box's edge then round as they did there. Upstream: datasets/pipelines/occflow_label.py (GenerateOccFlowLabels),
datasets/data_utils/trajectory_api.py (get_sdc_planning_label) of OpenDriveLab/UniAD.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from config import CONVENTIONS
from errors import UniADError
from runtime.boxes import wrap_angle

IGNORE = 255  # segmentation and instance where a frame has no ground truth
_REPLACES_IGNORE = -20  # instance number of the object that would be 255
# Corners of a box, in the order of mmdet3d's corners 0, 3, 7, 4: signs along and across the first two sizes.
_CORNERS = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]], np.float32)


@dataclasses.dataclass(frozen=True)
class RigidPose:
    """Lidar to vehicle and vehicle to global: rotations (3,3) of column vectors and translations (3), float64."""

    lidar2ego: tuple[np.ndarray, np.ndarray]
    ego2global: tuple[np.ndarray, np.ndarray]


def reframe(
    points: np.ndarray, heading: np.ndarray, source: RigidPose, target: RigidPose
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N,3) and headings (N) of the lidar at `source` in the lidar frame at `target`, float32."""
    points, heading = np.asarray(points, np.float32), np.asarray(heading, np.float32)
    for rotation, translation in (source.lidar2ego, source.ego2global):
        turn = rotation.astype(np.float32)
        points, heading = points @ turn.T + translation.astype(np.float32), heading + _angle(turn)
    for rotation, translation in (target.ego2global, target.lidar2ego):
        inverse = np.linalg.inv(rotation.astype(np.float32))
        points, heading = (points - translation.astype(np.float32)) @ inverse.T, heading + _angle(inverse)
    return points, heading


def _angle(turn: np.ndarray) -> np.ndarray:
    return np.arctan2(turn[1, 0], turn[0, 0])


def footprints(centre: np.ndarray, wlh: np.ndarray, heading: np.ndarray, convention: str) -> np.ndarray:
    """Corners (N,4,2) of boxes seen from above, float32, metres.

    Under "v2.0" upstream kept w, l where mmdet3d 1.0.0rc6 wants l, w: its occupancy labels are drawn with width and
    length exchanged, and its weights were trained with them. "v1.0.1" draws boxes as they are.
    """
    if convention not in CONVENTIONS:
        raise UniADError(f"unknown box convention {convention!r}: it is one of {', '.join(CONVENTIONS)}")
    sizes = np.asarray(wlh, np.float32)[:, [0, 1] if convention == "v2.0" else [1, 0]]  # (N,2): along, across
    local = _CORNERS[None] * sizes[:, None]  # (N,4,2)
    cos, sin = np.cos(heading.astype(np.float32))[:, None], np.sin(heading.astype(np.float32))[:, None]  # (N,1)
    corners = np.stack([cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]], -1)
    return corners + np.asarray(centre, np.float32)[:, None, :2]


def draw_occupancy(
    corners: np.ndarray, instance: np.ndarray, grid: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Cells (S,S) covered by footprints (N,4,2): segmentation uint8 0/1 and instance int32, 0 = free.

    Rows go with y, columns with x. Later boxes cover earlier ones. `instance` (N) are numbers from 1.
    """
    lower, upper, cell = grid
    size = round((upper - lower) / cell)
    segmentation, instances = np.zeros((size, size), np.uint8), np.zeros((size, size), np.int32)
    start, step = np.float32(lower + cell / 2), np.float32(cell)
    cells = np.round((corners - start + step / np.float32(2)) / step).astype(np.int32, order="C")  # (N,4,2)
    for polygon, number in zip(cells, instance):
        cv2.fillPoly(segmentation, [polygon], (1,))
        cv2.fillPoly(instances, [polygon], (_REPLACES_IGNORE if number == IGNORE else int(number),))
    return segmentation, instances


def ego_plan(poses: list[RigidPose | None], now: RigidPose, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the vehicle will be: (steps,3) x, y, heading in the lidar frame of now, and what is known (steps) bool.

    `poses` are those of the next frames, None where there is none. The point that moves is the lidar's, 0.78 m lower
    (the bottom of upstream's ego box); a heading is pi/2 where the vehicle has not turned.
    """
    plan, known = np.zeros((steps, 3)), np.zeros(steps, bool)
    for step, pose in enumerate(poses[:steps]):
        if pose is None:
            break
        point, heading = reframe(np.array([[0.0, 0.0, -0.5 * 1.56]]), np.array([0.5 * np.pi]), pose, now)
        plan[step] = point[0, 0], point[0, 1], wrap_angle(heading[0])
        known[step] = True
    return plan, known
