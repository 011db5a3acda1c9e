"""Every operation of the functional API and of vision: inputs, a plain-torch reference, a broken variant.

One table for the torch executors (test_functional.py), the TensorRT builds (test_tensorrt_build.py) and the run on a
GPU (gpu/check_ops.py). It imports without torch: a reference takes the torch module as its first argument. All float
inputs and constants are float16 numbers, so that one float32 reference serves both types.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from op_references import (
    camera_attention,
    deform_attention,
    deform_conv,
    heads_side_by_side,
    likeliest,
    merged,
    mixed_masks,
    moved,
    projected,
    rotate,
    sampled_levels,
    sampling,
    temporal,
)

from config import load_config
from layers.basic import memory_attention
from layers.bev_encoder import temporal_inputs
from layers.bev_geometry import point_sampling, rotate_nearest
from layers.occ_head import likeliest_instance
from layers.resnet import normalise_images
from layers.seg_mask_head import attention_masks
from layers.seg_merge import merge_masks
from layers.track_life_cycle import EgoMotion, propagate
from trtllm import functional as F
from trtllm import net_dtype
from trtllm import vision as V
from trtllm.map_layout import flatten_maps, sample_map
from trtllm.sampled_attention import (
    camera_cross_attention,
    deformable_attention,
    sample_levels,
    sampling_points,
    temporal_attention,
)

BOTH, ONLY32 = ("float32", "float16"), ("float32",)
# Error allowed, as a fraction of max(1, largest reference): a few roundings of the type; sums round more often.
EXACT, FEW, SUMS = (0.0, 0.0), (3e-6, 2e-3), (1e-5, 5e-3)
_random = np.random.default_rng(20240601)


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
    return half(_random.standard_normal(shape) * scale)


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    return half(_random.uniform(low, high, shape))


def ints(high: int, *shape: int, low: int = 0) -> np.ndarray:
    return _random.integers(low, high, shape, dtype=np.int32)


def distinct(*shape: int) -> np.ndarray:
    """Numbers without ties, for what sorts."""
    return half(_random.permutation(math.prod(shape)).reshape(shape) * 0.25 - 3)


def mask(*shape: int) -> np.ndarray:
    return _random.random(shape) < 0.5


def weight(array: np.ndarray):
    """A constant in the network's type."""
    return F.constant(array, net_dtype())


def as_int(tensor):
    return F.cast(tensor, "int32")


CASES: list[Case] = []


def case(name: str, run, reference, broken, *inputs: np.ndarray, **options) -> None:
    CASES.append(Case(name, run, reference, broken, inputs, **options))


# fmt: off
# ---- constants, casts, element by element ---------------------------------------------------------------------

A, B = normal(2, 3, 4), normal(2, 3, 4)
ROW = normal(4)
EDGES = half([0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.49, -3.51, 1e-3, -1e-3, 7.0, -7.0, 9.0, -9.0])
SIGNED, DIVISOR = np.array([-7, -4, -1, 0, 1, 5, 8], np.int32), np.array([2, 3, 2, 5, -2, -3, 4], np.int32)

case("constant", lambda x: x + weight(ROW), lambda t, x: x + t.tensor(ROW), lambda x: x + weight(ROW[::-1]), A)
case("constant int64", lambda x: x + F.constant(np.arange(7)), lambda t, x: x + t.arange(7, dtype=t.int32),
     lambda x: x + F.constant(np.arange(1, 8)), SIGNED, tolerance=EXACT)
case("constant bool", lambda x: F.where(F.constant(np.array([True, False, True, False])), x, 0.0),
     lambda t, x: x * t.tensor([1.0, 0, 1, 0]), lambda x: F.where(F.constant(np.ones(4, bool)), x, 0.0), A)
case("cast to int32", lambda x: F.cast(x, "int32"), lambda t, x: x.to(t.int32),
     lambda x: F.cast(F.round(x), "int32"), EDGES, tolerance=EXACT)
case("cast to bool", lambda x: F.cast(x, "bool"), lambda t, x: x != 0, lambda x: x > 0.0, EDGES, tolerance=EXACT)
case("cast int32 to bool", lambda x: F.cast(x, "bool"), lambda t, x: x != 0, lambda x: x > 0, SIGNED, tolerance=EXACT)
case("cast bool to float", lambda x: F.cast(x, net_dtype()), lambda t, x: x.float(),
     lambda x: F.cast(F.not_op(x), net_dtype()), mask(5, 3), tolerance=EXACT)
case("cast int32 to float", lambda x: F.cast(x, net_dtype()), lambda t, x: x.float(),
     lambda x: F.abs(F.cast(x, net_dtype())), SIGNED, tolerance=EXACT)
case("cast uint8 to float", lambda x: F.cast(x, net_dtype()), lambda t, x: x.float(),
     lambda x: F.cast(x, net_dtype()) - 1.0, ints(256, 2, 5, 3).astype(np.uint8), tolerance=EXACT)
case("cast to float16 and back", lambda x: F.cast(F.cast(x, "float16"), "float32"), lambda t, x: x.half().float(),
     lambda x: F.cast(x, "float32"), np.linspace(0, 1, 10, dtype=np.float32), islands=(0,), dtypes=("float16",),
     tolerance=EXACT)  # a float32 network of 8.6 has no float16
case("elementwise_binary", lambda a, b: F.elementwise_binary(a, b, "max"), lambda t, a, b: t.maximum(a, b),
     lambda a, b: F.elementwise_binary(a, b, "min"), A, B, tolerance=EXACT)
case("add", F.add, lambda t, a, b: a + b, F.sub, A, B)
case("add broadcast of ranks", F.add, lambda t, a, b: a + b, lambda a, b: F.add(a, -b), A, ROW)
case("add both ways", F.add, lambda t, a, b: a + b, lambda a, b: F.add(a, -b), normal(2, 1, 4), normal(3, 1))
case("add int32", F.add, lambda t, a, b: a + b, F.sub, SIGNED, DIVISOR, tolerance=EXACT)
case("add operators", lambda a, b: (1.0 + a - b) * 2.0 / 4.0 - (0.5 - a), lambda t, a, b: (1 + a - b) / 2 - (0.5 - a),
     lambda a, b: (1.0 + a - b) * 2.0 / 4.0 - (a - 0.5), A, B)
case("add to a scalar", lambda x: F.sum(x, (0, 1, 2)) + 1.0, lambda t, x: x.sum() + 1, lambda x: F.sum(x, (0, 1, 2)),
     A, tolerance=SUMS)
case("sub", F.sub, lambda t, a, b: a - b, lambda a, b: F.sub(b, a), A, B)
case("sub number", lambda a: F.sub(1, a), lambda t, a: 1 - a, lambda a: F.sub(a, 1), A)
case("mul", F.mul, lambda t, a, b: a * b, F.add, A, B)
case("mul int32", F.mul, lambda t, a, b: a * b, F.add, SIGNED, DIVISOR, tolerance=EXACT)
case("div", F.div, lambda t, a, b: a / b, lambda a, b: F.div(b, a), A, uniform(0.5, 4, 2, 3, 4))
case("div by zero", lambda a: 1.0 / a, lambda t, a: 1 / a, lambda a: 1.0 / (a + 1.0), half([1, 0, -2, 4]))
case("floordiv int32", F.floordiv, lambda t, a, b: t.div(a, b, rounding_mode="floor"),
     lambda a, b: F.cast(F.div(F.cast(a, "float32"), F.cast(b, "float32")), "int32"), SIGNED, DIVISOR,
     tolerance=EXACT)
