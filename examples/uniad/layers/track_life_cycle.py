"""The life cycle of tracks inside the graph, over fixed slots: birth, sleep, death, selection, and what is carried on.

A frame has N = F + T queries: F fresh ones (detection queries, then the ego query at index num_query) and T slots for
carried tracks, used ones first. The order is the original's, so new ids come out the same. Empty slots have id -1 and
score -1, which keeps them from every threshold and to the end of every sort.

`frame_queries` runs before the decoder, `track_frame` after it. Upstream: uniad/detectors/uniad_track.py
(_forward_single_frame_inference, velo_update, select_active_track_query), uniad/dense_heads/track_head_plugin/
tracker.py (RuntimeTrackerBase) and core/bbox/coders (DETRTrack3DCoder). All arithmetic here is float32 and int32.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from config import UniADConfig
from layers.basic import Embedding, Linear, metres_from_range, normalise_range, range_extent
from layers.memory_bank import MemoryBank
from layers.query_interaction import QueryInteractionModule
from layers.track_head import Detections
from trtllm import Tensor, net_dtype, tap
from trtllm import functional as F
from trtllm import vision as V

NO_TRACK, EGO = -1, -2  # ids of a query that is no track, and of the ego query


@dataclasses.dataclass(frozen=True)
class Tracks:
    """The T slots of carried tracks; the engine's state tensors `track_<field>` (docs/design.md)."""

    query: Tensor  # (T,2D) network type: position half, then content
    ref_pts: Tensor  # float32 (T,3) logits
    pred_boxes: Tensor  # float32 (T,10) box code
    obj_idxes: Tensor  # int32 (T), -1 = empty
    disappear_time: Tensor  # int32 (T)
    mem_bank: Tensor  # (T,M,D) network type
    mem_padding_mask: Tensor  # int32 (T,M), 1 = nothing stored
    save_period: Tensor  # int32 (T)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Tracks":
        """From the engine's state inputs, by name."""
        return cls(**{field.name: state[f"track_{field.name}"] for field in dataclasses.fields(cls)})

    def to_state(self) -> dict[str, Tensor]:
        """The engine's state outputs, by the name of the state (without `_out`)."""
        return {f"track_{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class EgoMotion:
    """From the last frame's lidar to this one's, row vectors; the engine's inputs of the same names, float32. Positions
    are metres from any common origin."""

    l2g_r_prev: Tensor  # (3,3)
    l2g_t_prev: Tensor  # (3)
    l2g_t: Tensor  # (3)
    l2g_r_inv: Tensor  # (3,3)
    time_delta: Tensor  # (1) seconds


@dataclasses.dataclass(frozen=True)
class FrameQueries:
    """What enters the decoder, N rows, and the carried slots it was made of."""

    query: Tensor  # (N,2D)
    ref_pts: Tensor  # float32 (N,3) logits
    empty: Tensor  # bool (N), slots without a track
    tracks: Tracks


@dataclasses.dataclass(frozen=True)
class BoxList:
    """K selected queries. Rows that are not valid hold 0, and -1 as id."""

    boxes: Tensor  # float32 (K,9): x y z w l h yaw vx vy
    scores: Tensor  # float32 (K)
    labels: Tensor  # int32 (K)
    ids: Tensor  # int32 (K)
    embedding: Tensor  # (K,D), the decoder's output, before the memory bank
    valid: Tensor  # bool (K)


@dataclasses.dataclass(frozen=True)
class TrackResult:
    """All that a frame's tracking gives."""

    active: BoxList  # A = min(T, max_num) rows by falling score, valid ones first
    sdc: BoxList  # one row, the ego
    detections: BoxList  # min(N, max_num) rows by falling score; not valid: outside the centre range
    tracks: Tracks  # for the next frame
    max_obj_id: Tensor  # int32 (1)
    num_dropped: Tensor  # int32 (1), live tracks that found no slot


def _rows(mask: Tensor, x: Tensor, fill: int = 0) -> Tensor:
    """x (n,…) with the rows where mask (n) is false set to `fill`; NaN there does not survive."""
    return F.where(F.view(mask, (-1, *[1] * (x.ndim() - 1)), False), x, fill)


def _not_below(x: Tensor, bound: float) -> Tensor:
    """x >= bound; false for NaN."""
    return F.op_or(x > bound, F.eq(x, bound))


def _rising(index: Tensor, mask: Tensor, bound: int) -> Tensor:
    """Positions (n) that put the entries of `index` (int32 (n), below `bound`) where `mask` holds first, rising."""
    index = F.cast(index, "float32")  # exact below 2**24
    key = F.where(mask, bound - index, -1.0 - index)  # no two keys are equal
    return F.topk(key, index.shape[0], 0)[1]


# ---- before the decoder -----------------------------------------------------------------------------------------


def _rotate(points: Tensor, matrix: Tensor) -> Tensor:
    """points (n,3) @ matrix (3,3), element by element: a matrix product may run in TF32, too coarse for positions of
    a kilometre."""
    x, y, z = (F.narrow(points, 1, j, 1) * F.narrow(matrix, 0, j, 1) for j in range(3))  # (n,3) each
    return x + y + z


def propagate(ref_pts: Tensor, velocity: Tensor, ego: EgoMotion, pc_range: tuple[float, ...]) -> Tensor:
    """Reference points of the last frame, moved by their velocity into this frame's axes.

    Args:
        ref_pts: float32 (T,3), logits of fractions of pc_range.
        velocity: float32 (T,2), m/s.

    Returns:
        float32 (T,3), logits; clamped to the range's border.
    """
    low, size = range_extent(pc_range)
    motion = (ego.l2g_r_prev, ego.l2g_t_prev, ego.l2g_t, ego.l2g_r_inv, ego.time_delta)
    custom = V.offered("propagate", ref_pts, velocity, *motion, low=low.tolist(), size=size.tolist())
    if custom is not None:
        return custom
    metres = metres_from_range(F.sigmoid(ref_pts), pc_range) + F.pad(velocity, (0, 1)) * ego.time_delta  # (T,3)
    # The order matters: both translations are hundreds of metres, their difference is small.
    metres = _rotate(metres, ego.l2g_r_prev) + ego.l2g_t_prev - ego.l2g_t
    return V.inverse_sigmoid(normalise_range(_rotate(metres, ego.l2g_r_inv), pc_range, 3))


def frame_queries(
    tracks: Tracks,
    has_prev: Tensor,
    ego: EgoMotion,
    query_embedding: Embedding,
    reference_points: Linear,
    config: UniADConfig,
) -> FrameQueries:
    """The frame's N queries: fresh ones, then the carried tracks moved to where they should be now.

    Args:
        tracks: the state as it came in.
        has_prev: int32 (1); 0 empties all slots.
        query_embedding: weight (F,2D), kept in float32.
        reference_points: Linear (D) -> (3), kept in float32.
    """
    used = F.op_and(tracks.obj_idxes > NO_TRACK, F.cast(has_prev, "bool"))  # (T)
    tracks = dataclasses.replace(
        tracks,
        query=_rows(used, tracks.query),
        ref_pts=_rows(used, tracks.ref_pts),
        pred_boxes=_rows(used, tracks.pred_boxes),
        obj_idxes=_rows(used, tracks.obj_idxes, NO_TRACK),
    )
    moved = propagate(tracks.ref_pts, F.narrow(tracks.pred_boxes, 1, 8, 2), ego, config.pc_range)  # (T,3)
    tap("velo.out", moved)
    d, fresh = config.embed_dims, config.num_fresh
    fresh_query = query_embedding.weight.value  # (F,2D)
    carried_pos = F.cast(F.narrow(tracks.query, 1, 0, d), "float32")  # (T,D)
    ref_pts = reference_points(F.concat([F.narrow(fresh_query, 1, 0, d), carried_pos]))  # (N,3)
    # Carried tracks take x and y from the motion, but z from the query, as the original does.
    carried = F.concat([F.narrow(moved, 1, 0, 2), F.slice(ref_pts, (fresh, 2), (config.max_tracks, 1))], 1)  # (T,3)
    ref_pts = F.concat([F.narrow(ref_pts, 0, 0, fresh), carried])  # (N,3)
    query = F.concat([F.cast(fresh_query, net_dtype()), tracks.query])  # (N,2D)
    never = F.constant(np.full(fresh, NO_TRACK + 1, np.int32))
    empty = F.eq(F.concat([never, tracks.obj_idxes]), NO_TRACK)  # (N); concat of bool is not in every executor
    tap("track.in_query", query)
    tap("track.in_ref_pts", ref_pts)
    return FrameQueries(query, ref_pts, empty, tracks)


# ---- after the decoder ------------------------------------------------------------------------------------------


def decode_boxes(code: Tensor) -> Tensor:
    """Box code (…,10) to boxes (…,9): x y z w l h yaw vx vy, float32 (denormalize_bbox)."""

    def part(start: int, size: int) -> Tensor:
        return F.narrow(code, -1, start, size)

    yaw = V.atan2(part(6, 1), part(7, 1))
    return F.concat([part(0, 2), part(4, 1), F.exp(part(2, 2)), F.exp(part(5, 1)), yaw, part(8, 2)], -1)


def in_range(code: Tensor, center_range: tuple[float, ...]) -> Tensor:
    """bool (n): the centre in the box code (n,10) lies in the range x0 y0 z0 x1 y1 z1, borders included."""
    centre = F.concat([F.narrow(code, 1, 0, 2), F.narrow(code, 1, 4, 1)], 1)  # (n,3)
    low, high = (F.constant(np.asarray(center_range[i : i + 3], np.float32)) for i in (0, 3))
    inside = F.eq(F.minimum(F.maximum(centre, low), high), centre)  # (n,3)
    return F.cast(F.min(F.cast(inside, "int32"), dim=1), "bool")


def update_tracker(
    scores: Tensor, obj_idxes: Tensor, disappear_time: Tensor, max_obj_id: Tensor, config: UniADConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """RuntimeTrackerBase.update: births in index order, sleeping tracks' clocks, deaths.

    Args:
        scores: float32 (N), -1 in empty slots.
        obj_idxes, disappear_time: int32 (N).
        max_obj_id: int32 (1), the next id to give.

    Returns:
        obj_idxes, disappear_time, max_obj_id after the frame. A score between the two thresholds changes nothing.
    """
    strong, live = _not_below(scores, config.score_thresh), obj_idxes > NO_TRACK
    born = F.op_and(F.eq(obj_idxes, NO_TRACK), strong)
    sleeping = F.op_and(live, scores < config.filter_score_thresh)
    count = F.cast(born, "int32")
    obj_idxes = F.where(born, max_obj_id + F.cumsum(count, 0) - 1, obj_idxes)
    disappear_time = F.where(strong, 0, disappear_time) + F.cast(sleeping, "int32")
    dead = F.op_and(sleeping, disappear_time > config.miss_tolerance - 1)
    obj_idxes = F.where(dead, NO_TRACK, obj_idxes)
    return obj_idxes, disappear_time, max_obj_id + F.sum(count, 0, keepdim=True)


@dataclasses.dataclass(frozen=True)
class _Instances:
    """The N queries after the decoder and the tracker's update."""

    scores: Tensor  # float32 (N), -1 in empty slots
    labels: Tensor  # int32 (N)
    pred_boxes: Tensor  # float32 (N,10)
    embedding: Tensor  # (N,D)
    obj_idxes: Tensor  # int32 (N)

    def take(self, index: Tensor, valid: Tensor) -> BoxList:
        """Rows `index` (int32 (K)), those not `valid` (bool (K)) emptied."""
        return BoxList(
            _rows(valid, decode_boxes(F.index_select(self.pred_boxes, 0, index))),
            _rows(valid, F.index_select(self.scores, 0, index)),
            _rows(valid, F.index_select(self.labels, 0, index)),
            _rows(valid, F.index_select(self.obj_idxes, 0, index), NO_TRACK),
            _rows(valid, F.index_select(self.embedding, 0, index)),
            valid,
        )


def _best(key: Tensor, count: int, instances: _Instances, config: UniADConfig) -> tuple[Tensor, Tensor]:
    """Indices of the `count` largest keys (float32 (N), -1 = not eligible), and which are eligible and in range."""
    key, index = F.topk(key, count, 0)
    inside = in_range(F.index_select(instances.pred_boxes, 0, index), config.post_center_range)
    return index, F.op_and(_not_below(key, 0.0), inside)


def select_active(instances: _Instances, config: UniADConfig) -> BoxList:
    """Tracks that are awake, by falling score; those outside the range are left out *after* the best were taken."""
    awake = F.op_and(instances.obj_idxes > NO_TRACK, _not_below(instances.scores, config.filter_score_thresh))
    count = min(config.max_tracks, config.max_num)
    index, valid = _best(F.where(awake, instances.scores, -1.0), count, instances, config)
    order = _rising(F.constant(np.arange(count)), valid, count)
    valid = F.cast(F.index_select(F.cast(valid, "int32"), 0, order), "bool")
    return instances.take(F.index_select(index, 0, order), valid)


def select_detections(instances: _Instances, config: UniADConfig) -> BoxList:
    """The best of all queries: fresh, carried, asleep, dead and ego."""
    count = min(config.max_num, instances.scores.shape[0])
    return instances.take(*_best(instances.scores, count, instances, config))


def kept_rows(scores: Tensor, obj_idxes: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which queries become carried tracks.

    Args:
        scores: float32 (N).
        obj_idxes: int32 (N).
        slots: T.

    Returns:
        Their indices, int32 (T), rising; which of these rows are used, bool (T), used ones first; and how many live
        tracks found no slot, int32 (1): those with the lowest scores.
    """
    live = obj_idxes > NO_TRACK
    _, index = F.topk(F.where(live, scores, -1.0), slots, 0)  # (T)
    kept = F.index_select(F.cast(live, "int32"), 0, index)
    order = _rising(index, F.cast(kept, "bool"), obj_idxes.shape[0])
    kept = F.index_select(kept, 0, order)
    dropped = F.sum(F.cast(live, "int32"), 0, keepdim=True) - F.sum(kept, 0, keepdim=True)
    return F.index_select(index, 0, order), F.cast(kept, "bool"), dropped


def carry(
    queries: FrameQueries,
    detections: Detections,
    instances: _Instances,
    disappear_time: Tensor,
    index: Tensor,
    kept: Tensor,
    memory_bank: MemoryBank,
    query_interact: QueryInteractionModule,
    config: UniADConfig,
) -> Tracks:
    """The next frame's tracks: rows `index` (T) of the frame where `kept` (T), empty slots after them.

    Memory bank and query interaction run on these rows alone: of the others nothing leaves the frame.
    """

    def take(x: Tensor, fill: int = 0) -> Tensor:
        return _rows(kept, F.index_select(x, 0, index), fill)

    was_carried = F.op_and(kept, index > config.num_fresh - 1)
    slot = F.maximum(index - config.num_fresh, 0)

    def take_carried(x: Tensor, fill: int) -> Tensor:
        return _rows(was_carried, F.index_select(x, 0, slot), fill)

    query, embedding, scores = take(queries.query), take(detections.embedding), take(instances.scores)
    mem_bank, save_period = take_carried(queries.tracks.mem_bank, 0), take_carried(queries.tracks.save_period, 0)
    padding_mask = F.cast(take_carried(queries.tracks.mem_padding_mask, 1), "bool")
    inputs = {"output_embedding": embedding, "mem_bank": mem_bank, "mem_padding_mask": padding_mask,
              "save_period": save_period, "query": query, "scores": scores}  # fmt: skip
    for name, tensor in inputs.items():
        tap(f"membank.in.{name}", tensor)
    # Empty rows have score 0 and nothing stored: the bank leaves them as they are.
    embedding = V.after(embedding)
    embedding, mem_bank, padding_mask, save_period = memory_bank(embedding, scores, mem_bank, padding_mask, save_period)
    embedding = V.after(embedding)  # the bank, what was before it and the interaction are compiled one by one
    outputs = {"output_embedding": embedding, "mem_bank": mem_bank, "mem_padding_mask": padding_mask,
               "save_period": save_period}  # fmt: skip
    for name, tensor in outputs.items():
        tap(f"membank.out.{name}", tensor)
    tracks = Tracks(
        query=_rows(kept, query_interact(query, embedding, F.not_op(kept))),
        ref_pts=take(detections.last_ref_points),
        pred_boxes=take(detections.boxes),
        obj_idxes=take(instances.obj_idxes, NO_TRACK),
        disappear_time=take(disappear_time),
        mem_bank=mem_bank,
        mem_padding_mask=F.cast(padding_mask, "int32"),
        save_period=save_period,
    )
    for name, tensor in {**tracks.to_state(), "scores": scores, "output_embedding": embedding}.items():
        tap(f"carried.{name.removeprefix('track_')}", tensor)
    return tracks


def track_frame(
    queries: FrameQueries,
    detections: Detections,
    max_obj_id: Tensor,
    memory_bank: MemoryBank,
    query_interact: QueryInteractionModule,
    config: UniADConfig,
) -> TrackResult:
    """All of the frame's tracking after the decoder. max_obj_id: int32 (1), the next id to give."""
    classes = F.sigmoid(V.after(detections.cls_scores))  # (N,classes)
    scores, labels = F.max(classes, 1), F.argmax(classes, 1)  # (N)
    scores = F.where(queries.empty, -1.0, scores)
    fresh_ids = np.full(config.num_fresh, NO_TRACK, np.int32)
    fresh_ids[config.num_query] = EGO
    obj_idxes = F.concat([F.constant(fresh_ids), queries.tracks.obj_idxes])  # (N)
    no_time = F.constant(np.zeros(config.num_fresh, np.int32))
    disappear_time = F.concat([no_time, queries.tracks.disappear_time])  # (N)
    tap("tracker.before.obj_idxes", obj_idxes)
    tap("tracker.before.disappear_time", disappear_time)
    obj_idxes, disappear_time, max_obj_id = update_tracker(scores, obj_idxes, disappear_time, max_obj_id, config)
    for name, tensor in {"obj_idxes": obj_idxes, "disappear_time": disappear_time, "max_obj_id": max_obj_id,
                         "scores": scores, "pred_boxes": detections.boxes,
                         "ref_pts": detections.last_ref_points}.items():  # fmt: skip
        tap(f"tracker.{name}", tensor)

    instances = _Instances(scores, labels, detections.boxes, detections.embedding, obj_idxes)
    ego_index = F.constant(np.array([config.num_query]))
    sdc = instances.take(ego_index, F.eq(F.index_select(obj_idxes, 0, ego_index), EGO))
    active, best = select_active(instances, config), select_detections(instances, config)
    _tap_boxes(active, sdc)
    index, kept, num_dropped = kept_rows(scores, obj_idxes, config.max_tracks)
    tracks = carry(queries, detections, instances, disappear_time, index, kept, memory_bank, query_interact, config)
    return TrackResult(active, sdc, best, tracks, max_obj_id, num_dropped)


def _tap_boxes(active: BoxList, sdc: BoxList) -> None:
    """Record the selected tracks under the original's names."""
    taps = {"active.boxes_3d": active.boxes, "active.scores_3d": active.scores, "active.labels_3d": active.labels,
            "active.track_scores": active.scores, "active.track_ids": active.ids,
            "active.track_query_embeddings": active.embedding, "sdc.boxes_3d": sdc.boxes, "sdc.scores": sdc.scores,
            "sdc.labels": sdc.labels, "sdc.embedding": sdc.embedding}  # fmt: skip
    for name, tensor in taps.items():
        tap(name, tensor)
