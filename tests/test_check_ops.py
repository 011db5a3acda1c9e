"""The judgement and the table of gpu/check_ops.py, on results that plain torch and the torch executor give."""

import json
import subprocess
import sys

import numpy as np
import op_engines
import pytest
import torch
from gpu import check_ops
from op_cases import CASES
from support import ROOT

from errors import UniADError
from runtime import cuda
from trtllm import Network, net_guard
from trtllm import functional as F
from trtllm.torch_executor import TorchExecutor

INDICES = [i for i, c in enumerate(CASES) if c.name in ("add", "eq float", "topk", "grid_sample", "softmax")]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    path = tmp_path_factory.mktemp("ops") / "refs.npz"
    check_ops.write_references(path)
    return path


def outputs_of(choose, dtype):
    inputs = op_engines.input_arrays(INDICES, dtype)
    with torch.inference_mode(), net_guard(Network(TorchExecutor(), dtype)):
        results = op_engines.define(INDICES, choose)({name: F.constant(a) for name, a in inputs.items()})
        return {name: tensor.handle.numpy() for name, tensor in results.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_judgement(references, dtype, capsys):
    wanted = check_ops.read_references(references)
    rows = {}
    for kind in ("run", "broken"):
        outputs = outputs_of(lambda case, kind=kind: getattr(case, kind), dtype)
        judged = [check_ops.judge(i, dtype, outputs, wanted) for i in INDICES]
        rows[kind] = [{"case": CASES[i].name, "dtype": dtype, **row} for i, row in zip(INDICES, judged)]
    assert check_ops.print_table(rows["run"]) == 0
    assert f"{dtype}: 5 of 5 cases" in capsys.readouterr().out
    assert check_ops.print_table(rows["broken"]) == 1
    shown = capsys.readouterr().out
    assert f"{dtype}: 0 of 5 cases" in shown and shown.count("FAILED") == 5
    crashed = [{"case": "add", "dtype": dtype, "failure": "no end within 300 s", "share": float("inf")}]
    assert check_ops.print_table(crashed) == 1 and "no end within" in capsys.readouterr().out
    assert check_ops.print_table([]) == 1, "no rows are no success"


def test_references_of_other_cases_are_refused(references, tmp_path):
    arrays = check_ops.read_references(references)
    arrays["3.in0"] = arrays["3.in0"] + 1
    other = tmp_path / "other.npz"
    np.savez(other, **arrays)
    with pytest.raises(UniADError, match=r"other cases \(cast to int32\)"):
        check_ops.read_references(other)


def test_groups_hold_every_case():
    for dtype in ("float32", "float16"):
        seen = [i for group in op_engines.groups(dtype, 7) for i in group]
        assert seen == [i for i, case in enumerate(CASES) if dtype in case.dtypes]


def test_a_failing_group_is_tried_case_by_case(references, tmp_path, monkeypatch):
    """One case ends the process, the others of its engine still get their rows."""

    def in_child(dtype, indices, args, work):
        if 2 in indices:
            return "the process ended with -11"
        return [{"error": 0.0, "allowed": 1.0, "share": 0.0} for _ in indices]

    monkeypatch.setattr(check_ops, "run_in_child", in_child)
    monkeypatch.setattr(check_ops, "load_flavour", lambda backend: None)
    monkeypatch.setattr(cuda, "compute_capability", lambda: "8.6")
    output = tmp_path / "rows.json"
    args = check_ops.parse(["run", "-r", str(references), "-o", str(output), "--group-size", "16"])
    assert check_ops.run(args) == 1
    rows = json.loads(output.read_text())
    assert len(rows) == sum(len(case.dtypes) for case in CASES)
    assert [row["case"] for row in rows if "failure" in row] == [CASES[2].name] * len(CASES[2].dtypes)


def test_without_a_gpu_it_says_so_in_one_line(references, tmp_path):
    if cuda.device_count():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "tests/gpu/check_ops.py"), "run", "-r", str(references)]
    command += ["-o", str(tmp_path / "rows.json"), "--backend", "tensorrt-rtx"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
