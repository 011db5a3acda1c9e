"""Ground truth per keyframe of a nuScenes root or of UniAD's prepared infos, as the original's dataset class gives it.

Upstream: datasets/nuscenes_e2e_dataset.py, datasets/data_utils and datasets/pipelines of OpenDriveLab/UniAD, in test
mode. Keyframes are ordered as data.nuscenes_source orders them: scenes by their start, each in time order.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from config import UniADConfig
from data.frames import COMMANDS, FrameError, FrameInfo, Pose
from data.infos import scenes_of_infos
from data.map_truth import CLASSES, check_expansion, city_map, expansion_folder
from data.nuscenes_source import EVAL_SPLITS, choose_version, find_versions, open_tables
from data.occupancy_truth import IGNORE, RigidPose, draw_occupancy, ego_plan, footprints, reframe
from data.scene_index import (
    FUTURE_STEPS,
    Scene,
    SceneHead,
    SceneIndex,
    choose_scenes,
    fingerprint,
    planar_yaw,
    rotation_of,
)
from errors import UniADError
from files import UNREADABLE, whole_file
from runtime.boxes import from_nuscenes

FUTURE_FRAMES = 6  # of occupancy and plan, half seconds
PAST_FRAMES = 2  # that must exist for the original to score occupancy
_OCC_FUTURE = 4  # frames ahead that occupancy is scored for
_TURN = 2.0  # metres to the side after three seconds that make a plan a turn


@dataclasses.dataclass(frozen=True)
class Objects:
    """Annotated objects of one keyframe in the tables' order, whatever their class and distance."""

    names: np.ndarray  # (N) str, class, or nuScenes category where it has none
    labels: np.ndarray  # (N) index into the configuration's class_names, -1 for other objects
    boxes: np.ndarray  # (N,9) as runtime.boxes describes them, in the ground truth's convention; velocity 0 if unknown
    points: np.ndarray  # (N) lidar points inside
    radar_points: np.ndarray  # (N)
    instance: np.ndarray  # (N) row of the instance table
    instance_tokens: np.ndarray  # (N) str
    attributes: np.ndarray  # (N) str
    future: np.ndarray  # (N,12,2) lidar frame of this keyframe, half a second each
    future_mask: np.ndarray  # (N,12) bool
    translation: np.ndarray  # (N,3) global
    rotation: np.ndarray  # (N,4) global, w x y z
    wlh: np.ndarray  # (N,3)
    velocity: np.ndarray  # (N,2) global, NaN where unknown


@dataclasses.dataclass(frozen=True)
class Plan:
    """The vehicle's way: `trajectory` (6,3) x, y, heading at each half second, lidar frame; `mask` (6) bool: known."""

    trajectory: np.ndarray
    mask: np.ndarray
    command: int


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """Vehicles in the grid of now, at 0, 0.5, ... 3 s: seven frames of which five belong to the occupancy task.

    segmentation  uint8 (7,S,S) 0, 1, or 255 where the frame does not exist
    instance      int32 (7,S,S) 0 free, row of the instance table + 1, 255 where the frame does not exist; the object
                  that would be 255 is -20, as in the original
    valid         bool (9): frames -2 ... 6 exist
    scored        the original scores this keyframe: frames -2 ... 4 exist
    """

    segmentation: np.ndarray
    instance: np.ndarray
    valid: np.ndarray
    scored: bool


