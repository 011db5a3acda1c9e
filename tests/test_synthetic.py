"""The generated nuScenes-mini: nuscenes-devkit and the frame source read it, and its parts agree with each other."""

import collections
import json

import cv2
import numpy as np
import pytest
from support import assert_close, assert_differs

from config import load_config
from data import synthetic
from data.frames import CAMERAS, open_source
from data.nuscenes_source import NuScenesSource
from data.synthetic_ground import paint_town
from data.synthetic_models import agent_model, town_models
from data.synthetic_render import Camera, Renderer, make_mesh
from data.synthetic_scenes import EGO_CENTRE, SCENES, populate
from data.synthetic_town import LOCATIONS, make_town, token
from data.synthetic_traffic import simulate
from errors import UniADError

pytest.importorskip("nuscenes")
from nuscenes import NuScenes
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import view_points
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion
from shapely.geometry import Point, Polygon

FRAMES, SIZE = 5, (448, 256)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "mini"
    synthetic.write_nuscenes(folder, synthetic.choose_scenes(["mini_val"]), FRAMES, SIZE)
    return folder


@pytest.fixture(scope="module")
def nusc(root):
    return NuScenes("v1.0-mini", str(root), verbose=False)


def scene_of(name):
    return next(scene for scene in SCENES if scene.name == name)


def motion_of(name, seconds=3.0):
    town, agents = populate(scene_of(name), 0)
    return town, simulate(town, agents, seconds)


def ego_pose(nusc, sample, channel="LIDAR_TOP"):
    return nusc.get("ego_pose", nusc.get("sample_data", sample["data"][channel])["ego_pose_token"])


def test_names_are_the_official_ones():
    splits = create_splits_scenes()
    for split in ("mini_train", "mini_val"):
        assert {scene.name for scene in synthetic.choose_scenes([split])} == set(splits[split])
    assert {scene.location for scene in SCENES} == set(LOCATIONS)


def test_tables_hold_together(nusc):
    assert [scene["name"] for scene in nusc.scene] == ["scene-0103", "scene-0916"]
    assert {nusc.get("log", scene["log_token"])["location"] for scene in nusc.scene} == {
        "boston-seaport",
        "singapore-queenstown",
    }
    for scene in nusc.scene:
        token_, seen = scene["first_sample_token"], []
        while token_:
            sample = nusc.get("sample", token_)
            assert set(sample["data"]) == {*CAMERAS, "LIDAR_TOP"} and sample["scene_token"] == scene["token"]
            assert nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["timestamp"] == sample["timestamp"]
            assert sample["prev"] == (seen[-1] if seen else "")
            seen.append(token_)
            token_ = sample["next"]
        assert len(seen) == scene["nbr_samples"] == FRAMES and seen[-1] == scene["last_sample_token"]
    for table, field, target in (
        ("sample_annotation", "instance_token", "instance"),
        ("sample_annotation", "visibility_token", "visibility"),
        ("instance", "category_token", "category"),
        ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
        ("sample_data", "ego_pose_token", "ego_pose"),
    ):
        assert all(nusc.get(target, row[field]) for row in getattr(nusc, table))
    for instance in nusc.instance:
        row, count = nusc.get("sample_annotation", instance["first_annotation_token"]), 1
        while row["next"]:
            row, count = nusc.get("sample_annotation", row["next"]), count + 1
        assert count == instance["nbr_annotations"] and row["token"] == instance["last_annotation_token"]
    data = nusc.get("sample_data", nusc.sample[-1]["data"]["CAM_BACK"])
    assert cv2.imread(nusc.get_sample_data_path(data["token"])).shape == (data["height"], data["width"], 3)
    lidar = LidarPointCloud.from_file(nusc.get_sample_data_path(nusc.sample[0]["data"]["LIDAR_TOP"]))
    assert lidar.points.shape == (4, 0)


def test_evaluation_takes_it(nusc):
    """The official loaders accept every category and attribute; all ten classes of detection occur."""
    config_factory("tracking_nips_2019")  # sets the names that TrackingBox accepts
    detection = load_gt(nusc, "mini_val", DetectionBox)
    tracking = load_gt(nusc, "mini_val", TrackingBox)
    assert len(detection.sample_tokens) == len(tracking.sample_tokens) == 2 * FRAMES
    classes = collections.Counter(box.detection_name for box in detection.all)
    assert set(classes) == {*load_config("base_e2e").class_names} and sum(classes.values()) > 250
    assert len(tracking.all) > 100


