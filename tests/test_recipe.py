"""The demo's recipe: the same everywhere, of the right shapes, and a drive whose geometry is right."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import SCRIPTS

from checkpoint import fit_config, load_anchors, load_checkpoint
from config import load_config
from data import recipe
from data.cameras import turn
from data.frames import FrameFolder
from weight import key_shapes

TINY = load_config("tiny_e2e")
STATE_HASH = "ffc310f11c0916bbeab5b68593f6bc32b9cefcccd2837139f7d39df47d9c3cf5"


def hash_of(config) -> str:
    digest = hashlib.sha256()
    for key, array in recipe.recipe_state(config):
        digest.update(key.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_the_checkpoint_is_the_same_everywhere(monkeypatch):
    assert hash_of(TINY) == STATE_HASH
    monkeypatch.setattr(recipe, "SEED", b"another")
    assert hash_of(TINY) != STATE_HASH


def test_tensors_have_the_scale_that_their_rule_says():
    rules = recipe._rules(TINY)
    shapes = key_shapes(TINY)

    def tensor(key):
        return recipe.recipe_tensor(key, shapes[key], rules)

    assert abs(tensor("pts_bbox_head.cls_branches.2.6.bias").mean() + 8) < 0.5
    final = tensor("pts_bbox_head.cls_branches.2.6.weight")
    assert np.abs(final.sum(1)).max() < 1e-3 and abs(np.linalg.norm(final, axis=1).mean() - 4) < 0.3
    assert (tensor("img_backbone.bn1.running_var") >= 1).all()
    assert tensor("img_backbone.bn1.num_batches_tracked").dtype == np.int64
    query = tensor("query_embedding.weight")
    assert abs(query[:, :128].std() - 1) < 0.05 and abs(query[:, 128:].std() - 3) < 0.1
    plan = tensor("planning_head.reg_branch.2.bias").reshape(6, 2)
    assert plan[:, 1].mean() > 0.8 > plan[:, 0].mean()  # ahead, not aside
    # Every rule is of use: it is the first that fits some key.
    first = {next((i for i, rule in enumerate(rules) if recipe.re.search(rule.keys, key)), None) for key in shapes}
    assert first >= set(range(len(rules)))


def test_full_size_tensors_have_their_shapes():
    config = load_config("base_e2e")
    rules, shapes = recipe._rules(config), key_shapes(config)
    for key in ("seg_head.stuff_query.weight", "motion_head.traj_reg_branches.2.4.weight", "reference_points.bias"):
        assert recipe.recipe_tensor(key, shapes[key], rules).shape == shapes[key]
    bias = recipe.recipe_tensor("pts_bbox_head.cls_branches.5.6.bias", (10,), rules)
    assert abs(bias.mean() + 6.3) < 0.5


def test_anchors_are_arcs_ahead():
    anchors = recipe.recipe_anchors(TINY)
    assert anchors.shape == (4, 6, 12, 2) and anchors.dtype == np.float32 and np.isfinite(anchors).all()
    assert (anchors[..., 1] > 0).all() and (np.diff(anchors[..., 1], axis=2) > 0).all()
    assert (anchors[:, 0, -1, 0] > 0).all() and (anchors[:, -1, -1, 0] < 0).all()  # slow right, fast left
    assert len(np.unique(anchors.reshape(24, -1), axis=0)) == 24


@pytest.fixture(scope="module")
def frames():
    return list(recipe.recipe_frames(TINY, 5))


def project(frame, camera, points):
    """Pixels (N,2) and depths (N) of lidar points (N,3)."""
    uvd = np.c_[points, np.ones(len(points))] @ frame.lidar2img[camera].T
    return uvd[:, :2] / uvd[:, 2:3], uvd[:, 2]


def test_each_camera_looks_its_way(frames):
    """Lidar frame: x right, y ahead. A point in a camera's direction is near its middle; the opposite one behind it."""
    directions = np.array([[0, 1], [0.83, 0.56], [-0.83, 0.56], [0, -1], [-0.95, -0.33], [0.95, -0.33]])
    for camera, (x, y) in enumerate(directions):
        pixel, depth = project(frames[0], camera, np.array([[20 * x, 20 * y, 0], [-20 * x, -20 * y, 0.0]]))
        assert depth[0] > 15 and depth[1] < -15
        assert abs(pixel[0, 0] - TINY.image_width / 2) < 20
        above, _ = project(frames[0], camera, np.array([[20 * x, 20 * y, 2.0]]))
        assert above[0, 1] < pixel[0, 1]  # up in the world is up in the image


