"""The motion head: six candidate futures of every active track and of the ego.

Source: OpenDriveLab/UniAD, projects/mmdet3d_plugin/uniad/dense_heads/motion_head.py.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from config import UniADConfig
from layers.basic import Embedding, mlp, normalise_range
from layers.motion_transformer import UPSTREAM_PI, GoalEmbedding, MotionTransformerDecoder, pos2posemb2d, rotation
from trtllm import Module, ModuleList, Parameter, Tensor, net_dtype, tap
from trtllm import functional as F
from trtllm import vision as V


class MotionOutput(NamedTuple):
    """What the motion head gives. A track rows, then the ego's row; P modes; rows that are not valid mean nothing."""

    traj: Tensor  # float32 (A+1,P,steps,5): x, y from the agent in the ego's axes (m), sigma x, sigma y (m), rho
    traj_scores: Tensor  # float32 (A+1,P), log-probabilities
    traj_query: Tensor  # (A+1,P,D), the last layer's
    track_query: Tensor  # (A+1,D)
    track_query_pos: Tensor  # (A+1,D)
    sdc_traj_query: Tensor  # (P,D), the ego's row of traj_query
    sdc_track_query: Tensor  # (1,D)
    sdc_track_query_pos: Tensor  # (1,D)
    is_vehicle: Tensor  # bool (A), valid tracks with a label in vehicle_id_list


