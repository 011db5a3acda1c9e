"""Constants, casts, what works element by element, and shapes."""

import math

import numpy as np

from op_cases.table import EXACT, ONLY32, SUMS, case, half, ints, mask, normal, uniform, weight
from trtllm import functional as F
from trtllm import net_dtype
from trtllm import vision as V

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
