"""Comparison of results: known perturbations give known errors, bad input gives one line, limits give exit status 1."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from summarize import main
from support import SCRIPTS

from errors import UniADError, one_line_errors
from report import compare as cmp

TRACKS, DETECTIONS, GRID = 4, 12, 20


def make_frame(seed):
    """A result record of small sizes with well separated boxes."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        centre = np.stack([6.0 * np.arange(count) - 30, rng.uniform(-20, 20, count), rng.uniform(-1, 1, count)], 1)
        rest = [rng.uniform(1, 4, (count, 3)), rng.uniform(-3, 3, (count, 1)), rng.normal(0, 3, (count, 2))]
        return np.concatenate([centre, *rest], 1).astype(np.float32)

    occupied = np.zeros((5, GRID, GRID), np.int64)
    occupied[:, 2:5, 2:6], occupied[:, 10:14, 8:10], occupied[1:, 10:12, 14:17] = 1, 2, 3
    scores = np.log(rng.dirichlet(np.ones(6), TRACKS + 1))
    return {
        "boxes_3d": boxes(TRACKS),
        "scores_3d": rng.uniform(0.4, 0.9, TRACKS).astype(np.float32),
        "labels_3d": rng.integers(0, 10, TRACKS),
        "track_scores": rng.uniform(0.4, 0.9, TRACKS).astype(np.float32),
        "track_ids": np.array([7, 3, 11, 5]),
        "boxes_3d_det": boxes(DETECTIONS),
        "scores_3d_det": rng.uniform(0, 1, DETECTIONS).astype(np.float32),
        "labels_3d_det": rng.integers(0, 10, DETECTIONS),
        "traj": rng.normal(0, 3, (TRACKS + 1, 6, 12, 5)).astype(np.float32),
        "traj_scores": scores.astype(np.float32),
        "occ_seg": (occupied > 0).astype(np.int64),
        "occ_ins": occupied,
        "map_drivable": rng.random((GRID, GRID)) > 0.5,
        "map_lane": (rng.random((3, GRID, GRID)) > 0.7).astype(np.int64),
        "map_lane_score": rng.random((3, GRID, GRID)).astype(np.float32),
        "sdc_traj_raw": rng.normal(0, 3, (6, 2)).astype(np.float32),
        "sdc_traj": rng.normal(0, 3, (6, 2)).astype(np.float32),
    }


def write_result(path, frames, scale=1.0, latency=True, convention="v2.0"):
    """A result folder; the engine of frame i takes scale * (i + 1) ms."""
    (path / "frames").mkdir(parents=True)
    for order, frame in enumerate(frames):
        np.savez(path / "frames" / f"{order:06d}_sample{order}.npz", **frame)
    (path / "run.json").write_text(json.dumps({"convention": convention}))
    if latency:
        rows = [dict.fromkeys(cmp.STAGES, scale * 0.001 * (i + 1)) for i in range(len(frames))]
        (path / "latency.json").write_text(json.dumps({"frames": rows}))
    return path


@pytest.fixture
def frames():
    return [make_frame(seed) for seed in range(3)]


@pytest.fixture
def base(tmp_path, frames):
    return write_result(tmp_path / "base", frames)


def measure(tmp_path, base, frames, name="result"):
    result = write_result(tmp_path / name, frames)
    return cmp.compare(cmp.load_result(result, "result"), cmp.load_result(base, "base result"))


def changed(frames, **functions):
    """Frames with some arrays replaced by function(array)."""
    return [{**frame, **{key: function(frame[key]) for key, function in functions.items()}} for frame in frames]


