"""Motion metrics: perfect futures, shifted ones, and cases counted by hand."""

import numpy as np
import pytest
from support import assert_close
from truth_support import changed, perfect_results, real_truth

pytest.importorskip("nuscenes")
from metrics import motion
from metrics.boxes import TRACKED
from metrics.motion import MERGED, evaluate_motion


@pytest.fixture(scope="module")
def clip():
    return real_truth("clip")


@pytest.fixture(scope="module")
def perfect(clip):
    """Scores that all differ: equal ones would leave the averages over recall to the order of the boxes."""
    rng = np.random.default_rng(0)
    return changed(
        perfect_results(clip),
        lambda _, record: {**record, "scores_3d": rng.uniform(0.4, 0.9, len(record["scores_3d"]))},
    )


def _moved(x, steps=slice(None), modes=slice(None)):
    """Futures moved by x metres."""

    def change(order, record):
        traj = record["traj"].copy()
        traj[:, modes, steps, 0] += x
        return {**record, "traj": traj}

    return change


def _counts(truth, names):
    """Annotated agents of some classes that count (in range, with points), and those with a known future."""
    agents = known = 0
    for index in range(len(truth)):
        objects, ego = truth.objects(index), truth.pose(index).ego_translation
        distance = np.linalg.norm((objects.translation - ego)[:, :2], axis=1)
        rows = np.isin(objects.names, names) & (distance < 50) & (objects.points + objects.radar_points > 0)
        agents += rows.sum()
        known += (rows & objects.future_mask[:, 0]).sum()
    return agents, known


def test_perfect_on_mini_val():
    """All errors 0; EPA is the share of agents whose future is known at all."""
    truth = real_truth()
    report = evaluate_motion(perfect_results(truth), truth)
    assert (set(report["merged"]), set(report["classes"])) == ({"car", "pedestrian"}, set(TRACKED))
    for part in ("merged", "classes"):
        for name, row in report[part].items():
            if name == "trailer":
                assert row["boxes"] == 0 and row["min_ade"] is None and row["epa"] is None
                continue
            assert_close([row["min_ade"], row["min_fde"], row["miss_rate"]], np.zeros(3), 1e-5, name)
            assert 0.8 < row["epa"] <= 1
    agents, known = _counts(truth, ["car"])
    car = report["classes"]["car"]
    assert car["boxes"] == agents
    assert_close(car["epa"], known / agents, 1e-6, "EPA")
    assert known < agents
    vehicles = [name for name, motion_name in MERGED.items() if motion_name == "car"]
    assert report["merged"]["car"]["boxes"] == _counts(truth, vehicles)[0] > agents
    assert report["merged"]["pedestrian"] == report["classes"]["pedestrian"]


def test_shifted_futures(clip, perfect):
    one = evaluate_motion(changed(perfect, _moved(1.0)), clip)["classes"]["pedestrian"]
    # Agents without a known future count as 0, so the means are of all matched agents.
    assert 0.3 < one["min_ade"] < 1.0 and abs(one["min_ade"] - one["min_fde"]) < 1e-6
    assert one["miss_rate"] == 0
    three = evaluate_motion(changed(perfect, _moved(3.0)), clip)["classes"]["pedestrian"]
    assert_close([three["min_ade"], three["min_fde"]], [3 * one["min_ade"], 3 * one["min_fde"]], 1e-5, "3 m")
    assert_close(three["miss_rate"], one["min_ade"], 1e-5, "as many miss as have a future")
    assert three["epa"] == 0 and three["ap_min_fde"] == 0  # matched, but no end is right
    one_good_mode = evaluate_motion(changed(perfect, _moved(3.0, modes=slice(1, None))), clip)
    assert one_good_mode["classes"]["pedestrian"]["min_fde"] < 1e-5  # the best of six


def test_nothing_predicted(clip, perfect):
    empty = {"boxes_3d": np.zeros((0, 9)), "scores_3d": np.zeros(0), "labels_3d": np.zeros(0, int)}
    nothing = changed(perfect, lambda _, record: {**record, **empty, "traj": record["traj"][-1:]})
    row = evaluate_motion(nothing, clip)["merged"]["car"]
    assert (row["min_ade"], row["min_fde"], row["miss_rate"], row["epa"], row["ap_min_fde"]) == (
        1.0,
        1.0,
        1.0,
        0.0,
        0.0,
    )