case("floordiv", F.floordiv, lambda t, a, b: t.floor(a / b), F.div, A * 4, uniform(0.5, 2, 2, 3, 4) + 1 / 3,
     dtypes=ONLY32, tolerance=EXACT)
case("pow", F.pow, lambda t, a, b: a**b, lambda a, b: F.pow(b, a), uniform(0.2, 3, 3, 4), uniform(-2, 2, 4))
case("minimum", F.minimum, lambda t, a, b: t.minimum(a, b), F.maximum, A, B, tolerance=EXACT)
case("minimum int32", F.minimum, lambda t, a, b: t.minimum(a, b), F.maximum, SIGNED, DIVISOR, tolerance=EXACT)
case("maximum", F.maximum, lambda t, a, b: t.maximum(a, b), F.minimum, A, B, tolerance=EXACT)
case("maximum number", lambda a: F.maximum(a, 0.25), lambda t, a: a.clamp(min=0.25), lambda a: F.maximum(a, 0.5), A,
     tolerance=EXACT)
case("gt", F.gt, lambda t, a, b: a > b, F.lt, ints(3, 5, 4), ints(3, 4), tolerance=EXACT)
case("gt float", lambda a: a > 0.5, lambda t, a: a > 0.5, lambda a: F.not_op(a < 0.5), EDGES, tolerance=EXACT)
case("lt", F.lt, lambda t, a, b: a < b, F.gt, ints(3, 5, 4), ints(3, 4), tolerance=EXACT)
case("lt float", lambda a: a < 0.5, lambda t, a: a < 0.5, lambda a: F.not_op(a > 0.5), EDGES, tolerance=EXACT)
case("eq", F.eq, lambda t, a, b: a == b, F.lt, ints(3, 5, 4), ints(3, 4), tolerance=EXACT)
case("eq float", lambda a: F.eq(a, 0.0), lambda t, a: a == 0, lambda a: a < 0.0, EDGES, tolerance=EXACT)
case("eq bool", F.eq, lambda t, a, b: a == b, F.op_and, mask(6, 5), mask(6, 5), tolerance=EXACT)
case("op_and", F.op_and, lambda t, a, b: a & b, F.op_or, mask(6, 5), mask(6, 1), tolerance=EXACT)
case("op_or", F.op_or, lambda t, a, b: a | b, F.op_and, mask(6, 5), mask(5), tolerance=EXACT)
case("unary", lambda x: F.unary(x, "neg"), lambda t, x: -x, lambda x: F.unary(x, "abs"), A, tolerance=EXACT)
case("unary neg int32", lambda x: -x, lambda t, x: -x, F.abs, SIGNED, tolerance=EXACT)
case("unary atan", lambda x: F.unary(x, "atan"), lambda t, x: x.atan(), lambda x: F.unary(x, "sin"), EDGES)
case("exp", F.exp, lambda t, x: x.exp(), lambda x: F.exp(-x), EDGES)
case("log", F.log, lambda t, x: x.log(), F.sqrt, half([1e-3, 0.5, 1, 2, 2.71875, 1000]))
case("sqrt", F.sqrt, lambda t, x: x.sqrt(), F.log, half([0, 1e-3, 0.25, 2, 1000]))
case("sin", F.sin, lambda t, x: x.sin(), F.cos, EDGES)
case("cos", F.cos, lambda t, x: x.cos(), F.sin, EDGES)
case("abs", F.abs, lambda t, x: x.abs(), lambda x: -x, EDGES, tolerance=EXACT)
case("abs int32", F.abs, lambda t, x: x.abs(), lambda x: -x, SIGNED, tolerance=EXACT)
case("round", F.round, lambda t, x: x.round(), lambda x: V.floor(x + 0.5), EDGES, tolerance=EXACT)
case("floor", V.floor, lambda t, x: x.floor(), F.round, EDGES, tolerance=EXACT)
case("erf", V.erf, lambda t, x: x.erf(), F.tanh, EDGES)
case("not_op", F.not_op, lambda t, x: ~x, lambda x: x, mask(7), tolerance=EXACT)
case("relu", F.relu, lambda t, x: x.relu(), F.abs, EDGES, tolerance=EXACT)
case("sigmoid", F.sigmoid, lambda t, x: x.sigmoid(), F.tanh, EDGES)
case("tanh", F.tanh, lambda t, x: x.tanh(), F.sigmoid, EDGES)
case("clip", lambda x: F.clip(x, -1.0, 2.0), lambda t, x: x.clamp(-1, 2), lambda x: F.clip(x, 0.0, 2.0), EDGES,
     tolerance=EXACT)
case("where", F.where, lambda t, c, a, b: t.where(c, a, b), lambda c, a, b: F.where(c, b, a), mask(3, 1), A, B,
     tolerance=EXACT)
case("where number", lambda c, a: F.where(c, -10000.0, a), lambda t, c, a: a.masked_fill(c, -10000.0),
     lambda c, a: F.where(c, a, -10000.0), mask(2, 3, 4), A, tolerance=EXACT)
case("where int32", lambda c, a: F.where(c, a, -1), lambda t, c, a: a.masked_fill(~c, -1),
     lambda c, a: F.where(c, -1, a), mask(7), SIGNED, tolerance=EXACT)
case("where bool", F.where, lambda t, c, a, b: t.where(c, a, b), lambda c, a, b: F.where(c, b, a), mask(9, 1),
     mask(9, 5), mask(5), tolerance=EXACT)
case("gelu_erf", V.gelu_erf, lambda t, x: t.nn.functional.gelu(x), lambda x: x * F.sigmoid(x), EDGES)
case("inverse_sigmoid", V.inverse_sigmoid,
     lambda t, x: t.log(x.clamp(1e-5, 1) / (1 - x.clamp(0, 1)).clamp(min=1e-5)), F.log,
     np.array([0, 1e-7, 1e-3, 0.25, 0.5, 0.9, 1, 1.5, -2], np.float32), islands=(0,), tolerance=(3e-6, 3e-6))
case("inverse_sigmoid inside", V.inverse_sigmoid, lambda t, x: t.logit(x), lambda x: -V.inverse_sigmoid(x),
     uniform(0.01, 0.99, 40), islands=(0,), tolerance=(3e-6, 3e-6))
case("after", lambda x, y: V.after(x, y) + V.after(x), lambda t, x, y: 2 * x, lambda x, y: V.after(x, y),
     normal(2, 9), half([[[math.inf]]]))
case("after integers", lambda x, y: V.after(x, y), lambda t, x, y: x, lambda x, y: V.after(x, y) + 0.01,
     half([65504, 1, -2]), ints(9, 4), tolerance=EXACT)
case("atan2", V.atan2, lambda t, y, x: t.atan2(y, x), lambda y, x: F.unary(y / F.maximum(x, 1e-6), "atan"),
     half([0, 0, 1, -1, 1, 1, -1, -1, 0, 3, -0.001, 200]), half([0, -1, 0, 0, 1, -1, 1, -1, 2, 0.001, -3, -1]),
     islands=(0, 1), tolerance=(1e-6, 1e-6))

# ---- shape ----------------------------------------------------------------------------------------------------

WHOLE = ints(50, 3, 4, 5)
case("view", lambda x: F.view(x, (0, -1)), lambda t, x: x.reshape(2, 12), lambda x: F.view(x, (12, 2)), A,
     tolerance=EXACT)
case("view bool", lambda x: F.view(x, (6,), False), lambda t, x: x.reshape(6), lambda x: F.view(F.not_op(x), (6,)),
     mask(2, 3), tolerance=EXACT)
