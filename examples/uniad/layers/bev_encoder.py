"""From camera features to the bird's-eye view: BEVFormer's encoder (Li et al. 2022) as UniAD runs it.

Keys pts_bbox_head.{positional_encoding, transformer.{encoder, level_embeds, cams_embeds, can_bus_mlp}}. Upstream:
uniad/modules/{transformer,encoder,temporal_self_attention,spatial_cross_attention}.py. A BEV map is (B,D), row-major:
cell (y, x) is row y * bev_w + x. No batch dimension.
"""

from collections.abc import Sequence

import numpy as np

from config import UniADConfig
from layers.basic import FFN, Embedding, LayerNorm, Linear
from layers.bev_geometry import cell_centres, point_sampling, rotate_nearest
from layers.deformable_attention import Joint, joint_values, layer_values, predicted_samples
from trtllm import Module, ModuleList, Parameter, Sequential, Tensor, map_layout, sampled_attention, tap
from trtllm import functional as F
from trtllm import vision as V


class LearnedPositionalEncoding(Module):
    """mmdet's LearnedPositionalEncoding: () -> (B,D), the column's vector (of x), then the row's (of y)."""

    def __init__(self, num_feats: int, rows: int, columns: int):
        super().__init__()
        self.row_embed = Embedding(rows, num_feats)
        self.col_embed = Embedding(columns, num_feats)

    def forward(self) -> Tensor:
        # One constant: TensorRT 8.6 would expand and join the tables in every frame.
        row, col = self.row_embed.weight.value.array, self.col_embed.weight.value.array  # (H,F) (W,F)
        assert row is not None and col is not None
        (h, feats), w = row.shape, col.shape[0]
        tables = np.broadcast_to(col[None], (h, w, feats)), np.broadcast_to(row[:, None], (h, w, feats))  # (H,W,F)
        return F.constant(np.concatenate(tables, 2).reshape(h * w, 2 * feats))  # (B,D)


def temporal_inputs(
    query: Tensor, query_pos: Tensor, prev_bev: Tensor, bev_query: Tensor, has_prev: Tensor
) -> tuple[Tensor, Tensor]:
    """What temporal self-attention reads, all of one type but bool has_prev (1).

    With a history every layer's current map is the query that entered layer 0; without, a layer's own input stands for
    both maps. Upstream: BEVFormerEncoder.forward and TemporalSelfAttention.forward.

    Args:
        query, query_pos: (B,D), the layer's input and its position.
        prev_bev, bev_query: (B,D), history and current map where has_prev; any numbers elsewhere.

    Returns:
        What predicts the offsets (B,2D), the history beside query + query_pos, cell by cell; and the maps that are
        projected (2,B,D), history and current.
    """
    custom = V.offered("temporal_inputs", query, query_pos, prev_bev, bev_query, has_prev=has_prev)
    if custom is not None:
        return custom
    has_prev = F.unsqueeze(has_prev, 1)  # (1,1)
    history, current = F.where(has_prev, prev_bev, query), F.where(has_prev, bev_query, query)
    return F.concat([history, query + query_pos], 1), F.stack([history, current], 0)  # (B,2D) (2,B,D)


