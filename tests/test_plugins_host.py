"""The kernels' arithmetic, compiled for the host: their threads run one after another behind the same C interface.

The tests of the network's operators run once more with the kernels in place of torch's sampling; each of them feeds a
broken case too. What only a GPU can show is in tests/gpu/check_plugins.py.
"""

import collections
import ctypes
import os
import pathlib
import shutil
import subprocess

import kernel_calls
import kernel_cases as cases
import network_support
import numpy as np
import pytest
import test_backbone
import test_bev_encoder
import test_motion_head
import test_seg_head
import test_track_decoder
import torch
from op_references import merge_by_loop
from support import ROOT, assert_close, golden, noise_floor

from trtllm.functional import make
from trtllm.plugin_weights import COMMON_LAYOUT, HOPPER_LAYOUT, pack_deform_weight
from trtllm.torch_executor import TORCH, TorchExecutor

INCLUDES = sorted(ROOT.glob("third_party/tensorrt-*/include"))
CUDA = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
# Stored as float16, the exact result has this much more error at most; measured: 1.02, and 2.2 with corners in float16.
FLOAT16_FACTOR, HALF_BLEND_FACTOR = 1.5, 4.0


@pytest.fixture(scope="module")
def library(tmp_path_factory):
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
        self.joint = True  # the values of all layers by one projection
        # Of each deformable and camera attention: how many heads the values have, where its own begin.
        self.value_heads: list[tuple[int, int]] = []

    def _run(self, call, tensors, **attributes):
        self.calls[call.__name__] += 1
        out = call(self.library, *(t.handle.contiguous() for t in tensors), **attributes)
        return make(out, tensors[0].dtype)

    def deformable_attention(self, *tensors, spatial_shapes, num_queries, first_head):
        call = kernel_calls.deformable_attention
        sizes = {"spatial_shapes": spatial_shapes, "num_queries": num_queries, "first_head": first_head}
        self.value_heads.append((tensors[0].shape[2], first_head))
        return self._run(call, tensors, **sizes)

    def temporal_attention(self, value, reference_points, offsets, logits, spatial_shape):
        reference = make(reference_points.handle.unsqueeze(1), "float32")  # one level
        tensors = (value, reference, offsets, logits)
        return self._run(kernel_calls.deformable_attention, tensors, spatial_shapes=[spatial_shape], mean=True)

    def joint_values(self, operation, channels, spatial_shapes):
        return self.joint

    def camera_cross_attention(self, value, reference_points, visible, *tensors, spatial_shapes, first_head):
        visible = make(visible.handle.int(), "int32")
        tensors, shapes = (value, reference_points, visible, *tensors), spatial_shapes
        self.value_heads.append((value.shape[2], first_head))
        call = kernel_calls.camera_cross_attention
        return self._run(call, tensors, spatial_shapes=shapes, first_head=first_head)

    def modulated_deform_conv2d(self, x, offset_mask, weight, stride, padding):
        weight_, bias = weight.handle, torch.zeros(len(weight.handle))
        packed = torch.from_numpy(pack_deform_weight(weight_.numpy()))
        tensors = (x, offset_mask, make(packed, x.dtype), make(bias, "float32"))
        return self._run(kernel_calls.deform_conv, tensors, stride=stride, padding=padding)

    def merge_masks(self, *tensors, num_classes, quality_thresh):
        self.calls["merge_masks"] += 1
        arguments = (x.handle.contiguous() for x in tensors)
        lane, lane_score = kernel_calls.merge_masks(self.library, *arguments, num_classes, quality_thresh)
        return make(lane, "int32"), make(lane_score, "float32")

    def point_sampling(self, lidar2img, *anchors, size, min_depth):
        self.calls["point_sampling"] += 1
        arguments = (lidar2img.handle.contiguous(), *map(torch.tensor, anchors))
        points, visible = kernel_calls.point_sampling(self.library, *arguments, size, min_depth)
        return make(points, "float32"), make(visible.bool(), "bool")

    def propagate(self, *tensors, low, size):
        return self._run(kernel_calls.propagate, tensors, low=low, size=size)

    def normalise_images(self, img, mean, size, dtype):
        self.calls["normalise_images"] += 1
        pixels = img.handle.to(TORCH[dtype]).contiguous()
        return make(kernel_calls.normalise_images(self.library, pixels, mean, size), dtype)

    def add_layer_norm(self, x, residual, weight, bias, eps):
        self.calls["add_layer_norm"] += 1
        affine = [t.handle.float() for t in (weight, bias)]
        rows = [t.handle.contiguous() for t in (x, residual)]
        return make(kernel_calls.add_layer_norm(self.library, *rows, *affine, eps), x.dtype)

    def rotate_nearest(self, x, matrix, shape):
        if x.shape[1] * x.handle.element_size() % 16:
            return None
        return self._run(kernel_calls.rotate_nearest, (x, matrix), shape=shape)


