"""Deformable attention of queries to one feature map (Deformable DETR, Zhu et al. 2021), for track and map decoders."""

from collections.abc import Sequence

import numpy as np

from layers.basic import Linear, joint_linear
from trtllm import Module, Tensor, sampled_attention
from trtllm import functional as F
from trtllm import vision as V

Joint = tuple[Tensor, int]  # what several layers read of one product, heads (…,S,H,C), and where one layer's begin


def predicted_samples(
    operation: str,
    sampling_offsets: Linear,
    attention_weights: Linear,
    asking: Tensor,
    offsets: tuple[int, ...],
    logits: tuple[int, ...],
    channels: int,
    spatial_shapes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor | None]:
    """Sampling offsets and attention logits that queries (R,in) ask for, in the shapes (…,M,L,P,2) and `logits`.

    By one product, as joint samples (…,3,M,L,P) and None, where the executor's `operation` (a function of
    trtllm.sampled_attention, for maps of so many channels a head) reads them so.
    """
    *lead, m, levels, points, _ = offsets
    if V.offered("joint_samples", operation, channels, tuple(spatial_shapes), m * levels * points):
        samples = joint_linear([sampling_offsets, attention_weights], asking)  # (R,3MLP)
        return F.view(samples, (*lead, 3, m, levels, points)), None
    return F.view(sampling_offsets(asking), offsets), F.view(attention_weights(asking), logits)


def joint_values(
    operation: str,
    projections: Sequence[Linear],
    features: Tensor,
    heads: int,
    spatial_shapes: Sequence[tuple[int, int]],
    shared: bool = False,
) -> Sequence[Joint | None]:
    """Of each layer its values, made by one projection of the features (…,S,D) that all layers share.

    None where the executor's `operation` (a function of trtllm.sampled_attention) has no use for it: each layer then
    projects the features itself, which takes less memory. `shared`: others project the same features. TensorRT 8.6
    would make all these products one and then copy what comes out of it; a copy of the features is a sixth of that.
    """
    dims = features.shape[-1]
    if not V.offered("joint_values", operation, dims // heads, tuple(spatial_shapes)):
        return [None] * len(projections)
    values = joint_linear(projections, V.after(features) if shared else features)  # (…,S,layers*D)
    values = F.view(values, (*features.shape[:-1], len(projections) * heads, dims // heads), False)
    return [(values, layer * heads) for layer in range(len(projections))]


def layer_values(joint: Joint | None, value_proj: Linear, features: Tensor, heads: int) -> Joint:
    """A layer's part of joint_values, or else its own values (B,S,M,C) of the features (B,S,D), or (S,D) for B = 1."""
    if joint is not None:
        return joint
    length, dims = features.shape[-2:]
    return F.view(value_proj(features), (-1, length, heads, dims // heads)), 0  # (B,S,M,C)


def of_levels(reference_points: Tensor, read: int, levels: int) -> Tensor:
    """The first `read` reference points float32 (Q,2) or (Q,4), the same for every level: (1,R,L,2|4)."""
    if reference_points.array is not None:  # as layers TensorRT 8.6 would do this in every frame, by way of float16
        array = np.repeat(reference_points.array[None, :read, None], levels, 2)  # (1,R,L,2|4)
        return F.constant(np.ascontiguousarray(array), "float32")
    points = F.view(F.narrow(reference_points, 0, 0, read), (1, read, 1, -1))  # (1,R,1,2|4)
    return F.expand(points, (1, read, levels, points.shape[-1]))


class MultiScaleDeformableAttention(Module):
    """Deformable attention to one feature map, without the residual: the caller adds the query (without position).

    mmcv's MultiScaleDeformableAttention, and UniAD's CustomMSDeformableAttention (modules/decoder.py), which is the
    same with num_levels 1.

    `num_levels` > 1 is the released configuration: its four levels meet the one level there is, and queries read each
    other's sampling points (the flat-buffer rule of sampled_attention.deformable_attention). Only the first
    ceil(Q / num_levels) queries' offsets, weights and reference points are then ever read, so only these are computed.
    """

    def __init__(self, embed_dims: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(embed_dims, samples * 2)
        self.attention_weights = Linear(embed_dims, samples)
        self.value_proj = Linear(embed_dims, embed_dims)
        self.output_proj = Linear(embed_dims, embed_dims)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shape: tuple[int, int],
        joint: Joint | None = None,
    ) -> Tensor:
        """query and query_pos (Q,D), value (S,D), reference_points float32 (Q,2) or (Q,4) in [0,1] -> (Q,D).

        `joint`: what joint_values gave for this layer, of value as (1,S,D); None: value is projected here.
        """
        num_queries = query.shape[0]
        m, levels, points = self.num_heads, self.num_levels, self.num_points
        read = -(-num_queries // levels)  # queries whose sampling points are read
        asking = F.narrow(query, 0, 0, read) + F.narrow(query_pos, 0, 0, read)  # (R,D)
        offsets, logits = predicted_samples(
            "deformable_attention", self.sampling_offsets, self.attention_weights, asking,
            (1, read, m, levels, points, 2), (1, read, m, levels * points), value.shape[-1] // m, [spatial_shape],
        )  # fmt: skip
        reference = of_levels(reference_points, read, levels)  # (1,R,L,2|4)
        values, first_head = layer_values(joint, self.value_proj, value, m)
        out = sampled_attention.deformable_attention(
            values, reference, offsets, logits, [spatial_shape], num_queries if levels > 1 else None, first_head
        )  # (1,Q,D)
        return self.output_proj(F.squeeze(out, 0))
