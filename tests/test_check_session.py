"""What tests/gpu/check_session.py judges, without a GPU: sessions that do as they should, and ones that do not."""

import itertools
import math
import pathlib
import sys

import numpy as np
import pytest
from support import ROOT

sys.path.append(str(ROOT / "tests" / "gpu"))

import check_session

from trtllm.plugin_library import OPERATIONS

PATH = pathlib.Path("engine.plan")


class Counter:
    """A session: the sum of all frames since it was reset. `fault` says what is wrong with it."""

    config = None

    def __init__(self, fault="", cuda_graph=True):
        self.fault, self.cuda_graph, self.resets = fault, cuda_graph, 0
        self.reset()

    def reset(self):
        self.total, self.waiting, self.resets = 0.0, [], self.resets + 1

    def submit(self, frame):
        self.total += frame["x"]
        late = self.fault == "in flight" and self.waiting
        graph = self.fault == "graph" and not self.cuda_graph
        drift = self.fault == "drift" and self.resets > 3
        self.waiting.append({"y": np.array([self.total + bool(late) + graph + drift])})

    def collect(self):
        return self.waiting.pop(0)

    def infer(self, frame):
        self.submit(frame)
        return self.collect()

    def carried_state(self):
        return {}


def failed(monkeypatch, run, fault, free=(1000, 1000)):
    """Names of the checks that `run(session, checks)` fails, and of all; `free` bytes before and after the frames."""
    amounts = iter(free)
    monkeypatch.setattr(check_session, "open_session", lambda path, cuda_graph=True: Counter(fault, cuda_graph))
    monkeypatch.setattr(check_session.cuda, "memory_info", lambda: (next(amounts), 2000))
    checks = check_session.Checks()
    run(Counter(fault), checks)
    return [row["check"] for row in checks.rows if not row["passed"]], [row["check"] for row in checks.rows]


def repeated(session, checks):
    frames = [{"x": 1.0}, {"x": 2.0}, {"x": 4.0}]
    check_session.check_repeated("tiny float32", PATH, session, frames, 2, checks)


def test_repetition(monkeypatch):
    names = ["tiny float32 two in flight", "tiny float32 without CUDA graph", "tiny float32 6 frames"]
    assert failed(monkeypatch, repeated, "") == ([], names)
    for fault, name in zip(("in flight", "graph", "drift"), names):
        assert failed(monkeypatch, repeated, fault)[0] == [name]
    assert failed(monkeypatch, repeated, "", free=(1000, 999))[0] == names[2:]


class Near:
    """In place of golden_frames.Comparison: the errors of the frames, one after the other."""

    errors = (0.0,)

    def __init__(self, config, exact):
        self.left = iter(self.errors)

    def frame(self, recorded, outputs, state):
        return {"prev_bev": next(self.left)}, []


def full(monkeypatch, errors, fault=""):
    monkeypatch.setattr(Near, "errors", errors)
    monkeypatch.setattr(check_session.golden, "Comparison", Near)
    monkeypatch.setattr(check_session.golden, "frames", lambda name, count: list(range(count)))
    monkeypatch.setattr(check_session.golden, "read_recording", lambda path: {})
    monkeypatch.setattr(check_session, "engine_inputs", lambda model, frames: [{"x": i + 1.0} for i in frames])
    model = type("Model", (), {"config": None})

    def run(session, checks):
        check_session.check_full(PATH, "float32", model, pathlib.Path("."), checks)

    return failed(monkeypatch, run, fault)


def test_full_size(monkeypatch):
    parts = ["two in flight", "without CUDA graph", "10 frames"]
    names = [f"full float32 {part}" for part in ("frame 0 prev_bev", "frame 1 prev_bev", *parts)]
    assert full(monkeypatch, (1e-6, 1e-6)) == ([], names)
    assert full(monkeypatch, (1e-6, 2e-3))[0] == names[1:2]
    assert full(monkeypatch, (math.nan, 1e-6))[0] == names[:1]
    assert full(monkeypatch, (1e-6, 1e-6), "graph")[0] == names[3:4]


@pytest.mark.parametrize("errors", [(math.nan, 0.1), (0.1, math.nan)])
def test_an_error_that_is_nan_stays_the_worst(monkeypatch, errors):
    monkeypatch.setattr(Near, "errors", errors)
    monkeypatch.setattr(check_session.golden, "Comparison", Near)
    worst, _ = check_session.worst_errors(Counter(), [{"x": 1.0}] * 2, [{}] * 2, exact=False)
    assert math.isnan(worst["prev_bev"])


def test_names_of_plans():
    choices = [(), OPERATIONS, *itertools.combinations(OPERATIONS, 1), *itertools.combinations(OPERATIONS, 3)]
    names = [check_session.plan_name("full", "float16", choice) for choice in choices]
    assert names[:2] == ["full_float16_plugins_off.plan", "full_float16_plugins_auto.plan"]
    assert len(set(names)) == len(choices) and max(map(len, names)) < 40
