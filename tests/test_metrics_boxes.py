"""Tracking and detection scores: perfect results, known errors, and the official evaluation of the same boxes."""

import json

import numpy as np
import pytest
from support import assert_close, shared_path
from truth_support import BASE, changed, perfect_results, real_truth

from config import CONVENTIONS
from errors import UniADError
from runtime.submission import META
from runtime.submission import tracking_boxes as submission_boxes

pytest.importorskip("motmetrics")
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.tracking.evaluate import TrackingEval
from nuscenes.nuscenes import NuScenes

from metrics.boxes import Tables, attribute_of, detection_boxes
from metrics.detection import evaluate_detection
from metrics.tracking import METRICS, evaluate_tracking

PRESENT = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "truck")  # tracked classes of mini_val


@pytest.fixture(scope="module")
def clip():
    return real_truth("clip")


@pytest.fixture(scope="module")
def perfect(clip):
    return perfect_results(clip)


def _shifted(metres, keys=("boxes_3d", "boxes_3d_det")):
    def change(order, record):
        for key in keys:
            record[key] = record[key] + np.array([metres, *[0] * 8], np.float32)
        return record

    return change


def _kept(record, rows):
    keys = ("boxes_3d", "scores_3d", "labels_3d", "track_ids")
    return {**record, **{key: record[key][rows] for key in keys}}


def _noisy(order, record):
    """Boxes moved, some left out, some double, all scores different."""
    rng = np.random.default_rng(order)
    rows = np.sort(rng.choice(len(record["boxes_3d"]), int(0.9 * len(record["boxes_3d"])), replace=False))
    record = _kept(record, rows)
    record["scores_3d"] = np.where(record["track_ids"] % 3, 0.7, 0.4).astype(np.float32)
    record["boxes_3d"] = record["boxes_3d"] + rng.normal(0, 0.5, record["boxes_3d"].shape).astype(np.float32) * [
        *[1] * 3,
        *[0] * 3,
        *[0.2] * 3,
    ]
    double = rng.integers(0, len(record["boxes_3d_det"]), 30)
    for key in ("boxes_3d_det", "labels_3d_det"):
        record[key] = np.concatenate([record[key], record[key][double]])
    record["boxes_3d_det"] = record["boxes_3d_det"] + rng.normal(0, 0.7, (len(record["boxes_3d_det"]), 9)) * [
        *[1] * 3,
        *[0.05] * 3,
        *[0.3] * 3,
    ]
    record["scores_3d_det"] = rng.random(len(record["boxes_3d_det"])).astype(np.float32)
    return record


# --- real tables ---


def test_ground_truth_against_itself():
    """All 81 keyframes of mini_val. 3393 annotated boxes after filtering and 41 bicycle boxes are public figures."""
    truth = real_truth()
    results = perfect_results(truth)
    tracking = evaluate_tracking(results, truth)
    assert (tracking["frames"], tracking["scenes"], tracking["boxes"]) == (81, 2, 3669)
    assert tracking["classes"]["bicycle"]["gt"] == 41
    for row in (tracking, *(tracking["classes"][name] for name in PRESENT)):
        assert_close([row["amota"], row["recall"], row["mota"]], np.ones(3), 1e-12, "tracking")
        assert row["amotp"] < 1e-4 and row["ids"] == row["fp"] == row["fn"] == row["frag"] == 0
    assert set(tracking["classes"]["trailer"].values()) == {None}  # does not occur
    json.dumps(tracking, allow_nan=False)

    detection = evaluate_detection(results, truth)
    assert detection["boxes"] == 3393 and detection["frames"] == 81
    assert_close(detection["mean_ap_present"], 1.0, 1e-12, "AP")
    assert_close(detection["mean_ap"], 0.7, 1e-12, "three of ten classes do not occur and count as 0")
    for name in PRESENT:
        row = detection["classes"][name]
        errors = [row[key] for key in ("trans_err", "scale_err", "orient_err")]
        assert_close([row["ap"], *errors], [1, 0, 0, 0], 2e-3, name)  # the sensor's tilt against the heading
    json.dumps(detection, allow_nan=False)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_equals_the_official_evaluation(convention, tmp_path):
    """The devkit's own classes on submission files of the same results, for noisy boxes."""
    truth = real_truth("clip", convention)
    results = changed(perfect_results(truth), _noisy)
    boxes = {
        token: submission_boxes(results.records[token], truth.pose(i), token, BASE, convention)
        for i, token in enumerate(truth.tokens)
    }
    (tmp_path / "track.json").write_text(json.dumps({"meta": META, "results": boxes}))
    root = str(shared_path("nuscenes", "clip"))
    config = config_factory("tracking_nips_2019")
    official = TrackingEval(
        config, str(tmp_path / "track.json"), "mini_val", str(tmp_path), "v1.0-mini", root, verbose=False
    )
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(RuntimeWarning)
        expected, _ = official.evaluate()
    ours = evaluate_tracking(results, truth)
    assert 0.1 < ours["amota"] < 0.95
    for name in METRICS:
        assert_close(ours[name], expected.compute_metric(name), 1e-6, name)

    config = config_factory("detection_cvpr_2019")
    _, predicted = detection_boxes(results, truth, config, Tables(truth))
    (tmp_path / "det.json").write_text(json.dumps({"meta": META, "results": predicted.serialize()}))
    nusc = NuScenes("v1.0-mini", root, verbose=False)
    official = DetectionEval(nusc, config, str(tmp_path / "det.json"), "mini_val", str(tmp_path), verbose=False)
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(RuntimeWarning)
        expected, _ = official.evaluate()
    ours = evaluate_detection(results, truth)
    assert 0.1 < ours["mean_ap"] < 0.6
    assert_close([ours["nds"], ours["mean_ap"]], [expected.nd_score, expected.mean_ap], 1e-9, "detection")
    for name, value in expected.tp_errors.items():
        assert_close(ours[name], value, 1e-9, name)


