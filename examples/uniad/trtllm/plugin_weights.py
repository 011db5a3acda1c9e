"""Weights in the order in which the plugins' kernels read them (plugins/src/kernels)."""

import numpy as np

COMMON_LAYOUT, HOPPER_LAYOUT = 0, 1  # UniadWeightLayout of plugins/src/kernels.h
NARROW_OUTPUTS, NARROW_CHANNELS = 32, 32  # kNarrow… of narrow_conv.cuh


def pack_deform_weight(weight: np.ndarray, layout: int = COMMON_LAYOUT) -> np.ndarray:
    """A 3x3 kernel (O,C,3,3) in the order that the convolution's kernel reads (plugins/src/kernels/deform_conv.cuh).

    float32: (9,C,O). float16, COMMON_LAYOUT: (C/32,9,O,32), rows permuted inside each 32 output channels.
    HOPPER_LAYOUT: (O/256,C/64,9,256,64), rows permuted inside each 256, and the vectors of a row.
    """
    o, c = weight.shape[:2]
    if weight.dtype == np.float32:
        return np.ascontiguousarray(weight.reshape(o, c, 9).transpose(2, 1, 0))
    if layout == HOPPER_LAYOUT:
        # Channel 128 a + 32 w + 4 g + 2 m + h goes to row 128 a + 64 m + 16 w + 8 h + g of each 256.
        rows = weight.reshape(o // 256, 2, 4, 8, 2, 2, c // 64, 8, 8, 9)  # (…,a,w,g,m,h,…)
        rows = rows.transpose(0, 6, 9, 1, 4, 2, 5, 3, 7, 8)  # (O/256,C/64,9,a,m,w,h,g,8,8)
        rows = rows.reshape(o // 256, c // 64, 9, 256, 8, 8)  # (…,row,vector,8)
        row = np.arange(256).reshape(-1, 1)
        rows = rows[:, :, :, row, np.arange(8) ^ row % 8]  # vector v at place v ^ (row % 8)
        return np.ascontiguousarray(rows).reshape(o // 256, c // 64, 9, 256, 64)
    rows = weight.reshape(o // 32, 4, 4, 2, c // 32, 32, 9)  # channel 8t + 2j + e of each 32: (…,t,j,e,…)
    rows = rows.transpose(4, 6, 0, 2, 1, 3, 5)  # (C/32,9,O/32,j,t,e,32): row 8j + 2t + e
    return np.ascontiguousarray(rows).reshape(c // 32, 9, o, 32)


def map_positions(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A grid (1,h,w,2) of sample_map (trtllm/map_layout.py) in cells from the centre of the first: float32 (h,w,2)."""
    size = np.array([shape[1] - 1, shape[0] - 1], np.float32)
    return np.ascontiguousarray((grid[0] + np.float32(1)) / np.float32(2) * size)


def pack_narrow_weight(weight: np.ndarray) -> np.ndarray:
    """A 3x3 kernel (O,C,3,3) of few outputs as plugins/src/kernels/narrow_conv.cuh reads it: (C/32,9,32,32)."""
    o, c = weight.shape[:2]
    padded = np.zeros((NARROW_OUTPUTS, c, 9), weight.dtype)
    padded[:o] = weight.reshape(o, c, 9)
    padded = padded.reshape(NARROW_OUTPUTS, c // NARROW_CHANNELS, NARROW_CHANNELS, 9)
    return np.ascontiguousarray(padded.transpose(1, 3, 0, 2))


def pack_expand_weight(weight: np.ndarray) -> np.ndarray:
    """A matrix (O,C) as plugins/src/kernels/expand_conv.cuh holds it in registers: (O/32,C/16,32,16).

    The right operands of mma.m16n8k16 (PTX ISA): lane 4g + t has, of each eight rows, row g, columns 2t and 2t + 1,
    then 2t + 8 and 2t + 9.
    """
    o, c = weight.shape
    parts = weight.reshape(o // 32, 4, 8, c // 16, 2, 4, 2)  # (…,eight,g,…,high,t,pair)
    return np.ascontiguousarray(parts.transpose(0, 3, 2, 5, 1, 4, 6)).reshape(o // 32, c // 16, 32, 16)


def pack_stem_weight(weight: np.ndarray) -> np.ndarray:
    """A 7x7 kernel (64,3,7,7) as plugins/src/kernels/stem.cuh holds it in registers: (2,11,32,16).

    As pack_expand_weight of (64,176): for each row of the window and each plane, a zero and the row's seven numbers.
    """
    rows = np.zeros((weight.shape[0], 22, 8), weight.dtype)
    rows[:, :21, 1:] = weight.transpose(0, 2, 1, 3).reshape(-1, 21, 7)  # (O,7*3,7)
    return pack_expand_weight(rows.reshape(-1, 176))


def pack_narrow_bias(bias: np.ndarray) -> np.ndarray:
    """float32 (32), zeros behind the outputs."""
    packed = np.zeros(NARROW_OUTPUTS, np.float32)
    packed[: len(bias)] = bias
    return packed
