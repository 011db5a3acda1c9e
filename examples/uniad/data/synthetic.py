"""A generated nuScenes-mini: the tables, pictures, CAN bus and maps of the ten scenes, of a town that doesn't exist.

    python -m data.synthetic -o DIR [--scenes mini_val] [--frames 40] [--size 448x256] [--seed 0]

writes a root that nuscenes-devkit and this project's scripts read as v1.0-mini, with the official names of scenes,
splits and locations. Nothing in it comes from nuScenes. The same arguments give the same files. What differs from real
data: keyframes only, no radar, lidar files without points (`num_lidar_pts` is what the visible part of an object
would catch), level ground, and maps as large as the generated town (`canvas_edge`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from data.cameras import camera_rig, turn
from data.frames import CAMERAS
from data.synthetic_can import write_can_bus
from data.synthetic_ground import paint_town
from data.synthetic_map import MASKS, write_map
from data.synthetic_models import agent_model, town_models
from data.synthetic_render import Camera, Renderer, make_mesh
from data.synthetic_scenes import KINDS, SCENES, Agent, Scene, populate
from data.synthetic_schema import LIDAR, calibrations, fixed_tables
from data.synthetic_town import Town, make_town, quaternion, token
from data.synthetic_traffic import Motion, simulate
from errors import UniADError, one_line_errors
from files import new_folder

MARKER = "synthetic.json"
VERSION = "v1.0-mini"
MAX_FRAMES = 40
_CAMERA_DELAYS = (-0.018, -0.012, -0.024, -0.004, -0.001, -0.008)  # seconds from the keyframe, order of CAMERAS
_REACH = 75.0  # metres from the vehicle within which things are annotated
_POINT = 8e-5  # steradians that one lidar point stands for
_OUTLINE_FILLED = 0.85  # how much of an object's convex outline its faces cover, about
_AWAY = (1e5, 1e5, 0.0)  # where agents are drawn that have left the town

Tables = dict[str, list[dict[str, Any]]]


def choose_scenes(names: Iterable[str]) -> list[Scene]:
    """Scenes by name or split, `all` for all ten, in the order of SCENES. Raises UniADError for an unknown name."""
    chosen: set[str] = set()
    for name in names:
        found = {scene.name for scene in SCENES if name in ("all", scene.name, scene.split)}
        if not found:
            known = ", ".join(scene.name for scene in SCENES)
            raise UniADError(f"no scene {name!r}: --scenes takes all, mini_train, mini_val, {known}")
        chosen |= found
    return [scene for scene in SCENES if scene.name in chosen]


def keyframe_times(scene: Scene, frames: int) -> tuple[int, np.ndarray]:
    """Microseconds of the first keyframe, and seconds (frames) after it: half a second apart, give or take 4 ms."""
    number = int(scene.name[-4:])
    jitter = np.array([(37 * (k + number)) % 9 - 4 for k in range(frames)]) * 1e-3
    jitter[0] = 0.0
    return (1_533_100_000 + 4000 * number) * 1_000_000, 0.5 * np.arange(frames) + jitter


def _ego_pose(motion: Motion, time: float) -> tuple[float, float, float]:
    place = motion.place(0, time)
    assert place is not None, "the drive ends within the town"
    return place[:3]


def _poses(motion: Motion, time: float) -> np.ndarray:
    """x, y, heading (agents, 3) of everything but the ego vehicle."""
    places = [motion.place(index, time) for index in range(1, len(motion.agents))]
    return np.array([_AWAY if place is None else place[:3] for place in places])


def _render_scene(
    root: pathlib.Path, scene: Scene, town: Town, motion: Motion, names: np.ndarray, size: tuple[int, int], seed: int
) -> np.ndarray:
    """Write the pictures; `names` (frames, cameras) are their files.

    Returns:
        (frames, agents but the ego vehicle, 2): steradians of each that are seen, and that would be seen if nothing
        stood before it, over all cameras.
    """
    width, height = size
    renderer = Renderer(paint_town(town), town_models(town, seed), scene.light, seed)
    agents = motion.agents[1:]
    models = make_mesh([agent_model(a.kind, a.size, a.look, a.rider) for a in agents], renderer.sun)
    intrinsics, ego2camera, positions = camera_rig(height, width)
    _, times = keyframe_times(scene, len(names))
    seen = np.zeros((len(names), len(agents), 2))
    for frame, time in enumerate(times):
        for camera in range(len(CAMERAS)):
            moment = float(time) + _CAMERA_DELAYS[camera]
            x, y, yaw = _ego_pose(motion, moment)
            rotation = turn(yaw)
            place = rotation @ positions[camera] + [x, y, 0.0]
            mesh = renderer.gather(models.placed(_poses(motion, moment)), place[:2])
            view = Camera(intrinsics[camera], ego2camera[camera] @ rotation.T, place, width, height)
            image, visible, whole = renderer.render(view, mesh)
            seen[frame] += np.stack([visible, whole], 1) / (intrinsics[camera, 0, 0] * intrinsics[camera, 1, 1])
            if not cv2.imwrite(str(root / names[frame, camera]), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
                raise UniADError(f"cannot write {root / names[frame, camera]}: free space or give another folder")
    return seen


def _attribute(agent: Agent, speed: float) -> str | None:
    category = KINDS[agent.kind][0]
    if agent.walks:
        state = "sitting_lying_down" if agent.sits else "moving" if speed > 0.2 else "standing"
        return f"pedestrian.{state}"
    if agent.kind in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if agent.rider else "cycle.without_rider"
    if category.startswith("vehicle"):
        return f"vehicle.{'parked' if agent.path is None else 'moving' if speed > 0.2 else 'stopped'}"
    return None


def _annotate(scene: Scene, town: Town, motion: Motion, seen: np.ndarray, tables: Tables) -> None:
    """Rows of instance and sample_annotation: each agent from the first to the last keyframe that shows it."""
    _, times = keyframe_times(scene, len(seen))
    ego = np.array([_ego_pose(motion, time)[:2] for time in times])  # (frames,2)
    places = np.array([_poses(motion, time) for time in times])  # (frames,agents,3)
    near = np.linalg.norm(places[..., :2] - ego[:, None], axis=2) < _REACH  # (frames,agents)
    points = np.round(seen[..., 0] / _POINT).astype(int)
    for index, agent in enumerate(motion.agents[1:]):
        shown = np.flatnonzero(near[:, index] & (points[:, index] > 0))
        if not len(shown):
            continue
        frames = [f for f in range(shown[0], shown[-1] + 1) if near[f, index]]
        tokens = [token("annotation", scene.name, index, f) for f in frames]
        instance = token("instance", scene.name, index)
        tables["instance"].append(
            {
                "token": instance,
                "category_token": token("category", KINDS[agent.kind][0]),
                "nbr_annotations": len(frames),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        for number, frame in enumerate(frames):
            x, y, yaw, speed = motion.place(index + 1, times[frame]) or (*_AWAY, 0.0)
            visible, whole = seen[frame, index]
            share = visible / max(_OUTLINE_FILLED * whole, 1e-12)
            attribute = _attribute(agent, speed)
            centre = np.append(town.to_global([x, y]), agent.size[2] / 2)
            tables["sample_annotation"].append(
                {
                    "token": tokens[number],
                    "sample_token": token("sample", scene.name, frame),
                    "instance_token": instance,
                    "visibility_token": str(1 + int(np.searchsorted([0.4, 0.6, 0.8], share))),
                    "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                    "translation": np.round(centre, 3).tolist(),
                    "size": list(agent.size),
                    "rotation": quaternion(yaw + town.yaw),
                    "prev": tokens[number - 1] if number else "",
                    "next": tokens[number + 1] if number + 1 < len(frames) else "",
                    "num_lidar_pts": int(points[frame, index]),
                    "num_radar_pts": 0,
                }
            )


def _sample_tables(scene: Scene, town: Town, motion: Motion, frames: int, size: tuple[int, int]) -> Tables:
    """Rows of log, scene, calibrated_sensor, sample, sample_data and ego_pose."""
    width, height = size
    start, times = keyframe_times(scene, frames)
    log_name = f"generated-{scene.name}"
    tables: Tables = defaultdict(list)
    tables["calibrated_sensor"] = calibrations(scene.name, height, width)
    log = {"token": token("log", scene.name), "logfile": log_name, "vehicle": "generated"}
    tables["log"] = [{**log, "date_captured": "2018-08-01", "location": scene.location}]
    samples = [token("sample", scene.name, frame) for frame in range(frames)]
    tables["scene"] = [
        {
            "token": token("scene", scene.name),
            "log_token": log["token"],
            "nbr_samples": frames,
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": scene.name,
            "description": scene.description,
        }
    ]
    for frame, time in enumerate(times):
        neighbours = {
            "prev": samples[frame - 1] if frame else "",
            "next": samples[frame + 1] if frame + 1 < frames else "",
        }
        stamp = start + round(time * 1e6)
        row = {"token": samples[frame], "timestamp": stamp, "scene_token": tables["scene"][0]["token"]}
        tables["sample"].append({**row, **neighbours})
        for channel, delay in zip((*CAMERAS, LIDAR), (*_CAMERA_DELAYS, 0.0)):
            stamp = start + round((time + delay) * 1e6)
            x, y, yaw = _ego_pose(motion, time + delay)
            names = [token("sample_data", scene.name, channel, f) for f in (frame - 1, frame, frame + 1)]
            ending, camera = ("jpg", True) if channel != LIDAR else ("pcd.bin", False)
            tables["sample_data"].append(
                {
                    "token": names[1],
                    "sample_token": samples[frame],
                    "ego_pose_token": names[1],
                    "calibrated_sensor_token": token("calibrated_sensor", scene.name, channel),
                    "timestamp": stamp,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": True,
                    "height": height if camera else 0,
                    "width": width if camera else 0,
                    "filename": f"samples/{channel}/{log_name}__{channel}__{stamp}.{ending}",
                    "prev": names[0] if frame else "",
                    "next": names[2] if frame + 1 < frames else "",
                }
            )
            translation = [*np.round(town.to_global([x, y]), 6).tolist(), 0.0]
            pose = {"token": names[1], "timestamp": stamp, "rotation": quaternion(yaw + town.yaw)}
            tables["ego_pose"].append({**pose, "translation": translation})
    return tables


def write_scene(root: pathlib.Path, scene: Scene, frames: int, size: tuple[int, int], seed: int) -> Tables:
    """Write the pictures, lidar files and CAN bus of one scene into a root; return its rows of the tables."""
    town, agents = populate(scene, seed)
    _, times = keyframe_times(scene, frames)
    motion = simulate(town, agents, float(times[-1]) + 0.5)
    tables = _sample_tables(scene, town, motion, frames, size)
    names = [row["filename"] for row in tables["sample_data"]]
    grid = np.array(names).reshape(frames, len(CAMERAS) + 1)
    for name in grid[:, -1]:
        (root / name).touch()
    seen = _render_scene(root, scene, town, motion, grid[:, :-1], size, seed)
    _annotate(scene, town, motion, seen, tables)
    write_can_bus(root / "can_bus", scene.name, town, motion, keyframe_times(scene, frames)[0], float(times[-1]))
    return tables


def write_nuscenes(
    folder: str | os.PathLike,
    scenes: Sequence[Scene] = SCENES,
    frames: int = MAX_FRAMES,
    size: tuple[int, int] = (448, 256),
    seed: int = 0,
    processes: int = 1,
) -> None:
    """Write a v1.0-mini root into a new folder.

    Args:
        frames: keyframes of each scene, 1 to MAX_FRAMES.
        size: width and height of the pictures.
        processes: scenes drawn at the same time.
    Raises:
        UniADError: the folder is something else or cannot be written.
    """
    with new_folder(folder, lambda path: (path / MARKER).is_file(), "a generated nuScenes root") as work:
        for part in (VERSION, "can_bus", *(f"samples/{channel}" for channel in (*CAMERAS, LIDAR))):
            (work / part).mkdir(parents=True)
        tables: Tables = defaultdict(list, fixed_tables())
        jobs = [(work, scene, frames, size, seed) for scene in scenes]
        with _pictures_shown(work, frames * len(scenes)):
            for rows in _in_processes(jobs, processes):
                for name, part_rows in rows.items():
                    tables[name] += part_rows
        for location, mask in MASKS.items():
            write_map(work, make_town(location, seed))
            logs = [log["token"] for log in tables["log"] if log["location"] == location]
            row = {"token": mask, "category": "semantic_prior", "filename": f"maps/{mask}.png", "log_tokens": logs}
            tables["map"].append(row)
        for name, part_rows in tables.items():
            (work / VERSION / f"{name}.json").write_text(json.dumps(part_rows, indent=0))
        facts = {"scenes": [scene.name for scene in scenes], "frames": frames, "size": size, "seed": seed}
        (work / MARKER).write_text(json.dumps(facts))


@contextlib.contextmanager
def _pictures_shown(root: pathlib.Path, frames: int) -> Iterator[None]:
    """A progress bar of the keyframes that are drawn, by whichever process, during the block."""
    done = threading.Event()
    last = root / "samples" / CAMERAS[-1]
    with tqdm(total=frames, desc="generate", unit="frame", disable=None) as bar:

        def watch() -> None:
            while not done.wait(0.5):
                bar.update(len(os.listdir(last)) - bar.n)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
            bar.update(frames - bar.n)
        finally:
            done.set()
            watcher.join()


def _in_processes(jobs: list[tuple], processes: int) -> Iterable[Tables]:
    """write_scene of every job, in their order."""
    if processes <= 1 or len(jobs) == 1:
        yield from (write_scene(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, cv2.setNumThreads, (1,)) as pool:
        yield from pool.map(write_scene, *zip(*jobs))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 32 <= int(width) <= 4096 and 32 <= int(height) <= 4096):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as 448x256, each 32 to 4096")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a generated nuScenes-mini.")
    parser.add_argument("-o", "--out-dir", required=True, metavar="DIR", type=pathlib.Path)
    parser.add_argument(
        "--scenes", nargs="+", default=["all"], help="names, mini_train, mini_val or all (default: all)"
    )
    parser.add_argument(
        "--frames", type=int, default=MAX_FRAMES, help=f"keyframes of each scene (default: {MAX_FRAMES})"
    )
    parser.add_argument(
        "--size", type=_size, default=(448, 256), metavar="WxH", help="of the pictures (default: 448x256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another town and other traffic (default: 0)")
    parser.add_argument("-p", "--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    args = parser.parse_args()
    if not 1 <= args.frames <= MAX_FRAMES:
        parser.error(f"--frames must be 1 to {MAX_FRAMES}")
    if args.seed < 0:
        parser.error("--seed must not be negative")
    scenes = choose_scenes(args.scenes)
    write_nuscenes(args.out_dir, scenes, args.frames, args.size, args.seed, args.processes)
    print(f"{args.out_dir}: {VERSION}, {len(scenes)} scenes, {args.frames * len(scenes)} keyframes, seed {args.seed}")


if __name__ == "__main__":
    with one_line_errors():
        main()
