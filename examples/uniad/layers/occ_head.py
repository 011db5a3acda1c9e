"""Occupancy head (occ_head.*): future occupancy of every vehicle, cell by cell.

Source: Hu et al., Planning-oriented Autonomous Driving (CVPR 2023), 2.3; UniAD dense_heads/occ_head.py and
occ_head_plugin/. Instances are fixed rows with a mask: what the original leaves out, is masked here.
"""

import numpy as np

from config import UniADConfig
from layers.basic import FFN, BatchNorm2d, Conv2d, LayerNorm, Linear, MmcvMultiheadAttention
from trtllm import Module, ModuleList, Sequential, Tensor, map_layout, tap
from trtllm import functional as F
from trtllm import vision as V

# Centre of the outermost cell of a 200 x 200 map of +-51.2 m. The original divides by it at every map size.
SLICER_EXTENT = 50.944


class MLP(Module):
    """Linear layers with ReLU between them, key `layers.N`: (…,D) -> (…,D)."""

    def __init__(self, dims: int, num_layers: int):
        super().__init__()
        self.layers = ModuleList([Linear(dims, dims) for _ in range(num_layers)])

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


class ConvModule(Module):
    """3x3 convolution without bias, batch norm, ReLU, under mmcv's keys conv and bn."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class SimpleConv2d(Module):
    """num_conv - 1 ConvModules, then a 1x1 convolution: (1,D,O,O) -> same."""

    def __init__(self, channels: int, num_conv: int):
        super().__init__()
        self.conv_layers = Sequential(
            *[ConvModule(channels) for _ in range(num_conv - 1)], Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_layers(x)


class BottleneckLayers(Module):
    """The main path of Bottleneck, under its ordered key names."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv_down_project = Conv2d(channels, half, 1, bias=False)
        self.abn_down_project = Sequential(BatchNorm2d(half), F.relu)
        self.conv = Conv2d(half, half, 3, stride=2, padding=1, bias=False)
        self.abn = Sequential(BatchNorm2d(half), F.relu)
        self.conv_up_project = Conv2d(half, channels, 1, bias=False)
        self.abn_up_project = Sequential(BatchNorm2d(channels), F.relu)

    def forward(self, x: Tensor) -> Tensor:
        x = self.abn_down_project(self.conv_down_project(x))
        x = self.abn(self.conv(x))  # (1,D/2,H/2,W/2)
        return self.abn_up_project(self.conv_up_project(x))


