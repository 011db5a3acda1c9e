"""The same layers, added by the functions of an installed tensorrt_llm: `builder.py --functional tensorrt_llm`.

Facts of NVIDIA/TensorRT-LLM, tensorrt_llm/functional.py, network.py and _utils.py: 1.2.1 is the last release that
has them. Each method here calls the one function that adds the layer meant. docs/design.md has the table of what is
called, and of the functions that are not, because they add something else.
"""

import importlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from errors import UniADError
from trtllm.network import Tensor
from trtllm.tensorrt_flavours import Flavour
from trtllm.tensorrt_layers import UNARY, NativeLayers

LAST = (1, 2, 1)  # release with the network definition functions
TENSORRT = 10  # major version that its releases with strongly typed networks are linked with
NAMES = {"not": "not_op", "and": "op_and", "or": "op_or", "min": "minimum", "max": "maximum"}  # where ours differ
UNNAMED = ("neg", "floor", "erf", "atan")  # only reached through its unary(input, op)
CONSTANTS = ("float32", "float16", "int32")  # of the types that its constant() knows, those that come here


class TensorRTLLM(NamedTuple):
    """What is used of an installed tensorrt_llm."""

    version: str
    functional: Any  # the modules
    network: Any


def load_tensorrt_llm(flavour: Flavour) -> TensorRTLLM:
    """The installed tensorrt_llm, where it can define networks for this flavour.

    Raises:
        UniADError: it can't be imported, is newer than 1.2.1, or works with another TensorRT.
    """
    major = int(flavour.version.split(".")[0])
    if not flavour.rtx and major != TENSORRT:  # told before an import that mixes two TensorRTs in this process
        raise UniADError(
            f"tensorrt_llm needs TensorRT {TENSORRT}, here is {flavour.version}: install the one that it asks for, or "
            "use --functional own"
        )
    try:
        version = str(importlib.import_module("tensorrt_llm").__version__)
        release = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        if release > LAST:
            raise UniADError(
                f"tensorrt_llm {version} has no functions to define networks: install {'.'.join(map(str, LAST))}, or "
                "use --functional own"
            )
        functional, network = (importlib.import_module(f"tensorrt_llm.{name}") for name in ("functional", "network"))
    except UniADError:
        raise
    except Exception as error:  # it loads MPI, torch and its libraries, and asserts that they are there
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UniADError(
            f"tensorrt_llm can't be imported ({reason}): install it, at most {'.'.join(map(str, LAST))}, or use "
            "--functional own"
        ) from error
    if functional.trt is not flavour.trt:
        raise UniADError(
            f"tensorrt_llm {version} works with the module {functional.trt.__name__}, not {flavour.trt.__name__}: use "
            "--backend tensorrt, or --functional own"
        )
    return TensorRTLLM(version, functional, network)


