"""The deformable convolution on the host (kernels_support.py): its arithmetic, layouts and tiles."""

import ctypes

import convolution_kernels as convolution
import kernel_cases as cases
import numpy as np
import pytest
import test_backbone
import torch
from kernels_support import bound

from trtllm.plugin_weights import COMMON_LAYOUT, HOPPER_LAYOUT, pack_deform_weight


@pytest.mark.parametrize("name", ["dcnv2_stride1", "dcnv2_stride2"])
def test_recorded_operator(kernels, name):
    test_backbone.test_deformable_convolution_op(name, True)
    assert kernels.calls["deform_conv"] >= 2  # the operator and its broken case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("size", "outputs", "stride"), [((2, 32, 13, 17), 64, 1), ((1, 64, 9, 10), 128, 2)])
def test_deform_conv(library, size, outputs, stride, dtype):
    """float16 with the packed weight and the samples' rounding of the GPU's kernel, without its tensor cores."""
    torch.manual_seed(9)
    case = convolution.deform_conv_case(dtype, "cpu", size, outputs, stride)
    expected = convolution.deform_conv_reference(**case)
    case = convolution.deform_conv_arguments(case)
    out = convolution.deform_conv(library, **case)
    assert cases.relative_error(out, expected) < bound(expected, dtype, 0)
    last = case["offset_mask"].contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolution.deform_conv(library, **{**case, "offset_mask": last}), out), "channels-last offsets"
    moved = {**case, "offset_mask": case["offset_mask"] + 0.05}
    assert cases.relative_error(convolution.deform_conv(library, **moved), expected) > 0.01, "moved by 0.05 pixels"


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
    case = convolution.deform_conv_case(torch.float16, "cpu", (2, 64, 11, 5), 512)
    expected = convolution.deform_conv_reference(**case)
    assert convolution.deform_conv_layout(library, case["x"], 512) == HOPPER_LAYOUT
    arguments = convolution.deform_conv_arguments(case, HOPPER_LAYOUT)
    out = convolution.deform_conv(library, **arguments)
    assert cases.relative_error(out, expected) < bound(expected, torch.float16, 0)
    other = {**arguments, "weight": case["weight"]}
    assert cases.relative_error(convolution.deform_conv(library, **other), expected) > 0.1, "other packing"


def test_layout_and_variants_by_sizes(library):
    layout = library.uniad_deform_conv_layout
    assert layout(6 * 58 * 100, 256, 256) == layout(6 * 29 * 50, 512, 512) == HOPPER_LAYOUT
    assert layout(100, 96, 256) == layout(100, 64, 128) == COMMON_LAYOUT
    assert (layout(2**25 - 1, 64, 256), layout(2**25, 64, 256)) == (HOPPER_LAYOUT, COMMON_LAYOUT)  # 4 GiB of cells
    assert COMMON_LAYOUT == convolution.COMMON_LAYOUT and HOPPER_LAYOUT == convolution.HOPPER_LAYOUT
    every = list(convolution.CONV_VARIANTS)
    assert convolution.conv_variants({"variants": "1"}, 512) == every
    assert convolution.conv_variants({"variants": "1"}, 256) == [v for v in every if v != convolution.WIDE_VARIANT]
    assert convolution.conv_variants({"variants": "1"}, 64) == convolution.conv_variants({"variants": "0"}, 512) == [0]


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
