"""Sine, cosine and arcus tangent from sums and products, for TensorRT 8.6.

It compiles most of a network in regions, but takes these three into none of them: each parts a region in two and, with
the arithmetic next to it, becomes kernels of its own. Coefficients are least-maximum fits, computed in float64.
Handles are the executor's, float32.
"""

import math
from typing import Any

# Odd polynomials: the factors of x, x^3, x^5, … Their errors, without rounding: 4e-9 and 6e-9.
SINE = (9.99999977e-01, -1.66666476e-01, 8.33289985e-03, -1.98008992e-04, 2.59049088e-06)  # on [-pi/2, pi/2]
ARCUS_TANGENT = (
    0.99999989, -0.33332597, 0.19985907, -0.14161231, 0.1049895, -0.07234862, 0.03978125, -0.01440136, 0.00245672,
)  # on [0, 1]  # fmt: skip
FOLDS = 6  # of sine(), which then takes angles of up to pi (2^(FOLDS + 1) - 1), 399, and pi/2 less below 0


def odd_polynomial(executor: Any, x: Any, factors: tuple[float, ...]) -> Any:
    """factors[0] x + factors[1] x^3 + …, by Horner's rule."""
    square = executor.binary("mul", x, x)
    out = executor._fill(x, factors[-1])
    for factor in factors[-2::-1]:
        out = executor.binary("add", executor.binary("mul", out, square), executor._fill(x, factor))
    return executor.binary("mul", out, x)


def sine(executor: Any, x: Any) -> Any:
    """sin(x) for |x| up to 397; error 3e-7 near 0, and that of pi's share in float32 farther out.

    sin(x) = cos(y) with y = |x - pi/2|, and cos(y) = cos(|y - c|) where c is a number of full turns: taking the
    smaller of y and |y - c| halves the range of y. To drop whole turns by a cast to integers and back is shorter, but
    TensorRT 8.6 rounds it otherwise in float16 networks, which gave sines of up to 9. Beyond its range this gives some
    value in [-1, 1].
    """

    def number(value: float) -> Any:
        return executor._fill(x, value)

    def distance(a: Any, b: float) -> Any:
        return executor.unary("abs", executor.binary("sub", a, number(b)))

    x = distance(x, math.pi / 2)
    for fold in range(FOLDS - 1, -1, -1):
        x = executor.binary("min", x, distance(x, 2 * math.pi * 2**fold))
    x = executor.binary("min", x, number(math.pi))
    return odd_polynomial(executor, executor.binary("sub", number(math.pi / 2), x), SINE)


def cosine(executor: Any, x: Any) -> Any:
    """cos(x), as sine(x + pi/2)."""
    return sine(executor, executor.binary("add", x, executor._fill(x, math.pi / 2)))


def arcus_tangent(executor: Any, x: Any) -> Any:
    """atan(x) for every x; error 1e-7."""
    size = executor.unary("abs", x)
    inverse = executor.binary("div", executor._fill(x, 1.0), executor.binary("max", size, executor._fill(x, 1e-30)))
    angle = odd_polynomial(executor, executor.binary("min", size, inverse), ARCUS_TANGENT)
    beyond = executor.binary("gt", size, executor._fill(x, 1.0))
    angle = executor.where(beyond, executor.binary("sub", executor._fill(x, math.pi / 2), angle), angle)
    negative = executor.binary("lt", x, executor._fill(x, 0.0))
    return executor.where(negative, executor.binary("sub", executor._fill(x, 0.0), angle), angle)


FUNCTIONS = {"sin": sine, "cos": cosine, "atan": arcus_tangent}
