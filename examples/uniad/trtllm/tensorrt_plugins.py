"""The plugin library (plugins/): found, checked and registered, and the executor that puts its operations in a network.

Built by plugins/CMakeLists.txt or plugins/build.sh. An engine with plugins needs the library wherever it runs: load it
before the engine is deserialized.
"""

import ctypes
import math
import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from errors import UniADError
from trtllm.network import FLOATS, Tensor
from trtllm.plugin_weights import (
    COMMON_LAYOUT,
    HOPPER_LAYOUT,
    NARROW_CHANNELS,
    NARROW_OUTPUTS,
    pack_deform_weight,
    pack_narrow_bias,
    pack_narrow_weight,
)
from trtllm.tensorrt_executor import TensorRTExecutor
from trtllm.tensorrt_flavours import Flavour
from trtllm.tensorrt_layers import NativeLayers

VERSION = 5  # UNIAD_PLUGINS_VERSION of plugins/src/kernels.h
HOPPER_CHANNELS, HOPPER_OUTPUTS = 64, 256  # UNIAD_… there
WIDTHS = (128, 256)  # of rows, in the kernels that multiply on tensor cores
MASK_HEADS, OCCUPANCY_MAX_INSTANCES = 8, 256  # kMaskHeads of attention_masks.cuh, UNIAD_… of kernels.h
MANY_CELLS = 1024  # of a memory; fewer are attended to inside of a compiled region
LARGE_OUTPUT = 1 << 20  # elements
MAX_LEVELS, MERGE_MAX_MASKS, MERGE_MAX_PIXELS, MERGE_MAX_CLASSES = 8, 1024, 262144, 64  # UNIAD_… there
NORM_MAX_CHANNELS = 1024  # UNIAD_NORM_MAX_CHANNELS there
NORM_MIN_ROWS = 1024  # TensorRT makes few rows' norms part of the regions around them: no plugin is faster
OPERATIONS = (
    "deformable_attention",
    "temporal_attention",
    "camera_cross_attention",
    "modulated_deform_conv2d_norm",
    "merge_masks",
    "point_sampling",
    "propagate",
    "rotate_nearest",
    "memory_attention",
    "attention_masks",
    "occupancy",
    "narrow_conv2d",
    "add_layer_norm",
    "normalise_images",
)
LIBRARY = "libuniad_plugins.so"
BUILD_HINT = "build it with plugins/build.sh, or use --plugins off"  # of the library


class PluginLibrary(NamedTuple):
    """A loaded and registered library.

    `deform_conv_layout(cells, channels, outputs)` is how the convolution's fastest float16 kernel on the current GPU
    reads its weight, for N*H*W cells of the input. `occupancy_runs(width)` is whether this GPU has the shared memory
    that the kernel of that operation needs.
    """

    path: pathlib.Path
    facts: dict[str, str]  # version, cuda, tensorrt, architectures; hopper: "1" where HOPPER_LAYOUT runs on this GPU
    deform_conv_layout: Callable[[int, int, int], int]
    occupancy_runs: Callable[[int], int] = lambda width: 0


def find_library() -> pathlib.Path | None:
    """$UNIAD_PLUGINS, else build/plugins/libuniad_plugins.so of this checkout; None where there is none.

    Raises:
        UniADError: $UNIAD_PLUGINS names no file.
    """
    named = os.environ.get("UNIAD_PLUGINS")
    if named:
        path = pathlib.Path(named)
        path = path / LIBRARY if path.is_dir() else path
        if not path.is_file():
            raise UniADError(f"UNIAD_PLUGINS={named}: no plugin library there; {BUILD_HINT}")
        return path
    path = pathlib.Path(__file__).resolve().parents[3] / "build" / "plugins" / LIBRARY
    return path if path.is_file() else None


def select_plugins(choice: str, flavour: Flavour) -> tuple[str, ...]:
    """The operations that `--plugins choice` puts into an engine: "auto", "off", or names separated by commas.

    "auto" takes all where a library is found and the flavour has plugins, else none.

    Raises:
        UniADError: an unknown name; plugins asked for by name where there can be none.
    """
    if choice == "off":
        return ()
    if choice == "auto":
        return OPERATIONS if not flavour.rtx and find_library() else ()
    names = [name for name in choice.split(",") if name]
    if unknown := sorted(set(names) - set(OPERATIONS)):
        raise UniADError(f"--plugins: no {', '.join(unknown)}; there are {', '.join(OPERATIONS)}, auto and off")
    if names and flavour.rtx:
        raise UniADError("--plugins: tensorrt-rtx takes no plugins; use --plugins off")
    return tuple(name for name in OPERATIONS if name in names)


