"""Engines of TensorRT: built from the model, checked on the GPU where there is one, written with their side file."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import platform
import sys
import time
from collections.abc import Collection, Mapping

import numpy as np
from graph_io import TASKS, describe_graph, input_specs, state_specs

from config import UniADConfig
from files import whole_file
from model import UniAD, load_model
from runtime import cuda
from runtime.plan_files import Sidecar, write_plan
from runtime.self_check import Finding, check_engine, load_reference, torch_reference
from runtime.session import TENSORRT_KINDS
from runtime.tensorrt_session import TensorRTSession
from trtllm import Tensor
from trtllm.plugin_library import load_plugins
from trtllm.tensorrt_builder import BuildOptions, Engine, build_engine
from trtllm.tensorrt_flavours import Flavour
from weight import CModel


@dataclasses.dataclass(frozen=True)
class Built:
    """What a build did. `findings` None: not checked, and `unchecked` says why."""

    seconds: float
    num_layers: int
    findings: list[Finding] | None
    unchecked: str


def write_tensorrt_plan(
    c_model: CModel,
    config: UniADConfig,
    flavour: Flavour,
    options: BuildOptions,
    path: pathlib.Path,
    tasks: Collection[str] = TASKS,
    check: bool = True,
    reference_file: pathlib.Path | None = None,
    layers_file: pathlib.Path | None = None,
) -> Built:
    """Build an engine, check it, and write it and its side file: both or neither.

    Args:
        tasks: the outputs to build, of graph_io.TASKS.
        check: run the check frame, where the engine can run on this machine's GPU.
        reference_file: what the check compares with; without it the torch executor computes it, where installed.
        layers_file: where to write the list of layers.
    Raises:
        UniADError: weights that don't fit, TensorRT refuses, out of memory, the engine fails its check.
    """
    checkpoint = c_model.source["checkpoint_sha256"]
    reference = load_reference(reference_file, checkpoint) if check and reference_file else None
    network = load_model(c_model, config, tasks)
    started = time.perf_counter()
    engine = _build(network, config, flavour, options)
    seconds = time.perf_counter() - started
    if layers_file is not None:
        _write_layers(engine, layers_file)
    findings: list[Finding] | None = None
    unchecked = "" if check else "--no-check"
    if check:
        unchecked = _why_not_runnable(flavour, options)
    if check and not unchecked and reference is None:
        try:
            reference = torch_reference(network, config, c_model.convention)
        except ImportError:
            unchecked = "torch isn't installed: give --check-reference"

    def run_check(plan: pathlib.Path) -> None:
        nonlocal findings
        if reference is not None and not unchecked:
            findings = check_engine(TensorRTSession(plan, Sidecar(plan)), reference, options.dtype)

    facts = _facts(c_model, config, flavour, options, tasks)
    facts |= {"build_seconds": round(seconds, 1), "num_layers": len(engine.layers), "plan_bytes": len(engine.plan)}
    facts["functional"] = engine.functional
    write_plan(path, lambda plan: _write(plan, engine), facts, run_check)
    return Built(seconds, len(engine.layers), findings, unchecked)


def frame_outputs(network: UniAD, tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """A frame's outputs and, as `NAME_out`, the next frame's state, from its inputs and state by name."""
    specs = input_specs(network.config), state_specs(network.config, dtype)
    outputs, new_state = network(*({spec.name: tensors[spec.name] for spec in part} for part in specs))
    return {**outputs, **{f"{name}_out": tensor for name, tensor in new_state.items()}}


def _build(network: UniAD, config: UniADConfig, flavour: Flavour, options: BuildOptions) -> Engine:
    specs = [*input_specs(config), *state_specs(config, options.dtype)]
    shapes = {spec.name: (spec.dtype, spec.shape) for spec in specs}
    return build_engine(lambda tensors: frame_outputs(network, tensors, options.dtype), shapes, flavour, options)


def _facts(
    c_model: CModel, config: UniADConfig, flavour: Flavour, options: BuildOptions, tasks: Collection[str]
) -> dict:
    """The side file, but for what only the finished build knows."""
    kind = next(kind for kind, backend in TENSORRT_KINDS.items() if backend == flavour.backend)
    graph = describe_graph(config, options.dtype, tasks)
    return {
        "kind": kind,
        "convention": c_model.convention,
        "dtype": options.dtype,
        "tasks": list(tasks),
        "checkpoint": c_model.source["checkpoint"],
        "checkpoint_sha256": c_model.source["checkpoint_sha256"],
        "version": flavour.version,
        "gpu": "" if flavour.rtx else cuda.device_name(),
        "targets": list(options.compute_capabilities) if flavour.rtx else [cuda.compute_capability()],
        "workspace": options.workspace,
        "optimization_level": options.level(flavour),
        "plugins": list(options.plugins),
        "plugins_library": load_plugins(flavour).facts if options.plugins else {},
        "profiling_verbosity": options.profiling_verbosity,
        "built_with": f"{flavour.backend} {flavour.version}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, {sys.platform} {platform.machine()}",
        "config": dataclasses.asdict(config),
        **graph,
    }


def _why_not_runnable(flavour: Flavour, options: BuildOptions) -> str:
    """Why the engine can't run on this machine, or ""."""
    if not flavour.rtx:
        return ""  # it was built on the GPU that runs it
    if not cuda.device_count():
        return "no GPU here"
    if cuda.compute_capability() not in options.compute_capabilities:
        return f"this GPU has compute capability {cuda.compute_capability()}"
    return ""


def _write(path: pathlib.Path, engine: Engine) -> None:
    path.write_bytes(engine.plan)


def _write_layers(engine: Engine, path: pathlib.Path) -> None:
    """The network's layers before TensorRT fuses them, tab separated: module, name, kind, types and shapes."""
    with whole_file(path) as part, open(part, "w", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(("module", "layer", "kind", "tensors"))
        rows.writerows((name.rpartition("/")[0], name, kind, tensors) for name, kind, tensors in engine.layers)
