"""TensorRT for RTX engines of the full-size model: they build without a GPU, by builder.py in a process of its own."""

import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
from graph_io import describe_graph
from support import SCRIPTS

from config import load_config
from data.recipe import recipe_anchors, recipe_state
from files import sha256_of
from runtime.plan_files import Sidecar
from trtllm.tensorrt_flavours import Flavour
from weight import ANCHORS_KEY, COUNTER_SUFFIX, write_config, write_tensor

pytestmark = pytest.mark.full

CONFIG = load_config("base_e2e")
SOURCE = {"checkpoint": "recipe", "checkpoint_sha256": "ab" * 32}
# Processor time: a build on free cores takes no longer by the clock, and other programs don't enlarge it.
SECONDS, PEAK_GB = 300, 16
PLAN_MB = {"float16": (250, 500), "float32": (450, 900)}  # measured 350 and 571


class Finished(NamedTuple):
    output: str
    seconds: float
    processor_seconds: float
    peak_gb: float


def run_measured(command: list[str | pathlib.Path], log: pathlib.Path) -> Finished:
    """Run a command to its end; its own time and memory, not those of the tests before it."""
    began = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    assert process.returncode == 0, log.read_text()
    seconds = time.perf_counter() - began
    return Finished(log.read_text(), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9)


@pytest.fixture(scope="module")
def c_model(tmp_path_factory) -> pathlib.Path:
    """The recipe's weights as a c-model on disk."""
    folder = tmp_path_factory.mktemp("c-model")
    tensors = {key: array for key, array in recipe_state(CONFIG) if not key.endswith(COUNTER_SUFFIX)}
    tensors[ANCHORS_KEY] = recipe_anchors(CONFIG)
    entries = {key: write_tensor(folder, key, array) for key, array in tensors.items()}
    write_config(folder, CONFIG, "v2.0", "float32", SOURCE, entries)
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_engine(dtype: str, c_model: pathlib.Path, rtx: Flavour, tmp_path: pathlib.Path):
    plan = tmp_path / "engine.plan"
    command = [sys.executable, SCRIPTS / "builder.py", "-i", c_model, "-o", plan, "-quant=False", "--sm", "8.6"]
    built = run_measured([*command, "--backend", "tensorrt-rtx", "--dtype", dtype], tmp_path / "log")
    megabytes = plan.stat().st_size / 1e6
    print(
        f"{dtype}: {built.seconds:.0f} s, {built.processor_seconds:.0f} s of processor time, peak memory "
        f"{built.peak_gb:.1f} GB, plan {megabytes:.0f} MB"
    )
    assert "check: not run (" in built.output and f"{rtx.backend} {rtx.version} engine for compute" in built.output
    assert built.processor_seconds < SECONDS
    assert megabytes / 1000 < built.peak_gb < PEAK_GB
    assert PLAN_MB[dtype][0] < megabytes < PLAN_MB[dtype][1]

    sidecar, graph = Sidecar(plan), describe_graph(CONFIG, dtype)
    facts = sidecar.facts
    assert (sidecar.kind, sidecar.dtype, sidecar.convention) == ("uniad-tensorrt-rtx", dtype, "v2.0")
    assert sidecar.config == CONFIG and sidecar.sha256 == sha256_of(plan)
    assert (facts["targets"], facts["gpu"], facts["version"]) == (["8.6"], "", rtx.version)
    assert facts["checkpoint_sha256"] == SOURCE["checkpoint_sha256"]
    assert facts["num_layers"] > 5000 and 0 < facts["build_seconds"] < built.seconds
    assert facts["plan_bytes"] == plan.stat().st_size
    for table in ("inputs", "outputs", "state"):
        assert [(row["name"], row["dtype"], row["shape"]) for row in facts[table]] == [
            (row["name"], row["dtype"], list(row["shape"])) for row in graph[table]
        ]
