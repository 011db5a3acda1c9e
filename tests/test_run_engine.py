"""run.py from end to end on a TensorRT engine, on a GPU in host memory (fake_gpu.py)."""

import json

import numpy as np
import pytest
import run
import test_tensorrt_session
from frame_factory import make_test_frame
from test_tensorrt_session import CONFIG, change

from data.frames import save_frame

gpu, plan = test_tensorrt_session.gpu, test_tensorrt_session.plan


@pytest.fixture
def data(tmp_path):
    """Five frames in two scenes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(5):
        save_frame(folder / f"{index:06d}.npz", make_test_frame(index, "ab"[index // 3], CONFIG))
    return folder


def records(folder):
    """The arrays of each frame's record."""
    found = []
    for path in sorted((folder / "frames").iterdir()):
        with np.load(path, allow_pickle=False) as file:
            found.append({name: file[name] for name in file.files})
    return found


def test_whole_run(gpu, plan, data, tmp_path, capsys):
    """The same records with and without the CUDA graph, and where layers are timed; facts of the engine beside them."""
    made = []
    for name, flags in (("graph", []), ("none", ["--no-cuda-graph"]), ("layers", ["--profile"])):
        launches = gpu.launches
        run.main(["-i", str(data), "-e", str(plan), "-o", str(tmp_path / name), *flags])
        made.append(records(tmp_path / name))
        assert gpu.launches - launches == (5 if name == "graph" else 0)
    assert len(made[0]) == 5
    for other in made[1:]:
        for ours, theirs in zip(made[0], other, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert len({record["sdc_traj_raw"].tobytes() for record in made[0]}) == 5  # each frame's own numbers
    facts = json.loads((tmp_path / "graph" / "run.json").read_text())
    assert facts["complete"] is True and "Fake A10" in json.dumps(facts) and "8.6.0" in json.dumps(facts)
    latency = json.loads((tmp_path / "graph" / "latency.json").read_text())["frames"]
    assert [row["engine"] > 0.0015 for row in latency] == [True] * 5  # of which the device says 1.5 ms
    profile = json.loads((tmp_path / "layers" / "profile.json").read_text())
    assert profile["frames"] == 5 and profile["layers"]


def test_engine_of_another_version(gpu, plan, data, tmp_path):
    """One line, and no result."""
    change(plan, version="8.5.3")
    with pytest.raises(Exception, match=r"built with tensorrt 8\.5\.3, here is 8\.6\.0"):
        run.main(["-i", str(data), "-e", str(plan), "-o", str(tmp_path / "result")])
    assert not (tmp_path / "result").exists()
