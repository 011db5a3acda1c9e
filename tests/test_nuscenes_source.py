"""data/nuscenes_source.py on real nuScenes data, checked with nuscenes-devkit's own geometry."""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from support import SCRIPTS, assert_close, assert_differs, shared_path
from truth_support import devkit

from config import load_config
from data import nuscenes_source
from data.frames import CAMERAS, FrameError, open_source
from data.nuscenes_source import NuScenesSource, find_versions

pytest.importorskip("nuscenes")
BASE = load_config("base_e2e")


@pytest.fixture(scope="module")
def clip():
    return NuScenesSource(shared_path("nuscenes", "clip"), BASE)


@pytest.fixture(scope="module")
def mini_val():
    return NuScenesSource(shared_path("nuscenes", "mini_val"), BASE)


@pytest.fixture
def root(tmp_path):
    """A root of one's own to damage: tables and CAN bus are copies, images are links."""
    original = shared_path("nuscenes", "clip")
    for name in ("v1.0-mini", "can_bus", "maps"):
        shutil.copytree(original / name, tmp_path / name)
    for folder in [tmp_path, *tmp_path.rglob("*")]:
        os.chmod(folder, 0o755)
    (tmp_path / "samples").symlink_to(original / "samples")
    return tmp_path


def test_scenes_and_order(mini_val, clip):
    names = [mini_val.info(i).scene_name for i in range(len(mini_val))]
    assert names == ["scene-0103"] * 40 + ["scene-0916"] * 41
    assert mini_val.describe()["version"] == "v1.0-mini"
    assert len(clip) == 4
    times = [mini_val.values(i, images=False)["timestamp"] for i in range(len(mini_val))]
    assert (np.diff(times) > 0).all()
    assert times[0] == 1533151603.54759


def test_images_are_decoded_in_place(clip):
    """Into the memory that is given, with the same bytes; several frames at a time."""
    alone = [clip.load(index).img for index in range(4)]
    given = np.full((4, 6, 900, 1600, 3), 7, np.uint8)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        frames = list(threads.map(clip.load, range(4), given))
    for frame, img, expected in zip(frames, given, alone):
        assert frame.img is img or frame.img.base is given
        np.testing.assert_array_equal(img, expected)
    assert not np.array_equal(given[0], alone[1])
    other = np.full((6, 90, 160, 3), 7, np.uint8)  # not of the engine's size: left alone
    np.testing.assert_array_equal(clip.load(0, other).img, alone[0])
    assert (other == 7).all()


def test_decoding_one_image(tmp_path):
    picture = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    path, out = tmp_path / "camera.png", np.full((2, 40, 60, 3), 9, np.uint8)
    cv2.imwrite(str(path), picture)
    nuscenes_source._decode(path, out[0])
    np.testing.assert_array_equal(out[0], picture)
    assert (out[1] == 9).all()
    small = np.zeros((20, 30, 3), np.uint8)
    nuscenes_source._decode(path, small)
    np.testing.assert_array_equal(small, cv2.resize(picture, (30, 20), interpolation=cv2.INTER_LINEAR))
    for wrong, shape in ((picture[..., 0], "(40, 60)"), (np.dstack([picture, picture])[..., :4], "(40, 60, 4)")):
        cv2.imwrite(str(path), wrong)
        for size in ((40, 60), (20, 30)):
            with pytest.raises(FrameError, match=re.escape(f"camera.png: image is uint8 {shape}, not one of three")):
                nuscenes_source._decode(path, np.zeros((*size, 3), np.uint8))
    whole = cv2.imencode(".jpg", picture)[1].tobytes()
    for data in (whole.replace(b"\xff\xdb", b"\xff\xed"), whole[:200], b"", b"no image"):  # the first: no tables
        path.write_bytes(data)
        with pytest.raises(FrameError, match=r"camera\.png: image is missing or damaged"):
            nuscenes_source._decode(path, out[0])
    path.unlink()
    with pytest.raises(FrameError, match=r"camera\.png: image is missing or damaged"):
        nuscenes_source._decode(path, out[0])


