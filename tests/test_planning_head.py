"""Planning head against the recorded tiny frames."""

import functools

import numpy as np
import pytest
from network_support import const, tiny_weights, torch_network, value
from support import assert_close, assert_differs, golden, noise_floor

from config import load_config
from layers.planning_head import PlanningHead

FACTOR = 4  # the recorded inputs are exact, so only rounding inside the head is left


@functools.cache
def head() -> PlanningHead:
    module = PlanningHead(load_config("tiny_e2e"))
    module.load(tiny_weights("planning_head."))
    return module


def run(frame, bev_pos, command):
    with torch_network() as network:
        plan = head()(
            const(frame["bev.out"][0]),
            const(bev_pos),
            const(frame["motion.out.sdc_traj_query"][-1, 0]),
            const(frame["motion.out.sdc_track_query"]),
            const(np.array([command])),
        )
        return value(plan), {name: value(t) for name, t in network.taps.items()}


def recorded_bev_pos() -> np.ndarray:
    return golden("tiny", "frame_0.npz")["bev.bev_pos"][0].reshape(128, 1600).T


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_recorded_frames(index):
    frame, floor = golden("tiny", f"frame_{index}.npz"), noise_floor()
    plan, taps = run(frame, recorded_bev_pos(), int(frame["in.command"]))
    for key in ("plan.query_in", "plan.bev_feat", "plan.query_out"):
        assert_close(taps[key], frame[key][:, 0].reshape(taps[key].shape), FACTOR * floor[key], key)
    key = "plan.sdc_traj_before_optim"
    assert_close(plan, frame[key][0], FACTOR * floor[key], key)


def test_another_command_is_seen():
    frame = golden("tiny", "frame_1.npz")
    plan, _ = run(frame, recorded_bev_pos(), (int(frame["in.command"]) + 1) % 3)
    key = "plan.sdc_traj_before_optim"
    assert_differs(plan, frame[key][0], FACTOR * noise_floor()[key])
