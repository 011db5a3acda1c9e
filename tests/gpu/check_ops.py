"""Runs every operation of tests/op_cases as a TensorRT engine on a GPU and compares it with plain torch.

    python tests/gpu/check_ops.py references -o refs.npz                 (anywhere, with torch)
    python tests/gpu/check_ops.py run -r refs.npz -o op_results.json     (on the GPU; no torch: numpy, cuda-bindings
                                                                          and tensorrt 8.6 to 11 or tensorrt_rtx)

The run ends with a short table and exits with 1 where an operation failed. Engines hold several cases; where one
can't be built, or ends the process, its cases are tried one by one, so that each failure has a name.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "uniad"), str(ROOT / "tests")]

import op_engines  # noqa: E402
from closeness import max_error  # noqa: E402
from op_cases import BOTH, CASES  # noqa: E402

from errors import UniADError, one_line_errors  # noqa: E402
from runtime import cuda  # noqa: E402
from trtllm.plugin_library import select_plugins  # noqa: E402
from trtllm.tensorrt_builder import BuildOptions  # noqa: E402
from trtllm.tensorrt_flavours import MODULES, Flavour, load_flavour  # noqa: E402
from trtllm.tensorrt_llm_layers import load_tensorrt_llm  # noqa: E402

SECONDS_PER_ENGINE = 300  # a hang counts as a failure


def write_references(path: pathlib.Path) -> None:
    """Inputs and plain-torch results of all cases: `<case>.in<n>`, `<case>.out<n>`."""
    import torch

    arrays = {}
    for index, case in enumerate(CASES):
        results = op_engines.as_list(case.reference(torch, *map(torch.from_numpy, case.inputs)))
        arrays |= {f"{index}.in{n}": array for n, array in enumerate(case.inputs)}
        arrays |= {f"{index}.out{n}": result.numpy() for n, result in enumerate(results)}
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
    print(f"{len(CASES)} cases, {path.stat().st_size / 1e6:.1f} MB: {path}")


def read_references(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Raises UniADError where the file is of other cases than the ones here."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for index, case in enumerate(CASES):
        for n, array in enumerate(case.inputs):
            if not np.array_equal(arrays.get(f"{index}.in{n}"), array, equal_nan=array.dtype.kind == "f"):
                raise UniADError(f"{path} is of other cases ({case.name}): make it again with `references`")
    return arrays


def execute(plan: bytes, flavour: Flavour, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run an engine once."""
    runtime = flavour.trt.Runtime(flavour.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context() if engine else None
    if context is None:
        raise UniADError(f"the engine can't be loaded: {flavour.logger.last()}")
    stream, buffers, outputs = cuda.Stream(), [], {}
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name).name == "INPUT":
            array = np.ascontiguousarray(inputs[name])
        else:
            dtype = np.dtype(flavour.trt.nptype(engine.get_tensor_dtype(name)))
            array = outputs[name] = np.zeros(tuple(engine.get_tensor_shape(name)), dtype)
        buffer = cuda.DeviceBuffer(array.nbytes)
        buffers.append((name, buffer, array))
        context.set_tensor_address(name, int(buffer.handle))
        stream.to_device(int(buffer.handle), array.ctypes.data, array.nbytes)
    if not context.execute_async_v3(int(stream.handle)):
        raise UniADError(f"the engine can't be run: {flavour.logger.last()}")
    for name, buffer, array in buffers:
        if name in outputs:
            stream.to_host(array.ctypes.data, int(buffer.handle), array.nbytes)
    stream.synchronize()
    return outputs


def judge(
    index: int, dtype: str, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray], rounding: float = 0.0
) -> dict:
    """Error, allowance and their quotient of one case: of the result that comes closest to its allowance.

    Args:
        rounding: of float32 results, relative to the largest finite one: what is allowed besides.
    """
    worst = {"error": 0.0, "allowed": 0.0, "share": 0.0}
    for n in range(sum(name.startswith(f"{index}.out") for name in references)):
        wanted = references[f"{index}.out{n}"]
        found = outputs[f"{index}.out{n}"]
        more = rounding if found.dtype == np.float32 else 0.0
        error, allowed = max_error(found, wanted), CASES[index].allowed(dtype, wanted, more)
        share = error / allowed if allowed else float("inf") if error else 0.0
        if n == 0 or share > worst["share"]:
            worst = {"error": error, "allowed": allowed, "share": share}
    return worst


