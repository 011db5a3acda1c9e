"""The kernel of products of many rows: its call through the C interface (src/kernels.h) on torch tensors, its cases and
its float64 reference.
"""

import ctypes

import torch
from kernel_calls import call_kernel, pointer, poisoned
from kernel_cases import Case
from kernel_structures import RowProduct

from trtllm.plugin_weights import pack_product_weight

EPS = 1e-5


def row_product(
    library: ctypes.CDLL,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x weight^T + bias + residual, then a ReLU or, with gain and shift, a layer norm: float16 (R,C), (R,O), packed
    weight, float32 (O) -> (R,O)."""
    assert x.dtype == residual.dtype == weight.dtype == torch.float16 and bias.dtype == torch.float32
    out = poisoned(residual.shape, x) if out is None else out
    arguments = RowProduct(
        input=pointer(x),
        residual=pointer(residual),
        weight=pointer(weight),
        bias=pointer(bias),
        gain=None if gain is None else pointer(gain),
        shift=None if shift is None else pointer(shift),
        out=pointer(out),
        rows=len(x),
        channels=x.shape[1],
        outputs=residual.shape[1],
        eps=EPS,
    )
    call_kernel(library, "uniad_row_product", arguments, x)
    return out


def row_product_case(device, rows: int, channels: int, outputs: int, norm: bool = False) -> Case:
    """With the plain weight (O,C) beside the packed one."""
    weight = (torch.randn(outputs, channels) / channels**0.5).half()
    tensors = {
        "x": torch.randn(rows, channels).half(),
        "residual": torch.randn(rows, outputs).half(),
        "weight": torch.from_numpy(pack_product_weight(weight.numpy())),
        "bias": torch.randn(outputs),
        "plain_weight": weight,
    }
    tensors |= {"gain": torch.randn(outputs), "shift": torch.randn(outputs)} if norm else {}
    return {name: x.to(device) for name, x in tensors.items()}


def row_product_reference(x, residual, weight, bias, plain_weight, gain=None, shift=None) -> torch.Tensor:
    """float64 (R,O)."""
    out = x.double() @ plain_weight.double().T + bias.double() + residual.double()
    if gain is None:
        return out.relu()
    return torch.nn.functional.layer_norm(out, out.shape[1:], gain.double(), shift.double(), EPS)
