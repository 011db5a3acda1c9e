"""Operations named and shaped as in tensorrt_llm.functional 1.2.1, on whichever executor the network has.

Rules that hold on every executor, so that a network that runs on torch also builds on TensorRT:
shapes are static; both sides of a binary operation have one type; a Python number takes the other side's type;
gather is element-wise (GatherElements), index_select takes whole slices; comparisons give bool.
What TensorRT-LLM does not have is in trtllm/vision.py and trtllm/sampled_attention.py.
"""

import builtins
from collections.abc import Sequence

from trtllm.network import FLOATS, Tensor, default_net
from trtllm.pointwise import *  # noqa: F403
from trtllm.pointwise import _check, _one_type, _pad_rank, axis, exp, log, make, sub
from trtllm.shaping import *  # noqa: F403
from trtllm.shaping import flatten, squeeze, view

# ---- look-up --------------------------------------------------------------------------------------------------


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """Whole slices along `dim` at `index` (int32, one dimension)."""
    _check("index_select", index, ("int32",))
    if index.ndim() != 1:
        raise ValueError(f"index_select: index has shape {index.shape}")
    place = axis(dim, input.ndim())
    return make(default_net().executor.index_select(input.handle, place, index.handle), input.dtype)


def gather(input: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Element-wise look-up along `dim`: indices (int32) has input's rank and the output's shape."""
    _check("gather", indices, ("int32",))
    if indices.ndim() != input.ndim():
        raise ValueError(f"gather: indices {indices.shape} for {input.shape}")
    place = axis(dim, input.ndim())
    if any(i != place and a > b for i, (a, b) in enumerate(zip(indices.shape, input.shape))):
        raise ValueError(f"gather: indices {indices.shape} exceed {input.shape} beside dimension {dim}")
    return make(default_net().executor.gather(input.handle, place, indices.handle), input.dtype)


def scatter(input: Tensor, dim: int, indices: Tensor, updates: Tensor) -> Tensor:
    """input with input[…, indices, …] = updates along `dim`; indices (int32) and updates have one shape.

    Where an index comes twice, its updates must be equal: their order is not defined.
    """
    _check("scatter", indices, ("int32",))
    _one_type("scatter", input, updates)
    if indices.shape != updates.shape or indices.ndim() != input.ndim():
        raise ValueError(f"scatter: indices {indices.shape} and updates {updates.shape} for {input.shape}")
    place = axis(dim, input.ndim())
    out = default_net().executor.scatter(input.handle, place, indices.handle, updates.handle)
    return make(out, input.dtype)


def embedding(input: Tensor, weight: Tensor) -> Tensor:
    """Rows of weight (V,D) at input (int32, any shape) -> (*input.shape, D)."""
    rows = index_select(weight, 0, flatten(input))  # (prod, D)
    return view(rows, (*input.shape, weight.shape[1]), False)


def topk(input: Tensor, k: int, dim: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along `dim`, sorted, and their int32 indices; floats. Equal values: any order."""
    _check("topk", input, FLOATS)
    place = axis(dim, input.ndim())
    if not 1 <= k <= input.shape[place]:
        raise ValueError(f"topk: {k} of {input.shape[place]}")
    values, indices = default_net().executor.topk(input.handle, k, place, largest)
    return make(values, input.dtype), make(indices, "int32")


def argmax(input: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Index of the largest along `dim`, int32."""
    _, indices = topk(input, 1, dim)
    return indices if keepdim else squeeze(indices, dim)


# ---- sums -----------------------------------------------------------------------------------------------------


def reduce(input: Tensor, op: str, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Fold dimensions by op: "sum", "mean", "max" or "min"."""
    _check(op, input, FLOATS if op == "mean" else (*FLOATS, "int32"))
    dims = tuple(sorted(axis(d, input.ndim()) for d in ([dim] if isinstance(dim, int) else dim)))
    return make(default_net().executor.reduce(op, input.handle, dims, keepdim), input.dtype)


def sum(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Sum over `dim`."""
    return reduce(input, "sum", dim, keepdim)


def mean(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Mean over `dim`."""
    return reduce(input, "mean", dim, keepdim)


def max(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Largest over `dim` (values only)."""
    return reduce(input, "max", dim, keepdim)


def min(input: Tensor, *, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Smallest over `dim` (values only). `dim` by keyword, as TensorRT-LLM's partial(reduce, op=…) asks."""
    return reduce(input, "min", dim, keepdim)


def cumsum(input: Tensor, dim: int) -> Tensor:
    """Running sum along `dim`; float32 or int32 (int32 exact below 2**24)."""
    _check("cumsum", input, ("float32", "int32"))
    return make(default_net().executor.cumsum(input.handle, axis(dim, input.ndim()), input.dtype), input.dtype)


def softmax(input: Tensor, dim: int) -> Tensor:
    """exp(x) / sum exp(x) along `dim`, in the input's type (accumulated in float32)."""
    _check("softmax", input, FLOATS)
    return make(default_net().executor.softmax(input.handle, axis(dim, input.ndim())), input.dtype)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """log of softmax along `dim`."""
    shifted = sub(input, max(input, dim, keepdim=True))
    return sub(shifted, log(sum(exp(shifted), dim, keepdim=True)))


# ---- products -------------------------------------------------------------------------------------------------


def matmul(input: Tensor, mat2: Tensor, transa: bool = False, transb: bool = False) -> Tensor:
    """Matrix product over the last two dimensions; leading dimensions broadcast. (…,M,K) x (…,K,N) -> (…,M,N)."""
    dtype = _one_type("matmul", input, mat2)
    _check("matmul", input, FLOATS)
    if input.shape[-2 if transa else -1] != mat2.shape[-1 if transb else -2]:
        raise ValueError(f"matmul: {input.shape} x {mat2.shape} (transa={transa}, transb={transb})")
    ndim = builtins.max(input.ndim(), mat2.ndim())
    a, b = _pad_rank(input, ndim), _pad_rank(mat2, ndim)
    return make(default_net().executor.matmul(a.handle, b.handle, transa, transb), dtype)


def einsum(einsum_eq: str, inputs: Sequence[Tensor]) -> Tensor:
    """Einstein summation of two tensors, e.g. einsum("qc,chw->qhw", [a, b])."""
    dtype = _one_type("einsum", *inputs)
    return make(default_net().executor.einsum(einsum_eq, [t.handle for t in inputs]), dtype)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """2-d convolution: (N,C,H,W) with weight (O,C/groups,kh,kw) and bias (O) -> (N,O,H',W')."""
    dtype = _one_type("conv2d", input, weight, *([bias] if bias is not None else []))
    if input.ndim() != 4 or input.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"conv2d: input {input.shape}, weight {weight.shape}, groups {groups}")
    return make(default_net().executor.conv2d(input, weight, bias, stride, padding, dilation, groups), dtype)


def layer_norm(
    input: Tensor, normalized_shape: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise the last dimension to mean 0 and variance 1 (statistics in float32), then scale and shift."""
    if input.shape[-1] != normalized_shape:
        raise ValueError(f"layer_norm: {input.shape} over {normalized_shape}")
    return make(default_net().executor.layer_norm(input, weight, bias, eps), input.dtype)


def interpolate(
    input: Tensor,
    size: Sequence[int] | None = None,
    scale_factor: float | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
) -> Tensor:
    """Resize (N,C,H,W) to `size` (H',W') or by `scale_factor`; mode "nearest" or "bilinear" (as torch)."""
    if (size is None) == (scale_factor is None) or mode not in ("nearest", "bilinear"):
        raise ValueError("interpolate: give size or scale_factor, and mode nearest or bilinear")
    if size is None:
        assert scale_factor is not None
        size = [int(d * scale_factor) for d in input.shape[2:]]
    return make(default_net().executor.interpolate(input.handle, tuple(size), mode, align_corners), input.dtype)
