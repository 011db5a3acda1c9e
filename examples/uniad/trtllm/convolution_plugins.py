"""What the executor with plugins is built on: how a plugin becomes a layer, and the convolutions."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from errors import UniADError
from trtllm.network import Tensor
from trtllm.plugin_library import PluginLibrary
from trtllm.plugin_weights import (
    COMMON_LAYOUT,
    NARROW_CHANNELS,
    NARROW_OUTPUTS,
    pack_deform_weight,
    pack_expand_weight,
    pack_narrow_bias,
    pack_narrow_weight,
    pack_stem_weight,
)
from trtllm.tensorrt_executor import TensorRTExecutor, folded_statistics
from trtllm.tensorrt_flavours import Flavour
from trtllm.tensorrt_layers import NativeLayers

STEM_WEIGHT = (64, 3, 7, 7)
EXPAND_CHANNELS, EXPAND_OUTPUTS = (64, 128, 256), 256  # of expand_conv.cuh's kernels; multiples of so many outputs


def _folded_norm(weight: Tensor, statistics: Sequence[Tensor], eps: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A convolution's weight in its type and bias in float32, the norm behind it in them. None: no constants."""
    folded = folded_statistics(statistics, eps)
    if folded is None or weight.array is None:
        return None
    scale, offset = folded
    return (weight.array * scale.reshape(-1, 1, 1, 1)).astype(weight.dtype), offset.astype(np.float32)


class ConvolutionPlugins(TensorRTExecutor):
    """The base of tensorrt_plugins.PluginExecutor, which has the arguments and all other operations."""

    def __init__(
        self,
        network: Any,
        flavour: Flavour,
        plugins: Collection[str],
        library: PluginLibrary,
        layers: NativeLayers | None = None,
    ):
        super().__init__(network, flavour, layers)
        self.plugins = frozenset(plugins)
        self.library = library

    def _plugin(self, kind: str, name: str, inputs: Sequence[Any], *dtypes: str, **attributes):
        """A plugin layer; `dtypes` are the types of its outputs. Attributes are whole numbers, or floats."""
        trt = self.flavour.trt
        registry = trt.get_plugin_registry()
        get_creator = getattr(registry, "get_plugin_creator", None) or registry.get_creator
        creator = get_creator(kind, "1", "")
        if creator is None:
            raise UniADError(f"{self._path}: no plugin {kind}: load_plugins() comes first")
        attributes["half"] = int(dtypes[0] == "float16")
        arrays = {key: np.ascontiguousarray(value).reshape(-1) for key, value in attributes.items()}
        arrays = {key: a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for key, a in arrays.items()}
        kinds = {key: getattr(trt.PluginFieldType, array.dtype.name.upper()) for key, array in arrays.items()}
        fields = [trt.PluginField(key, array, kinds[key]) for key, array in arrays.items()]
        plugin = creator.create_plugin(name, trt.PluginFieldCollection(fields))
        if plugin is None:
            raise UniADError(f"{self._path}: plugin {kind} refuses {attributes}")
        return self._add(self.network.add_plugin_v2(list(inputs), plugin), name, *dtypes)

    def _as(self, x: Tensor, dtype: str):
        return x.handle if x.dtype == dtype else self.cast(x.handle, x.dtype, dtype)

    def modulated_deform_conv2d_norm(
        self, x: Tensor, offset_mask: Tensor, weight: Tensor, mean, var, gain, shift, stride, padding, relu, eps
    ):
        """The norm goes into weight and bias, the ReLU into the kernel."""
        (o, c), half = weight.shape[:2], x.dtype == "float16"
        if "modulated_deform_conv2d_norm" not in self.plugins or ((c % 32 or o % 64) if half else o % 8):
            return None
        folded = _folded_norm(weight, (mean, var, gain, shift), eps)
        if folded is None:
            return None
        n, _, h, w = x.shape
        layout = self.library.deform_conv_layout(n * h * w, c, o) if half else COMMON_LAYOUT
        kernel, bias = folded
        packed = pack_deform_weight(kernel, layout)
        handle = self._plugin(
            "UniADDeformConv",
            "modulated_deform_conv2d",
            [x.handle, self._as(offset_mask, x.dtype), self.constant(packed), self.constant(bias)],
            x.dtype,
            stride=stride,
            padding=padding,
            relu=int(relu),
            layout=layout,
        )
        return Tensor(handle, x.dtype, self.shape_of(handle))

    def narrow_conv2d(self, x: Tensor, weight: Tensor, bias: Tensor):
        outputs, channels = weight.shape[:2]
        fits = x.dtype == "float16" and channels % NARROW_CHANNELS == 0 and 24 < outputs <= NARROW_OUTPUTS
        if "narrow_conv2d" not in self.plugins or not fits or weight.array is None or bias.array is None:
            return None
        inputs = [
            x.handle,
            self.constant(pack_narrow_weight(weight.array)),
            self.constant(pack_narrow_bias(bias.array)),
        ]
        handle = self._plugin("UniADNarrowConv", "narrow_conv2d", inputs, "float16", outputs=outputs)
        return Tensor(handle, "float16", self.shape_of(handle))

    def conv2d_norm(self, x: Tensor, weight: Tensor, mean, var, gain, shift, residual, stride, padding, relu, eps):
        """The last convolution of a residual network's block; the norm goes into weight and bias."""
        o, c, *size = weight.shape
        pointwise = (size, *stride, *padding) == ([1, 1], 1, 1, 0, 0)
        fits = x.dtype == "float16" and pointwise and relu and c in EXPAND_CHANNELS and o % EXPAND_OUTPUTS == 0
        if "conv2d_norm" not in self.plugins or not fits or residual is None:
            return None
        folded = _folded_norm(weight, (mean, var, gain, shift), eps)
        if folded is None:
            return None
        kernel, bias = folded
        packed = pack_expand_weight(kernel[:, :, 0, 0])
        inputs = [x.handle, residual.handle, self.constant(packed), self.constant(bias)]
        return Tensor(self._plugin("UniADExpandConv", "conv2d_norm", inputs, x.dtype), x.dtype, residual.shape)

    def stem(self, x: Tensor, weight: Tensor, mean, var, gain, shift, eps):
        n, _, h, w = x.shape
        fits = x.dtype == "float16" and weight.shape == STEM_WEIGHT and h % 4 == 0 and w % 8 == 0
        if "stem" not in self.plugins or not fits:
            return None
        folded = _folded_norm(weight, (mean, var, gain, shift), eps)
        if folded is None:
            return None
        kernel, bias = folded
        inputs = [x.handle, self.constant(pack_stem_weight(kernel)), self.constant(bias)]
        return Tensor(self._plugin("UniADStem", "stem", inputs, x.dtype), x.dtype, (n, len(bias), h // 4, w // 4))