def test_frame_source_reads_it(root):
    config = load_config("tiny_e2e")
    source = open_source(root, config)
    assert isinstance(source, NuScenesSource) and len(source) == 2 * FRAMES
    frame = source.load(3)
    assert frame.img.shape == (6, 128, 224, 3) and frame.img.std() > 20
    assert {source.values(i, images=False)["command"] for i in range(len(source))} == {0, 1, 2}
    speed = [np.linalg.norm(source.values(i, images=False)["can_bus"][13:16]) for i in range(len(source))]
    for i in (0, FRAMES):
        steps = [
            np.linalg.norm(source.pose(k + 1).ego_translation - source.pose(k).ego_translation) for k in (i, i + 1)
        ]
        assert_close(np.array(steps) / 0.5, (np.array(speed[i : i + 2]) + speed[i + 1 : i + 3]) / 2, 0.4, "speed")


def test_velocities_are_those_of_the_motion(nusc):
    """box_velocity against the simulated speed along the heading: differences of places half a second apart."""
    errors, broken = [], []
    for scene in nusc.scene:
        town, motion = motion_of(scene["name"])
        _, times = synthetic.keyframe_times(scene_of(scene["name"]), FRAMES)
        agents = {token("instance", scene["name"], i): i + 1 for i in range(len(motion.agents) - 1)}
        frames = {token("sample", scene["name"], f): f for f in range(FRAMES)}
        for row in nusc.sample_annotation:
            if row["instance_token"] not in agents or not (row["prev"] and row["next"]):
                continue
            x, y, yaw, speed = motion.place(agents[row["instance_token"]], times[frames[row["sample_token"]]])
            assert_close(row["translation"][:2], town.to_global([x, y]), 6e-4, "millimetres")
            heading = yaw + town.yaw
            velocity = nusc.box_velocity(row["token"])[:2]
            errors.append(np.linalg.norm(velocity - speed * np.array([np.cos(heading), np.sin(heading)])))
            broken.append(np.linalg.norm(velocity - speed * np.array([np.cos(yaw), np.sin(yaw)])))
            names = [nusc.get("attribute", a)["name"] for a in row["attribute_tokens"]]
            if any(name.endswith(".moving") for name in names):
                assert speed > 0.2
            elif any(name.endswith((".parked", ".standing", ".sitting_lying_down")) for name in names):
                assert speed <= 0.2 and np.linalg.norm(velocity) < 0.6
    # Half a second of the hardest braking (6 m/s^2) moves a centred difference by up to 1.5 m/s.
    assert len(errors) > 200 and np.median(errors) < 0.02 and max(errors) < 1.5
    assert max(broken) > 3  # the town's turn forgotten


@pytest.fixture(scope="module")
def empty_town(nusc):
    """Draws what a camera of the tables sees if there are no agents, `shift` metres aside."""
    scene = scene_of("scene-0103")
    town = make_town(scene.location, 0)
    renderer = Renderer(paint_town(town), town_models(town, 0), scene.light, 0)
    nobody = make_mesh([agent_model("cone", (0.4, 0.4, 0.8), 0, True)], renderer.sun).placed(
        np.array([[1e5, 1e5, 0.0]])
    )
    c, s = np.cos(town.yaw), np.sin(town.yaw)
    to_town = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    def draw(sample, channel, shift=0.0):
        data = nusc.get("sample_data", sample["data"][channel])
        sensor, pose = nusc.get("calibrated_sensor", data["calibrated_sensor_token"]), ego_pose(nusc, sample, channel)
        ego = Quaternion(pose["rotation"]).rotation_matrix
        place = ego @ (np.array(sensor["translation"]) + [0, shift, 0]) + pose["translation"]
        camera2town = to_town @ ego @ Quaternion(sensor["rotation"]).rotation_matrix
        place = to_town @ (place - [*town.origin, 0.0])
        camera = Camera(np.array(sensor["camera_intrinsic"]), camera2town.T, place, *SIZE)
        return renderer.render(camera, renderer.gather(nobody, place[:2]))[0].astype(int)

    return draw


