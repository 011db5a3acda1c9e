"""What the cases of the *_kernels.py share: their types, and how far a result is from its float64 reference."""

import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples" / "uniad"))  # the *_kernels.py need it

Shapes = Sequence[tuple[int, int]]
Case = dict[str, Any]
PYRAMID = [(116, 200), (58, 100), (29, 50), (15, 25)]  # the image features' maps, (h, w), at full size


def cell_centres(h: int, w: int, device) -> torch.Tensor:
    """float32 (h*w,2), x then y in [0,1]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([(x + 0.5) / w, (y + 0.5) / h], -1).reshape(-1, 2).float()


def packed_only(case: Case) -> Case:
    """A kernel's arguments, of a case that has weights as the reference takes them, too."""
    return {name: x for name, x in case.items() if not name.startswith("plain_")}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the Euclidean norm; infinite where a number is missing or shapes differ."""
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return math.inf
    return float((actual.double() - expected).norm() / expected.norm())


def rounding_noise(expected: torch.Tensor, dtype: torch.dtype) -> float:
    """The relative error of the exact result when it is merely stored as `dtype`."""
    return relative_error(expected.to(dtype), expected)
