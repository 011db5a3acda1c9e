"""One run by several processes of a machine, scene by scene. The answer does not depend on how many they are.

Little reaches from one scene into the next (docs/fidelity.md): where the vehicle was in the last frame of the scene
before, which is in the tables, and how many track ids were given out. So each scene is run with ids that count from 0,
and the ids are shifted by those of the scenes before once all are there.

Processes claim scenes through file locks, which end with their holder: the scenes of a process that was killed are
run by the others, or by the next run. `multiprocessing` starts them and not torchrun: that would need torch, which
machines that run a TensorRT engine do without, and scenes need no ranks and no rendezvous.

    RESULT/scenes/<first frame:06d>/frames/   records with the scene's own ids; gone when they are published
    RESULT/scenes/<first frame:06d>.npz       the scene has been run: ids given out, seconds (frames, stages)
    RESULT/scenes/<first frame:06d>.done      its records are in RESULT/frames
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data.frames import FrameSource, open_source
from errors import UniADError, one_line_errors
from runtime import results
from runtime.frame import run_span
from runtime.sequence import Sequence, SequenceState
from runtime.session import Session

_WAIT = 0.2  # seconds between looks at what the others have finished


class SceneSpan(NamedTuple):
    """Frames `first` to `stop` of a run are one scene, whose folder this is."""

    first: int
    stop: int
    folder: pathlib.Path

    @property
    def facts(self) -> pathlib.Path:
        return self.folder.with_suffix(".npz")

    @property
    def done(self) -> pathlib.Path:
        return self.folder.with_suffix(".done")


def scene_spans(run: dict[str, Any], output: pathlib.Path) -> list[SceneSpan]:
    """The scenes of a run.json, in order."""
    rows = [(scene["first"], scene["first"] + scene["frames"]) for scene in run["scenes"]]
    return [SceneSpan(first, stop, output / "scenes" / f"{first:06d}") for first, stop in rows]


def scene_start(source: FrameSource, first: int) -> SequenceState:
    """What a run of all frames in order would have carried to frame `first`, the first of a scene."""
    if first == 0:
        return SequenceState()
    last = source.load(first - 1).can_bus
    return SequenceState.from_arrays({"prev_pos": last[:3], "prev_angle": last[-1]})


def run_scene(span: SceneSpan, source: FrameSource, session: Session, args: argparse.Namespace) -> None:
    """Run one scene into its own folder."""
    sequence = Sequence(session.config, session.convention, args.fix_scene_start)
    sequence.state = scene_start(source, span.first)
    session.set_state({"max_obj_id": np.zeros(1, np.int32)})
    rows = []
    for index, token, record, row in run_span(
        source, span.first, span.stop, sequence, session, not args.no_collision_optim
    ):
        results.write_record(results.frame_path(span.folder, index, token), record)
        rows.append(row)
    ids = session.get_state()["max_obj_id"]
    results.write_record(span.facts, {"ids": ids, "latency": np.stack(rows)})


def publish(span: SceneSpan, spans: list[SceneSpan], output: pathlib.Path) -> None:
    """Put a scene's records into the result, ids shifted by those of the scenes before (all of which were run)."""
    offset = sum(int(results.read_arrays(s.facts)["ids"].sum()) for s in spans if s.first < span.first)
    for path in sorted((span.folder / "frames").glob("*.npz")):
        record = results.read_arrays(path)
        if "track_ids" in record:
            record["track_ids"] = record["track_ids"] + np.int32(offset)
        results.write_record(output / "frames" / path.name, record)
    span.done.touch()
    shutil.rmtree(span.folder)


@contextlib.contextmanager
def claim(path: pathlib.Path) -> Iterator[bool]:
    """Hold a lock file for the block; False where another process holds it. It ends with the process."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def share(spans: list[SceneSpan], is_done: Callable[[SceneSpan], bool], do: Callable[[SceneSpan], None]) -> None:
    """Do something for all scenes together with other processes; returns when every scene is done, by whomever."""
    while left := [span for span in spans if not is_done(span)]:
        for span in left:
            with claim(span.folder.with_suffix(".lock")) as mine:
                if mine and not is_done(span):
                    do(span)
        time.sleep(_WAIT)


def _choose_gpu(number: int) -> None:
    """Give this process one of the machine's (or of the chosen) GPUs, before CUDA is first used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = sorted(int(path.name[6:]) for path in pathlib.Path("/dev").glob("nvidia[0-9]*"))
    if gpus := chosen.split(",") if chosen else there:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpus[number % len(gpus)])


def _worker(
    number: int, args: argparse.Namespace, spans: list[SceneSpan], open_session: Callable[..., Session]
) -> None:
    with one_line_errors():
        _choose_gpu(number)
        session = open_session(args.engine, args.device, args.dtype, not args.no_cuda_graph)
        source = open_source(args.input, session.config, args.version, args.scenes, not args.no_can_bus)
        share(spans, lambda span: span.facts.exists(), lambda span: run_scene(span, source, session, args))
        share(spans, lambda span: span.done.exists(), lambda span: publish(span, spans, args.output))


def run_workers(args: argparse.Namespace, run: dict[str, Any], open_session: Callable[..., Session]) -> np.ndarray:
    """Run all scenes of a run that are not done by `args.workers` processes; seconds (frames, stages).

    The workers open engine and frames themselves. Raises UniADError where scenes are left and no worker is.
    """
    from tqdm import tqdm  # a worker needs none

    spans = scene_spans(run, args.output)
    (args.output / "scenes").mkdir(parents=True, exist_ok=True)
    (args.output / "resume.npz").unlink(missing_ok=True)  # of a run without workers: begun again
    context = multiprocessing.get_context("spawn")  # neither CUDA nor torch's threads survive a fork
    workers = [
        context.Process(target=_worker, args=(number, args, spans, open_session), daemon=True)
        for number in range(min(args.workers, len(spans)))
    ]
    for worker in workers:
        worker.start()
    with tqdm(total=spans[-1].stop, unit="frame", desc=f"run, {len(workers)} workers") as bar:
        while any(worker.is_alive() for worker in workers):
            workers[0].join(1.0)
            bar.update(_frames_run(spans) - bar.n)
        bar.update(_frames_run(spans) - bar.n)
    left = sum(not span.done.exists() for span in spans)
    if left:
        raise UniADError(
            f"{args.output}: {left} of {len(spans)} scenes are not done and all workers ended (exit status "
            f"{', '.join(str(worker.exitcode) for worker in workers)}); give the same command again to go on"
        )
    return np.concatenate([results.read_arrays(span.facts)["latency"] for span in spans])


def _frames_run(spans: list[SceneSpan]) -> int:
    return sum(
        span.stop - span.first if span.facts.exists() else len(list(span.folder.glob("frames/*.npz"))) for span in spans
    )
