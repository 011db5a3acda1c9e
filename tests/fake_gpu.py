"""A CUDA runtime and a TensorRT in host memory, to test what drives them: order of work, addresses, state, errors.

Streams are as late as CUDA allows: nothing runs until the host waits for it or another stream's work needs it, so
that a wait which is missing shows. Device memory starts poisoned.
"""

import ctypes
import enum
import sys
import types

import numpy as np

Status = enum.IntEnum(
    "Status", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorNoDevice": 100, "cudaErrorUnknown": 999}
)


class Marker:
    """What an event stands for once it is recorded."""

    def __init__(self, stream):
        self.stream, self.done = stream, False

    def fire(self):
        self.done = True

    def finish(self):
        while not self.done:
            self.stream.step()


class FakeStream:
    def __init__(self, runtime):
        self.operations, self.captured = [], None
        self.handle = len(runtime.streams) + 1
        runtime.streams[self.handle] = self

    def __int__(self):
        return self.handle

    def put(self, operation):
        (self.operations if self.captured is None else self.captured).append(operation)

    def step(self):
        self.operations.pop(0)()

    def drain(self):
        while self.operations:
            self.step()


class FakeRuntime(types.ModuleType):
    """Stands in for cuda.bindings.runtime. `fail` maps a function's name to the status it returns."""

    cudaEventDefault, cudaStreamNonBlocking = 0, 1
    cudaMemcpyKind = enum.IntEnum("Kind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    cudaStreamCaptureMode = enum.IntEnum("Mode", {"cudaStreamCaptureModeThreadLocal": 1})
    cudaDeviceAttr = enum.IntEnum(
        "Attribute", {"cudaDevAttrComputeCapabilityMajor": 75, "cudaDevAttrComputeCapabilityMinor": 76}
    )

    def __init__(self, total=1 << 30, capability=(8, 6), name=b"Fake A10"):
        super().__init__("cuda.bindings.runtime")
        self.total, self.capability, self.name = total, capability, name
        self.memory, self.streams, self.fail, self.launches, self.copies = {}, {}, {}, 0, []

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name.startswith("cuda") and callable(value) and name in self.fail:
            return lambda *args: (self.fail[name],)
        return value

    def used(self):
        return sum(len(buffer) for buffer in self.memory.values())

    def cudaMalloc(self, nbytes):
        if self.used() + nbytes > self.total:
            return (Status.cudaErrorMemoryAllocation, None)
        buffer = (ctypes.c_uint8 * (nbytes + 512))(*([0xCD] * 512))
        ctypes.memset(buffer, 0xCD, nbytes + 512)
        address = -(-ctypes.addressof(buffer) // 256) * 256
        self.memory[address] = buffer
        return Status.cudaSuccess, address

    def cudaHostAlloc(self, nbytes, flags):
        return self.cudaMalloc(nbytes)

    def cudaFree(self, address):
        for stream in self.streams.values():
            stream.drain()
        del self.memory[address]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemGetInfo(self):
        return Status.cudaSuccess, self.total - self.used(), self.total

    def cudaGetDeviceCount(self):
        return Status.cudaSuccess, 1

    def cudaGetDeviceProperties(self, device):
        return Status.cudaSuccess, types.SimpleNamespace(name=self.name)

    def cudaDeviceGetAttribute(self, attribute, device):
        return Status.cudaSuccess, self.capability[attribute == 76]

    def cudaStreamCreateWithFlags(self, flags):
        return Status.cudaSuccess, FakeStream(self)

    def cudaStreamSynchronize(self, stream):
        stream.drain()
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, nbytes, kind, stream):
        self.copies.append((int(kind), nbytes))
        stream.put(lambda: ctypes.memmove(target, source, nbytes))
        return (Status.cudaSuccess,)

    def cudaMemsetAsync(self, target, value, nbytes, stream):
        stream.put(lambda: ctypes.memset(target, value, nbytes))
        return (Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags):
        return Status.cudaSuccess, types.SimpleNamespace(marker=None)

    def cudaEventRecord(self, event, stream):
        event.marker = Marker(stream)
        stream.put(event.marker.fire)
        return (Status.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        stream.put(event.marker.finish)
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event):
        event.marker.finish()
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start, end):
        assert start.marker.done and end.marker.done
        return Status.cudaSuccess, 1.5

    def cudaStreamBeginCapture(self, stream, mode):
        stream.captured = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph, stream.captured = stream.captured, None
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        return Status.cudaSuccess, list(graph)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for operation in graph:
            stream.put(operation)
        return (Status.cudaSuccess,)

    def _freed(self, handle):
        return (Status.cudaSuccess,)

    cudaEventDestroy = cudaStreamDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _freed


