"""Step 4: frames -> result folder.

    python run.py -i DATA -e engine.plan -o RESULT

DATA is a nuScenes root or a folder of frame files (*.npz). With the PyTorch engine this also makes the base result.
A run that was interrupted goes on at the scene where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from data.frames import Frame, FrameSource, open_source
from errors import UniADError, one_line_errors
from files import sha256_of
from runtime import results
from runtime.frame import Started, finish_frame, start_frame
from runtime.profile import profile_of, table
from runtime.sequence import Sequence, SequenceState
from runtime.session import DEVICES, DTYPES, Session, open_session
from runtime.submission import META, tracking_boxes

AHEAD = 3  # frames decoded ahead of the engine, at most


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, type=pathlib.Path, metavar="DATA", help="frames")
    parser.add_argument("-e", "--engine", required=True, type=pathlib.Path, metavar="PLAN", help="engine.plan")
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path, metavar="RESULT", help="result folder")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where a PyTorch engine runs (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the network (default: as the engine was built)")
    parser.add_argument("--no-cuda-graph", action="store_true", help="launch a TensorRT engine's kernels one by one")
    parser.add_argument("--profile", action="store_true", help="time a TensorRT engine's layers: RESULT/profile.json")
    parser.add_argument("--fresh", action="store_true", help="replace an earlier result in RESULT")
    parser.add_argument("--visualize", action="store_true", help="also draw each frame into RESULT/pictures")
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


def git_commit() -> str | None:
    """Commit of this checkout, with -dirty where tracked files were changed; None outside of git."""
    here = str(pathlib.Path(__file__).resolve().parent)
    try:
        command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


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
        "command_line": shlex.join(sys.argv),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "config": dataclasses.asdict(session.config),
        "scenes": list(scenes.values()),
    }


def load_ahead(source: FrameSource, start: int, stop: int) -> Iterator[tuple[int, Frame, float]]:
    """Frames in order with the seconds their decoding took; a background thread is up to AHEAD frames ahead."""

    def load(index: int) -> tuple[int, Frame, float]:
        started = time.perf_counter()
        frame = source.load(index)
        return index, frame, time.perf_counter() - started

    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for index in range(start, stop):
                waiting.append(thread.submit(load, index))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def run_frames(args: argparse.Namespace, source: FrameSource, count: int, session: Session) -> None:
    """Run all frames that are not done, one scene after the other."""
    sequence = Sequence(session.config, session.convention, args.fix_scene_start)
    start, latency = 0, np.empty((0, len(results.STAGES)))
    progress = results.load_progress(args.output)
    if progress is not None:
        start, sequence_state, session_state, latency = progress
        sequence.state = SequenceState.from_arrays(sequence_state)
        session.set_state(session_state)
        print(f"{args.output}: going on at frame {start + 1} of {count}")
    rows = list(latency)
    in_flight: list[tuple[int, Started, float]] = []
    with tqdm(total=count, initial=start, unit="frame", desc="run") as bar:
        for index, frame, load_seconds in load_ahead(source, start, count):
            in_flight.append((index, start_frame(frame, sequence, session), load_seconds))
            scene_ends = index + 1 == count or source.info(index + 1).scene_token != frame.scene_token
            while len(in_flight) > (0 if scene_ends else 1):  # the engine works on a frame while the last is written
                done, started, load = in_flight.pop(0)
                record, seconds = finish_frame(started, session, not args.no_collision_optim)
                results.write_record(results.frame_path(args.output, done, started.frame.sample_token), record)
                rows.append(np.array([load, *seconds, load + sum(seconds)]))
                bar.update()
            if scene_ends:
                state = sequence.state.to_arrays()
                results.save_progress(args.output, index + 1, state, session.get_state(), np.stack(rows))


def finish(args: argparse.Namespace, run: dict[str, Any], source: FrameSource, count: int, session: Session) -> None:
    """Write what is made from all frames: latency.json, results_nusc.json; then call the run complete."""
    boxes: dict[str, list[dict[str, Any]]] = {}
    dropped = 0
    for index in range(count):
        token = source.info(index).sample_token
        record = results.read_arrays(results.frame_path(args.output, index, token))
        dropped += int(record.get("num_dropped", np.zeros(1)).sum())
        if "boxes_3d" in record:
            boxes[token] = tracking_boxes(record, source.pose(index), token, session.config, session.convention)
    progress = results.load_progress(args.output)
    if progress is not None:
        results.write_latency(args.output, progress[-1])
    if boxes:
        results.write_json(args.output / "results_nusc.json", {"meta": META, "results": boxes})
    run = {**run, "complete": True, "dropped_tracks": dropped}
    results.write_json(args.output / "run.json", run)
    (args.output / "resume.npz").unlink(missing_ok=True)
    if dropped:
        print(
            f"warning: {dropped} tracks found no slot and were dropped; build an engine with more than "
            f"{session.config.max_tracks} --max-tracks"
        )


def draw_pictures(args: argparse.Namespace, source: FrameSource, count: int, session: Session) -> None:
    """Draw the frames that have no picture yet."""
    from report.pictures import draw_frame  # Pillow is only needed here

    for index in tqdm(range(count), unit="frame", desc="pictures"):
        record_path = results.frame_path(args.output, index, source.info(index).sample_token)
        path = args.output / "pictures" / f"{record_path.stem}.png"
        if not path.exists():
            record = results.read_arrays(record_path)
            draw_frame(source.load(index), record, path, session.config, session.convention)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.limit is not None and args.limit < 1:
        raise UniADError(f"--limit {args.limit}: give at least 1")
    earlier = results.read_run(args.output)
    session = open_session(args.engine, args.device, args.dtype, not args.no_cuda_graph)
    source = open_source(args.input, session.config, args.version, args.scenes, not args.no_can_bus)
    count = min(len(source), args.limit or len(source))
    run = describe_run(args, session, source, count)
    if earlier is not None and args.fresh:
        results.clear(args.output)
        earlier = None
    if earlier is not None:
        results.check_same_run(args.output, earlier, run["identity"])
    if earlier is not None and earlier["complete"]:
        (args.output / "resume.npz").unlink(missing_ok=True)
        print(f"{args.output}: complete already, {count} frames; --fresh runs them again")
    else:
        results.write_json(args.output / "run.json", run)
        layer_times = session.start_profile() if args.profile else None
        run_frames(args, source, count, session)
        if layer_times is not None:
            profile = profile_of(layer_times)
            results.write_json(args.output / "profile.json", profile)
            print(table(profile))
        finish(args, run, source, count, session)
    if args.visualize:
        draw_pictures(args, source, count, session)
    print(f"{args.output}: {count} frames, {len(run['scenes'])} scenes")


if __name__ == "__main__":
    with one_line_errors():
        main()
