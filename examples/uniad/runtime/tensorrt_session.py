"""The session of a TensorRT engine. It needs numpy, cuda-bindings and the engine's TensorRT flavour, nothing else.

Two slots, used by turns, each with its own inputs, execution context and CUDA graph. Slot s reads the carried state
from state set s and writes it to the other, so that no state is ever copied or comes to the host. Inputs and outputs
lie in one block each. Images in an `image_buffer` go to the device from there in one copy, others by way of the slot's
own memory, camera by camera; all other inputs go at once, and all outputs come back in one copy, into the memory that
they are handed out in. The upload of frame t+1 goes through a stream of its own, beside the execution of frame t.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from errors import UniADError
from runtime import cuda
from runtime.blocks import Block, pack, views
from runtime.kernel_cache import read_kernels, write_kernels
from runtime.pinned_pool import PinnedPool
from runtime.plan_files import Sidecar
from runtime.session import TENSORRT_KINDS, SessionError
from trtllm.plugin_library import load_plugins
from trtllm.tensorrt_flavours import Flavour, load_flavour

COPIERS = 3  # threads that copy images to where the device reads them: one takes 4 to 5 ms for six of 1600 x 900
IN_FLIGHT = 2  # frames submitted and not yet collected, at most
POOL = 12  # frames whose images, and whose outputs, may be held in page-locked memory: 26 and 3 MB each at full size
_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "UINT8": "uint8", "BOOL": "bool"}


def _camera_bytes(block: Block) -> list[tuple[int, int]]:
    """First byte and end of each camera's image in the block of inputs."""
    shape = next(spec.shape for spec in block.specs if spec.name == "img")
    start, nbytes = block.offsets["img"], math.prod(shape[1:])
    return [(start + nbytes * camera, start + nbytes * (camera + 1)) for camera in range(shape[0])]


@dataclasses.dataclass
class _Slot:
    """What one of the two frames in flight uses."""

    context: Any
    inputs: cuda.DeviceBuffer
    host_inputs: cuda.PinnedBuffer
    host_outputs: cuda.PinnedBuffer
    input_views: dict[str, np.ndarray]
    upload: cuda.Event
    uploaded: cuda.Event
    started: cuda.Event
    done: cuda.Event
    graph: cuda.Graph | None = None
    images: np.ndarray | None = None  # an image buffer that is being uploaded
    results: np.ndarray | None = None  # where the outputs go, if not to host_outputs
    submit_seconds: float = 0.0