@pytest.fixture
def kernels(library, monkeypatch):
    """Every torch_network() of the test uses the kernels."""
    executor = HostKernels(library)
    monkeypatch.setattr(network_support, "torch_executor", lambda device: executor)
    return executor


@pytest.mark.parametrize(
    ("operator_test", "arguments", "kernel"),
    [
        (test_bev_encoder.test_temporal_attention_op, (), "deformable_attention"),
        (test_bev_encoder.test_camera_attention_op, (), "camera_cross_attention"),
        (test_track_decoder.test_deformable_attention_op, (), "deformable_attention"),
        (test_seg_head.test_deformable_attention, (1,), "deformable_attention"),
        (test_seg_head.test_deformable_attention, (4,), "deformable_attention"),
        (test_motion_head.test_motion_deformable_attention, (), "deformable_attention"),
        (test_backbone.test_deformable_convolution_op, ("dcnv2_stride1", True), "deform_conv"),
        (test_backbone.test_deformable_convolution_op, ("dcnv2_stride2", True), "deform_conv"),
    ],
)
def test_recorded_operator(kernels, operator_test, arguments, kernel):
    operator_test(*arguments)
    assert kernels.calls[kernel] >= 2  # the operator and its broken case


SIZES = [
    {"shapes": [(20, 20)], "batch": 2, "mean": True},
    {"shapes": [(13, 17)], "levels": 4, "flat_buffer": True},
    {"shapes": [(13, 17)], "queries": 61, "reference_size": 4, "levels": 4, "flat_buffer": True, "channels": 16},
    {"shapes": [(9, 7), (5, 4), (1, 1)], "batch": 2, "queries": 21, "levels": 3, "points": 5, "heads": 3},
    {"shapes": [(9, 7), (5, 4)], "queries": 50, "levels": 2, "points": 8, "heads": 16, "channels": 16},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_deformable_attention(library, size, dtype):
    torch.manual_seed(7)
    case = cases.deformable_case(dtype, "cpu", **size)
    expected = cases.deformable_reference(**case)
    tuned = dtype == torch.float16 and size.get("heads", 8) == 8 and size.get("channels", 32) == 32
    for variant in kernel_calls.VARIANTS if tuned else [0]:
        out = kernel_calls.deformable_attention(library, **case, variant=variant)
        assert cases.relative_error(out, expected) < bound(expected, dtype, variant), variant
    moved = {**case, "sampling_offsets": case["sampling_offsets"] + 0.01}
    out = kernel_calls.deformable_attention(library, **moved)
    assert cases.relative_error(out, expected) > bound(expected, dtype, 0), "all points moved by a hundredth of a cell"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("anchors", "heads", "channels"), [(4, 8, 32), (4, 2, 16), (3, 4, 32)])
