"""run.py from end to end with a session that needs no network (fake_session.py)."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import run
from fake_session import FakeSession
from frame_factory import make_test_frame, write_frames
from support import SCRIPTS

from data.frames import save_frame
from errors import UniADError
from runtime import frame, results

FAKE = pathlib.Path(__file__).with_name("fake_session.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
SCENES = {"a": 3, "b": 3, "c": 2}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Frames of three scenes, a file that stands for an engine, and run.py with the fake session."""
    write_frames(tmp_path / "data", SCENES)
    (tmp_path / "engine.plan").write_bytes(b"weights")
    monkeypatch.setattr(run, "open_session", lambda path, device, dtype, cuda_graph: FakeSession())
    return tmp_path


def arguments(place, output="result", *more):
    return ["-i", str(place / "data"), "-e", str(place / "engine.plan"), "-o", str(place / output), *more]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a result but the timings; run.json without what names the folder."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop("latency.json")
    facts = json.loads(files["run.json"])
    facts.pop("command_line")
    return {**files, "run.json": json.dumps(facts).encode()}


def test_whole_run(place, capsys):
    run.main(arguments(place))
    result = place / "result"
    names = sorted(path.name for path in (result / "frames").iterdir())
    assert names[0] == "000000_a-000.npz"
    assert len(names) == 8
    facts = json.loads((result / "run.json").read_text())
    assert facts["complete"] is True
    assert [(s["token"], s["first"], s["frames"]) for s in facts["scenes"]] == [("a", 0, 3), ("b", 3, 3), ("c", 6, 2)]
    assert facts["convention"] == "v2.0"
    assert facts["config"]["bev_h"] == 20
    latency = json.loads((result / "latency.json").read_text())["frames"]
    assert len(latency) == 8
    for row in latency:
        assert row["whole"] == pytest.approx(sum(row[s] for s in results.STAGES[:-1]), abs=1e-6)
        assert row["load"] > 0
    submission = json.loads((result / "results_nusc.json").read_text())
    assert set(submission["results"]) == {name[7:-4] for name in names}
    assert sorted(os.listdir(result)) == ["frames", "latency.json", "results_nusc.json", "run.json"]
    # ids go on over scenes, the state of a scene does not
    ids = [results.read_arrays(path)["track_ids"].tolist() for path in sorted((result / "frames").iterdir())]
    assert ids == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 4, 5], [6], [6, 7]]
    before = contents(result)
    run.main(arguments(place))
    assert "complete already" in capsys.readouterr().out
    assert contents(result) == before


def test_collision_optimisation_flag(place):
    run.main(arguments(place))
    run.main(arguments(place, "raw", "--no-collision-optim"))
    for path in sorted((place / "result" / "frames").iterdir()):
        moved, raw = results.read_arrays(path), results.read_arrays(place / "raw" / "frames" / path.name)
        np.testing.assert_array_equal(moved["sdc_traj_raw"], raw["sdc_traj"])
        assert np.abs(moved["sdc_traj"] - moved["sdc_traj_raw"]).max() > 1e-3  # the fake occupancy is dense
        assert moved["sdc_traj"].dtype == np.float32


def test_choice_of_frames(place):
    run.main(arguments(place, "limit", "--limit", "4"))
    assert len(os.listdir(place / "limit" / "frames")) == 4
    run.main(arguments(place, "scenes", "--scenes", "a,c"))
    names = sorted(os.listdir(place / "scenes" / "frames"))
    assert [name[7:8] for name in names] == ["a", "a", "a", "c", "c"]
    with pytest.raises(UniADError, match="no scene 'x'"):
        run.main(arguments(place, "none", "--scenes", "x"))
    with pytest.raises(UniADError, match="--limit 0"):
        run.main(arguments(place, "none", "--limit", "0"))
    assert not (place / "none").exists()


def test_fix_scene_start_changes_first_frames_only(place):
    """The fake's numbers hang on the inputs of a frame, so equal records mean equal inputs."""
    run.main(arguments(place))
    run.main(arguments(place, "fixed", "--fix-scene-start"))
    same = []
    for path in sorted((place / "result" / "frames").iterdir()):
        one, other = results.read_arrays(path), results.read_arrays(place / "fixed" / "frames" / path.name)
        same.append(np.array_equal(one["sdc_traj_raw"], other["sdc_traj_raw"]))
    assert same == [False, True, True, False, True, True, False, True]


