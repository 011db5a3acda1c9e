"""The life cycle of tracks: against the recorded frames, and against plain loops on random sequences."""

import dataclasses

import numpy as np
import pytest
from network_support import const, torch_network, value
from support import assert_close, assert_differs, noise_floor
from track_loops import Loops, Track
from track_support import (
    Arrays,
    TopLevel,
    as_tracks,
    carried_arrays,
    ego_motion,
    fill_rows,
    no_tracks,
    tiny_config,
    tiny_frame,
    tiny_top_level,
)

from config import UniADConfig
from layers.track_head import Detections
from layers.track_life_cycle import EgoMotion, decode_boxes, in_range, kept_rows, update_tracker

FACTOR = 1 / 20  # the floor holds the noise of the whole network; here the inputs are the recorded ones
VELO_FACTOR = 1 / 8  # logits of points at the range's border: one rounding error of a fraction is 6e-3 of a logit


def numbers(result) -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """A TrackResult as arrays."""
    arrays = {}
    for field in dataclasses.fields(result):
        part = getattr(result, field.name)
        if dataclasses.is_dataclass(part):
            arrays[field.name] = {f.name: value(getattr(part, f.name)) for f in dataclasses.fields(part)}
        else:
            arrays[field.name] = value(part)
    return arrays


def step(module: TopLevel, tracks: Arrays, has_prev: int, ego, detections: dict, max_obj_id: int):
    """One frame through the graph: result and taps as arrays. `detections` has one row per query of the frame."""
    with torch_network() as network:
        queries = module.queries(as_tracks(tracks), has_prev, ego())
        found = Detections(**{name: const(array) for name, array in detections.items()})
        result = numbers(module.track(queries, found, max_obj_id))
        return result, {key: value(tensor) for key, tensor in network.taps.items()}


def recorded_detections(frame: Arrays, rows: int, seed: int = 0) -> Arrays:
    """The last decoder layer's recorded output, with noise in the empty slots; strong scores there too."""
    arrays = {
        "cls_scores": frame["track.all_cls_scores"][-1, 0],
        "boxes": frame["track.all_bbox_preds"][-1, 0],
        "embedding": frame["track.query_feats"][-1, 0],
        "last_ref_points": frame["track.last_ref_points"][0],
    }
    return {name: fill_rows(array, rows, seed=seed) for name, array in arrays.items()}


