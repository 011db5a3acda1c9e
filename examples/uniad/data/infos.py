"""Scenes from UniAD's prepared files, nuscenes_infos_temporal_{train,val}.pkl.

What these files hold takes the place of the tables; attributes of objects and the tilt of boxes are not in them.
Upstream: tools/data_converter/uniad_nuscenes_converter.py of OpenDriveLab/UniAD.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from config import CONVENTIONS
from data.frames import FrameError
from data.plain_pickle import load_plain_pickle
from data.scene_index import Scene, future_points, planar_yaw, rotation_of
from runtime.boxes import to_nuscenes

_FIELDS = (
    "token",
    "scene_token",
    "timestamp",
    "lidar2ego_rotation",
    "lidar2ego_translation",
    "ego2global_rotation",
    "ego2global_translation",
    "gt_boxes",
    "gt_names",
    "gt_velocity",
    "num_lidar_pts",
    "num_radar_pts",
    "gt_inds",
)
_MOVING = 2.0  # m/s: faster vehicles head where they go
_VEHICLES = ("car", "truck", "bus")


def load_infos(path: pathlib.Path) -> list[dict[str, Any]]:
    """The keyframes of an infos file by time. Raises FrameError (PickleError for a file that is no plain pickle)."""
    data = load_plain_pickle(path)
    infos = data.get("infos") if isinstance(data, Mapping) else None
    if not isinstance(infos, list) or not infos or not all(isinstance(info, Mapping) for info in infos):
        raise FrameError(f"{path}: holds no UniAD infos ('infos', a list of keyframes)")
    missing = sorted({field for info in infos for field in _FIELDS if field not in info})
    if missing:
        raise FrameError(f"{path}: infos lack {', '.join(missing)}; make them again with UniAD's uniad_create_data.sh")
    return sorted((dict(info) for info in infos), key=lambda info: info["timestamp"])


def detect_convention(infos: list[dict[str, Any]], where: str) -> str:
    """The convention of `gt_boxes`: the one under which moving vehicles head where they go. Raises FrameError."""
    votes = dict.fromkeys(CONVENTIONS, 0)
    for info in infos:
        boxes, velocity = np.reshape(info["gt_boxes"], (-1, 7)), np.reshape(info["gt_velocity"], (-1, 2))
        moving = np.isin(info["gt_names"], _VEHICLES) & (np.linalg.norm(np.nan_to_num(velocity), axis=-1) > _MOVING)
        direction = np.arctan2(velocity[moving, 1], velocity[moving, 0])
        for convention in CONVENTIONS:
            heading = to_nuscenes(boxes[moving], convention)[2]
            votes[convention] += int((np.cos(heading - direction) > 0.9).sum())
    (best, most), (_, other) = sorted(votes.items(), key=lambda vote: -vote[1])
    if most < 10 or most < 3 * other:
        raise FrameError(f"{where}: can't tell the box convention from moving vehicles; it is one of {CONVENTIONS}")
    return best


def scenes_of_infos(path: pathlib.Path, convention: str | None = None) -> dict[str, Scene]:
    """All scenes of an infos file by token. `convention` is the release that wrote it, by default found out.

    Raises FrameError.
    """
    infos = load_infos(path)
    convention = convention or detect_convention(infos, str(path))
    groups: dict[str, list[dict[str, Any]]] = {}
    for info in infos:
        groups.setdefault(info["scene_token"], []).append(info)
    try:
        return {token: _scene(group, convention) for token, group in groups.items()}
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise FrameError(f"{path}: infos are inconsistent ({error})") from error


def _scene(infos: list[dict[str, Any]], convention: str) -> Scene:
    counts = np.array([len(info["gt_boxes"]) for info in infos], np.int64)
    frame = np.repeat(np.arange(len(infos)), counts)  # (N)

    def rows(key: str, width: int = 0) -> np.ndarray:
        """One field of all annotations (N) or (N,width)."""
        parts = [np.asarray(info[key]).reshape(-1, width) if width else np.asarray(info[key]) for info in infos]
        if any(len(part) != count for part, count in zip(parts, counts)):
            raise ValueError(f"{key} does not fit gt_boxes")
        return np.concatenate(parts)

    def poses(key: str) -> np.ndarray:
        return np.array([info[key] for info in infos], np.float64)

    boxes = rows("gt_boxes", 7).astype(np.float64)
    heading = to_nuscenes(boxes, convention)[2]
    l2e, e2g = rotation_of(poses("lidar2ego_rotation")), rotation_of(poses("ego2global_rotation"))
    l2g = (e2g * l2e)[frame]
    in_ego = l2e[frame].apply(boxes[:, :3]).reshape(-1, 3) + poses("lidar2ego_translation")[frame]
    translation = e2g[frame].apply(in_ego).reshape(-1, 3) + poses("ego2global_translation")[frame]
    half = heading / 2
    upright = rotation_of(np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], axis=1))
    world = l2g * upright
    # The lidar's x and y of a velocity along the ground; the ground's own x and y come back by the inverse.
    flat = np.linalg.inv(l2g.inv().as_matrix()[:, :2, :2]) if len(frame) else np.zeros((0, 2, 2))
    velocity = np.einsum("nij,nj->ni", flat, rows("gt_velocity", 2).astype(np.float64))
    instance = rows("gt_inds").astype(np.int64)
    timestamps = np.array([info["timestamp"] for info in infos], np.int64)
    turn = planar_yaw(upright) - planar_yaw(world)
    future, steps = future_points(boxes[:, :3], turn, translation, _following(instance, frame), timestamps[frame])
    tokens = rows("gt_ins_tokens") if all("gt_ins_tokens" in info for info in infos) else instance
    return Scene(
        sample_tokens=np.array([info["token"] for info in infos], np.str_),
        timestamps=timestamps,
        lidar2ego_rotation=poses("lidar2ego_rotation"),
        lidar2ego_translation=poses("lidar2ego_translation"),
        ego2global_rotation=poses("ego2global_rotation"),
        ego2global_translation=poses("ego2global_translation"),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        names=rows("gt_names").astype(np.str_),
        translation=translation,
        rotation=world.as_quat()[:, [3, 0, 1, 2]],
        wlh=boxes[:, 3:6],
        velocity=velocity,
        num_lidar_pts=rows("num_lidar_pts").astype(np.int64),
        num_radar_pts=rows("num_radar_pts").astype(np.int64),
        instance=instance,
        instance_tokens=tokens.astype(np.str_),
        attributes=np.full(len(frame), "", np.str_),
        centre=boxes[:, :3],
        heading=heading,
        future=future,
        future_steps=steps,
    )


def _following(instance: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """(N): row of the same object in the next frame that has it, or -1."""
    following = np.full(len(instance), -1, np.int64)
    order = np.lexsort((frame, instance))
    same = instance[order[1:]] == instance[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    return following
