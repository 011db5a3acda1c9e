"""The detection decoder: six (tiny: three) layers that let the track queries look at each other and at the BEV.

Each layer is self-attention among the queries, deformable attention to the BEV around each query's reference point,
and a feed-forward block, each followed by a norm. After each layer the head's regression branch moves the reference
points. Deformable DETR (Zhu et al. 2021) as in UniAD's uniad/modules/decoder.py.
"""

from collections.abc import Sequence

from config import UniADConfig
from layers.basic import FFN, LayerNorm, MmcvMultiheadAttention
from layers.deformable_attention import Joint, MultiScaleDeformableAttention, joint_values
from trtllm import Module, ModuleList, Tensor
from trtllm import functional as F
from trtllm import vision as V


class DetrTransformerDecoderLayer(Module):
    """One layer: self-attention, norm, attention to the BEV, norm, feed-forward, norm."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.attentions = ModuleList(
            [
                MmcvMultiheadAttention(d, config.num_heads),
                MultiScaleDeformableAttention(d, config.num_heads, 1, config.num_points),
            ]
        )
        self.ffns = ModuleList([FFN(d, config.feedforward_channels)])
        self.norms = ModuleList([LayerNorm(d) for _ in range(3)])
        self.bev_shape = (config.bev_h, config.bev_w)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev_embed: Tensor,
        reference_points: Tensor,
        empty: Tensor,
        joint: Joint | None = None,
    ) -> Tensor:
        """Arguments as the decoder's; `joint` as MultiScaleDeformableAttention's. -> (N,D)."""
        x = self.norms[0](self.attentions[0](query, query, query, query_pos, query_pos, empty))
        x = self.norms[1](x + self.attentions[1](x, query_pos, bev_embed, reference_points, self.bev_shape, joint))
        return self.norms[2](x + self.ffns[0](x))


class DetectionTransformerDecoder(Module):
    """All layers with iterative refinement of the reference points."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.layers = ModuleList([DetrTransformerDecoderLayer(config) for _ in range(config.decoder_num_layers)])
        self.config = config

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
        heads, shape = self.config.num_heads, (self.config.bev_h, self.config.bev_w)
        projections = [layer.attentions[1].value_proj for layer in self.layers]
        joints = joint_values("deformable_attention", projections, F.unsqueeze(bev_embed, 0), heads, [shape], True)
        for layer, reg_branch, joint in zip(self.layers, reg_branches, joints):
            query = layer(query, query_pos, bev_embed, F.narrow(reference_points, 1, 0, 2), empty, joint)
            # Reference points stay in float32: float16 would step by 0.05 m at the far end of the range.
            code = F.cast(reg_branch(query), "float32")
            step = F.concat([F.narrow(code, 1, 0, 2), F.narrow(code, 1, 4, 1)], 1)  # (N,3): x, y and z (code 4)
            reference_points = F.sigmoid(step + V.inverse_sigmoid(reference_points))
            states.append(query)
            codes.append(code)
            references.append(reference_points)
        return states, codes, references
