"""data/map_truth.py on a small city made here: positions by hand, and shapes as nuscenes-devkit's map API has them."""

import json
import pathlib

import numpy as np
import pytest
import shapely
from support import assert_close, shared_path

from config import load_config
from data import ground_truth
from data.frames import FrameError
from data.ground_truth import GroundTruth
from data.map_truth import CLASSES, CityMap, city_map
from data.occupancy_truth import RigidPose

pytest.importorskip("nuscenes")
BASE = load_config("base_e2e")
CANVAS, PATCH = (200, 200), (102.4, 102.4)
LOCATION = "boston-seaport"
LAYERS = (
    *("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway"),
    *("stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector"),
)


class City:
    """A map of the expansion's format."""

    def __init__(self):
        self.json = {name: [] for name in LAYERS}
        self.json |= {"version": "1.3", "canvas_edge": [3000, 3000], "arcline_path_3": {}, "connectivity": {}}
        self.count = 0

    def _token(self):
        self.count += 1
        return f"token-{self.count}"

    def _nodes(self, points):
        nodes = [{"token": self._token(), "x": float(x), "y": float(y)} for x, y in points]
        self.json["node"] += nodes
        return [node["token"] for node in nodes]

    def line(self, layer, points):
        line = {"token": self._token(), "node_tokens": self._nodes(points)}
        self.json["line"].append(line)
        self.json[layer].append({"token": self._token(), "line_token": line["token"]})

    def polygon(self, layer, points, holes=()):
        polygon = {
            "token": self._token(),
            "exterior_node_tokens": self._nodes(points),
            "holes": [{"node_tokens": self._nodes(hole)} for hole in holes],
        }
        self.json["polygon"].append(polygon)
        record = {"token": self._token(), "polygon_token": polygon["token"]}
        if layer == "drivable_area":
            record = {"token": record["token"], "polygon_tokens": [polygon["token"]]}
        if layer == "lane":
            record |= {"left_lane_divider_segments": [], "right_lane_divider_segments": []}
        self.json[layer].append(record)

    def save(self, root: pathlib.Path, name: str = LOCATION) -> pathlib.Path:
        (root / "maps" / "expansion").mkdir(parents=True, exist_ok=True)
        (root / "maps" / "expansion" / f"{name}.json").write_text(json.dumps(self.json))
        return root