def test_camera_cross_attention(library, anchors, heads, channels, dtype):
    torch.manual_seed(8)
    points, visible = torch.rand(6, 55, anchors, 2) * 1.6 - 0.3, torch.rand(6, 55, anchors) > 0.9
    points[0, 0] = float("inf")  # an anchor in the camera's plane; other anchors may be seen
    visible[0, 0] = False
    case = cases.camera_case(dtype, "cpu", [(16, 28), (8, 14)], points, visible, heads, channels, 2 * anchors)
    expected = cases.camera_reference(**case)
    assert 0 < int(visible.any(2).any(0).sum()) < 55, "some queries are seen by no camera"
    for variant in kernel_calls.VARIANTS if dtype == torch.float16 and heads == 8 else [0]:
        out = kernel_calls.camera_cross_attention(library, **case, variant=variant)
        assert cases.relative_error(out, expected) < bound(expected, dtype, variant), variant
    other = {**case, "visible": case["visible"].flip(0).contiguous()}
    out = kernel_calls.camera_cross_attention(library, **other)
    assert cases.relative_error(out, expected) > 0.1, "another camera's mask"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("heads", "channels", "value_heads", "first_head"), [(8, 32, 48, 40), (8, 32, 24, 8), (2, 16, 5, 3), (3, 32, 4, 0)]
)
def test_heads_of_several_layers(library, heads, channels, value_heads, first_head, dtype):
    """Bit by bit what the kernel gives for a value of these heads alone."""
    torch.manual_seed(8)
    points, visible = torch.rand(6, 55, 4, 2) * 1.6 - 0.3, torch.rand(6, 55, 4) > 0.9
    size = (heads, channels, 8, value_heads, first_head)
    case = cases.camera_case(dtype, "cpu", [(16, 28), (8, 14)], points, visible, *size)
    expected = cases.camera_reference(**case)
    alone = case["value"][:, :, first_head : first_head + heads].contiguous()
    variants = kernel_calls.VARIANTS if dtype == torch.float16 and heads == 8 else [0]
    for variant in variants:
        out = kernel_calls.camera_cross_attention(library, **case, variant=variant)
        assert cases.relative_error(out, expected) < bound(expected, dtype, variant), variant
        own = {**case, "value": alone, "first_head": 0}
        assert torch.equal(kernel_calls.camera_cross_attention(library, **own, variant=variant), out), variant
    other = {**case, "first_head": 0 if first_head else 1}
    out = kernel_calls.camera_cross_attention(library, **other)
    assert cases.relative_error(out, expected) > 0.1, "another layer's heads"
    for wrong in (-1, value_heads - heads + 1):
        with pytest.raises(RuntimeError, match="uniad_camera_attention: error 1"):
            kernel_calls.camera_cross_attention(library, **{**case, "first_head": wrong})


def test_joint_values_of_the_layers(kernels):
    """The recorded frames, with the values of all layers by one projection, and with one by each layer."""
    config = test_bev_encoder.tiny_config()
    layers, heads = config.encoder_num_layers, config.num_heads
    test_bev_encoder.test_recorded_frames(1)
    assert kernels.value_heads == [(layers * heads, layer * heads) for layer in range(layers)]
    kernels.value_heads.clear()
    kernels.joint = False
    test_bev_encoder.test_recorded_frames(1)
    assert kernels.value_heads == [(heads, 0)] * layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "channels", "value_heads", "first_head"), [(8, 32, 48, 40), (2, 16, 5, 3)])
@pytest.mark.parametrize("rest", [{}, {"levels": 4, "flat_buffer": True}, {"batch": 2, "mean": True}])
def test_heads_of_several_layers_of_one_map(library, heads, channels, value_heads, first_head, rest, dtype):
    """Bit by bit what the kernel gives for a value of these heads alone."""
    torch.manual_seed(9)
    case = cases.deformable_case(dtype, "cpu", shapes=[(9, 11)], heads=heads, channels=channels, **rest)
    expected = kernel_calls.deformable_attention(library, **case)
    b, cells = case["value"].shape[:2]
    joint = torch.randn(b, cells, value_heads, channels).to(dtype)
    joint[:, :, first_head : first_head + heads] = case["value"]
    case = {**case, "value": joint, "first_head": first_head}
    assert torch.equal(kernel_calls.deformable_attention(library, **case), expected)
    out = kernel_calls.deformable_attention(library, **{**case, "first_head": first_head - 1})
    assert cases.relative_error(out, expected.double()) > 0.1, "another layer's heads"
    for wrong in (-1, value_heads - heads + 1):
        with pytest.raises(RuntimeError, match="uniad_deformable_attention: error 1"):
            kernel_calls.deformable_attention(library, **{**case, "first_head": wrong})


@pytest.mark.parametrize("joint", [True, False])
def test_joint_values_of_the_decoders(kernels, joint):
    """The recorded frames of the track decoder and the map head."""
    kernels.joint, kernels.merge_masks = joint, None  # whose scores the test reads
    test_track_decoder.test_recorded_frames(1)
    test_seg_head.test_recorded_frames(1)
    assert any(first > 0 for _, first in kernels.value_heads) == joint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("size", "outputs", "stride"), [((2, 32, 13, 17), 64, 1), ((1, 64, 9, 10), 128, 2)])
