"""Image side, part one: camera images to feature maps (img_backbone).

ResNet (He et al. 2016) in caffe style, with modulated deformable convolutions (DCNv2, Zhu et al. 2019) in the stages
that the configuration names. Follows mmdet's ResNet as base_e2e.py configures it, and the NormalizeMultiviewImage
and PadMultiViewImage steps of UniAD's test pipeline (datasets/pipelines/transform_3d.py).
"""

import numpy as np

from config import UniADConfig
from layers.basic import BatchNorm2d, Conv2d
from trtllm import Module, Parameter, Sequential, Tensor, net_dtype, tap
from trtllm import functional as F
from trtllm import vision as V

STAGE_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 4  # a bottleneck's output channels over its inner ones


def normalise_images(img: Tensor, config: UniADConfig) -> Tensor:
    """uint8 (6,H,W,3) BGR, unpadded -> network type (6,3,H',W'), mean removed, then zero-padded at bottom and right."""
    size = (config.padded_height, config.padded_width)
    custom = V.offered("normalise_images", img, mean=config.image_mean, size=size, dtype=net_dtype())
    if custom is not None:
        return custom
    mean = F.constant(np.asarray(config.image_mean, np.float32))
    # Subtracted in float32: in float16 both the mean and the difference would be rounded.
    x = F.cast(img, "float32") - mean  # (6,H,W,3)
    x = F.cast(F.permute(x, (0, 3, 1, 2)), net_dtype())  # (6,3,H,W)
    below, right = size[0] - config.image_height, size[1] - config.image_width
    # The original pads after normalisation, so the padding is 0 and not minus the mean.
    return F.pad(x, (0, right, 0, below)) if below or right else x  # (6,3,H',W')


def conv_norm(x: Tensor, conv: Conv2d, norm: BatchNorm2d, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(norm(conv(x)) + residual)."""
    return V.conv2d_norm(x, conv.weight.value, *norm.statistics(), residual, conv.stride, conv.padding, relu)


class ModulatedDeformConv2d(Module):
    """mmcv's ModulatedDeformConv2dPack, 3x3, stride 1, no bias: (N,in,H,W) -> (N,out,H,W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = Parameter((out_channels, in_channels, 3, 3))
        self.conv_offset = Conv2d(in_channels, 27, 3, padding=1)  # 9 taps: 18 offsets, 9 mask logits

    def offset_mask(self, x: Tensor) -> Tensor:
        """(N,27,H,W), the raw offsets and mask."""
        return V.narrow_conv2d(x, self.conv_offset.weight.value, self.conv_offset.bias.value)

    def forward(self, x: Tensor) -> Tensor:
        return V.modulated_deform_conv2d(x, self.offset_mask(x), self.weight.value, stride=1, padding=1)


def deform_conv_norm(x: Tensor, conv: ModulatedDeformConv2d, norm: BatchNorm2d) -> Tensor:
    """relu(norm(conv(x)))."""
    return V.modulated_deform_conv2d_norm(x, conv.offset_mask(x), conv.weight.value, *norm.statistics())


class Bottleneck(Module):
    """1x1, 3x3 (or deformable 3x3), 1x1 with a shortcut: (N,in,H,W) -> (N,4*planes,H/stride,W/stride).

    Caffe style: the stride is on the first 1x1 convolution, the 3x3 one has none.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, with_dcn: bool, with_downsample: bool):
        super().__init__()
        out_channels = planes * EXPANSION
        self.conv1 = Conv2d(in_channels, planes, 1, stride, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2: Conv2d | ModulatedDeformConv2d = (
            ModulatedDeformConv2d(planes, planes) if with_dcn else Conv2d(planes, planes, 3, padding=1, bias=False)
        )
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        if with_downsample:
            self.downsample = Sequential(
                Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels)
            )
        self.with_downsample = with_downsample

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm(x, self.conv1, self.bn1)  # (N,planes,H/stride,W/stride)
        if isinstance(self.conv2, Conv2d):
            y = conv_norm(y, self.conv2, self.bn2)
        else:
            y = deform_conv_norm(y, self.conv2, self.bn2)
        shortcut = x
        if self.with_downsample:
            shortcut = conv_norm(x, self.downsample[0], self.downsample[1], relu=False)
        return conv_norm(y, self.conv3, self.bn3, shortcut)  # (N,4*planes,H/stride,W/stride)


class ResNet(Module):
    """Images (6,3,H,W) -> [C3, C4, C5] with 8, 16 and 32 times the base channels at 1/8, 1/16 and 1/32 of the size."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        channels = config.backbone_base_channels
        self.conv1 = Conv2d(3, channels, 7, stride=2, padding=3, bias=False)  # as vision.stem has it
        self.bn1 = BatchNorm2d(channels)
        in_channels = channels
        self.stages: list[Sequential] = []
        for index, blocks in enumerate(STAGE_BLOCKS[config.backbone_depth]):
            planes, with_dcn = channels * 2**index, config.backbone_stage_with_dcn[index]
            layers = []
            for block in range(blocks):
                stride = 2 if block == 0 and index > 0 else 1
                layers.append(Bottleneck(in_channels, planes, stride, with_dcn, with_downsample=block == 0))
                in_channels = planes * EXPANSION
            stage = Sequential(*layers)
            setattr(self, f"layer{index + 1}", stage)
            self.stages.append(stage)

    def forward(self, img: Tensor) -> list[Tensor]:
        x = V.stem(img, self.conv1.weight.value, *self.bn1.statistics())  # (6,C,H/4,W/4)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)  # (6,4*C*2^i,H/2^(i+2),W/2^(i+2))
            if index > 0:
                features.append(x)
                tap(f"backbone.C{index + 2}", x)
        return features
