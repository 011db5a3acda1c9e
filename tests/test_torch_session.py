"""The torch session: frames in flight keep their own results and times."""

import collections
import time

import numpy as np
import pytest
import torch

from runtime.torch_session import TorchSession
from trtllm import Network
from trtllm.torch_executor import torch_executor


@pytest.fixture
def session() -> TorchSession:
    """A session whose network doubles its input and takes as many milliseconds as the input says."""
    session = TorchSession.__new__(TorchSession)
    session._device, session._network = torch.device("cpu"), Network(torch_executor("cpu"))
    session._state, session._done, session.latency = {}, collections.deque(), 0.0

    def network(inputs, state):
        time.sleep(float(inputs["x"].handle) / 1000)
        return {"y": inputs["x"] * 2.0}, state

    session._module = network
    return session


def test_each_frame_has_its_own_latency(session):
    for milliseconds in (80.0, 10.0):
        session.submit({"x": np.float32([milliseconds])})
    assert session.collect()["y"] == 160
    first = session.latency
    assert session.collect()["y"] == 20
    assert first >= 0.08 > session.latency, "the latency of the last frame handed in was given for both"


def test_infer_is_one_frame(session):
    assert session.infer({"x": np.float32([5.0])})["y"] == 10
    assert session.latency >= 0.005 and not session._done


def test_float32_on_cuda_is_float32(monkeypatch):
    """A baseline in TF32 would be one of eleven bits: torch takes it for convolutions unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch_executor("cpu")
    assert torch.backends.cudnn.allow_tf32
    torch_executor("cuda")
    assert not torch.backends.cudnn.allow_tf32
