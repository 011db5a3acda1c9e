"""Vision in sizes that plugins have kernels for."""

import numpy as np
from op_references import camera_attention, deform_attention, deform_conv, temporal

from op_cases.products import GAIN, SHIFT
from op_cases.table import SUMS, case, mask, normal, uniform, weight
from op_cases.vision import BOXES, OFFSETS, POINTS, SHAPES
from trtllm import functional as F
from trtllm import vision as V
from trtllm.sampled_attention import camera_cross_attention, deformable_attention, temporal_attention

# fmt: off
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
     normal(6, 60, 8, 32), uniform(-0.1, 1.1, 6, 9, 4, 2), mask(6, 9, 4, share=0.1), normal(9, 8, 2, 8, 2),
     normal(9, 8, 16), islands=(1,))
case("camera_cross_attention 32 channels, one layer's heads",
     lambda *x: camera_cross_attention(*x, SHAPES, first_head=16),
     lambda t, v, *x: camera_attention(t, v[:, :, 16:], *x, SHAPES),
     lambda *x: camera_cross_attention(*x, SHAPES, first_head=8), normal(6, 60, 24, 32),
     uniform(-0.1, 1.1, 6, 9, 4, 2), mask(6, 9, 4, share=0.3), normal(9, 8, 2, 8, 2), normal(9, 8, 16),
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
END, END_WEIGHT = normal(2, 64, 9, 11), normal(256, 64, 1, 1, scale=0.12)  # of a residual network's block
END_STATISTICS = (normal(256), uniform(0.25, 4, 256), normal(256), normal(256))


def block_end(x, residual, **more):
    return V.conv2d_norm(x, weight(END_WEIGHT), *(F.constant(a) for a in END_STATISTICS), residual, **more)


def block_end_reference(t, x, residual):
    mean, variance, gain, shift = map(t.tensor, END_STATISTICS)
    out = t.conv2d(x, t.tensor(END_WEIGHT))
    return (t.batch_norm(out, gain, shift, mean, variance, False, 0.0, 1e-5, False) + residual).relu()


case("conv2d_norm of a block's end", block_end, block_end_reference, lambda x, r: block_end(x, -r), END,
     normal(2, 256, 9, 11), tolerance=SUMS)
STEM_IMAGE, STEM_WEIGHT = normal(2, 3, 20, 24), normal(64, 3, 7, 7, scale=0.08)


def stem(x, flipped=False):
    statistics = (F.constant(a) for a in WIDE_STATISTICS)
    return V.stem(x, weight(STEM_WEIGHT[..., ::-1].copy() if flipped else STEM_WEIGHT), *statistics)


def stem_reference(t, x):
    mean, variance, gain, shift = map(t.tensor, WIDE_STATISTICS)
    out = t.conv2d(x, t.tensor(STEM_WEIGHT), None, 2, 3)
    return t.max_pool2d(t.batch_norm(out, gain, shift, mean, variance, False, 0.0, 1e-5, False).relu(), 3, 2, 1)


case("stem", stem, stem_reference, lambda x: stem(x, True), STEM_IMAGE, tolerance=SUMS)