class TensorRTLLMLayers(NativeLayers):
    """Layers added by tensorrt_llm.functional; those that it never had are NativeLayers'."""

    clips = True

    def __init__(self, network: Any, flavour: Flavour):
        super().__init__(network, flavour)
        self.llm = load_tensorrt_llm(flavour)
        self.name = f"tensorrt_llm {self.llm.version}"
        # As its Builder.create_network() does, but around a definition of our builder: with our types, logger and
        # options.
        self.its_network = self.llm.network.Network()._init(network)
        self._constants: dict[str, Any] = {}  # tensor name -> layer; its conv2d takes the weights from there
        self._unnamed: list[Any] = []  # constants that the executor hasn't named yet

    def _call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """The layer that a call of `tensorrt_llm.functional.<function>` adds.

        Exactly one layer per call: so the network is the same, whichever functions define it. Most of what is wrong
        with a function for a static network shows there: sizes computed by layers, casts around products, plugins.
        """
        where, before = f"{self.path}: " if self.path else "", self.network.num_layers
        try:
            with self.llm.network.net_guard(self.its_network):
                args = tuple(self._wrap(arg) for arg in args)
                result = getattr(self.llm.functional, function)(*args, **kwargs)
            layer = (result[0] if isinstance(result, tuple) else result).producer
        except Exception as error:  # it asserts, or uses the layer that TensorRT didn't give
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            details = self.flavour.logger.last()
            raise UniADError(f"{where}{function} of {self.name} fails ({reason}; TensorRT: {details})") from error
        added = self.network.num_layers - before
        if added != 1:
            raise UniADError(f"{where}{function} of {self.name} adds {added} layers where one is meant")
        return layer

    def _wrap(self, arg: Any) -> Any:
        """An ITensor, or several, as its functions take them; anything else as it is."""
        if isinstance(arg, list):
            return [self._wrap(item) for item in arg]
        if not isinstance(arg, self.trt.ITensor):
            return arg
        while self._unnamed:
            layer = self._unnamed.pop()
            self._constants[layer.get_output(0).name] = layer
        tensor = self.llm.functional.Tensor(is_network_input=False)
        tensor.trt_tensor, tensor.producer = arg, self._constants.get(arg.name)
        return tensor

    def constant(self, array: np.ndarray):
        if str(array.dtype) not in CONSTANTS:
            return super().constant(array)
        self._unnamed.append(self._call("constant", array))
        return self._unnamed[-1]

    def cast(self, x, target: str):
        return self._call("cast", x, self.flavour.types[target])  # as a name it knows no uint8

    # ---- element by element

    def binary(self, op: str, a, b):
        return self._call(NAMES.get(op, op), a, b)

    def unary(self, op: str, x):
        if op in UNNAMED:
            return self._call("unary", x, getattr(self.trt.UnaryOperation, UNARY[op]))
        return self._call(NAMES.get(op, op), x)

    def clip(self, x, low: float, high: float):
        return self._call("clip", x, low, high)

    def where(self, condition, a, b):
        return self._call("where", condition, a, b)

    # ---- shape

    def view(self, x, shape: Sequence[int]):
        return self._call("view", x, tuple(shape), False)

    def permute(self, x, order: Sequence[int]):
        return self._call("permute", x, tuple(order))

    def slice(self, x, starts: Sequence[int], sizes: Sequence[int], strides: Sequence[int], fill=None):
        if fill is None:
            return self._call("slice", x, starts, sizes, strides)
        # A tensor of x's type: it would make a float32 constant of a number.
        return self._call("slice", x, starts, sizes, strides, self.trt.SampleMode.FILL, fill)

    def concat(self, xs: Sequence[Any], dim: int):
        return self._call("concat", list(xs), dim)

    # ---- look-up

    def index_select(self, x, dim: int, index):
        """Its embedding is the plain look-up of rows; its index_select reshapes by computed sizes after it."""
        return self._call("embedding", index, x) if dim == 0 else super().index_select(x, dim, index)

    def gather(self, x, dim: int, indices):
        return self._call("gather", x, dim, indices)

    def scatter(self, x, dim: int, indices, updates):
        return self._call("scatter", x, dim, indices, updates)

    def topk(self, x, k: int, dim: int, largest: bool):
        return self._call("topk", x, k, dim, largest, prefer_plugin=False)

    # ---- sums and products

    def reduce(self, op: str, x, dims: Sequence[int], keepdim: bool):
        return self._call(op, x, dim=tuple(dims), keepdim=keepdim)

    def softmax(self, x, dim: int):
        return self._call("softmax", x, dim)

    def matmul(self, a, b, transa: bool, transb: bool):
        return self._call("matmul", a, b, transa, transb, use_fp32_acc=False)  # True: casts around a float32 product

    def einsum(self, equation: str, xs: Sequence[Any]):
        return self._call("einsum", equation, list(xs))

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int):
        if any(t is not None and t.array is None for t in (weight, bias)):  # it fails on weights that are computed
            return super().conv2d(x, weight, bias, stride, padding, dilation, groups)
        shift = bias.handle if bias is not None else None
        return self._call("conv2d", x.handle, weight.handle, shift, stride, padding, dilation, groups)

    def layer_norm(self, x, gain, shift, eps: float):
        return self._call("layer_norm", x, x.shape[-1], gain, shift, eps)

    # ---- images

    def interpolate(self, x, size: Sequence[int], mode: str, align_corners: bool):
        if align_corners and mode == "bilinear":  # it samples as if align_corners were False
            return super().interpolate(x, size, mode, align_corners)
        return self._call("interpolate", x, list(size), mode=mode)