def run_script(*arguments):
    """The script as a user starts it: its exit status and texts."""
    command = [sys.executable, str(SCRIPTS / "summarize.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def summarize(capsys, monkeypatch):
    """The same inside this process, which saves the imports."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        try:
            with one_line_errors():
                status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def test_a_result_equals_itself(tmp_path, base, frames):
    metrics = measure(tmp_path, base, frames)
    assert set(metrics) == {metric.name for metric in cmp.METRICS}
    for metric in cmp.METRICS:
        expected = 1.0 if metric.is_share else 0.0
        assert metrics[metric.name]["mean"] == metrics[metric.name]["worst"] == expected, metric.name
        assert metrics[metric.name]["count"] > 0


def shift_x(boxes):
    return boxes + np.eye(9, dtype=np.float32)[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"boxes_3d": shift_x}, {"track_centre_error": 1}),
        ({"boxes_3d_det": shift_x}, {"detection_centre_error": 1}),
        ({"boxes_3d": lambda b: b * [1, 1, 1, 1, 1, 1, 1, 0, 0]}, {"track_velocity_error": None}),
        ({"boxes_3d": lambda b: b + np.eye(9)[4] * 0.25}, {"track_size_error": 0.25}),
        ({"boxes_3d": lambda b: b + np.eye(9)[6] * (2 * np.pi + 0.1)}, {"track_yaw_error": 0.1}),
        ({"scores_3d": lambda s: s - 0.125}, {"track_score_error": 0.125}),
        ({"traj": lambda t: t + [3, 4, 0, 0, 0]}, {"traj_error": 5, "ego_traj_error": 5}),
        ({"traj": lambda t: np.concatenate([t[:-1], t[-1:] + 1])}, {"ego_traj_error": 2**0.5}),
        ({"map_lane_score": lambda s: s + 0.5}, {"lane_score_error": 0.5}),
        ({"sdc_traj": lambda p: p + [0, 2]}, {"plan_error": 2, **{f"plan_{s}s_error": 2 for s in (1, 2, 3)}}),
        ({"sdc_traj_raw": lambda p: p + np.eye(6)[[3]].T * [0, 6]}, {"raw_plan_error": 1, "raw_plan_2s_error": 6}),
    ],
)
def test_known_changes_give_known_errors(tmp_path, base, frames, changes, expected):
    metrics = measure(tmp_path, base, changed(frames, **changes))
    for metric in cmp.METRICS:
        mean = metrics[metric.name]["mean"]
        if metric.name not in expected:
            assert mean == pytest.approx(1.0 if metric.is_share else 0.0, abs=1e-6), metric.name
        elif expected[metric.name] is not None:
            assert mean == pytest.approx(expected[metric.name], abs=1e-5), metric.name
        else:
            assert mean > 0.1


def test_tracks_are_matched_by_id(tmp_path, base, frames):
    order = [2, 0, 3, 1]
    shuffled = [
        {
            k: v[order] if k in ("boxes_3d", "scores_3d", "labels_3d", "track_scores", "track_ids") else v
            for k, v in f.items()
        }
        for f in frames
    ]
    for frame in shuffled:
        for key in ("traj", "traj_scores"):
            frame[key] = frame[key][[*order, -1]]
    metrics = measure(tmp_path, base, shuffled)
    assert metrics["track_agreement"]["mean"] == 1 and metrics["track_centre_error"]["worst"] == 0
    assert metrics["traj_error"]["worst"] == 0


def test_two_swapped_ids(tmp_path, base, frames):
    metrics = measure(tmp_path, base, changed(frames, track_ids=lambda ids: ids[[1, 0, 2, 3]]))
    distance = [np.linalg.norm(f["boxes_3d"][0, :3] - f["boxes_3d"][1, :3]) for f in frames]
    assert metrics["track_agreement"]["mean"] == 1
    assert metrics["track_centre_error"]["mean"] == pytest.approx(np.mean(distance) / 2, rel=1e-5)
    worst = int(np.argmax(distance))
    assert metrics["track_centre_error"]["worst"] == pytest.approx(max(distance), rel=1e-5)
    assert metrics["track_centre_error"]["frame"] == f"{worst:06d}_sample{worst}"


def test_other_ids_and_labels(tmp_path, base, frames):
    metrics = measure(tmp_path, base, changed(frames, track_ids=lambda ids: ids + [0, 0, 0, 100]))
    assert metrics["track_agreement"]["mean"] == pytest.approx(3 / 5)  # three common, five in all
    assert metrics["track_centre_error"]["worst"] == 0
    metrics = measure(tmp_path, base, changed(frames, labels_3d=lambda n: (n + [1, 0, 0, 0]) % 10), "labels")
    assert metrics["track_label_agreement"]["mean"] == pytest.approx(3 / 4)


def test_detections_too_far_apart_do_not_match(tmp_path, base, frames):
    away = changed(
        frames, boxes_3d_det=lambda b: b + np.eye(9)[1] * np.where(np.arange(DETECTIONS) < 3, 2.5, 0)[:, None]
    )
    metrics = measure(tmp_path, base, away)
    assert metrics["detection_agreement"]["mean"] == pytest.approx(9 / 15)
    assert metrics["detection_centre_error"]["worst"] == 0


def test_greedy_matching():
    a, b = np.array([[0.0], [1.0], [5.0]]), np.array([[0.9], [0.0], [8.0]])
    rows, columns = cmp.match_by_distance(a, b, 2.0)
    assert list(zip(rows, columns)) == [(0, 1), (1, 0)]
    assert len(cmp.match_by_distance(np.zeros((0, 3)), np.zeros((2, 3)), 2.0)[0]) == 0
    same = np.zeros((4, 2))  # equal points: by rank
    assert (np.array(cmp.match_by_distance(same, same, 1.0)) == np.arange(4)).all()


def test_iou_of_map_and_occupancy(tmp_path, base, frames):
    empty = changed(frames, map_drivable=np.zeros_like, occ_seg=lambda s: s * 0)
    metrics = measure(tmp_path, base, empty)
    assert metrics["drivable_iou"]["mean"] == metrics["occ_iou"]["mean"] == 0

    def half(mask):
        out = mask.copy()
        out[1].flat[np.flatnonzero(mask[1])[::2]] = 0
        return out

    metrics = measure(tmp_path, base, changed(frames, map_lane=half), "half")
    kept = sum(half(f["map_lane"])[1].sum() for f in frames) / sum(f["map_lane"][1].sum() for f in frames)
    assert metrics["lane_crossing_iou"]["mean"] == pytest.approx(kept)
    assert metrics["lane_divider_iou"]["mean"] == metrics["lane_edge_iou"]["mean"] == 1


def test_occupancy_instances_may_be_renumbered(tmp_path, base, frames):
    renumber = np.array([0, 3, 1, 2])
    metrics = measure(tmp_path, base, changed(frames, occ_ins=lambda n: renumber[n]))
    assert metrics["occ_instance_agreement"]["mean"] == 1
    merge = np.array([0, 1, 1, 3])  # not a renumbering: the smaller of the two is lost
    metrics = measure(tmp_path, base, changed(frames, occ_ins=lambda n: merge[n]), "merged")
    sizes = np.bincount(frames[0]["occ_ins"].ravel(), minlength=4)
    expected = 1 - min(sizes[1], sizes[2]) / sizes[1:].sum()
    assert metrics["occ_instance_agreement"]["mean"] == pytest.approx(expected)


def without_tracks(frames):
    few = changed(frames, traj=lambda t: t[-1:], traj_scores=lambda s: s[-1:])
    keys = ("boxes_3d", "scores_3d", "labels_3d", "track_scores", "track_ids")
    return changed(few, occ_ins=lambda n: n * 0, occ_seg=lambda n: n * 0, **{key: lambda v: v[:0] for key in keys})


def test_no_tracks_and_no_occupancy(tmp_path, base, frames):
    metrics = measure(tmp_path, base, without_tracks(frames))
    assert metrics["track_agreement"]["mean"] == metrics["occ_iou"]["mean"] == 0  # the base has some
    assert metrics["track_centre_error"]["mean"] is None
    both = write_result(tmp_path / "empty", without_tracks(frames))
    metrics = cmp.compare(cmp.load_result(both, "result"), cmp.load_result(both, "base result"))
    assert metrics["track_agreement"]["mean"] is None and metrics["occ_iou"]["mean"] is None
    assert metrics["ego_traj_error"]["mean"] == 0


# --- the script ---


def test_script_exit_status(tmp_path, base, frames):
    status, out, err = run_script("-i", base, "-b", base)
    assert (status, err) == (0, "") and "all limits kept" in out
    result = write_result(tmp_path / "result", changed(frames, sdc_traj=lambda p: p + [0, 0.25]))
    status, out, _ = run_script("-i", result, "-b", base)
    assert status == 1 and "BROKEN: plan, optimised" in out
    drop_frame(result)
    status, _, err = run_script("-i", result, "-b", base)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_script_writes_reports(base, summarize):
    assert summarize("-i", base, "-b", base)[0] == 0
    summary = json.loads((base / "summary.json").read_text())
    assert summary["passed"] and summary["frames"] == 3
    assert summary["latency"]["ratio_p50"]["whole"] == 1
    assert "all limits kept" in (base / "summary.md").read_text()
    assert not list(base.glob(".*"))


def test_script_limits(tmp_path, base, frames, summarize):
    result = write_result(tmp_path / "result", changed(frames, sdc_traj=lambda p: p + [0, 0.25]), scale=2)
    folders = ("-i", result, "-b", base, "-o", tmp_path / "out")
    assert summarize(*folders)[0] == 1
    assert "BROKEN" in (tmp_path / "out" / "summary.md").read_text() and not (result / "summary.json").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["name"] for row in summary["metrics"] if row["kept"] is False] == ["plan_error"]
    assert not summary["passed"]
    assert summarize(*folders, "--max-plan-error", "0.26")[0] == 0
    assert summarize(*folders, "--max-plan-error", "0.24")[0] == 1
    status, out, _ = summarize(*folders, "--max-plan-error", "1", "--max-latency-ratio", "1.5")
    assert status == 1 and "latency ratio" in out
    assert summarize(*folders, "--max-plan-error", "1", "--max-latency-ratio", "2.1")[0] == 0
    _, out, _ = summarize("--help")
    assert "--max-plan-error" in out and "(default 0.1)" in out and "--min-occ-iou" in out


def test_script_worst_frame(tmp_path, base, frames, summarize):
    one_bad = [*changed(frames[:1], sdc_traj=lambda p: p + [0, 0.2]), *frames[1:]]
    result = write_result(tmp_path / "result", one_bad)
    assert summarize("-i", result, "-b", base)[0] == 0  # 0.067 m in the mean
    assert summarize("-i", result, "-b", base, "--worst")[0] == 1


def test_latency_statistics_and_missing_latency(tmp_path, base, frames, summarize):
    stats = cmp.summarize_latency({"whole": np.array([9.0, 0.001, 0.002, 0.003])}, skip=1)["whole"]
    assert stats["p50"] == pytest.approx(2) and stats["mean"] == pytest.approx(2) and 2.9 < stats["p99"] < 3
    result = write_result(tmp_path / "result", frames, latency=False)
    status, out, _ = summarize("-i", result, "-b", base)
    assert status == 0 and "no latency.json" in out
    assert json.loads((result / "summary.json").read_text())["latency"]["result"] is None
    status, _, err = summarize("-i", result, "-b", base, "--max-latency-ratio", "1")
    assert status == 2 and "latency.json" in err


@pytest.mark.parametrize("side", ["-i", "-b"])
def test_script_names_the_bad_side_in_one_line(tmp_path, base, frames, side, summarize):
    folders = {"-i": write_result(tmp_path / "result", frames), "-b": base}
    drop_frame(folders[side])
    status, _, err = summarize("-i", folders["-i"], "-b", base)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert str(folders[side]) in err and not (folders["-i"] / "summary.json").exists()
    folders[side] = tmp_path / "absent"
    status, _, err = summarize("-i", folders["-i"], "-b", folders["-b"])
    assert status == 2 and "no such folder" in err and err.count("\n") == 1


def test_script_unwritable_output_and_bad_flags(tmp_path, base, summarize):
    (tmp_path / "file").write_text("")
    status, _, err = summarize("-i", base, "-b", base, "-o", tmp_path / "file" / "out")
    assert status == 2 and "cannot write" in err and err.count("\n") == 1
    for flags in (("--max-plan-error", "-1"), ("--max-plan-error", "nan"), ("--warmup", "-1")):
        assert summarize("-i", base, "-b", base, *flags)[0] == 2


def drop_frame(path):
    next(path.glob("frames/000001*")).unlink()


def truncate(path):
    file = next(path.glob("frames/000001*"))
    file.write_bytes(file.read_bytes()[:-300])


def flip_bit(path):
    file = next(path.glob("frames/000001*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def repeat_order(path):
    file = next(path.glob("frames/000002*"))
    file.rename(file.with_name("000000_sample2.npz"))


def strange_name(path):
    next(path.glob("frames/000002*")).rename(path / "frames" / "last.npz")


def not_an_archive(path):
    np.save(path / "frames" / "x.npy", np.zeros(3))
    os.replace(path / "frames" / "x.npy", next(path.glob("frames/000001*")))


def rewrite(key, function):
    def apply(path):
        file = next(path.glob("frames/000001*"))
        with np.load(file) as stored:
            arrays = dict(stored)
        arrays[key] = function(arrays[key])
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})

    return apply


def poison(array):
    array = array.copy()
    array.flat[3] = np.nan
    return array


def latency_text(text):
    return lambda path: (path / "latency.json").write_text(text)


BROKEN = {
    "frame missing": (drop_frame, "lacks 1 of the 3 frames.*000001_sample1"),
    "truncated": (truncate, "000001_sample1.npz: not a readable frame file"),
    "bit flipped": (flip_bit, "000001_sample1.npz"),
    "not an archive": (not_an_archive, "000001_sample1.npz: not a readable frame file"),
    "array missing": (rewrite("traj", lambda a: None), "traj missing"),
    "pickled array": (rewrite("traj", lambda a: np.array([{}])), "not a readable frame file"),
    "wrong shape": (rewrite("traj", lambda a: a[1:]), "traj has shape"),
    "wrong type": (rewrite("track_ids", lambda a: a.astype(str)), "track_ids holds"),
    "other grid": (rewrite("sdc_traj", lambda a: a[:4]), "sdc_traj has shape"),
    "NaN": (rewrite("boxes_3d", poison), "boxes_3d holds NaN"),
    "id twice": (rewrite("track_ids", lambda a: a * 0), "a track id occurs twice"),
    "two of one order": (repeat_order, "two files for frame 0"),
    "strange name": (strange_name, "last.npz is not named"),
    "no frames": (lambda p: [f.unlink() for f in p.glob("frames/*")], "no frames in it"),
    "no run.json": (lambda p: (p / "run.json").unlink(), "not a result of run.py"),
    "bad run.json": (lambda p: (p / "run.json").write_text("[1]"), "run.json: holds no JSON object"),
    "other convention": (lambda p: (p / "run.json").write_text('{"convention": "v1.0.1"}'), "box conventions differ"),
    "latency not JSON": (latency_text("{"), "latency.json: not readable"),
    "latency without frames": (latency_text('{"frames": []}'), "latency.json: holds no list"),
    "latency without a stage": (latency_text('{"frames": [{"load": 1}]}'), "latency.json: a stage is missing"),
    "negative latency": (
        latency_text(json.dumps({"frames": [dict.fromkeys(cmp.STAGES, -1.0)]})),
        "latency.json: stage load holds a negative",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_bad_results(tmp_path, base, frames, case):
    damage, message = BROKEN[case]
    result = write_result(tmp_path / "result", frames)
    damage(result)
    with pytest.raises(UniADError, match=message) as caught:
        cmp.compare(cmp.load_result(result, "result"), cmp.load_result(base, "base result"))
    assert "\n" not in str(caught.value)


def test_results_of_other_models(tmp_path, base, frames):
    other = changed(
        frames, map_drivable=lambda m: m[:10], map_lane=lambda m: m[:, :10], map_lane_score=lambda m: m[:, :10]
    )
    with pytest.raises(UniADError, match="10 map rows, but 20 in the base"):
        measure(tmp_path, base, other)
