"""A stand-in for tensorrt_llm 1.2.1 on any TensorRT module: the functions that this repository calls, and its habits.

Every function of the table in signatures.py takes exactly the arguments that stand there. Written from facts of
NVIDIA/TensorRT-LLM (which layers a function adds, what it refuses); functions that compute sizes in layers, or need its
plugin library, only say so: a static network must not call them.
"""

import collections
import contextlib
import inspect
import sys
import types

import numpy as np
from signatures import SIGNATURES

BINARY = {
    "add": "SUM", "sub": "SUB", "mul": "PROD", "div": "DIV", "floordiv": "FLOOR_DIV", "pow": "POW", "minimum": "MIN",
    "maximum": "MAX", "gt": "GREATER", "lt": "LESS", "eq": "EQUAL", "op_and": "AND", "op_or": "OR",
}  # fmt: skip
UNARY = {n: n.upper() for n in ("exp", "log", "sqrt", "sin", "cos", "abs", "round")} | {"not_op": "NOT"}
REDUCE = {"sum": "SUM", "mean": "AVG", "max": "MAX", "min": "MIN"}


class Network:
    def __init__(self, **kwargs):
        self.arrays, self.names = [], collections.Counter()

    def _init(self, trt_network):
        self.trt_network = trt_network
        return self


