"""Deformable, temporal and camera attention by the kernels on the host (kernels_support.py)."""

import attention_kernels as attention
import kernel_cases as cases
import pytest
import test_bev_encoder
import test_motion_head
import test_seg_head
import test_track_decoder
import torch
from kernels_support import bound


@pytest.mark.parametrize(
    ("operator_test", "arguments", "kernel"),
    [
        (test_bev_encoder.test_temporal_attention_op, (), "deformable_attention"),
        (test_bev_encoder.test_camera_attention_op, (), "camera_cross_attention"),
        (test_track_decoder.test_deformable_attention_op, (), "deformable_attention"),
        (test_seg_head.test_deformable_attention, (1,), "deformable_attention"),
        (test_seg_head.test_deformable_attention, (4,), "deformable_attention"),
        (test_motion_head.test_motion_deformable_attention, (), "deformable_attention"),
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
    case = attention.deformable_case(dtype, "cpu", **size)
    expected = attention.deformable_reference(**case)
    tuned = dtype == torch.float16 and size.get("heads", 8) == 8 and size.get("channels", 32) == 32
    for variant in attention.VARIANTS if tuned else [0]:
        out = attention.deformable_attention(library, **case, variant=variant)
        assert cases.relative_error(out, expected) < bound(expected, dtype, variant), variant
    moved = {**case, "sampling_offsets": case["sampling_offsets"] + 0.01}
    out = attention.deformable_attention(library, **moved)
    assert cases.relative_error(out, expected) > bound(expected, dtype, 0), "all points moved by a hundredth of a cell"


def test_unknown_sizes_are_refused(library):
    case = attention.deformable_case(torch.float32, "cpu", shapes=[(4, 4)], channels=24)
    with pytest.raises(RuntimeError, match="error 1"):
        attention.deformable_attention(library, **case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("anchors", "heads", "channels"), [(4, 8, 32), (4, 2, 16), (3, 4, 32)])
def test_camera_cross_attention(library, anchors, heads, channels, dtype):
    torch.manual_seed(8)
    points, visible = torch.rand(6, 55, anchors, 2) * 1.6 - 0.3, torch.rand(6, 55, anchors) > 0.9
    points[0, 0] = float("inf")  # an anchor in the camera's plane; other anchors may be seen
    visible[0, 0] = False
    case = attention.camera_case(dtype, "cpu", [(16, 28), (8, 14)], points, visible, heads, channels, 2 * anchors)
    expected = attention.camera_reference(**case)
    assert 0 < int(visible.any(2).any(0).sum()) < 55, "some queries are seen by no camera"
    for variant in attention.VARIANTS if dtype == torch.float16 and heads == 8 else [0]:
        out = attention.camera_cross_attention(library, **case, variant=variant)
        assert cases.relative_error(out, expected) < bound(expected, dtype, variant), variant
    other = {**case, "visible": case["visible"].flip(0).contiguous()}
    out = attention.camera_cross_attention(library, **other)
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
    case = attention.camera_case(dtype, "cpu", [(16, 28), (8, 14)], points, visible, *size)
    expected = attention.camera_reference(**case)
    alone = case["value"][:, :, first_head : first_head + heads].contiguous()
    variants = attention.VARIANTS if dtype == torch.float16 and heads == 8 else [0]
    for variant in variants:
        out = attention.camera_cross_attention(library, **case, variant=variant)
        assert cases.relative_error(out, expected) < bound(expected, dtype, variant), variant
        own = {**case, "value": alone, "first_head": 0}
        assert torch.equal(attention.camera_cross_attention(library, **own, variant=variant), out), variant
    other = {**case, "first_head": 0 if first_head else 1}
    out = attention.camera_cross_attention(library, **other)
    assert cases.relative_error(out, expected) > 0.1, "another layer's heads"
    for wrong in (-1, value_heads - heads + 1):
        with pytest.raises(RuntimeError, match="uniad_camera_attention: error 1"):
            attention.camera_cross_attention(library, **{**case, "first_head": wrong})


def test_joint_values_of_the_layers(kernels):
    """The recorded frames: the values of all layers by one projection, a layer's offsets and logits by one product; and
    each by its own."""
    config = test_bev_encoder.tiny_config()
    layers, heads = config.encoder_num_layers, config.num_heads
    test_bev_encoder.test_recorded_frames(1)
    assert kernels.value_heads == [(layers * heads, layer * heads) for layer in range(layers)]
    assert kernels.joint_calls == 2 * layers  # temporal and camera attention
    kernels.value_heads.clear()
    kernels.joint = False
    test_bev_encoder.test_recorded_frames(1)
    assert kernels.value_heads == [(heads, 0)] * layers
    assert kernels.joint_calls == 2 * layers  # no more


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "channels", "value_heads", "first_head"), [(8, 32, 48, 40), (2, 16, 5, 3)])
@pytest.mark.parametrize("rest", [{}, {"levels": 4, "flat_buffer": True}, {"batch": 2, "mean": True}])
def test_heads_of_several_layers_of_one_map(library, heads, channels, value_heads, first_head, rest, dtype):
    """Bit by bit what the kernel gives for a value of these heads alone."""
    torch.manual_seed(9)
    case = attention.deformable_case(dtype, "cpu", shapes=[(9, 11)], heads=heads, channels=channels, **rest)
    expected = attention.deformable_attention(library, **case)
    b, cells = case["value"].shape[:2]
    joint = torch.randn(b, cells, value_heads, channels).to(dtype)
    joint[:, :, first_head : first_head + heads] = case["value"]
    case = {**case, "value": joint, "first_head": first_head}
    assert torch.equal(attention.deformable_attention(library, **case), expected)
    out = attention.deformable_attention(library, **{**case, "first_head": first_head - 1})
    assert cases.relative_error(out, expected.double()) > 0.1, "another layer's heads"
    for wrong in (-1, value_heads - heads + 1):
        with pytest.raises(RuntimeError, match="uniad_deformable_attention: error 1"):
            attention.deformable_attention(library, **{**case, "first_head": wrong})


