"""Small valid frames for tests of what stands around the engine."""

import dataclasses
import pathlib

import numpy as np

from config import UniADConfig, load_config
from data.frames import Frame, save_frame

SMALL: UniADConfig = load_config("tiny_e2e").replace(
    image_height=8, image_width=12, max_tracks=6, bev_h=20, bev_w=20, rotate_center=(10, 10), canvas_size=(20, 20)
)


def make_test_frame(index: int, scene: str = "scene-a", config: UniADConfig = SMALL) -> Frame:
    """Frame `index` of a drive north-east at 4 m a step; images and poses differ from frame to frame."""
    rng = np.random.default_rng(index)
    yaw = np.deg2rad(45 + index)
    cos, sin = np.cos(yaw), np.sin(yaw)
    can_bus = np.zeros(18)
    can_bus[:3] = 600 + 4 * index * cos, 1600 + 4 * index * sin, 0.1
    can_bus[3:7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
    can_bus[7:16] = rng.normal(size=9)
    can_bus[-2:] = yaw, np.rad2deg(yaw)
    lidar_yaw = yaw - np.pi / 2  # the lidar's y axis points ahead
    rotation = np.array(
        [[np.cos(lidar_yaw), -np.sin(lidar_yaw), 0], [np.sin(lidar_yaw), np.cos(lidar_yaw), 0], [0, 0, 1]]
    )
    return Frame(
        img=rng.integers(0, 256, (6, config.image_height, config.image_width, 3), dtype=np.uint8),
        can_bus=can_bus,
        lidar2img=rng.normal(size=(6, 4, 4)),
        l2g_r_mat=rotation.T.astype(np.float32),
        l2g_t=(can_bus[:3] + [0.9 * cos, 0.9 * sin, 1.8]).astype(np.float32),
        timestamp=1.5e9 + 0.5 * index,
        command=index % 3,
        scene_token=scene,
        sample_token=f"{scene}-{index:03d}",
    )


def write_frames(folder: pathlib.Path, scenes: dict[str, int]) -> list[Frame]:
    """Frame files of some scenes, e.g. {"a": 3, "b": 2}, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for scene, count in scenes.items():
        for _ in range(count):
            frames.append(make_test_frame(len(frames), scene))
            save_frame(folder / f"{len(frames):06d}.npz", frames[-1])
    return frames


def frame_values(frame: Frame) -> dict[str, object]:
    """The record of a frame as arrays, to be spoilt."""
    values = {f.name: getattr(frame, f.name) for f in dataclasses.fields(Frame) if f.name != "paths"}
    return {**values, "timestamp": np.float64(frame.timestamp), "command": np.int64(frame.command)}