class MotionHead(Module):
    """MotionFormer. `kmeans_anchors` comes beside the checkpoint, all else from it."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d, groups, last = config.embed_dims, len(config.group_id_list), config.motion_num_layers - 1
        self.kmeans_anchors = Parameter((groups, config.predict_modes, config.predict_steps, 2), "float32")
        self.learnable_motion_query_embedding = Embedding(config.predict_modes * groups, d)
        self.motionformer = MotionTransformerDecoder(config)
        self.agent_level_embedding_layer = mlp(d, 2 * d, d)
        self.scene_level_ego_embedding_layer = mlp(d, 2 * d, d)
        self.scene_level_offset_embedding_layer = mlp(d, 2 * d, d)
        self.boxes_query_embedding_layer = mlp(d, 2 * d, d)
        # Only the last layer's scores are an output.
        self.traj_cls_branches = ModuleList([None] * last + [mlp(d, d, d, 1, norm=True)])
        self.traj_reg_branches = ModuleList([mlp(d, d, d, config.predict_steps * 5) for _ in range(last + 1)])
        self.config = config

    def _sines(self, *points: Tensor) -> list[Tensor]:
        """Float32 metres, each (N,…,2) -> their sines and cosines, (N,…,D). All in one layer."""
        position = normalise_range(F.concat(points, 0), self.config.pc_range)
        # Only the sines are narrowed: positions in float16 would lose the high frequencies.
        sines = F.cast(pos2posemb2d(position, self.config.embed_dims), net_dtype())
        return F.split(sines, [p.shape[0] for p in points], 0)

    def embed_goals(self, agent: Tensor, ego: Tensor, offset: Tensor) -> GoalEmbedding:
        """Embed goals, each float32 (R,2) in metres: in the agent's frame, the ego's, the ego's axes at the agent."""
        agent, ego, offset = self._sines(agent, ego, offset)
        return GoalEmbedding(
            self.agent_level_embedding_layer(agent),
            self.scene_level_ego_embedding_layer(ego),
            self.scene_level_offset_embedding_layer(offset),
        )

    def _class_table(self, id_lists: Iterable[tuple[int, ...]]) -> Tensor:
        """Int32 (num_classes): the number of the list that holds each class, 0 where none does."""
        table = np.zeros(self.config.num_classes, np.int32)
        for number, ids in enumerate(id_lists):
            table[list(ids)] = number
        return F.constant(table)

    def forward(
        self,
        track_query: Tensor,
        boxes: Tensor,
        labels: Tensor,
        valid: Tensor,
        sdc_embedding: Tensor,
        sdc_box: Tensor,
        sdc_label: Tensor,
        bev_embed: Tensor,
        lane_query: Tensor,
        lane_query_pos: Tensor,
    ) -> MotionOutput:
        """Predict the futures of A track rows and the ego.

        Args:
            track_query: (A,D).
            boxes: float32 (A,9): x, y, z, w, l, h (m), yaw (rad), vx, vy (m/s) in the ego's frame.
            labels: int32 (A).
            valid: bool (A); the other rows may hold anything.
            sdc_embedding, sdc_box, sdc_label: (1,D), float32 (1,9), int32 (1): the same of the ego query. Its
                anchors are those of its predicted label, as in the original.
            bev_embed: (B,D).
            lane_query, lane_query_pos: (seg_num_query,D).
        """
        tracks = track_query.shape[0]
        # The rows that are no tracks are cleared: even a weight of 0 would pass on their NaN.
        occupied = F.unsqueeze(valid, 1)  # (A,1)
        track_query = F.concat([F.where(occupied, track_query, 0.0), sdc_embedding], 0)  # (A+1,D)
        boxes = F.concat([F.where(occupied, boxes, 0.0), sdc_box], 0)  # (A+1,9)
        labels = F.where(valid, labels, 0)  # (A)
        agent_labels = F.concat([labels, sdc_label], 0)  # (A+1)
        agent_valid = F.concat([valid, F.constant(np.ones(1, bool))], 0)  # (A+1)
        centre = F.narrow(boxes, 1, 0, 2)  # (A+1,2)
        track_query_pos = self.boxes_query_embedding_layer(*self._sines(centre))  # (A+1,D)

        # Of an anchor only its end, the goal, is used. What depends on the group alone is computed per group.
        groups, modes, steps, _ = self.kmeans_anchors.shape
        agents = tracks + 1
        owner = F.constant(np.repeat(np.arange(agents, dtype=np.int32), modes))  # (R), R = (A+1)P rows
        mode = F.constant(np.tile(np.arange(modes, dtype=np.int32), agents))  # (R)
        group = F.index_select(self._class_table(self.config.group_id_list), 0, agent_labels)  # (A+1)
        anchor = F.index_select(group, 0, owner) * modes + mode  # (R), of the G*P
        anchor_goals = F.view(F.select(self.kmeans_anchors.value, 2, steps - 1), (groups * modes, 2))  # (GP,2)
        learnable_embed = F.index_select(self.learnable_motion_query_embedding.weight.value, 0, anchor)  # (R,D)
        to_ego_axes = rotation(F.index_select(F.select(boxes, 1, 6) - UPSTREAM_PI, 0, owner))  # R rows
        centre = F.index_select(centre, 0, owner)  # (R,2)
        offset_goal = to_ego_axes.turn(F.index_select(anchor_goals, 0, anchor))  # (R,2)
        ego_goal = offset_goal + centre
        embedding = self.embed_goals(anchor_goals, ego_goal, offset_goal)  # (GP,D) and twice (R,D)
        agent_embed = embedding.agent
        agent_intention = self.motionformer.intention_interaction_layers(agent_embed, modes)  # (GP,D)
        embedding = embedding._replace(agent=F.index_select(agent_intention, 0, anchor))  # (R,D)
        traj_query, trajectory = self.motionformer(
            track_query,
            track_query_pos,
            agent_valid,
            lane_query + lane_query_pos,
            bev_embed,
            owner,
            centre,
            to_ego_axes,
            ego_goal,
            embedding,
            learnable_embed,
            self.embed_goals,
            self.traj_reg_branches,
        )
        traj_query = V.after(traj_query)  # what reads it is compiled apart from this head
        xy, sigma, rho = F.split(trajectory, [2, 2, 1], -1)
        traj = F.concat([xy, F.exp(sigma), F.tanh(rho)], -1)  # (R,steps,5)
        logits = F.view(F.cast(self.traj_cls_branches[-1](traj_query), "float32"), (agents, modes))  # (A+1,P)

        vehicle_table = self._class_table(((), self.config.vehicle_id_list))
        is_vehicle = F.cast(F.index_select(vehicle_table, 0, labels), "bool")  # (A)

        tap("motion.former.agent_level_embedding.groups", agent_embed)
        tap("motion.former.init_goal", offset_goal)
        tap("motion.former.scene_level_ego_embedding", embedding.ego)
        tap("motion.former.scene_level_offset_embedding", embedding.offset)
        tap("motion.former.learnable_embed", learnable_embed)
        tap("motion.track_query_pos", track_query_pos)
        return MotionOutput(
            traj=F.view(traj, (agents, modes, steps, 5)),
            traj_scores=F.log_softmax(logits, -1),
            traj_query=F.view(traj_query, (agents, modes, -1)),
            track_query=track_query,
            track_query_pos=track_query_pos,
            sdc_traj_query=F.narrow(traj_query, 0, tracks * modes, modes),
            sdc_track_query=sdc_embedding,
            sdc_track_query_pos=F.narrow(track_query_pos, 0, tracks, 1),
            is_vehicle=F.op_and(is_vehicle, valid),
        )
