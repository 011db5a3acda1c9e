"""Tensors in one piece of memory, so that one copy moves them all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from graph_io import TensorSpec

ALIGNMENT = 256  # bytes; what TensorRT asks of tensor addresses, and cudaMalloc gives


class Block(NamedTuple):
    """Several tensors in one piece of memory: name -> offset, and its size in bytes."""

    specs: list[TensorSpec]
    offsets: dict[str, int]
    nbytes: int


def pack(specs: Iterable[TensorSpec]) -> Block:
    """Place tensors one behind the other, each at a multiple of ALIGNMENT."""
    specs = list(specs)
    offsets, end = {}, 0
    for spec in specs:
        offsets[spec.name] = end
        nbytes = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return Block(specs, offsets, end)


def views(memory: np.ndarray, block: Block) -> dict[str, np.ndarray]:
    """The tensors of a block inside its host memory, uint8 (nbytes)."""
    tensors = {}
    for name, dtype, shape, _ in block.specs:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        start = block.offsets[name]
        tensors[name] = memory[start : start + nbytes].view(dtype).reshape(shape)
    return tensors
