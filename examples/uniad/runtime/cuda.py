"""The CUDA runtime calls around an engine, over cuda-bindings 12 and 13. Every return code is checked.

Device 0 is used; CUDA_VISIBLE_DEVICES chooses which one that is. Nothing here is imported or called before it is
needed, so that a machine without a GPU can import the module.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from errors import UniADError

_NO_GPU = "no usable NVIDIA GPU: none is visible, or its driver is missing or older than cuda-bindings needs"
_MEANING = {
    "cudaErrorNoDevice": _NO_GPU,
    "cudaErrorInsufficientDriver": _NO_GPU,
    "cudaErrorInitializationError": _NO_GPU,
    "cudaErrorSystemDriverMismatch": _NO_GPU,
    "cudaErrorDevicesUnavailable": "another process has the GPU for itself: wait, or use another GPU",
    "cudaErrorMemoryAllocation": "out of GPU memory: end other processes on the GPU or use fewer --max-tracks",
    "cudaErrorNoKernelImageForDevice": "the engine has no code for this GPU: build it again for this GPU",
}


class CudaError(UniADError):
    """A CUDA call failed, or CUDA can't be used here. `code` is the runtime's name of the error, where there is one."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


@functools.cache
def runtime() -> ModuleType:
    """cuda.bindings.runtime. Raises CudaError where it isn't installed or can't be loaded."""
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise CudaError(f"cuda-bindings can't be imported ({error}): pip install cuda-bindings") from error
    return module


def call(name: str, *args: Any) -> Any:
    """Call a function of the CUDA runtime: None, its value, or a tuple of its values. Raises CudaError."""
    try:
        status, *values = getattr(runtime(), name)(*args)
    except RuntimeError as error:  # cuda-bindings found no driver library, or one without this function
        raise CudaError(f"{_NO_GPU} ({name}: {error})") from error
    if int(status) != 0:
        code = getattr(status, "name", str(status))
        raise CudaError(f"{_MEANING.get(code, 'CUDA failed')} ({name}: {code})", code)
    return values[0] if len(values) == 1 else tuple(values) or None


def _release(name: str, handle: Any) -> None:
    """Free a resource: nothing can be done about a failure here, and the process may be ending."""
    with contextlib.suppress(Exception):
        getattr(runtime(), name)(handle)


class _Resource:
    """Freed by close(), or when nothing refers to it any more, or when the process ends."""

    def __init__(self, release: str, handle: Any):
        self.handle = handle
        self.close = weakref.finalize(self, _release, release, handle)


class DeviceBuffer(_Resource):
    """`nbytes` of device memory at address `handle`."""

    def __init__(self, nbytes: int):
        try:
            super().__init__("cudaFree", call("cudaMalloc", max(nbytes, 1)))
        except CudaError as error:
            if error.code != "cudaErrorMemoryAllocation":
                raise
            free, total = memory_info()
            sizes = f"{nbytes / 1e6:.0f} MB wanted, {free / 1e6:.0f} of {total / 1e6:.0f} MB are free"
            raise CudaError(f"{_MEANING[error.code]} ({sizes})", error.code) from error
        self.nbytes = nbytes


class PinnedBuffer(_Resource):
    """Page-locked host memory, as uint8 `array` (nbytes): copies to and from it run beside the host's work."""

    def __init__(self, nbytes: int):
        super().__init__("cudaFreeHost", call("cudaHostAlloc", max(nbytes, 1), 0))
        self.nbytes = nbytes
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(self.handle)))  # (nbytes)


class Event(_Resource):
    """A point in a stream, and the time when the device reached it."""

    def __init__(self) -> None:
        super().__init__("cudaEventDestroy", call("cudaEventCreateWithFlags", runtime().cudaEventDefault))

    def synchronize(self) -> None:
        """Wait on the host until the work before the event is done."""
        call("cudaEventSynchronize", self.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds between two events that were reached."""
        return float(call("cudaEventElapsedTime", since.handle, self.handle))


class Graph(_Resource):
    """A captured sequence of work that one call launches."""

    def __init__(self, handle: Any):
        super().__init__("cudaGraphExecDestroy", handle)

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self.handle, stream.handle)


class Stream(_Resource):
    """A queue of device work. It does not wait for the default stream."""

    def __init__(self) -> None:
        flags = runtime().cudaStreamNonBlocking
        super().__init__("cudaStreamDestroy", call("cudaStreamCreateWithFlags", flags))

    def to_device(self, target: int, source: int, nbytes: int) -> None:
        """Copy from host address `source`, which must stay as it is until the copy is done."""
        call("cudaMemcpyAsync", target, source, nbytes, runtime().cudaMemcpyKind.cudaMemcpyHostToDevice, self.handle)

    def to_host(self, target: int, source: int, nbytes: int) -> None:
        call("cudaMemcpyAsync", target, source, nbytes, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost, self.handle)

    def zero(self, target: int, nbytes: int) -> None:
        call("cudaMemsetAsync", target, 0, nbytes, self.handle)

    def record(self, event: Event) -> None:
        call("cudaEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Later work of this stream waits for the event."""
        call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        call("cudaStreamSynchronize", self.handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Graph]]:
        """Record the block's work instead of running it; afterwards the list holds the graph."""
        graphs: list[Graph] = []
        mode = runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self.handle, mode)
        try:
            yield graphs
        except BaseException:
            _release("cudaStreamEndCapture", self.handle)
            raise
        graph = call("cudaStreamEndCapture", self.handle)
        try:
            graphs.append(Graph(call("cudaGraphInstantiate", graph, 0)))
        finally:
            _release("cudaGraphDestroy", graph)


def memory_info() -> tuple[int, int]:
    """Free and total device memory, bytes."""
    free, total = call("cudaMemGetInfo")
    return free, total


def compute_capability() -> str:
    """The device's compute capability, such as "8.6"."""
    attributes = runtime().cudaDeviceAttr
    major = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)
    minor = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)
    return f"{major}.{minor}"


def device_name() -> str:
    name = call("cudaGetDeviceProperties", 0).name
    return (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")


def device_count() -> int:
    """Usable devices; 0 where there is no driver or no cuda-bindings."""
    try:
        return int(call("cudaGetDeviceCount"))
    except CudaError:
        return 0