def _view(address, dtype, shape):
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype).reshape(shape)


class FakeContext:
    def __init__(self, engine):
        self.engine, self.addresses, self.device_memory, self.profiler = engine, {}, None, None

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % 256 == 0

    def set_device_memory(self, address, size):
        self.device_memory = address

    def execute_async_v3(self, stream):
        assert self.device_memory, "the context has no scratch memory"
        addresses = dict(self.addresses)

        def run():
            given = {n: _view(addresses[n], d, s).copy() for n, m, d, s in self.engine.tensors if m == "INPUT"}
            for name, array in self.engine.compute(given).items():
                _view(addresses[name], array.dtype, array.shape)[...] = array

        self.engine.runtime.streams[stream].put(run)
        if self.profiler is not None:
            for name, milliseconds in self.engine.layer_times:
                self.profiler.report_layer_time(name, milliseconds)
        return True


NAMES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "uint8": "UINT8"}


class FakeEngine:
    """`tensors`: (name, "INPUT" or "OUTPUT", type, shape); `compute`: arrays in to arrays out, by name."""

    device_memory_size = 4096
    layer_times = (("img_backbone/conv1", 2.0), ("seg_head/softmax", 0.5))

    def __init__(self, runtime, tensors, compute):
        self.runtime, self.tensors, self.compute = runtime, tensors, compute
        self.num_io_tensors = len(tensors)
        self.table = {tensor[0]: tensor for tensor in tensors}

    def get_tensor_name(self, index):
        return self.tensors[index][0]

    def get_tensor_mode(self, name):
        return types.SimpleNamespace(name=self.table[name][1])

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name=NAMES[self.table[name][2]])

    def get_tensor_shape(self, name):
        return self.table[name][3]

    def create_execution_context_without_device_memory(self):
        return FakeContext(self)


class FakeEngineV2(FakeEngine):
    """With the calls of TensorRT 10.1 and later."""

    device_memory_size_v2 = 4096

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        return FakeContext(self)

    create_execution_context_without_device_memory = None


class FakeRuntimeCache:
    def __init__(self, engine):
        self.engine, self.kernels = engine, b""

    def deserialize(self, blob):
        fits = blob.startswith(self.engine.environment)
        self.kernels = blob if fits else self.kernels
        return fits

    def serialize(self):
        return self.kernels


class FakeRuntimeConfig:
    def __init__(self, engine):
        self.engine, self.strategy, self.cache = engine, None, None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return FakeRuntimeCache(self.engine)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class FakeRTXEngine(FakeEngineV2):
    """Of TensorRT for RTX: a context that finds no kernels in its runtime cache compiles them when it first runs."""

    environment = b"Fake A10, 1.7.1:"
    compiled = 0

    def create_runtime_config(self):
        return FakeRuntimeConfig(self)

    def create_execution_context(self, config):
        assert config.strategy == "user managed"
        context = FakeContext(self)
        run = context.execute_async_v3

        def execute_async_v3(stream):
            if not config.cache.kernels:
                self.compiled += 1
                config.cache.kernels = self.environment + b"kernels"
            return run(stream)

        context.execute_async_v3 = execute_async_v3
        return context


class FakeTensorRT(types.ModuleType):
    """Stands in for tensorrt or tensorrt_rtx; any plan "deserializes" to `engine`, or fails with `error`."""

    ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user managed")

    DataType = enum.Enum("DataType", list(NAMES.values()))
    LayerType = enum.Enum("LayerType", ["CONVOLUTION"])

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class IProfiler:
        pass

    def __init__(self, engine=None, error="", version="8.6.0", name="tensorrt"):
        super().__init__(name)
        self.engine, self.error, self.__version__ = engine, error, version

    def Runtime(self, logger):
        def deserialize(plan):
            if self.engine is None:
                logger.log(1, self.error)
            return self.engine

        return types.SimpleNamespace(deserialize_cuda_engine=deserialize)


def install(cuda_runtime, tensorrt, monkeypatch=None):
    """Put both in the place of the real modules (until the test ends, where a monkeypatch is given)."""
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = cuda_runtime
    package = types.ModuleType("cuda")
    package.bindings = bindings
    modules = {
        "cuda": package,
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": cuda_runtime,
        tensorrt.__name__: tensorrt,
    }
    for name, module in modules.items():
        if monkeypatch is None:
            sys.modules[name] = module
        else:
            monkeypatch.setitem(sys.modules, name, module)
