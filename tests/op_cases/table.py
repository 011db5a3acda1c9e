"""The table of operation cases, and the inputs they are made of.

All float inputs and constants are float16 numbers, so that one float32 reference serves both types.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trtllm import functional as F
from trtllm import net_dtype

BOTH, ONLY32 = ("float32", "float16"), ("float32",)
# Error allowed, as a fraction of max(1, largest reference): a few roundings of the type; sums round more often.
EXACT, FEW, SUMS = (0.0, 0.0), (3e-6, 2e-3), (1e-5, 5e-3)
RANDOM = np.random.default_rng(20240601)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. `name` begins with the function's name; `islands` are inputs that stay float32 in any network."""

    name: str
    run: Callable[..., Any]  # tensors -> a tensor or a list of tensors
    reference: Callable[..., Any]  # (torch, *float32, int32 or bool torch tensors) -> the same of torch tensors
    broken: Callable[..., Any]  # like run, but wrong
    inputs: tuple[np.ndarray, ...]
    tolerance: tuple[float, float] = FEW  # float32, float16
    dtypes: tuple[str, ...] = BOTH
    islands: tuple[int, ...] = ()

    @property
    def function(self) -> str:
        return self.name.split()[0]

    def allowed(self, dtype: str, reference: np.ndarray, rounding: float = 0.0) -> float:
        """Largest error that passes; finite, whatever the reference holds.

        Args:
            rounding: allowed besides, as a fraction of the largest finite reference.
        """
        largest = float(np.abs(reference[np.isfinite(reference)].astype(np.float64)).max(initial=0.0))
        return self.tolerance[BOTH.index(dtype)] * max(1.0, largest) + rounding * largest

    def arrays(self, dtype: str) -> list[np.ndarray]:
        """The inputs in a network of that type."""
        keep = [a.dtype != np.float32 or i in self.islands for i, a in enumerate(self.inputs)]
        return [a if stays else a.astype(dtype) for a, stays in zip(self.inputs, keep)]


def half(array) -> np.ndarray:
    return np.asarray(array, np.float32).astype(np.float16).astype(np.float32)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return half(RANDOM.standard_normal(shape) * scale)


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    return half(RANDOM.uniform(low, high, shape))


def ints(high: int, *shape: int, low: int = 0) -> np.ndarray:
    return RANDOM.integers(low, high, shape, dtype=np.int32)


def distinct(*shape: int) -> np.ndarray:
    """Numbers without ties, for what sorts."""
    return half(RANDOM.permutation(math.prod(shape)).reshape(shape) * 0.25 - 3)


def mask(*shape: int, share: float = 0.5) -> np.ndarray:
    return RANDOM.random(shape) < share


def weight(array: np.ndarray):
    """A constant in the network's type."""
    return F.constant(array, net_dtype())


CASES: list[Case] = []


def case(name: str, run, reference, broken, *inputs: np.ndarray, **options) -> None:
    CASES.append(Case(name, run, reference, broken, inputs, **options))
