"""Scenes of nuScenes tables, from the tables or from a cache: annotations as flat arrays, which ground truth is
computed from, and the records of the keyframes' pictures.

Reading the tables of v1.0-trainval takes minutes and gigabytes; a scene is a few hundred kilobytes. Scenes are kept one
by one in a cache folder whose name is made from the tables' sizes and times of change.

Upstream: tools/data_converter/uniad_nuscenes_converter.py of OpenDriveLab/UniAD (_fill_trainval_infos), PredictHelper
and NuScenes.box_velocity of nuscenes-devkit.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from data.frames import CAMERAS, FrameError
from errors import UniADError
from files import UNREADABLE, whole_file

FUTURE_STEPS = 12  # half seconds
_FUTURE_SECONDS = 6.15  # nuscenes-devkit allows 0.15 s beyond the six seconds
_MAX_SPEED_GAP = 1.5  # seconds between neighbouring boxes to tell a velocity from them; twice that for central ones
_FORMAT = 2  # of the cache; raised when a field changes

# Names of the detection task; other categories keep their nuScenes names.
_PREFIXES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


@dataclasses.dataclass(frozen=True)
class SceneHead:
    """What is known of every scene of a root without reading the scene."""

    token: str
    name: str
    location: str
    splits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene: F keyframes in time order and, frame after frame, their N annotations in the tables' order.

    Lengths in metres, angles in radians, quaternions w x y z. "Lidar" is LIDAR_TOP of the annotation's keyframe.
    """

    sample_tokens: np.ndarray  # (F) str
    timestamps: np.ndarray  # (F) int64 microseconds
    lidar2ego_rotation: np.ndarray  # (F,4)
    lidar2ego_translation: np.ndarray  # (F,3)
    ego2global_rotation: np.ndarray  # (F,4)
    ego2global_translation: np.ndarray  # (F,3)
    first: np.ndarray  # (F+1) int64: frame f has the annotations first[f] .. first[f+1]
    names: np.ndarray  # (N) str, class of the detection task, or the category where it has none
    translation: np.ndarray  # (N,3) centre, global
    rotation: np.ndarray  # (N,4) global
    wlh: np.ndarray  # (N,3)
    velocity: np.ndarray  # (N,2) global, m/s; NaN: unknown
    num_lidar_pts: np.ndarray  # (N) int64
    num_radar_pts: np.ndarray  # (N) int64
    instance: np.ndarray  # (N) int64, row of the instance table
    instance_tokens: np.ndarray  # (N) str
    attributes: np.ndarray  # (N) str, '' where there is none
    centre: np.ndarray  # (N,3) lidar
    heading: np.ndarray  # (N) lidar, counter-clockwise from x
    future: np.ndarray  # (N,12,2) lidar of now: where the object will be, zeros where unknown
    future_steps: np.ndarray  # (N) int64: how many steps of `future` are known

    def __post_init__(self):
        frames, rows = len(self.sample_tokens), len(self.names)
        if len(self.first) != frames + 1 or self.first[-1] != rows:
            raise ValueError("annotations do not fit the frames")


# --- geometry ---


def rotation_of(quaternions: np.ndarray) -> Rotation:
    """Quaternions w x y z (N,4) as a stack of rotations."""
    return Rotation.from_quat(np.asarray(quaternions, np.float64).reshape(-1, 4)[:, [1, 2, 3, 0]])


def planar_yaw(rotations: Rotation) -> np.ndarray:
    """(N): direction of the turned x axis seen from above (nuscenes-devkit's quaternion_yaw)."""
    axis = rotations.apply([1.0, 0.0, 0.0])
    return np.arctan2(axis[:, 1], axis[:, 0])


def box_yaw(rotations: Rotation) -> np.ndarray:
    """(N): pyquaternion's first Tait-Bryan angle, which upstream's boxes carry; equal to planar_yaw on level ground."""
    x, y, z, w = rotations.as_quat().T
    return np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z))