def check_detection_list(detections: Arrays, frame: Arrays, tolerance: float) -> None:
    """Against result.*_det, whose near-ties may come in another order: compared as rows sorted by centre."""
    valid = detections["valid"]
    boxes, scores, labels = (detections[name][valid] for name in ("boxes", "scores", "labels"))
    rows = np.concatenate([boxes, scores[:, None], labels[:, None]], 1)
    expected = np.concatenate(
        [frame[f"result.{name}_det"].reshape(len(rows), -1) for name in ("boxes_3d", "scores_3d", "labels_3d")], 1
    )
    assert_close(scores, expected[:, 9], 1e-6, "result.scores_3d_det")
    assert_close(rows[np.argsort(boxes[:, 0])], expected[np.argsort(expected[:, 0])], tolerance, "result.boxes_3d_det")


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_recorded_frames(index):
    """Everything that tracking makes of a recorded frame; frame 6 begins a scene, so its slots are ignored."""
    module, config, floor, frame = tiny_top_level(), tiny_config(), noise_floor(), tiny_frame(index)
    last = tiny_frame(index - 1) if index else None
    tracks = carried_arrays(last, config.max_tracks) if last else no_tracks(config)
    has_prev = int("velo.out" in frame)
    count, rows = len(frame["track.in_query"]), config.num_fresh + config.max_tracks
    start = 0 if index == 0 else int(tiny_frame(index - 1)["tracker.max_obj_id"])
    result, taps = step(
        module, tracks, has_prev, lambda: ego_motion(last, frame), recorded_detections(frame, rows), start
    )

    used = len(frame["carried.obj_idxes"])
    for key in ("track.in_query", "track.in_ref_pts", "tracker.before.obj_idxes", "tracker.before.disappear_time",
                "tracker.obj_idxes", "tracker.disappear_time", "tracker.scores", "tracker.pred_boxes",
                "tracker.ref_pts"):  # fmt: skip
        assert_close(taps[key][:count], frame[key], FACTOR * floor.get(key, 0), key)
    if has_prev:
        assert_close(
            taps["velo.out"][: count - config.num_fresh], frame["velo.out"][0], VELO_FACTOR * floor["velo.out"]
        )
    assert (taps["tracker.scores"][count:] == -1).all()
    assert result["max_obj_id"].item() == frame["tracker.max_obj_id"].item()
    assert result["num_dropped"].item() == 0

    awake = len(frame["active.track_ids"])
    assert result["active"]["valid"].tolist() == [True] * awake + [False] * (config.max_tracks - awake)
    assert (result["active"]["ids"][awake:] == -1).all()
    for key in ("track_ids", "labels_3d", "boxes_3d", "scores_3d", "track_scores", "track_query_embeddings"):
        tolerance = FACTOR * floor.get(f"active.{key}", 0)
        assert_close(taps[f"active.{key}"][:awake], frame[f"active.{key}"], tolerance, f"active.{key}")
    for key in ("boxes_3d", "scores", "labels", "embedding"):
        actual = taps[f"sdc.{key}"]
        assert_close(actual.reshape(frame[f"sdc.{key}"].shape), frame[f"sdc.{key}"], 4e-6, f"sdc.{key}")
    check_detection_list(result["detections"], frame, FACTOR * floor["active.boxes_3d"])

    for group in ("membank.in", "membank.out", "carried"):
        for key in (k for k in taps if k.startswith(f"{group}.")):
            actual = taps[key]
            tolerance = FACTOR * floor.get(key, 0) if actual.dtype == np.float32 else 0
            assert_close(actual[:used], frame[key], tolerance, key)
            fill = {"obj_idxes": -1, "mem_padding_mask": 1}.get(key.rpartition(".")[2], 0)
            if key not in ("membank.out.output_embedding", "carried.output_embedding"):
                assert (actual[used:] == fill).all(), f"{key}: an empty slot holds something"


def test_broken_ego_motion_is_seen():
    """The recorded velocity update against one without time, and with the poses exchanged."""
    frame, last, config = tiny_frame(1), tiny_frame(0), tiny_config()
    count = len(frame["velo.in_ref_pts"])
    expected, tolerance = frame["velo.out"][0], VELO_FACTOR * noise_floor()["velo.out"]

    def moved(**changes) -> np.ndarray:
        with torch_network() as network:
            ego = dataclasses.replace(ego_motion(last, frame), **{k: const(v) for k, v in changes.items()})
            tiny_top_level().queries(as_tracks(carried_arrays(last, config.max_tracks)), 1, ego)
            return value(network.taps["velo.out"])[:count]

    assert_close(moved(), expected, tolerance)
    assert_differs(moved(time_delta=np.zeros(1, np.float32)), expected, tolerance, "no time")
    assert_differs(moved(l2g_t=last["in.l2g_t"]), expected, tolerance, "no translation")
    assert_differs(moved(l2g_r_inv=frame["in.l2g_r_mat"]), expected, tolerance, "not inverted")


def test_padding_and_garbage_change_nothing():
    """Other noise, even NaN, in the empty slots of state and detections: the same result, bit for bit."""
    frame, last, config = tiny_frame(3), tiny_frame(2), tiny_config()
    rows, count = config.num_fresh + config.max_tracks, len(frame["track.in_query"])
    results = []
    for seed, fill in ((0, None), (1, None), (0, np.nan)):
        tracks, found = carried_arrays(last, config.max_tracks, seed), recorded_detections(frame, rows, seed)
        if fill is not None:
            for array in (*tracks.values(), *found.values()):
                if array.dtype == np.float32:
                    array[count - config.num_fresh if len(array) == config.max_tracks else count :] = fill
        results.append(step(tiny_top_level(), tracks, 1, lambda: ego_motion(last, frame), found, 35)[0])
    for other in results[1:]:
        for name, part in results[0].items():
            for key, array in part.items() if isinstance(part, dict) else [("", part)]:
                assert np.array_equal(array, other[name][key] if key else other[name]), (name, key)


