"""The generated vehicle's sensors: six cameras on the roof and a lidar. Both generated drives have them.

Vehicle frame: x ahead, y left, z up, metres; its origin is on the ground below the rear axle. Lidar frame: x right,
y ahead, z up.
"""

import numpy as np

CAMERA_YAWS = np.deg2rad([0.0, -56.0, 56.0, 180.0, 109.0, -109.0])  # about the vehicle's z, 0 ahead, left positive
LIDAR_HEIGHT = 1.84
LIDAR_AHEAD = 0.95
_REAR_CAMERA = 3  # index in CAMERA_YAWS; it sees a wider angle


def turn(yaw: float) -> np.ndarray:
    """Rotation (3,3) about z, for column vectors."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def camera_rig(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six level cameras (order of data.frames.CAMERAS) for images of a size.

    Returns:
        intrinsic (6,3,3) in pixels, ego2camera (6,3,3) whose rows are a camera's right, down and ahead in the vehicle's
        frame, position (6,3) in the vehicle's frame.
    """
    intrinsics, rotations, positions = [], [], []
    for index, yaw in enumerate(CAMERA_YAWS):
        focal = width * (0.5 if index == _REAR_CAMERA else 0.79)
        intrinsics.append(np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.53 * height], [0.0, 0.0, 1.0]]))
        ahead = turn(yaw) @ [1.0, 0.0, 0.0]
        positions.append(np.array([0.8, 0.0, 1.55]) + 0.9 * ahead)
        right, down = np.cross(ahead, [0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])
        rotations.append(np.stack([right, down, ahead]))
    return np.stack(intrinsics), np.stack(rotations), np.stack(positions)