def lidar_rotations(scene_or_arrays: Any) -> tuple[Rotation, Rotation]:
    """Lidar to ego and ego to global of every frame."""
    return rotation_of(scene_or_arrays.lidar2ego_rotation), rotation_of(scene_or_arrays.ego2global_rotation)


def future_points(
    centre: np.ndarray, turn: np.ndarray, translation: np.ndarray, following: np.ndarray, stamps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Future positions in the lidar frame of now (N,12,2), and how many are known (N).

    As upstream: PredictHelper.get_future_for_agent in the agent's frame, turned back by the lidar box. Objects move
    in the global plane, turned by one angle: tilt of the vehicle is neglected.

    Args:
        centre: (N,3) lidar. turn: (N) from global to lidar yaw. translation: (N,3) global.
        following: (N) row of the same object's next annotation, -1 for none. stamps: (N) integer microseconds.
    """
    rows = np.arange(len(centre))
    current, known = rows, np.ones(len(rows), bool)
    steps = np.zeros(len(rows), np.int64)
    points = np.zeros((len(rows), FUTURE_STEPS, 2))
    cos, sin = np.cos(turn), np.sin(turn)
    for step in range(FUTURE_STEPS):
        ahead = following[current]
        known &= ahead >= 0
        current = np.where(known, ahead, current)
        known &= np.abs(stamps[current] - stamps) / 1e6 < _FUTURE_SECONDS
        x, y = (translation[current] - translation)[:, :2].T
        there = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + centre[:, :2]  # (N,2)
        points[:, step] = np.where(known[:, None], there, 0.0)
        steps += known
    return points, steps


def _velocities(translation: np.ndarray, before: np.ndarray, after: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """(N,2) m/s, as NuScenes.box_velocity: from the neighbouring boxes of the object, NaN where there is none near."""
    rows = np.arange(len(translation))
    first, last = np.where(before >= 0, before, rows), np.where(after >= 0, after, rows)
    seconds = 1e-6 * stamps[last] - 1e-6 * stamps[first]  # rounded as the devkit rounds
    limit = np.where((before >= 0) & (after >= 0), 2 * _MAX_SPEED_GAP, _MAX_SPEED_GAP)
    known = (first != last) & (seconds <= limit)
    velocity = (translation[last] - translation[first])[:, :2] / np.where(known, seconds, np.nan)[:, None]
    return velocity


# --- from the tables ---


def read_scene(nusc: Any, token: str) -> Scene:
    """One scene of an open NuScenes object. Raises KeyError where the tables do not fit together."""
    samples, sample_token = [], nusc.get("scene", token)["first_sample_token"]
    while sample_token:
        samples.append(nusc.get("sample", sample_token))
        sample_token = samples[-1]["next"]
    lidars = [nusc.get("sample_data", sample["data"]["LIDAR_TOP"]) for sample in samples]
    sensors = [nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"]) for lidar in lidars]
    poses = [nusc.get("ego_pose", lidar["ego_pose_token"]) for lidar in lidars]
    annotations = [nusc.get("sample_annotation", ann) for sample in samples for ann in sample["anns"]]
    counts = np.array([len(sample["anns"]) for sample in samples], np.int64)
    frame = np.repeat(np.arange(len(samples)), counts)  # (N)
    row_of = {annotation["token"]: row for row, annotation in enumerate(annotations)}
    before, after = (np.array([row_of.get(a[key], -1) for a in annotations], np.int64) for key in ("prev", "next"))
    timestamps = np.array([sample["timestamp"] for sample in samples], np.int64)
    stamps = timestamps[frame]  # (N)
    arrays: dict[str, Any] = {
        "sample_tokens": _strings(sample["token"] for sample in samples),
        "timestamps": timestamps,
        "lidar2ego_rotation": _table(sensors, "rotation", 4),
        "lidar2ego_translation": _table(sensors, "translation", 3),
        "ego2global_rotation": _table(poses, "rotation", 4),
        "ego2global_translation": _table(poses, "translation", 3),
        "first": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "names": _strings(_PREFIXES.get(a["category_name"], a["category_name"]) for a in annotations),
        "translation": _table(annotations, "translation", 3),
        "rotation": _table(annotations, "rotation", 4),
        "wlh": _table(annotations, "size", 3),
        "num_lidar_pts": np.array([a["num_lidar_pts"] for a in annotations], np.int64),
        "num_radar_pts": np.array([a["num_radar_pts"] for a in annotations], np.int64),
        "instance": np.array([nusc.getind("instance", a["instance_token"]) for a in annotations], np.int64),
        "instance_tokens": _strings(a["instance_token"] for a in annotations),
        "attributes": _strings(_attribute(nusc, a) for a in annotations),
    }
    arrays["velocity"] = _velocities(arrays["translation"], before, after, stamps)
    l2e, e2g = rotation_of(arrays["lidar2ego_rotation"])[frame], rotation_of(arrays["ego2global_rotation"])[frame]
    in_ego = e2g.inv().apply(arrays["translation"] - arrays["ego2global_translation"][frame]).reshape(-1, 3)
    arrays["centre"] = l2e.inv().apply(in_ego - arrays["lidar2ego_translation"][frame]).reshape(-1, 3)
    turned, world = (e2g * l2e).inv() * rotation_of(arrays["rotation"]), rotation_of(arrays["rotation"])
    arrays["heading"] = box_yaw(turned)
    turn = planar_yaw(turned) - planar_yaw(world)
    points = future_points(arrays["centre"], turn, arrays["translation"], after, stamps)
    arrays["future"], arrays["future_steps"] = points
    return Scene(**arrays)


def _strings(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), dtype=np.str_)


def _table(records: list[dict[str, Any]], key: str, width: int) -> np.ndarray:
    return np.array([record[key] for record in records], np.float64).reshape(-1, width)


def _attribute(nusc: Any, annotation: dict[str, Any]) -> str:
    tokens = annotation["attribute_tokens"]
    return nusc.get("attribute", tokens[0])["name"] if tokens else ""


def read_frames(nusc: Any, token: str) -> dict[str, dict[str, dict[str, Any]]]:
    """What the tables say of a scene's keyframes and their pictures: table -> token -> record, samples in time order.

    Raises KeyError where the tables do not fit together.
    """
    tables: dict[str, dict[str, Any]] = {"sample": {}, "sample_data": {}, "calibrated_sensor": {}, "ego_pose": {}}
    sample_token = nusc.get("scene", token)["first_sample_token"]
    while sample_token:
        sample = nusc.get("sample", sample_token)
        data = {channel: sample["data"][channel] for channel in ("LIDAR_TOP", *CAMERAS)}
        row = {key: sample[key] for key in ("token", "timestamp", "scene_token", "next")}
        tables["sample"][sample_token] = {**row, "data": data}
        for data_token in data.values():
            record = tables["sample_data"][data_token] = nusc.get("sample_data", data_token)
            for table in ("calibrated_sensor", "ego_pose"):
                other = record[f"{table}_token"]
                tables[table][other] = nusc.get(table, other)
        sample_token = sample["next"]
    return tables


def read_heads(nusc: Any) -> list[SceneHead]:
    """All scenes of the tables, by their start time."""
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    scenes = sorted(nusc.scene, key=lambda scene: nusc.get("sample", scene["first_sample_token"])["timestamp"])
    return [
        SceneHead(
            token=scene["token"],
            name=scene["name"],
            location=nusc.get("log", scene["log_token"])["location"],
            splits=tuple(split for split, names in splits.items() if scene["name"] in names),
        )
        for scene in scenes
    ]


def choose_scenes(heads: list[SceneHead], wanted: Iterable[str], where: str) -> list[SceneHead]:
    """The scenes that `wanted` names: scene names, tokens, splits, or `all`. Raises FrameError for an unknown one."""
    chosen: set[str] = set()
    for name in wanted:
        tokens = {h.token for h in heads if name in ("all", h.name, h.token, *h.splits)}
        if not tokens:
            known = ", ".join(head.name for head in heads[:8]) + (", ..." if len(heads) > 8 else "")
            raise FrameError(f"{where}: no scene {name!r}; there are {len(heads)} scenes ({known}), splits and 'all'")
        chosen |= tokens
    return [head for head in heads if head.token in chosen]


# --- the cache ---


def cache_folder() -> pathlib.Path:
    """Where indices are kept: $XDG_CACHE_HOME/uniad, by default ~/.cache/uniad."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "uniad"


def fingerprint(folder: pathlib.Path) -> str:
    """A name for the present state of a folder of JSON files, from their names, sizes and times of change."""
    digest = hashlib.sha256(f"{_FORMAT} {folder.resolve()}".encode())
    for path in sorted(folder.glob("*.json")):
        status = path.stat()
        digest.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]


