"""What differs between TensorRT 8.6, 10.x, 11.x and TensorRT for RTX. Everything else of the executor is one path.

| | types | where it builds |
|---|---|---|
| 8.6 | precision constraints per layer that computes | on the GPU that runs the engine |
| 10.x, 11.x | strongly typed | on the GPU that runs the engine |
| TensorRT for RTX | strongly typed | anywhere, for stated compute capabilities; kernels are compiled where it runs |
"""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

from errors import UniADError

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # backend -> Python module
_TYPE_NAMES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}
# Layers that only move elements, or are constant: 8.6 takes their types from their neighbours (Flavour.constrain).
_MOVES = ("SHUFFLE", "SLICE", "CONCATENATION", "GATHER", "SCATTER", "SELECT", "CONSTANT", "IDENTITY")
_NO_GPU_NOISE = ("(cudaError 35:", "(cudaError 100:")  # no driver, no device


def _make_logger(trt: Any, verbosity: str) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors for messages of ours and prints what `verbosity` asks for."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if any(text in message for text in _NO_GPU_NOISE) and trt.__name__ == "tensorrt_rtx":
                return  # TensorRT for RTX tries the GPU after every refusal, and does without
            if int(severity) <= int(trt.ILogger.ERROR):
                self.errors.append(message)
            if int(severity) <= int(getattr(trt.ILogger, verbosity.upper())):
                print(f"[{trt.__name__}] {severity.name}: {message}", flush=True)

        def last(self) -> str:
            return self.errors[-1].splitlines()[0] if self.errors else "no reason given"

    return Logger()


@dataclasses.dataclass(frozen=True)
class CompiledKernels:
    """How contexts of a TensorRT for RTX engine are created, and the cache of the kernels that it compiles for them.

    Attributes:
        config: TensorRT's IRuntimeConfig; it must live as long as the contexts.
        cache: its IRuntimeCache.
        known: the cache was filled from an earlier start.
    """

    config: Any
    cache: Any
    known: bool

    def serialize(self) -> bytes:
        """The kernels compiled so far, for Flavour.compiled_kernels."""
        return bytes(self.cache.serialize())


