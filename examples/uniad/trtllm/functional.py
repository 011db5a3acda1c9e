"""Operations named and shaped as in tensorrt_llm.functional 1.2.1, on whichever executor the network has.

Rules that hold on every executor, so that a network that runs on torch also builds on TensorRT:
shapes are static; both sides of a binary operation have one type; a Python number takes the other side's type;
gather is element-wise (GatherElements), index_select takes whole slices; comparisons give bool.
What TensorRT-LLM does not have is in trtllm/vision.py.
"""

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtllm.network import DTYPES, FLOATS, Tensor, default_net

Operand = Tensor | float | int | bool


def make(handle: Any, dtype: str, array: np.ndarray | None = None) -> Tensor:
    """Wrap an executor's handle."""
    return Tensor(handle, dtype, default_net().executor.shape_of(handle), array)


def axis(dim: int, ndim: int) -> int:
    """A dimension counted from the front. Raises IndexError where there is none."""
    if not -ndim <= dim < ndim:
        raise IndexError(f"dimension {dim} of a tensor with {ndim} dimensions")
    return dim % ndim


def _one_type(name: str, *tensors: Tensor) -> str:
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) != 1:
        raise TypeError(f"{name}: types differ ({', '.join(t.dtype for t in tensors)}); cast one side")
    return tensors[0].dtype


def _check(name: str, tensor: Tensor, allowed: Sequence[str]) -> None:
    if tensor.dtype not in allowed:
        raise TypeError(f"{name}: {tensor.dtype} is not one of {', '.join(allowed)}")


def constant(ndarray: np.ndarray, as_dtype: str | None = None) -> Tensor:
    """A tensor that does not depend on the frame. int64 arrays become int32, float64 become float32."""
    array = np.asarray(ndarray)
    narrow = {"int64": "int32", "float64": "float32"}
    array = np.ascontiguousarray(array, dtype=as_dtype or narrow.get(str(array.dtype), str(array.dtype)))
    if str(array.dtype) not in DTYPES:
        raise TypeError(f"constant: no tensor type {array.dtype}")
    return make(default_net().executor.constant(array), str(array.dtype), array)


def cast(input: Tensor, dtype: str) -> Tensor:
    """Same values in another type. Float to int truncates toward zero; anything to bool is `!= 0`."""
    if dtype not in DTYPES:
        raise TypeError(f"cast: no type {dtype!r}")
    if input.dtype == dtype:
        return input
    return make(default_net().executor.cast(input.handle, input.dtype, dtype), dtype)


# ---- element by element ---------------------------------------------------------------------------------------


def _operands(name: str, left: Operand, right: Operand) -> tuple[Tensor, Tensor]:
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        raise TypeError(f"{name}: one side must be a tensor")
    like = left if isinstance(left, Tensor) else right
    assert isinstance(like, Tensor)
    left = left if isinstance(left, Tensor) else constant(np.asarray(left, like.dtype))
    right = right if isinstance(right, Tensor) else constant(np.asarray(right, like.dtype))
    _one_type(name, left, right)
    try:
        np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        raise ValueError(f"{name}: shapes {left.shape} and {right.shape} do not broadcast") from None
    ndim = builtins.max(left.ndim(), right.ndim())
    return _pad_rank(left, ndim), _pad_rank(right, ndim)


def _pad_rank(x: Tensor, ndim: int) -> Tensor:
    return x if x.ndim() == ndim else view(x, (1,) * (ndim - x.ndim()) + x.shape, False)


def elementwise_binary(left: Operand, right: Operand, op: str) -> Tensor:
    """left `op` right with numpy broadcasting; op is a name below. One side may be a Python number."""
    a, b = _operands(op, left, right)
    if op in ("and", "or"):
        _check(op, a, ("bool",))
    elif op != "eq":
        _check(op, a, (*FLOATS, "int32"))
    dtype = "bool" if op in ("gt", "lt", "eq", "and", "or") else a.dtype
    return make(default_net().executor.binary(op, a.handle, b.handle), dtype)


def add(left: Operand, right: Operand) -> Tensor:
    """left + right."""
    return elementwise_binary(left, right, "add")


