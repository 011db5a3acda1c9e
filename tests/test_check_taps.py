"""tests/gpu/check_taps.py without a GPU: the torch executor takes the engine's place."""

import argparse
import sys
import types

import numpy as np
import pytest
import torch
from support import ROOT

sys.path.append(str(ROOT / "tests" / "gpu"))

import check_taps

from errors import UniADError
from trtllm import Network, Tensor, net_guard
from trtllm.torch_executor import torch_executor


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    path = tmp_path_factory.mktemp("taps") / "taps.npz"
    check_taps.write_references(path, frame=0)
    return path


def run(references, monkeypatch, prefix, change=lambda outputs: None):
    """How many taps and outputs are far, of an engine whose results `change` has been at."""

    def build_engine(define, inputs, flavour, options):
        return types.SimpleNamespace(plan=define)

    def execute(define, flavour, arrays):
        tensors = {name: Tensor(torch.from_numpy(a), str(a.dtype), a.shape) for name, a in arrays.items()}
        with torch.inference_mode(), net_guard(Network(torch_executor("cpu"), "float32")):
            outputs = {name: tensor.handle.numpy().copy() for name, tensor in define(tensors).items()}
        change(outputs)
        return outputs

    monkeypatch.setattr(check_taps, "build_engine", build_engine)
    monkeypatch.setattr(check_taps, "execute", execute)
    monkeypatch.setattr(check_taps, "load_flavour", lambda backend: types.SimpleNamespace(version="0"))
    monkeypatch.setattr(check_taps, "select_plugins", lambda text, flavour: ())
    monkeypatch.setattr(check_taps.cuda, "compute_capability", lambda: "9.0")
    monkeypatch.setattr(check_taps.cuda, "device_name", lambda: "none")
    arguments = {"backend": "tensorrt", "plugins": "off", "builder_opt": None, "bound": None, "dtype": "float32"}
    return check_taps.run(argparse.Namespace(references=references, prefix=prefix, **arguments))


def test_equal_results_pass_and_a_wrong_tap_is_named(references, monkeypatch, capsys):
    assert run(references, monkeypatch, ["motion"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("tap.motion.layer0.bev" in line for line in lines) and not any("tap.occ" in line for line in lines)

    def swap_rows(outputs):
        outputs["tap.motion.layer0.bev"] = np.roll(outputs["tap.motion.layer0.bev"], 1, axis=0)

    assert run(references, monkeypatch, ["motion"], swap_rows) == 1
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAR")] == [
        "tap.motion.layer0.bev"
    ]


def test_no_such_tap(references, monkeypatch):
    with pytest.raises(UniADError, match="no tap begins with nothing"):
        run(references, monkeypatch, ["nothing"])
