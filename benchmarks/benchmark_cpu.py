"""The whole frame by the torch executor on this machine's CPU: times, a table by module, the memory it needs.

    python benchmarks/benchmark_cpu.py [--model base_e2e | tiny_e2e | -i C_MODEL] [-f FRAMES] [-o results.json]

"whole" is a frame from decoded images to its record: host geometry, network, results, collision optimisation. "cpu" is
the processor time of all threads, which says more than the clock on a machine that does other things too. The table
folds the time of the network by module; a module's own time is without the modules that it calls and that are shown.
Frames are the demo drive's unless -f names a frame folder or a nuScenes root; weights are the recipe's unless a
c-model is given.
"""

import argparse
import collections
import json
import os
import pathlib
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Mapping

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "uniad"))

from benchmark_frame import read_model  # noqa: E402
from checkout import git_commit  # noqa: E402
from graph_io import TASKS, state_specs  # noqa: E402

from config import UniADConfig  # noqa: E402
from data.frames import Frame, open_source  # noqa: E402
from errors import UniADError, one_line_errors  # noqa: E402
from files import whole_file  # noqa: E402
from model import load_model  # noqa: E402
from runtime.frame import finish_frame, start_frame  # noqa: E402
from runtime.profile import profile_of, table  # noqa: E402
from runtime.self_check import check_frames  # noqa: E402
from runtime.sequence import Sequence  # noqa: E402
from trtllm import Network, Tensor, net_guard  # noqa: E402
from trtllm.torch_executor import TorchCPUExecutor  # noqa: E402
from weight import CModel  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--in-dir", type=pathlib.Path, help="c-model (default: the recipe's weights)")
    parser.add_argument("--model", default="base_e2e", help="configuration for the recipe's weights")
    parser.add_argument("-f", "--frames-from", type=pathlib.Path, metavar="DATA", help="frame folder or nuScenes root")
    parser.add_argument("--no-can-bus", action="store_true", help="for a nuScenes root without CAN bus files")
    parser.add_argument("-n", "--frames", type=int, default=3, help="timed frames (default: 3)")
    parser.add_argument("--warm-up", type=int, default=1, help="frames before them (default: 1)")
    parser.add_argument("--threads", type=int, help="of torch (default: one per core)")
    parser.add_argument("--depth", type=int, default=2, help="module names per row of the table (default: 2)")
    parser.add_argument("-o", "--out", type=pathlib.Path, metavar="FILE.json")
    return parser.parse_args()


class TimedExecutor(TorchCPUExecutor):
    """Adds up, for each module path of a frame, the seconds spent in the module and not in one that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: collections.Counter[str] = collections.Counter()
        self._since = 0.0

    def _account(self, scope: list[str]) -> None:
        """The time since the last call is that of the module of `scope`."""
        now = time.perf_counter()
        self.seconds["/".join([*scope[1:], "self"])] += now - self._since
        self._since = now

    def enter(self, scope: list[str]) -> None:
        if len(scope) == 1:
            self._since = time.perf_counter()
        else:
            self._account(scope[:-1])

    def leave(self, scope: list[str]) -> None:
        self._account(scope)


class TimedSession:
    """A session (runtime.session.Session, as far as a frame needs) that keeps the times of its modules."""

    def __init__(self, c_model: CModel):
        self.config, self.convention = c_model.config, c_model.convention
        self._model = load_model(c_model, c_model.config, TASKS)
        self.executor = TimedExecutor()
        self._network = Network(self.executor, "float32")
        self._state = {
            spec.name: self._tensor(np.zeros(spec.shape, spec.dtype)) for spec in state_specs(self.config, "float32")
        }
        self._outputs: dict[str, np.ndarray] = {}
        self.latency = 0.0

    @staticmethod
    def _tensor(array: np.ndarray) -> Tensor:
        return Tensor(torch.from_numpy(np.ascontiguousarray(array)), str(array.dtype), array.shape)

    def submit(self, inputs: Mapping[str, np.ndarray]) -> None:
        began = time.perf_counter()
        self.executor.seconds.clear()
        tensors = {name: self._tensor(array) for name, array in inputs.items()}
        with torch.inference_mode(), net_guard(self._network):
            outputs, self._state = self._model(tensors, self._state)
        self._outputs = {name: tensor.handle.numpy() for name, tensor in outputs.items()}
        self.latency = time.perf_counter() - began

    def collect(self) -> dict[str, np.ndarray]:
        return self._outputs


def read_frames(args: argparse.Namespace, config: UniADConfig) -> list[Frame]:
    count = args.warm_up + args.frames
    if args.frames_from is None:
        return list(check_frames(config, count))
    source = open_source(args.frames_from, config, can_bus=not args.no_can_bus)
    if len(source) < count:
        raise UniADError(f"{args.frames_from} has {len(source)} frames, not {count}: lower --frames or --warm-up")
    return [source.load(index) for index in range(count)]


def measure(session: TimedSession, frames: list[Frame], warm_up: int) -> dict:
    """Seconds of each timed frame, and the profile by module."""
    sequence = Sequence(session.config, session.convention)
    rows, times = [], collections.defaultdict(list)
    for index, frame in enumerate(frames):
        wall, cpu = time.perf_counter(), time.process_time()
        finish_frame(start_frame(frame, sequence, session), session)
        row = {"whole": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "network": session.latency}
        print(f"frame {index}: " + ", ".join(f"{name} {value:.2f} s" for name, value in row.items()), file=sys.stderr)
        if index >= warm_up:
            rows.append({name: round(value, 4) for name, value in row.items()})
            for path, seconds in session.executor.seconds.items():
                times[path].append(1000 * seconds)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"seconds": {"median": medians, "frames": rows}, "times": times}


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    args = parse_args()
    if args.frames < 1 or args.warm_up < 0 or (args.threads is not None and args.threads < 1):
        raise UniADError("--frames and --threads must be at least 1, --warm-up at least 0")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    c_model = read_model(args)
    frames = read_frames(args, c_model.config)
    measured = measure(TimedSession(c_model), frames, args.warm_up)
    profile = profile_of(measured.pop("times"), args.depth)
    facts = {
        "device": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "model": c_model.config.name,
        "max_tracks": c_model.config.max_tracks,
        "weights": c_model.source["checkpoint"],
        "frames": str(args.frames_from) if args.frames_from else "demo drive",
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "commit": git_commit(),
        "command": shlex.join(sys.argv),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    median = measured["seconds"]["median"]
    print(f"{facts['device']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']}")
    print(table(profile))
    print(
        f"{facts['model']}: {median['whole']:.2f} s a frame ({median['cpu']:.2f} s of processor time), "
        f"peak memory {facts['peak_gb']:.2f} GB, commit {facts['commit']}"
    )
    if args.out is not None:
        with whole_file(args.out) as path:
            path.write_text(json.dumps({**facts, **measured, "profile": profile}, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
