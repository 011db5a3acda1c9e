"""One frame from the source to its record, in two halves: the next frame can start while the engine runs this one."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from ranges import stage

from data.frames import Frame
from runtime import results
from runtime.collision import optimise_plan
from runtime.sequence import Sequence
from runtime.session import Session


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
