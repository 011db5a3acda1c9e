"""Step 4: frames -> result folder.

    python run.py -i DATA -e engine.plan -o RESULT

DATA is a nuScenes root or a folder of frame files (*.npz). With the PyTorch engine this also makes the base result.
A run that was interrupted goes on at the scene where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import sys
from typing import Any

import numpy as np
from checkout import git_commit
from tqdm import tqdm

from data.frames import FrameSource, open_source
from errors import UniADError, one_line_errors
from files import sha256_of
from runtime import results
from runtime.frame import run_span, scene_ends
from runtime.profile import profile_of, table
from runtime.scale_out import run_workers
from runtime.sequence import Sequence, SequenceState
from runtime.session import DEVICES, DTYPES, Session, open_session
from runtime.submission import META, tracking_boxes


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, type=pathlib.Path, metavar="DATA", help="frames")
    parser.add_argument("-e", "--engine", required=True, type=pathlib.Path, metavar="PLAN", help="engine.plan")
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path, metavar="RESULT", help="result folder")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where a PyTorch engine runs (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the network (default: as the engine was built)")
    parser.add_argument("--no-cuda-graph", action="store_true", help="launch a TensorRT engine's kernels one by one")
    parser.add_argument("--profile", action="store_true", help="time a TensorRT engine's layers: RESULT/profile.json")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="run scenes side by side in N processes, one CPU thread each unless OMP_NUM_THREADS says otherwise; "
        "GPUs are dealt out in turn. The result is the same for every N",
    )
    parser.add_argument("--fresh", action="store_true", help="replace an earlier result in RESULT")
    parser.add_argument("--visualize", action="store_true", help="also draw each frame into RESULT/pictures")
    parser.add_argument(
        "--video",
        nargs="?",
        const="auto",
        choices=("auto", "result", "truth", "both"),
        metavar="WHAT",
        help="also film each scene into RESULT/videos: result, truth, or both side by side (default: both where DATA "
        "is a nuScenes root)",
    )
    data = parser.add_argument_group("choice of frames")
    data.add_argument("--version", help="nuScenes tables, e.g. v1.0-mini, where the root has several")
    data.add_argument(
        "--scenes",
        metavar="A,B",
        type=lambda text: text.split(","),
        help="scene names, tokens, nuScenes splits, or all (default: the evaluation split; all of a frame folder)",
    )
    data.add_argument("--limit", type=int, metavar="N", help="only the first N frames")
    data.add_argument(
        "--no-can-bus", action="store_true", help="zero acceleration, rotation rate and velocity: go on without CAN bus"
    )
    behaviour = parser.add_argument_group("departures from the original")
    behaviour.add_argument(
        "--fix-scene-start",
        action="store_true",
        help="zero ego motion at the first frame of a scene, as in training; the original takes the jump from the "
        "last frame of the previous scene (docs/design.md)",
    )
    behaviour.add_argument(
        "--no-collision-optim", action="store_true", help="leave out collision optimisation: sdc_traj = sdc_traj_raw"
    )
    return parser.parse_args(arguments)


def frame_identity(source: FrameSource, count: int) -> dict[str, Any]:
    """What tells one selection of frames from another."""
    tokens = "\n".join(f"{source.info(i).scene_token} {source.info(i).sample_token}" for i in range(count))
    return {**source.describe(), "used": count, "tokens_sha256": hashlib.sha256(tokens.encode()).hexdigest()}


def describe_run(args: argparse.Namespace, session: Session, source: FrameSource, count: int) -> dict[str, Any]:
    """run.json. `identity` is what must agree for a run to be continued."""
    engine = {"sha256": sha256_of(args.engine), **session.describe()}
    scenes: dict[str, dict[str, Any]] = {}
    for index in range(count):
        info = source.info(index)
        row = {"token": info.scene_token, "name": info.scene_name, "first": index, "frames": 0}
        scenes.setdefault(info.scene_token, row)["frames"] += 1
    return {
        "kind": results.KIND,
        "complete": False,
        "convention": session.convention,
        "identity": {
            "engine": engine,
            "frames": frame_identity(source, count),
            "fix_scene_start": args.fix_scene_start,
            "collision_optim": not args.no_collision_optim,
        },
        "engine_path": str(args.engine.resolve()),
        "workers": args.workers or 1,
        "command_line": shlex.join(sys.argv),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "config": dataclasses.asdict(session.config),
        "scenes": list(scenes.values()),
    }


def run_frames(args: argparse.Namespace, source: FrameSource, count: int, session: Session) -> np.ndarray:
    """Run all frames that are not done, one scene after the other; seconds (frames, stages)."""
    shutil.rmtree(args.output / "scenes", ignore_errors=True)  # of a run with --workers: begun again
    sequence = Sequence(session.config, session.convention, args.fix_scene_start)
    start, latency = 0, np.empty((0, len(results.STAGES)))
    progress = results.load_progress(args.output)
    if progress is not None:
        start, sequence_state, session_state, latency = progress
        sequence.state = SequenceState.from_arrays(sequence_state)
        session.set_state(session_state)
        print(f"{args.output}: going on at frame {start + 1} of {count}")
    rows = list(latency)
    with tqdm(total=count, initial=start, unit="frame", desc="run") as bar:
        span = run_span(source, start, count, sequence, session, not args.no_collision_optim)
        for index, token, record, row in span:
            results.write_record(results.frame_path(args.output, index, token), record)
            rows.append(row)
            bar.update()
            if scene_ends(source, index, count):
                state = sequence.state.to_arrays()
                results.save_progress(args.output, index + 1, state, session.get_state(), np.stack(rows))
    return np.stack(rows)


def finish(
    args: argparse.Namespace,
    run: dict[str, Any],
    source: FrameSource,
    session: Session,
    latency: np.ndarray,
) -> None:
    """Write what is made from all frames: latency.json, results_nusc.json; then call the run complete."""
    boxes: dict[str, list[dict[str, Any]]] = {}
    dropped = 0
    for index in range(len(latency)):
        token = source.info(index).sample_token
        record = results.read_arrays(results.frame_path(args.output, index, token))
        dropped += int(record.get("num_dropped", np.zeros(1)).sum())
        if "boxes_3d" in record:
            boxes[token] = tracking_boxes(record, source.pose(index), token, session.config, session.convention)
    results.write_latency(args.output, latency)
    if boxes:
        results.write_json(args.output / "results_nusc.json", {"meta": META, "results": boxes})
    run = {**run, "complete": True, "dropped_tracks": dropped}
    results.write_json(args.output / "run.json", run)
    clear_progress(args.output)
    if dropped:
        print(
            f"warning: {dropped} tracks found no slot and were dropped; build an engine with more than "
            f"{session.config.max_tracks} --max-tracks"
        )


def clear_progress(output: pathlib.Path) -> None:
    """Remove what only a run that goes on needs."""
    (output / "resume.npz").unlink(missing_ok=True)
    shutil.rmtree(output / "scenes", ignore_errors=True)


def draw_pictures(args: argparse.Namespace, source: FrameSource, count: int, session: Session) -> None:
    """Draw the frames that have no picture yet."""
    from report.pictures import draw_frame  # Pillow is only needed here

    for index in tqdm(range(count), unit="frame", desc="pictures"):
        record_path = results.frame_path(args.output, index, source.info(index).sample_token)
        path = args.output / "pictures" / f"{record_path.stem}.png"
        if not path.exists():
            record = results.read_arrays(record_path)
            draw_frame(source.load(index), record, path, session.config, session.convention)


def choose_video(args: argparse.Namespace, source: FrameSource) -> str | None:
    """What --video films, checked before the run; None without it. Raises UniADError."""
    if args.video is None:
        return None
    from report.video import check_writer

    check_writer()
    annotated = source.describe()["kind"] == "nuScenes"
    if args.video in ("truth", "both") and not annotated:
        raise UniADError(
            f"--video {args.video} needs ground truth: {args.input} is no nuScenes root; use --video result"
        )
    return ("both" if annotated else "result") if args.video == "auto" else args.video


def make_videos(args: argparse.Namespace, run: dict[str, Any], source: FrameSource, show: str) -> None:
    """Film every scene of the result into RESULT/videos."""
    from report.evaluate import open_truth  # nuscenes-devkit is only needed with ground truth
    from report.video import film

    truth = None if show == "result" else open_truth(args.input, run)[0]
    film(args.output, args.output / "videos", source, truth, show)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.limit is not None and args.limit < 1:
        raise UniADError(f"--limit {args.limit}: give at least 1")
    if args.workers is not None:
        if args.workers < 1 or args.profile:
            raise UniADError("--workers takes a number from 1 up, and no --profile: layers are timed by one process")
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the workers inherit it
    earlier = results.read_run(args.output)
    session = open_session(args.engine, args.device, args.dtype, not args.no_cuda_graph)
    source = open_source(args.input, session.config, args.version, args.scenes, not args.no_can_bus)
    show = choose_video(args, source)
    count = min(len(source), args.limit or len(source))
    run = describe_run(args, session, source, count)
    if earlier is not None and args.fresh:
        results.clear(args.output)
        earlier = None
    if earlier is not None:
        results.check_same_run(args.output, earlier, run["identity"])
    if earlier is not None and earlier["complete"]:
        clear_progress(args.output)
        print(f"{args.output}: complete already, {count} frames; --fresh runs them again")
    else:
        results.write_json(args.output / "run.json", run)
        layer_times = session.start_profile() if args.profile else None
        if args.workers:
            latency = run_workers(args, run, open_session)
        else:
            latency = run_frames(args, source, count, session)
        if layer_times is not None:
            profile = profile_of(layer_times)
            results.write_json(args.output / "profile.json", profile)
            print(table(profile))
        finish(args, run, source, session, latency)
    if args.visualize:
        draw_pictures(args, source, count, session)
    if show:
        make_videos(args, run, source, show)
    print(f"{args.output}: {count} frames, {len(run['scenes'])} scenes")


if __name__ == "__main__":
    with one_line_errors():
        main()
