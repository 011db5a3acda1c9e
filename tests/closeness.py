"""How far apart two arrays are; apart from support.py because the GPU machine has no pytest."""

import numpy as np


def max_error(actual, expected) -> float:
    """Largest absolute difference; infinite where shapes differ or a value is not finite on one side only."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.array_equal(np.isfinite(actual), np.isfinite(expected)):
        return float("inf")
    finite = np.isfinite(expected)
    return float(np.abs(actual[finite] - expected[finite]).max(initial=0.0))