case("flatten", F.flatten, lambda t, x: x.flatten(), lambda x: F.flatten(F.transpose(x, 0, 1)), A, tolerance=EXACT)
case("unsqueeze", lambda x: F.unsqueeze(x, -1), lambda t, x: x.unsqueeze(-1), lambda x: F.unsqueeze(x, 0), A,
     tolerance=EXACT)
case("squeeze", lambda x: F.squeeze(x, 1), lambda t, x: x.squeeze(1), lambda x: F.squeeze(-x, 1), normal(3, 1, 2),
     tolerance=EXACT)
case("permute", lambda x: F.permute(x, (2, 0, -2)), lambda t, x: x.permute(2, 0, 1), lambda x: F.permute(x, (2, 1, 0)),
     A, tolerance=EXACT)
case("permute six", lambda x: F.permute(x, (0, 2, 1, 3, 5, 4)), lambda t, x: x.permute(0, 2, 1, 3, 5, 4),
     lambda x: F.permute(x, (0, 2, 1, 3, 4, 5)), normal(2, 3, 2, 1, 2, 2), tolerance=EXACT)
case("permute bool", lambda x: F.permute(x, (1, 0)), lambda t, x: x.T, lambda x: x, mask(4, 4), tolerance=EXACT)
case("transpose", lambda x: F.transpose(x, 0, -1), lambda t, x: x.transpose(0, 2), lambda x: F.transpose(x, 0, 1), A,
     tolerance=EXACT)
case("expand", lambda x: F.expand(x, (2, 5, 3)), lambda t, x: x.expand(2, 5, 3), lambda x: F.expand(-x, (2, 5, 3)),
     normal(2, 1, 3), tolerance=EXACT)
case("expand bool", lambda x: F.expand(x, (4, 5)), lambda t, x: x.expand(4, 5), lambda x: F.expand(F.not_op(x), (4, 5)),
     mask(4, 1), tolerance=EXACT)
case("slice", lambda x: F.slice(x, (1, 0, 0), (2, 2, 3), (1, 3, 2)), lambda t, x: x[1:3, 0:4:3, 0:5:2],
     lambda x: F.slice(x, (0, 0, 0), (2, 2, 3), (1, 3, 2)), WHOLE, tolerance=EXACT)
case("narrow", lambda x: F.narrow(x, 2, 1, 2), lambda t, x: x[..., 1:3], lambda x: F.narrow(x, 2, 0, 2), A,
     tolerance=EXACT)
case("narrow bool", lambda x: F.narrow(x, 0, 1, 5), lambda t, x: x[1:6], lambda x: F.narrow(x, 0, 2, 5),
     np.array([1, 0, 1, 1, 0, 0, 1, 0], bool), tolerance=EXACT)
case("select", lambda x: F.select(x, 1, 2), lambda t, x: x[:, 2], lambda x: F.select(x, 1, 0), A, tolerance=EXACT)
case("split", lambda x: F.split(x, 2, -1), lambda t, x: x.split(2, -1), lambda x: F.split(x, 2, -1)[::-1], A,
     tolerance=EXACT)
case("split in sizes", lambda x: F.split(x, [1, 3], 2), lambda t, x: x.split([1, 3], 2),
     lambda x: F.split(x, [3, 1], 2), A, tolerance=EXACT)
case("chunk", lambda x: F.chunk(x, 3, 1), lambda t, x: x.chunk(3, 1), lambda x: F.chunk(x, 3, 1)[::-1], A,
     tolerance=EXACT)
case("unbind", lambda x: F.unbind(x, 1), lambda t, x: x.unbind(1), lambda x: F.unbind(x, 1)[::-1], A, tolerance=EXACT)
case("concat", lambda a, b: F.concat([a, b], 1), lambda t, a, b: t.cat([a, b], 1), lambda a, b: F.concat([b, a], 1),
     A, normal(2, 1, 4), tolerance=EXACT)
case("concat int32", lambda a, b: F.concat([a, b]), lambda t, a, b: t.cat([a, b]), lambda a, b: F.concat([b, a]),
     SIGNED, ints(9, 3), tolerance=EXACT)
case("concat bool", lambda a: F.concat([a, F.constant(np.ones(1, bool))]), lambda t, a: t.cat([a, t.tensor([True])]),
     lambda a: F.concat([a, F.constant(np.zeros(1, bool))]), mask(5), tolerance=EXACT)
case("stack", lambda a, b: F.stack([a, b], -1), lambda t, a, b: t.stack([a, b], -1), lambda a, b: F.stack([b, a], -1),
     A, B, tolerance=EXACT)
case("repeat", lambda x: F.repeat(x, (2, 1, 3)), lambda t, x: x.repeat(2, 1, 3), lambda x: F.repeat(-x, (2, 1, 3)), A,
     tolerance=EXACT)
case("repeat_interleave", lambda x: F.repeat_interleave(x, 3, 1), lambda t, x: x.repeat_interleave(3, 1),
     lambda x: F.repeat(x, (1, 3, 1)), A, tolerance=EXACT)
case("pad", lambda x: F.pad(x, (1, 2, 0, 1)), lambda t, x: t.nn.functional.pad(x, (1, 2, 0, 1)),
     lambda x: F.pad(x, (2, 1, 0, 1)), A, tolerance=EXACT)
case("pad value", lambda x: F.pad(x, (0, 2), value=-1.5), lambda t, x: t.nn.functional.pad(x, (0, 2), value=-1.5),
     lambda x: F.pad(x, (0, 2)), A, tolerance=EXACT)
case("pad int32", lambda x: F.pad(x, (1, 0), value=7), lambda t, x: t.nn.functional.pad(x, (1, 0), value=7),
     lambda x: F.pad(x, (1, 0)), WHOLE, tolerance=EXACT)
case("pad bool", lambda x: F.pad(x, (0, 2), value=1), lambda t, x: t.nn.functional.pad(x, (0, 2), value=True),
     lambda x: F.pad(x, (0, 2)), mask(3, 4), tolerance=EXACT)

# ---- look-up, sums, products ----------------------------------------------------------------------------------

INDEX = np.array([2, 0, 2, 1], np.int32)
TABLE = normal(6, 3)
LONG = distinct(2, 40, 3)
case("index_select", lambda x, i: F.index_select(x, 1, i), lambda t, x, i: x.index_select(1, i),
     lambda x, i: F.index_select(x, 1, F.minimum(i, 1)), A, INDEX, tolerance=EXACT)
case("index_select bool", lambda x, i: F.index_select(x, 0, i), lambda t, x, i: x.index_select(0, i),
     lambda x, i: F.index_select(F.not_op(x), 0, i), mask(3, 4), INDEX, tolerance=EXACT)
case("gather", lambda x, i: F.gather(x, 1, i), lambda t, x, i: x.gather(1, i.long()),
     lambda x, i: F.gather(x, 1, F.minimum(i, 1)), A, ints(3, 2, 5, 4), tolerance=EXACT)
case("gather part", lambda x, i: F.gather(x, 0, i), lambda t, x, i: x.gather(0, i.long()),
     lambda x, i: F.gather(x, 0, 1 - i), A, ints(2, 1, 2, 3), tolerance=EXACT)
case("gather int32", lambda x, i: F.gather(x, 0, i), lambda t, x, i: x.gather(0, i.long()),
     lambda x, i: F.gather(x, 0, F.minimum(i, 1)), SIGNED, INDEX, tolerance=EXACT)
