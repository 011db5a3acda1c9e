"""Deformable encoder and decoder of the map head (Deformable DETR, Zhu et al. 2021; seg_deformable_transformer.py).

B = bev_h * bev_w BEV cells, index y * bev_w + x; D = embed_dims; Q = seg_num_query.
"""

import math

import numpy as np

from config import UniADConfig
from layers.basic import FFN, LayerNorm, Linear, MmcvMultiheadAttention
from layers.deformable_attention import Joint, MultiScaleDeformableAttention, joint_values
from trtllm import Module, ModuleList, Parameter, Tensor, net_dtype
from trtllm import functional as F
from trtllm import vision as V

NUM_FEATURE_LEVELS = 4  # rows of level_embeds in every checkpoint; the BEV is level 0


def sine_positional_encoding(height: int, width: int, num_feats: int) -> np.ndarray:
    """mmdet's SinePositionalEncoding with normalize=True, offset=-0.5: float32 (height*width, 2*num_feats), y first."""
    period = (10000.0 ** (2 * (np.arange(num_feats) // 2) / num_feats)).astype(np.float32)

    def encode(cells: int) -> np.ndarray:
        centre = (np.arange(1, cells + 1, dtype=np.float32) - np.float32(0.5)) / np.float32(cells + 1e-6)
        angle = (centre * np.float32(2 * math.pi))[:, None] / period  # (cells, num_feats)
        return np.where(np.arange(num_feats) % 2 == 0, np.sin(angle), np.cos(angle))

    y = np.broadcast_to(encode(height)[:, None], (height, width, num_feats))
    x = np.broadcast_to(encode(width)[None], (height, width, num_feats))
    return np.concatenate([y, x], 2).reshape(height * width, 2 * num_feats).astype(np.float32)


def cell_centres(height: int, width: int) -> np.ndarray:
    """Centre of each cell as a fraction of the map, x then y: float32 (height*width, 2)."""
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


class EncoderLayer(Module):
    """Self-attention, norm, FFN, norm on the BEV cells: (B,D) -> (B,D)."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        attention = MultiScaleDeformableAttention(d, config.num_heads, config.seg_num_levels, config.num_points)
        self.attentions = ModuleList([attention])
        self.ffns = ModuleList([FFN(d, config.feedforward_channels)])
        self.norms = ModuleList([LayerNorm(d), LayerNorm(d)])
        self.spatial_shape = (config.bev_h, config.bev_w)

    def forward(self, x: Tensor, pos: Tensor, reference_points: Tensor) -> Tensor:
        x = self.norms[0](self.attentions[0](x, pos, x, reference_points, self.spatial_shape), x)
        return self.norms[1](self.ffns[0](x), x)


class DecoderLayer(Module):
    """Self-attention of the queries, deformable cross-attention to the BEV, FFN, each followed by a norm."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        cross = MultiScaleDeformableAttention(d, config.num_heads, config.seg_num_levels, config.num_points)
        self.attentions = ModuleList([MmcvMultiheadAttention(d, config.num_heads), cross])
        self.ffns = ModuleList([FFN(d, config.feedforward_channels)])
        self.norms = ModuleList([LayerNorm(d), LayerNorm(d), LayerNorm(d)])
        self.spatial_shape = (config.bev_h, config.bev_w)

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Tensor, reference_points: Tensor, joint: Joint | None = None
    ) -> Tensor:
        """Arguments as the decoder's; `joint` as MultiScaleDeformableAttention's. -> (Q,D)."""
        query = self.norms[0](self.attentions[0](query, query, query, query_pos, query_pos))
        seen = self.attentions[1](query, query_pos, memory, reference_points, self.spatial_shape, joint)  # (Q,D)
        query = self.norms[1](query + seen)
        return self.norms[2](query + self.ffns[0](query))


class Encoder(Module):
    """seg_encoder_num_layers layers: x and pos (B,D) -> memory (B,D)."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.layers = ModuleList([EncoderLayer(config) for _ in range(config.seg_encoder_num_layers)])
        self.spatial_shape = (config.bev_h, config.bev_w)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        reference_points = F.constant(cell_centres(*self.spatial_shape))  # (B,2)
        for layer in self.layers:
            x = layer(x, pos, reference_points)
        return x


class Decoder(Module):
    """seg_decoder_num_layers layers with box refinement (mmdet's DeformableDetrTransformerDecoder)."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.layers = ModuleList([DecoderLayer(config) for _ in range(config.seg_decoder_num_layers)])
        self.config = config

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Tensor, reference_points: Tensor, reg_branches: ModuleList
    ) -> tuple[Tensor, list[Tensor]]:
        """Refine the queries against the BEV.

        Args:
            query, query_pos: (Q,D).
            memory: (B,D).
            reference_points: float32 (Q,2), x, y in [0,1].
            reg_branches: per layer, (Q,D) -> (Q,4) box correction in logits.

        Returns:
            the last layer's queries (Q,D), and each layer's box: float32 (Q,4) centre x, y, width, height in [0,1].
        """
        boxes, projections = [], [layer.attentions[1].value_proj for layer in self.layers]
        heads, shape = self.config.num_heads, (self.config.bev_h, self.config.bev_w)
        joints = joint_values("deformable_attention", projections, F.unsqueeze(memory, 0), heads, [shape], True)
        for layer, reg_branch, joint in zip(self.layers, reg_branches, joints):
            query = layer(query, query_pos, memory, reference_points, joint)
            logits = V.inverse_sigmoid(reference_points)  # (Q,2) before the first layer, (Q,4) after
            logits = F.pad(logits, (0, 4 - logits.shape[1]))  # (Q,4)
            # Positions are float32: float16 would round them to 1/10 of a cell.
            reference_points = F.sigmoid(F.cast(reg_branch(query), "float32") + logits)  # (Q,4)
            boxes.append(reference_points)
        return query, boxes


class SegTransformer(Module):
    """SegDeformableTransformer: BEV -> memory, and queries refined against it. Keys level_embeds, reference_points."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.level_embeds = Parameter((NUM_FEATURE_LEVELS, d))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.reference_points = Linear(d, 2, dtype="float32")
        self.pos = sine_positional_encoding(config.bev_h, config.bev_w, d // 2)

    def forward(
        self, bev_embed: Tensor, query: Tensor, query_pos: Tensor, reg_branches: ModuleList
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """bev_embed (B,D); query, query_pos float32 (Q,D) -> memory (B,D), its position (B,D), queries (Q,D), boxes."""
        level = self.level_embeds.value.array  # (levels,D), network type; there is one level of features
        assert level is not None
        pos = F.constant(self.pos.astype(net_dtype()) + level[:1])  # (B,D), or TensorRT 8.6 adds them in every frame
        memory = self.encoder(bev_embed, pos)
        reference_points = F.sigmoid(self.reference_points(query_pos))  # (Q,2)
        query, boxes = self.decoder(
            F.cast(query, net_dtype()), F.cast(query_pos, net_dtype()), memory, reference_points, reg_branches
        )
        return memory, pos, query, boxes
