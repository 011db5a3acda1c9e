"""The tables of a generated nuScenes root that don't depend on its scenes."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.cameras import CAMERA_YAWS, LIDAR_AHEAD, LIDAR_HEIGHT, camera_rig
from data.frames import CAMERAS
from data.synthetic_town import quaternion, token

LIDAR = "LIDAR_TOP"
CATEGORIES = (
    *(f"human.pedestrian.{name}" for name in ("adult", "child", "wheelchair", "stroller", "personal_mobility")),
    *(f"human.pedestrian.{name}" for name in ("police_officer", "construction_worker")),
    "animal",
    *(
        f"vehicle.{name}"
        for name in ("car", "motorcycle", "bicycle", "bus.bendy", "bus.rigid", "truck", "construction")
    ),
    *(f"vehicle.{name}" for name in ("emergency.ambulance", "emergency.police", "trailer")),
    *(f"movable_object.{name}" for name in ("barrier", "trafficcone", "pushable_pullable", "debris")),
    "static_object.bicycle_rack",
)
ATTRIBUTES = (
    *(f"vehicle.{name}" for name in ("moving", "stopped", "parked")),
    *(f"cycle.{name}" for name in ("with_rider", "without_rider")),
    *(f"pedestrian.{name}" for name in ("sitting_lying_down", "standing", "moving")),
)
VISIBILITIES = ("v0-40", "v40-60", "v60-80", "v80-100")


def fixed_tables() -> dict[str, list[dict[str, Any]]]:
    """category, attribute, visibility and sensor."""
    return {
        "category": [{"token": token("category", name), "name": name, "description": ""} for name in CATEGORIES],
        "attribute": [{"token": token("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": str(number + 1), "level": level, "description": f"{level[1:]} % of the object is visible"}
            for number, level in enumerate(VISIBILITIES)
        ],
        "sensor": [
            {
                "token": token("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR else "camera",
            }
            for channel in (*CAMERAS, LIDAR)
        ],
    }


def _camera_quaternion(yaw: float) -> list[float]:
    """Camera to vehicle: a camera's x right, y down, z ahead; turned about the vehicle's z."""
    c, s = np.cos(yaw / 2), np.sin(yaw / 2)
    return [round(float(value) / 2, 9) for value in (c + s, -c - s, c - s, s - c)]


def calibrations(scene_name: str, height: int, width: int) -> list[dict[str, Any]]:
    """calibrated_sensor of one scene's vehicle: six cameras and the lidar."""
    intrinsics, _, positions = camera_rig(height, width)
    rows = []
    for channel, yaw, intrinsic, position in zip(CAMERAS, CAMERA_YAWS, intrinsics, positions):
        rows.append(
            {
                "token": token("calibrated_sensor", scene_name, channel),
                "sensor_token": token("sensor", channel),
                "translation": np.round(position, 9).tolist(),
                "rotation": _camera_quaternion(yaw),
                "camera_intrinsic": intrinsic.tolist(),
            }
        )
    rows.append(
        {
            "token": token("calibrated_sensor", scene_name, LIDAR),
            "sensor_token": token("sensor", LIDAR),
            "translation": [LIDAR_AHEAD, 0.0, LIDAR_HEIGHT],
            "rotation": quaternion(-np.pi / 2),
            "camera_intrinsic": [],
        }
    )
    return rows