class TensorRTSession:
    """See runtime.session.Session. `submit` and `collect` are the two halves of `infer`.

    Attributes:
        latency: seconds that the last collected frame takes alone: copies on the host, upload, engine, results back.
        engine_ms: the engine's part of it with the copy of the results to the host, milliseconds.
        device_memory: bytes of device memory that opening the session took.
    """

    def __init__(self, path: pathlib.Path, sidecar: Sidecar, cuda_graph: bool = True):
        """Load the engine, allocate its memory and run it twice on zeros.

        Raises:
            SessionError: another TensorRT version or flavour, another GPU, files that don't belong together.
            UniADError: the plugin library that the engine needs is missing or of another version.
            CudaError: no GPU, out of memory.
        """
        self.config, self.convention, self._sidecar = sidecar.config, sidecar.convention, sidecar
        self.latency = self.engine_ms = 0.0
        self._profiler: Any = None
        flavour = _flavour(path, sidecar)
        self._device = _check_device(path, sidecar)
        _load_plugins(path, sidecar, flavour)
        free_before = cuda.memory_info()[0]
        self._logger = flavour.logger
        self._logger.errors.clear()  # those of engines before this one
        self._trt = flavour.trt
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(_read_plan(path, sidecar))
        if self._engine is None:
            raise _failure(path, "TensorRT can't load the engine", self._logger)
        _check_tensors(path, self._engine, sidecar)
        self._inputs, self._outputs, self._state = (pack(t) for t in (sidecar.inputs, sidecar.outputs, sidecar.state))
        self._cameras = _camera_bytes(self._inputs)
        images = next(spec.shape for spec in sidecar.inputs if spec.name == "img")
        self._image_pool, self._result_pool = PinnedPool(images, POOL), PinnedPool((self._outputs.nbytes,), POOL)
        self._stream, self._upload = cuda.Stream(), cuda.Stream()
        self._copiers = concurrent.futures.ThreadPoolExecutor(COPIERS, thread_name_prefix="copy")
        self._states = [cuda.DeviceBuffer(self._state.nbytes) for _ in range(2)]
        self._output = cuda.DeviceBuffer(self._outputs.nbytes)
        self._scratch = cuda.DeviceBuffer(flavour.scratch_bytes(self._engine))  # one: contexts never run together
        self._kernels = flavour.compiled_kernels(self._engine, read_kernels(path, sidecar.sha256))
        scratch = int(self._scratch.handle)
        contexts = [flavour.create_context(self._engine, scratch, self._kernels) for _ in range(IN_FLIGHT)]
        if None in contexts:
            raise _failure(path, "TensorRT can't create an execution context", self._logger)
        self._slots = [self._make_slot(context) for context in contexts]
        self._pending: collections.deque[_Slot] = collections.deque()
        self._next = 0
        self._warm_up(cuda_graph)
        if self._kernels is not None and not self._kernels.known:  # all that there is to compile is compiled now
            write_kernels(path, sidecar.sha256, self._kernels.serialize())
        _ = [self._result_pool.lend() for _ in range(IN_FLIGHT + 1)]  # made now, and given back
        self.reset()
        self._stream.synchronize()
        self.device_memory = free_before - cuda.memory_info()[0]

    def _make_slot(self, context: Any) -> _Slot:
        host_inputs, host_outputs = cuda.PinnedBuffer(self._inputs.nbytes), cuda.PinnedBuffer(self._outputs.nbytes)
        return _Slot(
            context,
            cuda.DeviceBuffer(self._inputs.nbytes),
            host_inputs,
            host_outputs,
            views(host_inputs.array, self._inputs),
            cuda.Event(),
            cuda.Event(),
            cuda.Event(),
            cuda.Event(),
        )

    def _warm_up(self, cuda_graph: bool) -> None:
        """Bind every address, run each context once (TensorRT's lazy work), and capture it."""
        for index, slot in enumerate(self._slots):
            ours, others = int(self._states[index].handle), int(self._states[1 - index].handle)
            addresses = {name: int(slot.inputs.handle) + at for name, at in self._inputs.offsets.items()}
            addresses |= {name: int(self._output.handle) + at for name, at in self._outputs.offsets.items()}
            addresses |= {name: ours + at for name, at in self._state.offsets.items()}
            addresses |= {f"{name}_out": others + at for name, at in self._state.offsets.items()}
            for tensor in _tensor_names(self._engine):
                if not slot.context.set_tensor_address(tensor, addresses[tensor]):
                    raise SessionError(f"TensorRT refused the address of {tensor}: {self._logger.last()}")
            self._stream.zero(int(slot.inputs.handle), self._inputs.nbytes)
            self._stream.zero(ours, self._state.nbytes)
            self._enqueue(slot)
            self._stream.synchronize()
            if cuda_graph:
                try:
                    with self._stream.capture() as graphs:
                        self._enqueue(slot)
                except cuda.CudaError as error:
                    raise SessionError(f"this engine can't be captured ({error}): use --no-cuda-graph") from error
                slot.graph = graphs[0]

    def _enqueue(self, slot: _Slot) -> None:
        if not slot.context.execute_async_v3(int(self._stream.handle)):
            raise SessionError(f"TensorRT could not run the engine: {self._logger.last()}")

    def describe(self) -> dict[str, Any]:
        tables = ("config", "inputs", "outputs", "state")
        return {
            **{key: value for key, value in self._sidecar.facts.items() if key not in tables},
            "device": self._device,
            "cuda_graph": self._slots[0].graph is not None,
        }

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._pending:
            raise RuntimeError("infer() between submit() and collect()")
        self.submit(inputs)
        return self.collect()

    def image_buffer(self) -> np.ndarray | None:
        return self._image_pool.lend()

    def submit(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Hand in the next frame and return while it runs. At most IN_FLIGHT frames may wait to be collected.

        An image buffer can only be read from then on: the device may be reading it.

        Raises SessionError where an input is missing or has another type or shape; nothing has happened then.
        """
        began = time.perf_counter()
        if len(self._pending) == IN_FLIGHT:
            raise RuntimeError("collect() a frame before the next submit()")
        for name, dtype, shape, _ in self._inputs.specs:
            array = inputs.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                found = "missing" if array is None else f"{array.dtype} {array.shape}"
                raise SessionError(f"input {name} is {found}; the engine takes {dtype} {shape}")
        slot = self._slots[self._next]
        # Nothing reads the slot's device inputs any more: its last frame was collected.
        images = inputs["img"]
        copies: list[concurrent.futures.Future] = []
        if self._image_pool.owns(images):
            images.flags.writeable = False
            slot.images = images  # not lent again before the frame is collected
            self._upload.record(slot.upload)
            target = int(slot.inputs.handle) + self._inputs.offsets["img"]
            self._upload.to_device(target, images.ctypes.data, images.nbytes)
        else:  # each is on its way while the host copies others, so that of the upload only the end is waited for
            cameras = range(len(self._cameras))
            copies = [self._copiers.submit(self._send_image, slot, camera, images[camera]) for camera in cameras]
        for name, view in slot.input_views.items():
            if name != "img":
                view[...] = inputs[name]
        if copies:
            for copy in copies:
                copy.result()
            self._upload.record(slot.upload)
        self._send(slot, 0, self._cameras[0][0])
        self._send(slot, self._cameras[-1][1], self._inputs.nbytes)
        self._upload.record(slot.uploaded)
        self._stream.wait(slot.uploaded)
        self._stream.record(slot.started)
        if slot.graph is not None:
            slot.graph.launch(self._stream)
        else:
            self._enqueue(slot)
        slot.results = self._result_pool.lend()
        results = slot.host_outputs.array if slot.results is None else slot.results
        self._stream.to_host(results.ctypes.data, int(self._output.handle), self._outputs.nbytes)
        self._stream.record(slot.done)
        self._pending.append(slot)
        self._next = 1 - self._next
        slot.submit_seconds = time.perf_counter() - began

    def _send_image(self, slot: _Slot, camera: int, image: np.ndarray) -> None:
        """One camera's image, uint8 (H,W,3), by way of the slot's host memory."""
        slot.input_views["img"][camera] = image
        self._send(slot, *self._cameras[camera])

    def _send(self, slot: _Slot, start: int, stop: int) -> None:
        """Bytes of the slot's inputs to the device."""
        if stop > start:
            self._upload.to_device(int(slot.inputs.handle) + start, int(slot.host_inputs.handle) + start, stop - start)

    def collect(self) -> dict[str, np.ndarray]:
        """Wait for the oldest submitted frame; its outputs, which are the caller's: no later frame overwrites them."""
        slot = self._pending.popleft()
        slot.done.synchronize()
        self.engine_ms = slot.done.elapsed_ms(slot.started)
        upload_ms = slot.uploaded.elapsed_ms(slot.upload)
        done = time.perf_counter()
        # Handed out as they lie there; copied where the caller holds those of POOL frames.
        outputs = views(slot.host_outputs.array.copy() if slot.results is None else slot.results, self._outputs)
        slot.images = slot.results = None
        on_host = slot.submit_seconds + time.perf_counter() - done
        self.latency = on_host + (upload_ms + self.engine_ms) / 1000
        return outputs

    def start_profile(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}
        self._profiler = _make_profiler(self._trt, times)
        for slot in self._slots:
            slot.context.profiler, slot.graph = self._profiler, None
        return times

    def reset(self) -> None:
        self._stream.zero(int(self._states[self._next].handle), self._state.nbytes)

    def get_state(self) -> dict[str, np.ndarray]:
        return {"max_obj_id": self.carried_state()["max_obj_id"]}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        host = cuda.PinnedBuffer(self._state.nbytes)
        host.array[:] = 0
        views(host.array, self._state)["max_obj_id"][:] = state["max_obj_id"]
        self._stream.to_device(int(self._states[self._next].handle), int(host.handle), self._state.nbytes)
        self._stream.synchronize()

    def carried_state(self) -> dict[str, np.ndarray]:
        host = cuda.PinnedBuffer(self._state.nbytes)
        self._stream.to_host(int(host.handle), int(self._states[self._next].handle), self._state.nbytes)
        self._stream.synchronize()
        return {name: view.copy() for name, view in views(host.array, self._state).items()}


def _flavour(path: pathlib.Path, sidecar: Sidecar) -> Flavour:
    """The TensorRT flavour and version that built the engine."""
    backend, version = TENSORRT_KINDS[sidecar.kind], sidecar.facts.get("version")
    try:
        flavour = load_flavour(backend)
    except UniADError as error:
        raise SessionError(f"{path} needs {backend} {version}: {error}") from error
    if flavour.version != version:
        message = f"{path} was built with {backend} {version}, here is {flavour.version}"
        raise SessionError(f"{message}: build it again with builder.py")
    return flavour


def _load_plugins(path: pathlib.Path, sidecar: Sidecar, flavour: Flavour) -> None:
    """The plugin library, where the engine needs it: TensorRT must know it before it loads the engine."""
    if not sidecar.facts.get("plugins"):
        return
    library, needed = load_plugins(flavour), sidecar.facts.get("plugins_library", {})
    if library.facts["version"] != needed.get("version"):
        found = f"the one here ({library.path}) is version {library.facts['version']}"
        message = f"{path} needs version {needed.get('version')} of the plugin library, {found}"
        raise SessionError(f"{message}: build the engine again")
    packed = needed.get("hopper") == "1" and "modulated_deform_conv2d_norm" in sidecar.facts["plugins"]
    if packed and library.facts["hopper"] != "1":
        message = f"{path} has weights packed for Hopper's kernels, which {library.path} lacks for this GPU"
        raise SessionError(f"{message}: build the library with ARCH=sm_90a, or the engine again")


def _check_device(path: pathlib.Path, sidecar: Sidecar) -> str:
    """The GPU's name. Raises SessionError where the engine is for other GPUs."""
    name, capability = cuda.device_name(), cuda.compute_capability()
    targets, built_on = sidecar.facts.get("targets", []), sidecar.facts.get("gpu")
    if capability not in targets:
        message = f"{path} was built for compute capability {' and '.join(targets)}; this GPU ({name}) has {capability}"
        raise SessionError(f"{message}: build it again for this GPU")
    if built_on and built_on != name:
        warnings.warn(f"{path} was built on {built_on}, not on {name}: it may be slow; build it again", stacklevel=3)
    return name


def _read_plan(path: pathlib.Path, sidecar: Sidecar) -> bytes:
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != sidecar.sha256:
        raise SessionError(f"{path} was altered, or {path.name}.json belongs to another engine: build it again")
    return plan


def _tensor_names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def _check_tensors(path: pathlib.Path, engine: Any, sidecar: Sidecar) -> None:
    """Raise SessionError unless the engine's inputs and outputs are those of its side file.

    An input that the engine's outputs don't depend on may be missing in the engine.
    """
    given = {spec.name: spec for spec in [*sidecar.inputs, *sidecar.state]}
    made = {spec.name: spec for spec in sidecar.outputs}
    made |= {f"{spec.name}_out": spec for spec in sidecar.state}
    found = set()
    for name in _tensor_names(engine):
        is_input = engine.get_tensor_mode(name).name == "INPUT"
        expected = (given if is_input else made).get(name)
        dtype, shape = _TYPES.get(engine.get_tensor_dtype(name).name), tuple(engine.get_tensor_shape(name))
        if expected is None or (expected.dtype, expected.shape) != (dtype, shape):
            raise SessionError(f"{path}: tensor {name} ({dtype} {shape}) is not what {path.name}.json says")
        found.add(name)
    if missing := sorted(set(made) - found):
        raise SessionError(f"{path} does not make {', '.join(missing)}, which {path.name}.json promises")


def _make_profiler(trt: Any, times: dict[str, list[float]]) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()


def _failure(path: pathlib.Path, what: str, logger: Any) -> SessionError:
    text = " ".join(logger.errors).lower()
    if "out of memory" in text or "outofmemory" in text:
        free, total = cuda.memory_info()
        return SessionError(f"{path}: out of GPU memory ({free / 1e6:.0f} of {total / 1e6:.0f} MB are free)")
    return SessionError(f"{path}: {what}: {logger.last()}")
