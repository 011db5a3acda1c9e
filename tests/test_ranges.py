"""Ranges for Nsight Systems: nested by module path, closed where a module fails, absent without the package."""

import importlib
import sys
import types

import pytest
import ranges

from trtllm import Module, Network, net_guard
from trtllm import torch_executor as executors


class Part(Module):
    def forward(self, fails):
        if fails:
            raise ValueError("no")


class Whole(Module):
    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, fails):
        self.part(fails)


@pytest.mark.parametrize("fails", [False, True])
def test_modules_are_ranges(monkeypatch, fails):
    log = []
    monkeypatch.setattr(executors, "push_range", log.append)
    monkeypatch.setattr(executors, "pop_range", lambda: log.append("end"))
    with net_guard(Network(executors.TorchExecutor("cpu"))):
        if fails:
            with pytest.raises(ValueError, match="no"):
                Whole()(True)
        else:
            Whole()(False)
    assert log == ["Whole", "Whole/part", "end", "end"]


def test_with_and_without_nvtx(monkeypatch):
    log = []
    fake = types.SimpleNamespace(push_range=log.append, pop_range=lambda: log.append("end"))
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    with pytest.raises(ValueError, match="no"), importlib.reload(ranges).stage("preprocess"):
        raise ValueError("no")
    assert log == ["preprocess", "end"]
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with importlib.reload(ranges).stage("preprocess"):
        pass
    assert log == ["preprocess", "end"]
