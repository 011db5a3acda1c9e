"""data/ground_truth.py on real nuScenes tables, checked with nuscenes-devkit and the original's labels."""

import dataclasses
import os
import pickle
import shutil
import zlib

import numpy as np
import pytest
from support import assert_close, assert_differs, shared_path
from truth_support import BASE, devkit, infos_of, real_truth

from data import ground_truth
from data.frames import FrameError
from data.ground_truth import GroundTruth
from data.infos import load_infos
from data.nuscenes_source import NuScenesSource
from data.occupancy_truth import IGNORE, RigidPose, draw_occupancy, footprints, reframe
from data.plain_pickle import PickleError, load_plain_pickle
from data.scene_index import Scene
from runtime.boxes import CONVENTIONS, to_nuscenes

pytest.importorskip("nuscenes")
GRID = BASE.occ_grid


@pytest.fixture(scope="module")
def truth():
    return real_truth()


@pytest.fixture(scope="module")
def source():
    return NuScenesSource(shared_path("nuscenes", "mini_val"), BASE)


def test_keyframes(truth, source):
    assert [truth.info(i) for i in range(81)] == [source.info(i) for i in range(81)]
    assert [head.location for head in truth.heads] == ["boston-seaport", "singapore-queenstown"]
    for index in (0, 39, 40, 80):
        ours, theirs = truth.pose(index), source.pose(index)
        assert_close(ours.l2g_r_mat, theirs.l2g_r_mat, 1e-12, "rotation")
        assert_close(ours.l2g_t, theirs.l2g_t, 1e-9, "translation")
        assert truth.timestamp(index) / 1e6 == source.values(index, images=False)["timestamp"]


def test_objects_equal_the_devkit(truth):
    nusc = devkit()
    for index in (0, 17, 39, 60):
        sample, objects = nusc.get("sample", truth.tokens[index]), truth.objects(index)
        _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        centre, wlh, heading = to_nuscenes(objects.boxes, truth.convention)
        assert_close(centre, [box.center for box in boxes], 1e-9, "centre")
        assert_close(wlh, [box.wlh for box in boxes], 1e-12, "size")
        yaw = np.array([box.orientation.yaw_pitch_roll[0] for box in boxes])
        assert_close(np.exp(1j * heading).imag, np.sin(yaw), 1e-9, "heading")
        assert_close(np.exp(1j * heading).real, np.cos(yaw), 1e-9, "heading")
        velocity = np.array([nusc.box_velocity(token)[:2] for token in sample["anns"]])
        np.testing.assert_array_equal(objects.velocity, velocity)  # NaN where unknown
        assert objects.instance.tolist() == [
            nusc.getind("instance", nusc.get("sample_annotation", token)["instance_token"]) for token in sample["anns"]
        ]
        inside = truth.pose(index).l2g_r_mat
        assert_close(objects.boxes[:, 7:9] @ inside[:2, :2], np.nan_to_num(velocity), 0.1, "velocity, level ground")
        assert_differs(objects.boxes[:, 7:9], np.nan_to_num(velocity), 1, "velocity in the global frame")


def test_futures_equal_the_devkit(truth):
    from nuscenes.eval.common.utils import Quaternion
    from nuscenes.prediction import PredictHelper, convert_local_coords_to_global

    nusc, helper, lengths = devkit(), PredictHelper(devkit()), set()
    for index in (5, 30, 39, 70):
        token, objects = truth.tokens[index], truth.objects(index)
        sample = nusc.get("sample", token)
        _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        for row, box in enumerate(boxes):
            local = helper.get_future_for_agent(str(objects.instance_tokens[row]), token, 6, in_agent_frame=True)
            known = len(local)
            lengths.add(known)
            assert objects.future_mask[row].tolist() == [step < known for step in range(12)]
            assert not objects.future[row, known:].any()
            if known:
                expected = convert_local_coords_to_global(local, box.center, Quaternion(matrix=box.rotation_matrix))
                assert_close(objects.future[row, :known], expected, 1e-9, "future")
    assert {0, 12} < lengths
    moving = truth.objects(5)
    row = np.argmax(np.linalg.norm(moving.boxes[:, 7:9], axis=1) * moving.future_mask[:, -1])
    assert_differs(moving.future[row, -1], moving.boxes[row, :2], 10, "standing still")