def exchanged(case):
    """Joint samples with the logits in front of the offsets."""
    samples = case["sampling_offsets"]
    return {**case, "sampling_offsets": samples.roll(1, -4).contiguous()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [{**size, "batch": size.get("batch", 2)} for size in SIZES])
def test_joint_samples(library, size, dtype):
    """Offsets and logits out of one tensor: bit by bit what two tensors give."""
    torch.manual_seed(10)
    case = attention.deformable_case(dtype, "cpu", **size)
    joint = attention.joint_samples(case)
    if size.get("heads", 8) == 3:  # rows of no whole vectors
        with pytest.raises(RuntimeError, match="uniad_deformable_attention: error 1"):
            attention.deformable_attention(library, **joint)
        return
    tuned = dtype == torch.float16 and size.get("heads", 8) == 8 and size.get("channels", 32) == 32
    for variant in attention.VARIANTS if tuned else [0]:
        expected = attention.deformable_attention(library, **case, variant=variant)
        assert torch.equal(attention.deformable_attention(library, **joint, variant=variant), expected), variant
    out = attention.deformable_attention(library, **exchanged(joint))
    assert cases.relative_error(out, expected.double()) > 0.1, "logits before offsets"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("anchors", "heads", "channels"), [(4, 8, 32), (4, 2, 16), (3, 4, 32)])
def test_joint_samples_of_the_cameras(library, anchors, heads, channels, dtype):
    """Bit by bit what two tensors give."""
    torch.manual_seed(11)
    points, visible = torch.rand(6, 55, anchors, 2) * 1.6 - 0.3, torch.rand(6, 55, anchors) > 0.9
    case = attention.camera_case(dtype, "cpu", [(16, 28), (8, 14)], points, visible, heads, channels, 2 * anchors)
    joint = attention.joint_samples(case)
    for variant in attention.VARIANTS if dtype == torch.float16 and heads == 8 else [0]:
        expected = attention.camera_cross_attention(library, **case, variant=variant)
        assert torch.equal(attention.camera_cross_attention(library, **joint, variant=variant), expected), variant
    out = attention.camera_cross_attention(library, **exchanged(joint))
    assert cases.relative_error(out, expected.double()) > 0.1, "logits before offsets"
    first = [x[:, :, :1] for x in (points, visible)]
    odd = attention.camera_case(dtype, "cpu", [(16, 28)], *first, 1, channels, 1)  # rows of no whole vectors
    with pytest.raises(RuntimeError, match="uniad_camera_attention: error 1"):
        attention.camera_cross_attention(library, **attention.joint_samples(odd))


@pytest.mark.parametrize("joint", [True, False])
def test_joint_values_of_the_decoders(kernels, joint):
    """The recorded frames of the track decoder and the map head."""
    kernels.joint, kernels.merge_masks = joint, None  # whose scores the test reads
    test_track_decoder.test_recorded_frames(1)
    test_seg_head.test_recorded_frames(1)
    assert any(first > 0 for _, first in kernels.value_heads) == joint
    assert kernels.joint_calls == (len(kernels.value_heads) if joint else 0)
