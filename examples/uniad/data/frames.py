"""The frame record, and folders of frame files.

A source of frames is a sequence: `len(source)`, `source.info(index)` (cheap: tokens only) and `source.load(index)`
(decodes the images). Frames of one scene follow each other in time order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from config import UniADConfig
from errors import UniADError
from files import UNREADABLE

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
COMMANDS = ("right", "left", "straight")


class FrameError(UniADError):
    """A frame is unreadable, incomplete or inconsistent."""


@dataclasses.dataclass(frozen=True)
class FrameInfo:
    """What is known of a frame without decoding it."""

    scene_token: str
    sample_token: str
    scene_name: str = ""


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where the lidar and the vehicle are: enough to place boxes of the frame in the world."""

    l2g_r_mat: np.ndarray  # (3,3), row vectors: x_global = x_lidar @ l2g_r_mat + l2g_t
    l2g_t: np.ndarray  # (3) metres
    ego_translation: np.ndarray  # (3) metres, global


@dataclasses.dataclass(frozen=True)
class Frame:
    """One keyframe. Cameras in the order of CAMERAS; the lidar frame is x right, y forward, z up.

    img           uint8   (6,H,W,3) BGR, unpadded
    can_bus       float64 (18) raw: position [0:3] m, quaternion w x y z [3:7], acceleration, rotation rate and
                  velocity [7:16], heading in radians [0, 2 pi) at [-2] and in degrees [0, 360) at [-1]
    lidar2img     float64 (6,4,4) lidar point -> pixel * depth
    l2g_r_mat     float32 (3,3) row vectors: x_global = x_lidar @ l2g_r_mat + l2g_t
    l2g_t         float32 (3) metres
    timestamp     seconds
    command       0 right, 1 left, 2 straight
    paths         image files, where there are any
    """

    img: np.ndarray
    can_bus: np.ndarray
    lidar2img: np.ndarray
    l2g_r_mat: np.ndarray
    l2g_t: np.ndarray
    timestamp: float
    command: int
    scene_token: str
    sample_token: str
    paths: tuple[str, ...] = ()

    @property
    def pose(self) -> Pose:
        return Pose(self.l2g_r_mat, self.l2g_t, self.can_bus[:3])


class FrameSource(Protocol):
    """A sequence of frames with cheap metadata."""

    def __len__(self) -> int: ...

    def info(self, index: int) -> FrameInfo:
        """Tokens of a frame."""

    def pose(self, index: int) -> Pose:
        """Pose of a frame, without decoding its images."""

    def load(self, index: int, img: np.ndarray | None = None) -> Frame:
        """The whole frame, validated; its images lie in `img`, uint8 (6,H,W,3), where one is given. Several threads
        may call. Raises FrameError."""

    def describe(self) -> dict[str, Any]:
        """What identifies this source, for run.json."""


# name -> type and shape of the arrays besides img; the record of docs/design.md
_ARRAYS: dict[str, tuple[type, tuple[int, ...]]] = {
    "can_bus": (np.float64, (18,)),
    "lidar2img": (np.float64, (6, 4, 4)),
    "l2g_r_mat": (np.float32, (3, 3)),
    "l2g_t": (np.float32, (3,)),
}
_SCALARS = {"timestamp": "f", "command": "iu", "scene_token": "U", "sample_token": "U"}
_KIND_NAMES = {"f": "float", "iu": "integer", "U": "string"}
FRAME_KEYS = ("img", *_ARRAYS, *_SCALARS)


def check_image(img: np.ndarray, config: UniADConfig, where: str) -> None:
    """Raise FrameError unless `img` is what the engine takes: uint8 (6,H,W,3) of the configured size."""
    expected = (config.num_cams, config.image_height, config.image_width, 3)
    if img.dtype != np.uint8:
        nan = " and contains NaN" if img.dtype.kind == "f" and np.isnan(img).any() else ""
        raise FrameError(f"{where}: img must be uint8 (BGR, 0..255), but is {img.dtype}{nan}")
    if img.ndim == 4 and img.shape[0] != expected[0]:
        raise FrameError(f"{where}: img has {img.shape[0]} cameras, but the engine takes {expected[0]}: {CAMERAS}")
    if img.shape != expected:
        raise FrameError(f"{where}: img has shape {img.shape}, but the engine was built for {expected}")


