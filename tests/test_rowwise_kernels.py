"""Kernels that make row by row of their output, on the host (kernels_support.py): geometry, norms and images."""

import kernel_calls
import kernel_cases as cases
import network_support
import numpy as np
import pytest
import rowwise_kernels as rowwise
import test_backbone
import test_bev_encoder
import test_seg_head
import torch
from kernels_support import HostKernels, bound
from support import golden

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
    case = rowwise.rotate_case(dtype, "cpu", shape, channels, degrees)
    expected = rowwise.rotate_reference(**case)
    assert torch.equal(rowwise.rotate_nearest(library, **case), expected)
    broken = {**case, "matrix": case["matrix"] * 1.3}
    assert not torch.equal(rowwise.rotate_nearest(library, **broken), expected)


def test_rotate_sizes_that_are_refused(library):
    case = rowwise.rotate_case(torch.float16, "cpu", (4, 4), 4, 0.0)
    with pytest.raises(RuntimeError, match="uniad_rotate: error 1"):
        rowwise.rotate_nearest(library, **case)


def test_rotated_history(kernels):
    """The recorded rotations of the BEV map, by the kernel."""
    test_bev_encoder.test_rotation_op()
    assert kernels.calls["rotate_nearest"]


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


def test_projection_of_the_rig(library):
    """What the GPU check compares with."""
    points, visible = rowwise.point_sampling(library, **rowwise.point_sampling_case("tiny_e2e", "cpu"))
    expected, mask, _ = rowwise.camera_rig_points("tiny_e2e")
    assert torch.equal(points, expected) and torch.equal(visible, mask.int()) and mask.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("has_prev", [True, False])
@pytest.mark.parametrize(("cells", "channels"), [(1, 8), (35, 128), (257, 24)])
def test_temporal_inputs(library, cells, channels, has_prev, dtype):
    """Bit by bit what the composition gives; nothing is written behind the outputs."""
    torch.manual_seed(14)
    case = rowwise.temporal_inputs_case(dtype, "cpu", cells, channels, has_prev)
    expected = rowwise.temporal_inputs_reference(**case)
    memory = [kernel_calls.poisoned((x.numel() + 64,), x) for x in expected]
    outputs = tuple(m[: x.numel()].view(x.shape) for m, x in zip(memory, expected))
    rowwise.temporal_inputs(library, **case, out=outputs)
    assert all(map(torch.equal, outputs, expected))
    assert all(m[x.numel() :].isnan().all() for m, x in zip(memory, expected))
    pair, _ = rowwise.temporal_inputs(library, **{**case, "query_pos": -case["query_pos"]})
    assert not torch.equal(pair, expected[0]), "another position"
    other = rowwise.temporal_inputs(library, **{**case, "has_prev": 1 - case["has_prev"]})
    assert not any(map(torch.equal, other, expected)), "the other case of has_prev"


def test_temporal_inputs_that_are_refused(library):
    case = rowwise.temporal_inputs_case(torch.float16, "cpu", 5, 12, True)
    with pytest.raises(RuntimeError, match="uniad_temporal_inputs: error 1"):
        rowwise.temporal_inputs(library, **case)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("index", [0, 1])
def test_temporal_inputs_of_a_network(kernels, monkeypatch, index, dtype):
    """A recorded frame without a history and one with: to the bit what the composition gives."""
    ours = test_bev_encoder.run_encoder(index, dtype)
    assert kernels.calls["temporal_inputs"] == test_bev_encoder.tiny_config().encoder_num_layers
    monkeypatch.setattr(HostKernels, "temporal_inputs", None)
    composed = test_bev_encoder.run_encoder(index, dtype)
    assert np.array_equal(ours["out"], composed["out"])


RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
LOW_SIZE = {"low": RANGE[:3], "size": (102.4, 102.4, 8.0)}