class Flavour:
    """One installed TensorRT: its module `trt`, `version`, and the calls that other versions spell otherwise."""

    def __init__(self, backend: str, trt: Any, verbosity: str = "internal_error"):
        self.backend, self.trt, self.version = backend, trt, trt.__version__
        major, minor = (int(part) for part in trt.__version__.split(".")[:2])
        self.rtx = backend == "tensorrt-rtx"
        if not self.rtx and (major, minor) < (8, 6):
            raise UniADError(f"TensorRT {self.version} is too old: install 8.6 or newer, or tensorrt_rtx")
        self.strongly_typed = self.rtx or major >= 10
        # Where kernels are timed while an engine is built, TensorRT's own level 3 takes over 12 minutes for the full
        # size and was never seen to end; 1 takes 6 (docs/benchmarks.md).
        self.optimization_level = None if self.rtx else 1
        self._moves = {trt.LayerType.__members__.get(name) for name in _MOVES}
        self.types = {ours: trt.DataType.__members__.get(name) for ours, name in _TYPE_NAMES.items()}
        self.logger = _make_logger(trt, verbosity)

    def create_network(self, builder: Any) -> Any:
        """An empty network definition with explicit batch; strongly typed where there is such a thing."""
        flag = self.trt.NetworkDefinitionCreationFlag
        if not self.strongly_typed:
            return builder.create_network(1 << int(flag.EXPLICIT_BATCH))
        strongly_typed = flag.__members__.get("STRONGLY_TYPED")  # should a version drop it: there is nothing else then
        return builder.create_network(1 << int(strongly_typed) if strongly_typed is not None else 0)

    def constrain(self, layer: Any, compute: str | None, outputs: Sequence[str]) -> None:
        """Hold a layer to the types that its call says; called once after every layer that is added.

        Nothing is said of layers that only move elements: 8.6 compiles most of the network in large regions, and a
        region in which such a layer has a type of its own has no implementation ("[verify_output_type] Mismatched
        type" in the verbose log). No answer depends on it: what computes has its type before and after the move.

        Args:
            compute: "float32", "float16", or None for layers that don't compute in a float type.
            outputs: the types of its outputs. Integers and bools follow from the layer itself.
        """
        kinds = self.trt.LayerType
        if self.strongly_typed or layer.type in self._moves:
            return
        if layer.type == kinds.PLUGIN_V2:  # a plugin says itself which types it takes
            return
        if compute is not None and layer.type != kinds.CAST:  # that computes nothing
            layer.precision = self.types[compute]
        for index, dtype in enumerate(outputs):
            if dtype in ("float32", "float16") or layer.type == kinds.CAST:
                layer.set_output_type(index, self.types[dtype])

    def declare_border(self, tensor: Any, dtype: str) -> None:
        """Fix the type and the plain layout of an input, or of a tensor that was marked as output."""
        if not self.strongly_typed:
            tensor.dtype = self.types[dtype]
            tensor.allowed_formats = 1 << int(self.trt.TensorFormat.LINEAR)

    def add_normalization(self, network: Any, x: Any, scale: Any, bias: Any, axes: int) -> Any:
        """INormalizationLayer; 10.15 renamed the call where it made group norms differ."""
        add = getattr(network, "add_normalization_v2", None) or network.add_normalization
        return add(x, scale, bias, axes)

    def configure(self, config: Any, compute_capabilities: Sequence[str], dtype: str = "float16") -> None:
        """Set what every build has: no TF32, the types as constrained, the GPUs to build for.

        Args:
            dtype: the network's type. A float32 network of 8.6 has nothing to constrain: TensorRT chooses nothing else
                where it isn't allowed to.

        Raises:
            UniADError: this flavour can't build for one of the compute capabilities.
        """
        flags = self.trt.BuilderFlag
        config.clear_flag(flags.TF32)  # rotations, cumulative sums and ids need all 24 bits
        if not self.strongly_typed and dtype == "float16":
            config.set_flag(flags.FP16)
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        if not self.strongly_typed:
            # 8.6 takes its own kernels, but hands every plugin the handles of cuBLAS and cuDNN and wants both installed
            # for it. Ours need neither.
            sources = self.trt.TacticSource.__members__
            own = [name for name in sources if not name.startswith(("CUBLAS", "CUDNN"))]
            config.set_tactic_sources(sum(1 << int(sources[name]) for name in own))
        if not self.rtx:
            return  # it builds for the GPU that it runs on
        known = self.trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(compute_capabilities)
        for index, target in enumerate(compute_capabilities):
            name = "SM" + target.replace(".", "")
            if name not in known or not config.set_compute_capability(known[name], index):
                names = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
                raise UniADError(f"{self.backend} {self.version} can't build for {target}: it knows {names}")

    def scratch_bytes(self, engine: Any) -> int:
        """Device memory that one execution context needs, besides the engine's own."""
        return engine.device_memory_size_v2 if self._sized_contexts(engine) else engine.device_memory_size

    def compiled_kernels(self, engine: Any, serialized: bytes = b"") -> CompiledKernels | None:
        """Where a TensorRT for RTX engine keeps what it compiles on this GPU; None for the others, which don't.

        Args:
            serialized: what CompiledKernels.serialize gave at an earlier start. TensorRT compares GPU, driver and
                versions, and takes nothing where one differs.
        """
        if not self.rtx:
            return None
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        cache = config.create_runtime_cache()
        known = bool(serialized) and cache.deserialize(serialized)
        config.set_runtime_cache(cache)
        return CompiledKernels(config, cache, known)

    def create_context(self, engine: Any, address: int, kernels: CompiledKernels | None = None) -> Any:
        """An execution context whose scratch memory is at `address`; None where TensorRT makes none."""
        if not self._sized_contexts(engine):
            context = engine.create_execution_context_without_device_memory()
            if context is not None:
                context.device_memory = address
            return context
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(kernels.config if kernels is not None else strategy)
        if context is not None:
            context.set_device_memory(address, self.scratch_bytes(engine))
        return context

    def _sized_contexts(self, engine: Any) -> bool:
        return hasattr(engine, "device_memory_size_v2")  # 10.1 and later, TensorRT for RTX


@functools.cache
def load_flavour(backend: str, verbosity: str = "internal_error") -> Flavour:
    """The installed flavour of that name ("tensorrt" or "tensorrt-rtx"), with a logger that prints from `verbosity`.

    Raises:
        UniADError: unknown, not installed, too old, or one of its libraries is missing.
    """
    if backend not in MODULES:
        raise UniADError(f"no backend {backend!r}: use one of {', '.join(MODULES)}")
    try:
        return Flavour(backend, importlib.import_module(MODULES[backend]), verbosity)
    except (ImportError, OSError) as error:  # OSError: a library that it needs
        reason = str(error).splitlines()[0]
        raise UniADError(
            f"{MODULES[backend]} can't be imported ({reason}): install it or choose another backend"
        ) from error
