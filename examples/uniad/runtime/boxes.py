"""What the nine numbers of a predicted box mean, in both conventions of the original.

A row of `boxes_3d` is x y z w l h yaw vx vy in the lidar frame (x right, y forward, z up; metres, radians, m/s):

- x, y, z is the centre of the *bottom* face: the network learns mmdet3d's box tensor, whose origin is
  (0.5, 0.5, 0), and the tracker's results leave it there (detectors/uniad_track.py).
- w, l, h are nuScenes' width, length (along the heading) and height, in this order, in both conventions.
- yaw differs. "v2.0" (mmdet3d 1.0.0rc6): the heading, counter-clockwise from x, as nuScenes has it.
  "v1.0.1" (mmdet3d 0.17.1): -heading - pi/2.
- vx, vy is the velocity along the lidar's axes.

Upstream files: datasets/data_utils/data_utils.py (output_to_nusc_box), tools/data_converter/
uniad_nuscenes_converter.py. One exception: the ego query's own box (`sdc_boxes_3d`) was trained under "v2.0" as
x y z *l w* h yaw (datasets/data_utils/trajectory_api.py, generate_sdc_info).
"""

import numpy as np

from config import CONVENTIONS
from errors import UniADError

# The corners of a unit box around its centre, heading along +x: the front face, then the rear face, each
# top left, top right, bottom right, bottom left as the driver sees it (nuscenes-devkit's Box.corners).
_UNIT_CORNERS = 0.5 * np.array(
    [[1, 1, 1], [1, -1, 1], [1, -1, -1], [1, 1, -1], [-1, 1, 1], [-1, -1, 1], [-1, -1, -1], [-1, 1, -1]], np.float64
)


def wrap_angle(angle) -> np.ndarray:
    """Angles in radians brought into [-pi, pi)."""
    return (np.asarray(angle, np.float64) + np.pi) % (2 * np.pi) - np.pi


def _swap_yaw(yaw: np.ndarray, convention: str) -> np.ndarray:
    """Heading from a convention's yaw, or its yaw from the heading: both conventions are their own inverse."""
    if convention == "v2.0":
        return wrap_angle(yaw)
    if convention == "v1.0.1":
        return wrap_angle(-yaw - np.pi / 2)
    raise UniADError(f"unknown box convention {convention!r}: it is one of {', '.join(CONVENTIONS)}")


def to_nuscenes(boxes, convention: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted boxes as nuScenes describes boxes.

    Args:
        boxes: (N,9) or (N,7), x y z w l h yaw [vx vy], lidar frame.
        convention: "v1.0.1" or "v2.0".
    Returns:
        centre (N,3) of the whole box in metres, wlh (N,3) in metres, heading (N) in [-pi, pi) about z, counter-
        clockwise from the lidar's x axis; float64. `boxes[:, 7:9]` is the velocity as it stands.
    Raises:
        UniADError: unknown convention.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, np.shape(boxes)[-1])
    centre, wlh = boxes[:, :3].copy(), boxes[:, 3:6].copy()  # (N,3) (N,3)
    centre[:, 2] += 0.5 * wlh[:, 2]
    return centre, wlh, _swap_yaw(boxes[:, 6], convention)


def from_nuscenes(centre, wlh, heading, velocity, convention: str) -> np.ndarray:
    """The inverse of `to_nuscenes`: (N,3), (N,3), (N), (N,2) to boxes (N,9), float64, of a convention."""
    centre, wlh = np.array(centre, np.float64).reshape(-1, 3), np.asarray(wlh, np.float64).reshape(-1, 3)
    centre[:, 2] -= 0.5 * wlh[:, 2]
    yaw = _swap_yaw(np.asarray(heading, np.float64).reshape(-1), convention)
    return np.concatenate([centre, wlh, yaw[:, None], np.asarray(velocity, np.float64).reshape(-1, 2)], axis=1)  # (N,9)


def box_corners(boxes, convention: str) -> np.ndarray:
    """Corners (N,8,3) of boxes (N,9) in the lidar frame, metres: the front face's four, then the rear face's.

    Order within a face: top left, top right, bottom right, bottom left looking along the heading, as
    nuscenes-devkit's Box.corners.
    """
    centre, wlh, heading = to_nuscenes(boxes, convention)
    local = _UNIT_CORNERS[None] * wlh[:, None, [1, 0, 2]]  # (N,8,3): l along x, w along y
    cos, sin = np.cos(heading)[:, None], np.sin(heading)[:, None]  # (N,1)
    x = cos * local[..., 0] - sin * local[..., 1]  # (N,8)
    y = sin * local[..., 0] + cos * local[..., 1]  # (N,8)
    return np.stack([x, y, local[..., 2]], axis=-1) + centre[:, None]  # (N,8,3)