def test_pictures_and_tables_agree(nusc, empty_town):
    """Against the same town without agents, drawn from the tables' poses and calibration: the pictures are the same
    outside the boxes (but for shadows and JPEG), and other at the centres of the boxes that are seen."""
    scene = nusc.scene[0]
    centres, mirrored, outside, shifted = [], [], [], []
    for frame in (0, 2, FRAMES - 1):
        sample = nusc.get("sample", token("sample", scene["name"], frame))
        for channel in CAMERAS:
            path, boxes, intrinsic = nusc.get_sample_data(sample["data"][channel])
            picture = cv2.imread(path).astype(int)
            changed = np.abs(picture - empty_town(sample, channel)).max(-1) > 20
            covered = np.zeros(changed.shape, np.uint8)
            for box in boxes:
                corners = view_points(box.corners(), intrinsic, True)[:2].T
                cv2.fillConvexPoly(covered, cv2.convexHull(corners.astype(np.float32)).astype(np.int32), (1,))
                row = nusc.get("sample_annotation", box.token)
                u, v = np.round(view_points(box.center[:, None], intrinsic, True)[:2, 0]).astype(int)
                if row["visibility_token"] == "4" and 0 <= u < SIZE[0] and 0 <= v < SIZE[1] and box.center[2] < 40:
                    centres.append(changed[v, u])
                    mirrored.append(changed[v, SIZE[0] - 1 - u])
            free = cv2.dilate(covered, np.ones((5, 5), np.uint8)) == 0
            outside.append(changed[free].mean())
            shifted.append((np.abs(picture - empty_town(sample, channel, 0.5)).max(-1) > 20)[free].mean())
    assert len(centres) > 30 and np.mean(centres) > 0.9
    assert np.mean(mirrored) < 0.5  # the same test at wrong places
    assert np.mean(outside) < 0.02
    assert np.mean(shifted) > 2 * np.mean(outside)  # a camera half a metre aside


def test_cones_are_orange(nusc):
    """Colours of the files: blue, green, red from dark to bright at the middle of cones."""
    found = 0
    for sample in nusc.sample:
        for channel in CAMERAS:
            path, boxes, intrinsic = nusc.get_sample_data(sample["data"][channel])
            for box in boxes:
                seen = nusc.get("sample_annotation", box.token)["visibility_token"] == "4"
                if box.name != "movable_object.trafficcone" or not seen or box.center[2] > 45:
                    continue
                u, v = np.round(view_points(box.center[:, None], intrinsic, True)[:2, 0]).astype(int)
                if 0 <= u < SIZE[0] and 0 <= v < SIZE[1]:
                    b, g, r = cv2.imread(path)[v, u].astype(int)
                    found += r > g + 30 > b + 30
    assert found > 3


def test_maps_load_and_hold_the_drive(nusc, root):
    for scene in nusc.scene:
        location = nusc.get("log", scene["log_token"])["location"]
        map_ = NuScenesMap(str(root), location)
        town = make_town(location, 0)
        mask = nusc.get("map", next(m["token"] for m in nusc.map if scene["log_token"] in m["log_tokens"]))["mask"]
        drivable = [map_.extract_polygon(t) for area in map_.drivable_area for t in area["polygon_tokens"]]
        for sample in nusc.sample:
            if sample["scene_token"] != scene["token"]:
                continue
            pose = ego_pose(nusc, sample)
            x, y, _ = pose["translation"]
            assert any(polygon.contains(Point(x, y)) for polygon in drivable)
            assert mask.is_on_mask(x, y).all()
            lane = map_.get_closest_lane(x, y, radius=3)
            poses = np.array(map_.discretize_lanes([lane], 0.5)[lane])
            nearest = poses[np.hypot(poses[:, 0] - x, poses[:, 1] - y).argmin()]
            assert np.hypot(nearest[0] - x, nearest[1] - y) < 0.4
        low, high = town.blocks()[5]
        yard = town.to_global((low + high) / 2)
        assert not any(polygon.contains(Point(yard)) for polygon in drivable) and not mask.is_on_mask(*yard).any()
        for connector in map_.lane_connector:
            path = map_.get_arcline_path(connector["token"])
            for way, end in (("outgoing", "end_pose"), ("incoming", "start_pose")):
                (lane,) = map_.connectivity[connector["token"]][way]
                other = map_.get_arcline_path(lane)[0]["start_pose" if way == "outgoing" else "end_pose"]
                assert_close(path[0][end][:2], other[:2], 1e-6, "joint")
            poses = map_.discretize_lanes([connector["token"]], 1.0)[connector["token"]]
            assert_close(poses[-1][:2], path[0]["end_pose"][:2], 0.01, "end")
        x0, y0, x1, y1 = 0, 0, *map_.canvas_edge
        found = map_.get_records_in_patch((x0, y0, x1, y1), ["ped_crossing", "road_divider", "lane_divider", "walkway"])
        assert {name: len(tokens) for name, tokens in found.items()} == {
            "ped_crossing": 36,
            "road_divider": 24,
            "lane_divider": 48,
            "walkway": 16,
        }
        assert map_.get_map_mask((x, y, 60, 60), 0, ["drivable_area"], (60, 60))[0, 30, 30] == 1