case("scatter", lambda x, i, u: F.scatter(x, 1, i, u), lambda t, x, i, u: x.scatter(1, i.long(), u),
     lambda x, i, u: F.scatter(x, 1, i, -u), normal(2, 5), np.array([[4, 0, 2], [1, 3, 0]], np.int32), normal(2, 3),
     tolerance=EXACT)
case("scatter int32", lambda x, i: F.scatter(x, 0, i, F.constant(np.ones(4, np.int32))),
     lambda t, x, i: x.scatter(0, i.long(), 1), lambda x, i: F.scatter(x, 0, i, F.constant(np.zeros(4, np.int32))),
     np.zeros(7, np.int32), INDEX, tolerance=EXACT)
case("embedding", lambda i: F.embedding(i, weight(TABLE)), lambda t, i: t.tensor(TABLE)[i.long()],
     lambda i: F.embedding(F.minimum(i, 1), weight(TABLE)), ints(6, 2, 4), tolerance=EXACT)
case("topk", lambda x: list(F.topk(x, 5, 1)), lambda t, x: list(x.topk(5, 1)),
     lambda x: list(F.topk(x, 5, 1, largest=False)), LONG, tolerance=EXACT)
case("topk smallest of one row", lambda x: list(F.topk(x, 3, 0, largest=False)),
     lambda t, x: list(x.topk(3, 0, largest=False)), lambda x: list(F.topk(x, 3, 0)), distinct(30),
     tolerance=EXACT)
case("argmax", lambda x: F.argmax(x, 1), lambda t, x: x.argmax(1), lambda x: F.argmax(-x, 1), LONG, tolerance=EXACT)
case("argmax keepdim", lambda x: F.argmax(x, -1, True), lambda t, x: x.argmax(-1, True), lambda x: F.argmax(x, -1),
     LONG, tolerance=EXACT)
case("reduce", lambda x: F.reduce(x, "min", (0, -1), True), lambda t, x: x.amin((0, -1), True),
     lambda x: F.reduce(x, "max", (0, -1), True), A, tolerance=EXACT)
case("sum", lambda x: F.sum(x, (0, 2)), lambda t, x: x.sum((0, 2)), lambda x: F.mean(x, (0, 2)), A, tolerance=SUMS)
case("sum int32", lambda x: F.sum(x, 1, True), lambda t, x: x.sum(1, True), lambda x: F.max(x, 1, True),
     WHOLE * 1000, tolerance=EXACT)
case("sum of many", lambda x: F.sum(x, 1), lambda t, x: x.sum(1), lambda x: F.max(x, 1), uniform(0, 1, 3, 4000),
     tolerance=(1e-6, 1e-3))
case("mean", lambda x: F.mean(x, -1, True), lambda t, x: x.mean(-1, True), lambda x: F.sum(x, -1, True), A,
     tolerance=SUMS)
case("max", lambda x: F.max(x, 1), lambda t, x: x.amax(1), lambda x: F.min(x, dim=1), A, tolerance=EXACT)
case("max int32", lambda x: F.max(x, 1), lambda t, x: x.amax(1), lambda x: F.min(x, dim=1), WHOLE, tolerance=EXACT)
case("min", lambda x: F.min(x, dim=1), lambda t, x: x.amin(1), lambda x: F.max(x, 1), A, tolerance=EXACT)
case("cumsum", lambda x: F.cumsum(x, 1), lambda t, x: x.cumsum(1), lambda x: x, normal(2, 50, 3), islands=(0,),
     tolerance=(1e-6, 1e-6))
case("cumsum int32", lambda x: F.cumsum(x, -1), lambda t, x: x.cumsum(-1), lambda x: x, ints(3, 1200) * 100,
     tolerance=EXACT)
case("softmax", lambda x: F.softmax(x, -1), lambda t, x: x.softmax(-1), lambda x: F.softmax(x, 0), A * 4)
case("softmax blocked", lambda x: F.softmax(x, 1), lambda t, x: x.softmax(1),
     lambda x: F.softmax(F.maximum(x, -1.0), 1),
     np.where(mask(5, 70), normal(5, 70), np.float32(-10000)))
case("log_softmax", lambda x: F.log_softmax(x, 1), lambda t, x: x.log_softmax(1), lambda x: F.log(F.softmax(x, 0)),
     A * 4)
M, N = normal(5, 7), normal(2, 3, 7, 4)
case("matmul", F.matmul, lambda t, a, b: a @ b, lambda a, b: F.matmul(-a, b), M, N, tolerance=SUMS)
case("matmul transposed", lambda a, b: F.matmul(a, b, transa=True, transb=True), lambda t, a, b: a.T @ b.mT,
     lambda a, b: F.matmul(-a, b, transa=True, transb=True), normal(7, 4), normal(2, 3, 4, 7),
     tolerance=SUMS)
case("matmul weight", lambda x: F.matmul(x, weight(TABLE), transb=True), lambda t, x: x @ t.tensor(TABLE).T,
     lambda x: F.matmul(x, weight(TABLE[::-1]), transb=True), normal(2, 9, 3), tolerance=SUMS)
case("einsum", lambda a, b: F.einsum("qc,chw->qhw", [a, b]), lambda t, a, b: t.einsum("qc,chw->qhw", a, b),
     lambda a, b: F.einsum("qc,cwh->qhw", [a, b]), normal(5, 8), normal(8, 6, 6), tolerance=SUMS)
IMAGE = normal(2, 4, 9, 12)
KERNEL, BIAS = normal(6, 4, 3, 3, scale=0.25), normal(6)
case("conv2d", lambda x: F.conv2d(x, weight(KERNEL), weight(BIAS), (2, 2), (1, 1)),
     lambda t, x: t.conv2d(x, t.tensor(KERNEL), t.tensor(BIAS), 2, 1),
     lambda x: F.conv2d(x, weight(KERNEL), None, (2, 2), (1, 1)), IMAGE, tolerance=SUMS)
case("conv2d dilated groups", lambda x: F.conv2d(x, weight(KERNEL[:, :2]), None, (1, 1), (2, 0), (2, 2), 2),
     lambda t, x: t.conv2d(x, t.tensor(KERNEL[:, :2]), None, 1, (2, 0), 2, 2),
     lambda x: F.conv2d(x, weight(KERNEL[:, 2:]), None, (1, 1), (2, 0), (2, 2), 2), IMAGE, tolerance=SUMS)
case("conv2d computed weight", lambda x, w: F.conv2d(x, w * 2.0, weight(BIAS)),
     lambda t, x, w: t.conv2d(x, w * 2, t.tensor(BIAS)), lambda x, w: F.conv2d(x, w, weight(BIAS)), IMAGE, KERNEL,
     tolerance=SUMS)
GAIN, SHIFT = normal(48), normal(48)
case("layer_norm", lambda x: F.layer_norm(x, 48, weight(GAIN), weight(SHIFT)),
     lambda t, x: t.layer_norm(x, (48,), t.tensor(GAIN), t.tensor(SHIFT)),
     lambda x: F.layer_norm(x, 48, weight(GAIN)), normal(5, 48) * 3 + 2, tolerance=SUMS)
case("layer_norm large", lambda x: F.layer_norm(x, 48), lambda t, x: t.layer_norm(x, (48,)),
     lambda x: F.layer_norm(x, 48, eps=1e6), normal(2, 3, 48, scale=2000.0), tolerance=SUMS)
