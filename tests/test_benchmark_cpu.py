"""The CPU benchmark: its times by module add up, and it runs from the command line."""

import json
import subprocess
import sys

from support import ROOT

from trtllm import Module, Network, net_guard

SCRIPT = ROOT / "benchmarks" / "benchmark_cpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


class Works(Module):
    """Lets `seconds` pass on the clock (a list of one number) before and after its inner module."""

    def __init__(self, clock: list[float], seconds: float, inner: Module | None = None):
        super().__init__()
        self.clock, self.seconds, self.inner = clock, seconds, inner

    def forward(self) -> None:
        self.clock[0] += self.seconds
        if self.inner is not None:
            self.inner()
        self.clock[0] += self.seconds


def test_a_modules_time_is_without_its_inner_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import benchmark_cpu

    clock = [100.0]
    monkeypatch.setattr(benchmark_cpu.time, "perf_counter", lambda: clock[0])
    executor = benchmark_cpu.TimedExecutor()
    with net_guard(Network(executor, "float32")):
        Works(clock, 1.0, Works(clock, 2.0, Works(clock, 4.0)))()
    assert executor.seconds == {"self": 2.0, "inner/self": 4.0, "inner/inner/self": 8.0}


def test_one_frame(tmp_path):
    out = tmp_path / "cpu.json"
    done = run("--model", "tiny_e2e", "-n", "1", "--warm-up", "0", "--threads", "1", "-o", str(out))
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert (facts["model"], facts["threads"], len(facts["seconds"]["frames"])) == ("tiny_e2e", 1, 1)
    assert facts["peak_gb"] > 0.1 and facts["torch"] and facts["device"]
    network = 1000 * facts["seconds"]["median"]["network"]
    assert 0.8 * network <= facts["profile"]["total"] <= network
    assert "img_backbone/layer3" in done.stdout and "peak memory" in done.stdout


def test_bad_arguments_get_one_line(tmp_path):
    for arguments in (["--frames", "0"], ["--model", "tiny_e2e", "-f", str(tmp_path / "none")]):
        done = run(*arguments)
        assert done.returncode != 0
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
