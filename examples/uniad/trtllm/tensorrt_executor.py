"""The TensorRT executor: each functional call adds layers to an INetworkDefinition.

Handles are ITensors. Their types are what the calls say: strongly typed networks hold them by themselves, 8.6 by
constraints on every layer that computes (tensorrt_flavours.py). Which functions add the layers is the business of
tensorrt_layers.py and tensorrt_llm_layers.py; here the layers and their tensors are named by module path and operation.
Operations that have no method here (deformable attention, atan2, …) are built from the compositions of
trtllm/vision.py and trtllm/sampled_attention.py.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from errors import UniADError
from trtllm import polynomials
from trtllm.network import FLOATS, Tensor
from trtllm.tensorrt_flavours import Flavour
from trtllm.tensorrt_layers import NativeLayers

MAX_K = 3840  # of ITopKLayer
SMALL = 256  # bytes up to which equal constants are one layer


def folded_statistics(statistics: Sequence[Tensor], eps: float) -> tuple[np.ndarray, np.ndarray] | None:
    """What a batch norm multiplies each channel by, and then adds: float64 (C), of mean, variance, gain and shift (C).

    None: they are no constants.
    """
    if any(t.array is None for t in statistics):
        return None
    mean, var, gain, shift = (np.asarray(t.array, np.float64) for t in statistics)
    scale = gain / np.sqrt(var + eps)
    return scale, shift - mean * scale


class TensorRTExecutor:
    """The methods of TorchExecutor, on a network definition of one TensorRT flavour.

    `layers` adds the layers; None: TensorRT's own API.
    The numpy buffers of constants and parameters are kept here: keep the executor until the engine is built.
    Raises UniADError, naming the layer, where TensorRT refuses one.
    """

    def __init__(self, network: Any, flavour: Flavour, layers: NativeLayers | None = None):
        self.network, self.flavour = network, flavour
        self.layers = layers or NativeLayers(network, flavour)
        self._path = ""
        self._names: collections.Counter[str] = collections.Counter()
        self._types: dict[str, str] = {}  # tensor name -> type; 8.6 does not know all of them before the build
        self._constants: dict[Any, Any] = {}
        self._buffers: list[np.ndarray] = []

    # ---- names, types, the network's border

    def enter(self, scope: list[str]) -> None:
        self._path = self.layers.path = "/".join(filter(None, scope))

    def leave(self, scope: list[str]) -> None:
        self.enter(scope[:-1])

    def shape_of(self, x) -> tuple[int, ...]:
        return tuple(x.shape)

    def input(self, name: str, dtype: str, shape: Sequence[int]) -> Tensor:
        """A network input. uint8 can only be cast to a float type."""
        handle = self.network.add_input(name, self.flavour.types[dtype], tuple(shape))
        if handle is None:
            raise UniADError(f"input {name}: TensorRT refuses it: {self.flavour.logger.last()}")
        self.flavour.declare_border(handle, dtype)
        self._types[name] = dtype
        return Tensor(handle, dtype, tuple(shape))

    def output(self, tensor: Tensor, name: str) -> None:
        """Make a tensor a network output."""
        self._mark(self._copied(tensor), tensor.dtype, name)

    def _copied(self, tensor: Tensor):
        """An identity: one tensor may be two outputs, or an input too."""
        return self._add(self.layers.identity(tensor.handle), "output", tensor.dtype)

    def _mark(self, handle, dtype: str, name: str) -> None:
        handle.name = name
        self.network.mark_output(handle)
        self.flavour.declare_border(handle, dtype)

    def _type(self, x) -> str:
        return self._types[x.name]

    def _add(self, layer: Any, op: str, *dtypes: str, compute: str | None = None, name: str = "") -> Any:
        """Name a new layer and its outputs, and hold it to its types: the one place where that is done.

        Args:
            dtypes: the types of its outputs.
            compute: the float type that it computes in, where no output has it.
        """
        name = name or (f"{self._path}/{op}" if self._path else op)
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}_{self._names[name]}"
        if layer is None:
            raise UniADError(f"{name}: TensorRT refuses it: {self.flavour.logger.last()}")
        layer.name = name
        floats = [d for d in dtypes if d in FLOATS]
        self.flavour.constrain(layer, compute or (floats[0] if floats else None), dtypes)
        outputs = []
        for index, dtype in enumerate(dtypes):
            tensor = layer.get_output(index)
            tensor.name = f"{name}:{index}" if index else name
            self._types[tensor.name] = dtype
            try:
                self.shape_of(tensor)
            except (RuntimeError, ValueError):
                raise UniADError(f"{name}: TensorRT refuses it: {self.flavour.logger.last()}") from None
            if self.flavour.strongly_typed and tensor.dtype != self.flavour.types[dtype]:
                raise UniADError(f"{name}: TensorRT makes {tensor.dtype} of it, not {dtype}")
            outputs.append(tensor)
        return outputs[0] if len(outputs) == 1 else outputs

    def _unless_bool(self, op: str, build: Callable[..., Any], x, *others):
        """A layer that moves elements. Those that take no bool get int32 and give it back as bool."""
        dtype = self._type(x)
        if dtype != "bool":
            return self._add(build(x, *others), op, dtype)
        inputs = [self.cast(t, "bool", "int32") if self._type(t) == "bool" else t for t in (x, *others)]
        return self.cast(self._add(build(*inputs), op, "int32"), "int32", "bool")

    # ---- constants and casts

    def parameter(self, array: np.ndarray, name: str):
        return self._constant(array, name)

    def constant(self, array: np.ndarray):
        return self._constant(array)

    def _constant(self, array: np.ndarray, name: str = ""):
        key = (str(array.dtype), array.shape, array.tobytes()) if array.nbytes <= SMALL else id(array)
        if key not in self._constants:
            dtype = str(array.dtype)
            stored = array.astype(np.int32) if dtype == "bool" else array  # 8.6 has no bool weights
            self._buffers += [array, stored]  # TensorRT reads the buffer at build time; the id must stay taken
            handle = self._add(self.layers.constant(stored), "constant", str(stored.dtype), name=name)
            self._constants[key] = self.cast(handle, "int32", "bool") if dtype == "bool" else handle
        return self._constants[key]

    def _fill(self, x, value: float):
        """`value` in x's type, broadcastable to x."""
        return self.constant(np.full((1,) * len(x.shape), value, self._type(x)))

    def cast(self, x, source: str, target: str):
        if "uint8" in (source, target) and source not in FLOATS and target not in FLOATS:
            return self.cast(self.cast(x, source, "float32"), "float32", target)  # uint8 only knows floats
        if target == "bool":  # what a cast makes of 0.5 is not said; "differs from 0" is
            return self.unary("not", self.binary("eq", x, self._fill(x, 0)))
        return self._add(self.layers.cast(x, target), "cast", target, compute=source if source in FLOATS else None)

    # ---- element by element

    def binary(self, op, a, b):
        dtype = self._type(a)
        if op == "eq" and dtype in ("bool", "uint8"):
            a, b = (self.cast(t, dtype, "int32") for t in (a, b))
        result = "bool" if op in ("gt", "lt", "eq", "and", "or") else dtype
        return self._add(self.layers.binary(op, a, b), op, result, compute=dtype if dtype in FLOATS else None)

    def unary(self, op, x):
        dtype = self._type(x)
        if dtype == "int32":  # IUnaryLayer has no integers in 8.6
            negative = self.binary("sub", self._fill(x, 0), x)
            return negative if op == "neg" else self.binary("max", x, negative)
        if op in polynomials.FUNCTIONS and dtype == "float32" and not self.flavour.strongly_typed:
            return polynomials.FUNCTIONS[op](self, x)
        return self._add(self.layers.unary(op, x), op, dtype)

    def clip(self, x, low, high):
        if self.layers.clips:
            return self._add(self.layers.clip(x, low, high), "clip", self._type(x))
        return self.binary("min", self.binary("max", x, self._fill(x, low)), self._fill(x, high))

    def where(self, condition, a, b):
        return self._unless_bool("where", lambda a, b: self.layers.where(condition, a, b), a, b)

    def after(self, x: Tensor, earlier: Tensor | None) -> Tensor | None:
        """vision.after on 8.6: a clip that clips nothing, since 8.6 takes no clip into the regions that it compiles."""
        if self.flavour.strongly_typed:
            return None
        handle, largest = x.handle, float(np.finfo(x.dtype).max)
        if earlier is not None:  # x + 0, where the 0 is made of an element of `earlier`
            element = self.slice(earlier.handle, (0,) * earlier.ndim(), (1,) * earlier.ndim(), (1,) * earlier.ndim())
            element = element if earlier.dtype == x.dtype else self.cast(element, earlier.dtype, x.dtype)
            element = self.clip(self.view(element, (1,) * x.ndim()), -1.0, 1.0)  # infinity would give no 0
            handle = self.binary("add", handle, self.binary("mul", element, self._fill(handle, 0)))
        layer = self.layers.clip(handle, -largest, largest)
        return Tensor(self._add(layer, "after", x.dtype), x.dtype, x.shape)

    # ---- shape

    def view(self, x, shape):
        if self.shape_of(x) == tuple(shape):
            return x
        return self._add(self.layers.view(x, shape), "view", self._type(x))

    def permute(self, x, order):
        if tuple(order) == tuple(range(len(order))):
            return x
        return self._add(self.layers.permute(x, order), "permute", self._type(x))

    def expand(self, x, shape):
        strides = tuple(int(length == size) for length, size in zip(x.shape, shape))
        return self._add(self.layers.slice(x, (0,) * len(shape), shape, strides), "expand", self._type(x))

    def slice(self, x, starts, sizes, strides):
        return self._add(self.layers.slice(x, starts, sizes, strides), "slice", self._type(x))

    def concat(self, xs, dim):
        return self._unless_bool("concat", lambda *inputs: self.layers.concat(inputs, dim), *xs)

    def pad(self, x, pad, value):
        before, after = [0] * len(x.shape), [0] * len(x.shape)
        for place, (left, right) in enumerate(zip(pad[::2], pad[1::2]), 1):
            before[-place], after[-place] = left, right
        sizes = tuple(left + length + right for left, length, right in zip(before, x.shape, after))

        def build(x):
            fill = self.constant(np.asarray(value, self._type(x)))
            return self.layers.slice(x, tuple(-left for left in before), sizes, (1,) * len(sizes), fill)

        return self._unless_bool("pad", build, x)

    # ---- look-up

    def index_select(self, x, dim, index):
        return self._unless_bool("index_select", lambda x: self.layers.index_select(x, dim, index), x)

    def gather(self, x, dim, indices):
        return self._unless_bool("gather", lambda x: self.layers.gather(x, dim, indices), x)

    def scatter(self, x, dim, indices, updates):
        return self._unless_bool("scatter", lambda x, u: self.layers.scatter(x, dim, indices, u), x, updates)

    def topk(self, x, k, dim, largest):
        if k > MAX_K:
            raise UniADError(f"{self._path}: topk of {k} rows; TensorRT sorts at most {MAX_K}")
        if len(x.shape) == 1:  # ITopKLayer wants two dimensions
            results = self.topk(self.view(x, (1, *x.shape)), k, 1, largest)
            return tuple(self.view(t, (k,)) for t in results)
        return self._add(self.layers.topk(x, k, dim, largest), "topk", self._type(x), "int32")

    # ---- sums and products

    def reduce(self, op, x, dims, keepdim):
        return self._add(self.layers.reduce(op, x, dims, keepdim), op, self._type(x))

    def cumsum(self, x, dim, dtype):
        """A product with a triangle of ones in float32 (TF32 is off): exact for integers below 2**24."""
        rank, length = len(x.shape), x.shape[dim]
        order = (*(d for d in range(rank) if d != dim), dim)
        rows = self.cast(x, dtype, "float32") if dtype != "float32" else x
        rows = self.view(self.permute(rows, order), (math.prod(x.shape) // length, length))
        summed = self.matmul(rows, self._triangle(length), False, False)
        summed = self.view(summed, tuple(x.shape[d] for d in order))
        summed = self.permute(summed, tuple(order.index(d) for d in range(rank)))
        return self.cast(summed, "float32", dtype) if dtype != "float32" else summed

    def _triangle(self, length: int):
        key = ("triangle", length)
        if key not in self._constants:
            self._constants[key] = self.constant(np.triu(np.ones((length, length), np.float32)))
        return self._constants[key]

    def softmax(self, x, dim):
        return self._add(self.layers.softmax(x, dim), "softmax", self._type(x))

    def matmul(self, a, b, transa, transb):
        return self._add(self.layers.matmul(a, b, transa, transb), "matmul", self._type(a))

    def einsum(self, equation, xs):
        return self._add(self.layers.einsum(equation.replace(" ", ""), xs), "einsum", self._type(xs[0]))

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups):
        if not self.flavour.strongly_typed and x.dtype == "float16" and (groups > 1 or tuple(dilation) != (1, 1)):
            # 8.6 has no float16 kernel for a few channels in a group, dilated. UniAD has no such convolution.
            shift = None if bias is None else self._wide(bias)
            wide = self.conv2d(self._wide(x), self._wide(weight), shift, stride, padding, dilation, groups)
            return self.cast(wide, "float32", "float16")
        layer = self.layers.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return self._add(layer, "conv2d", x.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        """A float tensor in float32."""
        if x.dtype == "float32":
            return x
        if x.array is not None:
            array = x.array.astype(np.float32)
            return Tensor(self.constant(array), "float32", x.shape, array)
        return Tensor(self.cast(x.handle, x.dtype, "float32"), "float32", x.shape)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps):
        """Wholly in float32: the squares of float16 numbers from 256 on have no place in float16."""
        shape, affine = (1,) * (x.ndim() - 1) + x.shape[-1:], []
        for tensor, default in ((weight, 1.0), (bias, 0.0)):
            if tensor is None:
                affine.append(self.constant(np.full(shape, default, np.float32)))
            elif tensor.array is not None:
                key = ("affine", id(tensor.array), shape)
                if key not in self._constants:
                    self._constants[key] = self.constant(tensor.array.astype(np.float32).reshape(shape))
                affine.append(self._constants[key])
            else:
                affine.append(self.view(self._wide(tensor).handle, shape))
        wide, (gain, shift) = self._wide(x).handle, affine
        if self.flavour.strongly_typed:
            out = self._add(self.layers.layer_norm(wide, gain, shift, eps), "layer_norm", "float32")
        else:
            # 8.6 turns the layer into a product of float16 and float32 in a float16 network, whatever it is told, and
            # then has no implementation ("Could not infer output types for operation mul: …normalizationScaled").
            out = self.binary("add", self.binary("mul", self._normalised(wide, eps), gain), shift)
        return out if x.dtype == "float32" else self.cast(out, "float32", x.dtype)

    def _normalised(self, x, eps: float):
        """Float32 with mean 0 and variance 1 along the last dimension."""
        last = (len(x.shape) - 1,)
        deviation = self.binary("sub", x, self.reduce("mean", x, last, True))
        variance = self.reduce("mean", self.binary("mul", deviation, deviation), last, True)
        return self.binary("div", deviation, self.unary("sqrt", self.binary("add", variance, self._fill(x, eps))))

    # ---- images

    def interpolate(self, x, size, mode, align_corners):
        return self._add(self.layers.interpolate(x, size, mode, align_corners), "interpolate", self._type(x))

    def max_pool2d(self, x, kernel_size, stride, padding):
        return self._add(self.layers.max_pool2d(x, kernel_size, stride, padding), "max_pool2d", self._type(x))

    def batch_norm(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps):
        """One scale and shift for each channel, computed in float64 before they take x's type."""
        folded = folded_statistics((mean, var, weight, bias), eps)
        if folded is None:
            raise UniADError(f"{self._path}: the statistics of a batch norm must be constants")
        scale, offset = folded
        buffers = [a.astype(x.dtype) for a in (offset, scale, np.ones_like(scale))]
        self._buffers += buffers
        shift, gain, power = buffers  # all three, or TensorRT takes power for float32
        return self._add(self.layers.scale(x.handle, shift, gain, power), "batch_norm", x.dtype)

    def grid_sample(self, x, grid, mode, align_corners):
        return self._add(self.layers.grid_sample(x, grid, mode, align_corners), "grid_sample", self._type(x))
