"""The executor that puts the plugin library's operations in a network."""

import math
from collections.abc import Sequence

import numpy as np

from trtllm.convolution_plugins import ConvolutionPlugins
from trtllm.network import FLOATS, Tensor
from trtllm.plugin_library import (
    MAX_LEVELS,
    MERGE_MAX_CLASSES,
    MERGE_MAX_MASKS,
    MERGE_MAX_PIXELS,
    NORM_MAX_CHANNELS,
    OCCUPANCY_MAX_INSTANCES,
)
from trtllm.plugin_weights import map_positions

WIDTHS = (128, 256)  # of rows, in the kernels that multiply on tensor cores
MASK_HEADS = 8  # kMaskHeads of attention_masks.cuh
MANY_CELLS = 1024  # of a memory; fewer are attended to inside of a compiled region
FLATTEN_LEVELS = 4  # of the image features that become rows at once: maps of UniADFlattenLevels
HEAD_CHANNELS = (16, 32)  # of a head
# Queries and keys from which on an attention of many heads is a plugin: TensorRT fuses smaller ones with what is around
# them, modes of one agent or slots of one track, and a launch alone takes as long as their products.
HEADS_MIN_LENGTH = 64
LARGE_OUTPUT = 1 << 20  # elements
NORM_MIN_ROWS = 1024  # TensorRT makes few rows' norms part of the regions around them: no plugin is faster


def _whole_vectors(channels: int, dtype: str) -> bool:
    """Whether so many channels are whole vectors of 16 bytes, as the kernels that move rows read them."""
    return channels * np.dtype(dtype).itemsize % 16 == 0


def _half_vectors(x: Tensor) -> bool:
    """The same of maps (N,D,h,w) or rows (R,D), which must be float16."""
    return x.dtype == "float16" and _whole_vectors(x.shape[1], x.dtype)


