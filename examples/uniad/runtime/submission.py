"""The nuScenes tracking submission, results_nusc.json: tracks of every frame in the global frame.

Upstream: datasets/nuscenes_e2e_dataset.py (_format_bbox) and datasets/data_utils/data_utils.py of OpenDriveLab/UniAD;
format: nuscenes-devkit, python-sdk/nuscenes/eval/tracking/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from config import UniADConfig
from data.frames import Pose
from runtime.boxes import to_nuscenes

# Tracked classes and how far from the vehicle they are evaluated, metres (nuScenes' detection_cvpr_2019).
CLASS_RANGE = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
}
META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": True}


def matrix_to_quaternion(matrices: np.ndarray) -> np.ndarray:
    """Rotations (N,3,3) as quaternions w x y z (N,4), w >= 0; the nearest ones where a matrix is rounded.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix (Bar-Itzhack 2000).
    """
    m = np.asarray(matrices, np.float64).reshape(-1, 3, 3)
    form = np.empty((len(m), 4, 4))
    form[:, 0, 0] = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        form[:, i + 1, i + 1] = m[:, i, i] - m[:, j, j] - m[:, k, k]
        form[:, 0, i + 1] = form[:, i + 1, 0] = m[:, k, j] - m[:, j, k]
        form[:, j + 1, k + 1] = form[:, k + 1, j + 1] = m[:, j, k] + m[:, k, j]
    quaternions = np.linalg.eigh(form)[1][..., -1]  # (N,4)
    return np.where(quaternions[:, :1] < 0, -quaternions, quaternions)


def tracking_boxes(
    record: Mapping[str, np.ndarray], pose: Pose, sample_token: str, config: UniADConfig, convention: str
) -> list[dict[str, Any]]:
    """The tracks of one result record as boxes of a tracking submission, those in their class's range."""
    centre, wlh, heading = to_nuscenes(record["boxes_3d"], convention)
    to_global = np.asarray(pose.l2g_r_mat, np.float64)  # row vectors
    centre = centre @ to_global + pose.l2g_t  # (N,3)
    velocity = np.pad(record["boxes_3d"][:, 7:9].astype(np.float64), ((0, 0), (0, 1))) @ to_global  # (N,3)
    turn = np.zeros((len(centre), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(heading)
    turn[:, 1, 0] = np.sin(heading)
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = 1.0
    rotation = matrix_to_quaternion(to_global.T @ turn)  # (N,4)
    distance = np.linalg.norm((centre - pose.ego_translation)[:, :2], axis=1)  # (N)
    boxes = []
    for row, label in enumerate(record["labels_3d"]):
        name = config.class_names[label]
        if distance[row] > CLASS_RANGE.get(name, -1.0):
            continue
        boxes.append(
            {
                "sample_token": sample_token,
                "translation": centre[row].tolist(),
                "size": wlh[row].tolist(),
                "rotation": rotation[row].tolist(),
                "velocity": velocity[row, :2].tolist(),
                "tracking_id": str(record["track_ids"][row]),
                "tracking_name": name,
                "tracking_score": float(record["scores_3d"][row]),
            }
        )
    return boxes
