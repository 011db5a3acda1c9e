"""Step 3: c-model -> engine.plan.

    python builder.py -i ckpt/c-model -o engine.plan -quant=False

Beside the plan stands `<plan>.json`: what was built from what, and the table of inputs, outputs and state.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import pathlib
import time
from collections.abc import Callable, Iterator

from graph_io import TASKS

from errors import UniADError, one_line_errors
from runtime import cuda
from trtllm.tensorrt_flavours import MODULES, load_flavour
from weight import CModel, load_c_model

BACKENDS = ("torch", "tensorrt", "tensorrt-rtx")
A10 = "8.6"  # compute capability


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--in-dir", required=True, type=pathlib.Path, help="c-model of pytorch_convert.py")
    parser.add_argument("-o", "--out-file", required=True, type=pathlib.Path, help="the engine.plan to write")
    parser.add_argument("-quant", default="False", choices=("True", "False"), help="SmoothQuant INT8 (default: False)")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="what will run the network (default: the best that can run on this machine)"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="type of the network")
    parser.add_argument("--max-tracks", type=int, help="slots for carried tracks (default: the configuration's)")
    parser.add_argument(
        "--outputs",
        default=",".join(TASKS),
        metavar="A,B",
        type=lambda text: text.split(","),
        help=f"tasks to build, of {','.join(TASKS)} (default: all); what only the others need is left out",
    )
    parser.add_argument("--no-check", action="store_true", help="do not run the check frame on the GPU")
    parser.add_argument(
        "--check-reference",
        metavar="FILE.npz",
        type=pathlib.Path,
        help="results of the check frame: written with --backend torch, read with the others (default: computed)",
    )
    trt = parser.add_argument_group("TensorRT")
    trt.add_argument(
        "--sm",
        metavar="A,B",
        type=lambda text: text.split(","),
        help=f"compute capabilities that tensorrt-rtx builds for (default: this machine's GPU, else {A10}, an A10)",
    )
    trt.add_argument(
        "--workspace", type=float, metavar="GIB", help="scratch memory of a layer (default: TensorRT's, all there is)"
    )
    trt.add_argument(
        "--builder-opt",
        type=int,
        choices=range(6),
        help="0 quick build ... 5 long search for fast kernels (default: 1; tensorrt-rtx: its own)",
    )
    trt.add_argument(
        "--plugins", default="auto", help="auto (default: all, where the library is built), off, or names: A,B"
    )
    trt.add_argument(
        "--functional",
        default="own",
        choices=("own", "tensorrt_llm"),
        help="what defines the network: this repository's functions (default), or those of an installed tensorrt_llm "
        "1.2.1 or older; the layers are the same",
    )
    trt.add_argument("--timing-cache", type=pathlib.Path, metavar="FILE", help="kernel times, used and updated")
    trt.add_argument(
        "--profiling-verbosity", default="layer_names_only", choices=("none", "layer_names_only", "detailed")
    )
    trt.add_argument(
        "--aux-streams", type=int, metavar="N", help="streams for independent parts (default: TensorRT's choice)"
    )
    trt.add_argument("--dump-layers", type=pathlib.Path, metavar="FILE.tsv", help="write the list of layers")
    trt.add_argument(
        "--log-level",
        default="internal_error",
        choices=("internal_error", "error", "warning", "info", "verbose"),
        help="which of TensorRT's messages to print (default: internal_error)",
    )
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise UniADError for what argparse can't see."""
    if args.quant == "True":
        raise UniADError("-quant=True: INT8 engines are not there yet; build with -quant=False")
    if args.max_tracks is not None and not 1 <= args.max_tracks <= 1024:
        raise UniADError(f"--max-tracks {args.max_tracks}: use 1 to 1024")
    if unknown := sorted(set(args.outputs) - set(TASKS)):
        raise UniADError(f"--outputs: no task {', '.join(unknown)}; the tasks are {', '.join(TASKS)}")
    if args.aux_streams is not None and args.aux_streams < 0:
        raise UniADError(f"--aux-streams {args.aux_streams}: give 0 or more")
    if args.workspace is not None and args.workspace <= 0:
        raise UniADError(f"--workspace {args.workspace}: give more than 0 GiB")


def best_backend() -> str:
    """A TensorRT that is installed and knows this machine's GPU, else the torch executor."""
    if cuda.device_count():
        if importlib.util.find_spec(MODULES["tensorrt"]):
            return "tensorrt"
        if importlib.util.find_spec(MODULES["tensorrt-rtx"]):
            known = load_flavour("tensorrt-rtx").trt.ComputeCapability.__members__
            if "SM" + cuda.compute_capability().replace(".", "") in known:
                return "tensorrt-rtx"
    return "torch"


