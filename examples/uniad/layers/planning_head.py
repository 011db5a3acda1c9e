"""Planning head (planning_head.*): the ego's way for the next three seconds, before collision optimisation.

Source: Hu et al., Planning-oriented Autonomous Driving (CVPR 2023), 2.4; UniAD dense_heads/planning_head.py.
"""

from config import UniADConfig
from layers.basic import Conv2d, Embedding, LayerNorm, Linear, TransformerDecoderLayer, mlp
from trtllm import Module, ModuleList, Sequential, Tensor, map_layout, tap
from trtllm import functional as F

NUM_LAYERS = 3
NUM_ADAPTERS = 3


class PlanDecoder(Module):
    """Holder of the key attn_module.layers; no norm after the last layer."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.layers = ModuleList([TransformerDecoderLayer(d, config.num_heads, 2 * d) for _ in range(NUM_LAYERS)])

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        for layer in self.layers:
            query = layer(query, memory)
        return query


class PlanningHead(Module):
    """One plan from the ego's queries, the command and the BEV.

    forward takes bev_embed and bev_pos (B,D), sdc_traj_query (6,D) of the last motion layer, sdc_track_query (1,D)
    and command int32 (1); it returns sdc_traj_raw float32 (6,2): x, y in metres at 0.5 s steps, lidar frame.
    """

    def __init__(self, config: UniADConfig):
        super().__init__()
        self.config = config
        d = config.embed_dims
        self.navi_embed = Embedding(3, d)
        self.pos_embed = Embedding(1, d)
        self.mlp_fuser = Sequential(Linear(3 * d, d), LayerNorm(d), F.relu)
        self.bev_adapter = Sequential(
            *[Sequential(Conv2d(d, d // 2, 3, padding=1), F.relu, Conv2d(d // 2, d, 1)) for _ in range(NUM_ADAPTERS)]
        )
        self.attn_module = PlanDecoder(config)
        self.reg_branch = mlp(d, d, config.planning_steps * 2)

    def forward(
        self, bev_embed: Tensor, bev_pos: Tensor, sdc_traj_query: Tensor, sdc_track_query: Tensor, command: Tensor
    ) -> Tensor:
        c = self.config
        modes, d = sdc_traj_query.shape
        track = F.expand(sdc_track_query, (modes, d))
        navi = F.expand(self.navi_embed(command), (modes, d))
        query = self.mlp_fuser(F.concat([sdc_traj_query, track, navi], -1))  # (6,D)
        query = F.max(query, 0, keepdim=True) + self.pos_embed.weight.value  # (1,D)
        tap("plan.query_in", query)
        bev = map_layout.sample_map(bev_embed + bev_pos, (c.bev_h, c.bev_w))  # (1,D,H,W)
        bev = bev + self.bev_adapter(bev)
        bev = F.squeeze(map_layout.flatten_maps([bev]), 0)  # (B,D)
        tap("plan.bev_feat", bev)
        query = self.attn_module(query, bev)
        tap("plan.query_out", query)
        steps = F.view(self.reg_branch(query), (c.planning_steps, 2))
        # Summed in float32: a plan reaches tens of metres, where float16 steps by centimetres.
        return F.cumsum(F.cast(steps, "float32"), 0)
