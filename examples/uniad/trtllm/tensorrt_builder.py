"""From functional calls to a serialized TensorRT engine."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from errors import UniADError
from files import whole_file
from trtllm.network import Network, Tensor, net_guard
from trtllm.plugin_library import load_plugins
from trtllm.tensorrt_executor import TensorRTExecutor
from trtllm.tensorrt_flavours import Flavour
from trtllm.tensorrt_llm_layers import TensorRTLLMLayers
from trtllm.tensorrt_plugins import PluginExecutor

Inputs = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (type, shape)
Define = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How to build. None: TensorRT's own default.

    Attributes:
        dtype: the network's type, "float32" or "float16".
        workspace: bytes of scratch memory that a layer may use, at most. A compiled region counts as one layer.
        optimization_level: 0 (fast build) to 5 (long search); None: Flavour.optimization_level.
        timing_cache: a file with measured kernel times, used and updated; TensorRT for RTX measures none.
        profiling_verbosity: "none", "layer_names_only" or "detailed".
        aux_streams: streams beside the main one on which independent parts may run; TensorRT for RTX chooses itself.
        plugins: the operations that become plugins (trtllm.plugin_library.select_plugins).
        functional: what adds the layers: "own", or "tensorrt_llm" (trtllm/tensorrt_llm_layers.py).
        compute_capabilities: what TensorRT for RTX builds for; the others build for the GPU that they run on.
        progress: called with (phase, step, steps, depth) while the engine is built, where the version reports it.
    """

    dtype: str = "float32"
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: pathlib.Path | None = None
    profiling_verbosity: str = "layer_names_only"
    aux_streams: int | None = None
    plugins: Collection[str] = ()
    functional: str = "own"
    compute_capabilities: Sequence[str] = ("8.6",)
    progress: Callable[[str, int, int, int], None] | None = None

    def level(self, flavour: Flavour) -> int | None:
        """The optimization level that a build with `flavour` uses."""
        return flavour.optimization_level if self.optimization_level is None else self.optimization_level


@dataclasses.dataclass(frozen=True)
class Engine:
    """A serialized engine, and the layers of the network that it was built from: (name, kind, types and shapes).

    `functional` is what added them: "own", or tensorrt_llm with its version.
    """

    plan: bytes
    layers: list[tuple[str, str, str]]
    functional: str = "own"


def build_engine(
    define: Define,
    inputs: Inputs,
    flavour: Flavour,
    options: BuildOptions | None = None,
    outputs: Collection[str] | None = None,
) -> Engine:
    """Call `define` inside a TensorRT network and build what it returns.

    Args:
        define: from input tensors by name to output tensors by name; makes its functional calls in the network.
        inputs: type and shape of each input.
        outputs: the names to keep of what `define` returns (all by default); what only the others need is left out.

    Raises:
        UniADError: TensorRT refuses a layer or can't build the engine; no GPU; out of memory; no plugin library; no
            tensorrt_llm that fits.
    """
    options = options or BuildOptions()
    builder = _create_builder(flavour)
    definition = flavour.create_network(builder)
    layers = TensorRTLLMLayers(definition, flavour) if options.functional == "tensorrt_llm" else None
    if options.plugins:
        library = load_plugins(flavour)
        executor: TensorRTExecutor = PluginExecutor(definition, flavour, options.plugins, library, layers)
    else:
        executor = TensorRTExecutor(definition, flavour, layers)
    with net_guard(Network(executor, options.dtype)):
        results = define({name: executor.input(name, dtype, shape) for name, (dtype, shape) in inputs.items()})
    if unknown := sorted(set(outputs or ()) - set(results)):
        raise UniADError(f"no output {', '.join(unknown)}: the network has {', '.join(results)}")
    for name, tensor in results.items():
        if outputs is None or name in outputs:
            executor.output(tensor, name)
    config = builder.create_builder_config()
    flavour.configure(config, options.compute_capabilities, options.dtype)
    monitor = _configure(config, flavour, options)
    if options.timing_cache is not None:
        if flavour.rtx:
            raise UniADError("tensorrt-rtx has no timing cache: leave the option out")
        _read_timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(definition, config)
    if options.timing_cache is not None:  # after a failure too: the next try finds what this one has measured
        _write_timing_cache(config, options.timing_cache)
    if plan is None:
        raise UniADError(_build_failure(flavour))
    engine = Engine(bytes(plan), describe_layers(definition), executor.layers.name)
    del monitor, executor  # both had to live until here
    return engine


def _create_builder(flavour: Flavour) -> Any:
    try:
        builder = flavour.trt.Builder(flavour.logger)
    except Exception as error:  # pybind raises TypeError where the library gives no builder (no GPU)
        reason = flavour.logger.last()
        message = f"{flavour.backend} {flavour.version} can't start here ({reason}): it needs a working NVIDIA GPU"
        raise UniADError(f"{message}; tensorrt-rtx builds without one") from error
    builder.max_threads = min(4, os.cpu_count() or 1)
    return builder


def _configure(config: Any, flavour: Flavour, options: BuildOptions) -> Any:
    """Set the options; the progress monitor, which must live until the engine is built."""
    trt = flavour.trt
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, options.profiling_verbosity.upper())
    if (level := options.level(flavour)) is not None:
        config.builder_optimization_level = level
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.progress is None or not hasattr(trt, "IProgressMonitor"):
        return None
    monitor = _make_monitor(trt, options.progress)
    config.progress_monitor = monitor
    return monitor


def _make_monitor(trt: Any, progress: Callable[[str, int, int, int], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Phases nest: depth 0 is the whole build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, tuple[int, int]] = {}  # name -> (steps, depth)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            parent = self._phases.get(parent_phase) if parent_phase else None
            self._phases[phase_name] = (num_steps, parent[1] + 1 if parent else 0)
            self._report(phase_name, 0)

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._phases[phase_name][0])
            del self._phases[phase_name]

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step)
            return True

        def _report(self, phase_name: str, step: int) -> None:
            steps, depth = self._phases[phase_name]
            progress(phase_name, step, steps, depth)

    return Monitor()


def _read_timing_cache(config: Any, path: pathlib.Path) -> None:
    """Use the cache of a former build; an empty one where there is none, or it is of another GPU or version."""
    data = b""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write_timing_cache(config: Any, path: pathlib.Path) -> None:
    data = config.get_timing_cache().serialize()
    with whole_file(path) as part:
        part.write_bytes(data)


def _build_failure(flavour: Flavour) -> str:
    text = " ".join(flavour.logger.errors).lower()
    if "out of memory" in text or "outofmemory" in text or "insufficient memory" in text:
        return f"out of memory while building ({flavour.logger.last()}): free memory, or raise --workspace if given"
    return f"{flavour.backend} {flavour.version} could not build the engine: {flavour.logger.last()}"


def describe_layers(definition: Any) -> list[tuple[str, str, str]]:
    """(name, kind, "type shape, … -> type shape, …") of every layer, in the order of the calls."""

    def tensors(items: Sequence[Any]) -> str:
        return ", ".join(f"{t.dtype.name.lower()} {tuple(t.shape)}" for t in items if t is not None)

    rows = []
    for index in range(definition.num_layers):
        layer = definition.get_layer(index)
        sources = [layer.get_input(i) for i in range(layer.num_inputs)]
        results = [layer.get_output(i) for i in range(layer.num_outputs)]
        rows.append((layer.name, layer.type.name.lower(), f"{tensors(sources)} -> {tensors(results)}"))
    return rows
