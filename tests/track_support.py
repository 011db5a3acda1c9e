"""Recorded tracks and detections of the tiny frames, laid into fixed slots as the graph takes them."""

import dataclasses
import functools

import numpy as np
from network_support import const, tiny_weights
from support import golden

from config import UniADConfig, load_config
from layers.basic import Embedding, Linear
from layers.memory_bank import MemoryBank
from layers.query_interaction import QueryInteractionModule
from layers.track_head import Detections
from layers.track_life_cycle import EgoMotion, FrameQueries, TrackResult, Tracks, frame_queries, track_frame
from trtllm import Module

Arrays = dict[str, np.ndarray]


class TopLevel(Module):
    """The parameters that tracking has outside of pts_bbox_head, under their checkpoint keys."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.query_embedding = Embedding(config.num_fresh, 2 * d, dtype="float32")
        self.reference_points = Linear(d, 3, dtype="float32")
        self.memory_bank = MemoryBank(config)
        self.query_interact = QueryInteractionModule(config)
        self.config = config

    def queries(self, tracks: Tracks, has_prev: int, ego: EgoMotion) -> FrameQueries:
        flag = const(np.array([has_prev]))
        return frame_queries(tracks, flag, ego, self.query_embedding, self.reference_points, self.config)

    def track(self, queries: FrameQueries, detections: Detections, max_obj_id: int) -> TrackResult:
        first_id = const(np.array([max_obj_id]))
        return track_frame(queries, detections, first_id, self.memory_bank, self.query_interact, self.config)


@functools.cache
def tiny_config() -> UniADConfig:
    """The tiny model with few enough slots to keep the tests quick; the recorded sequence needs 85."""
    return load_config("tiny_e2e").replace(max_tracks=96)


@functools.cache
def tiny_top_level() -> TopLevel:
    module = TopLevel(tiny_config())
    keys = [key for key, _ in module.named_parameters()]
    prefixes = sorted({key.split(".")[0] + "." for key in keys})
    module.load({prefix + key: array for prefix in prefixes for key, array in tiny_weights(prefix).items()})
    return module


@functools.cache
def tiny_frame(index: int) -> Arrays:
    return golden("tiny", f"frame_{index}.npz")


def fill_rows(array: np.ndarray, rows: int, fill: float | None = None, seed: int = 0) -> np.ndarray:
    """`array` with rows appended up to `rows`: of `fill`, or of noise that nothing may depend on."""
    shape = (rows - len(array), *array.shape[1:])
    extra = np.full(shape, fill) if fill is not None else np.random.default_rng(seed).standard_normal(shape) * 9
    return np.concatenate([array, extra.astype(array.dtype)])


def carried_arrays(frame: Arrays, slots: int, seed: int = 0) -> Arrays:
    """What a recorded frame carries on, as Tracks' fields; noise in the empty slots."""
    arrays = {field.name: frame[f"carried.{field.name}"] for field in dataclasses.fields(Tracks)}
    for name in ("mem_padding_mask", "save_period"):
        arrays[name] = arrays[name].astype(np.int32)
    return {name: fill_rows(a, slots, -1 if name == "obj_idxes" else None, seed) for name, a in arrays.items()}


def no_tracks(config: UniADConfig) -> Arrays:
    """Tracks' fields before the first frame: zeros, as the state table of docs/design.md says."""
    t, d, m = config.max_tracks, config.embed_dims, config.memory_bank_len
    shapes = {"query": (t, 2 * d), "ref_pts": (t, 3), "pred_boxes": (t, 10), "mem_bank": (t, m, d)}
    ints = {"obj_idxes": (t,), "disappear_time": (t,), "mem_padding_mask": (t, m), "save_period": (t,)}
    floats = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return floats | {name: np.zeros(shape, np.int32) for name, shape in ints.items()}


def as_tracks(arrays: Arrays) -> Tracks:
    return Tracks(**{name: const(array) for name, array in arrays.items()})


def ego_motion(last: Arrays | None, frame: Arrays) -> EgoMotion:
    """From the recorded poses; no motion where there is no last frame."""
    last = frame if last is None else last
    arrays = {
        "l2g_r_prev": last["in.l2g_r_mat"],
        "l2g_t_prev": last["in.l2g_t"],
        "l2g_t": frame["in.l2g_t"],
        "l2g_r_inv": np.linalg.inv(frame["in.l2g_r_mat"]),
        "time_delta": np.array([frame["in.timestamp"] - last["in.timestamp"]], np.float32),
    }
    return EgoMotion(**{name: const(array) for name, array in arrays.items()})
