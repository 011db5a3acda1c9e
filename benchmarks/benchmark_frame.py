"""The whole frame on this machine's GPU, TensorRT beside torch: one command, the same frames, one table.

    python benchmarks/benchmark_frame.py [-o results.json] [--trt-python PATH] [-i C_MODEL]
    python benchmarks/benchmark_frame.py --engine engine.plan [-o results.json]

The second form times an engine that is there, as its side file describes it, and builds nothing; numpy, cuda-bindings
and the engine's TensorRT are enough for it.

Rows: the TensorRT engine in each --dtypes; the torch executor in float32 without and with TF32, in float16
channels-last, and the same compiled by torch.compile. TensorRT runs in a process of its own, under --trt-python where
torch's Python has no TensorRT (numpy and cuda-bindings are enough there).

"whole" is a frame alone, from decoded images to its record: host geometry, upload, engine, results, collision
optimisation. For TensorRT the decoded images lie in the session's page-locked memory, where run.py's decoder puts
them before a frame's turn. "engine" is the device's part between events, for TensorRT with the copy of the results.
"in flight" is the time per frame when the next one is submitted before the last is collected. Frames are the demo
drive's, six in turn, in two scenes; weights are the recipe's unless a c-model is given. The torch rows get their
constants and weights ready on the device, and the compiled row a traced graph without any Python of ours: no row is
slowed by it.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "uniad"))

from checkout import git_commit  # noqa: E402
from graph_io import TASKS  # noqa: E402

from config import UniADConfig, load_config  # noqa: E402
from data.frames import Frame, move_images  # noqa: E402
from data.recipe import recipe_anchors, recipe_state  # noqa: E402
from errors import UniADError, one_line_errors  # noqa: E402
from runtime import cuda  # noqa: E402
from runtime.frame import finish_frame, start_frame  # noqa: E402
from runtime.plan_files import Sidecar  # noqa: E402
from runtime.profile import profile_of, table  # noqa: E402
from runtime.self_check import check_frames  # noqa: E402
from runtime.sequence import Sequence  # noqa: E402
from runtime.session import TENSORRT_KINDS, open_session  # noqa: E402
from weight import ANCHORS_KEY, COUNTER_SUFFIX, CModel, load_c_model  # noqa: E402

DISTINCT = 6  # frames painted; the run goes through them in turn
ROWS = ("tensorrt", "fp32", "tf32", "fp16", "compile")
COLUMNS = ("whole p50", "p90", "p99", "engine p50", "p90", "p99", "in flight", "MB", "build s")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--in-dir", type=pathlib.Path, help="c-model (default: the recipe's weights)")
    parser.add_argument("-o", "--out", type=pathlib.Path, metavar="FILE.json")
    parser.add_argument("--model", default="base_e2e", help="configuration for the recipe's weights")
    parser.add_argument("--frames", type=int, default=50, help="timed frames of each row (default: 50)")
    parser.add_argument("--warm-up", type=int, default=6)
    parser.add_argument("--dtypes", default="float16,float32", type=lambda text: text.split(","), help="of TensorRT")
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--trt-python", default=sys.executable, help="the Python that has TensorRT")
    parser.add_argument("--engine", type=pathlib.Path, metavar="PLAN", help="time this engine, and build none")
    parser.add_argument("--plans", type=pathlib.Path, metavar="FOLDER", help="keep engines here, and take those there")
    parser.add_argument("--builder-opt", type=int, choices=range(6))
    parser.add_argument("--plugins", default="auto", help="auto, off or names, as builder.py's (default: auto)")
    parser.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        help=f"which rows to run (default: all, {','.join(ROWS)}; with --engine tensorrt alone)",
    )
    parser.add_argument("--compile-mode", default="default", help="mode of torch.compile")
    parser.add_argument("--profile", type=pathlib.Path, metavar="FOLDER", help="write TensorRT's layer times here")
    parser.add_argument(
        "--only-tensorrt", action="store_true", help=argparse.SUPPRESS
    )  # the process under --trt-python
    args = parser.parse_args()
    args.rows = args.rows or (["tensorrt"] if args.engine else list(ROWS))
    return args


def read_model(args: argparse.Namespace) -> CModel:
    if args.in_dir is not None:
        return load_c_model(args.in_dir)
    config = load_config(args.model)
    tensors = {key: array for key, array in recipe_state(config) if not key.endswith(COUNTER_SUFFIX)}
    tensors[ANCHORS_KEY] = recipe_anchors(config)
    return CModel(config, "v2.0", {"checkpoint": "recipe", "checkpoint_sha256": "recipe"}, tensors)


def measure(session, frames, args: argparse.Namespace) -> dict:
    """Times of a session, milliseconds: percentiles 50, 90 and 99 of the whole frame and of the engine; medians of the
    host's parts: "preprocess", geometry; "copies", all of submit and collect but the engine, such as the upload;
    "record"; "optimise", the collision optimisation. Images go from where they lie in `frames`."""
    sequence = Sequence(session.config, session.convention)
    whole, engine, host = [], [], []
    for index in range(args.warm_up + args.frames):
        began = time.perf_counter()
        started = start_frame(frames[index % len(frames)], sequence, session)
        _, (preprocess, latency, postprocess, optimise) = finish_frame(started, session)
        if index >= args.warm_up:
            whole.append(1000 * (time.perf_counter() - began))
            engine.append(session.engine_ms)
            host.append([preprocess, latency - session.engine_ms / 1000, postprocess, optimise])
    started, sequence = None, Sequence(session.config, session.convention)
    began = time.perf_counter()
    for index in range(args.frames):
        following = start_frame(frames[index % len(frames)], sequence, session)
        if started is not None:
            finish_frame(started, session)
        started = following
    finish_frame(started, session)
    in_flight = 1000 * (time.perf_counter() - began) / args.frames
    percentiles = {
        name: np.percentile(times, (50, 90, 99)).round(3).tolist()
        for name, times in (("whole", whole), ("engine", engine))
    }
    parts = dict(zip(("preprocess", "copies", "record", "optimise"), (1000 * np.median(host, 0)).round(3).tolist()))
    return {**percentiles, "in_flight": round(in_flight, 3), "frames": args.frames, "host": parts}


# --- TensorRT --------------------------------------------------------------------------------------------------------


def built_plans(args: argparse.Namespace, c_model: CModel) -> Iterator[pathlib.Path]:
    """An engine of each of --dtypes, built where it is not there."""
    from runtime.tensorrt_plan import write_tensorrt_plan
    from trtllm.plugin_library import select_plugins
    from trtllm.tensorrt_builder import BuildOptions
    from trtllm.tensorrt_flavours import load_flavour

    flavour = load_flavour(args.backend)
    plugins = select_plugins(args.plugins, flavour)
    for dtype in args.dtypes:
        how = "plugins" if plugins else "native"
        path = args.plans / f"{c_model.config.name}_{args.backend}_{dtype}_{how}.plan"
        if not path.exists():
            target = [cuda.compute_capability()]
            options = BuildOptions(
                dtype, optimization_level=args.builder_opt, compute_capabilities=target, plugins=plugins
            )
            write_tensorrt_plan(c_model, c_model.config, flavour, options, path, TASKS, check=False)
        yield path


def tensorrt_row(args: argparse.Namespace, path: pathlib.Path, frames: list[Frame]) -> dict:
    """Time one engine; what it is its side file says."""
    session = open_session(path)
    frames = [move_images(frame, session.image_buffer()) for frame in frames]  # as run.py's decoder leaves them
    facts = session.describe()
    how = "plugins" if facts.get("plugins") else "native"
    name = f"{TENSORRT_KINDS[facts['kind']]} {facts['version']} {facts['dtype']} {how}"
    row = {"row": name, **measure(session, frames, args), "memory_mb": round(session.device_memory / 1e6)}
    row |= {"build_seconds": facts.get("build_seconds", 0), "layers": facts.get("num_layers")}
    row["plan_mb"] = round(path.stat().st_size / 1e6)
    print(row, file=sys.stderr, flush=True)
    if args.profile is not None:
        times, sequence = session.start_profile(), Sequence(session.config, session.convention)
        for frame in frames:
            session.infer(sequence.inputs(frame))
        profile = profile_of(times)
        args.profile.mkdir(parents=True, exist_ok=True)
        (args.profile / f"profile_{facts['dtype']}_{how}.json").write_text(json.dumps(profile, indent=1))
        print(f"{name}, layer by layer:\n{table(profile)}", file=sys.stderr, flush=True)
    return row


def run_tensorrt(args: argparse.Namespace) -> list[dict]:
    """The TensorRT rows, measured by another process."""
    with tempfile.TemporaryDirectory() as work:
        out, plans = pathlib.Path(work, "rows.json"), args.plans or pathlib.Path(work)
        options = ["--only-tensorrt", "-o", str(out), "--plans", str(plans), "--dtypes", ",".join(args.dtypes)]
        options += ["--model", args.model, "--frames", str(args.frames), "--warm-up", str(args.warm_up)]
        options += ["--backend", args.backend, "--plugins", args.plugins]
        for name in ("in_dir", "engine", "builder_opt", "profile"):
            value = getattr(args, name)
            options += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        done = subprocess.run([args.trt_python, __file__, *options])
        if done.returncode != 0:
            return [{"row": f"{args.backend}", "failed": f"exit status {done.returncode}"}]
        return json.loads(out.read_text())


# --- torch -----------------------------------------------------------------------------------------------------------


def torch_rows(args: argparse.Namespace, c_model: CModel, frames) -> list[dict]:
    import torch
    from torch_frame import TorchFrame  # beside this file

    variants = {
        "fp32": ("torch eager float32", "float32", False, False),
        "tf32": ("torch eager float32, TF32 on", "float32", True, False),
        "fp16": ("torch eager float16 channels-last", "float16", True, False),
        "compile": ("torch.compile float16 channels-last", "float16", True, True),
    }
    rows = []
    for name, (title, dtype, tf32, compiled) in variants.items():
        if name not in args.rows:
            continue
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        try:
            session = TorchFrame(c_model, dtype, args.compile_mode if compiled else None)
            session.infer(Sequence(session.config, session.convention).inputs(frames[0]))
            seconds = time.perf_counter() - began
            row = {"row": title, **measure(session, frames, args), "build_seconds": round(seconds, 1)}
            row["memory_mb"] = round(torch.cuda.max_memory_reserved() / 1e6)
        except Exception as error:  # one row that fails must not cost the others
            row = {"row": title, "failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        session = None
    return rows


# --- results ---------------------------------------------------------------------------------------------------------


def format_table(rows: list[dict]) -> str:
    lines = [f"{'milliseconds':<42}" + "".join(f"{name:>11}" for name in COLUMNS)]
    for row in rows:
        if "failed" in row:
            lines.append(f"{row['row']:<42} {row['failed']}")
            continue
        values = [*row["whole"], *row["engine"], row["in_flight"], row["memory_mb"], row["build_seconds"]]
        lines.append(f"{row['row']:<42}" + "".join(f"{value:11.4g}" for value in values))
    return "\n".join(lines)


def describe(config: UniADConfig, weights: str) -> dict:
    facts = {
        "gpu": cuda.device_name(),
        "compute_capability": cuda.compute_capability(),
        "commit": git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "config": dataclasses.asdict(config),
        "weights": weights,
    }
    if torch := sys.modules.get("torch"):  # where there are rows of it
        facts |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


def main() -> None:
    args = parse_args()
    if not cuda.device_count():
        raise UniADError("no GPU here: this benchmark times engines on one")
    if args.engine is not None:
        sidecar = Sidecar(args.engine)
        if sidecar.kind not in TENSORRT_KINDS:
            raise UniADError(f"{args.engine}: an engine of kind {sidecar.kind}; --engine takes one of TensorRT")
        config, weights = sidecar.config, sidecar.facts.get("checkpoint")
    rows: list[dict] = []
    if "tensorrt" in args.rows and not args.only_tensorrt:
        rows += run_tensorrt(args)  # before this process takes memory
    torch_too = bool(set(args.rows) - {"tensorrt"}) and not args.only_tensorrt
    if args.engine is None or torch_too:
        c_model = read_model(args)
        config, weights = c_model.config, c_model.source["checkpoint"]
    if args.only_tensorrt:
        frames = list(check_frames(config, DISTINCT))
        plans = built_plans(args, c_model) if args.engine is None else [args.engine]
        args.out.write_text(json.dumps([tensorrt_row(args, path, frames) for path in plans]))
        return
    if torch_too:
        rows += torch_rows(args, c_model, list(check_frames(config, DISTINCT)))
    facts = describe(config, weights)
    if args.out is not None:
        args.out.write_text(json.dumps({**facts, "unit": "ms", "rows": rows}, indent=1))
    print(f"{facts['gpu']}, {config.name}, {args.frames} frames, commit {facts['commit']}")
    print(format_table(rows))


if __name__ == "__main__":
    with one_line_errors():
        main()
