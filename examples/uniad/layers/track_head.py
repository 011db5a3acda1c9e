"""The track head, key pts_bbox_head: BEV features from the cameras, and boxes from the track queries.

One branch per decoder layer for classes, boxes and past trajectories, as in UniAD's
uniad/dense_heads/track_head.py (BEVFormerTrackHead). No batch dimension.
"""

import dataclasses
from collections.abc import Sequence

from config import UniADConfig
from layers.basic import Embedding, metres_from_range, mlp
from layers.bev_encoder import LearnedPositionalEncoding, PerceptionTransformer
from layers.track_decoder import DetectionTransformerDecoder
from trtllm import Module, ModuleList, Tensor, default_net, tap
from trtllm import functional as F
from trtllm import vision as V

CODE_SIZE = 10  # cx, cy, log w, log l, cz, log h, sin yaw, cos yaw, vx, vy


@dataclasses.dataclass(frozen=True)
class Detections:
    """The last decoder layer's answer for each of the N queries."""

    cls_scores: Tensor  # float32 (N,classes), logits
    boxes: Tensor  # float32 (N,10), the box code above: centre in metres, sizes as logarithms
    embedding: Tensor  # (N,D), network type
    last_ref_points: Tensor  # float32 (N,3), logits


class BEVFormerTrackHead(Module):
    """See the file's head."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d, layers = config.embed_dims, config.decoder_num_layers
        steps = config.past_steps + config.fut_steps
        self.transformer = PerceptionTransformer(config, DetectionTransformerDecoder(config))
        self.bev_embedding = Embedding(config.bev_h * config.bev_w, d)
        self.positional_encoding = LearnedPositionalEncoding(d // 2, config.bev_h, config.bev_w)
        self.cls_branches = ModuleList([mlp(d, d, d, config.num_classes, norm=True) for _ in range(layers)])
        self.reg_branches = ModuleList([mlp(d, d, d, CODE_SIZE) for _ in range(layers)])
        self.past_traj_reg_branches = ModuleList([mlp(d, d, d, steps * 2) for _ in range(layers)])
        self.config = config

    def get_bev_features(
        self,
        mlvl_feats: Sequence[Tensor],
        can_bus: Tensor,
        lidar2img: Tensor,
        shift: Tensor,
        rotation: Tensor,
        prev_bev: Tensor,
        has_prev: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The BEV map and its position encoding, both (B,D); arguments as PerceptionTransformer.get_bev_features."""
        bev_pos = self.positional_encoding()
        bev_embed = self.transformer.get_bev_features(
            mlvl_feats,
            self.bev_embedding.weight.value,
            bev_pos,
            can_bus,
            lidar2img,
            shift,
            rotation,
            prev_bev,
            has_prev,
        )
        return bev_embed, bev_pos

    def get_detections(self, bev_embed: Tensor, query: Tensor, ref_pts: Tensor, empty: Tensor) -> Detections:
        """Decode all queries of the frame.

        Args:
            bev_embed: (B,D).
            query: (N,2D): position half first, then content.
            ref_pts: float32 (N,3), logits of the reference points.
            empty: bool (N), slots without a track; nothing attends to them.
        """
        query_pos, content = F.chunk(query, 2, 1)
        states, codes, references = self.transformer.decoder(
            content, query_pos, bev_embed, F.sigmoid(ref_pts), list(self.reg_branches), empty
        )
        if default_net().taps is not None:  # intermediate layers' classes and past trajectories serve nothing else
            self._tap_layers(states, codes, references)
        last_ref_points = V.inverse_sigmoid(references[-1])
        tap("track.last_ref_points", last_ref_points)
        # Scores are compared with thresholds: float32 from here on.
        cls_scores = F.cast(self.cls_branches[-1](states[-1]), "float32")
        return Detections(cls_scores, self._boxes(codes[-1], references[-1]), states[-1], last_ref_points)

    def _boxes(self, code: Tensor, reference: Tensor) -> Tensor:
        """Regression output (N,10) with its centre replaced by the refined reference point (N,3) in metres."""
        centre = metres_from_range(reference, self.config.pc_range)
        return F.concat([
            F.narrow(centre, 1, 0, 2), F.narrow(code, 1, 2, 2), F.narrow(centre, 1, 2, 1), F.narrow(code, 1, 5, 5)
        ], 1)  # fmt: skip

    def _tap_layers(self, states: list[Tensor], codes: list[Tensor], references: list[Tensor]) -> None:
        """Record what the original records of every layer, layer first; (layers,N,…)."""
        n, steps = states[0].shape[0], self.config.past_steps + self.config.fut_steps
        past = [F.view(branch(x), (n, steps, 2)) for branch, x in zip(self.past_traj_reg_branches, states)]
        tap("track.query_feats", F.stack(states))
        tap("track.inter_references", F.stack(references))
        tap("track.all_cls_scores", F.stack([branch(x) for branch, x in zip(self.cls_branches, states)]))
        tap("track.all_bbox_preds", F.stack([self._boxes(c, r) for c, r in zip(codes, references)]))
        tap("track.all_past_traj_preds", F.stack(past))
