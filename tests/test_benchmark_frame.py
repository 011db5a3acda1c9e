"""benchmarks/benchmark_frame.py with an engine that is there, on a GPU in host memory."""

import json
import subprocess
import sys

import pytest
import test_tensorrt_session
from support import ROOT, SCRIPTS

plan = test_tensorrt_session.plan
SCRIPT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "scipy", "cv2", "rich", "tqdm", "onnx", "nuscenes"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import fake_gpu, test_tensorrt_session as t
runtime = fake_gpu.FakeRuntime()
fake_gpu.install(runtime, fake_gpu.FakeTensorRT(fake_gpu.FakeEngine(runtime, t.tensors(), t.compute)))
import benchmark_frame as b
from errors import one_line_errors
with one_line_errors():
    b.main()
uploads = [nbytes for kind, nbytes in runtime.copies if kind == 1]
print("uploads", len(uploads), uploads.count(6 * 8 * 16 * 3))
"""


def run(*arguments):
    environment = {"PYTHONPATH": f"{SCRIPTS}:{ROOT / 'tests'}:{ROOT / 'benchmarks'}", "PATH": ""}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_times_an_engine_that_is_there(plan, tmp_path):
    """With numpy alone. The process under --trt-python does this; images go straight from their memory."""
    out = tmp_path / "rows.json"
    done = run("--engine", plan, "--only-tensorrt", "-o", out, "--frames", 3, "--warm-up", 1)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())
    assert row["row"] == "tensorrt 8.6.0 float16 native"
    assert row["engine"] == [1.5, 1.5, 1.5] and row["frames"] == 3
    assert set(row["host"]) == {"preprocess", "copies", "record", "optimise"}
    assert done.stdout.split() == ["uploads", "14", "7"]  # of seven frames: all images at once, all the rest


def test_an_engine_of_torch_is_refused(plan):
    test_tensorrt_session.change(plan, kind="uniad-torch")
    done = run("--engine", plan)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {plan}: an engine of kind uniad-torch; --engine takes one of TensorRT"
    plan.with_name(plan.name + ".json").unlink()
    done = run("--engine", plan)
    assert done.stderr.strip().endswith("copy both files") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--rows", "tensorrt"]])
def test_table(plan, more):
    """The whole command; its second process finds no GPU here, which is a row that failed."""
    done = run("--engine", plan, *more)
    assert done.returncode == 0, done.stderr
    assert "Fake A10, tiny_e2e, 50 frames" in done.stdout and "tensorrt" in done.stdout
    assert "exit status 2" in done.stdout
