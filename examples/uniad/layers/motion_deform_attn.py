"""How a motion query looks at the bird's-eye view around its goal (UniAD's "BEV interaction").

Source: OpenDriveLab/UniAD, projects/mmdet3d_plugin/uniad/dense_heads/motion_head_plugin/motion_deformable_attn.py.
"""

from config import UniADConfig
from layers.basic import FFN, LayerNorm, Linear, normalise_range
from layers.deformable_attention import Joint, layer_values
from trtllm import Module, ModuleList, Sequential, Tensor, sampled_attention
from trtllm import functional as F


class MotionDeformableAttention(Module):
    """Deformable attention with one set of sampling points for each future step.

    All steps sample around the same place, the trajectory's last point; what they see is concatenated.
    """

    def __init__(self, config: UniADConfig):
        super().__init__()
        d, per_query = config.embed_dims, config.num_heads * config.predict_steps * config.num_points
        self.sampling_offsets = Linear(d, per_query * 2)
        self.attention_weights = Linear(d, per_query)
        self.value_proj = Linear(d, d)
        self.output_proj = Sequential(Linear(config.predict_steps * d, d), LayerNorm(d), F.relu)
        self.config = config

    def forward(
        self, query: Tensor, query_pos: Tensor, bev_embed: Tensor, goal: Tensor, joint: Joint | None = None
    ) -> Tensor:
        """Attend around `goal`, then add the query (without its position) as residual.

        Args:
            query, query_pos: (R,D), a row for each mode of each agent.
            bev_embed: (B,D), index y * bev_w + x.
            goal: float32 (R,2), x, y of the last trajectory point in the ego's frame, metres.
            joint: what deformable_attention.joint_values gave for this layer; None: bev_embed is projected here.

        Returns:
            (R,D).
        """
        c = self.config
        (rows, d), heads, steps, points = query.shape, c.num_heads, c.predict_steps, c.num_points
        placed = query + query_pos
        # The channels are ordered head, step, point; the sampling takes each step as a query of its own.
        offsets = F.view(self.sampling_offsets(placed), (rows, heads, steps, points * 2))
        offsets = F.view(F.transpose(offsets, 1, 2), (1, rows * steps, heads, 1, points, 2))
        logits = F.view(self.attention_weights(placed), (rows, heads, steps, points))
        logits = F.view(F.transpose(logits, 1, 2), (1, rows * steps, heads, points))
        value, first = layer_values(joint, self.value_proj, bev_embed, heads)
        reference = F.view(normalise_range(goal, c.pc_range), (1, rows, 1, 2))
        reference = F.repeat_interleave(reference, steps, 1)  # (1,R*steps,1,2)
        shapes = [(c.bev_h, c.bev_w)]
        out = sampled_attention.deformable_attention(
            value, reference, offsets, logits, shapes, first_head=first
        )  # (1,R*steps,D)
        return query + self.output_proj(F.view(out, (rows, steps * d)))


class MotionTransformerAttentionLayer(Module):
    """Attention around the goal, norm, feed-forward, norm: (R,D) -> (R,D)."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.attentions = ModuleList([MotionDeformableAttention(config)])
        self.ffns = ModuleList([FFN(d, config.feedforward_channels)])
        self.norms = ModuleList([LayerNorm(d), LayerNorm(d)])

    def forward(
        self, query: Tensor, query_pos: Tensor, bev_embed: Tensor, goal: Tensor, joint: Joint | None = None
    ) -> Tensor:
        x = self.norms[0](self.attentions[0](query, query_pos, bev_embed, goal, joint))
        return self.norms[1](x + self.ffns[0](x))