def test_choice_of_scenes(mini_val):
    root = shared_path("nuscenes", "mini_val")
    for scenes, count in (
        (["scene-0916"], 41),
        (["all"], 81),
        (["mini_val"], 81),
        ([mini_val.info(0).scene_token], 40),
    ):
        assert len(NuScenesSource(root, BASE, scenes=scenes)) == count
    with pytest.raises(FrameError, match=r"v1\.0-mini: no scene 'scene-0001'; there are"):
        NuScenesSource(root, BASE, scenes=["scene-0001"])
    with pytest.raises(FrameError, match="no scene 'mini_train'"):
        NuScenesSource(root, BASE, scenes=["mini_train"])


def test_images_are_opencvs_bgr(clip):
    frame = clip.load(0)
    assert frame.img.shape == (6, 900, 1600, 3)
    assert [f"/{camera}/" in path for camera, path in zip(CAMERAS, frame.paths)] == [True] * 6
    from PIL import Image  # another decoder, RGB: equal but for rounding in the chroma

    with Image.open(frame.paths[0]) as picture:
        rgb = np.asarray(picture).astype(int)
    assert np.abs(frame.img[0, ..., ::-1] - rgb).mean() < 1
    assert np.abs(frame.img[0] - rgb).mean() > 5  # not RGB


def test_projection_equals_the_devkit(clip):
    """Annotated centres through lidar2img land where the devkit's camera boxes are."""
    nusc, sample = devkit("clip"), clip._samples[1]
    matrices = clip.values(1, images=False)["lidar2img"]
    _, lidar_boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    centres = {box.token: np.append(box.center, 1.0) for box in lidar_boxes}
    seen = 0
    for camera, matrix in zip(CAMERAS, matrices):
        _, boxes, intrinsic = nusc.get_sample_data(sample["data"][camera])  # the boxes that this camera sees
        for box in boxes:
            expected = intrinsic @ box.center
            actual = matrix @ centres[box.token]
            assert_close(actual[:2] / actual[2], expected[:2] / expected[2], 1e-6, camera)
            assert_close(actual[2], expected[2], 1e-9, "depth")
            seen += 1
        wrong = np.roll(matrices, 1, axis=0)[CAMERAS.index(camera)]
        pixel = wrong @ centres[boxes[0].token]
        assert_differs(pixel[:2] / pixel[2], (intrinsic @ boxes[0].center)[:2] / boxes[0].center[2], 10, "other camera")
    assert seen > 20


def test_pose_equals_the_devkit(clip):
    """Lidar centres through l2g are the global centres of the annotations."""
    nusc, sample, values = devkit("clip"), clip._samples[2], clip.values(2, images=False)
    _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    lidar = np.array([box.center for box in boxes])
    world = np.array([nusc.get("sample_annotation", box.token)["translation"] for box in boxes])
    pose = clip.pose(2)
    assert_close(lidar @ pose.l2g_r_mat + pose.l2g_t, world, 1e-6, "pose")
    assert_close(lidar @ values["l2g_r_mat"] + values["l2g_t"], world, 1e-3, "float32 pose")
    assert_differs(lidar @ pose.l2g_r_mat.T + pose.l2g_t, world, 1, "column vectors")


def test_can_bus(mini_val):
    messages = json.loads((shared_path("nuscenes", "mini_val", "can_bus") / "scene-0103_pose.json").read_text())
    for index in (0, 1, 20, 39):
        values = mini_val.values(index, images=False)
        can_bus, stamp = values["can_bus"], mini_val._samples[index]["timestamp"]
        later = next(m for m in messages if m["utime"] > stamp)  # one past the last message up to the keyframe
        assert can_bus[7:16].tolist() == [*later["accel"], *later["rotation_rate"], *later["vel"]]
        pose = mini_val._ego_pose(mini_val._samples[index], "LIDAR_TOP")
        assert can_bus[:3].tolist() == pose["translation"]
        assert can_bus[3:7].tolist() == pose["rotation"]
        heading = 2 * np.arctan2(pose["rotation"][3], pose["rotation"][0])  # the road is level within a degree
        assert_close(np.angle(np.exp(1j * (can_bus[-2] - heading))), 0, 0.02, "heading")
        assert 0 <= can_bus[-1] < 360
        assert_close(can_bus[-1], np.rad2deg(can_bus[-2]), 1e-9, "degrees")
    assert messages[0]["utime"] > mini_val._samples[0]["timestamp"]  # the case of the first keyframe above