case("add_layer_norm", lambda x, r: V.add_layer_norm(x, r, weight(GAIN), weight(SHIFT)),
     lambda t, x, r: t.layer_norm(x + r, (48,), t.tensor(GAIN), t.tensor(SHIFT)),
     lambda x, r: V.add_layer_norm(x, -r, weight(GAIN), weight(SHIFT)), normal(5, 48) * 3 + 2, normal(5, 48),
     tolerance=SUMS)
case("interpolate nearest", lambda x: F.interpolate(x, (21, 20)), lambda t, x: t.nn.functional.interpolate(x, (21, 20)),
     lambda x: F.interpolate(x, (21, 20), mode="bilinear"), IMAGE, tolerance=EXACT)
case("interpolate half", lambda x: F.interpolate(x, scale_factor=0.5),
     lambda t, x: t.nn.functional.interpolate(x, scale_factor=0.5), lambda x: F.interpolate(-x, scale_factor=0.5),
     IMAGE, tolerance=EXACT)
case("interpolate bilinear", lambda x: F.interpolate(x, (13, 30), mode="bilinear"),
     lambda t, x: t.nn.functional.interpolate(x, (13, 30), mode="bilinear"),
     lambda x: F.interpolate(x, (13, 30), mode="bilinear", align_corners=True), IMAGE, tolerance=SUMS)
case("interpolate corners", lambda x: F.interpolate(x, (13, 30), mode="bilinear", align_corners=True),
     lambda t, x: t.nn.functional.interpolate(x, (13, 30), mode="bilinear", align_corners=True),
     lambda x: F.interpolate(x, (13, 30), mode="bilinear"), IMAGE, tolerance=SUMS)

# ---- vision ---------------------------------------------------------------------------------------------------

case("max_pool2d", lambda x: V.max_pool2d(x, 3, 2, 1), lambda t, x: t.max_pool2d(x, 3, 2, 1),
     lambda x: -V.max_pool2d(-x, 3, 2, 1), IMAGE, tolerance=EXACT)
MEAN, VARIANCE, SCALE, OFFSET = normal(4), uniform(0.25, 4, 4), normal(4), normal(4)


def batch_norm(x, mean=MEAN):
    return V.batch_norm(x, *(F.constant(a) for a in (mean, VARIANCE, SCALE, OFFSET)))


case("batch_norm", batch_norm,
     lambda t, x: t.batch_norm(x, *map(t.tensor, (SCALE, OFFSET, MEAN, VARIANCE)), False, 0.0, 1e-5, False),
     lambda x: batch_norm(x, -MEAN), IMAGE, tolerance=SUMS)
STATISTICS = (normal(6), uniform(0.25, 4, 6), normal(6), normal(6))  # mean, variance, gain, shift
RESIDUAL = normal(2, 6, 5, 6)


def conv_norm(x, residual, **more):
    return V.conv2d_norm(x, weight(KERNEL), *(F.constant(a) for a in STATISTICS), residual, (2, 2), (1, 1), **more)


def conv_norm_reference(t, x):
    mean, variance, gain, shift = map(t.tensor, STATISTICS)
    return t.batch_norm(t.conv2d(x, t.tensor(KERNEL), None, 2, 1), gain, shift, mean, variance, False, 0.0, 1e-5, False)


case("conv2d_norm", conv_norm, lambda t, x, r: (conv_norm_reference(t, x) + r).relu(),
     lambda x, r: conv_norm(x, -r), IMAGE, RESIDUAL, tolerance=SUMS)
case("conv2d_norm plain", lambda x: conv_norm(x, None, relu=False), conv_norm_reference,
     lambda x: conv_norm(x, None), IMAGE, tolerance=SUMS)
# Points inside, on the border cells' outer halves, and outside. In float16 a position is known to 1/200 of a cell.
GRID = uniform(-1.3, 1.3, 2, 5, 7, 2)
case("grid_sample", V.grid_sample, lambda t, x, g: t.nn.functional.grid_sample(x, g, align_corners=False),
     lambda x, g: V.grid_sample(x, g, align_corners=True), IMAGE, GRID, tolerance=(1e-5, 3e-2))
case("grid_sample corners", lambda x, g: V.grid_sample(x, g, align_corners=True),
     lambda t, x, g: t.nn.functional.grid_sample(x, g, align_corners=True), V.grid_sample, IMAGE, GRID,
     tolerance=(1e-5, 3e-2))
case("grid_sample nearest", lambda x, g: V.grid_sample(x, g, mode="nearest"),
     lambda t, x, g: t.nn.functional.grid_sample(x, g, mode="nearest", align_corners=False), V.grid_sample, IMAGE, GRID,
     dtypes=ONLY32, tolerance=EXACT)

DCN_WEIGHT = normal(5, 4, 3, 3, scale=0.25)
OFFSET_MASK = np.concatenate([normal(2, 18, 5, 6, scale=3.0), normal(2, 9, 5, 6)], 1)
case("modulated_deform_conv2d", lambda x, o: V.modulated_deform_conv2d(x, o, weight(DCN_WEIGHT), stride=2),
     lambda t, x, o: deform_conv(t, x, o, DCN_WEIGHT, 2),
     lambda x, o: V.modulated_deform_conv2d(x, -o, weight(DCN_WEIGHT), stride=2), IMAGE, OFFSET_MASK,
     tolerance=(1e-5, 5e-3))

LINEAR, LINEAR_BIAS = normal(6, 4, scale=0.5), normal(6)
case("linear", lambda x: V.linear(x, weight(LINEAR), weight(LINEAR_BIAS)),
     lambda t, x: x @ t.tensor(LINEAR).T + t.tensor(LINEAR_BIAS), lambda x: V.linear(x, weight(LINEAR)),
     normal(2, 7, 4))
QUERY, KEY, VALUES = normal(2, 7, 4), normal(2, 9, 4), normal(2, 9, 4)  # (heads,Q|K,C)
HIDDEN = _random.random((7, 9)) < 0.5
HIDDEN[:, 2] = False


def fused_attention(t, q, k, v, blocked):
    return ((q @ k.mT / 2).masked_fill(blocked, -math.inf)).softmax(-1) @ v


case("attention", V.attention, lambda t, *x: fused_attention(t, *x, t.zeros(7, 9, dtype=bool)),
     lambda q, k, v: V.attention(q * 2.0, k, v), QUERY, KEY, VALUES)
case("attention blocked", V.attention, fused_attention, lambda q, k, v, b: V.attention(q, k, v, F.not_op(b)),
     QUERY, KEY, VALUES, HIDDEN)
LONG = (normal(2, 130, 4), normal(2, 140, 4), normal(2, 140, 4), _random.random((1, 140)) < 0.5)
case("attention long", V.attention, fused_attention, lambda q, k, v, b: V.attention(q, k, v), *LONG)


HEADS = (normal(80, 2, 16), normal(90, 2, 16), normal(90, 2, 16))  # enough for the plugin
case("multihead_attention", V.multihead_attention, heads_side_by_side,
     lambda q, k, v: V.multihead_attention(-q, k, v), *HEADS)
LAYERS = normal(90, 6, 16)  # keys and values of others too
case("multihead_attention of one layer", lambda q, x: V.multihead_attention(q, x, x, None, (2, 4)),
     lambda t, q, x: heads_side_by_side(t, q, x[:, 2:4], x[:, 4:]),
     lambda q, x: V.multihead_attention(q, x, x, None, (2, 3)), HEADS[0], LAYERS)
case("multihead_attention masked", V.multihead_attention, heads_side_by_side,
     lambda q, k, v, b: V.multihead_attention(q, k, v, F.not_op(b)), *HEADS, mask(90))
