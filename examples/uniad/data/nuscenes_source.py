"""Frames from a nuScenes root, computed as UniAD's converter and dataset class compute them.

Upstream: tools/data_converter/uniad_nuscenes_converter.py, datasets/nuscenes_e2e_dataset.py (get_data_info) and
datasets/data_utils/trajectory_api.py (get_sdc_planning_label) of OpenDriveLab/UniAD.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from config import UniADConfig
from data.frames import CAMERAS, Frame, FrameError, FrameInfo, Pose, make_frame
from data.scene_index import SceneIndex, choose_scenes

# What the original evaluates on. Other scenes were in its training set.
EVAL_SPLITS = {"v1.0-trainval": "val", "v1.0-mini": "mini_val", "v1.0-test": "test"}
DECODERS = 3 * len(CAMERAS)  # threads; several frames are decoded at a time, and a JPEG takes one 3 to 10 ms
_PLANNING_STEPS = 6
_TURN = 2.0  # metres to the side after three seconds that make a plan a turn
_EGO_HEIGHT = 1.56  # metres

_UNTOUCHED = np.frombuffer(b"no pixel of this image was read.", np.uint8)[:30].reshape(10, 3)

DEVKIT_HINT = "nuScenes tables need nuscenes-devkit: install requirements-nuscenes.txt"
# nuScenes published no CAN bus data of these scenes (nuscenes-devkit, NuScenesCanBus.can_blacklist).
_NEVER_RECORDED = frozenset([*range(161, 169), *range(170, 177), *range(309, 315)])


def find_versions(root: pathlib.Path) -> list[str]:
    """Names of the table folders (v1.0-mini, ...) of a nuScenes root; empty where it isn't one."""
    return sorted(path.name for path in root.glob("v1.0-*") if (path / "sample.json").is_file())