def sub(left: Operand, right: Operand) -> Tensor:
    """left - right."""
    return elementwise_binary(left, right, "sub")


def mul(left: Operand, right: Operand) -> Tensor:
    """left * right."""
    return elementwise_binary(left, right, "mul")


def div(left: Operand, right: Operand) -> Tensor:
    """left / right; floats only."""
    if any(isinstance(x, Tensor) and x.dtype not in FLOATS for x in (left, right)):
        raise TypeError("div: floats only; use floordiv for integers")
    return elementwise_binary(left, right, "div")


def floordiv(left: Operand, right: Operand) -> Tensor:
    """floor(left / right)."""
    return elementwise_binary(left, right, "floordiv")


def pow(left: Operand, right: Operand) -> Tensor:
    """left to the power right; floats only."""
    return elementwise_binary(left, right, "pow")


def minimum(left: Operand, right: Operand) -> Tensor:
    """The smaller of each pair."""
    return elementwise_binary(left, right, "min")


def maximum(left: Operand, right: Operand) -> Tensor:
    """The larger of each pair."""
    return elementwise_binary(left, right, "max")


def gt(left: Operand, right: Operand) -> Tensor:
    """left > right, as bool."""
    return elementwise_binary(left, right, "gt")


def lt(left: Operand, right: Operand) -> Tensor:
    """left < right, as bool."""
    return elementwise_binary(left, right, "lt")


def eq(left: Operand, right: Operand) -> Tensor:
    """left == right, as bool."""
    return elementwise_binary(left, right, "eq")


def op_and(left: Tensor, right: Tensor) -> Tensor:
    """Both, of two bool tensors."""
    return elementwise_binary(left, right, "and")


def op_or(left: Tensor, right: Tensor) -> Tensor:
    """Either, of two bool tensors."""
    return elementwise_binary(left, right, "or")


def unary(input: Tensor, op: str) -> Tensor:
    """A function of each element; op is a name below."""
    _check(op, input, ("bool",) if op == "not" else (*FLOATS, "int32") if op in ("abs", "neg") else FLOATS)
    return make(default_net().executor.unary(op, input.handle), input.dtype)


def exp(input: Tensor) -> Tensor:
    """e to each element."""
    return unary(input, "exp")


def log(input: Tensor) -> Tensor:
    """Natural logarithm."""
    return unary(input, "log")


def sqrt(input: Tensor) -> Tensor:
    """Square root."""
    return unary(input, "sqrt")


def sin(input: Tensor) -> Tensor:
    """Sine of radians."""
    return unary(input, "sin")


def cos(input: Tensor) -> Tensor:
    """Cosine of radians."""
    return unary(input, "cos")


def abs(input: Tensor) -> Tensor:
    """Magnitude."""
    return unary(input, "abs")


def round(input: Tensor) -> Tensor:
    """Nearest integer, halves to even."""
    return unary(input, "round")


def not_op(input: Tensor) -> Tensor:
    """Logical not of a bool tensor."""
    return unary(input, "not")