case("multihead_attention masked for each query", V.multihead_attention, heads_side_by_side,
     lambda q, k, v, b: V.multihead_attention(q, k, v, F.not_op(b)), *HEADS, mask(1, 80, 90))
GROUPS = (normal(2, 65, 3, 32), normal(2, 70, 3, 32), normal(2, 70, 3, 32))
case("multihead_attention of groups", V.multihead_attention, heads_side_by_side,
     lambda q, k, v: V.multihead_attention(q, k * 2.0, v), *GROUPS)
FEW_ROWS = (normal(3, 6, 2, 16), normal(3, 7, 2, 16), normal(3, 7, 2, 16), mask(1, 6, 7))  # composed everywhere
case("multihead_attention of few rows", V.multihead_attention, heads_side_by_side,
     lambda q, k, v, b: V.multihead_attention(q, k, v), *FEW_ROWS)


def grouped_attention(x, memory):
    """Queries (N,P,8) attend within their group, then all of them to memory (K,8), as the motion head's do."""

    def heads(t):
        return F.transpose(F.view(t, (*t.shape[:-1], 2, 4)), -3, -2)

    def joined(t):
        return F.view(F.transpose(t, -3, -2), (*t.shape[:-3], -1, 8))

    inside = x + joined(V.attention(*[heads(x)] * 3))
    flat = V.after(F.view(inside, (-1, 8)))
    flat = V.after(flat + joined(V.attention(heads(flat), *[heads(memory)] * 2)))
    return F.view(flat, x.shape)


def grouped_reference(t, x, memory):
    def attend(q, k):
        q, k = (y.unflatten(-1, (2, 4)).transpose(-3, -2) for y in (q, k))
        return ((q @ k.mT / 2).softmax(-1) @ k).transpose(-3, -2).flatten(-2)

    x = x + attend(x, x)
    return x + attend(x, memory)


case("attention of groups, then of all", grouped_attention, grouped_reference,
     lambda x, m: grouped_attention(F.transpose(x, 0, 1), m), normal(5, 5, 8), normal(7, 8))
SHAPES = ((6, 8), (3, 4))  # two levels, 48 + 12 cells
VALUE = normal(2, 60, 2, 4)  # (B,S,M,C)
POINTS, BOXES = (
    uniform(-0.1, 1.1, 2, 5, 2, 2),
    np.concatenate([uniform(0, 1, 2, 5, 2, 2), uniform(0.1, 0.5, 2, 5, 2, 2)], -1),
)
OFFSETS, LOGITS = normal(2, 5, 2, 2, 3, 2), normal(2, 5, 2, 6)
case("deformable_attention", lambda *x: deformable_attention(*x, SHAPES),
     lambda t, *x: deform_attention(t, *x, SHAPES), lambda v, r, o, a: deformable_attention(v, r, -o, a, SHAPES),
     VALUE, POINTS, OFFSETS, LOGITS, islands=(1,))
case("deformable_attention boxes", lambda *x: deformable_attention(*x, SHAPES),
     lambda t, *x: deform_attention(t, *x, SHAPES),
     lambda v, r, o, a: deformable_attention(v, F.narrow(r, -1, 0, 2), o, a, SHAPES), VALUE, BOXES, OFFSETS, LOGITS,
     islands=(1,))
# Four channels have no kernel: the composition, also with plugins. The inputs are float16 numbers and cost nothing, but
# TensorRT 8.6 stores the locations, float32 by intent, as float16 (docs/fidelity.md). Emulated in torch, all else in
# float32: 3.87e-3 with the inputs for which the GPU gave just that; with 1500 random ones of these shapes, relative to
# max(1, largest), 1.8e-3 at the median, 4.4e-3 at the 99th percentile, 7.6e-3 at most.
case("deformable_attention levels on one", lambda *x: deformable_attention(*x, SHAPES[:1], num_queries=9),
     lambda t, *x: deform_attention(t, *x, SHAPES[:1], num_queries=9),
     lambda v, r, o, a: deformable_attention(v, r, o, -a, SHAPES[:1], num_queries=9), VALUE[:, :48], POINTS, OFFSETS,
     LOGITS, islands=(1,), tolerance=(3e-6, 5e-3))
case("sampling_points", lambda *x: list(sampling_points(*x, SHAPES)), lambda t, *x: list(sampling(t, *x, SHAPES)),
     lambda r, o, a: list(sampling_points(r, -o, a, SHAPES)), POINTS, OFFSETS, LOGITS, islands=(0,),
     tolerance=(3e-6, 3e-6))
case("sample_levels", lambda *x: sample_levels(*x, SHAPES), lambda t, *x: sampled_levels(t, *x, SHAPES),
     lambda v, at, by: sample_levels(v, 1.0 - at, by, SHAPES), VALUE, uniform(-0.1, 1.1, 2, 5, 2, 2, 3, 2),
     uniform(0, 1, 2, 5, 2, 2, 3), islands=(1, 2))
case("temporal_attention", lambda *x: temporal_attention(*x, SHAPES[0]),
     lambda t, *x: temporal(t, *x, SHAPES[0]), lambda v, r, o, a: temporal_attention(v, r, o, -a, SHAPES[0]),
     VALUE[:, :48], uniform(-0.1, 1.1, 5, 2), normal(5, 2, 2, 3, 2), normal(5, 2, 2, 3), islands=(1,))
SEEN = _random.random((6, 5, 2)) < 0.4
SEEN[:, 3] = False  # a query that no camera sees
case("camera_cross_attention", lambda *x: camera_cross_attention(*x, SHAPES),
     lambda t, *x: camera_attention(t, *x, SHAPES),
     lambda v, r, s, o, a: camera_cross_attention(v, r, F.constant(np.ones((6, 5, 2), bool)), o, a, SHAPES),
     normal(6, 60, 2, 4), uniform(-0.1, 1.1, 6, 5, 2, 2), SEEN, normal(5, 2, 2, 4, 2), normal(5, 2, 8),
     islands=(1,))
LAYERS = normal(6, 60, 6, 4)  # the values of three layers with two heads each
case("camera_cross_attention of one layer's heads", lambda *x: camera_cross_attention(*x, SHAPES, first_head=2),
     lambda t, v, *x: camera_attention(t, v[:, :, 2:4], *x, SHAPES),
     lambda *x: camera_cross_attention(*x, SHAPES, first_head=4), LAYERS, uniform(-0.1, 1.1, 6, 5, 2, 2), SEEN,
     normal(5, 2, 2, 4, 2), normal(5, 2, 8), islands=(1,))
_c, _s = math.cos(0.3), math.sin(0.3)
case("rotate_nearest", lambda x, m: rotate_nearest(x, m, (10, 14)), lambda t, x, m: rotate(t, x, m, 10, 14),
     lambda x, m: rotate_nearest(x, m * 0.5, (10, 14)), normal(140, 3),
     np.array([[_c, _s, 1.2], [-_s, _c, -0.7]], np.float32), islands=(1,), tolerance=EXACT)

# ---- the same in sizes that plugins have kernels for ---------------------------------------------------------------

WIDE, WIDE_LOGITS = normal(2, 60, 2, 16), normal(2, 5, 2, 6, scale=2.0)  # 16 channels per head
case("deformable_attention 16 channels", lambda *x: deformable_attention(*x, SHAPES),
     lambda t, *x: deform_attention(t, *x, SHAPES), lambda v, r, o, a: deformable_attention(v, r, -o, a, SHAPES),
     WIDE, BOXES, OFFSETS, WIDE_LOGITS, islands=(1,))