def load_plugins(flavour: Flavour, path: pathlib.Path | None = None, on_device: bool = True) -> PluginLibrary:
    """Load the library and register its plugins with the flavour's TensorRT; again and again does no harm.

    Args:
        path: the library; None: find_library().
        on_device: also check that it has code for the current GPU.

    Raises:
        UniADError: it is missing, can't be loaded, or was built for other versions or another GPU.
    """
    path = path or find_library()
    if path is None:
        raise UniADError(f"the plugin library {LIBRARY} is missing; {BUILD_HINT}")
    try:
        library = ctypes.CDLL(str(path))
        library.uniad_plugins_build.restype = ctypes.c_char_p
        facts = dict(fact.split("=", 1) for fact in library.uniad_plugins_build().decode().split())
    except (OSError, AttributeError) as error:
        raise UniADError(f"{path}: not a plugin library that loads here ({error}); {BUILD_HINT}") from error
    if facts["version"] != str(VERSION):
        raise UniADError(f"{path}: version {facts['version']} of the plugins, needed is {VERSION}; {BUILD_HINT}")
    major = flavour.version.split(".")[0]
    if facts["tensorrt"].split(".")[0] != major:
        needed = f"needed are {flavour.version}'s: set TENSORRT_INCLUDE_DIR and build again"
        raise UniADError(f"{path}: built with the headers of TensorRT {facts['tensorrt']}, {needed}")
    if on_device and (status := library.uniad_plugins_check_device()):
        library.uniad_error_string.restype = ctypes.c_char_p
        reason = library.uniad_error_string(status).decode()
        built = f"built for {facts['architectures']}"
        raise UniADError(f"{path}: has no code for this GPU ({reason}; {built}): set ARCH and build again")
    if library.uniad_register_plugins(ctypes.c_void_p(_registry(flavour))) < 0:
        raise UniADError(f"{path}: TensorRT {flavour.version} refuses its plugins: {flavour.logger.last()}")
    facts["hopper"] = str(int(library.uniad_deform_conv_layout(1, HOPPER_CHANNELS, HOPPER_OUTPUTS) == HOPPER_LAYOUT))
    return PluginLibrary(path, facts, library.uniad_deform_conv_layout, library.uniad_occupancy_runs)


def _registry(flavour: Flavour) -> int:
    """The address of TensorRT's plugin registry, from the libnvinfer that the Python module has loaded."""
    name = f"libnvinfer.so.{flavour.version.split('.')[0]}"
    try:
        get = ctypes.CDLL(name).getPluginRegistry
    except (OSError, AttributeError) as error:
        raise UniADError(f"{name} can't be found beside {flavour.trt.__name__} ({error}): install it again") from error
    get.restype = ctypes.c_void_p
    return get()