def _rectangle(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _crossroads() -> City:
    """A road along x through (1000, 1000), 14 m wide, with a divider, a crossing at x = 1020, and a square ahead."""
    city = City()
    city.polygon("road_segment", _rectangle(900, 993, 1030, 1007))
    city.polygon("lane", _rectangle(1030, 993, 1100, 1007))
    city.polygon("drivable_area", _rectangle(900, 993, 1100, 1007))
    city.polygon("drivable_area", _rectangle(1030, 970, 1045, 1020), [_rectangle(1035, 1010, 1040, 1015)])
    city.line("road_divider", [(900, 1000), (1100, 1000)])
    city.line("lane_divider", [(900, 1003.5), (1100, 1003.5)])
    city.polygon("ped_crossing", _rectangle(1018, 994, 1022, 1006))
    return city


def _pose(x, y, yaw):
    """The vehicle at x, y; as in nuScenes the lidar's x points to the vehicle's right."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    right = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    return RigidPose((right, np.zeros(3)), (turn, np.array([x, y, 0.0])))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return _crossroads().save(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def masks(root):
    """Seen from (1000, 1000), driving along x: ahead is up the rows, left is down the columns."""
    return dict(zip(CLASSES, CityMap(root, LOCATION).masks(_pose(1000, 1000, 0), CANVAS, PATCH)))


def _at(mask, ahead, right):
    """The cell of a point given in metres from the vehicle."""
    return mask[int((ahead + 51.2) / 0.512), int((right + 51.2) / 0.512)]


def test_positions(masks):
    assert masks["divider"].shape == CANVAS and masks["divider"].dtype == bool
    for ahead in (-40, 0, 10, 40):
        assert masks["divider"][:, 90:101].any(1)[int((ahead + 51.2) / 0.512)]
        assert _at(masks["divider"], ahead, -0.1) or _at(masks["divider"], ahead, 0.1)
        assert _at(masks["divider"], ahead, -3.6)  # the lane divider, to the left
        assert not _at(masks["divider"], ahead, 3.6)
    assert _at(masks["crossing"], 18, 0) and _at(masks["crossing"], 22, 0) and not _at(masks["crossing"], 20, 0)
    assert not masks["crossing"][:130].any() and not _at(masks["crossing"], 20, 5.9)  # its short edges are not drawn
    for right in (-7, 7):
        assert _at(masks["boundary"], 0, right) and _at(masks["boundary"], 30, right)
    assert not _at(masks["boundary"], 30, 0)  # road and lane are one
    assert not masks["boundary"][:, 60:80].any()
    assert _at(masks["drivable"], 0, 6) and not _at(masks["drivable"], 0, 8)
    assert _at(masks["drivable"], 37, 25) and _at(masks["drivable"], 33, -18)
    assert not _at(masks["drivable"], 37.5, -12.5) and _at(masks["drivable"], 37.5, -18)  # the hole


def test_lines_give_way_to_later_classes(masks):
    """Dividers end a metre and a half before the edges of the crossing."""
    assert _at(masks["divider"], 16, 0) or _at(masks["divider"], 16, -0.1)
    assert not masks["divider"][int((17 + 51.2) / 0.512), 95:105].any()
    assert not masks["crossing"][int((17 + 51.2) / 0.512)].any()


def test_turned_vehicle(root, masks):
    """Driving along y, the same road crosses from left to right."""
    turned = dict(zip(CLASSES, CityMap(root, LOCATION).masks(_pose(1000, 1000, np.pi / 2), CANVAS, PATCH)))
    assert _at(turned["divider"], 0.1, 10) or _at(turned["divider"], -0.1, 10)
    assert _at(turned["divider"], 3.6, -20) and not _at(turned["divider"], -3.6, -20)
    assert _at(turned["crossing"], 0, 18) and _at(turned["drivable"], -25, 37)
    for name in ("divider", "crossing", "boundary", "drivable"):
        same = np.rot90(turned[name], k=-1)  # up to the rounding of cells
        wide = np.pad(same, 1)
        near = np.any([wide[1 + i : 201 + i, 1 + j : 201 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)
        assert (masks[name] & ~near).sum() <= 0.02 * masks[name].sum(), name
    assert (turned["divider"] != masks["divider"]).sum() > 100


def test_shapes_equal_the_devkit(root):
    """Drivable area cell by cell, lines by their geometry, at an odd angle."""
    from nuscenes.map_expansion.map_api import NuScenesMap

    devkit, city, pose = NuScenesMap(str(root), LOCATION), CityMap(root, LOCATION), _pose(1012.3, 995.1, 0.7)
    lidar_degrees = np.degrees(0.7) - 90
    patch = (1012.3, 995.1, *PATCH)
    expected = devkit.get_map_mask(patch, lidar_degrees, ["drivable_area"], canvas_size=CANVAS)[0]
    ours = city.masks(pose, CANVAS, PATCH)[3]
    assert expected.sum() > 3000 and (ours != expected.astype(bool)).sum() <= 2
    for layer in ("road_divider", "lane_divider"):
        theirs = devkit.explorer._get_layer_line(patch, np.degrees(0.7), layer)
        mine = city._clipped(layer, (1012.3, 995.1, np.degrees(0.7)), PATCH)
        assert len(mine) == len(theirs) > 0
        for a, b in zip(mine, theirs):
            assert_close(shapely.get_coordinates(a), shapely.get_coordinates(b), 1e-9, layer)


def test_far_from_everything(root):
    assert not CityMap(root, LOCATION).masks(_pose(100, 100, 0.3), CANVAS, PATCH).any()


def test_damaged_maps(tmp_path):
    city = City()
    city.json["version"] = "1.2"
    with pytest.raises(FrameError, match=r"boston-seaport.json: not a map of version 1.3 .Error: You are using an out"):
        CityMap(city.save(tmp_path), LOCATION)
    (tmp_path / "maps" / "expansion" / f"{LOCATION}.json").write_text("{")
    with pytest.raises(FrameError, match=r"not a map of version 1.3"):
        CityMap(tmp_path, LOCATION)


def test_ground_truth_draws_and_caches(tmp_path, monkeypatch):
    """The real clip's poses over a square of road; the second time the masks come from the cache."""
    clip, cache = shared_path("nuscenes", "clip"), tmp_path / "cache"
    (tmp_path / "root" / "maps").mkdir(parents=True)
    for path in clip.iterdir():
        if path.name != "maps":
            (tmp_path / "root" / path.name).symlink_to(path)
    for path in (clip / "maps").iterdir():
        (tmp_path / "root" / "maps" / path.name).symlink_to(path)
    root = tmp_path / "root"
    with pytest.raises(FrameError, match=r"map expansion is missing \(boston-seaport.json\); download 'Map expansion"):
        GroundTruth(root, BASE, cache=cache)
    x, y, _ = GroundTruth(root, BASE, maps=False, cache=cache).pose(1).ego_translation
    city = City()
    city.polygon("drivable_area", _rectangle(x - 10, y - 10, x + 10, y + 10))
    city.polygon("lane", _rectangle(x - 10, y - 10, x + 10, y + 10))
    city.save(root)
    truth = GroundTruth(root, BASE, cache=cache)
    first = [truth.maps(i) for i in range(4)]
    assert_close(first[1][3].sum() * 0.512**2, 400, 40, "area")
    assert not first[1][0].any() and first[1][2].any()
    assert _at(first[1][3], 0, 0) and not (first[0] == first[3]).all()
    monkeypatch.setattr(ground_truth, "city_map", lambda *a: pytest.fail("drawn again"))
    again = GroundTruth(root, BASE, cache=cache)
    for i in range(4):
        np.testing.assert_array_equal(again.maps(i), first[i])
    smaller = GroundTruth(root, BASE.replace(canvas_size=(40, 40)), cache=cache)
    monkeypatch.setattr(ground_truth, "city_map", city_map)
    assert smaller.maps(1).shape == (4, 40, 40)
