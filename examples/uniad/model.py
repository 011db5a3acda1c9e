"""UniAD: the whole frame as one static graph, images and carried state in, five tasks' outputs and state out.

Source: Hu et al., Planning-oriented Autonomous Driving (CVPR 2023); UniAD detectors/uniad_e2e.py (forward_test) and
detectors/uniad_track.py. The tables of inputs, outputs and state are in graph_io.py.
"""

from collections.abc import Collection, Mapping

from graph_io import TASKS, output_specs

from config import UniADConfig
from errors import UniADError
from layers.basic import Embedding, Linear
from layers.fpn import FPN
from layers.memory_bank import MemoryBank
from layers.motion_head import MotionHead, MotionOutput
from layers.occ_head import OccHead
from layers.planning_head import PlanningHead
from layers.query_interaction import QueryInteractionModule
from layers.resnet import ResNet, normalise_images
from layers.seg_head import SegHead
from layers.track_head import BEVFormerTrackHead
from layers.track_life_cycle import EgoMotion, TrackResult, Tracks, frame_queries, track_frame
from trtllm import Module, Tensor, tap
from trtllm import functional as F
from trtllm import vision as V
from weight import CModel


class UniAD(Module):
    """The network. Attribute names are the checkpoint's keys.

    `tasks` names the outputs to build (graph_io.TASKS; all by default): what only left-out outputs need is not built.
    The tracks are always computed, because the state needs them.
    """

    def __init__(self, config: UniADConfig, tasks: Collection[str] = TASKS):
        super().__init__()
        d = config.embed_dims
        self.img_backbone = ResNet(config)
        self.img_neck = FPN(config)
        self.pts_bbox_head = BEVFormerTrackHead(config)
        # Reference points are logits of positions: their parameters stay in float32.
        self.query_embedding = Embedding(config.num_fresh, 2 * d, "float32")
        self.reference_points = Linear(d, 3, dtype="float32")
        self.memory_bank = MemoryBank(config)
        self.query_interact = QueryInteractionModule(config)
        self.seg_head = SegHead(config)
        self.motion_head = MotionHead(config)
        self.occ_head = OccHead(config)
        self.planning_head = PlanningHead(config)
        self.config, self.tasks = config, frozenset(tasks)
        self._name = ""

    def forward(
        self, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One frame.

        Args:
            inputs: graph_io.input_specs by name.
            state: graph_io.state_specs by name, as the last frame gave it.

        Returns:
            The outputs of `tasks` (graph_io.output_specs) and the state for the next frame, by name.
        """
        bev_embed, bev_pos = self._bev(inputs, state["prev_bev"])
        tracks = self._track(inputs, state, bev_embed)
        outputs = track_outputs(tracks)
        if self.tasks & {"map", "motion", "occ", "plan"}:
            lane_query, lane_query_pos, memory = self.seg_head(bev_embed)
            latest = tracks.tracks.query
            if "map" in self.tasks:
                outputs |= self.seg_head.map_outputs(memory, V.after(lane_query, latest))
                latest = outputs["map_lane_score"]
        if self.tasks & {"motion", "occ", "plan"}:
            active, sdc = tracks.active, tracks.sdc
            motion = self.motion_head(
                V.after(active.embedding, latest), active.boxes, active.labels, active.valid,
                sdc.embedding, sdc.boxes, sdc.labels, V.after(bev_embed, latest), lane_query, lane_query_pos,
            )  # fmt: skip
            outputs |= {"traj": motion.traj, "traj_scores": motion.traj_scores}
            latest = motion.traj
            if "occ" in self.tasks:
                outputs |= self._occupancy(bev_embed, motion, active.scores)
                latest = outputs["occ_seg"]
            if "plan" in self.tasks:
                sdc_query = V.after(motion.sdc_traj_query, latest)
                outputs["sdc_traj_raw"] = self.planning_head(
                    bev_embed, bev_pos, sdc_query, motion.sdc_track_query, inputs["command"]
                )
                tap("plan.sdc_traj_before_optim", outputs["sdc_traj_raw"])
        new_state = {"prev_bev": bev_embed, **tracks.tracks.to_state(), "max_obj_id": tracks.max_obj_id}
        wanted = [spec.name for spec in output_specs(self.config) if spec.task in self.tasks]
        return {name: outputs[name] for name in wanted}, new_state

    def _bev(self, inputs: Mapping[str, Tensor], prev_bev: Tensor) -> tuple[Tensor, Tensor]:
        """Images to the BEV map and its position encoding, (B,D) each."""
        features = self.img_neck(self.img_backbone(normalise_images(inputs["img"], self.config)))
        bev_embed, bev_pos = self.pts_bbox_head.get_bev_features(
            features, inputs["can_bus"], inputs["lidar2img"], inputs["shift"], inputs["rotation"], prev_bev,
            inputs["has_prev"],
        )  # fmt: skip
        tap("bev.out", bev_embed)
        return bev_embed, bev_pos

    def _track(self, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor], bev_embed: Tensor) -> TrackResult:
        ego = EgoMotion(*(inputs[n] for n in ("l2g_r_prev", "l2g_t_prev", "l2g_t", "l2g_r_inv", "time_delta")))
        carried = Tracks.from_state(state)
        queries = frame_queries(
            carried, inputs["has_prev"], ego, self.query_embedding, self.reference_points, self.config
        )
        detections = self.pts_bbox_head.get_detections(bev_embed, queries.query, queries.ref_pts, queries.empty)
        return track_frame(queries, detections, state["max_obj_id"], self.memory_bank, self.query_interact, self.config)

    def _occupancy(self, bev_embed: Tensor, motion: MotionOutput, track_scores: Tensor) -> dict[str, Tensor]:
        rows = track_scores.shape[0]  # the motion head's rows without the ego's, which is last
        queries = (F.narrow(q, 0, 0, rows) for q in (motion.traj_query, motion.track_query, motion.track_query_pos))
        occ_seg, occ_ins = self.occ_head(bev_embed, *queries, track_scores, motion.is_vehicle)
        return {"occ_seg": occ_seg, "occ_ins": occ_ins}


def track_outputs(tracks: TrackResult) -> dict[str, Tensor]:
    """The tracking outputs by name."""
    active, sdc, detections = tracks.active, tracks.sdc, tracks.detections
    return {
        "boxes_3d": active.boxes,
        "scores_3d": active.scores,
        "labels_3d": active.labels,
        "track_scores": active.scores,
        "track_ids": active.ids,
        "boxes_3d_det": detections.boxes,
        "scores_3d_det": detections.scores,
        "labels_3d_det": detections.labels,
        "det_mask": F.cast(detections.valid, "int32"),
        "sdc_boxes_3d": sdc.boxes,
        "sdc_scores_3d": sdc.scores,
        "num_dropped": tracks.num_dropped,
    }


def load_model(c_model: CModel, config: UniADConfig, tasks: Collection[str] = TASKS) -> UniAD:
    """The network with a c-model's weights. Raises UniADError where they don't fit `config`."""
    network = UniAD(config, tasks)
    try:
        network.load(c_model.tensors)
    except (KeyError, ValueError) as error:
        raise UniADError(f"the c-model does not fit {config.name}: {error.args[0]}") from error
    return network