# --- known errors on the clip's four keyframes ---


def test_shift_by_a_metre(clip, perfect):
    """Within the 2 m of tracking and of true-positive errors, but not within the 0.5 m and 1 m of APs."""

    def lonely(order, record):
        """Only objects more than 5 m from every other of their class: none can be taken for another."""
        objects = clip.objects(order)
        distance = np.linalg.norm(record["boxes_3d"][:, None, :2] - objects.boxes[None, :, :2], axis=-1)
        rows = ((distance < 5) & (record["labels_3d"][:, None] == objects.labels)).sum(1) == 1
        detections = {key: record[key][rows] for key in ("boxes_3d_det", "scores_3d_det", "labels_3d_det")}
        return {**_kept(record, rows), **detections}

    alone = changed(perfect, lonely)
    tracking, before = (evaluate_tracking(r, clip) for r in (changed(alone, _shifted(1.01)), alone))
    car, same = tracking["classes"]["car"], before["classes"]["car"]
    assert_close([car["motp"], same["motp"]], [1.01, 0], 1e-3, "the mean distance")
    assert car["tp"] == same["tp"] > 10 and car["fp"] == same["fp"]
    detection, before = (evaluate_detection(r, clip) for r in (changed(alone, _shifted(1.01)), alone))
    car, same = detection["classes"]["car"], before["classes"]["car"]
    assert_close([car["trans_err"], same["trans_err"]], [1.01, 0], 1e-3, "translation error")
    assert car["ap"] > 0 and abs(car["ap"] - same["ap"] / 2) < 1e-9  # two of the four distances are missed


def test_far_away(clip, perfect):
    results = changed(perfect, _shifted(2000.0))  # outside of every range: nothing is predicted
    tracking, detection = evaluate_tracking(results, clip), evaluate_detection(results, clip)
    assert tracking["amota"] == 0 and tracking["amotp"] == 2 and tracking["recall"] == 0 and tracking["tp"] == 0
    assert detection["mean_ap"] == 0 and detection["nds"] == 0


def test_swapped_ids(clip, perfect):
    """Two cars that exchange their ids from the third frame on: two switches."""
    ids = set.intersection(*(set(r["track_ids"][r["labels_3d"] == 0].tolist()) for r in perfect.records.values()))
    near = [
        {i for i, box in zip(r["track_ids"].tolist(), r["boxes_3d"]) if np.hypot(*box[:2]) < 45 and i in ids}
        for r in perfect.records.values()
    ]
    one, other = sorted(set.intersection(*near))[:2]

    def swap(order, record):
        if order >= 2:
            ids = record["track_ids"]
            record["track_ids"] = np.where(ids == one, other, np.where(ids == other, one, ids))
        return record

    tracking = evaluate_tracking(changed(perfect, swap), clip)
    assert evaluate_tracking(perfect, clip)["ids"] == 0
    assert tracking["ids"] == 2 and tracking["recall"] == 1
    assert_close(tracking["classes"]["car"]["mota"], 1 - 2 / tracking["classes"]["car"]["gt"], 1e-12, "MOTA")


