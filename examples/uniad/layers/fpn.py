"""Image side, part two: a feature pyramid of one width (img_neck)."""

from collections.abc import Sequence

from config import UniADConfig
from layers.basic import Conv2d
from layers.resnet import EXPANSION
from trtllm import Module, ModuleList, Tensor, tap
from trtllm import functional as F


class ConvModule(Module):
    """mmcv's ConvModule without norm or activation: a convolution under the key `conv`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FPN(Module):
    """Feature pyramid (Lin et al. 2017; mmdet FPN with add_extra_convs="on_output", relu_before_extra_convs).

    [C3, C4, C5] -> `fpn_num_outs` maps (6,D,h,w): P3, P4, P5, then each a stride-2 convolution of the map before.
    mmdet applies its ReLU only from the second extra level on.
    """

    def __init__(self, config: UniADConfig):
        super().__init__()
        dims = config.embed_dims
        widths = [config.backbone_base_channels * EXPANSION * 2**stage for stage in (1, 2, 3)]
        self.lateral_convs = ModuleList([ConvModule(width, dims, 1) for width in widths])
        convs = [ConvModule(dims, dims, 3) for _ in widths]
        convs += [ConvModule(dims, dims, 3, stride=2) for _ in range(config.fpn_num_outs - len(widths))]
        self.fpn_convs = ModuleList(convs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = [conv(x) for conv, x in zip(self.lateral_convs, features)]  # (6,D,h,w) each
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + F.interpolate(merged[level], size=finer.shape[2:], mode="nearest")
        outs = [conv(x) for conv, x in zip(self.fpn_convs, merged)]
        for level in range(len(merged), len(self.fpn_convs)):
            x = F.relu(outs[-1]) if level > len(merged) else outs[-1]
            outs.append(self.fpn_convs[level](x))  # (6,D,ceil(h/2),ceil(w/2))
        for level, x in enumerate(outs):
            tap(f"fpn.{level}", x)
        return outs