def test_propagate(library):
    """A millimetre, which is what float32 knows a kilometre away; float16 poses are metres off."""
    case = rowwise.propagate_case("cpu", 300)
    expected = torch.sigmoid(rowwise.propagate_reference(RANGE, **case)) * 102.4
    metres = torch.sigmoid(rowwise.propagate(library, *case.values(), **LOW_SIZE)) * 102.4
    assert (metres - expected).abs().max() < 1e-3
    coarse = [case[name].half().float() if name.startswith("l2g_t") else case[name] for name in case]
    metres = torch.sigmoid(rowwise.propagate(library, *coarse, **LOW_SIZE)) * 102.4
    assert (metres - expected).abs().max() > 0.1


NORMS = [(7, 256), (1, 128), (5, 48), (33, 8), (3, 1024), (4, 1000), (2, 72)]  # rows, channels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("rows", "channels"), NORMS)
def test_add_layer_norm(library, rows, channels, residual, dtype):
    torch.manual_seed(12)
    case = rowwise.norm_case(dtype, "cpu", rows, channels, residual)
    expected = rowwise.norm_reference(**case)
    memory = kernel_calls.poisoned((rows * channels + 64,), case["x"])
    out = rowwise.add_layer_norm(library, **case, out=memory[: rows * channels].view(rows, channels))
    assert cases.relative_error(out, expected) < bound(expected, dtype, 0)
    assert memory[rows * channels :].isnan().all(), "nothing is written behind the output"
    key = "residual" if residual else "bias"
    broken = rowwise.add_layer_norm(library, **{**case, key: case[key] * 1.1})
    assert cases.relative_error(broken, expected) > 0.005, key
    broken = rowwise.add_layer_norm(library, **case, eps=1.0)
    assert cases.relative_error(broken, expected) > 0.005, "another eps"


def test_norm_of_a_sum_beyond_float16(library):
    """The sum is not rounded, nor does it overflow."""
    x = torch.tensor([[60000.0, 2048.0, 1.0, 0.0] * 2], dtype=torch.float16)
    case = {"x": x, "residual": x.clone(), "weight": torch.ones(8), "bias": torch.zeros(8)}
    expected = rowwise.norm_reference(**case)
    assert cases.relative_error(rowwise.add_layer_norm(library, **case), expected) < 1e-3
    assert not torch.isfinite(x + x).all()


def test_norm_sizes_that_are_refused(library):
    for channels in (4, 1032):
        case = rowwise.norm_case(torch.float16, "cpu", 2, channels)
        with pytest.raises(RuntimeError, match="uniad_add_layer_norm: error 1"):
            rowwise.add_layer_norm(library, **case)


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
    test_seg_head.run(golden("tiny", "frame_1.npz")["bev.out"][0])
    assert kernels.calls["add_layer_norm"] == 2 * config.seg_encoder_num_layers


IMAGES = [(6, (7, 11), (8, 16)), (2, (5, 3), (5, 3)), (1, (1, 1), (1, 9)), (3, (33, 40), (64, 40))]


@pytest.mark.parametrize(("dtype", "last"), [(torch.float32, False), (torch.float16, False), (torch.float16, True)])
@pytest.mark.parametrize(("count", "shape", "size"), IMAGES)
def test_normalise_images(library, count, shape, size, dtype, last):
    """Bit by bit, zeros in the padding and in the channels beyond the third; nothing is written behind them."""
    torch.manual_seed(13)
    case = rowwise.images_case(dtype, "cpu", count, shape, size, last)
    expected = rowwise.images_reference(**case)
    memory = kernel_calls.poisoned((expected.numel() + 64,), case["img"])
    out = rowwise.normalise_images(library, **case, out=memory[: expected.numel()].view(expected.shape))
    assert torch.equal(out, expected) and memory[expected.numel() :].isnan().all()
    broken = rowwise.normalise_images(library, **{**case, "mean": case["mean"][::-1]})
    assert not torch.equal(broken, expected), "RGB's mean"
    with pytest.raises(RuntimeError, match="uniad_normalise_images: error 1"):
        rowwise.normalise_images(library, **{**case, "size": (shape[0] - 1, size[1])})


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
