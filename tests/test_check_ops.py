"""The judgement and the table of gpu/check_ops.py, on results that plain torch and the torch executor give."""

import json
import math
import subprocess
import sys

import numpy as np
import op_engines
import pytest
import torch
from gpu import check_ops
from op_cases import CASES, FEW
from support import ROOT

from errors import UniADError
from runtime import cuda
from trtllm import Network, net_guard, sampled_attention
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
    for spoilt in ({"error": math.nan, "allowed": 1.0}, {"error": 0.0, "allowed": math.nan}):
        capsys.readouterr()
        row = {"case": "div by zero", "dtype": dtype, "share": math.nan, **spoilt}
        assert check_ops.print_table([*rows["run"], row]) == 1
        shown = capsys.readouterr().out
        assert f"{dtype}: 5 of 6 cases" in shown and shown.count("FAILED") == 1 and "div by zero" in shown


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 0.0), ("float16", 0.0), ("float16", 2.0**-11)])
def test_what_is_not_finite_passes_only_where_the_reference_is_the_same(references, dtype, rounding):
    wanted = check_ops.read_references(references)

    def shares(change):
        """Of every case whose results are the references in float32, after a change."""
        indices = [i for i, case in enumerate(CASES) if dtype in case.dtypes]
        outputs = {name: change(a.astype(np.float32)) for name, a in wanted.items() if ".out" in name}
        return {CASES[i].name: check_ops.judge(i, dtype, outputs, wanted, rounding)["share"] for i in indices}

    def first_is(value):
        return lambda array: np.concatenate([[np.float32(value)], array.ravel()[1:]]).reshape(array.shape)

    assert set(shares(lambda array: array).values()) == {0.0}
    for spoilt in (math.nan, -math.inf, math.inf):
        assert set(shares(first_is(spoilt)).values()) == {math.inf}
    turned = shares(lambda array: np.where(np.isinf(array), -array, array))
    assert turned.pop("div by zero") == math.inf and set(turned.values()) == {0.0}
    assert 1 < shares(lambda array: array + np.float32(0.1))["div by zero"] < math.inf  # its finite values are judged


def test_locations_stored_as_float16(references, monkeypatch):
    """What TensorRT 8.6 does with deformable attention's locations: the case allows for it, in float16 alone."""
    (index,) = [i for i, case in enumerate(CASES) if case.name == "deformable_attention levels on one"]
    wanted, exact = check_ops.read_references(references), sampled_attention.sampling_points
    inputs = op_engines.input_arrays([index], "float16")

    def error():
        with torch.inference_mode(), net_guard(Network(TorchExecutor(), "float16")):
            results = op_engines.define([index])({name: F.constant(a) for name, a in inputs.items()})
            outputs = {name: tensor.handle.numpy() for name, tensor in results.items()}
        return check_ops.judge(index, "float16", outputs, wanted)

    def stored(*arguments):
        locations, weights = exact(*arguments)
        return F.cast(F.cast(locations, "float16"), "float32"), weights

    assert error()["error"] < 2e-4
    monkeypatch.setattr(sampled_attention, "sampling_points", stored)
    assert error()["error"] > 5e-4 and error()["share"] < 1
    assert CASES[index].tolerance[0] == FEW[0]


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
