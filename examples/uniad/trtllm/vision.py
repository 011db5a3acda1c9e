"""Operations that vision needs and TensorRT-LLM never had; those that sample maps are in trtllm/sampled_attention.py.

The fused attention and convolution operations at the end are compositions of the plain ones. An executor that has
something better (a plugin, a faster loop) offers a method of the same name and is asked first.
"""

import math
from typing import Any

import numpy as np

from trtllm import functional as F
from trtllm.functional import make
from trtllm.network import FLOATS, Tensor, default_net
from trtllm.pointwise import _one_type

BLOCKED = -10000.0  # logit of a masked key: exp() of it is 0 in both types, and no row can become NaN


def floor(input: Tensor) -> Tensor:
    """Largest integer not above each element."""
    return F.unary(input, "floor")


def erf(input: Tensor) -> Tensor:
    """Gauss error function."""
    return F.unary(input, "erf")


def gelu_erf(input: Tensor) -> Tensor:
    """Exact GELU, x * Phi(x) (Hendrycks & Gimpel 2016). tensorrt_llm.functional.gelu is the tanh approximation."""
    return input * 0.5 * (erf(input * (1 / math.sqrt(2))) + 1.0)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of x clamped to [0, 1], both sides kept at or above eps (mmdet's rule); float32."""
    x = F.clip(x, 0.0, 1.0)
    return F.log(F.maximum(x, eps) / F.maximum(1.0 - x, eps))


def max_pool2d(input: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Square max pooling of (N,C,H,W), rounding the output size down."""
    return make(default_net().executor.max_pool2d(input.handle, kernel_size, stride, padding), input.dtype)


def batch_norm(
    input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """Batch normalisation with stored statistics (float32 constants) of (N,C,H,W)."""
    return make(default_net().executor.batch_norm(input, running_mean, running_var, weight, bias, eps), input.dtype)


def grid_sample(
    input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> Tensor:
    """Sample (N,C,H,W) at grid (N,H',W',2) in [-1,1], x first -> (N,C,H',W'). padding_mode is "zeros"."""
    if mode not in ("bilinear", "nearest") or padding_mode != "zeros":
        raise ValueError(f"grid_sample: mode {mode!r}, padding_mode {padding_mode!r}")
    if input.dtype != grid.dtype or input.dtype not in FLOATS:
        raise TypeError(f"grid_sample: {input.dtype} at {grid.dtype}")
    return make(default_net().executor.grid_sample(input.handle, grid.handle, mode, align_corners), input.dtype)


def offered(name: str, *args, **attributes) -> Any:
    """What the executor's own version of an operation gives; None where it has none or declines.

    For operations that a part of the network composes itself, too: `name` is the executor's method.
    """
    custom = getattr(default_net().executor, name, None)
    return custom(*args, **attributes) if custom else None


def after(x: Tensor, earlier: Tensor | None = None) -> Tensor:
    """x itself, for use after `earlier` has been computed: a place where an executor may part its work.

    TensorRT 8.6 compiles the network in regions and needs minutes for a large one: independent parts of the network
    that could be one region come one after the other instead; without plugins infinities become the largest numbers.
    The others do nothing here.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"after: {x.dtype}")
    parted = offered("after", x, earlier)
    return x if parted is None else parted


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """Angle of (x, y) in (-pi, pi]; float32, one shape. atan2(0, 0) is 0; the sign of a zero does not count."""
    if y.dtype != "float32" or x.dtype != "float32":
        raise TypeError(f"atan2: {y.dtype}, {x.dtype}; angles are float32")
    if y.shape != x.shape:
        raise ValueError(f"atan2: shapes {y.shape} and {x.shape}")
    custom = offered("atan2", y, x)
    if custom is not None:
        return custom
    # The quotient of the smaller by the larger side stays in [0, 1], where atan is at its most exact.
    across, up = F.abs(x), F.abs(y)
    largest = F.maximum(F.maximum(across, up), 1e-30)
    angle = F.unary(F.minimum(across, up) / largest, "atan")
    angle = F.where(up > across, math.pi / 2 - angle, angle)
    angle = F.where(x < 0.0, math.pi - angle, angle)
    return F.where(y < 0.0, -angle, angle)


def add_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalisation of x + residual over the last dimension (Ba et al. 2016): a transformer's "add and norm".

    Args:
        x, residual: (…,D), of one type; residual None: x alone.
        weight, bias: (D).

    The sum is rounded to its type before it is normalised. An executor's own version may leave that out.
    """
    _one_type("add_layer_norm", x, *([residual] if residual is not None else []))
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"add_layer_norm: {x.shape} and {residual.shape}")
    custom = offered("add_layer_norm", x, residual, weight, bias, eps=eps)
    if custom is not None:
        return custom
    return F.layer_norm(x if residual is None else x + residual, x.shape[-1], weight, bias, eps)


def conv2d_norm(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gain: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    relu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """relu(batch_norm(conv2d(input, weight)) + residual): one step of a residual network.

    Shapes as conv2d's and batch_norm's; residual has the output's.
    """
    custom = offered(
        "conv2d_norm", input, weight, running_mean, running_var, gain, shift, residual,
        stride=stride, padding=padding, relu=relu, eps=eps,
    )  # fmt: skip
    if custom is not None:
        return custom
    out = F.conv2d(input, weight, None, stride, padding)  # (N,O,H',W')
    out = batch_norm(out, running_mean, running_var, gain, shift, eps)
    out = out + residual if residual is not None else out
    return F.relu(out) if relu else out


def stem(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """The start of a residual network: 7x7 convolution with stride 2, norm, ReLU, 3x3 max pooling with stride 2.

    (N,3,H,W) with weight (O,3,7,7) -> (N,O,H/4,W/4), rounded up twice.
    """
    custom = offered("stem", input, weight, running_mean, running_var, gain, shift, eps=eps)
    if custom is not None:
        return custom
    statistics = running_mean, running_var, gain, shift
    out = conv2d_norm(input, weight, *statistics, stride=(2, 2), padding=(3, 3), eps=eps)  # (N,O,H/2,W/2)
    return max_pool2d(out, kernel_size=3, stride=2, padding=1)  # (N,O,H/4,W/4)


def narrow_conv2d(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution with few outputs, stride 1 and padding 1: (N,C,H,W), (O,C,3,3) and (O) -> (N,O,H,W)."""
    custom = offered("narrow_conv2d", input, weight, bias)
    return F.conv2d(input, weight, bias, (1, 1), (1, 1)) if custom is None else custom


def modulated_deform_conv2d(
    input: Tensor, offset_mask: Tensor, weight: Tensor, stride: int = 1, padding: int = 1
) -> Tensor:
    """Modulated deformable convolution, DCNv2 (Zhu et al. 2019; mmcv modulated_deform_conv), no bias, one group.

    Args:
        input: (N,C,H,W).
        offset_mask: (N,27,H',W'), the raw output of conv_offset for a 3x3 kernel: 18 offsets (dy, dx per tap,
            pixels), then 9 mask logits (sigmoid is applied here).
        weight: (O,C,3,3).

    Returns:
        (N,O,H',W'). Bilinear, zero outside, each of the four corners tested for itself.
    """
    (n, c, h, w), (o, _, kh, kw) = input.shape, weight.shape
    taps, (ho, wo) = kh * kw, offset_mask.shape[2:]
    if offset_mask.shape[1] != 3 * taps:
        raise ValueError(f"modulated_deform_conv2d: offset_mask {offset_mask.shape} for {taps} taps")
    custom = offered("modulated_deform_conv2d", input, offset_mask, weight, stride=stride, padding=padding)
    if custom is not None:
        return custom
    offset_mask = F.cast(offset_mask, "float32")  # pixel positions need more than float16's 11 bits
    offset = F.view(F.narrow(offset_mask, 1, 0, 2 * taps), (n, taps, 2, ho, wo))
    mask = F.sigmoid(F.narrow(offset_mask, 1, 2 * taps, taps))  # (N,9,H',W')
    tap_y, tap_x = np.meshgrid(np.arange(kh), np.arange(kw), indexing="ij")
    base_y = tap_y.reshape(-1, 1, 1) + np.arange(ho).reshape(1, -1, 1) * stride - padding
    base_x = tap_x.reshape(-1, 1, 1) + np.arange(wo).reshape(1, 1, -1) * stride - padding
    y = F.select(offset, 2, 0) + F.constant(base_y[None].astype(np.float32))  # (N,9,H',W') input rows
    x = F.select(offset, 2, 1) + F.constant(base_x[None].astype(np.float32))
    grid = F.stack([x * (2 / w) + (1 / w - 1), y * (2 / h) + (1 / h - 1)], 4)  # (N,9,H',W',2)
    # The float32 part ends on both sides of the sampling: TensorRT 8.6 has no implementation of regions that hold it
    # together with the float16 convolutions around it.
    grid = F.view(after(grid), (n, taps * ho, wo, 2))  # (N,9H',W',2)
    columns = after(grid_sample(F.cast(input, "float32"), grid))  # (N,C,9H',W')
    columns = F.view(columns, (n, c, taps, ho, wo)) * F.unsqueeze(mask, 1)
    columns = F.cast(F.view(columns, (n, c * taps, ho * wo)), input.dtype)
    out = F.matmul(F.view(weight, (1, o, c * taps)), columns)  # (N,O,H'W')
    return F.view(out, (n, o, ho, wo))


def modulated_deform_conv2d_norm(
    input: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gain: Tensor,
    shift: Tensor,
    stride: int = 1,
    padding: int = 1,
    relu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """relu(batch_norm(modulated_deform_conv2d(input))). Shapes as modulated_deform_conv2d's and batch_norm's."""
    custom = offered(
        "modulated_deform_conv2d_norm", input, offset_mask, weight, running_mean, running_var, gain, shift,
        stride=stride, padding=padding, relu=relu, eps=eps,
    )  # fmt: skip
    if custom is not None:
        return custom
    out = modulated_deform_conv2d(input, offset_mask, weight, stride, padding)  # (N,O,H',W')
    out = batch_norm(out, running_mean, running_var, gain, shift, eps)
    return F.relu(out) if relu else out


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input weight^T + bias: (…,in) with weight (out,in) and bias (out) -> (…,out)."""
    _one_type("linear", input, weight, *([bias] if bias is not None else []))
    custom = offered("linear", input, weight, bias)
    if custom is not None:
        return custom
    out = F.matmul(input, weight, transb=True)  # (…,out)
    return out + bias if bias is not None else out


def attention(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of heads (Vaswani et al. 2017): softmax(query key^T / sqrt(C)) value.

    Args:
        query: (…,Q,C).
        key, value: (…,K,C), with equal leading dimensions.
        blocked: bool, broadcastable to (…,Q,K), keys that a query must not see. A row that may see nothing gives
            some finite mean of the values.

    Returns:
        (…,Q,C).
    """
    _one_type("attention", query, key, value)
    custom = offered("attention", query, key, value, blocked)
    if custom is not None:
        return custom
    logits = F.matmul(query * query.shape[-1] ** -0.5, key, transb=True)  # (…,Q,K)
    if blocked is not None:
        logits = F.where(blocked, BLOCKED, logits)
    return F.matmul(F.softmax(logits, -1), value)


def multihead_attention(
    query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None, first_heads: tuple[int, int] = (0, 0)
) -> Tensor:
    """attention() of M heads whose channels lie side by side in each row, as one projection leaves them.

    Args:
        query: (…,Q,M,C).
        key, value: (…,K,H,C), with equal leading dimensions: H = M heads, or also those of others, of which M are read.
        first_heads: the first of them in key and in value, which may be one tensor.
        blocked: bool, broadcastable to (…,M,Q,K), keys that a query must not see; see attention().

    Returns:
        (…,Q,M,C).

    Raises:
        ValueError: sizes that don't go together; TypeError: types that differ.
    """
    _one_type("multihead_attention", query, key, value)
    (*groups, _, m, c), shape = query.shape, key.shape
    if shape != value.shape or (*shape[:-3], shape[-1]) != (*groups, c):
        raise ValueError(f"multihead_attention: query {query.shape}, key {shape}, value {value.shape}")
    if min(first_heads) < 0 or max(first_heads) + m > shape[-2]:
        raise ValueError(f"multihead_attention: {m} heads from {first_heads} of {shape[-2]}")
    custom = offered("multihead_attention", query, key, value, blocked, first_heads)
    if custom is not None:
        return custom
    if shape[-2] != m:
        key, value = (F.narrow(x, -2, first, m) for x, first in zip((key, value), first_heads))  # (…,K,M,C)
    q, k, v = (F.transpose(x, -3, -2) for x in (query, key, value))  # (…,M,L,C)
    return F.transpose(attention(q, k, v, blocked), -3, -2)  # (…,Q,M,C)