class NuScenesSource:
    """Keyframes of a nuScenes root: scenes by their start time, each in time order.

    Args:
        version: table folder; needed where the root has several.
        scenes: names, tokens or splits (`val`, `mini_train`, ..., `all`); by default the split that the original
            evaluates on.
        can_bus: False leaves acceleration, rotation rate and velocity zero, as the original does for the scenes that
            have no CAN bus data; position and heading come from the poses in any case.
        cache: folder for the index, with which the tables are read only once; None for no cache.
    Raises:
        FrameError: tables missing or unreadable, unknown scene, CAN bus missing, nuscenes-devkit not installed.
    """

    def __init__(
        self,
        root: pathlib.Path,
        config: UniADConfig,
        version: str | None = None,
        scenes: Iterable[str] | None = None,
        can_bus: bool = True,
        cache: pathlib.Path | None = None,
    ):
        self.root, self.config = root, config
        self.version = choose_version(root, version)
        try:  # here, where no frame waits for it
            from pyquaternion import Quaternion
        except ImportError as error:
            raise FrameError(f"{root}: {DEVKIT_HINT}") from error
        self._quaternion = Quaternion
        self._use_can_bus = can_bus
        index = SceneIndex(root / self.version, lambda: open_tables(root, self.version), cache)
        wanted = scenes if scenes is not None else [EVAL_SPLITS.get(self.version, "all")]
        self._scenes = choose_scenes(index.heads, wanted, f"{root / self.version}")
        self._names = {head.token: head.name for head in self._scenes}
        self._tables: dict[str, dict[str, Any]] = {}
        self._samples: list[dict[str, Any]] = []
        for tables in index.frames(self._scenes):
            self._samples += tables["sample"].values()
            for name, records in tables.items():
                self._tables.setdefault(name, {}).update(records)
        self._no_can_bus: set[str] = set()
        self._messages = functools.lru_cache(2)(self._read_messages)  # frames ahead may be in the next scene
        if can_bus:
            self._check_can_bus()
        self._pool = concurrent.futures.ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._samples)

    def info(self, index: int) -> FrameInfo:
        sample = self._samples[index]
        return FrameInfo(sample["scene_token"], sample["token"], self._names[sample["scene_token"]])

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "nuScenes",
            "path": str(self.root.resolve()),
            "version": self.version,
            "can_bus": self._use_can_bus,
            "scenes": [scene.name for scene in self._scenes],
            "frames": len(self),
        }

    def pose(self, index: int) -> Pose:
        l2e_r, l2e_t, e2g_r, e2g_t = self._lidar_poses(self._samples[index])
        return Pose(l2e_r.T @ e2g_r.T, l2e_t @ e2g_r.T + e2g_t, e2g_t)

    def load(self, index: int, img: np.ndarray | None = None) -> Frame:
        return make_frame(self.values(index, images=True, img=img), self.config, self._samples[index]["token"])

    def values(self, index: int, images: bool, img: np.ndarray | None = None) -> dict[str, Any]:
        """The fields of a frame record, before validation; without `img` where `images` is False. Images are decoded
        into `img`, uint8 (6,H,W,3), where it has their size."""
        sample = self._samples[index]
        pose = self.pose(index)
        paths = [self._path(sample, camera) for camera in CAMERAS]
        raw_size = self._get("sample_data", sample["data"][CAMERAS[0]])
        width, height, stretch = self._scaling(raw_size["width"], raw_size["height"])
        values = {
            "can_bus": self._can_bus(sample),
            "lidar2img": stretch @ np.stack([self._lidar2img(sample, camera) for camera in CAMERAS]),
            "l2g_r_mat": pose.l2g_r_mat.astype(np.float32),
            "l2g_t": pose.l2g_t.astype(np.float32),
            "timestamp": sample["timestamp"] / 1e6,
            "command": self._command(sample),
            "scene_token": sample["scene_token"],
            "sample_token": sample["token"],
            "paths": tuple(str(path) for path in paths),
        }
        if images:
            if img is None or img.shape != (len(CAMERAS), height, width, 3):
                img = np.empty((len(CAMERAS), height, width, 3), np.uint8)
            list(self._pool.map(_decode, paths, img))
            values["img"] = img
        return values

    def check_images(self) -> None:
        """Raise FrameError where images of the selected scenes are not there."""
        paths = [self._path(sample, camera) for sample in self._samples for camera in CAMERAS]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FrameError(
                f"{self.root}: {len(missing)} of {len(paths)} camera images are missing, the first is {missing[0]}; "
                "extract nuScenes' keyframe blobs here, or choose scenes that are there with --scenes"
            )

    def _get(self, table: str, token: str) -> dict[str, Any]:
        return self._tables[table][token]

    # --- CAN bus ---

    def _can_bus_path(self, scene_name: str) -> pathlib.Path:
        return self.root / "can_bus" / f"{scene_name}_pose.json"

    def _check_can_bus(self) -> None:
        """Find scenes without CAN bus: those that never had one get zeros, for others this is an error."""
        missing = []
        for scene in self._scenes:
            name = scene.name
            if not self._can_bus_path(name).is_file():
                if int(name[-4:]) in _NEVER_RECORDED:
                    self._no_can_bus.add(scene.token)
                else:
                    missing.append(name)
        if missing:
            more = f" and {len(missing) - 1} more scenes" if len(missing) > 1 else ""
            maps = self.root / "maps"
            also = f"; the 'Map expansion pack (v1.3)' (for scores of the map) is missing in {maps}, too"
            if (maps / "expansion").is_dir():
                also = ""
            raise FrameError(
                f"{self._can_bus_path(missing[0])}: CAN bus of {missing[0]}{more} is missing; download the 'CAN bus "
                f"expansion' from nuScenes' download page and extract it into {self.root}, or go on without "
                f"(worse plans) with --no-can-bus{also}"
            )

    def _read_messages(self, scene_token: str) -> list[dict[str, Any]]:
        """CAN bus pose messages of a scene."""
        path = self._can_bus_path(self._names[scene_token])
        try:
            messages = json.loads(path.read_text())
            if not messages or not all({"utime", "accel", "rotation_rate", "vel"} <= set(m) for m in messages):
                raise ValueError
        except (OSError, ValueError, TypeError) as error:
            raise FrameError(f"{path}: not a readable list of CAN bus poses; download it again") from error
        return messages

    def _can_bus(self, sample: dict[str, Any]) -> np.ndarray:
        """can_bus (18), float64; see data.frames.Frame."""
        _, _, _, e2g_t = self._lidar_poses(sample)
        rotation = self._quaternion(self._ego_pose(sample, "LIDAR_TOP")["rotation"])
        can_bus = np.zeros(18)
        can_bus[:3] = e2g_t
        can_bus[3:7] = rotation.elements
        if self._use_can_bus and sample["scene_token"] not in self._no_can_bus:
            messages = self._messages(sample["scene_token"])
            # The first message *after* the keyframe, or the last one: the converter steps one past the message it
            # means to take. The first message of a scene may come after its first keyframe.
            times = [message["utime"] for message in messages]
            message = messages[min(np.searchsorted(times, sample["timestamp"], side="right"), len(times) - 1)]
            can_bus[7:16] = [*message["accel"], *message["rotation_rate"], *message["vel"]]
        # As nuscenes-devkit's quaternion_yaw, which takes seconds to import; to the bit, unlike scene_index.planar_yaw.
        degrees = np.arctan2(*rotation.rotation_matrix[1::-1, 0]) / np.pi * 180
        if degrees < 0:
            degrees += 360
        can_bus[-2] = degrees / 180 * np.pi
        can_bus[-1] = degrees
        return can_bus

    # --- geometry ---

    def _ego_pose(self, sample: dict[str, Any], channel: str) -> dict[str, Any]:
        return self._get("ego_pose", self._get("sample_data", sample["data"][channel])["ego_pose_token"])

    def _sensor_poses(self, sample: dict[str, Any], channel: str) -> tuple[np.ndarray, ...]:
        """Rotation (3,3) and translation (3) of sensor to ego and of ego to global, float64, column vectors."""
        data = self._get("sample_data", sample["data"][channel])
        sensor = self._get("calibrated_sensor", data["calibrated_sensor_token"])
        ego = self._get("ego_pose", data["ego_pose_token"])
        return (
            self._quaternion(sensor["rotation"]).rotation_matrix,
            np.array(sensor["translation"]),
            self._quaternion(ego["rotation"]).rotation_matrix,
            np.array(ego["translation"]),
        )

    def _lidar_poses(self, sample: dict[str, Any]) -> tuple[np.ndarray, ...]:
        return self._sensor_poses(sample, "LIDAR_TOP")

    def _lidar2img(self, sample: dict[str, Any], camera: str) -> np.ndarray:
        """(4,4): lidar at its own time to the pixels of a camera at that camera's time, through the global frame."""
        c2e_r, c2e_t, e2g_r_cam, e2g_t_cam = self._sensor_poses(sample, camera)
        l2e_r, l2e_t, e2g_r, e2g_t = self._lidar_poses(sample)
        to_lidar = np.linalg.inv(e2g_r).T @ np.linalg.inv(l2e_r).T  # global to lidar, row vectors
        camera2lidar = (c2e_r.T @ e2g_r_cam.T @ to_lidar).T  # (3,3) column vectors
        translation = (c2e_t @ e2g_r_cam.T + e2g_t_cam) @ to_lidar - (e2g_t @ to_lidar + l2e_t @ np.linalg.inv(l2e_r).T)
        lidar2camera = np.eye(4)
        lidar2camera[:3, :3] = np.linalg.inv(camera2lidar)
        lidar2camera[:3, 3] = -lidar2camera[:3, :3] @ translation
        data = self._get("sample_data", sample["data"][camera])
        intrinsic = np.eye(4)
        intrinsic[:3, :3] = self._get("calibrated_sensor", data["calibrated_sensor_token"])["camera_intrinsic"]
        return intrinsic @ lidar2camera

    def _command(self, sample: dict[str, Any]) -> int:
        """0 right, 1 left, 2 straight: where the ego vehicle is sideways at the end of the next three seconds.

        In float32 and through the global frame as the original, whose boxes are float32 tensors: plans that end at
        2 m to the side are decided as it decides them.
        """
        last, steps = sample, 0
        while last["next"] and steps < _PLANNING_STEPS:
            last, steps = self._get("sample", last["next"]), steps + 1
        if steps == 0:
            return 2
        l2e_r0, l2e_t0, e2g_r0, e2g_t0 = self._lidar_poses(sample)
        l2e_r, l2e_t, e2g_r, e2g_t = self._lidar_poses(last)
        point = np.array([0.0, 0.0, -_EGO_HEIGHT / 2], np.float32)  # bottom of the ego box, in the lidar frame then
        for rotation, translation in ((l2e_r.T, l2e_t), (e2g_r.T, e2g_t)):
            point = point @ rotation.astype(np.float32) + translation.astype(np.float32)
        for rotation, translation in ((e2g_r0, e2g_t0), (l2e_r0, l2e_t0)):
            point = (point - translation.astype(np.float32)) @ np.linalg.inv(rotation).T.astype(np.float32)
        if point[0] >= _TURN:
            return 0
        return 1 if point[0] <= -_TURN else 2

    # --- images ---

    def _path(self, sample: dict[str, Any], camera: str) -> pathlib.Path:
        return self.root / self._get("sample_data", sample["data"][camera])["filename"]

    def _scaling(self, raw_width: int, raw_height: int) -> tuple[int, int, np.ndarray]:
        """Engine image width and height for a raw image, and the matrix (4,4) that scales its projection."""
        scale = self.config.image_scale
        if scale is None:
            width, height = self.config.image_width, self.config.image_height
            return width, height, np.diag([width / raw_width, height / raw_height, 1.0, 1.0])
        return int(raw_width * scale), int(raw_height * scale), np.diag([scale, scale, 1.0, 1.0])