def test_deform_conv(library, size, outputs, stride, dtype):
    """float16 with the packed weight and the samples' rounding of the GPU's kernel, without its tensor cores."""
    torch.manual_seed(9)
    case = cases.deform_conv_case(dtype, "cpu", size, outputs, stride)
    expected = cases.deform_conv_reference(**case)
    case = cases.deform_conv_arguments(case)
    out = kernel_calls.deform_conv(library, **case)
    assert cases.relative_error(out, expected) < bound(expected, dtype, 0)
    last = case["offset_mask"].contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernel_calls.deform_conv(library, **{**case, "offset_mask": last}), out), "channels-last offsets"
    moved = {**case, "offset_mask": case["offset_mask"] + 0.05}
    assert cases.relative_error(kernel_calls.deform_conv(library, **moved), expected) > 0.01, "moved by 0.05 pixels"


@pytest.mark.parametrize(("layout", "outputs", "channels"), [(COMMON_LAYOUT, 128, 96), (HOPPER_LAYOUT, 512, 128)])
def test_packing_of_the_convolution(library, layout, outputs, channels):
    """The headers' inverse of the packing gives the weight back, bit by bit."""
    weight = np.random.default_rng(3).integers(-(2**15), 2**15, (outputs, channels, 3, 3), np.int16)

    def unpack(packed):
        out = np.zeros_like(weight)
        pointers = (np.ascontiguousarray(packed).ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
        library.unpack_deform_weight(pointers[0], layout, channels, outputs, pointers[1])
        return out

    packed = pack_deform_weight(weight, layout)
    np.testing.assert_array_equal(unpack(packed), weight)
    vectors = packed.reshape(*packed.shape[:-1], -1, 8)
    for name, broken in {"rows": np.roll(packed, 1, -2), "vectors": np.roll(vectors, 1, -2)}.items():
        assert (unpack(broken) != weight).mean() > 0.99, name
    if layout == HOPPER_LAYOUT:
        swizzled = vectors[..., np.arange(256).reshape(-1, 1), np.arange(8) ^ np.arange(256).reshape(-1, 1) % 8, :]
        assert (unpack(swizzled) != weight).mean() > 0.8, "without the swizzle: it is its own inverse"
        assert (unpack(pack_deform_weight(weight, COMMON_LAYOUT)) != weight).mean() > 0.99, "the other layout"


def test_hopper_layouts(library):
    """The Hopper kernel's packed weight and its order of the pixels, read as its comments say; two strips of rows."""
    torch.manual_seed(9)
    case = cases.deform_conv_case(torch.float16, "cpu", (2, 64, 11, 5), 512)
    expected = cases.deform_conv_reference(**case)
    assert kernel_calls.deform_conv_layout(library, case["x"], 512) == HOPPER_LAYOUT
    arguments = cases.deform_conv_arguments(case, HOPPER_LAYOUT)
    out = kernel_calls.deform_conv(library, **arguments)
    assert cases.relative_error(out, expected) < bound(expected, torch.float16, 0)
    other = {**arguments, "weight": case["weight"]}
    assert cases.relative_error(kernel_calls.deform_conv(library, **other), expected) > 0.1, "other packing"


def test_layout_and_variants_by_sizes(library):
    layout = library.uniad_deform_conv_layout
    assert layout(6 * 58 * 100, 256, 256) == layout(6 * 29 * 50, 512, 512) == HOPPER_LAYOUT
    assert layout(100, 96, 256) == layout(100, 64, 128) == COMMON_LAYOUT
    assert (layout(2**25 - 1, 64, 256), layout(2**25, 64, 256)) == (HOPPER_LAYOUT, COMMON_LAYOUT)  # 4 GiB of cells
    assert COMMON_LAYOUT == kernel_calls.COMMON_LAYOUT and HOPPER_LAYOUT == kernel_calls.HOPPER_LAYOUT
    every = list(kernel_calls.CONV_VARIANTS)
    assert kernel_calls.conv_variants({"variants": "1"}, 512) == every
    assert kernel_calls.conv_variants({"variants": "1"}, 256) == [v for v in every if v != kernel_calls.WIDE_VARIANT]
    assert (
        kernel_calls.conv_variants({"variants": "1"}, 64) == kernel_calls.conv_variants({"variants": "0"}, 512) == [0]
    )


@pytest.mark.parametrize("index", test_seg_head.FRAMES)
def test_recorded_map(kernels, monkeypatch, index):
    """The recorded frames' maps merged by the kernels: as recorded, and bit by bit what the composition gives."""
    frame = golden("tiny", f"frame_{index}.npz")
    lane, lane_score = run_map(frame)
    assert kernels.calls["merge_masks"] == 1 and lane.any()
    np.testing.assert_array_equal(lane, frame["seg.res.lane"])
    bound = test_seg_head.FACTOR * noise_floor()["seg.res.lane_score"]
    assert_close(lane_score, frame["seg.res.lane_score"], bound)
    with monkeypatch.context() as patch:
        patch.setattr(HostKernels, "merge_masks", None)
        composed = run_map(frame)
    np.testing.assert_array_equal(lane, composed[0])
    np.testing.assert_array_equal(lane_score, composed[1])
    broken, _ = run_map({"bev.out": frame["bev.out"][:, ::-1].copy()})
    assert (broken != lane).any()


def run_map(frame):
    outputs, _ = test_seg_head.run(frame["bev.out"][0])
    return outputs["map_lane"], outputs["map_lane_score"]


@pytest.mark.parametrize("seed", range(5))
def test_merge_of_rectangles(kernels, seed):
    """With a broken case in it."""
    test_seg_head.test_merge(seed)
    assert kernels.calls["merge_masks"] == 1


MERGES = [  # masks, size of the map, classes; 128 pixels are a vector, of which a thread owns one, two or four
    (100, (40, 40), 3),
    (60, (30, 31), 3),  # rows not aligned
    (33, (7, 11), 3),  # less than a vector
    (31, (50, 83), 5),
    (1024, (9, 13), 3),
    (20, (257, 256), 2),
    (9, (401, 500), 3),
]


@pytest.mark.parametrize(("count", "size", "classes"), MERGES)
def test_merge_masks(library, count, size, classes):
    torch.manual_seed(10)
    case = cases.merge_case("cpu", count, size, classes)
    arrays = {name: x.numpy() if torch.is_tensor(x) else x for name, x in case.items()}
    lane, lane_score, drawn = merge_by_loop(**arrays)
    assert 1 < drawn < count
    assert_merged(library, case, lane, lane_score)
    for name in ("scores", "labels"):  # another order, other classes
        other = {**case, name: case[name].flip(0)}
        with pytest.raises(AssertionError, match="lane"):
            assert_merged(library, other, lane, lane_score)


def assert_merged(library, case, lane, lane_score) -> None:
    """What the kernels give, bit by bit. Nothing is written behind the outputs and the workspace."""
    (classes, pixels), guard = lane.shape, 64
    workspace = kernel_calls.merge_workspace(library, case["masks"], classes)
    memory = torch.full((len(workspace) + guard,), 255, dtype=torch.uint8)
    out = [kernel_calls.poisoned((classes * pixels + guard,), like) for like in (case["labels"], case["masks"])]
    views = tuple(x[: classes * pixels].view(classes, pixels) for x in out)
    kernel_calls.merge_masks(library, **case, workspace=memory[: len(workspace)], out=views)
    np.testing.assert_array_equal(views[0].numpy(), lane, "lane")
    np.testing.assert_array_equal(views[1].numpy(), lane_score, "lane_score")
    assert (memory[-guard:] == 255).all() and (out[0][-guard:] == -1).all() and out[1][-guard:].isnan().all()


NAN = float("nan")
# Masks in eighths, class scores, labels; then the mask that shows at each pixel of the classes 0, 1 and 2, "." is none.
SMALL_MERGES = {
    "of equals the first": (["88880000", "00088880"], [0.9, 0.9], [2, 1], "........ ....111. 0000...."),
    "two fifths taken": (["88000", "88888"], [3.0, 0.9], [1, 2], "..... 00... ..111"),
    "three sevenths taken": (["8880000", "8888888"], [3.0, 0.9], [1, 2], "....... 000.... ......."),
    "class 0 takes none": (["8888", "6666", "8888"], [3.0, 2.0, 1.0], [0, 0, 2], "1111 .... 2222"),
    "class 0 is left what is free": (["8800", "0888", "0066"], [3.0, 2.0, 1.0], [1, 0, 0], "..22 00.. ...."),
    "at the threshold": (["8000"], [0.4], [1], ".... 0... ...."),
    "all below": (["8888", "6666"], [0.1, 0.1], [1, 2], ".... .... ...."),
    "nothing inside": (["4444", "0000"], [9.0, 9.0], [1, 2], ".... .... ...."),
    "no such class": (["88000", "08888"], [3.0, 1.0], [7, 1], "..... ..111 ....."),
    "not a number goes first": (["8800", "0888"], [9.0, NAN], [1, 2], ".... .... .111"),
}


@pytest.mark.parametrize("name", SMALL_MERGES)
def test_rules_of_the_merge(library, name):
    masks, scores, labels, shown = SMALL_MERGES[name]
    case = {
        "masks": torch.tensor([[int(eighths) / 8 for eighths in row] for row in masks]),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int32),
        "num_classes": 3,
        "quality_thresh": 0.1,
    }
    rows = shown.split()
    lane = np.array([[mask != "." for mask in row] for row in rows], np.int32)
    values = [[0.0 if mask == "." else case["masks"][int(mask), x] for x, mask in enumerate(row)] for row in rows]
    assert_merged(library, case, lane, np.array(values, np.float32))
    everything = {**case, **{key: torch.ones_like(case[key]) for key in ("masks", "scores", "labels")}}
    with pytest.raises(AssertionError, match="lane"):
        assert_merged(library, everything, lane, np.array(values, np.float32))