def test_can_bus_follows_the_poses(nusc, root):
    can_bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        for name in can_bus.all_messages:
            assert len(can_bus.get_messages(scene["name"], name)) > 0
        messages = can_bus.get_messages(scene["name"], "pose")
        times = np.array([message["utime"] for message in messages])
        sample = nusc.get("sample", scene["first_sample_token"])
        assert times[0] > sample["timestamp"]  # as in the real files
        while sample["next"]:
            sample = nusc.get("sample", sample["next"])
            pose = ego_pose(nusc, sample)
            message = messages[np.abs(times - sample["timestamp"]).argmin()]
            assert_close(message["pos"], pose["translation"], 0.11, "position")  # 10 ms at 8 m/s
            turned = Quaternion(message["orientation"]).inverse * Quaternion(pose["rotation"])
            assert_close(turned.yaw_pitch_roll[0], 0.0, 0.01, "heading")
            later = messages[min(np.searchsorted(times, sample["timestamp"] + 500_000), len(times) - 1)]
            assert later["utime"] == times[-1] or np.linalg.norm(np.subtract(later["pos"], message["pos"])) > 0.5
    assert not can_bus.list_misaligned_routes()


def outlines(motion, time):
    for index, agent in enumerate(motion.agents):
        place = motion.place(index, time)
        if place is not None:
            w, length, _ = agent.size
            x, y, yaw, _ = place
            ahead = EGO_CENTRE if agent.kind == "ego" else 0.0
            corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * [length, w] + [ahead, 0]
            turned = corners @ np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
            yield index, agent, Polygon(turned + [x, y])


@pytest.mark.parametrize("name", ["scene-0103", "scene-0757"])
def test_nothing_drives_through_the_ego_vehicle_nor_through_vehicles(name):
    _, motion = motion_of(name, 8.0)
    for time in np.arange(0.0, 8.0, 1.0):
        shapes = list(outlines(motion, time))
        vehicles = [(i, shape) for i, agent, shape in shapes if not agent.walks]
        for i, shape in vehicles:
            assert not any(shape.intersects(other) for j, _, other in shapes if i != j)
        assert any(vehicles[0][1].buffer(25.0).intersects(shape) for _, shape in vehicles[1:])  # the test sees them


def test_same_arguments_same_files(root, tmp_path):
    scene = [scene_of("scene-0103")]
    synthetic.write_nuscenes(tmp_path / "again", scene, FRAMES, SIZE)
    pictures = [path for path in sorted(root.rglob("*scene-0103*")) if path.is_file()]
    assert len(pictures) == 7 * FRAMES + 8
    for path in pictures:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(root)).read_bytes(), path.name

    def annotations(folder):
        rows = json.loads((folder / "v1.0-mini" / "sample_annotation.json").read_text())
        samples = {token("sample", "scene-0103", f) for f in range(FRAMES)}
        return [row for row in rows if row["sample_token"] in samples]

    assert annotations(root) == annotations(tmp_path / "again")
    for path in sorted((root / "maps").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(root)).read_bytes(), path.name
    assert_differs(*(make_town("boston-seaport", seed).streets[0] for seed in (0, 1)), 0.1)
    assert_differs(*(populate(scene[0], seed)[1][-1].start for seed in (0, 1)), 0.01)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--scenes", "scene-0001"], "no scene 'scene-0001': --scenes takes all"),
        (["--frames", "41"], "--frames must be 1 to 40"),
        (["--size", "448"], "'448' is not WIDTHxHEIGHT"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.setattr("sys.argv", ["synthetic", "-o", str(tmp_path / "new"), *arguments])
    with pytest.raises((UniADError, SystemExit)) as caught:
        synthetic.main()
    assert text in str(caught.value) + capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(UniADError, match="is not a generated nuScenes root"):
        synthetic.write_nuscenes(tmp_path / "mine", SCENES[:1], 1)
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(UniADError, match="cannot write"):
        synthetic.write_nuscenes(tmp_path / "new", SCENES[:1], 1)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]