case("deformable_attention 16 channels, levels on one", lambda *x: deformable_attention(*x, SHAPES[:1], 9),
     lambda t, *x: deform_attention(t, *x, SHAPES[:1], num_queries=9),
     lambda v, r, o, a: deformable_attention(v, r, o, -a, SHAPES[:1], num_queries=9), WIDE[:, :48], POINTS, OFFSETS,
     WIDE_LOGITS, islands=(1,), tolerance=SUMS)
case("temporal_attention 32 channels", lambda *x: temporal_attention(*x, SHAPES[0]),
     lambda t, *x: temporal(t, *x, SHAPES[0]), lambda v, r, o, a: temporal_attention(v, r, o, -a, SHAPES[0]),
     normal(2, 48, 8, 32), uniform(-0.1, 1.1, 48, 2), normal(48, 8, 2, 4, 2), normal(48, 8, 2, 4), islands=(1,))
case("camera_cross_attention 32 channels", lambda *x: camera_cross_attention(*x, SHAPES),
     lambda t, *x: camera_attention(t, *x, SHAPES),
     lambda v, r, s, o, a: camera_cross_attention(v, r, F.constant(np.ones((6, 9, 4), bool)), o, a, SHAPES),
     normal(6, 60, 8, 32), uniform(-0.1, 1.1, 6, 9, 4, 2), _random.random((6, 9, 4)) < 0.1, normal(9, 8, 2, 8, 2),
     normal(9, 8, 16), islands=(1,))
case("camera_cross_attention 32 channels, one layer's heads",
     lambda *x: camera_cross_attention(*x, SHAPES, first_head=16),
     lambda t, v, *x: camera_attention(t, v[:, :, 16:], *x, SHAPES),
     lambda *x: camera_cross_attention(*x, SHAPES, first_head=8), normal(6, 60, 24, 32),
     uniform(-0.1, 1.1, 6, 9, 4, 2), _random.random((6, 9, 4)) < 0.3, normal(9, 8, 2, 8, 2), normal(9, 8, 16),
     islands=(1,))
NARROW, NARROW_WEIGHT, NARROW_BIAS = normal(2, 64, 9, 11), normal(27, 64, 3, 3, scale=0.04), normal(27)
case("narrow_conv2d", lambda x: V.narrow_conv2d(x, weight(NARROW_WEIGHT), weight(NARROW_BIAS)),
     lambda t, x: t.nn.functional.conv2d(x, t.tensor(NARROW_WEIGHT), t.tensor(NARROW_BIAS), padding=1),
     lambda x: V.narrow_conv2d(x, weight(-NARROW_WEIGHT), weight(NARROW_BIAS)), NARROW, tolerance=SUMS)
CELLS = normal(1025, 16, scale=2.0)
case("add_layer_norm of many rows", lambda x, r: V.add_layer_norm(x, r, weight(GAIN[:16]), weight(SHIFT[:16])),
     lambda t, x, r: t.layer_norm(x + r, (16,), t.tensor(GAIN[:16]), t.tensor(SHIFT[:16])),
     lambda x, r: V.add_layer_norm(x, r, weight(SHIFT[:16]), weight(GAIN[:16])), CELLS, normal(1025, 16),
     tolerance=SUMS)
case("add_layer_norm of many rows, no residual",
     lambda x: V.add_layer_norm(x, None, weight(GAIN[:16]), weight(SHIFT[:16])),
     lambda t, x: t.layer_norm(x, (16,), t.tensor(GAIN[:16]), t.tensor(SHIFT[:16])),
     lambda x: V.add_layer_norm(x, x, weight(GAIN[:16]), weight(-SHIFT[:16])), CELLS, tolerance=SUMS)
WIDE_IMAGE, WIDE_WEIGHT = normal(2, 32, 9, 11), normal(64, 32, 3, 3, scale=0.06)
WIDE_STATISTICS = (normal(64), uniform(0.25, 4, 64), normal(64), normal(64))


def deform_conv_norm(x, offset_mask, **more):
    statistics = (F.constant(a) for a in WIDE_STATISTICS)
    return V.modulated_deform_conv2d_norm(x, offset_mask, weight(WIDE_WEIGHT), *statistics, **more)


def deform_conv_norm_reference(t, x, offset_mask):
    mean, variance, gain, shift = map(t.tensor, WIDE_STATISTICS)
    out = deform_conv(t, x, offset_mask, WIDE_WEIGHT, 1)
    return t.batch_norm(out, gain, shift, mean, variance, False, 0.0, 1e-5, False).relu()


case("modulated_deform_conv2d_norm", deform_conv_norm, deform_conv_norm_reference,
     lambda x, o: deform_conv_norm(x, o, relu=False), WIDE_IMAGE,
     np.concatenate([normal(2, 18, 9, 11, scale=2.0), normal(2, 9, 9, 11)], 1), tolerance=(1e-5, 5e-3))

# ---- composed in layers/, offered by executors ---------------------------------------------------------------------

# Rectangles on 20 x 14 pixels, of all classes, some weak; values in sixteenths, so that sums are exact.
MERGE = np.zeros((12, 20, 14), np.float32)
for number, rectangle in enumerate(MERGE):
    (y, x), (rows, columns) = _random.integers(0, 12, 2), _random.integers(3, 9, 2)
    rectangle[y : y + rows, x : x + columns] = 1 - number / 32
MERGE = (MERGE * (1 - ints(5, 12, 20, 14) / 16)).reshape(12, 280).astype(np.float32)
MERGE_SCORES, MERGE_LABELS = half(_random.permutation(12) / 16 + 0.25), ints(3, 12)
case("merge_masks", lambda *x: list(merge_masks(*x, 3, 0.2)), lambda t, *x: merged(t, *x, 3, 0.2),
     lambda m, s, labels: list(merge_masks(m, 1.0 - s, labels, 3, 0.2)), MERGE, MERGE_SCORES, MERGE_LABELS,
     islands=(0, 1), tolerance=EXACT)

CELLS = normal(1100, 128)  # enough for the plugin
case("memory_attention", memory_attention, lambda t, q, m: t.softmax(q @ m.T, -1) @ m,
     lambda q, m: memory_attention(-q, m), normal(5, 128, scale=0.25), CELLS, tolerance=SUMS)
MIX = (normal(8, 8, scale=0.3), normal(8), normal(1, 8), normal(1))
case("attention_masks", lambda q, k: attention_masks(q, k, *map(weight, MIX), num_heads=8),
     lambda t, q, k: mixed_masks(t, q, k, *MIX),
     lambda q, k: attention_masks(-q, k, *map(weight, MIX), num_heads=8), normal(5, 128), CELLS, tolerance=SUMS)
# Queries in sixteenths of a channel each, so that no product is near another's or the threshold.
LIKELY = (np.eye(128)[None, :7] * 4).repeat(2, 0).astype(np.float32), half(ints(9, 2, 128, 5, 6) / 8 - 0.5)
case("likeliest_instance", lambda q, s, c: likeliest_instance(q, s, c, 0.6),
     lambda t, q, s, c: likeliest(t, q, s, c, 0.6),
     lambda q, s, c: likeliest_instance(-q, s, c, 0.6), *LIKELY, half([1, 0.9375, 0.875, 0, 0.75, 0.8125, 0.6875]),
     islands=(2,), tolerance=EXACT)

# ---- where TensorRT 8.6 has been wrong -----------------------------------------------------------------------------

