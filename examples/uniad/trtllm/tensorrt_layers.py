"""The layers that TensorRT's own API adds to a network definition, one method for each kind.

A method adds one layer and returns it; trtllm/tensorrt_executor.py names it and holds it to its types. Tensors are
ITensors, dimensions count from the front, shapes are static.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trtllm.network import Tensor
from trtllm.tensorrt_flavours import Flavour

UNARY = {
    n: n.upper() for n in ("exp", "log", "sqrt", "sin", "cos", "abs", "neg", "round", "floor", "erf", "atan", "not")
}
ACTIVATION = {"relu": "RELU", "sigmoid": "SIGMOID", "tanh": "TANH"}
BINARY = {
    "add": "SUM", "sub": "SUB", "mul": "PROD", "div": "DIV", "floordiv": "FLOOR_DIV", "pow": "POW", "min": "MIN",
    "max": "MAX", "gt": "GREATER", "lt": "LESS", "eq": "EQUAL", "and": "AND", "or": "OR",
}  # fmt: skip
REDUCE = {"sum": "SUM", "mean": "AVG", "max": "MAX", "min": "MIN"}


class NativeLayers:
    """Layers of an INetworkDefinition of one TensorRT flavour."""

    clips = False  # 8.6 takes no clip into the regions that it compiles, and would part them there

    def __init__(self, network: Any, flavour: Flavour):
        self.network, self.flavour, self.trt = network, flavour, flavour.trt
        self.name = "own"  # of the functions that add them, as builder.py --functional says it
        self.path = ""  # of the module whose calls come in, for messages

    def constant(self, array: np.ndarray):
        """The array's buffer is read when the engine is built: it must live until then."""
        return self.network.add_constant(array.shape, self.trt.Weights(array))

    def identity(self, x):
        return self.network.add_identity(x)

    def cast(self, x, target: str):
        return self.network.add_cast(x, self.flavour.types[target])

    # ---- element by element

    def binary(self, op: str, a, b):
        return self.network.add_elementwise(a, b, getattr(self.trt.ElementWiseOperation, BINARY[op]))

    def unary(self, op: str, x):
        if op in ACTIVATION:
            return self.network.add_activation(x, getattr(self.trt.ActivationType, ACTIVATION[op]))
        return self.network.add_unary(x, getattr(self.trt.UnaryOperation, UNARY[op]))

    def clip(self, x, low: float, high: float):
        layer = self.network.add_activation(x, self.trt.ActivationType.CLIP)
        layer.alpha, layer.beta = low, high
        return layer

    def where(self, condition, a, b):
        return self.network.add_select(condition, a, b)

    # ---- shape

    def view(self, x, shape: Sequence[int]):
        layer = self.network.add_shuffle(x)
        layer.zero_is_placeholder = False
        layer.reshape_dims = shape
        return layer

    def permute(self, x, order: Sequence[int]):
        layer = self.network.add_shuffle(x)
        layer.second_transpose = order
        return layer

    def slice(self, x, starts: Sequence[int], sizes: Sequence[int], strides: Sequence[int], fill=None):
        """fill: a tensor with the one value that stands outside of x; without it, nothing may lie outside."""
        layer = self.network.add_slice(x, starts, sizes, strides)
        if fill is not None:
            layer.mode = self.trt.SampleMode.FILL
            layer.set_input(4, fill)
        return layer

    def concat(self, xs: Sequence[Any], dim: int):
        layer = self.network.add_concatenation(xs)
        layer.axis = dim
        return layer

    # ---- look-up

    def index_select(self, x, dim: int, index):
        return self.network.add_gather(x, index, dim)

    def gather(self, x, dim: int, indices):
        layer = self.network.add_gather_v2(x, indices, self.trt.GatherMode.ELEMENT)
        layer.axis = dim
        return layer

    def scatter(self, x, dim: int, indices, updates):
        layer = self.network.add_scatter(x, indices, updates, self.trt.ScatterMode.ELEMENT)
        layer.axis = dim
        return layer

    def topk(self, x, k: int, dim: int, largest: bool):
        operation = self.trt.TopKOperation.MAX if largest else self.trt.TopKOperation.MIN
        return self.network.add_topk(x, operation, k, 1 << dim)

    # ---- sums and products

    def reduce(self, op: str, x, dims: Sequence[int], keepdim: bool):
        return self.network.add_reduce(
            x, getattr(self.trt.ReduceOperation, REDUCE[op]), sum(1 << d for d in dims), keepdim
        )

    def softmax(self, x, dim: int):
        layer = self.network.add_softmax(x)
        layer.axes = 1 << dim
        return layer

    def matmul(self, a, b, transa: bool, transb: bool):
        operation = self.trt.MatrixOperation
        ops = [operation.TRANSPOSE if t else operation.NONE for t in (transa, transb)]
        return self.network.add_matrix_multiply(a, ops[0], b, ops[1])

    def einsum(self, equation: str, xs: Sequence[Any]):
        return self.network.add_einsum(xs, equation)

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int):
        empty = self.trt.Weights()
        kernel, shift = (self.trt.Weights(t.array) if t and t.array is not None else empty for t in (weight, bias))
        layer = self.network.add_convolution_nd(x.handle, weight.shape[0], weight.shape[2:], kernel, shift)
        if layer is not None:
            layer.stride_nd, layer.padding_nd, layer.dilation_nd, layer.num_groups = stride, padding, dilation, groups
            for index, tensor in enumerate((weight, bias), 1):
                if tensor is not None and tensor.array is None:
                    layer.set_input(index, tensor.handle)
        return layer

    def layer_norm(self, x, gain, shift, eps: float):
        """Over the last dimension; gain and shift have x's rank. Not on 8.6 (TensorRTExecutor.layer_norm)."""
        layer = self.flavour.add_normalization(self.network, x, gain, shift, 1 << (len(x.shape) - 1))
        layer.epsilon = eps
        return layer

    # ---- images

    def interpolate(self, x, size: Sequence[int], mode: str, align_corners: bool):
        layer, how = self.network.add_resize(x), self.trt.ResizeCoordinateTransformation
        layer.shape = (*x.shape[:2], *size)
        if mode == "nearest":
            layer.resize_mode = self.trt.InterpolationMode.NEAREST
            layer.coordinate_transformation = how.ASYMMETRIC
            layer.nearest_rounding = self.trt.ResizeRoundMode.FLOOR
        else:
            layer.resize_mode = self.trt.InterpolationMode.LINEAR
            layer.coordinate_transformation = how.ALIGN_CORNERS if align_corners else how.HALF_PIXEL
        return layer

    def max_pool2d(self, x, kernel_size: int, stride: int, padding: int):
        layer = self.network.add_pooling_nd(x, self.trt.PoolingType.MAX, (kernel_size, kernel_size))
        layer.stride_nd, layer.padding_nd = (stride, stride), (padding, padding)
        return layer

    def scale(self, x, shift: np.ndarray, gain: np.ndarray, power: np.ndarray):
        """(x * gain + shift) ** power, per channel."""
        weights = [self.trt.Weights(array) for array in (shift, gain, power)]
        return self.network.add_scale_nd(x, self.trt.ScaleMode.CHANNEL, *weights, 1)

    def grid_sample(self, x, grid, mode: str, align_corners: bool):
        layer = self.network.add_grid_sample(x, grid)  # zeros outside is its default
        layer.align_corners = align_corners
        if mode == "nearest":
            layer.interpolation_mode = self.trt.InterpolationMode.NEAREST
        return layer