class FakeTensorRTLLM:
    """modules: by their names in sys.modules. calls: how often each function was called."""

    def __init__(self, trt, version="1.2.1"):
        self.trt, self.net, self.calls = trt, None, collections.Counter()
        functional = types.SimpleNamespace(trt=trt, Tensor=self.make_tensor_class())
        self.Tensor = functional.Tensor
        for name in SIGNATURES:
            setattr(functional, name, self.function(name))
        network = types.SimpleNamespace(Network=Network, net_guard=self.net_guard)
        self.modules = {"tensorrt_llm.functional": functional, "tensorrt_llm.network": network}
        self.modules["tensorrt_llm"] = types.SimpleNamespace(__version__=version)

    def install(self, monkeypatch):
        for name, module in self.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return self

    @contextlib.contextmanager
    def net_guard(self, network):
        old, self.net = self.net, network
        yield
        self.net = old  # not after an exception

    def make_tensor_class(self):
        fake = self

        class Tensor:
            def __init__(self, name=None, dtype=None, shape=None, dim_range=None, is_network_input=True):
                assert fake.net is not None, "no network: use net_guard"
                assert not is_network_input, "inputs come from elsewhere"

            dtype = property(lambda self: self.trt_tensor.dtype)
            shape = property(lambda self: self.trt_tensor.shape)

            def ndim(self):
                return len(self.shape)

        return Tensor

    def function(self, name):
        bind = eval(f"lambda {SIGNATURES[name]}: locals()")  # exactly these parameters

        def call(*args, **kwargs):
            bound = bind(*args, **kwargs)
            self.calls[name] += 1
            if name in BINARY:
                return self.elementwise(**bound, op=getattr(self.trt.ElementWiseOperation, BINARY[name]))
            if name in UNARY:
                return self.unary(**bound, op=getattr(self.trt.UnaryOperation, UNARY[name]))
            if name in REDUCE:
                return self.reduce(**bound, op=getattr(self.trt.ReduceOperation, REDUCE[name]))
            if name in ("relu", "sigmoid", "tanh"):
                kind = getattr(self.trt.ActivationType, name.upper())
                return self.made(self.layers.add_activation(bound["input"].trt_tensor, kind))
            return getattr(self, name)(**bound)

        call.__signature__ = inspect.signature(bind)
        return call

    def __getattr__(self, name):
        raise NotImplementedError(f"{name} is nothing for a static network")

    @property
    def layers(self):
        return self.net.trt_network

    def made(self, layer, outputs=1, **attributes):
        """Its tensors of a new layer, which gets these attributes and a name of its kind and number."""
        for name, value in attributes.items():
            setattr(layer, name, value)
        kind = layer.type.name
        layer.name = f"{kind}_{self.net.names[kind]}"
        self.net.names[kind] += 1
        tensors = [self.Tensor(is_network_input=False) for _ in range(outputs)]
        for index, tensor in enumerate(tensors):
            tensor.trt_tensor, tensor.producer = layer.get_output(index), layer
            tensor.trt_tensor.name = f"{layer.name}_output_{index}"
        return tensors[0] if outputs == 1 else tuple(tensors)

    def elementwise(self, left, right, op):
        assert left.ndim() == right.ndim(), "ranks are made equal by layers"
        return self.made(self.layers.add_elementwise(left.trt_tensor, right.trt_tensor, op))

    def unary(self, input, op):
        return self.made(self.layers.add_unary(input.trt_tensor, op))

    def reduce(self, input, dim, keepdim, op):
        axes = sum(1 << d for d in (dim if isinstance(dim, tuple) else (dim,)))
        return self.made(self.layers.add_reduce(input.trt_tensor, op, axes, keep_dims=keepdim))

    def constant(self, ndarray, as_dtype, as_shape):
        dtype = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "bool": "BOOL"}[str(ndarray.dtype)]
        self.net.arrays.append(ndarray)
        weights = self.trt.Weights(getattr(self.trt.DataType, dtype), ndarray.ctypes.data, ndarray.size)
        return self.made(self.layers.add_constant(self.trt.Dims(ndarray.shape), weights))

    def cast(self, input, dtype):
        if isinstance(dtype, str):
            dtype = {"float32": self.trt.float32, "float16": self.trt.float16, "int32": self.trt.int32}[dtype]
        return input if input.dtype == dtype else self.made(self.layers.add_cast(input.trt_tensor, dtype))

    def clip(self, input, alpha, beta):
        layer = self.layers.add_activation(input.trt_tensor, self.trt.ActivationType.CLIP)
        return self.made(layer, alpha=alpha, beta=beta)

    def where(self, condition, left, right):
        assert condition.ndim() == left.ndim() == right.ndim(), "ranks are made equal by layers"
        return self.made(self.layers.add_select(condition.trt_tensor, left.trt_tensor, right.trt_tensor))

    def view(self, input, shape, zero_is_placeholder):
        assert isinstance(shape, (list, tuple))
        layer = self.layers.add_shuffle(input.trt_tensor)
        return self.made(layer, zero_is_placeholder=zero_is_placeholder, reshape_dims=shape)

    def permute(self, input, dims):
        return self.made(self.layers.add_shuffle(input.trt_tensor), second_transpose=dims)

    def slice(self, input, starts, sizes, strides, mode, fill_value):
        if isinstance(fill_value, float):
            fill_value = self.constant(np.array(fill_value, np.float32), None, None)
        layer = self.layers.add_slice(input.trt_tensor, start=starts, shape=sizes, stride=strides or (1,) * len(sizes))
        if mode is not None:
            layer.mode = mode
        if mode is self.trt.SampleMode.FILL and fill_value is not None:
            layer.set_input(4, fill_value.trt_tensor)
        return self.made(layer)

    def concat(self, inputs, dim):
        return self.made(self.layers.add_concatenation([i.trt_tensor for i in inputs]), axis=dim)

    def gather(self, input, dim, indices):
        layer = self.layers.add_gather_v2(input.trt_tensor, indices.trt_tensor, mode=self.trt.GatherMode.ELEMENT)
        return self.made(layer, axis=dim)

    def scatter(self, input, dim, indices, updates):
        tensors = (t.trt_tensor for t in (input, indices, updates))
        return self.made(self.layers.add_scatter(*tensors, mode=self.trt.ScatterMode.ELEMENT), axis=dim)

    def embedding(self, input, weight, **sharding):
        return self.made(self.layers.add_gather(weight.trt_tensor, input.trt_tensor, 0))

    def topk(self, input, k, dim, largest, prefer_plugin):
        assert not prefer_plugin, "no plugin library"
        operation = self.trt.TopKOperation.MAX if largest else self.trt.TopKOperation.MIN
        return self.made(self.layers.add_topk(input.trt_tensor, operation, k=k, axes=1 << dim), 2)

    def softmax(self, input, dim):
        return self.made(self.layers.add_softmax(input.trt_tensor), axes=1 << dim)

    def matmul(self, input, mat2, transa, transb, use_fp32_acc):
        wide = use_fp32_acc and input.dtype == self.trt.float16
        a, b = (self.cast(t, "float32") if wide else t for t in (input, mat2))
        how = [self.trt.MatrixOperation.TRANSPOSE if t else self.trt.MatrixOperation.NONE for t in (transa, transb)]
        out = self.made(self.layers.add_matrix_multiply(a.trt_tensor, how[0], b.trt_tensor, how[1]))
        return self.cast(out, "float16") if wide else out

    def einsum(self, einsum_eq, inputs):
        return self.made(self.layers.add_einsum([i.trt_tensor for i in inputs], einsum_eq))

    def conv2d(self, input, weight, bias, stride, padding, dilation, groups, pre_padding, post_padding):
        (maps, _, *kernel), shift = weight.shape, bias.producer.weights if bias is not None else None
        layer = self.layers.add_convolution_nd(input.trt_tensor, maps, kernel, weight.producer.weights, shift)
        return self.made(layer, stride_nd=stride, padding_nd=padding, dilation_nd=dilation, num_groups=groups)

    def layer_norm(self, input, normalized_shape, weight, bias, eps, use_diff_of_squares):
        assert input.ndim() == weight.ndim() == bias.ndim(), "ranks are made equal by layers"
        tensors = (t.trt_tensor for t in (input, weight, bias))
        return self.made(self.layers.add_normalization(*tensors, 1 << (input.ndim() - 1)), epsilon=eps)

    def interpolate(self, input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias):
        layer = self.layers.add_resize(input.trt_tensor)
        layer.shape = (*input.shape[:2], *size)
        if mode == "bilinear":  # whatever align_corners says
            layer.resize_mode = self.trt.InterpolationMode.LINEAR
            layer.coordinate_transformation = self.trt.ResizeCoordinateTransformation.HALF_PIXEL
        return self.made(layer)