def test_plan(truth, source):
    """Equal to the source's command, and to exact arithmetic within a few centimetres (the point is not the lidar)."""
    for index in range(81):
        plan = truth.plan(index)
        assert plan.command == source.values(index, images=False)["command"]
        left = min((39 if index < 40 else 80) - index, 6)
        assert plan.mask.tolist() == [step < left for step in range(6)]
        assert not plan.trajectory[left:].any()
        if left:
            here, there = truth.pose(index), truth.pose(index + left)
            exact = (there.l2g_t - here.l2g_t) @ here.l2g_r_mat.T
            assert_close(plan.trajectory[left - 1, :2], exact[:2], 0.08, "plan")
    turning = truth.plan(np.argmax([abs(truth.plan(i).trajectory[5, 0]) for i in range(75)]))
    assert abs(turning.trajectory[5, 2] - np.pi / 2) > 0.3  # the heading turns with it


def test_ego_future(truth):
    for index in (0, 30, 39, 55):
        future, known = truth.ego_future(index)
        assert known.sum() == min((39 if index < 40 else 80) - index, 12)
        plan = truth.plan(index)
        steps = known[:6]
        # Two frames half a metre apart and slightly turned: the same way.
        offset = future[:6][steps] - plan.trajectory[:, :2][steps]
        assert np.abs(offset).max(initial=0) < 1.5
        assert not future[~known].any()


# --- occupancy ---


def test_occupancy_is_the_originals(truth):
    """Recorded from the original's GenerateOccFlowLabels, run with mmdet3d 1.0.0rc6's boxes on these tables."""
    labels = real_truth(convention="v2.0")
    digest, occupied, scored = 0, 0, 0
    for index in range(81):
        occupancy = labels.occupancy(index)
        digest = zlib.crc32(occupancy.instance.tobytes(), zlib.crc32(occupancy.segmentation.tobytes(), digest))
        occupied += int((occupancy.segmentation == 1).sum())
        scored += occupancy.scored
    assert (occupied, scored) == (675453, 69)
    assert digest == 3191969335
    other = truth.occupancy(20).segmentation  # width and length not exchanged
    assert (other != labels.occupancy(20).segmentation).sum() > 1000


def test_one_box_by_hand():
    """A car of 4 x 2 m that heads along x, its centre at x = 10, y = 5: columns 116..124, rows 108..112."""
    centre, wlh, heading = np.array([[10.0, 5.0, 0.0]]), np.array([[2.0, 4.0, 1.5]]), np.array([0.0])
    segmentation, instance = draw_occupancy(footprints(centre, wlh, heading, "v1.0.1"), np.array([7]), GRID)
    rows, columns = np.nonzero(segmentation)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (108, 112, 116, 124)
    assert segmentation.sum() == 5 * 9 and (instance[segmentation == 1] == 7).all() and not instance[0].any()
    swapped, _ = draw_occupancy(footprints(centre, wlh, heading, "v2.0"), np.array([7]), GRID)
    rows, columns = np.nonzero(swapped)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (106, 114, 118, 122)
    turned, _ = draw_occupancy(footprints(centre, wlh, heading + np.pi / 2, "v1.0.1"), np.array([7]), GRID)
    np.testing.assert_array_equal(turned, swapped)


def test_later_boxes_cover_and_255_is_replaced():
    centre, wlh = np.zeros((2, 3)), np.array([[4.0, 4.0, 1.0], [2.0, 2.0, 1.0]])
    corners = footprints(centre, wlh, np.zeros(2), "v1.0.1")
    _, instance = draw_occupancy(corners, np.array([IGNORE, 3]), GRID)
    assert instance[100, 100] == 3 and instance[97, 97] == -20
    coarse, _ = draw_occupancy(corners, np.array([1, 2]), (-50.0, 50.0, 2.5))
    assert coarse.shape == (40, 40) and coarse.any()


def test_reframe():
    """A point 10 m ahead, when the vehicle has driven 4 m ahead and turned left by 90 degrees."""
    east = RigidPose((np.eye(3), np.zeros(3)), (np.eye(3), np.array([100.0, 200.0, 0.0])))
    north = RigidPose(
        (np.eye(3), np.zeros(3)), (np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([104.0, 200.0, 0.0]))
    )
    points, heading = reframe(np.array([[10.0, 0.0, 0.0]]), np.array([0.0]), east, north)
    assert_close(points, [[0.0, -6.0, 0.0]], 1e-4, "point")
    assert_close(heading, [-np.pi / 2], 1e-6, "heading")
    assert_differs(points, [[10.0, 0.0, 0.0]], 1, "not moved")