def relu(input: Tensor) -> Tensor:
    """max(x, 0)."""
    return unary(input, "relu")


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return unary(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return unary(input, "tanh")


def clip(input: Tensor, alpha: float, beta: float) -> Tensor:
    """Values below alpha become alpha, above beta become beta; floats."""
    _check("clip", input, FLOATS)
    return make(default_net().executor.clip(input.handle, float(alpha), float(beta)), input.dtype)


def where(condition: Tensor, left: Operand, right: Operand) -> Tensor:
    """left where condition (bool) holds, else right; all three broadcast."""
    _check("where", condition, ("bool",))
    a, b = _operands("where", left, right)
    ndim = builtins.max(condition.ndim(), a.ndim())
    condition, a, b = (_pad_rank(t, ndim) for t in (condition, a, b))
    np.broadcast_shapes(condition.shape, a.shape, b.shape)
    return make(default_net().executor.where(condition.handle, a.handle, b.handle), a.dtype)


# ---- shape ----------------------------------------------------------------------------------------------------


def view(input: Tensor, shape: Sequence[int], zero_is_placeholder: bool = True) -> Tensor:
    """The same elements in another shape; one entry may be -1; 0 keeps that dimension where it is a placeholder."""
    shape = [input.shape[i] if zero_is_placeholder and d == 0 else int(d) for i, d in enumerate(shape)]
    count = math.prod(input.shape)
    if -1 in shape:
        rest = -math.prod(shape)
        if shape.count(-1) > 1 or rest <= 0 or count % rest:
            raise ValueError(f"view: {input.shape} as {tuple(shape)}")
        shape[shape.index(-1)] = count // rest
    if math.prod(shape) != count:
        raise ValueError(f"view: {input.shape} as {tuple(shape)}")
    return make(default_net().executor.view(input.handle, tuple(shape)), input.dtype)


def flatten(input: Tensor) -> Tensor:
    """One dimension."""
    return view(input, (-1,), False)


def unsqueeze(input: Tensor, axis: int) -> Tensor:
    """Insert a dimension of length 1 at `axis`."""
    place = axis % (input.ndim() + 1)
    return view(input, (*input.shape[:place], 1, *input.shape[place:]), False)


def squeeze(input: Tensor, dim: int) -> Tensor:
    """Drop dimension `dim`, which must have length 1."""
    place = axis(dim, input.ndim())
    if input.shape[place] != 1:
        raise ValueError(f"squeeze: dimension {dim} of {input.shape} is not 1")
    return view(input, input.shape[:place] + input.shape[place + 1 :], False)


def permute(input: Tensor, dims: Sequence[int]) -> Tensor:
    """Reorder dimensions: output dimension i is input dimension dims[i]."""
    order = tuple(axis(d, input.ndim()) for d in dims)
    if sorted(order) != list(range(input.ndim())):
        raise ValueError(f"permute: {tuple(dims)} does not order the dimensions of {input.shape}")
    return make(default_net().executor.permute(input.handle, order), input.dtype)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two dimensions."""
    order = list(range(input.ndim()))
    dim0, dim1 = axis(dim0, input.ndim()), axis(dim1, input.ndim())
    order[dim0], order[dim1] = dim1, dim0
    return permute(input, order)


def expand(input: Tensor, expand_shape: Sequence[int]) -> Tensor:
    """Repeat dimensions of length 1 to `expand_shape` (same rank)."""
    shape = tuple(expand_shape)
    if len(shape) != input.ndim() or any(i not in (1, o) for i, o in zip(input.shape, shape)):
        raise ValueError(f"expand: {input.shape} to {shape}")
    return input if shape == input.shape else make(default_net().executor.expand(input.handle, shape), input.dtype)


def slice(input: Tensor, starts: Sequence[int], sizes: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
    """input[s0 : s0 + z0 * t0 : t0, …] with one start, size and stride for each dimension."""
    strides = tuple(strides) if strides is not None else (1,) * input.ndim()
    if not len(starts) == len(sizes) == len(strides) == input.ndim():
        raise ValueError(f"slice: {input.ndim()} starts, sizes and strides needed for {input.shape}")
    for start, size, stride, length in zip(starts, sizes, strides, input.shape):
        if not (start >= 0 and size >= 1 and stride >= 1 and start + (size - 1) * stride < length):
            raise ValueError(f"slice: starts {starts} sizes {sizes} strides {strides} leave {input.shape}")
    return make(default_net().executor.slice(input.handle, tuple(starts), tuple(sizes), strides), input.dtype)


def narrow(input: Tensor, dim: int, start: int, size: int) -> Tensor:
    """input[start : start + size] along one dimension (torch.narrow)."""
    place = axis(dim, input.ndim())
    starts, sizes = [0] * input.ndim(), list(input.shape)
    starts[place], sizes[place] = start, size
    return input if sizes == list(input.shape) else slice(input, starts, sizes)


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """input[index] along `dim`, without that dimension. index counts from the front (as in TensorRT-LLM)."""
    return squeeze(narrow(input, dim, index, 1), dim)


def split(tensor: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """Cut along `dim` into pieces of one size, or of the sizes given."""
    length = tensor.shape[axis(dim, tensor.ndim())]
    if isinstance(split_size_or_sections, int):
        if length % split_size_or_sections:
            raise ValueError(f"split: {length} in pieces of {split_size_or_sections}")
        split_size_or_sections = [split_size_or_sections] * (length // split_size_or_sections)
    if builtins.sum(split_size_or_sections) != length:
        raise ValueError(f"split: {length} in pieces of {list(split_size_or_sections)}")
    starts = np.cumsum([0, *split_size_or_sections])
    return [narrow(tensor, dim, int(s), n) for s, n in zip(starts, split_size_or_sections)]


def chunk(tensor: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    """Cut along `dim` into `chunks` equal pieces."""
    return split(tensor, tensor.shape[axis(dim, tensor.ndim())] // chunks, dim)


def unbind(input: Tensor, dim: int = 0) -> list[Tensor]:
    """The slices along `dim`, without that dimension."""
    return [select(input, dim, i) for i in range(input.shape[axis(dim, input.ndim())])]


def concat(inputs: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join along `dim`; all else must agree."""
    dtype = _one_type("concat", *inputs)
    place = axis(dim, inputs[0].ndim())
    rest = {t.shape[:place] + (0,) + t.shape[place + 1 :] for t in inputs}
    if len(rest) != 1:
        raise ValueError(f"concat: shapes {[t.shape for t in inputs]} along {dim}")
    return make(default_net().executor.concat([t.handle for t in inputs], place), dtype)


def stack(inputs: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join along a new dimension."""
    return concat([unsqueeze(t, dim) for t in inputs], dim)


def repeat(input: Tensor, sizes: Sequence[int]) -> Tensor:
    """Tile: sizes[i] copies along dimension i."""
    if len(sizes) != input.ndim():
        raise ValueError(f"repeat: {len(sizes)} sizes for {input.shape}")
    for dim, count in enumerate(sizes):
        input = concat([input] * count, dim) if count > 1 else input
    return input


def repeat_interleave(tensor: Tensor, repeats: int, dim: int) -> Tensor:
    """Each slice along `dim` repeated `repeats` times in a row."""
    place = axis(dim, tensor.ndim())
    shape = tensor.shape
    wide = expand(unsqueeze(tensor, place + 1), (*shape[: place + 1], repeats, *shape[place + 1 :]))
    return view(wide, (*shape[:place], shape[place] * repeats, *shape[place + 1 :]), False)


def pad(input: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """Constant padding, torch order: (left, right) of the last dimension first."""
    if len(pad) % 2 or len(pad) > 2 * input.ndim() or builtins.min(pad) < 0:
        raise ValueError(f"pad: {tuple(pad)} for {input.shape}")
    return make(default_net().executor.pad(input.handle, tuple(pad), value), input.dtype)


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
    return make(default_net().executor.gather(input.handle, axis(dim, input.ndim()), indices.handle), input.dtype)


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


def min(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Smallest over `dim` (values only)."""
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


# Operators on tensors, as in tensorrt_llm.functional.Tensor.
Tensor.__add__ = Tensor.__radd__ = lambda a, b: add(a, b)  # type: ignore[attr-defined]
Tensor.__sub__ = lambda a, b: sub(a, b)  # type: ignore[attr-defined]
Tensor.__rsub__ = lambda a, b: sub(b, a)  # type: ignore[attr-defined]
Tensor.__mul__ = Tensor.__rmul__ = lambda a, b: mul(a, b)  # type: ignore[attr-defined]
Tensor.__truediv__ = lambda a, b: div(a, b)  # type: ignore[attr-defined]
Tensor.__rtruediv__ = lambda a, b: div(b, a)  # type: ignore[attr-defined]
Tensor.__lt__ = lambda a, b: lt(a, b)  # type: ignore[attr-defined]
Tensor.__gt__ = lambda a, b: gt(a, b)  # type: ignore[attr-defined]
Tensor.__neg__ = lambda a: unary(a, "neg")  # type: ignore[attr-defined]