def test_command_follows_the_future(mini_val):
    """Equal to the sideways offset in exact arithmetic, and all three commands occur."""
    commands = []
    for index in range(len(mini_val)):
        commands.append(mini_val.values(index, images=False)["command"])
        scene = mini_val.info(index).scene_token
        last = index
        while last < min(index + 6, len(mini_val) - 1) and mini_val.info(last + 1).scene_token == scene:
            last += 1
        pose = mini_val.pose(index)
        x = ((mini_val.pose(last).l2g_t - pose.l2g_t) @ np.linalg.inv(pose.l2g_r_mat))[0]
        if abs(abs(x) - 2) > 0.05:
            assert commands[-1] == (0 if x >= 2 else 1 if x <= -2 else 2), index
    assert set(commands) == {0, 1, 2}
    assert commands[39] == commands[80] == 2  # no future


def test_scaling(clip):
    half = NuScenesSource(
        shared_path("nuscenes", "clip"), BASE.replace(image_scale=0.5, image_height=450, image_width=800)
    )
    whole, scaled = clip.load(0), half.load(0)
    assert scaled.img.shape == (6, 450, 800, 3)
    assert_close(scaled.lidar2img, np.diag([0.5, 0.5, 1, 1]) @ whole.lidar2img, 1e-9, "scaled")
    tiny = NuScenesSource(shared_path("nuscenes", "clip"), load_config("tiny_e2e")).load(0)
    assert tiny.img.shape == (6, 128, 224, 3)
    assert_close(tiny.lidar2img, np.diag([224 / 1600, 128 / 900, 1, 1]) @ whole.lidar2img, 1e-9, "stretched")
    wrong = NuScenesSource(shared_path("nuscenes", "clip"), BASE.replace(image_scale=0.5))
    with pytest.raises(FrameError, match=r"\(6, 450, 800, 3\).*built for \(6, 900, 1600, 3\)"):
        wrong.load(0)


def test_missing_can_bus(root):
    (root / "can_bus" / "scene-0103_pose.json").unlink()
    with pytest.raises(
        FrameError, match=r"CAN bus of scene-0103 is missing; download.*--no-can-bus; .*Map expansion"
    ) as caught:
        open_source(root, BASE)
    assert "\n" not in str(caught.value)
    (root / "maps" / "expansion").mkdir()
    with pytest.raises(FrameError, match=r"--no-can-bus$"):
        open_source(root, BASE)
    with_it = NuScenesSource(shared_path("nuscenes", "clip"), BASE).values(0, images=False)["can_bus"]
    without = open_source(root, BASE, can_bus=False).values(0, images=False)["can_bus"]
    assert not without[7:16].any()
    np.testing.assert_array_equal(np.delete(without, range(7, 16)), np.delete(with_it, range(7, 16)))
    (root / "can_bus" / "scene-0103_pose.json").write_text("[{}]")
    with pytest.raises(FrameError, match="not a readable list of CAN bus poses"):
        open_source(root, BASE).load(0)


def test_scene_that_never_had_can_bus(root):
    table = root / "v1.0-mini" / "scene.json"
    table.write_text(table.read_text().replace("scene-0103", "scene-0161"))
    assert not open_source(root, BASE, scenes=["all"]).values(0, images=False)["can_bus"][7:16].any()


