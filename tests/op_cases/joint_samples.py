"""Sampled attention with offsets and logits in one tensor."""

from op_references import camera_attention, deform_attention, temporal

from op_cases.plugin_sizes import WIDE
from op_cases.table import SUMS, case, mask, normal, uniform
from op_cases.vision import BOXES, POINTS, SHAPES
from trtllm.sampled_attention import camera_cross_attention, deformable_attention, temporal_attention

# fmt: off


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
     uniform(-0.1, 1.1, 6, 9, 4, 2), mask(6, 9, 4, share=0.3), normal(9, 3, 8, 2, 8), islands=(1,))
