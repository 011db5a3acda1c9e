"""The kernels of a residual network's start and of its blocks' ends: calls through the C interface (src/kernels.h) on
torch tensors, cases and float64 references.
"""

import ctypes

import torch
from kernel_calls import call_kernel, pointer, poisoned
from kernel_cases import Case
from kernel_structures import ExpandConv, Stem

from trtllm.plugin_weights import pack_expand_weight, pack_stem_weight


def expand_conv(
    library: ctypes.CDLL,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x weight^T + bias + residual and a ReLU: float16 (R,C), (R,O), packed weight, float32 (O) -> (R,O)."""
    assert x.dtype == residual.dtype == weight.dtype == torch.float16 and bias.dtype == torch.float32
    out = poisoned(residual.shape, x) if out is None else out
    arguments = ExpandConv(
        input=pointer(x),
        residual=pointer(residual),
        weight=pointer(weight),
        bias=pointer(bias),
        out=pointer(out),
        rows=len(x),
        channels=x.shape[1],
        outputs=residual.shape[1],
    )
    call_kernel(library, "uniad_expand_conv", arguments, x)
    return out


def expand_conv_case(device, rows: int, channels: int, outputs: int) -> Case:
    """With the plain weight (O,C) beside the packed one."""
    weight = (torch.randn(outputs, channels) / channels**0.5).half()
    tensors = {
        "x": torch.randn(rows, channels).half(),
        "residual": torch.randn(rows, outputs).half(),
        "weight": torch.from_numpy(pack_expand_weight(weight.numpy())),
        "bias": torch.randn(outputs),
        "plain_weight": weight,
    }
    return {name: x.to(device) for name, x in tensors.items()}


def expand_conv_reference(x, residual, weight, bias, plain_weight) -> torch.Tensor:
    """float64 (R,O)."""
    return (x.double() @ plain_weight.double().T + bias.double() + residual.double()).relu()


def stem(
    library: ctypes.CDLL, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """7x7 convolution, bias, ReLU and pooling: float16 (N,3,H,W), packed weight, float32 (64) -> (N,H/4,W/4,64)."""
    assert x.dtype == weight.dtype == torch.float16 and bias.dtype == torch.float32
    n, _, h, w = x.shape
    out = poisoned((n, h // 4, w // 4, len(bias)), x) if out is None else out
    arguments = Stem(
        input=pointer(x), weight=pointer(weight), bias=pointer(bias), out=pointer(out), images=n, height=h, width=w
    )
    call_kernel(library, "uniad_stem", arguments, x)
    return out


def stem_case(device, images: int, height: int, width: int) -> Case:
    """With the plain weight (64,3,7,7) beside the packed one."""
    weight = (torch.randn(64, 3, 7, 7) / 147**0.5).half()
    tensors = {
        "x": torch.randn(images, 3, height, width).half(),
        "weight": torch.from_numpy(pack_stem_weight(weight.numpy())),
        "bias": torch.randn(64),
        "plain_weight": weight,
    }
    return {name: x.to(device) for name, x in tensors.items()}


def stem_reference(x, weight, bias, plain_weight) -> torch.Tensor:
    """float64 (N,H/4,W/4,64)."""
    out = torch.nn.functional.conv2d(x.double(), plain_weight.double(), bias.double(), stride=2, padding=3).relu()
    return torch.nn.functional.max_pool2d(out, 3, 2, 1).permute(0, 2, 3, 1)
