"""Frames from the source to their records. A frame goes in two halves: the next can start while the engine runs it."""

from __future__ import annotations

import collections
import concurrent.futures
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from ranges import stage

from data.frames import Frame, FrameSource
from runtime import results
from runtime.collision import optimise_plan
from runtime.sequence import Sequence
from runtime.session import Session

AHEAD = 3  # frames decoded ahead of the engine, at most, and at the same time


class Started(NamedTuple):
    """A frame that the engine works on."""

    frame: Frame
    preprocess: float  # seconds


def start_frame(frame: Frame, sequence: Sequence, session: Session) -> Started:
    """Host geometry, and off to the engine."""
    began = time.perf_counter()
    with stage("preprocess"):
        inputs = sequence.inputs(frame)
    preprocess = time.perf_counter() - began
    with stage("submit"):
        session.submit(inputs)
    return Started(frame, preprocess)


def finish_frame(
    started: Started, session: Session, collision_optim: bool = True
) -> tuple[dict[str, np.ndarray], list[float]]:
    """The record of the oldest frame that was started, and the seconds of its stages: preprocess, engine,
    postprocess, optimise."""
    with stage("collect"):
        outputs = session.collect()
    times = [time.perf_counter()]
    with stage("postprocess"):
        record = results.make_record(outputs, f"frame {started.frame.sample_token}")
    times.append(time.perf_counter())
    with stage("optimise"):
        if "sdc_traj_raw" in record:
            record["sdc_traj"] = record["sdc_traj_raw"]
            if collision_optim and "occ_seg" in record:
                record["sdc_traj"], _ = optimise_plan(record["sdc_traj_raw"], record["occ_seg"], session.config)
    times.append(time.perf_counter())
    postprocess, optimise = np.diff(times).tolist()
    return record, [started.preprocess, session.latency, postprocess, optimise]


def load_ahead(
    source: FrameSource, start: int, stop: int, image_buffer: Callable[[], np.ndarray | None]
) -> Iterator[tuple[int, Frame, float]]:
    """Frames in order with the seconds their decoding took. Up to AHEAD frames after the last one are decoded side by
    side in the background, each into an array of `image_buffer`, where that gives one."""

    def load(index: int) -> tuple[int, Frame, float]:
        started = time.perf_counter()
        frame = source.load(index, image_buffer())
        return index, frame, time.perf_counter() - started

    with concurrent.futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="load") as threads:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for index in range(start, stop):
                waiting.append(threads.submit(load, index))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def scene_ends(source: FrameSource, index: int, stop: int) -> bool:
    """Whether frame `index` is the last of its scene among the frames before `stop`."""
    return index + 1 == stop or source.info(index + 1).scene_token != source.info(index).scene_token


def run_span(
    source: FrameSource, start: int, stop: int, sequence: Sequence, session: Session, collision_optim: bool
) -> Iterator[tuple[int, str, dict[str, np.ndarray], np.ndarray]]:
    """Run frames `start` to `stop` in order: index, sample token, record, and seconds (stages) of each.

    The engine works on a frame while the record of the last one is taken away; at the end of a scene it has none.
    """
    in_flight: collections.deque[tuple[int, Started, float]] = collections.deque()
    for index, frame, load_seconds in load_ahead(source, start, stop, session.image_buffer):
        in_flight.append((index, start_frame(frame, sequence, session), load_seconds))
        while len(in_flight) > (0 if scene_ends(source, index, stop) else 1):
            done, started, load = in_flight.popleft()
            record, seconds = finish_frame(started, session, collision_optim)
            yield done, started.frame.sample_token, record, np.array([load, *seconds, load + sum(seconds)])
