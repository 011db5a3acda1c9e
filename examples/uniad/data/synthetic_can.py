"""CAN bus files of a generated scene, as nuScenes' CAN bus expansion has them (nuscenes-devkit, can_bus/README)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from data.synthetic_town import Town, quaternion
from data.synthetic_traffic import Motion

_GRAVITY = 9.81
_WHEELBASE, _TRACK, _TYRE = 2.59, 1.5, 0.31  # metres; the tyre's radius
_STEERING_RATIO = 16.9  # steering wheel to front wheels
_LATE = 0.011  # seconds from the first keyframe to the first message

# Message: rate in Hz. The real zoesensors come ten times as often.
_RATES = {
    "ms_imu": 100,
    "pose": 50,
    "steeranglefeedback": 100,
    "vehicle_monitor": 2,
    "zoe_veh_info": 100,
    "zoesensors": 100,
}


def _states(town: Town, motion: Motion, times: np.ndarray) -> dict[str, np.ndarray]:
    """Global x, y, heading, speed, acceleration, yaw rate and steering wheel angle (n) of the ego vehicle."""
    s, v, acceleration = motion.along(0, times)
    path = motion.agents[0].path
    assert path is not None
    x, y, yaw = path.at(s)
    curvature = np.interp(s, path.s, path.curvature)
    xy = town.to_global(np.stack([x, y], -1))
    steering = np.arctan(_WHEELBASE * curvature) * _STEERING_RATIO
    return {
        "x": xy[:, 0],
        "y": xy[:, 1],
        "yaw": yaw + town.yaw,
        "v": v,
        "a": acceleration,
        "rate": v * curvature,
        "steering": steering,
    }


def _message(name: str, row: dict[str, float]) -> dict[str, Any]:
    accel = [row["a"], row["v"] * row["rate"], _GRAVITY]
    rotation_rate = [0.0, 0.0, row["rate"]]
    if name == "ms_imu":
        return {"linear_accel": accel, "q": quaternion(row["yaw"]), "rotation_rate": rotation_rate}
    if name == "pose":
        position = [row["x"], row["y"], 0.0]
        velocity = [row["v"], 0.0, 0.0]
        return {
            "accel": accel,
            "orientation": quaternion(row["yaw"]),
            "pos": position,
            "rotation_rate": rotation_rate,
            "vel": velocity,
        }
    if name == "steeranglefeedback":
        return {"value": row["steering"]}
    left, right = ((row["v"] - side * row["rate"] * _TRACK / 2) / _TYRE * 30 / np.pi for side in (1, -1))
    braking, driving = max(-row["a"], 0.0), max(row["a"], 0.0)
    degrees = float(np.rad2deg(row["steering"]))
    if name == "vehicle_monitor":
        return {
            "available_distance": 70,
            "battery_level": 80,
            "brake": round(20 * braking),
            "brake_switch": 1 if braking < 0.1 else 2,
            "gear_position": 7,
            "left_signal": int(degrees > 60),
            "rear_left_rpm": left,
            "rear_right_rpm": right,
            "right_signal": int(degrees < -60),
            "steering": degrees,
            "steering_speed": 0.0,
            "throttle": round(200 * driving),
            "vehicle_speed": 3.6 * row["v"],
            "yaw_rate": float(np.rad2deg(row["rate"])),
        }
    if name == "zoesensors":
        return {
            "brake_sensor": 0.18 + 0.05 * braking,
            "steering_sensor": 0.19 + 0.01 * row["steering"],
            "throttle_sensor": 0.13 + 0.1 * driving,
        }
    return {
        "FL_wheel_speed": left,
        "FR_wheel_speed": right,
        "RL_wheel_speed": left,
        "RR_wheel_speed": right,
        "left_solar": 0,
        "longitudinal_accel": row["a"],
        "meanEffTorque": 150 * row["a"],
        "odom": 0,
        "odom_speed": 3.6 * row["v"],
        "pedal_cc": 100 * driving,
        "regen": 50 * braking,
        "requestedTorqueAfterProc": 300 * row["a"],
        "right_solar": 0,
        "steer_corrected": degrees,
        "steer_offset_can": 0.0,
        "steer_raw": degrees,
        "transversal_accel": row["v"] * row["rate"],
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(float(value), 6) if isinstance(value, float) else value


def _statistics(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """One message's entry of the meta file."""
    stats = {}
    for key in messages[0]:
        values = np.array([message[key] for message in messages], np.float64)
        steps = np.diff(values, axis=0) if len(values) > 1 else np.zeros_like(values)
        stats[key] = {
            f"{what}{suffix}": round(float(getattr(array, what)()), 6)
            for array, suffix in ((values, ""), (steps, "_diff"))
            for what in ("max", "mean", "min", "std")
        }
    times = [message["utime"] for message in messages]
    span = (times[-1] - times[0]) / 1e6
    rate = (len(times) - 1) / span if span else 0.0
    return {"message_count": len(messages), "message_freq": rate, "timespan": span, "var_stats": stats}


def write_can_bus(folder: pathlib.Path, name: str, town: Town, motion: Motion, start: int, seconds: float) -> None:
    """Write all message files of a scene, its meta file and its route.

    Args:
        folder: `can_bus` of the root.
        start: microseconds of the first keyframe.
        seconds: from the first keyframe to the last.
    """
    meta = {}
    for message, rate in _RATES.items():
        times = _LATE + np.arange(max(int((seconds + 0.2) * rate), 1)) / rate
        states = _states(town, motion, times)
        rows = []
        for index, time in enumerate(times):
            row = {key: float(values[index]) for key, values in states.items()}
            fields = {key: _rounded(value) for key, value in _message(message, row).items()}
            rows.append({**fields, "utime": start + round(time * 1e6)})
        (folder / f"{name}_{message}.json").write_text(json.dumps(rows))
        meta[message] = _statistics(rows)
    (folder / f"{name}_meta.json").write_text(json.dumps(meta))
    path = motion.agents[0].path
    assert path is not None
    route = town.to_global(np.stack(path.at(np.arange(-20.0, path.s[-1], 1.0))[:2], -1))
    (folder / f"{name}_route.json").write_text(json.dumps(np.round(route, 6).tolist()))