def test_merge_sizes_that_are_refused(library):
    for count, pixels, classes in ((1025, 4, 3), (2, 262145, 3), (2, 4, 65)):
        tensors = torch.zeros(count, pixels), torch.zeros(count), torch.zeros(count, dtype=torch.int32)
        with pytest.raises(RuntimeError, match="uniad_merge_masks: error 1"):
            kernel_calls.merge_masks(library, *tensors, classes, 0.1)


def test_tile_of_the_convolution(library):
    """The tile that leaves the busiest processor the least, with the sizes that deform_conv.cu offers."""
    shared = {tile: tile[0] * (180 + 128) + tile[1] * 192 for tile in ((64, 256), (144, 256), (80, 512))}
    resident = {(64, 256): 2, (144, 256): 1, (80, 512): 1}
    percent = {(64, 256): 100, (144, 256): 114, (80, 512): 105}
    library.uniad_tile_cost.restype = ctypes.c_int64

    def costs(pixels, channels, gpu):
        gpu = (ctypes.c_int * 3)(*gpu)
        sizes = {tile: (ctypes.c_int * 5)(*tile, shared[tile], resident[tile], percent[tile]) for tile in shared}
        return {t: library.uniad_tile_cost(size, ctypes.c_int64(pixels), channels, gpu) for t, size in sizes.items()}

    h100, a10 = (132, 233472, 232448), (72, 102400, 101376)
    # 544 blocks in 264 places: two rounds of two, then one block alone; 242 blocks in 132: two rounds
    assert costs(6 * 58 * 100, 256, h100) == {(64, 256): 500 * 64 * 256, (144, 256): 228 * 144 * 256, (80, 512): -1}
    # 272 blocks: one round of two, one block alone; 122 and 109 blocks: one round
    assert costs(6 * 29 * 50, 512, h100) == {
        (64, 256): 300 * 64 * 256,
        (144, 256): 114 * 144 * 256,
        (80, 512): 105 * 80 * 512,
    }
    small = costs(6 * 58 * 100, 256, a10)  # no place for two blocks, nor for 512 channels at all
    assert small == {(64, 256): 800 * 64 * 256, (144, 256): 456 * 144 * 256, (80, 512): -1}
    assert costs(6 * 29 * 50, 512, a10)[80, 512] == -1
    assert set(costs(600, 64, h100).values()) == {-1}


