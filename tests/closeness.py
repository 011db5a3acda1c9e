"""How far apart two arrays are; apart from support.py because the GPU machine has no pytest."""

import numpy as np


def max_error(actual, expected) -> float:
    """Largest absolute difference of the finite values; never NaN.

    Infinite where shapes differ, or where a value is not finite and the other is not the same infinity: NaN equals
    nothing.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        return float("inf")
    finite = np.isfinite(actual) & np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite]):
        return float("inf")
    return float(np.abs(actual[finite] - expected[finite]).max(initial=0.0))
