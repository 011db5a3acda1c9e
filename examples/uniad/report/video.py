"""A film of a result, of ground truth, or of both side by side. `run.py --video` makes them, too.

    python -m report.video -i RESULT [--ground-truth ROOT] -o scene.mp4

An output that ends in .mp4 gets all frames; another is a folder that gets one <scene>.mp4 each. The films are H.264
(yuv420p), the one codec in MP4 that every browser plays: OpenCV's writer has only MPEG-4 part 2, which none of them
plays, and VP9, which takes seconds a frame. FFmpeg comes with imageio-ffmpeg.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from config import UniADConfig, config_from_dict
from data.frames import Frame, FrameSource, open_source
from data.ground_truth import GroundTruth, Plan
from errors import UniADError, one_line_errors
from files import whole_file
from report.compare import Result, load_result
from report.evaluate import open_truth
from report.pictures import frame_picture
from report.scores import lookup
from runtime.results import read_arrays

SHOWN = ("result", "truth", "both")
_BANNER = 48  # pixels above each picture
_OCC_FRAMES = 5
_SIDE = 1280  # default width of a prediction or of ground truth, pixels


def truth_record(truth: GroundTruth, index: int) -> dict[str, np.ndarray]:
    """Ground truth of a keyframe as a result record, for the drawing of results: objects of the configured classes
    with lidar or radar points, one mode each (the last known place where the future ends), vehicles' occupancy, maps
    where there are some, and the driven way."""
    objects, occupancy, plan = truth.objects(index), truth.occupancy(index), truth.plan(index)
    rows = np.flatnonzero((objects.labels >= 0) & (objects.points + objects.radar_points > 0))
    boxes = objects.boxes[rows]
    steps = np.where(objects.future_mask[rows][..., None], objects.future[rows] - boxes[:, None, :2], 0)  # (N,12,2)
    instance = np.where(occupancy.segmentation == 1, occupancy.instance, 0)[:_OCC_FRAMES]
    record = {
        "boxes_3d": boxes,
        "labels_3d": objects.labels[rows],
        "track_ids": objects.instance[rows],
        "traj": np.concatenate([_held(steps, objects.future_mask[rows]), np.zeros((1, *steps.shape[1:]))])[:, None],
        "traj_scores": np.zeros((len(rows) + 1, 1)),
        "occ_ins": instance,
        "driven": _driven(plan),
    }
    if truth.has_maps:
        masks = truth.maps(index)
        record |= {"map_drivable": masks[3], "map_lane": masks[:3]}
    return record


def _driven(plan: Plan) -> np.ndarray:
    """The known part (T,2) of the way that the vehicle took."""
    return plan.trajectory[plan.mask, :2]


def _held(steps: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Steps (N,T,2) in which what is unknown repeats the last known one (known ones come first)."""
    last = np.maximum(known.sum(1) - 1, 0)  # (N)
    return np.take_along_axis(steps, np.minimum(np.arange(steps.shape[1]), last[:, None])[..., None], axis=1)


def _picture(frame: Frame, record: Mapping[str, np.ndarray], title: str, config: UniADConfig, convention: str):
    """A drawn frame under a banner."""
    drawn = frame_picture(frame, record, config, convention)
    canvas = Image.new("RGB", (drawn.width, drawn.height + _BANNER), (10, 12, 16))
    canvas.paste(drawn, (0, _BANNER))
    font = ImageFont.load_default(28)
    ImageDraw.Draw(canvas).text((16, _BANNER // 2), title, fill=(222, 226, 233), font=font, anchor="lm")
    return canvas


def pictures(
    result: Result, frames: list[tuple[int, str]], source: FrameSource, truth: GroundTruth | None, show: str, width: int
) -> Iterator[np.ndarray]:
    """RGB pictures (H,W,3) of frames (index in the source, name): `show` is "result", "truth" or "both"."""
    config, convention = config_from_dict(result.run["config"]), result.run["convention"]
    for number, (index, name) in enumerate(frames, 1):
        frame, sides = source.load(index), []
        truth_index = None if truth is None else truth.index(frame.sample_token)
        where = f"{source.info(index).scene_name or ''}   {number}/{len(frames)}"
        if show != "truth":
            record: dict[str, np.ndarray] = dict(read_arrays(result.frames[name]))
            if truth is not None and truth_index is not None:
                record["driven"] = _driven(truth.plan(truth_index))
            sides.append(_picture(frame, record, f"PREDICTION   {where}", config, convention))
        if truth is not None and truth_index is not None and show != "result":
            record = truth_record(truth, truth_index)
            sides.append(_picture(frame, record, f"GROUND TRUTH   {where}", config, convention))
        whole = np.concatenate([np.asarray(side) for side in sides], axis=1)
        height = 2 * round(whole.shape[0] * width / whole.shape[1] / 2)  # H.264 wants even sides
        yield np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.LANCZOS))