def test_unknown_sizes_are_refused(library):
    case = cases.deformable_case(torch.float32, "cpu", shapes=[(4, 4)], channels=24)
    with pytest.raises(RuntimeError, match="error 1"):
        kernel_calls.deformable_attention(library, **case)


def bound(expected: torch.Tensor, dtype: torch.dtype, variant: int) -> float:
    if dtype == torch.float32:
        return 2e-6  # measured: 4e-7
    factor = HALF_BLEND_FACTOR if variant in kernel_calls.HALF_BLEND else FLOAT16_FACTOR
    return factor * cases.rounding_noise(expected, dtype)


@pytest.mark.parametrize("include", INCLUDES or [None], ids=lambda path: path.parent.name if path else "none")
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "plugins" / "src").glob("*.cpp")))
def test_glue_compiles(include, source):
    """Against each TensorRT whose headers lie in third_party/tensorrt-<version>/include."""
    if include is None or not (CUDA / "include" / "cuda_runtime_api.h").exists() or shutil.which("g++") is None:
        pytest.skip("needs g++, CUDA's headers and third_party/tensorrt-<version>/include")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
    system = ["-isystem", include, "-isystem", CUDA / "include"]
    subprocess.run(["g++", *flags, *system, ROOT / "plugins" / "src" / source], check=True)