def test_occupancy_at_the_ends_of_a_scene(truth):
    for index, valid, scored in (
        (0, [0, 0] + [1] * 7, False),
        (2, [1] * 9, True),
        (35, [1] * 7 + [0] * 2, True),
        (36, [1] * 6 + [0] * 3, False),
        (39, [1] * 3 + [0] * 6, False),
        (40, [0, 0] + [1] * 7, False),  # the frames before are of another scene
    ):
        occupancy = truth.occupancy(index)
        assert occupancy.valid.tolist() == [bool(v) for v in valid] and occupancy.scored is scored
        for step, known in enumerate(valid[2:]):
            assert (occupancy.segmentation[step] == IGNORE).all() == (not known)
            assert (occupancy.instance[step] == IGNORE).all() == (not known)


def test_occupancy_follows_the_boxes(truth):
    """Vehicles of a later keyframe lie where `boxes_ahead` has them, in the frame of now."""
    occupancy, ahead = truth.occupancy(20), truth.boxes_ahead(20, 4)
    objects = truth.objects(24)
    vehicles = np.isin(objects.labels, BASE.vehicle_id_list)[objects.points > 0]
    near = vehicles & (np.abs(ahead[:, :2]) < 45).all(1)
    cells = np.floor((ahead[near, :2] + 50) / 0.5).astype(int)
    assert near.sum() > 10
    assert (occupancy.segmentation[4][cells[:, 1], cells[:, 0]] == 1).all()
    there = np.floor((objects.boxes[objects.points > 0][near, :2] + 50) / 0.5).astype(int)  # not moved to now
    there = there[(there >= 0).all(1) & (there < 200).all(1)]
    assert (occupancy.segmentation[4][there[:, 1], there[:, 0]] != 1).any()
    assert truth.boxes_ahead(39, 1) is None and len(truth.boxes_ahead(38, 1))


# --- choice, cache, refusals ---


def test_choice_of_scenes(truth):
    root = shared_path("nuscenes", "mini_val")
    for scenes, count in ((["scene-0916"], 41), (["mini_val"], 81), ([truth.heads[0].token], 40), (["all"], 81)):
        assert len(GroundTruth(root, BASE, scenes=scenes, maps=False, cache=truth.cache)) == count
    with pytest.raises(FrameError, match=r"no scene 'mini_train'; there are 2 scenes \(scene-0103, scene-0916\)"):
        GroundTruth(root, BASE, scenes=["mini_train"], maps=False, cache=truth.cache)


def test_no_tables(tmp_path):
    with pytest.raises(FrameError, match="no nuScenes tables here"):
        GroundTruth(tmp_path, BASE)


def test_missing_maps_in_one_message():
    with pytest.raises(
        FrameError, match=r"map expansion is missing \(boston-seaport.json, singapore-queenstown.json\)"
    ):
        GroundTruth(shared_path("nuscenes", "mini_val"), BASE)
    with pytest.raises(FrameError, match="opened without maps"):
        real_truth().maps(0)


def _arrays(truth):
    return [getattr(scene, field.name) for _, scene in truth._scenes for field in dataclasses.fields(Scene)]


