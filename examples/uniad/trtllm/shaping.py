"""Operations of trtllm.functional that move elements and change shapes (use them from there)."""

import builtins
import math
from collections.abc import Sequence

import numpy as np

from trtllm.network import Tensor, default_net
from trtllm.pointwise import _one_type, make
from trtllm.pointwise import axis as front

__all__ = [
    "chunk",
    "concat",
    "expand",
    "flatten",
    "narrow",
    "pad",
    "permute",
    "repeat",
    "repeat_interleave",
    "select",
    "slice",
    "split",
    "squeeze",
    "stack",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
]


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
    place = front(axis, input.ndim() + 1)
    return view(input, (*input.shape[:place], 1, *input.shape[place:]), False)


def squeeze(input: Tensor, dim: int) -> Tensor:
    """Drop dimension `dim`, which must have length 1."""
    place = front(dim, input.ndim())
    if input.shape[place] != 1:
        raise ValueError(f"squeeze: dimension {dim} of {input.shape} is not 1")
    return view(input, input.shape[:place] + input.shape[place + 1 :], False)


def permute(input: Tensor, dims: Sequence[int]) -> Tensor:
    """Reorder dimensions: output dimension i is input dimension dims[i]."""
    order = tuple(front(d, input.ndim()) for d in dims)
    if sorted(order) != list(range(input.ndim())):
        raise ValueError(f"permute: {tuple(dims)} does not order the dimensions of {input.shape}")
    return make(default_net().executor.permute(input.handle, order), input.dtype)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two dimensions."""
    order = list(range(input.ndim()))
    dim0, dim1 = front(dim0, input.ndim()), front(dim1, input.ndim())
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
    place = front(dim, input.ndim())
    starts, sizes = [0] * input.ndim(), list(input.shape)
    starts[place], sizes[place] = start, size
    return input if start == 0 and size == input.shape[place] else slice(input, starts, sizes)


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """input[index] along `dim`, without that dimension. index counts from the front (as in TensorRT-LLM)."""
    return squeeze(narrow(input, dim, index, 1), dim)


def split(tensor: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """Cut along `dim` into pieces of one size, or of the sizes given."""
    length = tensor.shape[front(dim, tensor.ndim())]
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
    length = tensor.shape[front(dim, tensor.ndim())]
    if length % chunks:
        raise ValueError(f"chunk: {length} in {chunks} equal pieces")
    return split(tensor, length // chunks, dim)


def unbind(input: Tensor, dim: int = 0) -> list[Tensor]:
    """The slices along `dim`, without that dimension."""
    return [select(input, dim, i) for i in range(input.shape[front(dim, input.ndim())])]


def concat(inputs: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join along `dim`; all else must agree."""
    dtype = _one_type("concat", *inputs)
    place = front(dim, inputs[0].ndim())
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
    place = front(dim, tensor.ndim())
    shape = tensor.shape
    wide = expand(unsqueeze(tensor, place + 1), (*shape[: place + 1], repeats, *shape[place + 1 :]))
    return view(wide, (*shape[:place], shape[place] * repeats, *shape[place + 1 :]), False)


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Constant padding (0 by default), torch order: (left, right) of the last dimension first."""
    if len(pad) % 2 or len(pad) > 2 * input.ndim() or builtins.min(pad) < 0 or mode != "constant":
        raise ValueError(f"pad: {tuple(pad)} ({mode}) for {input.shape}")
    return make(default_net().executor.pad(input.handle, tuple(pad), value or 0.0), input.dtype)