def make_frame(values: Mapping[str, Any], config: UniADConfig, where: str) -> Frame:
    """A validated Frame from the record's fields (arrays or scalars); `where` names it in errors.

    Raises FrameError: missing field, wrong type or shape, not finite, unknown command.
    """
    missing = [key for key in FRAME_KEYS if key not in values]
    if missing:
        raise FrameError(f"{where}: fields missing from the frame: {', '.join(missing)}")
    check_image(np.asarray(values["img"]), config, where)
    fields: dict[str, Any] = {"img": np.ascontiguousarray(values["img"])}
    for key, (dtype, shape) in _ARRAYS.items():
        array = np.asarray(values[key])
        if array.dtype != dtype or array.shape != shape:
            raise FrameError(f"{where}: {key} must be {np.dtype(dtype)} {shape}, but is {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise FrameError(f"{where}: {key} contains NaN or infinity")
        fields[key] = array
    for key, kinds in _SCALARS.items():
        array = np.asarray(values[key])
        if array.shape != () or array.dtype.kind not in kinds:
            raise FrameError(f"{where}: {key} must be one {_KIND_NAMES[kinds]}, but is {array.dtype} {array.shape}")
        fields[key] = array.item()
    if not math.isfinite(fields["timestamp"]):
        raise FrameError(f"{where}: timestamp is not finite")
    if not 0 <= fields["command"] < len(COMMANDS):
        names = ", ".join(f"{i} {name}" for i, name in enumerate(COMMANDS))
        raise FrameError(f"{where}: unknown command {fields['command']}; it must be one of {names}")
    _check_token(fields["sample_token"], where)
    return Frame(**fields, paths=tuple(values.get("paths", ())))


def move_images(frame: Frame, img: np.ndarray) -> Frame:
    """The frame with its images in `img`, uint8 (6,H,W,3). Raises FrameError where `img` has another shape."""
    if img.shape != frame.img.shape:
        raise FrameError(f"frame {frame.sample_token}: images of {frame.img.shape} for memory of {img.shape}")
    img[...] = frame.img
    return dataclasses.replace(frame, img=img)


def _check_token(token: str, where: str) -> None:
    """A sample token becomes part of a file name: letters, digits, `-`, `_` and `.` only."""
    if not token or not all(c.isalnum() or c in "-_." for c in token):
        raise FrameError(f"{where}: sample_token {token!r} must be letters, digits, '-', '_' or '.'")


def save_frame(path: pathlib.Path, frame: Frame) -> None:
    """Write a frame file as FrameFolder reads it."""
    values = {key: getattr(frame, key) for key in FRAME_KEYS}
    values["timestamp"] = np.float64(frame.timestamp)
    values["command"] = np.int64(frame.command)
    np.savez_compressed(path, **values)


class FrameFolder:
    """Frames `*.npz` of one folder, in name order; `scenes` keeps those of some scene tokens.

    Raises FrameError: no frame files, one that is unreadable, a scene that is split, an unknown scene.
    """

    def __init__(self, folder: pathlib.Path, config: UniADConfig, scenes: list[str] | None = None):
        self.folder = folder
        self.config = config
        self.files = sorted(folder.glob("*.npz"))
        if not self.files:
            raise FrameError(f"{folder}: no frame files (*.npz) in this folder")
        self._infos = [self._read_info(path) for path in self.files]
        _check_order(self._infos, self.folder)
        if scenes is not None and "all" not in scenes:
            known = {info.scene_token for info in self._infos}
            unknown = [scene for scene in scenes if scene not in known]
            if unknown:
                raise FrameError(f"{folder}: no scene {unknown[0]!r}; there are: {', '.join(sorted(known))}")
            kept = [i for i, info in enumerate(self._infos) if info.scene_token in scenes]
            self.files = [self.files[i] for i in kept]
            self._infos = [self._infos[i] for i in kept]

    def __len__(self) -> int:
        return len(self.files)

    def info(self, index: int) -> FrameInfo:
        return self._infos[index]

    def pose(self, index: int) -> Pose:
        values = _read(self.files[index], ("l2g_r_mat", "l2g_t", "can_bus"))
        return Pose(values["l2g_r_mat"], values["l2g_t"], values["can_bus"][:3])

    def load(self, index: int, img: np.ndarray | None = None) -> Frame:
        frame = make_frame(_read(self.files[index], FRAME_KEYS), self.config, str(self.files[index]))
        return frame if img is None else move_images(frame, img)

    def describe(self) -> dict[str, Any]:
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        files = hashlib.sha256(repr(stats).encode()).hexdigest()  # changes where a file was written again
        return {"kind": "frame folder", "path": str(self.folder.resolve()), "frames": len(self), "files_sha256": files}

    @staticmethod
    def _read_info(path: pathlib.Path) -> FrameInfo:
        values = _read(path, ("scene_token", "sample_token"))
        _check_token(str(values["sample_token"]), str(path))
        return FrameInfo(str(values["scene_token"]), str(values["sample_token"]))


def _read(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some arrays of a frame file; np.load decodes only those. allow_pickle stays off: frames are data."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise FrameError(f"{path}: fields missing from the frame: {', '.join(missing)}")
            return {key: file[key] for key in keys}
    except (*UNREADABLE, KeyError) as error:
        raise FrameError(f"{path}: not a readable frame file ({error})") from error


def _check_order(infos: list[FrameInfo], where: pathlib.Path) -> None:
    """Raise FrameError where a scene is split in two or a sample occurs twice: resuming and results rely on it."""
    seen_scenes: set[str] = set()
    seen_samples: set[str] = set()
    last = None
    for info in infos:
        if info.scene_token != last and info.scene_token in seen_scenes:
            raise FrameError(f"{where}: frames of scene {info.scene_token} do not follow each other in name order")
        if info.sample_token in seen_samples:
            raise FrameError(f"{where}: sample_token {info.sample_token} occurs twice")
        last = info.scene_token
        seen_scenes.add(info.scene_token)
        seen_samples.add(info.sample_token)


def open_source(
    path: pathlib.Path,
    config: UniADConfig,
    version: str | None = None,
    scenes: list[str] | None = None,
    can_bus: bool = True,
) -> FrameSource:
    """The frames of a nuScenes root (a folder with v1.0-* tables) or of a folder of frame files.

    Raises FrameError: neither of them, or what NuScenesSource and FrameFolder raise.
    """
    if not path.is_dir():
        raise FrameError(f"{path}: no such folder; give a nuScenes root or a folder of frame files (*.npz)")
    if any(path.glob("v1.0-*")):
        from data.nuscenes_source import NuScenesSource  # what it needs is only needed here
        from data.scene_index import cache_folder

        source = NuScenesSource(path, config, version, scenes, can_bus, cache_folder())
        source.check_images()
        return source
    return FrameFolder(path, config, scenes)
