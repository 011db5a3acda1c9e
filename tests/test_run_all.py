"""tests/gpu/run_all.py without a GPU: which steps there are, in which order they run, and what a failure does."""

import subprocess
import sys

import pytest
from support import ROOT

sys.path.append(str(ROOT / "tests" / "gpu"))

from run_all import Runner, Step, all_steps, visible_gpus

SCRIPT = ROOT / "tests" / "gpu" / "run_all.py"


def run(steps, out, gpus=("0", "1")):
    runner = Runner(steps, list(gpus), out, {"PATH": "/usr/bin:/bin", "OUT": str(out)})
    return runner.run(), runner.states


def said(state: str) -> str:
    return state.split(",")[0]


def test_needs_and_timed_steps(tmp_path):
    """Needs come first, in whatever order the steps stand; what is timed runs when nothing else does."""
    mark = 'echo "$0 begins" >> $OUT/order; sleep 0.2; echo "$0 ends" >> $OUT/order'
    steps = [
        Step("timed", (mark.replace("$0", "timed"),), alone=True),
        Step("late", (mark.replace("$0", "late"),), ("early",)),
        Step("early", ("echo $CUDA_VISIBLE_DEVICES > $OUT/gpu", mark.replace("$0", "early"))),
        Step("other", (mark.replace("$0", "other"),)),
    ]
    good, states = run(steps, tmp_path)
    assert good and {name: said(state) for name, state in states.items()} == dict.fromkeys(states, "ok")
    order = (tmp_path / "order").read_text().splitlines()
    assert order.index("early ends") < order.index("late begins")
    assert order[-2:] == ["timed begins", "timed ends"]
    assert (tmp_path / "gpu").read_text().strip() in "01"
    assert len((tmp_path / "status.txt").read_text().splitlines()) == len(steps)


def test_failures(tmp_path):
    """A step ends at its first failing command; what needs it is not run, and says so; the others run."""
    steps = [
        Step("broken", ("echo before", "exit 3", "echo behind")),
        Step("needing", ("echo never",), ("broken",)),
        Step("timed", ("true",), ("needing",), alone=True),
        Step("other", ("[ $CUDA_VISIBLE_DEVICES = 5 ]",)),
    ]
    good, states = run(steps, tmp_path, gpus="5")
    assert not good
    assert {name: said(state) for name, state in states.items()} == {
        "broken": "failed", "needing": "not run", "timed": "not run", "other": "ok",
    }  # fmt: skip
    log = (tmp_path / "broken.log").read_text()
    assert log.endswith("\nexit 3\n") and "before\n" in log and "+ echo behind" not in log


def test_cut_off_and_called_again(tmp_path):
    """Steps that succeeded are not done again; those cut off or failed are."""
    steps = [Step(name, (f"echo {name} >> $OUT/done",)) for name in ("first", "second", "third")]
    (tmp_path / "first.log").write_text("+ true\n\nexit 0\n")
    (tmp_path / "second.log").write_text("+ true\n")
    (tmp_path / "third.log").write_text("+ true\n\nexit 1\n")
    good, states = run(steps, tmp_path, gpus="012")
    assert good and states["first"] == "ok, done before"
    assert sorted((tmp_path / "done").read_text().split()) == ["second", "third"]


def test_visible_gpus():
    assert visible_gpus(None, 3) == ["0", "1", "2"] and visible_gpus(None, 0) == []
    assert visible_gpus("3,1", 2) == ["3", "1"] and visible_gpus("3,1", 1) == ["3"] and visible_gpus("", 0) == []


def test_steps():
    """Every need is a step, every script is there, and both kinds of engine have their goldens."""
    steps = {step.name: step for step in all_steps("PY", "TRT", "INCLUDE", "RECORDINGS", "OUT")}
    assert all(need in steps for step in steps.values() for need in step.needs)
    for size in ("tiny", "full"):
        for choice in ("off", "auto"):
            assert f"{size}_{choice}_float16" in steps and f"{size}_{choice}_float32" in steps
    words = " ".join(command for step in steps.values() for command in step.commands).split()
    scripts = {
        word for word in words if word.startswith(("tests/", "benchmarks/", "examples/")) and word.endswith(".py")
    }
    assert len(scripts) > 8 and all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize(("options", "message"), [(["--only", "nothing"], "no step nothing"), ([], "no GPU here")])
def test_refusals(tmp_path, options, message):
    required = ["--trt-python", "python3", "--tensorrt-include", ".", "--recordings", ".", "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, SCRIPT, *required, *options], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and not (tmp_path / "out").exists()