def logits_of(scores: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Class logits (n,classes) whose largest sigmoid is `scores` (to rounding), at `labels`."""
    logits = np.full((len(scores), classes), -30.0)
    logits[np.arange(len(scores)), labels] = np.log(scores / (1 - scores.astype(np.float64)))
    return logits.astype(np.float32)


def test_recorded_sequence():
    """All eight frames in a row on our own state, with the recorded scores, boxes and reference points."""
    module, config = tiny_top_level(), tiny_config()
    rows, rng = config.num_fresh + config.max_tracks, np.random.default_rng(0)
    tracks, max_obj_id, last = no_tracks(config), 0, None
    for index in range(8):
        frame = tiny_frame(index)
        count, used = len(frame["tracker.scores"]), len(frame["carried.obj_idxes"])
        has_prev = int(last is not None and last["in.scene_token"] == frame["in.scene_token"])
        boxes = frame["tracker.pred_boxes"]
        found = {
            "cls_scores": logits_of(frame["tracker.scores"], rng.integers(0, 10, count), 10),
            "boxes": boxes,
            "embedding": rng.standard_normal((count, config.embed_dims)).astype(np.float32),
            "last_ref_points": frame["tracker.ref_pts"],
        }
        found = {name: fill_rows(array, rows) for name, array in found.items()}
        result, taps = step(module, tracks, has_prev, lambda f=frame, p=last: ego_motion(p, f), found, max_obj_id)
        for key in ("tracker.before.obj_idxes", "tracker.obj_idxes", "tracker.disappear_time"):
            assert np.array_equal(taps[key][:count], frame[key]), f"frame {index}: {key}"
        if has_prev:
            carried = len(frame["velo.in_ref_pts"])
            assert_close(
                taps["velo.out"][:carried], frame["velo.out"][0], VELO_FACTOR * noise_floor()["velo.out"], "velo"
            )
        active = {name: array[: len(frame["active.track_ids"])] for name, array in result["active"].items()}
        assert np.array_equal(active["ids"], frame["active.track_ids"]), f"frame {index}"
        assert_close(active["boxes"], frame["active.boxes_3d"], 4e-6, "active.boxes_3d")
        for key in ("obj_idxes", "disappear_time", "ref_pts", "pred_boxes", "mem_padding_mask", "save_period"):
            kept = result["tracks"][key]
            assert np.array_equal(kept[:used], frame[f"carried.{key}"]), f"frame {index}: carried.{key}"
            assert (kept[used:] == {"obj_idxes": -1, "mem_padding_mask": 1}.get(key, 0)).all()
        tracks, max_obj_id, last = result["tracks"], result["max_obj_id"].item(), frame
        assert max_obj_id == frame["tracker.max_obj_id"].item()
    assert max_obj_id == 113


# ---- random sequences against plain loops ------------------------------------------------------------------------


def random_module(config: UniADConfig, rng: np.random.Generator) -> TopLevel:
    module = TopLevel(config)
    for _, parameter in module.named_parameters():
        parameter.array = (rng.standard_normal(parameter.shape) * 0.3).astype(np.float32)
    return module


def random_frame(rng: np.random.Generator, rows: int, fresh: int, config: UniADConfig) -> tuple[np.ndarray, ...]:
    """Scores (half of the carried ones in the middle of the thresholds or below), box codes, reference logits."""
    busy = rng.choice([0.0, 0.1, 0.5])  # share of fresh queries above the threshold; 0: no birth in this frame
    scores = np.where(rng.random(rows) < busy, rng.uniform(0.41, 0.95, rows), rng.uniform(0.01, 0.39, rows))
    scores[fresh:] = rng.uniform(0.05, 0.8, rows - fresh) * rng.choice([0.3, 1.0])  # 0.3: everything falls asleep
    boxes = rng.standard_normal((rows, 10))
    boxes[:, :2] = rng.uniform(-66, 66, (rows, 2))
    return scores.astype(np.float32), boxes.astype(np.float32), rng.standard_normal((rows, 3)).astype(np.float32)


def random_ego(rng: np.random.Generator) -> EgoMotion:
    r = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    return EgoMotion(const(r), const(np.zeros(3)), const(np.ones(3)), const(r.T.copy()), const(np.array([0.5])))


def rows_of(tracks: list[Track | None], name: str) -> list:
    return [getattr(track, name) for track in tracks if track is not None]


def compare_with_loops(config: UniADConfig, graph_config: UniADConfig, seed: int, frames: int) -> dict[str, int]:
    """Run both on one random sequence and compare frame by frame; what happened in it is counted."""
    rng = np.random.default_rng(seed)
    loops, module = Loops(config), random_module(graph_config, rng)
    tracks, max_obj_id = no_tracks(config), 0
    seen = {"dropped": 0, "deaths": 0, "no active": 0, "scene changes": 0, "many deaths": 0, "out of range": 0}
    for index in range(frames):
        has_prev = index > 0 and rng.random() > 0.12
        carried = len(loops.carried) if has_prev else 0
        before = {t.obj for t in loops.carried} if has_prev else set()
        count = config.num_fresh + carried
        scores, boxes, refs = random_frame(rng, count, config.num_fresh, config)
        # Scores exactly as the graph will have them: the sigmoid of the float32 logit.
        logits = logits_of(scores, rng.integers(0, config.num_classes, count), config.num_classes)
        found = {"cls_scores": logits, "boxes": boxes, "last_ref_points": refs,
                 "embedding": rng.standard_normal((count, config.embed_dims)).astype(np.float32)}  # fmt: skip
        found = {n: fill_rows(a, config.num_fresh + config.max_tracks, seed=index) for n, a in found.items()}
        result, taps = step(module, tracks, int(has_prev), lambda: random_ego(rng), found, max_obj_id)
        expected = loops.frame(taps["tracker.scores"][:count], boxes, refs, has_prev)

        where = f"seed {seed}, frame {index}"
        active, ranked = result["active"], [t for t in expected["active"] if t is not None]
        valid = active["valid"]
        assert valid.tolist() == [True] * len(ranked) + [False] * (len(valid) - len(ranked)), where
        assert active["ids"].tolist() == rows_of(ranked, "obj") + [-1] * (len(valid) - len(ranked)), where
        assert active["scores"][valid].tolist() == rows_of(ranked, "score"), where
        assert_close(active["boxes"][valid][:, :2].ravel(), np.ravel([t.box[:2] for t in ranked]), 0, where)
        detections = result["detections"]
        listed = [t is not None for t in expected["detections"]]
        assert detections["valid"].tolist() == listed + [False] * (len(detections["valid"]) - len(listed)), where
        assert detections["scores"][detections["valid"]].tolist() == rows_of(expected["detections"], "score"), where
        used, state = len(loops.carried), result["tracks"]
        assert state["obj_idxes"].tolist() == rows_of(loops.carried, "obj") + [-1] * (config.max_tracks - used), where
        assert state["disappear_time"][:used].tolist() == rows_of(loops.carried, "asleep"), where
        assert state["save_period"][:used].tolist() == rows_of(loops.carried, "period"), where
        assert (1 - state["mem_padding_mask"]).sum(1)[:used].tolist() == rows_of(loops.carried, "stored"), where
        for name, field in (("pred_boxes", "box"), ("ref_pts", "ref")):
            rows = state[name][:used]
            assert_close(rows, np.array(rows_of(loops.carried, field)).reshape(rows.shape), 0, where)
        assert np.isfinite(state["query"]).all() and not state["query"][used:].any(), where
        assert result["num_dropped"].item() == expected["dropped"], where
        assert result["max_obj_id"].item() == loops.next_id, where
        assert (
            result["sdc"]["ids"].tolist() == [-2]
            and result["sdc"]["scores"][0] == taps["tracker.scores"][config.num_query]
        )

        gone = len(before - {t.obj for t in loops.carried}) - expected["dropped"]
        seen["dropped"] += expected["dropped"] > 0
        seen["deaths"] += gone > 0
        seen["many deaths"] += gone > 1
        seen["no active"] += not ranked
        seen["scene changes"] += index > 0 and not has_prev
        seen["out of range"] += None in expected["active"]
        tracks, max_obj_id = state, result["max_obj_id"].item()
    return seen


def small_config(**changes) -> UniADConfig:
    return tiny_config().replace(**{"num_query": 12, "embed_dims": 16, "max_tracks": 9, "max_num": 7} | changes)


def test_random_sequences():
    """Few slots for many tracks, so that slots overflow; lists shorter than the slots, and longer."""
    total: dict[str, int] = {}
    for seed, changes in enumerate([{}, {"max_num": 300 // 15}, {"max_tracks": 21, "num_query": 30}, {"max_num": 3}]):
        seen = compare_with_loops(small_config(**changes), small_config(**changes), seed, 40)
        total = {name: total.get(name, 0) + count for name, count in seen.items()}
    assert min(total.values()) >= 3, f"the random sequences lack a case: {total}"


@pytest.mark.parametrize(
    "changes",
    [{"miss_tolerance": 4}, {"score_thresh": 0.5}, {"filter_score_thresh": 0.3}, {"memory_bank_save_period": 2},
     {"post_center_range": (-50.0, -50.0, -10.0, 50.0, 50.0, 10.0)}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_broken_rules_are_seen(changes):
    with pytest.raises(AssertionError):
        compare_with_loops(small_config(), small_config(**changes), 0, 40)


# ---- single rules --------------------------------------------------------------------------------------------------


def test_thresholds_at_their_edges():
    """Exactly at a threshold; between the two; the ego; an empty slot; a score that is no number."""
    config = tiny_config()
    high, low = np.float32(config.score_thresh), np.float32(config.filter_score_thresh)
    below = np.nextafter(high, np.float32(0), dtype=np.float32)
    scores = np.array([high, below, low, np.nextafter(low, np.float32(0), dtype=np.float32), 0.99, -1, np.nan, 0.1])
    obj = np.array([-1, -1, 4, 5, -2, -1, 6, 7])
    slept = np.array([0, 0, 2, 2, 0, 0, 1, 4])
    with torch_network():
        out = update_tracker(const(scores), const(obj), const(slept), const(np.array([9])), config)
        ids, times, max_obj_id = (value(x).tolist() for x in out)
    assert ids == [9, -1, 4, 5, -2, -1, 6, -1]
    assert times == [0, 0, 2, 3, 0, 0, 1, 5]
    assert max_obj_id == [10]


def test_overflow_drops_the_lowest_scores():
    scores = np.array([0.9, 0.2, 0.5, 0.7, 0.3, 0.8], np.float32)
    obj = np.array([3, 1, -1, 2, 0, -2])
    with torch_network():
        index, kept, dropped = (value(x).tolist() for x in kept_rows(const(scores), const(obj), 3))
        assert (index, kept, dropped) == ([0, 3, 4], [True] * 3, [1])
        index, kept, dropped = (value(x).tolist() for x in kept_rows(const(scores), const(obj), 5))
        assert (index[:4], kept, dropped) == ([0, 1, 3, 4], [True] * 4 + [False], [0])
        index, kept, dropped = (value(x).tolist() for x in kept_rows(const(scores), const(np.full(6, -1)), 2))
        assert (kept, dropped) == ([False] * 2, [0])


def test_boxes_and_range():
    rng = np.random.default_rng(0)
    code = rng.standard_normal((40, 10)).astype(np.float32)
    code[:, [0, 1]] *= 50
    code[:3, :2] = [[61.2, -61.2], [np.nextafter(np.float32(61.2), np.float32(99)), 0], [np.nan, 0]]
    centre = code[:, [0, 1, 4]]
    expected = np.concatenate(
        [centre, np.exp(code[:, [2, 3, 5]]), np.arctan2(code[:, 6:7], code[:, 7:8]), code[:, 8:]], 1
    )
    with torch_network():
        inside = value(in_range(const(code), tiny_config().post_center_range))
        boxes = value(decode_boxes(const(code)))
    assert np.argwhere(np.isnan(boxes)).tolist() == [[2, 0]] == np.argwhere(np.isnan(expected)).tolist()
    boxes[2, 0] = expected[2, 0] = 0
    assert_close(boxes, expected, 4e-6, "boxes")
    assert inside.tolist() == [(np.abs(c) <= np.float32([61.2, 61.2, 10])).all() for c in centre]
    assert inside[0] and not inside[1] and not inside[2] and 5 < inside.sum() < 40