class BottleneckProjection(Module):
    """The skip path of Bottleneck: pooled to half size, 1x1 convolution, batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_skip_proj = Conv2d(channels, channels, 1, bias=False)
        self.bn_skip_proj = BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        x = V.max_pool2d(x, 2, 2, 0)  # (1,D,H/2,W/2)
        return self.bn_skip_proj(self.conv_skip_proj(x))


class Bottleneck(Module):
    """Residual block at half resolution: (1,D,H,W) -> (1,D,H/2,W/2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = BottleneckLayers(channels)
        self.projection = BottleneckProjection(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.projection(x)


class UpsamplingAdd(Module):
    """Double the resolution, 1x1 convolution and batch norm, add the skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.upsample_layer = Sequential(
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            Conv2d(channels, channels, 1, bias=False),
            BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.upsample_layer(x) + skip


class DecoderBlock(Module):
    """Double the resolution with a bottleneck of convolutions and add the resized skip, keys conv.N and up."""

    def __init__(self, channels: int, with_relu: bool):
        super().__init__()
        half = channels // 2
        self.conv = Sequential(
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
            Conv2d(channels, half, 3, padding=1, bias=False),
            BatchNorm2d(half),
            F.relu,
            Conv2d(half, channels, 1, bias=False),
            BatchNorm2d(channels),
        )
        self.up = Conv2d(channels, channels, 1)
        self.with_relu = with_relu

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv(x)  # (5,D,2H,2W)
        x = x + F.interpolate(self.up(skip), size=x.shape[2:])
        return F.relu(x) if self.with_relu else x


class DenseDecoder(Module):
    """Two DecoderBlocks, quarter resolution to full: (5,D,O/4,O/4) -> (5,D,O,O)."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = ModuleList([DecoderBlock(channels, True), DecoderBlock(channels, False)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y, x)
        return y


class OccTransformerLayer(Module):
    """Pixels (P,D) attend to themselves, then to instances (A,D); `blocked` (P,A) bool."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.attentions = ModuleList([MmcvMultiheadAttention(d, config.num_heads) for _ in range(2)])
        self.ffns = ModuleList([FFN(d, config.occ_feedforward_channels)])
        self.norms = ModuleList([LayerNorm(d) for _ in range(3)])

    def forward(self, state: Tensor, instances: Tensor, blocked: Tensor) -> Tensor:
        state = self.norms[0](self.attentions[0](state, state, state))
        state = self.norms[1](self.attentions[1](state, instances, instances, blocked=F.unsqueeze(blocked, 0)))
        return self.norms[2](state + self.ffns[0](state))


class OccTransformerDecoder(Module):
    """Holder of the layers' key; the original's post_norm is never applied."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.layers = ModuleList([OccTransformerLayer(config) for _ in range(config.occ_num_blocks)])


class OccHead(Module):
    """Occupancy now and at four half-second steps.

    forward takes bev_embed (B,D) and, for A instance rows, traj_query (A,6,D) of the last motion layer, track_query
    and track_query_pos (A,D), track_scores float32 (A) and vehicle bool (A): the rows that count. It returns
    occ_seg int32 (5,O,O), 1 where any vehicle is likelier than occ_test_seg_thresh, and occ_ins int32 (5,O,O), the
    likeliest instance there, ids from 1 without gaps in row order.
    """

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.config = config
        d, blocks = config.embed_dims, config.occ_num_blocks
        self.bev_light_proj = SimpleConv2d(d, config.occ_bev_proj_nlayers)
        self.base_downscale = Sequential(Bottleneck(d), Bottleneck(d))
        self.transformer_decoder = OccTransformerDecoder(config)
        self.temporal_mlps = ModuleList([MLP(d, 2) for _ in range(blocks)])
        self.downscale_convs = ModuleList([Bottleneck(d) for _ in range(blocks)])
        self.upsample_adds = ModuleList([UpsamplingAdd(d) for _ in range(blocks)])
        self.dense_decoder = DenseDecoder(d)
        self.mode_fuser = Sequential(Linear(d, d), LayerNorm(d), F.relu)
        self.multi_query_fuser = Sequential(Linear(3 * d, 2 * d), LayerNorm(2 * d), F.relu, Linear(2 * d, d))
        self.query_to_occ_feat = MLP(d, 3)
        self.temporal_mlp_for_mask = MLP(d, 3)

    def forward(
        self,
        bev_embed: Tensor,
        traj_query: Tensor,
        track_query: Tensor,
        track_query_pos: Tensor,
        track_scores: Tensor,
        vehicle: Tensor,
    ) -> tuple[Tensor, Tensor]:
        fused = self.mode_fuser(F.view(traj_query, (-1, traj_query.shape[-1])))  # (A6,D)
        modes = F.max(F.view(fused, traj_query.shape), 1)  # (A,D)
        query = self.multi_query_fuser(F.concat([modes, track_query, track_query_pos], -1))  # (A,D)
        tap("occ.ins_query", query)
        states, mask_query = self._future_states(self._base_state(bev_embed), query, vehicle)
        tap("occ.future_states_in", states)
        states = self.dense_decoder(states)  # (5,D,O,O)
        query = self.query_to_occ_feat(mask_query)  # (5,A,D)
        scores = F.where(vehicle, track_scores, 0.0)
        instance = likeliest_instance(query, states, scores, self.config.occ_test_seg_thresh)
        return _numbered(instance, vehicle.shape[0])

    def _base_state(self, bev_embed: Tensor) -> Tensor:
        """(B,D) -> (1,D,O/4,O/4): cut to the occupancy range, project, halve twice."""
        c = self.config
        state = map_layout.sample_map(bev_embed, (c.bev_h, c.bev_w), slicer_grid(c))  # (1,D,O,O)
        tap("occ.bev_sampled", state)
        state = self.base_downscale(self.bev_light_proj(state))  # (1,D,O/4,O/4)
        tap("occ.base_state", state)
        return state

    def _future_states(self, state: Tensor, query: Tensor, vehicle: Tensor) -> tuple[Tensor, Tensor]:
        """State (1,D,S,S) and query (A,D) -> states (5,D,S,S) and mask queries (5,A,D)."""
        states, mask_queries = [], []
        for i in range(self.config.occ_num_blocks):
            current = self.downscale_convs[i](state)  # (1,D,S/2,S/2)
            instances = self.temporal_mlps[i](query)  # (A,D)
            mask_query = self.temporal_mlp_for_mask(instances)
            pixels = F.squeeze(map_layout.flatten_maps([current]), 0)  # (P,D)
            mask_logits = F.matmul(pixels, mask_query, transb=True)  # (P,A)
            tap(f"occ.mask_logits.{i}", F.transpose(mask_logits, 0, 1))
            blocked = self._blocked(mask_logits, vehicle)  # (P,A)
            pixels = self.transformer_decoder.layers[i](pixels, instances, blocked)  # (P,D)
            current = map_layout.sample_map(pixels, current.shape[2:])  # (1,D,S/2,S/2)
            state = self.upsample_adds[i](current, state)  # (1,D,S,S)
            states.append(state)
            mask_queries.append(mask_query)
        return F.concat(states, 0), F.stack(mask_queries, 0)

    def _blocked(self, mask_logits: Tensor, vehicle: Tensor) -> Tensor:
        """Pixel x instance mask (P,A): hidden where unlikely; a pixel that would see nothing sees all vehicles."""
        unlikely = F.sigmoid(F.cast(mask_logits, "float32")) < self.config.occ_attn_mask_thresh
        present = F.unsqueeze(vehicle, 0)  # (1,A)
        absent = F.not_op(present)
        likely = F.op_and(F.not_op(unlikely), present)
        sees_any = F.max(F.cast(likely, "int32"), 1, keepdim=True) > 0  # (P,1)
        return F.op_or(absent, F.op_and(unlikely, sees_any))


def likeliest_instance(query: Tensor, states: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Which row is likeliest at each cell.

    Args:
        query: (T,A,D) of A rows at T time steps.
        states: (T,D,H,W).
        scores: float32 (A), 0 for rows that don't count.

    Returns:
        int32 (T,H,W): the row of the largest sigmoid(query . state) * score, counted from 1; 0 where that is at most
        `threshold`. Scores are compared in float32.
    """
    custom = V.offered("occupancy", query, states, scores, threshold=threshold)
    if custom is not None:
        return custom
    t, d, height, width = states.shape
    logits = F.matmul(query, F.view(states, (t, d, height * width)))  # (T,A,HW)
    tap("occ.ins_occ_logits", logits)
    likely = F.sigmoid(F.cast(logits, "float32")) * F.view(scores, (1, -1, 1))
    best, index = F.topk(likely, 1, 1)  # (T,1,HW)
    return F.view(F.where(best > threshold, index + 1, 0), (t, height, width))


def _numbered(instance: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Instances of `rows` rows, int32 (5,O,O), counted from 1 -> occ_seg and occ_ins (5,O,O), ids without gaps."""
    cells = int(np.prod(instance.shape))
    flat = F.flatten(instance)
    # TensorRT takes no more indices than the data has elements: as long as the longer one, then cut.
    nothing = F.constant(np.zeros(max(rows + 1, cells), np.int32))
    present = F.scatter(nothing, 0, flat, F.constant(np.ones(cells, np.int32)))
    present = F.narrow(present, 0, 0, rows + 1)  # (A+1), 1 where an id, or the free cell, occurs
    new_id = F.cumsum(present, 0) - 1
    return F.cast(instance > 0, "int32"), F.view(F.index_select(new_id, 0, flat), instance.shape)


def slicer_grid(config: UniADConfig) -> np.ndarray:
    """Where the occupancy cells lie in the BEV map: (1,O,O,2) float32, x first, for align_corners=True."""
    lower, upper, cell = config.occ_grid
    line = np.arange(lower + cell / 2, upper, cell).astype(np.float32) / np.float32(SLICER_EXTENT)
    x, y = np.meshgrid(line, line)
    return np.stack([x, y], -1)[None]