class PluginExecutor(TensorRTExecutor):
    """The TensorRT executor with plugins for the operations named in `plugins`.

    An operation whose sizes no kernel was built for is built from the composition, as all others are. `library` is the
    one whose plugins these are.
    """

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

    def after(self, x: Tensor, earlier: Tensor | None) -> Tensor:
        """vision.after, whatever operations are plugins: there is a library, and no cheaper way to part a region."""
        inputs = [x.handle, x.handle if earlier is None else earlier.handle]
        return Tensor(self._plugin("UniADAfter", "after", inputs, x.dtype), x.dtype, x.shape)

    def deformable_attention(
        self,
        value: Tensor,
        reference_points: Tensor,
        offsets: Tensor,
        logits: Tensor,
        spatial_shapes,
        num_queries,
        first_head,
    ):
        if not self.joint_values("deformable_attention", value.shape[3], spatial_shapes):
            return None
        points, shape = reference_points.handle, (value.shape[0], *reference_points.shape[1:])
        points = points if shape == reference_points.shape else self.expand(points, shape)
        inputs = [value.handle, points, *(self._as(x, value.dtype) for x in (offsets, logits))]
        handle = self._plugin(
            "UniADDeformableAttention",
            "deformable_attention",
            inputs,
            value.dtype,
            spatial_shapes=spatial_shapes,
            num_queries=num_queries or 0,
            first_head=first_head,
        )
        return Tensor(handle, value.dtype, self.shape_of(handle))

    def temporal_attention(
        self, value: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor, spatial_shape
    ):
        if not self.joint_values("temporal_attention", value.shape[3], [spatial_shape]):
            return None
        inputs = [value.handle, reference_points.handle, *(self._as(x, value.dtype) for x in (offsets, logits))]
        handle = self._plugin(
            "UniADDeformableAttention",
            "temporal_attention",
            inputs,
            value.dtype,
            spatial_shapes=[spatial_shape],
            mean=1,
        )
        return Tensor(handle, value.dtype, self.shape_of(handle))

    def joint_values(self, operation: str, channels: int, spatial_shapes) -> bool:
        """Whether an attention is a plugin, which reads its heads out of those of all layers; there are kernels for few
        sizes."""
        return operation in self.plugins and channels in (16, 32) and len(spatial_shapes) <= MAX_LEVELS

    def camera_cross_attention(
        self,
        value: Tensor,
        reference_points: Tensor,
        visible: Tensor,
        offsets: Tensor,
        logits: Tensor,
        spatial_shapes,
        first_head,
    ):
        if not self.joint_values("camera_cross_attention", value.shape[3], spatial_shapes):
            return None
        queries, side = visible.shape[1], math.isqrt(visible.shape[1])
        key = ("as int32", visible.handle.name)  # the same mask in every layer: cast once
        if key not in self._constants:
            self._constants[key] = self._as(visible, "int32")
        moved = [self._as(x, value.dtype) for x in (offsets, logits)]
        handle = self._plugin(
            "UniADCameraAttention",
            "camera_cross_attention",
            [value.handle, reference_points.handle, self._constants[key], *moved],
            value.dtype,
            spatial_shapes=spatial_shapes,
            first_head=first_head,
            grid_width=side if side * side == queries else 0,  # a square map's columns; matters for speed only
        )
        return Tensor(handle, value.dtype, self.shape_of(handle))

    def modulated_deform_conv2d_norm(
        self, x: Tensor, offset_mask: Tensor, weight: Tensor, mean, var, gain, shift, stride, padding, relu, eps
    ):
        """The norm goes into weight and bias, the ReLU into the kernel."""
        arrays = [t.array for t in (weight, mean, var, gain, shift)]
        if "modulated_deform_conv2d_norm" not in self.plugins or any(a is None for a in arrays):
            return None
        (o, c), half = weight.shape[:2], x.dtype == "float16"
        if (c % 32 or o % 64) if half else o % 8:
            return None
        weight_, mean_, var_, gain_, shift_ = (np.asarray(a, np.float64) for a in arrays)
        scale = gain_ / np.sqrt(var_ + eps)
        n, _, h, w = x.shape
        layout = self.library.deform_conv_layout(n * h * w, c, o) if half else COMMON_LAYOUT
        packed = pack_deform_weight((weight_ * scale.reshape(-1, 1, 1, 1)).astype(x.dtype), layout)
        bias = (shift_ - mean_ * scale).astype(np.float32)
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

    def merge_masks(self, masks: Tensor, scores: Tensor, labels: Tensor, num_classes, quality_thresh):
        """Two outputs of their own types: one tensor for both would need a cast and slices behind it."""
        sizes = zip((*masks.shape, num_classes), (MERGE_MAX_MASKS, MERGE_MAX_PIXELS, MERGE_MAX_CLASSES))
        if "merge_masks" not in self.plugins or any(size > most for size, most in sizes):
            return None
        handles = self._plugin(
            "UniADMergeMasks",
            "merge_masks",
            [masks.handle, scores.handle, labels.handle],
            "int32",
            "float32",
            classes=num_classes,
            quality_thresh=float(quality_thresh),
        )
        return tuple(Tensor(x, dtype, self.shape_of(x)) for x, dtype in zip(handles, ("int32", "float32")))

    def point_sampling(self, lidar2img: Tensor, x: np.ndarray, y: np.ndarray, z: np.ndarray, size, min_depth):
        if "point_sampling" not in self.plugins:
            return None
        (width, height), inputs = map(float, size), [lidar2img.handle, *(self.constant(a) for a in (x, y, z))]
        attributes = {"width": width, "height": height, "min_depth": min_depth}
        points, seen = self._plugin("UniADPointSampling", "point_sampling", inputs, "float32", "int32", **attributes)
        visible = Tensor(self.cast(seen, "int32", "bool"), "bool", self.shape_of(seen))
        self._constants["as int32", visible.handle.name] = seen  # camera_cross_attention takes it as it is
        return Tensor(points, "float32", self.shape_of(points)), visible

    def propagate(self, ref_pts: Tensor, *others: Tensor, low: Sequence[float], size: Sequence[float]):
        if "propagate" not in self.plugins:
            return None
        inputs = [t.handle for t in (ref_pts, *others)]
        handle = self._plugin("UniADPropagate", "propagate", inputs, "float32", low=low, size=size)
        return Tensor(handle, "float32", ref_pts.shape)

    def rotate_nearest(self, x: Tensor, matrix: Tensor, shape: tuple[int, int]):
        if "rotate_nearest" not in self.plugins or x.shape[1] * np.dtype(x.dtype).itemsize % 16:
            return None
        inputs, (height, width) = [x.handle, matrix.handle], shape
        handle = self._plugin("UniADRotate", "rotate_nearest", inputs, x.dtype, height=height, width=width)
        return Tensor(handle, x.dtype, self.shape_of(handle))

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps):
        channels, arrays = x.shape[-1], [t.array for t in (weight, bias)]
        if "add_layer_norm" not in self.plugins or any(a is None for a in arrays):
            return None
        vectors = channels * np.dtype(x.dtype).itemsize % 16 == 0 and channels <= NORM_MAX_CHANNELS
        if not vectors or math.prod(x.shape[:-1]) < NORM_MIN_ROWS:
            return None
        kind, inputs = ("UniADLayerNorm", [x]) if residual is None else ("UniADAddLayerNorm", [x, residual])
        affine = [self.constant(np.asarray(a, np.float32)) for a in arrays]
        handle = self._plugin(kind, "add_layer_norm", [t.handle for t in inputs] + affine, x.dtype, eps=float(eps))
        return Tensor(handle, x.dtype, x.shape)

    def normalise_images(self, img: Tensor, mean: Sequence[float], size: tuple[int, int], dtype: str):
        """In two steps, since plugins of 8.6 take no uint8: whole numbers up to 255 are exact in float16."""
        if "normalise_images" not in self.plugins:
            return None
        (height, width), inputs = size, [self._as(img, dtype)]
        attributes = {"out_height": height, "out_width": width, "mean": [float(x) for x in mean]}
        handle = self._plugin("UniADNormaliseImages", "normalise_images", inputs, dtype, **attributes)
        return Tensor(handle, dtype, self.shape_of(handle))

    def has_memory_attention(self, memory: Tensor) -> bool:
        """Whether there is a kernel for the attention to such a memory."""
        fits = memory.dtype == "float16" and memory.shape[0] >= MANY_CELLS and memory.shape[1] in WIDTHS
        return "memory_attention" in self.plugins and fits

    def memory_attention(self, query: Tensor, memory: Tensor):
        if not self.has_memory_attention(memory):
            return None
        inputs = [query.handle, memory.handle]
        return Tensor(
            self._plugin("UniADMemoryAttention", "memory_attention", inputs, "float16"), "float16", query.shape
        )

    def attention_masks(self, query: Tensor, key: Tensor, *weights: Tensor, num_heads: int):
        arrays, fits = [t.array for t in weights], num_heads == MASK_HEADS and query.shape[1] in WIDTHS
        if (
            "attention_masks" not in self.plugins
            or query.dtype != "float16"
            or not fits
            or any(a is None for a in arrays)
        ):
            return None
        inputs = [query.handle, key.handle, *(self.constant(np.asarray(a, np.float32)) for a in arrays)]
        handle = self._plugin("UniADAttentionMasks", "attention_masks", inputs, "float32", heads=num_heads)
        return Tensor(handle, "float32", self.shape_of(handle))

    def occupancy(self, query: Tensor, states: Tensor, scores: Tensor, threshold: float):
        instances, width = query.shape[1:]
        fits = instances <= OCCUPANCY_MAX_INSTANCES and width in WIDTHS and self.library.occupancy_runs(width)
        if "occupancy" not in self.plugins or query.dtype != "float16" or not fits:
            return None
        inputs = [x.handle for x in (query, states, scores)]
        handle = self._plugin("UniADOccupancy", "occupancy", inputs, "int32", threshold=float(threshold))
        return Tensor(handle, "int32", self.shape_of(handle))

    def output(self, tensor: Tensor, name: str) -> None:
        """A large output is a copy of its own: as part of a compiled region it would change its type on the way."""
        large = tensor.dtype in FLOATS and math.prod(tensor.shape) >= LARGE_OUTPUT
        self._mark(self.after(tensor, None).handle if large else self._copied(tensor), tensor.dtype, name)