class GroundTruth:
    """Ground truth of the keyframes of some scenes.

    Args:
        root: nuScenes root. version: table folder; needed where the root has several.
        scenes: names, tokens or splits (`val`, `mini_train`, ..., `all`); by default the split that the original
            evaluates on.
        maps: False does without the map expansion; `maps()` is refused then.
        convention: release whose labels are wanted: the convention of `boxes`, and in "v2.0" occupancy is drawn with
            width and length exchanged (data.occupancy_truth.footprints).
        infos: UniAD's nuscenes_infos_temporal_*.pkl in place of the tables' annotations; `scenes` then chooses among
            its scenes (default: all), and tables are only read for the scenes' names and places.
        cache: folder for the index; None for no cache.
    Raises:
        FrameError: tables, maps or infos missing or unreadable, unknown scene.
    """

    def __init__(
        self,
        root: pathlib.Path,
        config: UniADConfig,
        version: str | None = None,
        scenes: Iterable[str] | None = None,
        maps: bool = True,
        convention: str = "v1.0.1",
        infos: pathlib.Path | None = None,
        cache: pathlib.Path | None = None,
    ):
        self.root, self.config, self.convention, self.cache = root, config, convention, cache
        if not find_versions(root):
            raise FrameError(f"{root}: no nuScenes tables here (a folder like v1.0-mini): give a nuScenes root")
        self.version = choose_version(root, version)
        index = SceneIndex(root / self.version, lambda: open_tables(root, self.version), cache)
        if infos is None:
            heads = choose_scenes(index.heads, scenes or [EVAL_SPLITS.get(self.version, "all")], str(root))
            self._scenes = list(zip(heads, index.load(heads)))
        else:
            named, given = {head.token: head for head in index.heads}, scenes_of_infos(infos)
            if strangers := [token for token in given if token not in named]:
                raise FrameError(f"{infos}: scene {strangers[0]} is not in {root / self.version}; give its own root")
            heads = [head for head in index.heads if head.token in given]
            self._scenes = [(head, given[head.token]) for head in choose_scenes(heads, scenes or ["all"], str(infos))]
        self._frames = [(s, f) for s, (_, scene) in enumerate(self._scenes) for f in range(len(scene.sample_tokens))]
        self._index = {self.info(i).sample_token: i for i in range(len(self))}
        self.has_maps = maps
        self._scene_maps: tuple[int, np.ndarray] = (-1, np.zeros(0))
        if maps:
            check_expansion(root, {head.location for head, _ in self._scenes})

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def heads(self) -> list[SceneHead]:
        """The chosen scenes, by their start."""
        return [head for head, _ in self._scenes]

    @property
    def tokens(self) -> list[str]:
        """Sample tokens of all keyframes, in order."""
        return list(self._index)

    def index(self, sample_token: str) -> int:
        """Raises KeyError."""
        return self._index[sample_token]

    def info(self, index: int) -> FrameInfo:
        head, scene, frame = self._at(index)
        return FrameInfo(head.token, str(scene.sample_tokens[frame]), head.name)

    def timestamp(self, index: int) -> int:
        """Microseconds."""
        _, scene, frame = self._at(index)
        return int(scene.timestamps[frame])

    def pose(self, index: int) -> Pose:
        """Lidar to global in float64, row vectors."""
        pose = self._pose(index)
        (l2e, l2e_t), (e2g, e2g_t) = pose.lidar2ego, pose.ego2global
        return Pose(l2e.T @ e2g.T, l2e_t @ e2g.T + e2g_t, e2g_t)

    def ego_rotation(self, index: int) -> np.ndarray:
        """(3,3) vehicle to global, column vectors: a global row vector times this is in the vehicle's frame."""
        return self._pose(index).ego2global[0]

    def objects(self, index: int) -> Objects:
        _, scene, frame = self._at(index)
        rows = slice(scene.first[frame], scene.first[frame + 1])
        velocity = np.nan_to_num(scene.velocity[rows])
        turn = self.pose(index).l2g_r_mat
        in_lidar = np.pad(velocity, ((0, 0), (0, 1))) @ turn.T  # global to lidar: the inverse is the transpose
        boxes = from_nuscenes(
            scene.centre[rows], scene.wlh[rows], scene.heading[rows], in_lidar[:, :2], self.convention
        )
        return Objects(
            names=scene.names[rows],
            labels=self._labels(scene.names[rows]),
            boxes=boxes,
            points=scene.num_lidar_pts[rows],
            radar_points=scene.num_radar_pts[rows],
            instance=scene.instance[rows],
            instance_tokens=scene.instance_tokens[rows],
            attributes=scene.attributes[rows],
            future=scene.future[rows],
            future_mask=np.arange(FUTURE_STEPS) < scene.future_steps[rows][:, None],
            translation=scene.translation[rows],
            rotation=scene.rotation[rows],
            wlh=scene.wlh[rows],
            velocity=scene.velocity[rows],
        )

    def plan(self, index: int) -> Plan:
        ahead = [self._neighbour(index, step) for step in range(1, FUTURE_FRAMES + 1)]
        poses = [None if i is None else self._pose(i) for i in ahead]
        trajectory, mask = ego_plan(poses, self._pose(index), FUTURE_FRAMES)
        command = COMMANDS.index("straight")
        if mask.any():
            side = trajectory[mask.sum() - 1, 0]
            command = COMMANDS.index("right" if side >= _TURN else "left" if side <= -_TURN else "straight")
        return Plan(trajectory, mask, command)

    def ego_future(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The vehicle's next positions (12,2) in its own level frame (x right, y ahead), and what is known (12)."""
        _, scene, frame = self._at(index)
        places = scene.ego2global_translation[frame : frame + 1 + FUTURE_STEPS, :2]
        angle = np.pi / 2 - planar_yaw(rotation_of(scene.ego2global_rotation[frame]))[0]
        cos, sin = np.cos(angle), np.sin(angle)
        future, known = np.zeros((FUTURE_STEPS, 2)), np.arange(FUTURE_STEPS) < len(places) - 1
        future[known] = (places[1:] - places[0]) @ np.array([[cos, sin], [-sin, cos]])
        return future, known

    def occupancy(self, index: int, grid: tuple[float, float, float] | None = None) -> Occupancy:
        """Occupancy of now and the next six keyframes; `grid` is lower edge, upper edge and cell, by default the
        configuration's."""
        grid = grid or self.config.occ_grid
        size = round((grid[1] - grid[0]) / grid[2])
        frames = [self._neighbour(index, step) for step in range(-PAST_FRAMES, FUTURE_FRAMES + 1)]
        valid = np.array([frame is not None for frame in frames])
        segmentation = np.full((FUTURE_FRAMES + 1, size, size), IGNORE, np.uint8)
        instance = np.full(segmentation.shape, IGNORE, np.int32)
        for step, frame in enumerate(frames[PAST_FRAMES:]):
            if frame is None:
                continue
            centre, wlh, heading, vehicle, number = self._moved(frame, index)
            corners = footprints(centre[vehicle], wlh[vehicle], heading[vehicle], self.convention)
            segmentation[step], instance[step] = draw_occupancy(corners, number[vehicle] + 1, grid)
        return Occupancy(segmentation, instance, valid, bool(valid[: PAST_FRAMES + 1 + _OCC_FUTURE].all()))

    def boxes_ahead(self, index: int, step: int) -> np.ndarray | None:
        """Objects with lidar points, of any class, `step` keyframes later, in the lidar frame of `index`.

        (N,5) x, y, width, length, heading; None where there is no such keyframe.
        """
        frame = self._neighbour(index, step)
        if frame is None:
            return None
        _, scene, there = self._at(frame)
        seen = scene.num_lidar_pts[scene.first[there] : scene.first[there + 1]] > 0
        centre, wlh, heading, *_ = self._moved(frame, index)
        return np.column_stack([centre[:, :2], wlh[:, :2], heading])[seen].astype(np.float64)

    def maps(self, index: int) -> np.ndarray:
        """(4,H,W) bool: divider, crossing, boundary, drivable area on the configuration's canvas.

        Rows go with the lidar's y (ahead), columns with its x (right). Raises FrameError without maps.
        """
        if not self.has_maps:
            raise FrameError(f"{self.root}: ground truth was opened without maps")
        scene, frame = self._frames[index]
        if self._scene_maps[0] != scene:
            self._scene_maps = (scene, self._draw_maps(scene))
        return self._scene_maps[1][frame]

    # --- inside ---

    def _at(self, index: int) -> tuple[SceneHead, Scene, int]:
        scene, frame = self._frames[index]
        return *self._scenes[scene], frame

    def _neighbour(self, index: int, step: int) -> int | None:
        """The keyframe `step` later (earlier) in the same scene."""
        other = index + step
        same = 0 <= other < len(self) and self._frames[other][0] == self._frames[index][0]
        return other if same else None

    def _pose(self, index: int) -> RigidPose:
        _, scene, frame = self._at(index)
        turns = [
            rotation_of(q).as_matrix()[0] for q in (scene.lidar2ego_rotation[frame], scene.ego2global_rotation[frame])
        ]
        return RigidPose(
            (turns[0], scene.lidar2ego_translation[frame]), (turns[1], scene.ego2global_translation[frame])
        )

    def _labels(self, names: np.ndarray) -> np.ndarray:
        order = {name: label for label, name in enumerate(self.config.class_names)}
        return np.array([order.get(name, -1) for name in names.tolist()], np.int64)

    def _moved(self, frame: int, index: int) -> tuple[np.ndarray, ...]:
        """Boxes of keyframe `frame` in the lidar frame of `index`, float32: centre of the bottom (N,3), wlh (N,3),
        heading (N); whether a vehicle (N), instance (N)."""
        _, scene, there = self._at(frame)
        rows = slice(scene.first[there], scene.first[there + 1])
        bottom = scene.centre[rows] - np.array([0, 0, 0.5]) * scene.wlh[rows]
        centre, heading = reframe(bottom, scene.heading[rows], self._pose(frame), self._pose(index))
        vehicle = np.isin(self._labels(scene.names[rows]), self.config.vehicle_id_list)
        return centre, scene.wlh[rows].astype(np.float32), heading, vehicle, scene.instance[rows]

    def _draw_maps(self, scene: int) -> np.ndarray:
        """(F,4,H,W) bool for all keyframes of a scene, from the cache where it has them."""
        head, arrays = self._scenes[scene]
        canvas = self.config.canvas_size
        x0, y0, _, x1, y1, _ = self.config.pc_range
        shape = (len(arrays.sample_tokens), len(CLASSES), *canvas)
        path = None
        if self.cache is not None:
            folder = f"map-{fingerprint(expansion_folder(self.root))}-{canvas[0]}x{canvas[1]}"
            path = self.cache / folder / f"{head.token}.npz"
            try:
                with np.load(path, allow_pickle=False) as file:
                    if tuple(file["shape"]) == shape:
                        return np.unpackbits(file["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
            except (*UNREADABLE, KeyError):
                pass  # drawn again
        frames = [i for i, (s, _) in enumerate(self._frames) if s == scene]
        bar = tqdm(frames, desc=f"map {head.name}", unit="frame", disable=None, leave=False)
        city = city_map(self.root, head.location)
        masks = np.stack([city.masks(self._pose(i), canvas, (y1 - y0, x1 - x0)) for i in bar])
        if path is not None:
            try:
                with whole_file(path) as part, open(part, "wb") as out:
                    np.savez_compressed(out, shape=np.array(shape), bits=np.packbits(masks))
            except UniADError:
                pass  # a cache that can't be written is done without
        return masks
