"""Image preparation, ResNet with deformable convolutions and the feature pyramid against the recorded goldens."""

import functools

import numpy as np
import pytest
from network_support import const, load_op_weights, tiny_weights, torch_network, value
from support import assert_close, assert_differs, golden, tolerance
from track_support import tiny_config, tiny_frame

from layers.fpn import FPN
from layers.resnet import ModulatedDeformConv2d, ResNet, normalise_images
from trtllm import Network, net_guard
from trtllm import functional as F
from trtllm import vision as V
from trtllm.torch_executor import TorchExecutor

FACTOR = 3  # another order of sums than the recorded run's; measured: up to 1.5 times the floor
STAGES = ("backbone.C3", "backbone.C4", "backbone.C5")
LEVELS = ("fpn.0", "fpn.1", "fpn.2", "fpn.3")


@functools.cache
def backbone() -> ResNet:
    module = ResNet(tiny_config())
    module.load(tiny_weights("img_backbone."))
    return module


@functools.cache
def neck() -> FPN:
    module = FPN(tiny_config())
    module.load(tiny_weights("img_neck."))
    return module


def run_backbone(network_dtype: str = "float32", module: ResNet | None = None) -> list[np.ndarray]:
    with torch_network(network_dtype) as network:
        img = normalise_images(const(tiny_frame(0)["in.img_u8"]), tiny_config())
        features = (module or backbone())(img)
        assert [tensor.dtype for tensor in features] == [network_dtype] * 3
        assert list(network.taps) == list(STAGES)
        return [value(tensor) for tensor in features]


def test_normalised_images_are_exact():
    frame = tiny_frame(0)
    with torch_network():
        img = value(normalise_images(const(frame["in.img_u8"]), tiny_config()))
        assert np.array_equal(img, frame["in.img"][0])
        swapped = value(normalise_images(const(frame["in.img_u8"][..., ::-1]), tiny_config()))
        assert_differs(swapped, frame["in.img"][0], 1.0, "RGB for BGR")


def test_padding_comes_after_normalisation():
    config = tiny_config().replace(image_height=100, image_width=200)
    cut = tiny_frame(0)["in.img_u8"][:, :100, :200]
    with torch_network():
        img = value(normalise_images(const(cut), config))
    assert img.shape == (6, 3, 128, 224)
    assert np.array_equal(img[:, :, :100, :200], tiny_frame(0)["in.img"][0, :, :, :100, :200])
    assert not img[:, :, 100:].any() and not img[:, :, :, 200:].any()


@pytest.mark.parametrize("name", ["dcnv2_stride1", "dcnv2_stride2"])
@pytest.mark.parametrize("fast", [True, False])
def test_deformable_convolution_op(name, fast):
    arrays = golden("ops", f"{name}.npz")
    stride = int(arrays["stride"])

    def run(offset_mask: np.ndarray) -> np.ndarray:
        weight = const(arrays["w.weight"])
        return value(V.modulated_deform_conv2d(const(arrays["x"]), const(offset_mask), weight, stride, 1))

    # The CPU executor's own version, and the composition that every other executor has.
    with torch_network(), net_guard(Network(TorchExecutor())) if not fast else torch_network():
        recorded = arrays["offset_conv_out"]
        assert_close(run(recorded), arrays["out"], 5e-6, name)
        swapped = recorded.copy()
        swapped[:, 0:18:2], swapped[:, 1:18:2] = recorded[:, 1:18:2], recorded[:, 0:18:2]
        assert_differs(run(swapped), arrays["out"], 1e-2, "dx, dy for dy, dx")
        if stride == 1:
            module = load_op_weights(ModulatedDeformConv2d(24, 40), arrays)
            assert_close(value(module(const(arrays["x"]))), arrays["out"], 1e-5, "with its offset convolution")


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_recorded_frames(index):
    frame = tiny_frame(index)
    with torch_network() as network:
        neck()(backbone()(normalise_images(const(frame["in.img_u8"]), tiny_config())))
        taps = {key: value(tensor) for key, tensor in network.taps.items()}
    assert list(taps) == [*STAGES, *LEVELS]
    for key, array in taps.items():
        assert_close(array, frame[key], tolerance(key, FACTOR), key)


def test_pyramid_of_recorded_stages():
    frame = tiny_frame(0)
    with torch_network():
        features = [const(frame[key]) for key in STAGES]
        outs = neck()(features)
        for key, out in zip(LEVELS, outs):
            assert_close(value(out), frame[key], tolerance(key, FACTOR), key)
        # [T] relu_before_extra_convs does nothing to the first extra level.
        clipped = value(neck().fpn_convs[3](F.relu(outs[2])))
        assert_differs(clipped, frame["fpn.3"], 0.1, "ReLU before the extra level")


def test_stride_is_on_the_first_convolution():
    """[T] Caffe style; with the stride on the 3x3 convolution, as PyTorch's ResNet has it, the shapes are the same."""
    module = ResNet(tiny_config())
    module.load(tiny_weights("img_backbone."))
    block = module.stages[1][0]
    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    assert_differs(run_backbone(module=module)[0], tiny_frame(0)["backbone.C3"], 0.1, "PyTorch style")


def test_float16_network():
    for key, half in zip(STAGES, run_backbone("float16")):
        assert_close(half, tiny_frame(0)[key], 2e-2, key)  # measured 5e-3
