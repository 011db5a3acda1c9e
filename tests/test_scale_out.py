"""A run by scenes: the same bytes in any order, by any number of processes, and after one of them was killed."""

import json
import multiprocessing
import pathlib
import threading
import time

import numpy as np
import pytest
import run
from fake_session import FakeSession, open_fake
from frame_factory import SMALL, write_frames

from data.frames import FrameFolder
from errors import UniADError
from runtime import results, scale_out
from runtime.sequence import SequenceState

SCENES = {"a": 3, "b": 4, "c": 2, "d": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Frames of four scenes, a file that stands for an engine, and the result of one process."""
    folder = tmp_path_factory.mktemp("scenes")
    write_frames(folder / "data", SCENES)
    (folder / "engine.plan").write_bytes(b"weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_session", open_fake)
        run.main(arguments(folder, folder / "whole"))
    return folder


def arguments(place, output, *more):
    return ["-i", str(place / "data"), "-e", str(place / "engine.plan"), "-o", str(output), *more]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a result but the timings; run.json without what names the run."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop("latency.json")
    facts = json.loads(files["run.json"])
    return {**files, "run.json": json.dumps({k: v for k, v in facts.items() if k not in ("command_line", "workers")})}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(run, "open_session", open_fake)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("broken", [None, "scene_start", "ids", "state"])
def test_scenes_in_any_order(place, tmp_path, monkeypatch, broken):
    """Run backwards and published forwards, with one session; forgetting what reaches across scenes is seen."""
    facts = json.loads((place / "whole" / "run.json").read_text())
    spans, source, session = scale_out.scene_spans(facts, tmp_path), FrameFolder(place / "data", SMALL), FakeSession()
    if broken == "scene_start":
        monkeypatch.setattr(scale_out, "scene_start", lambda source, first: SequenceState())
    if broken == "state":
        session.set_state = lambda state: None
    args = run.parse_args(arguments(place, tmp_path))
    for span in reversed(spans):
        scale_out.run_scene(span, source, session, args)
    for span in spans:
        scale_out.publish(span, [span] if broken == "ids" else spans, tmp_path)
        assert span.done.exists() and not span.folder.exists()
    whole = {p.name: p.read_bytes() for p in (place / "whole" / "frames").iterdir()}
    assert ({p.name: p.read_bytes() for p in (tmp_path / "frames").iterdir()} == whole) == (broken is None)


def test_a_killed_worker_does_not_matter(place, tmp_path, monkeypatch):
    """Two processes; kill -9 for the first that has written a frame. The other one runs its scene."""
    monkeypatch.setenv("FAKE_SECONDS", "0.15")
    killed = []

    def kill():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if list(tmp_path.glob("result/scenes/*/frames/*.npz")):
                killed.append(multiprocessing.active_children()[0])
                return killed[0].kill()
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    run.main(arguments(place, tmp_path / "result", "--workers", "2"))
    thread.join()
    assert killed and killed[0].exitcode == -9
    assert contents(tmp_path / "result") == contents(place / "whole")
    assert json.loads((tmp_path / "result" / "run.json").read_text())["workers"] == 2
    latency = json.loads((tmp_path / "result" / "latency.json").read_text())["frames"]
    assert len(latency) == 12 and all(row["engine"] > 0.1 for row in latency)


def test_when_no_worker_is_left_the_same_command_goes_on(place, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BREAK", "nan")
    with pytest.raises(UniADError, match=r"4 of 4 scenes are not done .*\(exit status 2\)"):
        run.main(arguments(place, tmp_path / "result", "--workers", "1"))
    assert json.loads((tmp_path / "result" / "run.json").read_text())["complete"] is False
    monkeypatch.delenv("FAKE_BREAK")
    facts = json.loads((place / "whole" / "run.json").read_text())
    first = scale_out.scene_spans(facts, tmp_path / "result")[0]
    args = run.parse_args(arguments(place, tmp_path / "result"))
    scale_out.run_scene(first, FrameFolder(place / "data", SMALL), FakeSession(), args)
    before = first.facts.stat().st_mtime_ns
    seen = []
    monkeypatch.setattr(run, "clear_progress", lambda output: seen.append(first.facts.stat().st_mtime_ns))
    run.main(arguments(place, tmp_path / "result", "--workers", "1"))
    assert seen == [before]  # what was there was not run again
    monkeypatch.undo()
    run.clear_progress(tmp_path / "result")
    assert contents(tmp_path / "result") == contents(place / "whole")


def test_a_run_may_go_on_with_or_without_workers(place, tmp_path):
    """Begun in one way and gone on with in the other: begun again, nothing is left over."""
    output = tmp_path / "result"
    facts = json.loads((place / "whole" / "run.json").read_text())
    results.write_json(output / "run.json", {**facts, "complete": False})
    (output / "scenes").mkdir()
    (output / "scenes" / "000003.done").touch()
    run.main(arguments(place, output))
    assert contents(output) == contents(place / "whole")


def test_locks_and_refusals(place, tmp_path):
    with scale_out.claim(tmp_path / "x.lock") as mine, scale_out.claim(tmp_path / "x.lock") as second:
        assert mine and not second
    with scale_out.claim(tmp_path / "x.lock") as again:
        assert again
    for wrong in (("--workers", "0"), ("--workers", "2", "--profile")):
        with pytest.raises(UniADError, match="--workers"):
            run.main(arguments(place, tmp_path / "none", *wrong))
    start = scale_out.scene_start(FrameFolder(place / "data", SMALL), 3)
    assert start.prev_angle == pytest.approx(47) and np.any(start.prev_pos)
    assert scale_out.scene_start(FrameFolder(place / "data", SMALL), 0) == SequenceState()
