"""The deformable convolution (src/kernels/deform_conv*): calls, inputs, and what they must give in float64."""

import ctypes

import torch
import torch.nn.functional as TF
from kernel_calls import TYPES, call_kernel, pointer, poisoned
from kernel_cases import Case
from kernel_structures import DeformConv

from trtllm.plugin_library import HOPPER_CHANNELS, HOPPER_OUTPUTS
from trtllm.plugin_weights import pack_deform_weight

CONV_VARIANTS = range(9)  # of the float16 deformable convolution with COMMON_LAYOUT; see conv_variants
WIDE_VARIANT = 6  # for multiples of 512 channels
COMMON_LAYOUT, HOPPER_LAYOUT = 0, 1  # of its weight: UniadWeightLayout


def deform_conv(
    library: ctypes.CDLL,
    x: torch.Tensor,
    offset_mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    relu: bool = False,
    stride: int = 1,
    padding: int = 1,
    layout: int = COMMON_LAYOUT,
    variant: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """relu(DCNv2 + bias): (N,C,H,W) -> (N,O,H',W'); float16 tensors lie in channels_last order.

    Args:
        offset_mask: (N,27,H',W'), or a view of more channels, in either order.
        weight: as packed by trtllm.plugin_weights.pack_deform_weight for `layout`.
        bias: float32 (O).
    """
    n, c, h, w = x.shape
    o, (ho, wo) = bias.shape[0], offset_mask.shape[2:]
    order = torch.channels_last if x.dtype == torch.float16 else torch.contiguous_format
    if out is None:
        out = poisoned((n, o, ho, wo), x).contiguous(memory_format=order)
    assert x.is_contiguous(memory_format=order) and out.is_contiguous(memory_format=order)
    assert offset_mask.stride(2) == wo * offset_mask.stride(3)
    arguments = DeformConv(
        input=x.data_ptr(),
        offset_mask=offset_mask.data_ptr(),
        weight=pointer(weight),
        bias=pointer(bias),
        out=out.data_ptr(),
        batch=n,
        channels=c,
        height=h,
        width=w,
        out_channels=o,
        out_height=ho,
        out_width=wo,
        stride=stride,
        padding=padding,
        relu=relu,
        offset_image=offset_mask.stride(0),
        offset_channel=offset_mask.stride(1),
        offset_pixel=offset_mask.stride(3),
        layout=layout,
    )
    call_kernel(library, "uniad_deform_conv", arguments, x, TYPES[x.dtype], variant)
    return out


def deform_conv_layout(library: ctypes.CDLL, x: torch.Tensor, outputs: int) -> int:
    """How the fastest kernel for (N,C,H,W) on this GPU reads its weight."""
    n, c, h, w = x.shape
    return library.uniad_deform_conv_layout(n * h * w, c, outputs) if x.dtype == torch.float16 else COMMON_LAYOUT


def conv_variants(facts: dict[str, str], outputs: int) -> list[int]:
    """The variants of the float16 deformable convolution with COMMON_LAYOUT that a library of these facts has."""
    if facts["variants"] != "1" or outputs % 256:
        return [0]
    return [variant for variant in CONV_VARIANTS if variant != WIDE_VARIANT or outputs % 512 == 0]


def deform_conv_case(
    dtype: torch.dtype, device, size: tuple[int, int, int, int], outputs: int, stride: int = 1, relu: bool = True
) -> Case:
    """What deform_conv_arguments and deform_conv_reference take.

    `plain_weight` is (O,C,3,3), `hopper_weight` None where the Hopper kernel doesn't take these sizes.
    """
    n, c, h, w = size
    ho, wo = (h - 1) // stride + 1, (w - 1) // stride + 1
    offset_mask = torch.randn(n, 27, ho, wo, device=device)
    offset_mask[:, :18] *= 1.5  # pixels
    offset_mask[:, :18, 0, 0] = 3e4  # far outside, on both sides
    offset_mask[:, 1:18:2, -1, -1] = -3e4
    weight = torch.randn(outputs, c, 3, 3, device=device).div((9 * c) ** 0.5).to(dtype)
    layout = torch.channels_last if dtype == torch.float16 else torch.contiguous_format
    for_hopper = dtype == torch.float16 and outputs % HOPPER_OUTPUTS == 0 and c % HOPPER_CHANNELS == 0
    return {
        "x": torch.randn(n, c, h, w, device=device).to(dtype).contiguous(memory_format=layout),
        "offset_mask": offset_mask.to(dtype),
        "weight": pack_weight(weight),
        "bias": torch.randn(outputs, device=device),
        "relu": relu,
        "stride": stride,
        "plain_weight": weight,
        "hopper_weight": pack_weight(weight, HOPPER_LAYOUT) if for_hopper else None,
    }


def deform_conv_arguments(case: Case, layout: int = COMMON_LAYOUT) -> Case:
    """Arguments of deform_conv, with the weight in the layout."""
    weight = case["hopper_weight" if layout == HOPPER_LAYOUT else "weight"]
    return {**{key: x for key, x in case.items() if not key.endswith("_weight")}, "weight": weight, "layout": layout}


def pack_weight(weight: torch.Tensor, layout: int = COMMON_LAYOUT) -> torch.Tensor:
    """(O,C,3,3) in the order that the kernel of its type and layout reads."""
    return torch.from_numpy(pack_deform_weight(weight.cpu().numpy(), layout)).to(weight.device)


def deform_conv_reference(
    x, offset_mask, plain_weight, bias, relu, stride, weight=None, hopper_weight=None
) -> torch.Tensor:
    """What deform_conv must give, float64, one image at a time; of the weights only `plain_weight` is read."""
    (n, c, h, w), (ho, wo) = x.shape, offset_mask.shape[2:]
    out = []
    tap = torch.arange(9, device=x.device).view(9, 1, 1)
    base_y = torch.arange(ho, device=x.device).view(1, -1, 1) * stride - 1 + tap // 3
    base_x = torch.arange(wo, device=x.device).view(1, 1, -1) * stride - 1 + tap % 3
    for i in range(n):
        offset = offset_mask[i, :18].double().view(9, 2, ho, wo)
        y, x_ = base_y + offset[:, 0], base_x + offset[:, 1]  # (9,H',W')
        grid = torch.stack([(2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1], -1).view(1, 9 * ho, wo, 2)
        columns = TF.grid_sample(x[i : i + 1].double(), grid, align_corners=False).view(c, 9, ho, wo)
        columns = columns * offset_mask[i, 18:].double().sigmoid()
        product = plain_weight.double().view(-1, 9 * c) @ columns.view(9 * c, ho * wo)
        out.append(product.view(-1, ho, wo) + bias.double().view(-1, 1, 1))
    result = torch.stack(out)
    return result.relu() if relu else result
