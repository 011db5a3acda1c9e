"""The detection decoder: six (tiny: three) layers that let the track queries look at each other and at the BEV.

Each layer is self-attention among the queries, deformable attention to the BEV around each query's reference point,
and a feed-forward block, each followed by a norm. After each layer the head's regression branch moves the reference
points. Deformable DETR (Zhu et al. 2021) as in UniAD's uniad/modules/decoder.py.
"""

from collections.abc import Sequence

from config import UniADConfig
from layers.basic import FFN, LayerNorm, Linear, MmcvMultiheadAttention
from trtllm import Module, ModuleList, Tensor
from trtllm import functional as F
from trtllm import vision as V


class CustomMSDeformableAttention(Module):
    """Deformable attention of N queries to one map, with the query (without position) as residual.

    Shapes: query and query_pos (N,D), value (B,D) with B = h*w, reference_points float32 (N,2) x, y in [0,1]
    -> (N,D).
    """

    def __init__(self, embed_dims: int, num_heads: int, num_points: int, map_shape: tuple[int, int]):
        super().__init__()
        self.sampling_offsets = Linear(embed_dims, num_heads * num_points * 2)
        self.attention_weights = Linear(embed_dims, num_heads * num_points)
        self.value_proj = Linear(embed_dims, embed_dims)
        self.output_proj = Linear(embed_dims, embed_dims)
        self.num_heads, self.num_points, self.map_shape = num_heads, num_points, map_shape

    def forward(self, query: Tensor, query_pos: Tensor, value: Tensor, reference_points: Tensor) -> Tensor:
        n, d = query.shape
        m, p = self.num_heads, self.num_points
        positioned = query + query_pos
        value = F.view(self.value_proj(value), (1, value.shape[0], m, d // m))  # (1,B,M,D/M)
        offsets = F.view(self.sampling_offsets(positioned), (1, n, m, 1, p, 2))
        logits = F.view(self.attention_weights(positioned), (1, n, m, p))
        reference_points = F.view(reference_points, (1, n, 1, 2))
        out = V.deformable_attention(value, reference_points, offsets, logits, [self.map_shape])  # (1,N,D)
        return query + self.output_proj(F.squeeze(out, 0))


class DetrTransformerDecoderLayer(Module):
    """One layer: self-attention, norm, attention to the BEV, norm, feed-forward, norm."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d, bev_shape = config.embed_dims, (config.bev_h, config.bev_w)
        self.attentions = ModuleList(
            [
                MmcvMultiheadAttention(d, config.num_heads),
                CustomMSDeformableAttention(d, config.num_heads, config.num_points, bev_shape),
            ]
        )
        self.ffns = ModuleList([FFN(d, config.feedforward_channels)])
        self.norms = ModuleList([LayerNorm(d) for _ in range(3)])

    def forward(
        self, query: Tensor, query_pos: Tensor, bev_embed: Tensor, reference_points: Tensor, empty: Tensor
    ) -> Tensor:
        x = self.norms[0](self.attentions[0](query, query, query, query_pos, query_pos, empty))
        x = self.norms[1](self.attentions[1](x, query_pos, bev_embed, reference_points))
        return self.norms[2](self.ffns[0](x))


class DetectionTransformerDecoder(Module):
    """All layers with iterative refinement of the reference points."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.layers = ModuleList([DetrTransformerDecoderLayer(config) for _ in range(config.decoder_num_layers)])

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev_embed: Tensor,
        reference_points: Tensor,
        reg_branches: Sequence[Module],
        empty: Tensor,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Run the layers.

        Args:
            query: (N,D) content of the queries.
            query_pos: (N,D).
            bev_embed: (B,D).
            reference_points: float32 (N,3), fractions of pc_range.
            reg_branches: one per layer, (N,D) -> (N,10).
            empty: bool (N), rows that no query may attend to.

        Returns:
            Per layer: the queries (N,D), the regression output in float32 (N,10), and the refined reference points
            (N,3), which are also the centres of that layer's boxes.
        """
        states, codes, references = [], [], []
        for layer, reg_branch in zip(self.layers, reg_branches):
            query = layer(query, query_pos, bev_embed, F.narrow(reference_points, 1, 0, 2), empty)
            # Reference points stay in float32: float16 would step by 0.05 m at the far end of the range.
            code = F.cast(reg_branch(query), "float32")
            step = F.concat([F.narrow(code, 1, 0, 2), F.narrow(code, 1, 4, 1)], 1)  # (N,3): x, y and z (code 4)
            reference_points = F.sigmoid(step + V.inverse_sigmoid(reference_points))
            states.append(query)
            codes.append(code)
            references.append(reference_points)
        return states, codes, references