class SceneIndex:
    """The scenes of a folder of tables; the tables are opened only for what is not cached.

    Args:
        tables: the folder. open_tables: gives its NuScenes object.
        cache: a folder, or None; one that cannot be written is done without.
    """

    def __init__(self, tables: pathlib.Path, open_tables: Callable[[], Any], cache: pathlib.Path | None):
        self.tables = tables
        self._open_tables = functools.cache(open_tables)
        self._folder = None if cache is None else cache / f"index-{fingerprint(tables)}"

    @functools.cached_property
    def heads(self) -> list[SceneHead]:
        """All scenes, by their start time. Raises FrameError."""
        path = None if self._folder is None else self._folder / "scenes.json"
        try:
            rows = _cached_json(path)
            if rows is not None:
                return [SceneHead(**{**row, "splits": tuple(row["splits"])}) for row in rows]
        except (TypeError, KeyError):
            pass  # damaged: made again
        heads = self._read(read_heads, "the tables")
        _write_json(path, [dataclasses.asdict(head) for head in heads])
        return heads

    def load(self, heads: list[SceneHead]) -> list[Scene]:
        """The contents of some scenes. Raises FrameError."""
        return [self._load(head) for head in tqdm(heads, desc="index", unit="scene", disable=None, leave=False)]

    def frames(self, heads: list[SceneHead]) -> list[dict[str, dict[str, dict[str, Any]]]]:
        """The records of some scenes' keyframes, see read_frames. Raises FrameError."""
        return [self._frames(h) for h in tqdm(heads, desc="index", unit="scene", disable=None, leave=False)]

    def _frames(self, head: SceneHead) -> dict[str, dict[str, dict[str, Any]]]:
        path = None if self._folder is None else self._folder / f"{head.token}.json"
        tables = _cached_json(path)
        if tables is None:
            tables = self._read(lambda nusc: read_frames(nusc, head.token), head.name)
            _write_json(path, tables)
        return tables

    def _load(self, head: SceneHead) -> Scene:
        path = None if self._folder is None else self._folder / f"{head.token}.npz"
        scene = _cached_scene(path)
        if scene is None:
            scene = self._read(lambda nusc: read_scene(nusc, head.token), head.name)
            if path is not None:
                _write_scene(path, scene)
        return scene

    def _read(self, read: Callable[[Any], Any], what: str) -> Any:
        nusc = self._open_tables()
        try:
            return read(nusc)
        except (KeyError, IndexError, ValueError) as error:
            raise FrameError(f"{self.tables}: {what} can't be read: tables do not fit together ({error!r})") from error


def _cached_json(path: pathlib.Path | None) -> Any:
    try:
        return None if path is None else json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write_json(path: pathlib.Path | None, value: Any) -> None:
    try:
        if path is not None:
            with whole_file(path) as part:
                part.write_text(json.dumps(value))
    except UniADError:
        pass  # a read-only home: the index is made again next time


def _cached_scene(path: pathlib.Path | None) -> Scene | None:
    try:
        if path is None:
            return None
        with np.load(path, allow_pickle=False) as file:
            return Scene(**{field.name: file[field.name] for field in dataclasses.fields(Scene)})
    except (*UNREADABLE, KeyError):
        return None


def _write_scene(path: pathlib.Path, scene: Scene) -> None:
    try:
        with whole_file(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **{f.name: getattr(scene, f.name) for f in dataclasses.fields(Scene)})
    except UniADError:
        pass
