"""Scores beside each other, their thresholds, and the reports: known changes move known figures."""

import html.parser
import json
import os
import pickle
import re
import shutil

import cv2
import numpy as np
import pytest
import summarize
from truth_support import infos_of, perfect_record

from config import load_config
from data.ground_truth import GroundTruth
from data.synthetic import choose_scenes, write_nuscenes
from errors import UniADError, one_line_errors
from report import charts
from report.compare import STAGES
from report.scores import SCORES, find_score, lookup, score_rows, truth_root
from runtime.results import frame_path, write_json, write_record

TINY = load_config("tiny_e2e")
FRAMES = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A generated root of one scene, small pictures."""
    folder = tmp_path_factory.mktemp("data") / "nuscenes"
    write_nuscenes(folder, choose_scenes(["scene-0103"]), FRAMES, size=(64, 36))
    return folder


@pytest.fixture(scope="module")
def truth(root):
    return GroundTruth(root, TINY, scenes=["all"])


def whole_record(truth, index):
    """A perfect record with every output of an engine."""
    record, masks = perfect_record(truth, index), truth.maps(index)
    record |= {"map_drivable": masks[3], "map_lane": masks[:3].astype(np.int32)}
    return {**record, "map_lane_score": np.zeros(masks[:3].shape, np.float32)}


def write_result(folder, root, truth, change=lambda record: record, seconds=0.001):
    """A result folder as run.py writes it, perfect but for `change`."""
    for index, token in enumerate(truth.tokens):
        write_record(frame_path(folder, index, token), change(whole_record(truth, index)))
    source = {"kind": "nuScenes", "path": str(root), "version": truth.version}
    run = {"kind": "uniad-result", "convention": truth.convention, "config": TINY.__dict__}
    scenes = [{"token": head.token} for head in truth.heads]
    write_json(folder / "run.json", {**run, "identity": {"frames": source}, "scenes": scenes})
    rows = [dict.fromkeys(STAGES, seconds * (i + 1)) for i in range(len(truth))]
    write_json(folder / "latency.json", {"frames": rows})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, root, truth):
    return write_result(tmp_path_factory.mktemp("results") / "base", root, truth)


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def start(*arguments):
        try:
            with one_line_errors():
                status = summarize.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return start


def shifted(record):
    """The plan 1 m to the side, and every second track missing."""
    keep = np.arange(len(record["track_ids"])) % 2 == 0
    rows = {k: record[k][keep] for k in ("boxes_3d", "scores_3d", "labels_3d", "track_scores", "track_ids")}
    ego = {k: record[k][np.append(keep, True)] for k in ("traj", "traj_scores")}
    return {**record, **rows, **ego, "sdc_traj": record["sdc_traj"] + np.float32([1, 0])}


def test_known_changes_move_known_scores(tmp_path, root, truth, base, run):
    result = write_result(tmp_path / "result", root, truth, shifted)
    limits = ("--max-plan-error", "2", "--min-track-agreement", "0", "--min-best-mode-agreement", "0")
    status, out, err = run("-i", result, "-b", base, *limits)
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 80 or "written:" in max(out.splitlines(), key=len)
    summary = json.loads((result / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["scores"]}
    assert set(rows) == {score.name for score in SCORES}
    known = float(np.mean([truth.plan(i).mask[[1, 3, 5]].mean() for i in range(len(truth))]))
    assert rows["L2"]["base"] == pytest.approx(0, abs=1e-5)
    assert rows["L2"]["result"] == pytest.approx(known, abs=1e-5)  # 1 m where the way is known
    assert rows["L2-raw"]["difference"] == 0 and rows["IoU-f"]["result"] == 1 and rows["NDS"]["difference"] == 0
    assert rows["IoU-drivable"]["base"] == 1 and rows["AMOTA"]["difference"] < -0.2
    assert "NOISY: 1 scene, 7 keyframes" in out.replace("\n", " ") and summary["ground_truth"]["scenes"] == 1
    assert all(0.9 < row["to_driven"] < 1.1 for row in summary["worst_frames"])
    assert "AMOTA" in (result / "summary.md").read_text()
    # thresholds: what is worse is a drop, whichever way is better
    tasks = summary["tasks"]

    def broken(ours, theirs, **drops):
        return [row["name"] for row in score_rows(tasks[ours], tasks[theirs], drops) if row["kept"] is False]

    assert broken("result", "base", AMOTA=0.9, L2=1.01) == []
    assert broken("result", "base", AMOTA=0.01, L2=known - 0.01) == ["AMOTA", "L2"]
    assert broken("base", "result", AMOTA=0, L2=0) == []  # better is no drop


class _Page(html.parser.HTMLParser):
    """Notes tags that are left open and what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.links, self.charts = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href") and tag != "a"]
        self.links += [v for k, v in attributes if k == "href" and tag == "a"]
        self.charts += tag == "svg"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(tmp_path, root, truth, base, run):
    result = write_result(tmp_path / "<result>", root, truth, shifted, seconds=0.002)
    from PIL import Image

    (result / "pictures").mkdir()
    Image.new("RGB", (96, 54), "red").save(result / "pictures" / f"000001_{truth.tokens[1]}.png")
    drops = ("--max-drop", "L2-RAW=0", "NDS=0.1", "--max-drop", "amota=0.01")
    status, out, _ = run("-i", result, "-b", base, "-o", tmp_path / "out", *drops)
    broken = out.split("BROKEN:")[-1]
    assert status == 1 and "AMOTA" in broken and "NDS" not in broken and "L2-raw" not in broken
    text = (tmp_path / "out" / "summary.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open and page.charts == 6
    assert page.loads and all(link.startswith("data:image/jpeg") for link in page.loads)
    (picture,) = set(page.links)
    assert (tmp_path / "out" / picture).resolve().is_file()
    assert "prefers-color-scheme:dark" in text and "&lt;result&gt;" in text and "http" not in text
    assert not re.search(r"nan|Infinity|None", text)


def test_without_ground_truth(tmp_path, root, truth, base, run, monkeypatch):
    status, out, _ = run("-i", base, "-b", base, "-o", tmp_path / "out", "--no-ground-truth")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert status == 0 and summary["scores"] == [] and "AMOTA" not in out and "plan, raw" in out
    status, _, err = run("-i", base, "-b", base, "--no-ground-truth", "--max-drop", "AMOTA=0")
    assert status == 2 and "--ground-truth" in err
    for wrong, reason in (("AMOTA", "AMOTA=0.01"), ("speed=1", "no score 'speed'"), ("AMOTA=-1", "not a limit")):
        status, _, err = run("-i", base, "-b", base, "--max-drop", wrong)
        assert status == 2 and reason in err
    status, _, err = run("-i", base, "-b", base, "--ground-truth", tmp_path)
    assert status == 2 and err.count("\n") == 1
    # the remembered root does not fit the run any more: a note, and an error where scores are asked for
    run_json = json.loads((base / "run.json").read_text())
    gone = write_result(tmp_path / "gone", root, truth)
    write_json(gone / "run.json", {**run_json, "scenes": [{"token": "another"}]})
    status, out, _ = run("-i", gone, "-b", base)
    assert status == 0 and "not scored against ground truth" in out
    assert run("-i", gone, "-b", base, "--max-drop", "L2=1")[0] == 2


def test_infos_in_place_of_the_tables(tmp_path, root, truth, base, run):
    """The same scores but for attributes; a pickle that carries code is refused and not run."""
    infos, trap = tmp_path / "infos.pkl", tmp_path / "trap.pkl"
    infos.write_bytes(pickle.dumps(infos_of(truth, "v2.0")))
    status, _, err = run("-i", base, "-b", base, "-o", tmp_path / "out", "--infos", infos)
    assert status == 0, err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    scores = {row["name"]: row["result"] for row in summary["scores"]}
    assert scores["AMOTA"] == pytest.approx(1) and scores["IoU-f"] == 1 and scores["L2"] == pytest.approx(0, abs=1e-5)
    assert scores["NDS"] < 0.95 and any("hold no attributes" in note for note in summary["notes"])
    trap.write_bytes(pickle.dumps({"infos": [_Trap(tmp_path / "sprung")]}))
    status, _, err = run("-i", base, "-b", base, "--infos", trap)
    assert status == 2 and "no code of it was run" in err and not (tmp_path / "sprung").exists()
    status, _, err = run("-i", base, "-b", base, "--infos", infos, "--no-ground-truth")
    assert status == 2 and "--ground-truth" in err


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_outputs_that_an_engine_was_built_without_are_not_scored(tmp_path, root, truth):
    from report.evaluate import evaluate

    def small(record):
        return {key: record[key] for key in ("sdc_traj", "sdc_traj_raw", "boxes_3d")}

    reports, notes = evaluate(write_result(tmp_path / "small", root, truth, small), truth, "base")
    assert set(reports) == {"planning"} and len(notes) == 5 and "base: occupancy not scored" in notes[-1]
    facts = json.loads((tmp_path / "small" / "run.json").read_text())
    write_json(tmp_path / "small" / "run.json", {**facts, "scores": {"map": {"lanes": 0.5}, "planning": {}}})
    brought, notes = evaluate(tmp_path / "small", truth, "base")
    assert brought == {"map": {"lanes": 0.5}, **reports} and "base: map as the original computed it" in notes
    rows = {row["name"]: row for row in score_rows({}, reports, {"L2": 0.1, "NDS": 0.1})}
    assert rows["L2"]["kept"] is False  # only the result lacks it
    assert rows["NDS"]["kept"] is True and rows["NDS"]["difference"] is None
    assert lookup(reports, "planning.raw.uniad.l2.avg") is not None and lookup(reports, "a.b") is None


def test_small_parts(tmp_path):
    assert find_score("iou-N").name == "IoU-n"
    with pytest.raises(UniADError, match="no score 'x'"):
        find_score("x")
    assert truth_root({"identity": {"frames": {"kind": "frame folder", "path": str(tmp_path)}}}) is None
    assert (
        truth_root({"identity": {"frames": {"kind": "nuScenes", "path": str(tmp_path / "x"), "version": "v"}}}) is None
    )
    assert truth_root({}) is None
    assert charts.ticks(0) == [0, 1] and charts.ticks(7.3) == [0, 2, 4, 6, 8] and charts.ticks(0.1)[-1] >= 0.1
    one = charts.histogram("x", "ms", {"result": np.array([3.0])}, ["s0"])
    assert "nan" not in one


# --- films ---


def test_film(tmp_path, root, truth, base, capsys):
    """Prediction beside ground truth, two frames of a scene; H.264 with even sides, read back."""
    from report import video

    small = tmp_path / "small"
    shutil.copytree(base, small)
    for path in sorted((small / "frames").iterdir())[2:]:
        path.unlink()
    common = ["-i", str(small), "--ground-truth", str(root), "--width", "1001"]
    video.main([*common, "-o", str(tmp_path / "films"), "--scene", "scene-0103"])
    film = cv2.VideoCapture(str(tmp_path / "films" / "scene-0103.mp4"))
    codec = int(film.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
    assert codec in (b"h264", b"avc1") and film.get(cv2.CAP_PROP_FRAME_COUNT) == 2 and film.get(cv2.CAP_PROP_FPS) == 2
    image = film.read()[1].astype(int)
    assert image.shape[1] == 1000 and image.shape[0] % 2 == 0
    left, right = image[60:, :500], image[60:, 500:]
    assert np.abs(left - right).mean() < 12  # a perfect prediction looks like the truth
    video.main([*common, "-o", str(tmp_path / "truth.mp4"), "--show", "truth", "--width", "500"])
    alone = cv2.VideoCapture(str(tmp_path / "truth.mp4")).read()[1].astype(int)
    assert alone.shape[1] == 500 and np.abs(alone[60:] - right).mean() < 6
    assert np.abs(alone[60:] - right[::-1]).mean() > 20
    for more, reason in ((["--scene", "x"], "no frames of scene 'x'"), (["--data", str(tmp_path / "no")], "--data")):
        with pytest.raises(UniADError, match=reason):
            video.main([*common, "-o", str(tmp_path / "a.mp4"), *more])
    with pytest.raises(UniADError, match="--show both needs"):
        video.main(["-i", str(small), "-o", str(tmp_path / "a.mp4"), "--show", "both"])
    assert not (tmp_path / "a.mp4").exists()


def test_truth_as_a_record(truth):
    from report.video import truth_record

    index = len(truth) - 3
    record, objects, plan = truth_record(truth, index), truth.objects(index), truth.plan(index)
    assert record["driven"].shape == (2, 2) and plan.mask.sum() == 2  # two keyframes are left
    rows = np.flatnonzero((objects.labels >= 0) & (objects.points > 0))
    assert record["track_ids"].tolist() == objects.instance[rows].tolist() and len(record["traj"]) == len(rows) + 1
    ends = record["boxes_3d"][:, :2] + record["traj"][:-1, 0, -1]
    known = objects.future_mask[rows].sum(1)
    assert set(known) >= {2}
    for end, row, steps in zip(ends, rows, known):
        last = objects.future[row, steps - 1] if steps else objects.boxes[row, :2]
        np.testing.assert_allclose(end, last, atol=1e-6)
