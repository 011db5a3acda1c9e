"""Box conventions against nuscenes-devkit and against mmdet3d's own corner formulas."""

import numpy as np
import pytest
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion
from support import assert_close, assert_differs

from errors import UniADError
from runtime import boxes as bx


def random_annotations(count=20):
    """Centres (N,3), sizes wlh (N,3), headings (N) and velocities (N,2) as nuScenes writes them."""
    rng = np.random.default_rng(7)
    centre = rng.uniform(-40, 40, (count, 3)) * [1, 1, 0.05]
    wlh = rng.uniform(0.4, 3, (count, 3)) * [1, 3, 1]
    return centre, wlh, rng.uniform(-np.pi, np.pi, count), rng.normal(0, 4, (count, 2))


def devkit_corners(centre, wlh, heading):
    """(N,8,3) by nuscenes-devkit."""
    axis = [0, 0, 1]
    return np.stack([Box(c, s, Quaternion(axis=axis, radians=h)).corners().T for c, s, h in zip(centre, wlh, heading)])


def mmdet3d_0_17_footprint(boxes):
    """(N,4,2) bottom corners as mmdet3d 0.17.1 draws them: x_size = w, y_size = l, turned clockwise by yaw."""
    unit = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
    local = unit[None] * boxes[:, None, 3:5]  # (N,4,2)
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    matrix = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)  # (N,2,2), points are rows
    return local @ matrix + boxes[:, None, :2]


@pytest.mark.parametrize("convention", bx.CONVENTIONS)
def test_corners_are_the_devkits(convention):
    centre, wlh, heading, velocity = random_annotations()
    rows = bx.from_nuscenes(centre, wlh, heading, velocity, convention)
    expected = devkit_corners(centre, wlh, heading)
    assert_close(bx.box_corners(rows, convention), expected, 1e-9, "corners")
    back_centre, back_wlh, back_heading = bx.to_nuscenes(rows, convention)
    assert_close(back_centre, centre, 1e-12, "centre")
    assert_close(back_wlh, wlh, 0, "wlh")
    assert_close(bx.wrap_angle(back_heading - heading), np.zeros(len(heading)), 1e-12, "heading")
    assert_close(rows[:, 7:], velocity, 0, "velocity")
    other = next(c for c in bx.CONVENTIONS if c != convention)
    assert_differs(bx.box_corners(rows, other), expected, 0.1, "boxes read in the other convention")
    lifted = rows + np.eye(9)[2] * 0.5 * rows[:, 5:6]  # taken for the centre instead of the bottom
    assert_differs(bx.box_corners(lifted, convention), expected, 0.1, "z is the bottom")


def test_old_convention_is_mmdet3d_0_17():
    rows = bx.from_nuscenes(*random_annotations(), "v1.0.1")
    mine = bx.box_corners(rows, "v1.0.1")[:, [2, 3, 6, 7], :2]  # the bottom four
    theirs = mmdet3d_0_17_footprint(rows)
    distance = np.linalg.norm(mine[:, :, None] - theirs[:, None], axis=-1).min(-1)  # (N,4): order may differ
    assert distance.max() < 1e-9
    wrong = bx.box_corners(rows, "v2.0")[:, [2, 3, 6, 7], :2]
    assert np.linalg.norm(wrong[:, :, None] - theirs[:, None], axis=-1).min(-1).max() > 0.1


def test_no_boxes_and_unknown_convention():
    assert bx.box_corners(np.zeros((0, 9)), "v2.0").shape == (0, 8, 3)
    with pytest.raises(UniADError, match="v1\\.0\\.1, v2\\.0"):
        bx.to_nuscenes(np.zeros((1, 9)), "v3")


def test_wrap_angle():
    assert_close(bx.wrap_angle([np.pi, -np.pi, 3 * np.pi / 2, 0.1]), [-np.pi, -np.pi, -np.pi / 2, 0.1], 1e-12)