def test_cache(tmp_path, monkeypatch):
    root, cache = tmp_path / "root", tmp_path / "cache"
    shutil.copytree(shared_path("nuscenes", "clip") / "v1.0-mini", root / "v1.0-mini")
    (root / "maps").symlink_to(shared_path("nuscenes", "clip") / "maps")
    os.chmod(root / "v1.0-mini", 0o755)
    for path in (root / "v1.0-mini").iterdir():
        path.chmod(0o644)
    first = GroundTruth(root, BASE, maps=False, cache=cache)
    opened = []
    original = ground_truth.open_tables
    monkeypatch.setattr(ground_truth, "open_tables", lambda *a: opened.append(a) or original(*a))
    second = GroundTruth(root, BASE, maps=False, cache=cache)
    assert not opened and len(second) == 4
    for ours, theirs in zip(_arrays(first), _arrays(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (scene,) = cache.glob("index-*/*.npz")
    for damage in (b"", scene.read_bytes()[:100]):
        scene.write_bytes(damage)
        assert len(GroundTruth(root, BASE, maps=False, cache=cache)) == 4
    assert len(opened) == 2 and scene.stat().st_size > 1000  # read again and mended
    os.utime(root / "v1.0-mini" / "sample.json")
    GroundTruth(root, BASE, maps=False, cache=cache)
    assert len(opened) == 3  # the tables have changed
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert len(GroundTruth(root, BASE, maps=False, cache=blocked)) == 4  # a cache that can't be written
    attributes = root / "v1.0-mini" / "attribute.json"
    attributes.write_text("[]")
    with pytest.raises(FrameError, match="scene-0103 can't be read: tables do not fit together"):
        GroundTruth(root, BASE, maps=False)


# --- UniAD's infos ---


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_infos_give_the_same(tmp_path, truth, convention):
    path = tmp_path / "nuscenes_infos_temporal_val.pkl"
    path.write_bytes(pickle.dumps(infos_of(truth, convention)))
    other = GroundTruth(truth.root, BASE, maps=False, infos=path, cache=truth.cache)
    assert other.tokens == truth.tokens
    for index in (0, 20, 39, 60):
        ours, theirs = truth.objects(index), other.objects(index)
        assert_close(theirs.boxes[:, :6], ours.boxes[:, :6], 1e-9, "boxes")
        assert_close(np.cos(theirs.boxes[:, 6] - ours.boxes[:, 6]), np.ones(len(ours.names)), 1e-9, "heading")
        assert_close(theirs.translation, ours.translation, 1e-9, "global")
        unknown = np.isnan(ours.velocity)
        assert np.array_equal(np.isnan(theirs.velocity), unknown)
        assert_close(theirs.velocity[~unknown], ours.velocity[~unknown], 0.1, "velocity")
        np.testing.assert_array_equal(theirs.future_mask, ours.future_mask)
        assert_close(theirs.future, ours.future, 0.05, "future")  # the tilt of boxes is not in the file
        np.testing.assert_array_equal(other.occupancy(index).instance, truth.occupancy(index).instance)
        np.testing.assert_array_equal(other.plan(index).trajectory, truth.plan(index).trajectory)
    assert len(GroundTruth(truth.root, BASE, maps=False, infos=path, scenes=["scene-0916"], cache=truth.cache)) == 41


class _Evil:
    def __reduce__(self):
        return os.system, ("echo harm",)


def test_infos_refused(tmp_path, truth):
    path = tmp_path / "infos.pkl"

    def refused(value, match, error=FrameError):
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
        with pytest.raises(error, match=match) as caught:
            GroundTruth(truth.root, BASE, maps=False, infos=path, cache=truth.cache)
        assert "\n" not in str(caught.value)

    infos = infos_of(truth, "v2.0")
    refused(
        {"infos": [_Evil()]},
        r"asks for (posix|nt).system, which is no plain data; .* no code of it was run",
        PickleError,
    )
    refused(np.zeros(3), "holds no UniAD infos")
    refused(pickle.dumps(infos)[:-500], "not a pickle, or damaged", PickleError)
    refused({"infos": [{"token": "a"}]}, "infos lack ego2global_rotation, .*uniad_create_data.sh")
    refused({"infos": infos["infos"][:1]}, "can't tell the box convention")
    refused({"infos": [{**info, "scene_token": "x"} for info in infos["infos"]]}, "scene x is not in .*v1.0-mini")
    short = [{**info, "gt_inds": info["gt_inds"][1:]} for info in infos["infos"]]
    refused({"infos": short}, "infos are inconsistent .gt_inds does not fit gt_boxes")
    with pytest.raises(PickleError, match="No such file"):
        load_infos(tmp_path / "none.pkl")


def test_plain_pickle_reads_old_protocols(tmp_path):
    value = {"a": np.arange(6.0).reshape(2, 3), "b": [np.float64(2), "x", b"y", None], "c": np.array(["q", "rs"])}
    for protocol in range(2, 6):
        path = tmp_path / "plain.pkl"
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        loaded = load_plain_pickle(path)
        np.testing.assert_array_equal(loaded["a"], value["a"])
        assert loaded["b"] == value["b"] and loaded["c"].tolist() == ["q", "rs"]