def check_group(dtype: str, indices: list[int], args: argparse.Namespace) -> list[dict]:
    """Build and run one engine; a row for each case. Called in a process of its own."""
    references = read_references(args.references)
    flavour = load_flavour(args.backend)
    options = BuildOptions(
        dtype,
        optimization_level=args.builder_opt,
        plugins=select_plugins(args.plugins, flavour),
        functional=args.functional,
        compute_capabilities=(cuda.compute_capability(),),
    )
    started = time.perf_counter()
    engine = op_engines.build(indices, flavour, options)
    seconds = (time.perf_counter() - started) / len(indices)
    outputs = execute(engine.plan, flavour, op_engines.input_arrays(indices, dtype))
    device = {"device": cuda.device_name(), "tensorrt": f"{args.backend} {flavour.version}", "seconds": seconds}
    device["functional"] = engine.functional
    # Between the regions that it compiles, 8.6 may keep float32 as float16 (tests/gpu/README.md).
    rounding = 0.0 if flavour.strongly_typed or dtype == "float32" else 2.0**-11
    return [{**device, **judge(index, dtype, outputs, references, rounding)} for index in indices]


def run_in_child(dtype: str, indices: list[int], args: argparse.Namespace, work: str) -> list[dict] | str:
    """The rows of check_group, or the reason why there are none."""
    output = pathlib.Path(work, f"{dtype}-{indices[0]}-{len(indices)}.json")
    command = [sys.executable, __file__, "group", "-r", str(args.references), "-o", str(output), "--dtype", dtype]
    command += ["--backend", args.backend, "--plugins", args.plugins, "--indices", ",".join(map(str, indices))]
    command += ["--functional", args.functional]
    command += ["--builder-opt", str(args.builder_opt)] if args.builder_opt is not None else []
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_ENGINE)
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS_PER_ENGINE} s"
    if result.returncode == 0 and output.exists():
        return json.loads(output.read_text())
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"the process ended with {result.returncode}"


def run(args: argparse.Namespace) -> int:
    """All engines of both types. Writes the rows as JSON, prints the table; the exit status."""
    read_references(args.references)  # fail now rather than in every child
    flavour = load_flavour(args.backend)
    if args.functional == "tensorrt_llm":
        load_tensorrt_llm(flavour)
    cuda.compute_capability()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as work, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        todo = op_engines.all_groups(args.group_size)
        while todo:
            results = pool.map(lambda group: run_in_child(*group, args, work), todo)
            again = []
            for (dtype, indices), result in zip(todo, results):
                names = [CASES[i].name for i in indices]
                if isinstance(result, str) and len(indices) > 1:
                    print(f"{dtype} {names[0]} … {names[-1]}: {result}; one by one", flush=True)
                    again += [(dtype, [i]) for i in indices]
                    continue
                found = [{"failure": result, "share": float("inf")}] if isinstance(result, str) else result
                rows += [{"case": n, "dtype": dtype, **row} for n, row in zip(names, found)]
                args.output.write_text(json.dumps(rows, indent=1))  # a run that is cut off leaves what it has
                print(f"{dtype} {names[0]} … {names[-1]}: done", flush=True)
            todo = again
    return print_table(rows)


def print_table(rows: list[dict]) -> int:
    """The counts, every failure, and the closest passes; 1 where a case failed. A share that is NaN is a failure."""
    failed = [r for r in rows if not r["share"] <= 1]
    passed = sorted((r for r in rows if 0 < r["share"] <= 1), key=lambda r: -r["share"])
    device = next((r for r in rows if "device" in r), {"device": "?", "tensorrt": "?"})
    print(f"\n{device['device']}, {device['tensorrt']}")
    print(f"{'case':42} {'type':8} {'error':>10} {'allowed':>10}")
    for row in [*failed, *passed[:8]]:
        numbers = row.get("failure") or f"{row['error']:10.2e} {row['allowed']:10.2e}"
        print(f"{row['case']:42} {row['dtype']:8} {numbers}{'' if row['share'] <= 1 else '  FAILED'}")
    for dtype in BOTH:
        of_type = [r for r in rows if r["dtype"] == dtype]
        print(f"{dtype}: {sum(r['share'] <= 1 for r in of_type)} of {len(of_type)} cases within their tolerance")
    return 1 if failed or not rows else 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["references", "run", "group"], help="group: what `run` starts, one engine")
    parser.add_argument("-r", "--references", type=pathlib.Path, help="what `references` wrote")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--backend", choices=sorted(MODULES), default="tensorrt")
    parser.add_argument("--plugins", default="off", help="auto, off, or names of operations; off if left out")
    parser.add_argument("--functional", choices=("own", "tensorrt_llm"), default="own", help="as builder.py's")
    parser.add_argument("--builder-opt", type=int, help="0 to 5; TensorRT's default if left out")
    parser.add_argument("--group-size", type=int, default=16, help="cases in one engine")
    parser.add_argument(
        "--jobs", type=int, default=1, help="engines built at the same time; more CPU cores, less waiting"
    )
    parser.add_argument("--dtype", choices=BOTH, default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--indices", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step != "references" and args.references is None:
        parser.error("-r is needed: the file that `references` wrote")
    return args


def main() -> int:
    args = parse()
    if args.step == "references":
        write_references(args.output)
        return 0
    if args.step == "group":
        rows = check_group(args.dtype, [int(i) for i in args.indices.split(",")], args)
        args.output.write_text(json.dumps(rows))
        return 0
    return run(args)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