SINES, LANES = uniform(-3, 3, 24, 16), normal(16, 8)
case("sin of positions", lambda x: F.matmul(F.cast(F.sin(x * (2 * math.pi) + 1.5), net_dtype()), weight(LANES)),
     lambda t, x: (x * (2 * math.pi) + 1.5).sin() @ t.tensor(LANES),
     lambda x: F.matmul(F.cast(F.cos(x * (2 * math.pi) + 1.5), net_dtype()), weight(LANES)), SINES, islands=(0,),
     tolerance=SUMS)

# ---- geometry of layers/, offered by executors ---------------------------------------------------------------------

SMALL = load_config("tiny_e2e").replace(bev_h=5, bev_w=6, rotate_center=(3, 2))
CAMERAS = normal(6, 4, 4, scale=8.0)
CAMERAS[:, 2] = half([0.05, -0.03, 0.1, 60])  # the depth: no point is near the camera's plane
case("point_sampling", lambda m: point_sampling(m, SMALL)[0], lambda t, m: projected(t, m, SMALL),
     lambda m: point_sampling(-m, SMALL)[0], CAMERAS, islands=(0,), tolerance=(1e-5, 5e-3))

LEVELS = [normal(2, 16, *shape) for shape in ((3, 4), (2, 2), (2, 1), (1, 1))]
IMAGE_EMBEDS, LEVEL_EMBEDS = normal(2, 16), normal(4, 16)


def flattened(t, *maps):
    embeds = t.tensor(IMAGE_EMBEDS)[:, None] + t.tensor(LEVEL_EMBEDS)  # (N,L,D)
    return t.cat([x.flatten(2).transpose(1, 2) + embeds[:, i, None] for i, x in enumerate(maps)], 1)


case("flatten_maps of a pyramid", lambda *x: flatten_maps(x, weight(IMAGE_EMBEDS), weight(LEVEL_EMBEDS)), flattened,
     lambda *x: flatten_maps(x, weight(IMAGE_EMBEDS), weight(LEVEL_EMBEDS[::-1].copy())), *LEVELS)
case("flatten_maps of one", lambda x: flatten_maps([x]), lambda t, x: x.flatten(2).transpose(1, 2),
     lambda x: flatten_maps([F.permute(x, (0, 1, 3, 2))]), LEVELS[0], tolerance=EXACT)
GRID = uniform(-1.25, 1.25, 1, 4, 5, 2)
case("sample_map", lambda x: sample_map(x, (3, 4)), lambda t, x: x.T.reshape(1, 16, 3, 4),
     lambda x: F.view(x, (1, 16, 3, 4)), normal(12, 16), tolerance=EXACT)
case("sample_map at a grid", lambda x: sample_map(x, (3, 4), GRID),
     lambda t, x: t.nn.functional.grid_sample(x.T.reshape(1, 16, 3, 4), t.tensor(GRID), align_corners=True),
     lambda x: sample_map(x, (3, 4), GRID[:, ::-1].copy()), normal(12, 16))

PIXELS = ints(256, 6, 5, 9, 3).astype(np.uint8)
PICTURE = SMALL.replace(image_height=5, image_width=9)  # padded to multiples of 32


def normalised(t, x):
    size = (0, PICTURE.padded_width - 9, 0, PICTURE.padded_height - 5)
    return t.nn.functional.pad((x.float() - t.tensor(PICTURE.image_mean)).permute(0, 3, 1, 2), size)


case("normalise_images", lambda x: normalise_images(x, PICTURE), normalised,
     lambda x: normalise_images(x, PICTURE.replace(image_mean=PICTURE.image_mean[::-1])), PIXELS)

BEV = [normal(9, 16) for _ in range(4)]


def joined(t, query, query_pos, prev_bev, bev_query, has_prev):
    history, current = (prev_bev, bev_query) if has_prev.item() else (query, query)
    return [t.cat([history, query + query_pos], 1), t.stack([history, current])]


for flag in (True, False):
    case(f"temporal_inputs with{'' if flag else 'out'} a history", lambda *x: list(temporal_inputs(*x)), joined,
         lambda *x: list(temporal_inputs(*x[:-1], F.not_op(x[-1]))), *BEV, np.array([flag]))

TURN, BACK = (half([[c, s, 0], [-s, c, 0], [0, 0, 1]]) for c, s in ((0.8, 0.6), (0.78125, -0.625)))
MOTION = (TURN, half([20, -31, 1]), half([22, -28.5, 1.25]), BACK, half([0.5]))
case("propagate", lambda r, v, *ego: propagate(r, v, EgoMotion(*ego), SMALL.pc_range),
     lambda t, r, v, *ego: moved(t, r, v, *ego, SMALL.pc_range),
     lambda r, v, *ego: propagate(r, -v, EgoMotion(*ego), SMALL.pc_range), normal(9, 3, scale=0.5),
     normal(9, 2, scale=3.0), *MOTION, islands=tuple(range(7)), tolerance=(3e-5, 2e-2))

# ---- offsets and logits in one tensor ------------------------------------------------------------------------------


def apart(samples, per_map: bool = False) -> tuple:
    """Offsets (…,M,L,P,2) and logits (…,M,L*P), or (…,M,L,P) with per_map, of torch samples (…,3,M,L,P)."""
    m, levels, points = samples.shape[-3:]
    offsets, logits = samples.flatten(-4).tensor_split([2 * m * levels * points], -1)
    inner = (m, levels, points) if per_map else (m, levels * points)
    return offsets.unflatten(-1, (m, levels, points, 2)), logits.unflatten(-1, inner)


for joint, more in ((normal(2, 5, 3, 2, 2, 4), ""), (normal(2, 5, 3, 2, 2, 3), " cut apart")):
    case(f"deformable_attention 16 channels, joint samples{more}",
         lambda v, r, s: deformable_attention(v, r, s, None, SHAPES),
         lambda t, v, r, s: deform_attention(t, v, r, *apart(s), SHAPES),
         lambda v, r, s: deformable_attention(v, r, -s, None, SHAPES), WIDE, BOXES, joint, islands=(1,))
case("deformable_attention 16 channels, joint samples, levels on one",
     lambda v, r, s: deformable_attention(v, r, s, None, SHAPES[:1], 9),
     lambda t, v, r, s: deform_attention(t, v, r, *apart(s), SHAPES[:1], num_queries=9),
     lambda v, r, s: deformable_attention(v, r, -s, None, SHAPES[:1], 9), WIDE[:, :48], POINTS,
     normal(2, 5, 3, 2, 2, 4), islands=(1,), tolerance=SUMS)
case("temporal_attention 32 channels, joint samples", lambda v, r, s: temporal_attention(v, r, s, None, SHAPES[0]),
     lambda t, v, r, s: temporal(t, v, r, *apart(s, per_map=True), SHAPES[0]),
     lambda v, r, s: temporal_attention(v, r, -s, None, SHAPES[0]), normal(2, 48, 8, 32), uniform(-0.1, 1.1, 48, 2),
     normal(48, 3, 8, 2, 4), islands=(1,))
case("camera_cross_attention 32 channels, joint samples",
     lambda v, r, seen, s: camera_cross_attention(v, r, seen, s, None, SHAPES),
     lambda t, v, r, seen, s: camera_attention(t, v, r, seen, *apart(s), SHAPES),
     lambda v, r, seen, s: camera_cross_attention(v, r, seen, -s, None, SHAPES), normal(6, 60, 8, 32),
     uniform(-0.1, 1.1, 6, 9, 4, 2), _random.random((6, 9, 4)) < 0.3, normal(9, 3, 8, 2, 8), islands=(1,))