def test_splits_of_trainval(root):
    """The validation split by default, train and val by name. scene-0103 is a val scene, scene-0061 a train scene."""
    (root / "v1.0-mini").rename(root / "v1.0-trainval")
    assert len(open_source(root, BASE)) == len(open_source(root, BASE, scenes=["val"])) == 4
    with pytest.raises(FrameError, match="no scene 'train'"):
        open_source(root, BASE, scenes=["train"])
    table = root / "v1.0-trainval" / "scene.json"
    table.write_text(table.read_text().replace("scene-0103", "scene-0061"))
    (root / "can_bus" / "scene-0103_pose.json").rename(root / "can_bus" / "scene-0061_pose.json")
    assert len(open_source(root, BASE, scenes=["train"])) == 4
    with pytest.raises(FrameError, match="no scene 'val'"):
        open_source(root, BASE)


def test_bad_roots(root):
    assert find_versions(root) == ["v1.0-mini"]
    with pytest.raises(FrameError, match=r"no tables 'v1.0-test' here; there are: v1.0-mini"):
        open_source(root, BASE, version="v1.0-test")
    shutil.copytree(root / "v1.0-mini", root / "v1.0-other")
    with pytest.raises(FrameError, match=r"several table folders \(v1.0-mini, v1.0-other\); choose one with --version"):
        open_source(root, BASE)
    assert len(open_source(root, BASE, version="v1.0-other")) == 4
    shutil.rmtree(root / "v1.0-other")
    (root / "samples").unlink()
    with pytest.raises(FrameError, match="24 of 24 camera images are missing, the first is"):
        open_source(root, BASE)
    (root / "v1.0-mini" / "ego_pose.json").write_text("[{")
    with pytest.raises(FrameError, match=r"tables of v1\.0-mini can't be read"):
        open_source(root, BASE)


def test_the_second_start_reads_no_tables(root, tmp_path, monkeypatch):
    """The same frames to the last bit; tables that have changed, or a damaged index, are read again."""
    cache, opened, original = tmp_path / "cache", [], nuscenes_source.open_tables
    monkeypatch.setattr(nuscenes_source, "open_tables", lambda *a: opened.append(a) or original(*a))
    first = NuScenesSource(root, BASE, cache=cache)
    second = NuScenesSource(root, BASE, cache=cache)
    assert len(opened) == 1 and first.describe() == second.describe()
    for index in range(4):
        assert first.info(index) == second.info(index)
        ours, theirs = (source.values(index, images=False) for source in (first, second))
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])
    (frames,) = cache.glob("index-*/[!s]*.json")
    frames.write_text("{")
    assert len(NuScenesSource(root, BASE, cache=cache)) == 4 and len(opened) == 2
    os.utime(root / "v1.0-mini" / "ego_pose.json")
    assert len(NuScenesSource(root, BASE, cache=cache)) == 4 and len(opened) == 3


def test_damaged_image(root):
    original = (root / "samples").resolve()
    (root / "samples").unlink()
    shutil.copytree(original / "CAM_FRONT", root / "samples" / "CAM_FRONT", copy_function=shutil.copyfile)
    for camera in CAMERAS[1:]:
        (root / "samples" / camera).symlink_to(original / camera)
    os.chmod(root / "samples" / "CAM_FRONT", 0o755)
    for path in (root / "samples" / "CAM_FRONT").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(FrameError, match=r"CAM_FRONT.*\.jpg: image is missing or damaged"):
        open_source(root, BASE).load(0)


def test_known_tables_need_no_devkit(root, tmp_path):
    """Seconds of imports otherwise, which the first frames would wait for; without pyquaternion a clear error."""
    cache, code = tmp_path / "cache", (
        "import pathlib, sys\n"
        "root, cache, blocked = sys.argv[1:]\n"
        "sys.modules[blocked] = None\n"
        "from config import load_config\n"
        "from data.nuscenes_source import NuScenesSource\n"
        "source = NuScenesSource(pathlib.Path(root), load_config('base_e2e'), cache=pathlib.Path(cache))\n"
        "print(source.load(0).can_bus[-1])\n"
    )  # fmt: skip
    expected = NuScenesSource(root, BASE, cache=cache).load(0).can_bus[-1]

    def run(blocked: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, str(root), str(cache), blocked]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)})

    assert float(run("nuscenes").stdout) == expected
    assert "FrameError" in (failed := run("pyquaternion")).stderr and "requirements-nuscenes.txt" in failed.stderr
