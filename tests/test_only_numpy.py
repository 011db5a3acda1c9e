"""Engines and GPU checks need numpy, cuda-bindings and a TensorRT: here every other package is blocked."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import test_tensorrt_session
from support import ROOT, SCRIPTS

from runtime.plan_files import write_plan

PROJECT = [ROOT / "tests", ROOT / "tests" / "gpu", ROOT / "benchmarks"]
RUNTIME = [path.stem for path in sorted((SCRIPTS / "runtime").glob("*.py")) if not path.stem.startswith("torch_")]
MODULES = [*(f"runtime.{name}" for name in RUNTIME if name != "__init__"), "builder"]
CHECKS = ["check_ops", "check_taps", "check_session", "golden_frames", "benchmark_frame"]

# Runs in a process of its own: {"folders", "modules", "plan"} as JSON. pytest comes first: the fake engine is a test's.
SCRIPT = '''
import importlib, importlib.machinery, json, pathlib, sys
import pytest

class Blocker:
    """What is installed beside Python's own library fails as if it were missing."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        spec = importlib.machinery.PathFinder.find_spec(top)
        places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
        if top not in ("numpy", "cuda", "tensorrt") and any("site-packages" in place for place in places):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

given = json.loads(sys.argv[1])
sys.path[:0] = given["folders"]
sys.meta_path.insert(0, Blocker())
for name in given["modules"]:
    importlib.import_module(name)

import golden_frames as golden
from fake_gpu import FakeEngine, FakeRuntime, FakeTensorRT, install
from model import load_model
from runtime.self_check import check_inputs
from runtime.session import open_session
import test_tensorrt_session as t

c_model = golden.recipe_c_model(golden.TINY)
load_model(c_model, c_model.config)
golden.frames(golden.TINY, 1), check_inputs(c_model.config, "v2.0")
runtime = FakeRuntime()
install(runtime, FakeTensorRT(FakeEngine(runtime, t.tensors(), t.compute)))
frames = t.make_frames(1)
t.assert_equal(open_session(pathlib.Path(given["plan"])).infer(frames[0]), t.reference(frames)[0])
try:
    import tqdm
except ModuleNotFoundError:
    print("ran, and tqdm is missing")
'''


def start(scripts: pathlib.Path, folder: pathlib.Path) -> subprocess.CompletedProcess:
    """The script above, with examples/uniad in the place `scripts`."""
    plan = folder / "engine.plan"
    write_plan(plan, lambda target: target.write_bytes(test_tensorrt_session.PLAN), test_tensorrt_session.FACTS)
    given = {"folders": [str(p) for p in (scripts, *PROJECT)], "modules": MODULES + CHECKS, "plan": str(plan)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PATH": ""})


def test_nothing_else_is_imported(tmp_path):
    done = start(SCRIPTS, tmp_path)
    assert (done.stdout, done.returncode) == ("ran, and tqdm is missing\n", 0), done.stderr


@pytest.mark.parametrize("name", ["data/recipe.py", "runtime/scale_out.py", "trtllm/tensorrt_plugins.py"])
def test_one_import_too_many_is_seen(name, tmp_path):
    copy = tmp_path / "uniad"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / name
    text = path.read_text()
    assert "\nimport numpy as np\n" in text
    path.write_text(text.replace("\nimport numpy as np\n", "\nimport numpy as np\nimport tqdm\n", 1))
    done = start(copy, tmp_path)
    assert done.returncode == 1 and done.stderr.endswith("No module named 'tqdm'\n"), done.stderr
    assert str(path) in done.stderr