ROTATIONS = [
    ((40, 40), 128, 0.0),
    ((30, 47), 8, 1.3),
    ((200, 200), 16, -23.0),
    ((5, 9), 24, 90.0),
    ((40, 40), 8, 178.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "channels", "degrees"), ROTATIONS)
def test_rotate(library, dtype, shape, channels, degrees):
    """Bit by bit what the composition gives."""
    case = cases.rotate_case(dtype, "cpu", shape, channels, degrees)
    expected = cases.rotate_reference(**case)
    assert torch.equal(kernel_calls.rotate_nearest(library, **case), expected)
    broken = {**case, "matrix": case["matrix"] * 1.3}
    assert not torch.equal(kernel_calls.rotate_nearest(library, **broken), expected)


def test_projection(kernels):
    """The recorded projections by the kernel; to the bit what the composition gives."""
    test_bev_encoder.test_projection_into_the_cameras()
    assert kernels.calls["point_sampling"]
    config, matrices = test_bev_encoder.tiny_config(), test_bev_encoder.tiny_frame(0)["in.lidar2img"]
    wider, results = matrices * np.array([1.05, 1, 1, 1], matrices.dtype).reshape(4, 1), []
    for method in (HostKernels.point_sampling, None):
        with pytest.MonkeyPatch.context() as patch, network_support.torch_network():
            patch.setattr(HostKernels, "point_sampling", method)
            const = network_support.const
            results.append([t.handle for t in test_bev_encoder.point_sampling(const(matrices), config)])
            results.append([t.handle for t in test_bev_encoder.point_sampling(const(wider), config)])
    ours, other, composed, _ = results
    assert all(map(torch.equal, ours, composed)) and not any(map(torch.equal, other, composed))


RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
LOW_SIZE = {"low": RANGE[:3], "size": (102.4, 102.4, 8.0)}


def test_propagate(library):
    """A millimetre, which is what float32 knows a kilometre away; float16 poses are metres off."""
    case = cases.propagate_case("cpu", 300)
    expected = torch.sigmoid(cases.propagate_reference(RANGE, **case)) * 102.4
    metres = torch.sigmoid(kernel_calls.propagate(library, *case.values(), **LOW_SIZE)) * 102.4
    assert (metres - expected).abs().max() < 1e-3
    coarse = [case[name].half().float() if name.startswith("l2g_t") else case[name] for name in case]
    metres = torch.sigmoid(kernel_calls.propagate(library, *coarse, **LOW_SIZE)) * 102.4
    assert (metres - expected).abs().max() > 0.1


def test_projection_of_the_rig(library):
    """What the GPU check compares with."""
    points, visible = kernel_calls.point_sampling(library, **cases.point_sampling_case("tiny_e2e", "cpu"))
    expected, mask, _ = cases.camera_rig_points("tiny_e2e")
    assert torch.equal(points, expected) and torch.equal(visible, mask.int()) and mask.any()


def test_rotated_history(kernels):
    """The recorded rotations of the BEV map, by the kernel."""
    test_bev_encoder.test_rotation_op()
    assert kernels.calls["rotate_nearest"]


NORMS = [(7, 256), (1, 128), (5, 48), (33, 8), (3, 1024), (4, 1000), (2, 72)]  # rows, channels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("rows", "channels"), NORMS)
def test_add_layer_norm(library, rows, channels, residual, dtype):
    torch.manual_seed(12)
    case = cases.norm_case(dtype, "cpu", rows, channels, residual)
    expected = cases.norm_reference(**case)
    memory = kernel_calls.poisoned((rows * channels + 64,), case["x"])
    out = kernel_calls.add_layer_norm(library, **case, out=memory[: rows * channels].view(rows, channels))
    assert cases.relative_error(out, expected) < bound(expected, dtype, 0)
    assert memory[rows * channels :].isnan().all(), "nothing is written behind the output"
    key = "residual" if residual else "bias"
    broken = kernel_calls.add_layer_norm(library, **{**case, key: case[key] * 1.1})
    assert cases.relative_error(broken, expected) > 0.005, key
    broken = kernel_calls.add_layer_norm(library, **case, eps=1.0)
    assert cases.relative_error(broken, expected) > 0.005, "another eps"