class PluginExecutor(ConvolutionPlugins):
    """The TensorRT executor with plugins for the operations named in `plugins`.

    An operation whose sizes no kernel was built for is built from the composition, as all others are. `library` is the
    one whose plugins these are.
    """

    def _as_int32(self, x: Tensor):
        """The same flags in every layer: cast once."""
        key = ("as int32", x.handle.name)
        if key not in self._constants:
            self._constants[key] = self._as(x, "int32")
        return self._constants[key]

    def after(self, x: Tensor, earlier: Tensor | None) -> Tensor:
        """vision.after, whatever operations are plugins: there is a library, and no cheaper way to part a region."""
        inputs = [x.handle, x.handle if earlier is None else earlier.handle]
        return Tensor(self._plugin("UniADAfter", "after", inputs, x.dtype), x.dtype, x.shape)

    def deformable_attention(
        self,
        value: Tensor,
        reference_points: Tensor,
        offsets: Tensor,
        logits: Tensor | None,
        spatial_shapes,
        num_queries,
        first_head,
    ):
        if not self.joint_values("deformable_attention", value.shape[3], spatial_shapes):
            return None
        points, shape = reference_points.handle, (value.shape[0], *reference_points.shape[1:])
        points = points if shape == reference_points.shape else self.expand(points, shape)
        inputs = [value.handle, points, *self._samples(value, offsets, logits)]
        handle = self._plugin(
            "UniADDeformableAttention",
            "deformable_attention",
            inputs,
            value.dtype,
            spatial_shapes=spatial_shapes,
            num_queries=num_queries or 0,
            first_head=first_head,
            joint=int(logits is None),
        )
        return Tensor(handle, value.dtype, self.shape_of(handle))

    def temporal_attention(
        self, value: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor | None, spatial_shape
    ):
        if not self.joint_values("temporal_attention", value.shape[3], [spatial_shape]):
            return None
        inputs = [value.handle, reference_points.handle, *self._samples(value, offsets, logits)]
        handle = self._plugin(
            "UniADDeformableAttention",
            "temporal_attention",
            inputs,
            value.dtype,
            spatial_shapes=[spatial_shape],
            mean=1,
            joint=int(logits is None),
        )
        return Tensor(handle, value.dtype, self.shape_of(handle))

    def joint_values(self, operation: str, channels: int, spatial_shapes) -> bool:
        """Whether an attention is a plugin, which reads its heads out of those of all layers; there are kernels for few
        sizes."""
        return operation in self.plugins and channels in HEAD_CHANNELS and len(spatial_shapes) <= MAX_LEVELS

    def joint_samples(self, operation: str, channels: int, spatial_shapes, samples: int) -> bool:
        """Whether an attention reads offsets and logits, of so many samples a query, out of one tensor, where both must
        begin at multiples of 16 bytes."""
        return samples % 8 == 0 and self.joint_values(operation, channels, spatial_shapes)

    def _samples(self, value: Tensor, offsets: Tensor, logits: Tensor | None) -> list:
        """Offsets and logits; joint ones twice."""
        return [self._as(x, value.dtype) for x in (offsets, offsets if logits is None else logits)]

    def camera_cross_attention(
        self,
        value: Tensor,
        reference_points: Tensor,
        visible: Tensor,
        offsets: Tensor,
        logits: Tensor | None,
        spatial_shapes,
        first_head,
    ):
        if not self.joint_values("camera_cross_attention", value.shape[3], spatial_shapes):
            return None
        queries, side = visible.shape[1], math.isqrt(visible.shape[1])
        handle = self._plugin(
            "UniADCameraAttention",
            "camera_cross_attention",
            [value.handle, reference_points.handle, self._as_int32(visible), *self._samples(value, offsets, logits)],
            value.dtype,
            spatial_shapes=spatial_shapes,
            first_head=first_head,
            joint=int(logits is None),
            grid_width=side if side * side == queries else 0,  # a square map's columns; matters for speed only
        )
        return Tensor(handle, value.dtype, self.shape_of(handle))

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
        if "rotate_nearest" not in self.plugins or not _whole_vectors(x.shape[1], x.dtype):
            return None
        inputs, (height, width) = [x.handle, matrix.handle], shape
        handle = self._plugin("UniADRotate", "rotate_nearest", inputs, x.dtype, height=height, width=width)
        return Tensor(handle, x.dtype, self.shape_of(handle))

    def temporal_inputs(self, *maps: Tensor, has_prev: Tensor):
        (cells, channels), dtype = maps[0].shape, maps[0].dtype
        if "temporal_inputs" not in self.plugins or not _whole_vectors(channels, dtype):
            return None
        inputs = [*(x.handle for x in maps), self._as_int32(has_prev)]
        pair, both = self._plugin("UniADTemporalInputs", "temporal_inputs", inputs, dtype, dtype)
        return Tensor(pair, dtype, (cells, 2 * channels)), Tensor(both, dtype, (2, cells, channels))

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps):
        channels, arrays = x.shape[-1], [t.array for t in (weight, bias)]
        if "add_layer_norm" not in self.plugins or any(a is None for a in arrays):
            return None
        fits = _whole_vectors(channels, x.dtype) and channels <= NORM_MAX_CHANNELS
        if not fits or math.prod(x.shape[:-1]) < NORM_MIN_ROWS:
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

    def flatten_maps(self, maps: Sequence[Tensor], image_embeds: Tensor | None, map_embeds: Tensor | None):
        kind = {(1, False): "UniADFlattenMap", (FLATTEN_LEVELS, True): "UniADFlattenLevels"}.get(
            (len(maps), image_embeds is not None)
        )
        if "flatten_maps" not in self.plugins or kind is None or not _half_vectors(maps[0]):
            return None
        inputs = [x.handle for x in maps]
        if image_embeds is not None and map_embeds is not None:
            if image_embeds.array is None or map_embeds.array is None:
                return None
            images, levels = (np.asarray(x.array, np.float16) for x in (image_embeds, map_embeds))
            inputs.append(self.constant(images[:, None] + levels))  # (N,L,D), rounded as the composition's sum
        handle = self._plugin(kind, "flatten_maps", inputs, "float16")
        return Tensor(handle, "float16", self.shape_of(handle))

    def sample_map(self, rows: Tensor, shape: tuple[int, int], grid: np.ndarray | None):
        if "sample_map" not in self.plugins or not _half_vectors(rows):
            return None
        kind, inputs = "UniADUnflattenMap", [rows.handle]
        if grid is not None:
            kind, inputs = "UniADSampleMap", [*inputs, self.constant(map_positions(grid, shape))]
        handle = self._plugin(kind, "sample_map", inputs, "float16", height=shape[0], width=shape[1])
        return Tensor(handle, "float16", self.shape_of(handle))

    def memory_attention(self, query: Tensor, memory: Tensor):
        fits = memory.dtype == "float16" and memory.shape[0] >= MANY_CELLS and memory.shape[1] in WIDTHS
        if "memory_attention" not in self.plugins or not fits:
            return None
        inputs = [query.handle, memory.handle]
        return Tensor(
            self._plugin("UniADMemoryAttention", "memory_attention", inputs, "float16"), "float16", query.shape
        )

    def joint_heads(self, queries: int, memory: Tensor, num_heads: int) -> bool:
        """Whether the attention of so many queries to a memory (L,D) is a plugin, which reads keys and values of one
        attention out of those of several."""
        fits = memory.dtype == "float16" and memory.shape[1] // num_heads in HEAD_CHANNELS
        return fits and "multihead_attention" in self.plugins and min(queries, memory.shape[0]) >= HEADS_MIN_LENGTH

    def multihead_attention(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, first_heads):
        """Masks that all heads and groups share, for each query or for all; an even number of keys where for each."""
        queries, keys, channels = query.shape[-3], key.shape[-3], query.shape[-1]
        if "multihead_attention" not in self.plugins or query.dtype != "float16" or channels not in HEAD_CHANNELS:
            return None
        if min(queries, keys) < HEADS_MIN_LENGTH:
            return None
        inputs = [x.handle for x in (query, key, value)]
        if blocked is not None:
            *ones, rows, columns = (1, 1, *blocked.shape)
            fits = columns == keys and (rows == 1 or (rows == queries and keys % 2 == 0))
            if not fits or math.prod(ones) != 1:
                return None
            inputs.append(self._as_int32(blocked))
        kind = "UniADMultiheadAttention" if blocked is None else "UniADMaskedMultiheadAttention"
        first = dict(zip(("key_head", "value_head"), first_heads))
        return Tensor(self._plugin(kind, "multihead_attention", inputs, "float16", **first), "float16", query.shape)

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