@contextlib.contextmanager
def progress_display() -> Iterator[Callable[[str, int, int, int], None] | None]:
    """Progress bars, one for each depth of the build's phases; None where rich isn't installed."""
    try:
        from rich.progress import Progress, TaskID
    except ImportError:
        yield None
        return
    bars: dict[int, TaskID] = {}
    with Progress(transient=True) as display:

        def show(phase: str, step: int, steps: int, depth: int) -> None:
            if depth not in bars:
                bars[depth] = display.add_task("")
            display.update(bars[depth], description="  " * depth + phase[:60], completed=step, total=steps)

        yield show


def build_torch(args: argparse.Namespace, c_model: CModel, tasks: list[str]) -> str:
    try:
        from runtime.torch_plan import write_torch_plan  # torch only where the backend needs it
    except ImportError as error:
        message = f"--backend torch can't be used here ({error}): see requirements-torch.txt, or choose another backend"
        raise UniADError(message) from error

    network = write_torch_plan(c_model, c_model.config, args.dtype, args.out_file, tasks)
    if args.check_reference is None:
        return "torch engine"
    from runtime.self_check import save_reference, torch_reference

    reference = torch_reference(network, c_model.config, c_model.convention)
    save_reference(args.check_reference, reference, c_model.source["checkpoint_sha256"])
    return f"torch engine, reference in {args.check_reference}"


def build_tensorrt(args: argparse.Namespace, c_model: CModel, tasks: list[str]) -> str:
    from runtime.tensorrt_plan import write_tensorrt_plan
    from trtllm.plugin_library import BUILD_HINT, select_plugins
    from trtllm.tensorrt_builder import BuildOptions
    from trtllm.tensorrt_llm_layers import load_tensorrt_llm

    flavour = load_flavour(args.backend, args.log_level)
    if args.functional == "tensorrt_llm":
        print(f"--functional tensorrt_llm: {load_tensorrt_llm(flavour).version}")
    plugins = select_plugins(args.plugins, flavour)
    if args.plugins == "auto" and not plugins and not flavour.rtx:
        print(f"--plugins auto: no plugin library here, so none are used; {BUILD_HINT}")
    targets = args.sm or [cuda.compute_capability() if cuda.device_count() else A10]
    with progress_display() as progress:
        options = BuildOptions(
            dtype=args.dtype,
            workspace=int(args.workspace * 2**30) if args.workspace is not None else None,
            optimization_level=args.builder_opt,
            timing_cache=args.timing_cache,
            profiling_verbosity=args.profiling_verbosity,
            aux_streams=args.aux_streams,
            plugins=plugins,
            functional=args.functional,
            compute_capabilities=targets,
            progress=progress,
        )
        built = write_tensorrt_plan(
            c_model,
            c_model.config,
            flavour,
            options,
            args.out_file,
            tasks,
            check=not args.no_check,
            reference_file=args.check_reference,
            layers_file=args.dump_layers,
        )
    for what, value, bound in built.findings or []:
        print(f"check: {what} {value:.2g}" + (f" (at most {bound:g})" if bound is not None else ""))
    if built.findings is None:
        print(f"check: not run ({built.unchecked})")
    on = f"compute capability {', '.join(targets)}" if flavour.rtx else cuda.device_name()
    what = f"{len(plugins)} kinds of plugins" if plugins else "no plugins"
    return f"{flavour.backend} {flavour.version} engine for {on}, {built.num_layers} layers, {what}"


def main() -> None:
    args = parse_args()
    check_args(args)
    if args.backend is None:
        args.backend = best_backend()
        print(f"--backend {args.backend}: the best that can run on this machine")
    if args.functional != "own" and args.backend != "tensorrt":
        raise UniADError(f"--functional {args.functional} defines networks of TensorRT 10: use --backend tensorrt")
    started = time.perf_counter()
    c_model = load_c_model(args.in_dir)
    if args.max_tracks is not None:
        c_model = dataclasses.replace(c_model, config=c_model.config.replace(max_tracks=args.max_tracks))
    print(f"{args.in_dir}: {c_model.config.name}, {len(c_model.tensors)} tensors verified")
    tasks = [task for task in TASKS if task in args.outputs]
    what = (build_torch if args.backend == "torch" else build_tensorrt)(args, c_model, tasks)
    size = args.out_file.stat().st_size / 1e6
    print(f"{args.out_file}: {what}, {args.dtype}, {size:.0f} MB, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    with one_line_errors():
        main()