def test_norm_of_a_sum_beyond_float16(library):
    """The sum is not rounded, nor does it overflow."""
    x = torch.tensor([[60000.0, 2048.0, 1.0, 0.0] * 2], dtype=torch.float16)
    case = {"x": x, "residual": x.clone(), "weight": torch.ones(8), "bias": torch.zeros(8)}
    expected = cases.norm_reference(**case)
    assert cases.relative_error(kernel_calls.add_layer_norm(library, **case), expected) < 1e-3
    assert not torch.isfinite(x + x).all()


def test_norm_sizes_that_are_refused(library):
    for channels in (4, 1032):
        case = cases.norm_case(torch.float16, "cpu", 2, channels)
        with pytest.raises(RuntimeError, match="uniad_add_layer_norm: error 1"):
            kernel_calls.add_layer_norm(library, **case)


IMAGES = [(6, (7, 11), (8, 16)), (2, (5, 3), (5, 3)), (1, (1, 1), (1, 9)), (3, (33, 40), (64, 40))]


@pytest.mark.parametrize(("dtype", "last"), [(torch.float32, False), (torch.float16, False), (torch.float16, True)])
@pytest.mark.parametrize(("count", "shape", "size"), IMAGES)
def test_normalise_images(library, count, shape, size, dtype, last):
    """Bit by bit, zeros in the padding and in the channels beyond the third; nothing is written behind them."""
    torch.manual_seed(13)
    case = cases.images_case(dtype, "cpu", count, shape, size, last)
    expected = cases.images_reference(**case)
    memory = kernel_calls.poisoned((expected.numel() + 64,), case["img"])
    out = kernel_calls.normalise_images(library, **case, out=memory[: expected.numel()].view(expected.shape))
    assert torch.equal(out, expected) and memory[expected.numel() :].isnan().all()
    broken = kernel_calls.normalise_images(library, **{**case, "mean": case["mean"][::-1]})
    assert not torch.equal(broken, expected), "RGB's mean"
    with pytest.raises(RuntimeError, match="uniad_normalise_images: error 1"):
        kernel_calls.normalise_images(library, **{**case, "size": (shape[0] - 1, size[1])})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_normalised_images_of_a_network(kernels, monkeypatch, dtype):
    """The recorded frame's and padded ones by the kernel; in both types to the bit what the composition gives."""
    test_backbone.test_normalised_images_are_exact()
    test_backbone.test_padding_comes_after_normalisation()
    assert kernels.calls["normalise_images"] == 3
    config = test_backbone.tiny_config().replace(image_height=100, image_width=200)
    pixels = test_backbone.tiny_frame(0)["in.img_u8"][:, :100, :200]
    results = []
    for method in (HostKernels.normalise_images, None):
        monkeypatch.setattr(HostKernels, "normalise_images", method)
        with network_support.torch_network(dtype):
            img = test_backbone.normalise_images(network_support.const(pixels), config)
            assert (img.dtype, img.shape) == (dtype, (6, 3, 128, 224))
            results.append(img.handle)
    assert torch.equal(*results)


def test_norms_of_the_encoders(kernels):
    """The recorded frames by the kernel: three norms in each layer of the BEV encoder, two in the map encoder's."""
    config = test_bev_encoder.tiny_config()
    for recorded in (
        lambda: test_bev_encoder.test_recorded_frames(1),
        test_bev_encoder.test_float16_network_keeps_geometry_in_float32,
    ):
        kernels.calls.clear()
        recorded()
        assert kernels.calls["add_layer_norm"] == 3 * config.encoder_num_layers
    kernels.calls.clear()
    run_map(golden("tiny", "frame_1.npz"))
    assert kernels.calls["add_layer_norm"] == 2 * config.seg_encoder_num_layers


def test_rotate_sizes_that_are_refused(library):
    case = cases.rotate_case(torch.float16, "cpu", (4, 4), 4, 0.0)
    with pytest.raises(RuntimeError, match="uniad_rotate: error 1"):
        kernel_calls.rotate_nearest(library, **case)
