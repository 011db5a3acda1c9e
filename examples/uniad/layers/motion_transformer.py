"""The layers that refine each agent's six candidate futures: agents, map and goal are looked at in every one.

Source: OpenDriveLab/UniAD, projects/mmdet3d_plugin/uniad/dense_heads/motion_head_plugin/modules.py and
projects/mmdet3d_plugin/models/utils/functional.py; "Planning-oriented Autonomous Driving" (Hu et al. 2023), 3.2.

The modes of all agents are rows: R = N*P, agent by agent. With tensors (N,P,D) TensorRT 8.6 gave wrong results
(docs/fidelity.md); what it computes rightly elsewhere works on rows.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from config import UniADConfig
from layers.basic import TransformerDecoderLayer, TransformerEncoderLayer, mlp
from layers.deformable_attention import joint_values
from layers.motion_deform_attn import MotionTransformerAttentionLayer
from trtllm import Module, ModuleList, Tensor, net_dtype, tap
from trtllm import functional as F
from trtllm import vision as V

UPSTREAM_PI = 3.1415953  # not pi: the released weights were trained with the original's digits


def pos2posemb2d(pos: Tensor, embed_dims: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of positions: float32 (…,2) x, y in fractions -> float32 (…,embed_dims), y's half first."""
    half = embed_dims // 2
    frequency = np.float32(temperature) ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    # Sine and cosine alternate. A cosine is a sine a quarter turn on: TensorRT 8.6 compiles around each layer of sines
    # or cosines, so that there should be few.
    quarter_turns = np.tile(np.array([0, math.pi / 2], np.float32), half // 2)
    x, y = F.split(pos * (2 * math.pi), 1, -1)  # (…,1)
    angle = F.stack([y, x], -2) / F.constant(np.repeat(frequency, 2)) + F.constant(quarter_turns)  # (…,2,half)
    return F.view(F.sin(angle), (*pos.shape[:-1], embed_dims), False)


class Rotation(NamedTuple):
    """Counter-clockwise turns of points, float32 (R,1) each."""

    cosine: Tensor
    sine: Tensor

    def turn(self, points: Tensor, back: bool = False) -> Tensor:
        """Float32 points (R,2), turned; `back`: clockwise."""
        # Element by element: a matrix product may run in TF32, which metres can't take.
        x, y = F.split(points, 1, -1)  # (R,1)
        c, s = self.cosine, -self.sine if back else self.sine
        return F.concat([x * c - y * s, x * s + y * c], -1)


def rotation(angle: Tensor) -> Rotation:
    """Of angles (R), float32, radians."""
    return Rotation(*(F.unsqueeze(f(angle), 1) for f in (F.cos, F.sin)))


class SharedMemoryDecoderLayer(TransformerDecoderLayer):
    """A decoder layer whose groups of queries all read one memory: tgt (N*size,D), memory (K,D) -> (N*size,D).

    Self-attention stays within a group; cross-attention takes all queries at once, so that the memory is projected
    once and the products are few and large. Between the two stands vision.after: in one region, TensorRT 8.6 gives
    the cross-attention's rows in another order.
    """

    def forward(self, tgt: Tensor, memory: Tensor, memory_blocked: Tensor | None = None, size: int = 1) -> Tensor:
        x = V.after(self.norm1(tgt + self.self_attn.within(tgt, size)))
        x = self.norm2(x + self.multihead_attn(x, memory, memory, memory_blocked))
        return V.after(self.norm3(x + self.linear2(F.relu(self.linear1(x)))))


class Interaction(Module):
    """Queries (N*size,D) and the agents or map elements (K,D) they see. Key `interaction_transformer`."""

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.interaction_transformer = SharedMemoryDecoderLayer(embed_dims, num_heads, embed_dims * 2)

    def forward(self, query: Tensor, memory: Tensor, size: int, blocked: Tensor | None = None) -> Tensor:
        return self.interaction_transformer(query, memory, blocked, size)


class IntentionInteraction(Module):
    """The modes of one group of anchors among themselves: (G*size,D), the same. Key `interaction_transformer`."""

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.interaction_transformer = TransformerEncoderLayer(embed_dims, num_heads, embed_dims * 2)

    def forward(self, query: Tensor, size: int) -> Tensor:
        return self.interaction_transformer(query, size)


class GoalEmbedding(NamedTuple):
    """One goal seen three ways, each (R,D): the agent's frame, the ego's frame, and the ego's axes at the agent."""

    agent: Tensor
    ego: Tensor
    offset: Tensor


class MotionTransformerDecoder(Module):
    """The motion decoder: every layer predicts whole trajectories, whose ends are the next layer's goals."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d, layers = config.embed_dims, range(config.motion_num_layers)
        self.intention_interaction_layers = IntentionInteraction(d, config.num_heads)
        self.track_agent_interaction_layers = ModuleList([Interaction(d, config.num_heads) for _ in layers])
        self.map_interaction_layers = ModuleList([Interaction(d, config.num_heads) for _ in layers])
        self.bev_interaction_layers = ModuleList([MotionTransformerAttentionLayer(config) for _ in layers])
        self.static_dynamic_fuser = mlp(2 * d, 2 * d, d)
        self.dynamic_embed_fuser = mlp(3 * d, 2 * d, d)
        self.in_query_fuser = mlp(2 * d, 2 * d, d)
        self.out_query_fuser = mlp(4 * d, 2 * d, d)
        self.num_layers, self.predict_steps = config.motion_num_layers, config.predict_steps
        self.num_heads, self.bev_shape = config.num_heads, (config.bev_h, config.bev_w)

    def forward(
        self,
        track_query: Tensor,
        track_query_pos: Tensor,
        valid: Tensor,
        map_memory: Tensor,
        bev_embed: Tensor,
        owner: Tensor,
        centre: Tensor,
        to_ego_axes: Rotation,
        ego_goal: Tensor,
        embedding: GoalEmbedding,
        learnable_embed: Tensor,
        embed_goals: Callable[[Tensor, Tensor, Tensor], GoalEmbedding],
        traj_reg_branches: Iterable[Module],
    ) -> tuple[Tensor, Tensor]:
        """Refine the R modes of N agents.

        Args:
            track_query, track_query_pos: (N,D).
            valid: bool (N); other agents are attended to by none.
            map_memory: (K,D), map queries with their positions.
            bev_embed: (B,D).
            owner: int32 (R), the agent of each row.
            centre: float32 (R,2), x, y of the agents' boxes, metres.
            to_ego_axes: from the anchors' frames to the ego's axes, for each row.
            ego_goal: float32 (R,2), the anchors' last points in the ego's frame, metres.
            embedding: of that goal; its agent part after intention_interaction_layers.
            learnable_embed: (R,D), the latent anchors.
            embed_goals: goals (R,2) in the agent's frame, the ego's frame, and the ego's axes at the agent -> D.
            traj_reg_branches: one for each layer, (R,D) -> (R,steps*5).

        Returns:
            The last layer's queries (R,D), and its raw trajectories, float32 (R,steps,5): x, y from the agent in the
            ego's axes, metres, then three values before their activation.
        """
        (n, _), (rows, d) = track_query.shape, learnable_embed.shape
        modes = rows // n
        query_pos = F.index_select(track_query_pos, 0, owner)  # (R,D)
        agent_memory = track_query + track_query_pos  # (N,D); the positions are in the values too
        agent_embed = F.index_select(agent_memory, 0, owner)  # (R,D)
        blocked = F.view(F.not_op(valid), (1, 1, n))
        static_intention = embedding.agent + embedding.offset + learnable_embed
        query_embed = F.expand(F.constant(np.zeros((1, d)), net_dtype()), (rows, d))
        projections = [layer.attentions[0].value_proj for layer in self.bev_interaction_layers]
        features = F.unsqueeze(bev_embed, 0)  # (1,B,D)
        joints = joint_values("deformable_attention", projections, features, self.num_heads, [self.bev_shape])
        for layer, traj_reg_branch in enumerate(traj_reg_branches):
            dynamic = self.dynamic_embed_fuser(F.concat([embedding.agent, embedding.offset, embedding.ego], -1))
            intention = self.static_dynamic_fuser(F.concat([static_intention, dynamic], -1))
            query_embed = self.in_query_fuser(F.concat([query_embed, intention], -1))

            placed = query_embed + query_pos
            of_agents = self.track_agent_interaction_layers[layer](placed, agent_memory, modes, blocked)
            of_map = self.map_interaction_layers[layer](placed, map_memory, modes)
            of_bev = self.bev_interaction_layers[layer](query_embed, query_pos, bev_embed, ego_goal, joints[layer])
            query_embed = self.out_query_fuser(F.concat([of_agents, of_map, of_bev, agent_embed], -1))

            # Metres stay in float32: float16 would round a point at 40 m to 3 cm, and the sum over steps more.
            steps = F.cast(F.view(traj_reg_branch(query_embed), (rows, self.predict_steps, 5)), "float32")
            moves, rest = F.split(steps, [2, 3], -1)
            path = F.cumsum(moves, 1)  # (R,steps,2)
            trajectory = F.concat([path, rest], -1)  # (R,steps,5)
            if layer + 1 < self.num_layers:  # the ends of these trajectories are the next layer's goals
                offset_goal = F.select(path, 1, self.predict_steps - 1)  # (R,2)
                ego_goal = offset_goal + centre
                embedding = embed_goals(to_ego_axes.turn(offset_goal, back=True), ego_goal, offset_goal)

            tap(f"motion.layer{layer}.track_agent", of_agents)
            tap(f"motion.layer{layer}.map", of_map)
            tap(f"motion.layer{layer}.bev", of_bev)
            tap(f"motion.traj_query.{layer}", query_embed)
            tap(f"motion.former.trajectory.{layer}", trajectory)
        return query_embed, trajectory