def test_missing_tenth(clip, perfect):
    """Every tenth car track left out: so many boxes are missed, none is wrong."""
    cars = sorted({i for r in perfect.records.values() for i in r["track_ids"][r["labels_3d"] == 0].tolist()})
    gone = cars[::10]
    tracking = evaluate_tracking(
        changed(perfect, lambda _, record: _kept(record, ~np.isin(record["track_ids"], gone))), clip
    )
    car, before = tracking["classes"]["car"], evaluate_tracking(perfect, clip)["classes"]["car"]
    assert 0 < car["fn"] == before["tp"] - car["tp"] and car["fp"] == 0
    assert_close(car["recall"], car["tp"] / before["gt"], 1e-12, "recall")
    assert 0.5 < car["amota"] < 1  # recall levels that are not reached count as 0

    def without(order, record):
        keep = ~np.isin(record["track_ids"], gone)
        return {**record, **{key: record[key][keep] for key in ("boxes_3d_det", "scores_3d_det", "labels_3d_det")}}

    results, config = changed(perfect, without), config_factory("detection_cvpr_2019")
    boxes = detection_boxes(results, clip, config, Tables(clip))
    annotated, found = (sum(box.detection_name == "car" for box in side.all) for side in boxes)
    row = evaluate_detection(results, clip)["classes"]["car"]
    levels = np.arange(11, 101) / 100  # of the recall, above 0.1; precision is 1 as far as it reaches
    assert found < annotated
    assert_close(row["ap"], (levels <= found / annotated).mean(), 1e-9, "AP")


def test_delay(clip, perfect):
    """Each frame's boxes a frame late, put where they were in the world: parked cars stay right, moving ones lag."""
    records, tokens = perfect.records, clip.tokens

    def late(order, record):
        if order == 0:
            return _kept(record, np.zeros(len(record["boxes_3d"]), bool))
        before, now = clip.pose(order - 1), clip.pose(order)
        record = dict(records[tokens[order - 1]])
        boxes = record["boxes_3d"].astype(np.float64)
        boxes[:, :3] = (boxes[:, :3] @ before.l2g_r_mat + before.l2g_t - now.l2g_t) @ now.l2g_r_mat.T
        return {**record, "boxes_3d": boxes, "boxes_3d_det": boxes}

    tracking = evaluate_tracking(changed(perfect, late), clip)
    expected_misses = len(_annotated_first_frame(clip))
    assert tracking["fn"] >= expected_misses > 0
    assert tracking["motp"] > 0.05 and tracking["amota"] < 0.95
    detection, before = (evaluate_detection(results, clip) for results in (changed(perfect, late), perfect))
    moved = [name for name in ("car", "pedestrian") if detection["classes"][name]["trans_err"] > 0.05]
    assert moved and before["mean_ap_present"] > 0.99 and detection["mean_ap_present"] < 0.8


def _annotated_first_frame(truth):
    """Tracked objects of the first frame that count: in range, with points."""
    objects, ego = truth.objects(0), truth.pose(0).ego_translation
    limits = config_factory("tracking_nips_2019").class_range
    distance = np.linalg.norm(objects.translation[:, :2] - ego[:2], axis=1)
    near = np.array([limits.get(name, -1) for name in objects.names.tolist()]) > distance
    return np.flatnonzero(near & (objects.points + objects.radar_points > 0))


def test_attributes():
    slow, fast = np.array([0.1, 0.1]), np.array([0.2, 0.2])
    assert attribute_of("car", slow) == "vehicle.parked" and attribute_of("car", fast) == "vehicle.moving"
    assert attribute_of("bus", slow) == "vehicle.stopped" and attribute_of("barrier", slow) == ""
    assert attribute_of("bicycle", fast) == "cycle.with_rider" and attribute_of("traffic_cone", fast) == ""
    assert attribute_of("pedestrian", slow) == "pedestrian.standing"
    assert attribute_of("pedestrian", fast) == "pedestrian.moving"


def test_refusals(clip, perfect):
    missing = dict(list(perfect.records.items())[1:])
    with pytest.raises(UniADError, match="result lacks 1 of the 4 keyframes, the first is"):
        evaluate_tracking(type(perfect)(missing, "v1.0.1"), clip)
    with pytest.raises(UniADError, match=r"1 frames are not in the chosen scenes, e.g. other"):
        evaluate_detection(type(perfect)({**perfect.records, "other": {}}, "v1.0.1"), clip)
    with pytest.raises(UniADError, match=r"result is in convention v2.0, ground truth in v1.0.1"):
        evaluate_detection(type(perfect)(perfect.records, "v2.0"), clip)
    pruned = changed(perfect, lambda _, record: {k: v for k, v in record.items() if k != "track_ids"})
    with pytest.raises(UniADError, match="has no track_ids: the engine gave none"):
        evaluate_tracking(pruned, clip)
    wrong = changed(perfect, lambda _, record: {**record, "labels_3d_det": record["labels_3d_det"] + 9})
    with pytest.raises(UniADError, match=r"labels must be 0 \.\. 9"):
        evaluate_detection(wrong, clip)