def test_missing_tenth(clip, perfect):
    """Every tenth agent left out costs its hit in EPA and nothing else; ids are not looked at."""

    def without(order, record):
        keep = np.arange(len(record["boxes_3d"])) % 10 != 0
        rows = {key: record[key][keep] for key in ("boxes_3d", "scores_3d", "labels_3d", "track_ids")}
        return {**record, **rows, "traj": record["traj"][np.append(keep, True)]}

    lost = 0
    for index, token in enumerate(clip.tokens):
        objects, ids = clip.objects(index), perfect.records[token]["track_ids"][::10]
        distance = np.linalg.norm((objects.translation - clip.pose(index).ego_translation)[:, :2], axis=1)
        rows = np.isin(objects.instance, ids) & (objects.names == "pedestrian") & (distance < 40)
        lost += (rows & objects.future_mask[:, 0]).sum()
    before, after = (evaluate_motion(r, clip)["classes"]["pedestrian"] for r in (perfect, changed(perfect, without)))
    assert lost > 3
    assert_close(after["epa"], before["epa"] - lost / before["boxes"], 1e-6, "EPA")
    assert_close([after["min_ade"], after["miss_rate"]], [0, 0], 1e-5, "the others are as good as before")
    swapped = changed(perfect, lambda _, record: {**record, "track_ids": record["track_ids"][::-1]})
    assert evaluate_motion(swapped, clip) == evaluate_motion(perfect, clip)


def test_false_positives_cost_half(clip, perfect):
    """Every pedestrian twice, the second one 30 m up the road and less certain."""

    def doubled(order, record):
        rows = np.flatnonzero(record["labels_3d"] == 8)
        far = record["boxes_3d"][rows].copy()
        far[:, 0] = 0.5 * np.arange(len(rows))  # in range, where nobody walks
        far[:, 1] = -8.0
        near = np.linalg.norm(record["boxes_3d"][:, None, :2] - far[None, :, :2], axis=-1).min(0) < 3
        far, rows = far[~near], rows[~near]
        return {
            **record,
            "boxes_3d": np.concatenate([record["boxes_3d"], far]),
            "scores_3d": np.concatenate([record["scores_3d"], np.full(len(rows), 0.1, np.float32)]),
            "labels_3d": np.concatenate([record["labels_3d"], record["labels_3d"][rows]]),
            "track_ids": np.concatenate([record["track_ids"], 10000 + rows]),
            "traj": np.concatenate([record["traj"][:-1], record["traj"][rows], record["traj"][-1:]]),
        }

    more = changed(perfect, doubled)
    added = sum(len(more.records[t]["boxes_3d"]) - len(perfect.records[t]["boxes_3d"]) for t in clip.tokens)
    assert added > 20
    before = evaluate_motion(perfect, clip)["classes"]["pedestrian"]
    after = evaluate_motion(more, clip)["classes"]["pedestrian"]
    assert_close(after["epa"], before["epa"] - 0.5 * added / before["boxes"], 1e-6, "EPA")
    assert_close(after["min_ade"], before["min_ade"], 1e-6, "errors are of matched agents only")


def test_errors_by_hand():
    """Two modes over four known steps: off by 1 m always, and by 0, 0, 0, 3 m."""
    future = np.array([[1.0, 0], [2, 0], [3, 0], [4, 0]])
    modes = np.zeros((2, 12, 2))
    modes[0, :4], modes[1, :4] = future + [0, 1], future
    modes[1, 3, 1] = 3
    assert motion._trajectory_errors(modes, future) == (0.75, 1.0, 0.0)
    assert motion._end_error(modes, future) == 1.0
    assert motion._trajectory_errors(modes[1:], future) == (0.75, 3.0, 1.0)
    late = np.zeros((1, 12, 2))
    late[0, 1:4] = future[:3]  # a step behind: 1 m everywhere, at three times the speed 3 m
    assert motion._trajectory_errors(late, future) == (1.0, 1.0, 0.0)
    assert motion._trajectory_errors(3 * late, 3 * future) == (3.0, 3.0, 1.0)
    assert motion._trajectory_errors(modes, future[:0]) == (0.0, 0.0, 0.0)
    assert motion._end_error(modes, future[:0]) == np.inf