class TemporalSelfAttention(Module):
    """Deformable attention over two BEV maps, history and current, averaged; the caller adds the query."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        dims, self.heads, self.points = config.embed_dims, config.num_heads, config.num_points
        self.sampling_offsets = Linear(2 * dims, 2 * self.heads * self.points * 2)
        self.attention_weights = Linear(2 * dims, 2 * self.heads * self.points)
        self.value_proj = Linear(dims, dims)
        self.output_proj = Linear(dims, dims)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        prev_bev: Tensor,
        bev_query: Tensor,
        has_prev: Tensor,
        reference_points: Tensor,
        spatial_shape: tuple[int, int],
    ) -> Tensor:
        """The first five as temporal_inputs', Q = B; float32 reference_points (Q,2) of both maps -> (Q,D)."""
        (q, dims), m, p = query.shape, self.heads, self.points
        pair, maps = temporal_inputs(query, query_pos, prev_bev, bev_query, has_prev)  # (Q,2D) (2,S,D)
        offsets, logits = predicted_samples(
            "temporal_attention", self.sampling_offsets, self.attention_weights, pair,
            (q, m, 2, p, 2), (q, m, 2, p), dims // m, [spatial_shape],
        )  # fmt: skip
        value = self.value_proj(F.view(maps, (-1, dims)))  # (2S,D)
        value = F.view(value, (2, -1, m, dims // m), False)  # (2,S,M,C)
        out = sampled_attention.temporal_attention(value, reference_points, offsets, logits, spatial_shape)  # (Q,D)
        return self.output_proj(out)


class MSDeformableAttention3D(Module):
    """The projections of spatial cross-attention that upstream keeps under `deformable_attention`."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        dims, self.heads = config.embed_dims, config.num_heads
        self.levels, self.points = config.fpn_num_outs, config.sca_num_points
        samples = self.heads * self.levels * self.points
        self.sampling_offsets = Linear(dims, samples * 2)
        self.attention_weights = Linear(dims, samples)
        self.value_proj = Linear(dims, dims)

    def forward(
        self,
        query: Tensor,
        features: Tensor,
        reference_points_cam: Tensor,
        mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        joint: Joint | None,
    ) -> Tensor:
        """See SpatialCrossAttention. (Q,D), the mean over the cameras that see the query."""
        (q, dims), m, levels, points = query.shape, self.heads, self.levels, self.points
        offsets, logits = predicted_samples(
            "camera_cross_attention", self.sampling_offsets, self.attention_weights, query,
            (q, m, levels, points, 2), (q, m, levels * points), dims // m, spatial_shapes,
        )  # fmt: skip
        value, first_head = layer_values(joint, self.value_proj, features, m)
        return sampled_attention.camera_cross_attention(
            value, reference_points_cam, mask, offsets, logits, spatial_shapes, first_head
        )


class SpatialCrossAttention(Module):
    """Each cell looks at the cameras that see its pillar; the caller adds the query. Takes no position of the query."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.deformable_attention = MSDeformableAttention3D(config)
        self.output_proj = Linear(config.embed_dims, config.embed_dims)

    def forward(
        self,
        query: Tensor,
        features: Tensor,
        reference_points_cam: Tensor,
        mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        joint: Joint | None = None,
    ) -> Tensor:
        """query (Q,D), features (6,S,D), reference_points_cam float32 (6,Q,Z,2), mask bool (6,Q,Z) -> (Q,D).

        `joint`: what joint_values gave for this layer; None: features are projected here.
        """
        out = self.deformable_attention(query, features, reference_points_cam, mask, spatial_shapes, joint)
        return self.output_proj(out)


class BEVFormerLayer(Module):
    """Temporal self-attention, spatial cross-attention, feed-forward, each added and normalised: (B,D) -> (B,D)."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        dims = config.embed_dims
        self.attentions = ModuleList([TemporalSelfAttention(config), SpatialCrossAttention(config)])
        self.ffns = ModuleList([FFN(dims, config.feedforward_channels)])
        self.norms = ModuleList([LayerNorm(dims) for _ in range(3)])
        self.bev_shape = (config.bev_h, config.bev_w)

    def forward(
        self,
        query: Tensor,
        bev_pos: Tensor,
        prev_bev: Tensor,
        bev_query: Tensor,
        has_prev: Tensor,
        reference_points: Tensor,
        features: Tensor,
        reference_points_cam: Tensor,
        mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        joint: Joint | None = None,
    ) -> Tensor:
        """Arguments as TemporalSelfAttention's and SpatialCrossAttention's."""
        x = self.attentions[0](query, bev_pos, prev_bev, bev_query, has_prev, reference_points, self.bev_shape)
        x = self.norms[0](x, query)
        x = self.norms[1](self.attentions[1](x, features, reference_points_cam, mask, spatial_shapes, joint), x)
        return self.norms[2](self.ffns[0](x), x)


class BEVFormerEncoder(Module):
    """The stack of BEVFormerLayers. Upstream: BEVFormerEncoder.forward."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.layers = ModuleList([BEVFormerLayer(config) for _ in range(config.encoder_num_layers)])
        self.config = config

    def forward(
        self,
        bev_query: Tensor,
        bev_pos: Tensor,
        features: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        lidar2img: Tensor,
        shift: Tensor,
        prev_bev: Tensor,
        has_prev: Tensor,
    ) -> Tensor:
        """The BEV map (B,D) of this frame.

        Args:
            bev_query, bev_pos: (B,D).
            features: (6,S,D), the levels one after another; spatial_shapes: their (h, w).
            lidar2img: float32 (6,4,4).
            shift: float32 (2), x and y in fractions of the grid.
            prev_bev: (B,D), rotated; any finite numbers where has_prev is false.
            has_prev: bool (1).
        """
        reference_points_cam, mask = point_sampling(lidar2img, self.config)  # (6,B,Z,2) (6,B,Z)
        tap("bev.reference_points_cam", reference_points_cam)
        tap("bev.mask", mask)
        # The original shifts its reference points in place, so that they move for the history *and* the current map,
        # and without a history too. The released weights were trained with that.
        reference_points = F.constant(cell_centres(self.config)) + shift  # (B,2) float32
        projections = [layer.attentions[1].deformable_attention.value_proj for layer in self.layers]
        joint = joint_values("camera_cross_attention", projections, features, self.config.num_heads, spatial_shapes)
        x = bev_query
        for index, layer in enumerate(self.layers):
            x = layer(x, bev_pos, prev_bev, bev_query, has_prev, reference_points, features, reference_points_cam, mask,
                      spatial_shapes, joint[index])  # fmt: skip
            tap(f"bev.layer{index}", x)
        return x


class CanBusMLP(Sequential):
    """can_bus (18) -> (D): two linear layers with ReLU (keys 0 and 2) and a norm (key `norm`), all in float32."""

    def __init__(self, dims: int):
        # float32 whatever the network's type: positions of hundreds of metres lose their decimals in float16.
        super().__init__(
            Linear(18, dims // 2, dtype="float32"), F.relu, Linear(dims // 2, dims, dtype="float32"), F.relu
        )
        self.norm = LayerNorm(dims, dtype="float32")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class PerceptionTransformer(Module):
    """The BEV encoder and the track decoder under one key, with the embeddings that the encoder's inputs need.

    Args:
        config: sizes.
        decoder: the module under the key `decoder`, used by the caller.
    """

    def __init__(self, config: UniADConfig, decoder: Module):
        super().__init__()
        self.encoder = BEVFormerEncoder(config)
        self.decoder = decoder
        self.level_embeds = Parameter((config.fpn_num_outs, config.embed_dims))
        self.cams_embeds = Parameter((config.num_cams, config.embed_dims))
        self.can_bus_mlp = CanBusMLP(config.embed_dims)
        self.config = config

    def get_bev_features(
        self,
        mlvl_feats: Sequence[Tensor],
        bev_queries: Tensor,
        bev_pos: Tensor,
        can_bus: Tensor,
        lidar2img: Tensor,
        shift: Tensor,
        rotation: Tensor,
        prev_bev: Tensor,
        has_prev: Tensor,
    ) -> Tensor:
        """The BEV map (B,D) of this frame, network type.

        Args:
            mlvl_feats: the pyramid's levels (6,D,h,w).
            bev_queries, bev_pos: (B,D).
            can_bus (18), lidar2img (6,4,4), shift (2), rotation (2,3), has_prev int32 (1): the engine's inputs of
                the same names (docs/design.md).
            prev_bev: (B,D), the last frame's result; ignored where has_prev is 0.
        """
        rotated = rotate_nearest(prev_bev, rotation, (self.config.bev_h, self.config.bev_w))
        tap("bev.prev_bev_rotated", rotated)
        query = bev_queries + F.cast(self.can_bus_mlp(can_bus), bev_queries.dtype)  # (B,D)
        tap("bev.query_plus_canbus", query)
        spatial_shapes = [(f.shape[2], f.shape[3]) for f in mlvl_feats]
        features = map_layout.flatten_maps(mlvl_feats, self.cams_embeds.value, self.level_embeds.value)  # (6,S,D)
        return self.encoder(
            query, bev_pos, features, spatial_shapes, lidar2img, shift, rotated, F.cast(has_prev, "bool")
        )