def test_poses_and_pictures_agree(frames):
    """The middle line of the street, taken to the lidar through l2g and to the image through lidar2img, is white."""
    for frame in (frames[1], frames[2]):
        street = turn(np.deg2rad(357.0))
        dashes = np.array([[6.0 * n + 1.5, 0.0, 0.0] for n in range(1, 4)]) @ street.T + [402.5, 1187.0, 0.0]

        def brightness(offset, frame=frame, dashes=dashes):
            lidar = (dashes + offset - frame.l2g_t) @ np.linalg.inv(frame.l2g_r_mat)
            pixel, depth = project(frame, 0, lidar)
            column, row = np.floor(pixel).astype(int).T
            inside = (depth > 3) & (column >= 0) & (column < TINY.image_width) & (row >= 0) & (row < TINY.image_height)
            assert inside.sum() >= 2
            return frame.img[0, row[inside], column[inside]].mean()

        assert brightness(0.0) > 180
        assert brightness(1.5 * street[:, 1]) < 140  # beside the line: asphalt


def test_sequence_of_the_drive(frames):
    scenes = [frame.scene_token for frame in frames]
    assert scenes == ["demo-street-0"] * 3 + ["demo-street-1"] * 2
    assert len({frame.sample_token for frame in frames}) == 5
    heading = np.array([frame.can_bus[-1] for frame in frames])
    assert (heading >= 0).all() and (heading < 360).all() and heading[0] > 350 > 10 > heading[2]  # past 360
    np.testing.assert_allclose(np.deg2rad(heading), [frame.can_bus[-2] for frame in frames])
    steps = np.diff([frame.can_bus[:2] for frame in frames[:3]], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 2.5, atol=0.05)  # 5 m/s
    assert all(frame.img.std() > 30 for frame in frames)
    assert np.diff([frame.timestamp for frame in frames]).min() == 0.5


def test_written_files_are_what_the_steps_take(tmp_path, frames, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipe", "-o", str(tmp_path / "demo"), "--frames", "5"])
    recipe.main()
    assert "tiny_e2e.pth" in capsys.readouterr().out
    state, meta = load_checkpoint(tmp_path / "demo" / "tiny_e2e.pth")
    assert fit_config(state) == TINY and meta["recipe"]
    key = "pts_bbox_head.code_weights"
    assert torch.equal(state[key], torch.tensor([1.0] * 8 + [0.2] * 2))
    assert load_anchors(tmp_path / "demo" / "motion_anchors.npy", TINY).shape == (4, 6, 12, 2)
    source = FrameFolder(tmp_path / "demo" / "frames", TINY)
    assert len(source) == 5
    for index, frame in enumerate(frames):
        loaded = source.load(index)
        np.testing.assert_array_equal(loaded.img, frame.img)
        np.testing.assert_array_equal(loaded.can_bus, frame.can_bus)
        assert loaded.sample_token == frame.sample_token


@pytest.mark.parametrize(
    "arguments, text", [(["-o", "."], "is not a folder of this recipe"), (["-o", "x", "--model", "y"], "'y'")]
)
def test_refusals_are_one_line(arguments, text):
    command = [sys.executable, "-m", "data.recipe", *arguments]
    run = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1 and text in run.stderr
