"""Look-up, sums, products, convolutions, norms and interpolation."""

import numpy as np

from op_cases.elementwise import SIGNED, WHOLE, A
from op_cases.table import EXACT, SUMS, case, distinct, ints, mask, normal, uniform, weight
from trtllm import functional as F
from trtllm import vision as V

# fmt: off
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