def choose_version(root: pathlib.Path, version: str | None) -> str:
    versions = find_versions(root)
    if version is not None and version not in versions:
        raise FrameError(f"{root}: no tables {version!r} here; there are: {', '.join(versions) or 'none'}")
    if version is None and len(versions) != 1:
        raise FrameError(f"{root}: several table folders ({', '.join(versions)}); choose one with --version")
    return version or versions[0]


def open_tables(root: pathlib.Path, version: str) -> Any:
    """A NuScenes object. Raises FrameError."""
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise FrameError(f"{root}: {DEVKIT_HINT}") from error
    with tqdm(desc=f"tables of {version}", unit="table", disable=None, leave=False) as bar:

        class ShownTables(NuScenes):
            """Shows how far it has got: v1.0-trainval takes half a minute."""

            def __load_table__(self, table_name):
                bar.set_postfix_str(table_name)
                bar.update()
                return super().__load_table__(table_name)

        try:
            return ShownTables(version=version, dataroot=str(root), verbose=False)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            reason = str(error) or type(error).__name__
            raise FrameError(f"{root}: tables of {version} can't be read ({reason})") from error


def _decode(path: pathlib.Path, out: np.ndarray) -> None:
    """Decode one image into `out`, uint8 (height,width,3) BGR, resized bilinearly where it has another size.

    OpenCV, as mmcv: decoders differ by a grey level here and there. UniAD-tiny resizes after subtracting the mean,
    in float32; here the pixels are rounded to integers again. Decoding in place takes half the time: the pages of a
    new image cost as much as the decoding. Raises FrameError: missing, damaged, not a colour image.
    """
    start, untouched = out[0, : len(_UNTOUCHED)], _UNTOUCHED[: out.shape[1]]
    start[...] = untouched
    try:
        image = cv2.imread(str(path), out, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # it has another size
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    # Where OpenCV can't make out an image it gives back the memory as it was; where that doesn't fit, a new array.
    if image is None or (image is out and np.array_equal(start, untouched)):
        raise FrameError(f"{path}: image is missing or damaged; extract nuScenes' keyframe blobs again")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise FrameError(f"{path}: image is {image.dtype} {image.shape}, not one of three colours of 8 bits")
    if image is not out:
        cv2.resize(image, out.shape[1::-1], out, interpolation=cv2.INTER_LINEAR)
