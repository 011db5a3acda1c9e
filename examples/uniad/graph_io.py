"""What goes into and comes out of the frame's graph: the tables of docs/design.md as data. Needs numpy only."""

from collections.abc import Collection
from typing import Any, NamedTuple

from config import UniADConfig

TASKS = ("track", "map", "motion", "occ", "plan")


class TensorSpec(NamedTuple):
    """A tensor at the graph's border. `task` says which of TASKS makes an output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    task: str = ""


def num_active(config: UniADConfig) -> int:
    """Rows of the active-track outputs."""
    return min(config.max_tracks, config.max_num)


def input_specs(config: UniADConfig) -> list[TensorSpec]:
    """What the host gives with every frame."""
    cams = config.num_cams
    return [
        TensorSpec("img", "uint8", (cams, config.image_height, config.image_width, 3)),
        TensorSpec("can_bus", "float32", (18,)),
        TensorSpec("lidar2img", "float32", (cams, 4, 4)),
        TensorSpec("shift", "float32", (2,)),
        TensorSpec("rotation", "float32", (2, 3)),
        TensorSpec("l2g_r_prev", "float32", (3, 3)),
        TensorSpec("l2g_t_prev", "float32", (3,)),
        TensorSpec("l2g_t", "float32", (3,)),
        TensorSpec("l2g_r_inv", "float32", (3, 3)),
        TensorSpec("time_delta", "float32", (1,)),
        TensorSpec("command", "int32", (1,)),
        TensorSpec("has_prev", "int32", (1,)),
    ]


def state_specs(config: UniADConfig, dtype: str) -> list[TensorSpec]:
    """What one frame leaves to the next, in as `<name>` and out as `<name>_out`; dtype is the network's type."""
    slots, d, memory = config.max_tracks, config.embed_dims, config.memory_bank_len
    return [
        TensorSpec("prev_bev", dtype, (config.bev_h * config.bev_w, d)),
        TensorSpec("track_query", dtype, (slots, 2 * d)),
        TensorSpec("track_ref_pts", "float32", (slots, 3)),
        TensorSpec("track_pred_boxes", "float32", (slots, 10)),
        TensorSpec("track_obj_idxes", "int32", (slots,)),
        TensorSpec("track_disappear_time", "int32", (slots,)),
        TensorSpec("track_mem_bank", dtype, (slots, memory, d)),
        TensorSpec("track_mem_padding_mask", "int32", (slots, memory)),
        TensorSpec("track_save_period", "int32", (slots,)),
        TensorSpec("max_obj_id", "int32", (1,)),
    ]


def output_specs(config: UniADConfig) -> list[TensorSpec]:
    """What the host reads after every frame."""
    rows, dets = num_active(config), config.max_num
    modes, steps = config.predict_modes, config.predict_steps
    things, canvas = config.num_things_classes, config.canvas_size
    occ = (config.occ_frames, config.occ_size, config.occ_size)
    return [
        TensorSpec("boxes_3d", "float32", (rows, 9), "track"),
        TensorSpec("scores_3d", "float32", (rows,), "track"),
        TensorSpec("labels_3d", "int32", (rows,), "track"),
        TensorSpec("track_scores", "float32", (rows,), "track"),
        TensorSpec("track_ids", "int32", (rows,), "track"),
        TensorSpec("boxes_3d_det", "float32", (dets, 9), "track"),
        TensorSpec("scores_3d_det", "float32", (dets,), "track"),
        TensorSpec("labels_3d_det", "int32", (dets,), "track"),
        TensorSpec("det_mask", "int32", (dets,), "track"),
        TensorSpec("sdc_boxes_3d", "float32", (1, 9), "track"),
        TensorSpec("sdc_scores_3d", "float32", (1,), "track"),
        TensorSpec("num_dropped", "int32", (1,), "track"),
        TensorSpec("traj", "float32", (rows + 1, modes, steps, 5), "motion"),
        TensorSpec("traj_scores", "float32", (rows + 1, modes), "motion"),
        TensorSpec("map_drivable", "int32", canvas, "map"),
        TensorSpec("map_lane", "int32", (things, *canvas), "map"),
        TensorSpec("map_lane_score", "float32", (things, *canvas), "map"),
        TensorSpec("occ_seg", "int32", occ, "occ"),
        TensorSpec("occ_ins", "int32", occ, "occ"),
        TensorSpec("sdc_traj_raw", "float32", (config.planning_steps, 2), "plan"),
    ]


def describe_graph(config: UniADConfig, dtype: str, tasks: Collection[str] = TASKS) -> dict[str, Any]:
    """Inputs, outputs of `tasks` and state pairs of the graph, for an engine's side file."""
    return {
        "inputs": [spec._asdict() for spec in input_specs(config)],
        "outputs": [spec._asdict() for spec in output_specs(config) if spec.task in tasks],
        "state": [{**spec._asdict(), "out": f"{spec.name}_out"} for spec in state_specs(config, dtype)],
    }