def check_writer() -> None:
    """Raise UniADError where films can't be written."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UniADError("films need imageio-ffmpeg: install requirements-nuscenes.txt") from error


def write_video(path: pathlib.Path, images: Iterator[np.ndarray], fps: float) -> None:
    """An MP4 file of RGB pictures of one size. Raises UniADError."""
    check_writer()
    from imageio_ffmpeg import write_frames

    first = next(images)
    options = ["-f", "mp4", "-preset", "veryfast", "-crf", "21", "-movflags", "+faststart"]
    with whole_file(path) as part:
        size = (first.shape[1], first.shape[0])
        writer = write_frames(
            str(part),
            size,
            fps=fps,
            codec="libx264",
            macro_block_size=2,
            quality=None,
            output_params=options,
            ffmpeg_log_level="error",
        )
        try:
            writer.send(None)
            writer.send(np.ascontiguousarray(first))
            for image in images:
                writer.send(np.ascontiguousarray(image))
        finally:
            writer.close()


def _source(result: Result, data: pathlib.Path | None) -> FrameSource:
    """The frames that a result was made from."""
    facts = lookup(result.run, "identity.frames") or {}
    path = data or pathlib.Path(facts.get("path", ""))
    if not path.is_dir() or not facts:
        raise UniADError(f"{result.path}: its frames are not at {path} any more; give their folder with --data")
    scenes = [scene["token"] for scene in result.run["scenes"]]
    version = facts.get("version") if facts.get("kind") == "nuScenes" else None
    can_bus = facts.get("can_bus", True)
    return open_source(path, config_from_dict(result.run["config"]), version, scenes, can_bus)


def film(
    path: pathlib.Path,
    output: pathlib.Path,
    source: FrameSource,
    truth: GroundTruth | None,
    show: str,
    scene: str | None = None,
    width: int | None = None,
    fps: float = 2.0,
) -> None:
    """Write the films of a result folder: one where `output` ends in .mp4, else a folder of <scene>.mp4.

    `show` is one of SHOWN and needs `truth` unless it is "result"; `scene` (name or token) chooses one. Raises
    UniADError.
    """
    result = load_result(path, "result")
    names = result.by_token
    scenes: dict[str, list[tuple[int, str]]] = {}
    for index in range(len(source)):
        info = source.info(index)
        if info.sample_token in names and scene in (None, info.scene_name, info.scene_token):
            scenes.setdefault(info.scene_name or info.scene_token, []).append((index, names[info.sample_token]))
    if not scenes:
        raise UniADError(f"{path}: no frames of scene {scene!r}")
    if output.suffix.lower() == ".mp4":
        films = {output: [frame for frames in scenes.values() for frame in frames]}
    else:
        films = {output / f"{name}.mp4": frames for name, frames in scenes.items()}
    width = 2 * ((width or _SIDE * (2 if show == "both" else 1)) // 2)
    for target, frames in films.items():
        images = pictures(result, frames, source, truth, show, width)
        write_video(target, iter(tqdm(images, total=len(frames), unit="frame", desc=target.name, disable=None)), fps)
        print(f"written: {target}, {len(frames)} frames")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Films of a result of run.py, with or beside ground truth.")
    parser.add_argument("-i", "--input", type=pathlib.Path, required=True, metavar="RESULT", help="result folder")
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="MP4", help="scene.mp4, or a folder"
    )
    parser.add_argument("--ground-truth", type=pathlib.Path, metavar="ROOT", help="nuScenes root")
    parser.add_argument("--show", choices=SHOWN, help="default: both where there is ground truth")
    parser.add_argument("--scene", metavar="NAME", help="only this scene, by name or token")
    parser.add_argument("--data", type=pathlib.Path, help="where the frames are (default: as in run.json)")
    parser.add_argument("--fps", type=float, default=2.0, help="keyframes a second (default 2, their own pace)")
    parser.add_argument("--width", type=int, help=f"of the film, pixels (default {_SIDE} a side)")
    options = parser.parse_args(arguments)
    result = load_result(options.input, "result")
    source = _source(result, options.data)
    truth = open_truth(options.ground_truth, result.run)[0] if options.ground_truth else None
    show = options.show or ("both" if truth else "result")
    if show != "result" and truth is None:
        raise UniADError(f"--show {show} needs --ground-truth NUSCENES_ROOT")
    if (options.width is not None and options.width < 64) or not options.fps > 0:
        raise UniADError("--width takes a number from 64 up, --fps one above 0")
    film(options.input, options.output, source, truth, show, options.scene, options.width, options.fps)


if __name__ == "__main__":
    with one_line_errors():
        main()