def start(place, folder, seconds):
    """`python fake_session.py ...` as a process of its own, from another folder, with relative paths."""
    (place / folder).mkdir(exist_ok=True)
    command = [sys.executable, str(FAKE), "-i", "../data", "-e", "../engine.plan", "-o", "result"]
    environment = {**ENVIRONMENT, "FAKE_SECONDS": str(seconds)}
    return subprocess.Popen(
        command, cwd=place / folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("frames_before", [1, 4])
def test_killed_run_goes_on_exactly(place, frames_before):
    """kill -9 inside the first scene, or inside the second, then the same command again."""
    whole = start(place, "whole", 0)
    assert whole.wait(60) == 0, whole.stderr.read()
    killed = start(place, "killed", 0.3)
    frames = place / "killed" / "result" / "frames"
    deadline = time.monotonic() + 60
    while not frames.is_dir() or len(list(frames.glob("*.npz"))) < frames_before:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    done = len(list(frames.glob("*.npz")))
    assert frames_before <= done < 8
    assert json.loads((frames.parent / "run.json").read_text())["complete"] is False
    again = start(place, "killed", 0)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert (b"going on at frame 4" in out) == (done >= 3)
    assert contents(place / "killed" / "result") == contents(place / "whole" / "result")
    latency = json.loads((frames.parent / "latency.json").read_text())["frames"]
    assert len(latency) == 8
    assert (latency[0]["engine"] > 0.2) == (done >= 3)  # the first scene's times are the killed run's


def test_forgetting_the_state_would_be_caught(place, monkeypatch):
    """The resume test has teeth: without the sequence's state, or the session's, the bytes differ."""
    run.main(arguments(place))
    expected = contents(place / "result")
    for number, what in enumerate(("sequence", "session", None)):
        broken = f"broken{number}"
        stop_after(monkeypatch, 4)
        with pytest.raises(KeyboardInterrupt):
            run.main(arguments(place, broken))
        monkeypatch.undo()
        monkeypatch.setattr(run, "open_session", lambda path, device, dtype, cuda_graph: FakeSession())
        progress = results.load_progress(place / broken)
        assert progress[0] == 3
        if what == "sequence":
            zeros = {key: np.zeros_like(value) for key, value in progress[1].items()}
            results.save_progress(place / broken, 3, zeros, progress[2], progress[3])
        elif what == "session":
            results.save_progress(place / broken, 3, progress[1], {"max_obj_id": np.zeros(1, np.int32)}, progress[3])
        run.main(arguments(place, broken))
        frames = {k: v for k, v in contents(place / broken).items() if k.startswith("frames/")}
        assert (frames == {k: expected[k] for k in frames}) == (what is None)


def stop_after(monkeypatch, count):
    """Ctrl-C at the frame after `count`."""
    calls = []

    def infer(self, inputs, original=FakeSession.infer):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return original(self, inputs)

    monkeypatch.setattr(FakeSession, "infer", infer)


def test_result_of_something_else_is_refused(place):
    run.main(arguments(place))
    before = contents(place / "result")
    (place / "engine.plan").write_bytes(b"other weights")
    with pytest.raises(UniADError, match=r"result of another run \(engine differ\).*--fresh"):
        run.main(arguments(place))
    (place / "engine.plan").write_bytes(b"weights")
    for flag in (["--fix-scene-start"], ["--no-collision-optim"], ["--limit", "2"]):
        with pytest.raises(UniADError, match="result of another run"):
            run.main(arguments(place, "result", *flag))
    save_frame(place / "data" / "000001.npz", make_test_frame(0, "a"))
    with pytest.raises(UniADError, match=r"\(frames differ\)"):  # a frame file was written again
        run.main(arguments(place))
    assert contents(place / "result") == before
    (place / "mine").mkdir()
    (place / "mine" / "thesis.tex").write_text("\\begin")
    for more in ([], ["--fresh"]):
        with pytest.raises(UniADError, match="exists and is not a result"):
            run.main(arguments(place, "mine", *more))
    assert os.listdir(place / "mine") == ["thesis.tex"]


def test_fresh_replaces_a_result_and_only_that(place):
    run.main(arguments(place))
    before = contents(place / "result")
    (place / "result" / "notes.txt").write_text("keep")
    run.main(arguments(place, "result", "--limit", "2", "--fresh"))
    assert len(os.listdir(place / "result" / "frames")) == 2
    assert (place / "result" / "notes.txt").read_text() == "keep"
    (place / "result" / "notes.txt").unlink()
    run.main(arguments(place, "result", "--fresh"))
    assert contents(place / "result") == before


def test_pictures(place):
    pytest.importorskip("PIL")
    run.main(arguments(place, "result", "--limit", "2"))
    run.main(arguments(place, "result", "--limit", "2", "--visualize"))  # of a complete result, too
    pictures = sorted((place / "result" / "pictures").iterdir())
    assert [p.name for p in pictures] == ["000000_a-000.png", "000001_a-001.png"]


def test_films(place):
    """Of results alone: a folder of frames has no ground truth, which is said before anything is run."""
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(UniADError, match=r"--video both needs ground truth: .* is no nuScenes root; use"):
        run.main(arguments(place, "result", "--video", "both"))
    assert not (place / "result").exists()
    run.main(arguments(place, "result", "--limit", "4", "--video"))
    films = sorted((place / "result" / "videos").iterdir())
    assert [film.name for film in films] == ["a.mp4", "b.mp4"]
    counts = [cv2.VideoCapture(str(film)).get(cv2.CAP_PROP_FRAME_COUNT) for film in films]
    assert counts == [3, 1]
    run.main(arguments(place, "result", "--limit", "1", "--fresh"))
    assert not (place / "result" / "videos").exists()


def test_bad_frame_in_the_middle(place):
    """What is whole stays and can be continued once the frame is repaired."""
    run.main(arguments(place))
    save_frame(place / "data" / "000005.npz", make_test_frame(2, "b"))  # an earlier time than the frame before
    good, bad = (place / "data" / "000005.npz"), place / "bad"
    with pytest.raises(UniADError, match=r"b-002: timestamp .* time order"):
        run.main(arguments(place, "bad"))
    assert len(os.listdir(bad / "frames")) == 3  # the frame before it was still in flight
    assert not (bad / "results_nusc.json").exists()
    assert not list(bad.rglob("*.part"))
    good.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(UniADError, match=r"000005\.npz: not a readable frame file"):
        run.main(arguments(place, "bad", "--fresh"))


def test_errors_are_one_line(place):
    """As a user sees them: one line, exit status 2, nothing half-written."""

    def fails(*changes, environment=None):
        command = [sys.executable, str(FAKE), *arguments(place, "failed"), *changes]
        done = subprocess.run(command, env={**ENVIRONMENT, **(environment or {})}, capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2, done.stderr
        assert len(lines) == 1
        assert "Traceback" not in done.stderr
        return lines[0]

    assert "no such folder" in fails("-i", str(place / "nowhere"))
    assert not (place / "failed").exists()
    assert "frame a-001: the engine's sdc_traj_raw holds NaN" in fails(environment={"FAKE_BREAK": "nan"})
    assert len(os.listdir(place / "failed" / "frames")) == 1
    (place / "file").write_text("")
    assert "cannot write" in fails("-o", str(place / "file" / "result"))


def test_real_entry_point_refuses_what_is_not_an_engine(place):
    command = [sys.executable, str(SCRIPTS / "run.py"), *arguments(place)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {place / 'engine.plan'}: not an engine of builder.py; give the engine.plan that it wrote"
    ]
    assert not (place / "result").exists()


def test_decoding_runs_ahead_but_bounded():
    """The loader is at most AHEAD frames before the consumer, and errors come at their frame's turn."""
    loaded = []

    class Source:
        def load(self, index, img):
            loaded.append(index)
            if index == 6:
                raise UniADError("frame 6")
            return index

    seen = []
    with pytest.raises(UniADError, match="frame 6"):
        for index, _, _ in frame.load_ahead(Source(), 0, 20, lambda: None):
            seen.append(index)
            time.sleep(0.01)
            assert max(loaded) <= index + frame.AHEAD
    assert seen == [0, 1, 2, 3, 4, 5]
    assert max(loaded) > 6 or len(loaded) == 7


def test_frames_are_decoded_side_by_side():
    """AHEAD at a time, and handed out in order; no thread is left, where the run ends early either."""
    together = threading.Barrier(frame.AHEAD)
    buffers = iter(range(100, 200))
    lock, given = threading.Lock(), []

    def buffer():
        with lock:
            return next(buffers)

    class Source:
        def load(self, index, img):
            if index < frame.AHEAD:
                together.wait(20)  # never passed by one alone
            time.sleep(0.003 * (index % 3))
            given.append(img)
            return index, img

    loading = frame.load_ahead(Source(), 0, 20, buffer)
    frames = [(index, loaded) for index, loaded, _ in loading]
    assert [index for index, _ in frames] == [loaded[0] for _, loaded in frames] == list(range(20))
    assert sorted(given) == list(range(100, 120))  # a buffer of its own for each
    loading = frame.load_ahead(Source(), frame.AHEAD, 20, buffer)
    next(loading)
    loading.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("load")]


def test_needs_neither_torch_nor_the_devkit():
    """Machines that run a TensorRT engine on frame files have neither."""
    code = (
        "import sys, run; print([m for m in ('torch', 'nuscenes', 'casadi', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
