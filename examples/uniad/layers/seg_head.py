"""Panoptic map head (seg_head.*): lane queries for the motion head, and the map itself.

Source: Hu et al., Planning-oriented Autonomous Driving (CVPR 2023), 2.1 (MapFormer); Panoptic SegFormer (Li et al.
2022); UniAD dense_heads/panseg_head.py. The original's panoptic image and boxes reach no output and are not made.
"""

from config import UniADConfig
from layers.basic import Embedding, Linear, mlp
from layers.seg_mask_head import SegMaskHead
from layers.seg_merge import MASK_THRESH, merge_masks
from layers.seg_transformer import SegTransformer
from trtllm import Module, ModuleList, Tensor, net_dtype, tap
from trtllm import functional as F
from trtllm import vision as V


class SegHead(Module):
    """PansegformerHead. B = BEV cells, D = embed_dims, Q = seg_num_query, G = canvas rows and columns."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d, layers = config.embed_dims, config.seg_decoder_num_layers
        self.config = config
        self.transformer = SegTransformer(config)
        # The learned position gives the reference points, so the table stays in float32.
        self.query_embedding = Embedding(config.seg_num_query, 2 * d, "float32")
        self.stuff_query = Embedding(config.num_stuff_classes, 2 * d)
        # Only the last layer's class scores are used; in float32, for float16 would make ties among them.
        self.cls_branches = ModuleList([None] * (layers - 1) + [Linear(d, config.num_things_classes, dtype="float32")])
        self.reg_branches = ModuleList([mlp(d, d, d, 4) for _ in range(layers)])
        self.things_mask_head = SegMaskHead(config, config.seg_things_mask_layers)
        self.stuff_mask_head = SegMaskHead(config, config.seg_stuff_mask_layers, self_attn=True)

    def forward(self, bev_embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The frame's lane queries: bev_embed (B,D) -> lane_query (Q,D), lane_query_pos (Q,D), memory (B,D)."""
        pos, content = F.chunk(self.query_embedding.weight.value, 2, 1)  # (Q,D) each
        memory, memory_pos, lane_query, boxes = self.transformer(bev_embed, content, pos, self.reg_branches)
        lane_query_pos = F.cast(pos, net_dtype())
        tap("seg.memory", memory)
        tap("seg.memory_pos", memory_pos)
        tap("seg.query", lane_query)
        tap("seg.query_pos", lane_query_pos)
        tap("seg.outputs_coords", F.stack(boxes))  # (layers,Q,4)
        return lane_query, lane_query_pos, memory

    def map_outputs(self, memory: Tensor, lane_query: Tensor) -> dict[str, Tensor]:
        """The map by name: map_drivable int32 (G,G), map_lane int32 (3,G,G), map_lane_score float32 (3,G,G)."""
        config = self.config
        class_logits = self.cls_branches[-1](F.cast(lane_query, "float32"))  # (Q,3)
        tap("seg.outputs_classes.last", class_logits)
        scores, entry = F.topk(F.flatten(F.sigmoid(class_logits)), config.seg_max_num, 0)  # (N)
        row = F.floordiv(entry, config.num_things_classes)
        labels = entry - row * config.num_things_classes
        things, thing_queries = self.things_mask_head(F.index_select(lane_query, 0, row), memory)  # (N,B)
        stuff_query, stuff_pos = F.chunk(V.after(self.stuff_query.weight.value, things), 2, 1)
        stuff, stuff_queries = self.stuff_mask_head(stuff_query, memory, stuff_pos)  # (num_stuff_classes,B)
        tap("seg.things.mask", things)
        tap("seg.stuff.mask", stuff)
        for name, queries in (("things", thing_queries), ("stuff", stuff_queries)):
            for layer, query in enumerate(queries):
                tap(f"seg.{name}.query{layer}", query)
        things, stuff = self.on_canvas(things), self.on_canvas(stuff)  # (N,G,G) (num_stuff_classes,G,G)
        tap("seg.res.score_list", F.concat([things, stuff], 0))
        drivable = F.select(stuff, 0, stuff.shape[0] - 1)  # (G,G)
        canvas = stuff.shape[1:]
        things = F.view(things, (config.seg_max_num, -1))  # (N,GG)
        lane, lane_score = merge_masks(
            things, scores, labels, config.num_things_classes, config.seg_mask_quality_thresh
        )  # (3,GG) each
        return {
            "map_drivable": F.cast(drivable > MASK_THRESH, "int32"),
            "map_lane": F.view(lane, (-1, *canvas)),
            "map_lane_score": F.view(lane_score, (-1, *canvas)),
        }

    def on_canvas(self, masks: Tensor) -> Tensor:
        """Masks float32 (K,B) resized to the canvas: (K,G,G)."""
        config = self.config
        masks = F.view(masks, (1, -1, config.bev_h, config.bev_w))
        if config.canvas_size != (config.bev_h, config.bev_w):
            masks = F.interpolate(masks, config.canvas_size, mode="bilinear")
        return F.squeeze(masks, 0)
