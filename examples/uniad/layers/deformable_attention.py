"""Deformable attention of queries to one feature map (Deformable DETR, Zhu et al. 2021), for track and map decoders."""

from layers.basic import Linear
from trtllm import Module, Tensor
from trtllm import functional as F
from trtllm import vision as V


class MultiScaleDeformableAttention(Module):
    """Deformable attention to one feature map, without the residual: the caller adds the query (without position).

    mmcv's MultiScaleDeformableAttention, and UniAD's CustomMSDeformableAttention (modules/decoder.py), which is the
    same with num_levels 1.

    `num_levels` > 1 is the released configuration: its four levels meet the one level there is, and queries read each
    other's sampling points (the flat-buffer rule of V.deformable_attention). Only the first ceil(Q / num_levels)
    queries' offsets, weights and reference points are then ever read, so only these are computed.
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
    ) -> Tensor:
        """query and query_pos (Q,D), value (S,D), reference_points float32 (Q,2) or (Q,4) in [0,1] -> (Q,D)."""
        num_queries, d = query.shape
        m, levels, points = self.num_heads, self.num_levels, self.num_points
        read = -(-num_queries // levels)  # queries whose sampling points are read
        asking = F.narrow(query, 0, 0, read) + F.narrow(query_pos, 0, 0, read)  # (R,D)
        offsets = F.view(self.sampling_offsets(asking), (1, read, m, levels, points, 2))
        logits = F.view(self.attention_weights(asking), (1, read, m, levels * points))
        reference = F.view(F.narrow(reference_points, 0, 0, read), (1, read, 1, -1))
        reference = F.expand(reference, (1, read, levels, reference.shape[-1]))  # (1,R,L,2|4)
        value = F.view(self.value_proj(value), (1, value.shape[0], m, d // m))
        out = V.deformable_attention(
            value, reference, offsets, logits, [spatial_shape], num_queries if levels > 1 else None
        )  # (1,Q,D)
        return self.output_proj(F.squeeze(out, 0))
