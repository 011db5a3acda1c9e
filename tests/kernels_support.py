"""The kernels' arithmetic, compiled for the host: their threads run one after another behind the same C interface.

The tests of the network's operators run once more with the kernels in place of torch's sampling; each of them feeds a
broken case too. What only a GPU can show is in tests/gpu/check_plugins.py. conftest.py offers the fixtures to all.
"""

import collections
import shutil
import subprocess

import attention_kernels
import convolution_kernels
import kernel_calls
import kernel_cases as cases
import layout_kernels
import merge_kernels
import network_support
import pytest
import rowwise_kernels
import torch
from support import ROOT

from trtllm.functional import make
from trtllm.plugin_weights import map_positions, pack_deform_weight
from trtllm.torch_executor import TORCH, TorchExecutor

# Stored as float16, the exact result has this much more error at most; measured: 1.02, and 2.2 with corners in float16.
FLOAT16_FACTOR, HALF_BLEND_FACTOR = 1.5, 4.0


def bound(expected: torch.Tensor, dtype: torch.dtype, variant: int) -> float:
    """The error allowed, relative to the largest value."""
    if dtype == torch.float32:
        return 2e-6  # measured: 4e-7
    factor = HALF_BLEND_FACTOR if variant in attention_kernels.HALF_BLEND else FLOAT16_FACTOR
    return factor * cases.rounding_noise(expected, dtype)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The kernels behind their C interface, compiled once for all files of tests."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: the kernels' headers can't be compiled for the host")
    path = tmp_path_factory.mktemp("kernels") / "libkernels_host.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-DUNIAD_VARIANTS"]
    source = [ROOT / "tests" / "kernels_host.cpp", "-I", ROOT / "plugins" / "src"]
    subprocess.run([compiler, *flags, "-shared", "-fPIC", *source, "-o", path], check=True)
    return kernel_calls.load(path)


class HostKernels(TorchExecutor):
    """The torch executor with the kernels for the operations that have one."""

    def __init__(self, library):
        super().__init__()
        self.library = library
        self.calls: collections.Counter[str] = collections.Counter()
        self.joint = True  # the values of all layers by one projection, offsets and logits by one product
        self.joint_calls = 0  # of attentions whose offsets and logits were one tensor
        # Of each deformable and camera attention: how many heads the values have, where its own begin.
        self.value_heads: list[tuple[int, int]] = []

    def _run(self, call, tensors, **attributes):
        self.calls[call.__name__] += 1
        self.joint_calls += any(t is None for t in tensors)
        out = call(self.library, *(t if t is None else t.handle.contiguous() for t in tensors), **attributes)
        return make(out, tensors[0].dtype)

    def deformable_attention(self, *tensors, spatial_shapes, num_queries, first_head):
        call = attention_kernels.deformable_attention
        sizes = {"spatial_shapes": spatial_shapes, "num_queries": num_queries, "first_head": first_head}
        self.value_heads.append((tensors[0].shape[2], first_head))
        return self._run(call, tensors, **sizes)

    def temporal_attention(self, value, reference_points, offsets, logits, spatial_shape):
        reference = make(reference_points.handle.unsqueeze(1), "float32")  # one level
        tensors = (value, reference, offsets, logits)
        return self._run(attention_kernels.deformable_attention, tensors, spatial_shapes=[spatial_shape], mean=True)

    def joint_values(self, operation, channels, spatial_shapes):
        return self.joint

    def joint_samples(self, operation, channels, spatial_shapes, samples):
        return self.joint and samples % 8 == 0

    def camera_cross_attention(self, value, reference_points, visible, *tensors, spatial_shapes, first_head):
        visible = make(visible.handle.int(), "int32")
        tensors, shapes = (value, reference_points, visible, *tensors), spatial_shapes
        self.value_heads.append((value.shape[2], first_head))
        call = attention_kernels.camera_cross_attention
        return self._run(call, tensors, spatial_shapes=shapes, first_head=first_head)

    def modulated_deform_conv2d(self, x, offset_mask, weight, stride, padding):
        weight_, bias = weight.handle, torch.zeros(len(weight.handle))
        packed = torch.from_numpy(pack_deform_weight(weight_.numpy()))
        tensors = (x, offset_mask, make(packed, x.dtype), make(bias, "float32"))
        return self._run(convolution_kernels.deform_conv, tensors, stride=stride, padding=padding)

    def merge_masks(self, *tensors, num_classes, quality_thresh):
        self.calls["merge_masks"] += 1
        arguments = (x.handle.contiguous() for x in tensors)
        lane, lane_score = merge_kernels.merge_masks(self.library, *arguments, num_classes, quality_thresh)
        return make(lane, "int32"), make(lane_score, "float32")

    def point_sampling(self, lidar2img, *anchors, size, min_depth):
        self.calls["point_sampling"] += 1
        arguments = (lidar2img.handle.contiguous(), *map(torch.tensor, anchors))
        points, visible = rowwise_kernels.point_sampling(self.library, *arguments, size, min_depth)
        return make(points, "float32"), make(visible.bool(), "bool")

    def propagate(self, *tensors, low, size):
        return self._run(rowwise_kernels.propagate, tensors, low=low, size=size)

    def normalise_images(self, img, mean, size, dtype):
        self.calls["normalise_images"] += 1
        pixels = img.handle.to(TORCH[dtype]).contiguous()
        return make(rowwise_kernels.normalise_images(self.library, pixels, mean, size), dtype)

    def flatten_maps(self, maps, image_embeds, map_embeds):
        if maps[0].dtype != "float16":
            return None
        self.calls["flatten_maps"] += 1
        last = [x.handle.contiguous(memory_format=torch.channels_last) for x in maps]
        embeds = None if image_embeds is None else image_embeds.handle.unsqueeze(1) + map_embeds.handle
        return make(layout_kernels.flatten_maps(self.library, last, embeds), "float16")

    def sample_map(self, rows, shape, grid):
        if rows.dtype != "float16":
            return None
        self.calls["sample_map"] += 1
        positions = None if grid is None else torch.from_numpy(map_positions(grid, shape)).reshape(-1, 2)
        cells = layout_kernels.sample_map(self.library, rows.handle.contiguous(), shape, positions)  # (P,D)
        size = shape if grid is None else grid.shape[1:3]
        return make(cells.T.reshape(1, -1, *size), "float16")

    def add_layer_norm(self, x, residual, weight, bias, eps):
        self.calls["add_layer_norm"] += 1
        affine = [t.handle.float() for t in (weight, bias)]
        rows = [t.handle.contiguous() for t in (x, residual)]
        return make(rowwise_kernels.add_layer_norm(self.library, *rows, *affine, eps), x.dtype)

    def temporal_inputs(self, *maps, has_prev):
        self.calls["temporal_inputs"] += 1
        arguments = (*(t.handle.contiguous() for t in maps), has_prev.handle.int())
        return tuple(make(x, maps[0].dtype) for x in rowwise_kernels.temporal_inputs(self.library, *arguments))

    def rotate_nearest(self, x, matrix, shape):
        if x.shape[1] * x.handle.element_size() % 16:
            return None
        return self._run(rowwise_kernels.rotate_nearest, (x, matrix), shape=shape)


@pytest.fixture
def kernels(library, monkeypatch):
    """Every torch_network() of the test uses the kernels."""
    executor = HostKernels(library)
    monkeypatch.setattr(network_support, "torch_executor", lambda device: executor)
    return executor
