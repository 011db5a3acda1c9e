"""The engine session on a GPU against the recorded sequences.

    python tests/gpu/check_session.py [--sizes tiny,full --recordings FOLDER] [--plans FOLDER] [--out FILE.json]

Builds engines of the recipe models with the TensorRT that this Python has (numpy and cuda-bindings are all it needs
besides) and checks, for FP32 and FP16, with the state kept on the device:

- the tiny sequence of eight frames: every output within its bound, track ids and life cycle equal;
- the same frames with two in flight, and without the CUDA graph: equal to the last bit;
- 40 frames: the same results each time round, no device memory lost;
- a session that loses its state must fail the first check.

The size "full" takes two frames at full size; FOLDER holds their recordings. What the random weights make chaotic
there is shown, not judged (the recordings' README: "How far the full-size goldens carry"). The second and third check
take these two in turn, ten frames.
Exit status 1 where anything failed.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import sys
import tempfile
import time

import golden_frames as golden
import numpy as np
from checkout import git_commit

from errors import one_line_errors
from runtime import cuda
from runtime.sequence import Sequence
from runtime.session import Session, open_session
from runtime.tensorrt_plan import write_tensorrt_plan
from trtllm.plugin_library import OPERATIONS, select_plugins
from trtllm.tensorrt_builder import BuildOptions
from trtllm.tensorrt_flavours import load_flavour

# FP32: largest error relative to the largest value; of maps, the share of cells that differ.
FP32_BOUND = 1e-3
# FP16: norms (golden_frames.Comparison). What float16 costs the torch executor on the CPU, worst of the eight frames
# and of 30 ways to round the same weights (float16_noise.py); an engine is one more such way, hence the factor. The
# noise grows along a scene, with the carried state; a track or a lane whose score is near its threshold comes or goes
# as a whole, with its occupancy.
FP16_FACTOR = 1.25
FP16_NOISE = {
    "boxes_3d": 0.0088, "scores_3d": 0.044, "track_scores": 0.044, "scores_3d_det": 0.04,
    "track_query": 0.027, "track_ref_pts": 0.075, "track_pred_boxes": 0.041, "track_mem_bank": 0.062,
    "traj": 0.083, "traj_scores": 0.053, "sdc_traj_raw": 0.015,
    "map_drivable": 0.0037, "map_lane": 0.037, "map_lane_score": 0.055, "occ_seg": 0.17,
}  # fmt: skip
FULL_BOUNDS = {"float32": {"prev_bev": 1e-3}, "float16": {"prev_bev": 0.02}}


class Checks:
    """Counts and prints what was checked."""

    def __init__(self) -> None:
        self.failed, self.rows = 0, []

    def report(self, name: str, good: bool, detail: str = "") -> None:
        self.failed += not good
        self.rows.append({"check": name, "passed": good, "detail": detail})
        print(f"{'ok  ' if good else 'FAIL'} {name}{': ' if detail else ''}{detail}", flush=True)


def bound(name: str, dtype: str) -> float:
    return FP32_BOUND if dtype == "float32" else FP16_FACTOR * FP16_NOISE[name]


def engine_inputs(c_model, frames) -> list[dict[str, np.ndarray]]:
    sequence = Sequence(c_model.config, c_model.convention)
    return [sequence.inputs(frame) for frame in frames]


def run(session: Session, inputs) -> list[dict[str, np.ndarray]]:
    session.reset()
    return [session.infer(frame) for frame in inputs]


def run_in_flight(session: Session, inputs) -> list[dict[str, np.ndarray]]:
    """Frame t+1 is handed in before frame t is collected."""
    session.reset()
    results = []
    for index, frame in enumerate(inputs):
        session.submit(frame)
        if index:
            results.append(session.collect())
    return [*results, session.collect()]


def equal(first, second) -> bool:
    return all(np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def worst_errors(session: Session, inputs, recordings, exact: bool, forget: bool = False):
    """Largest error of each output over the frames, NaN where one is, and what differs in ids and life cycle."""
    worst: dict[str, float] = {}
    wrong: list[str] = []
    comparison = golden.Comparison(session.config, exact)
    session.reset()
    for index, (frame, recorded) in enumerate(zip(inputs, recordings)):
        outputs = session.infer(frame)
        errors, differing = comparison.frame(recorded, outputs, session.carried_state())
        worst = {name: float(np.maximum(worst.get(name, 0.0), errors.get(name, 0.0))) for name in worst | errors}
        wrong += [f"frame {index}: {text}" for text in differing]
        if forget:
            session.reset()
    return worst, wrong


def check_tiny(path: pathlib.Path, dtype: str, c_model, checks: Checks) -> None:
    inputs = engine_inputs(c_model, golden.frames(golden.TINY, 8))
    recordings = [golden.read_recording(golden.GOLDEN / "tiny" / f"frame_{i}.npz") for i in range(8)]
    exact, session = dtype == "float32", open_session(path)
    worst, wrong = worst_errors(session, inputs, recordings, exact)
    for name, error in worst.items():
        limit = bound(name, dtype)
        checks.report(f"tiny {dtype} {name}", error <= limit, f"{error:.1e} (at most {limit:.1e})")
    checks.report(f"tiny {dtype} ids and life cycle", not wrong, "; ".join(wrong))
    lost, wrong = worst_errors(session, inputs, recordings, exact, forget=True)
    seen = bool(wrong) or any(error > bound(name, dtype) for name, error in lost.items())
    checks.report(f"tiny {dtype} lost state is seen", seen)
    check_repeated(f"tiny {dtype}", path, session, inputs, 5, checks)


def check_repeated(kind: str, path: pathlib.Path, session: Session, inputs, rounds: int, checks: Checks) -> None:
    """What must not change a bit: two frames in flight, no CUDA graph, and the same again, `rounds` times. Nor may the
    repetition take device memory.

    Args:
        kind: of the session, for the report: size and type.
        path: the session's engine, of which another session is opened.
    """
    results = run(session, inputs)
    checks.report(f"{kind} two in flight", equal(results, run_in_flight(session, inputs)), "equal to the bit")
    without = open_session(path, cuda_graph=False)
    checks.report(f"{kind} without CUDA graph", equal(results, run(without, inputs)), "equal to the bit")
    free, started, same = cuda.memory_info()[0], time.perf_counter(), True
    for _ in range(rounds):
        same &= equal(results, run(session, inputs))
    count, seconds = rounds * len(inputs), time.perf_counter() - started
    lost = free - cuda.memory_info()[0]
    detail = f"{'same' if same else 'other'} results, {lost} bytes lost, {seconds / count:.4f} s each"
    checks.report(f"{kind} {count} frames", same and lost == 0, detail)


def check_full(path: pathlib.Path, dtype: str, c_model, folder: pathlib.Path, checks: Checks) -> None:
    inputs = engine_inputs(c_model, golden.frames(golden.FULL, 2))
    session, comparison = open_session(path), golden.Comparison(c_model.config, exact=False)
    for index, frame in enumerate(inputs):
        outputs = session.infer(frame)
        recorded = golden.read_recording(folder / f"full_frame_{index}.npz")
        errors, wrong = comparison.frame(recorded, outputs, session.carried_state())
        for name, error in errors.items():
            limit = FULL_BOUNDS[dtype].get(name)
            detail = f"{error:.1e}" + (f" (at most {limit:.1e})" if limit else " (shown only)")
            checks.report(f"full {dtype} frame {index} {name}", limit is None or error <= limit, detail)
        print(f"     full {dtype} frame {index} life cycle: {'; '.join(wrong) or 'equal'}")
    check_repeated(f"full {dtype}", path, session, inputs * 5, 1, checks)


def plan_name(size: str, dtype: str, plugins: tuple[str, ...]) -> str:
    """Another choice of plugins is another engine: auto (all of them), off, or a hash of their names."""
    choice = {(): "off", OPERATIONS: "auto"}.get(plugins) or hashlib.sha256(",".join(plugins).encode()).hexdigest()[:8]
    return f"{size}_{dtype}_plugins_{choice}.plan"


def build(path: pathlib.Path, c_model, flavour, options: BuildOptions) -> pathlib.Path:
    """The engine, unless an earlier call left it there."""
    if not path.exists():
        built = write_tensorrt_plan(c_model, c_model.config, flavour, options, path, check=False)
        megabytes = path.stat().st_size / 1e6
        print(f"{path.name}: {built.num_layers} layers, {megabytes:.0f} MB, {built.seconds:.0f} s", flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float32,float16", type=lambda text: text.split(","))
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--sizes", default="tiny", type=lambda text: text.split(","), help="tiny,full (default: tiny)")
    parser.add_argument("--plugins", default="off", help="auto, off or names, as builder.py's (default: off)")
    parser.add_argument("--builder-opt", type=int, choices=range(6), help="0 to 5: short builds to fast kernels")
    parser.add_argument("--timing-cache", type=pathlib.Path, metavar="FILE", help="kernel times, used and updated")
    parser.add_argument("--aux-streams", type=int, metavar="N", help="as builder.py's")
    parser.add_argument("--profiling-verbosity", default="layer_names_only", help="as builder.py's")
    parser.add_argument("--recordings", metavar="FOLDER", type=pathlib.Path, help="holds full_frame_0.npz and _1.npz")
    parser.add_argument("--plans", metavar="FOLDER", type=pathlib.Path, help="keep engines here, and take those there")
    parser.add_argument("--out", metavar="FILE.json", type=pathlib.Path, help="write the results here too")
    args = parser.parse_args()
    checks, flavour = Checks(), load_flavour(args.backend)
    plugins = select_plugins(args.plugins, flavour)
    head = {
        "gpu": cuda.device_name(),
        "tensorrt": flavour.version,
        "plugins": plugins,
        "commit": git_commit() or "unknown",
        "command": sys.argv,
    }
    print(f"{head['gpu']}, {args.backend} {flavour.version}, plugins {args.plugins}, commit {head['commit']}")
    with contextlib.ExitStack() as stack:
        plans = args.plans or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for size in args.sizes:
            name = {"tiny": golden.TINY, "full": golden.FULL}[size]
            c_model = golden.recipe_c_model(name, 96 if size == "tiny" else 256)
            for dtype in args.dtypes:
                options = BuildOptions(
                    dtype,
                    optimization_level=args.builder_opt,
                    timing_cache=args.timing_cache,
                    profiling_verbosity=args.profiling_verbosity,
                    aux_streams=args.aux_streams,
                    compute_capabilities=[cuda.compute_capability()],
                    plugins=plugins,
                )
                path = build(plans / plan_name(size, dtype, plugins), c_model, flavour, options)
                if size == "tiny":
                    check_tiny(path, dtype, c_model, checks)
                else:
                    check_full(path, dtype, c_model, args.recordings, checks)
    print(f"{len(checks.rows)} checks, {checks.failed} failed")
    if args.out:
        args.out.write_text(json.dumps({**head, "failed": checks.failed, "checks": checks.rows}, indent=1))
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
