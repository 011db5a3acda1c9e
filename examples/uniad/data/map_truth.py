"""Map ground truth: nuScenes' map expansion drawn as the four masks that UniAD's map head is trained with.

Upstream: datasets/data_utils/{vector_map,rasterize,data_utils}.py and get_data_info of nuscenes_e2e_dataset.py of
OpenDriveLab/UniAD; shapes are clipped and drawn as nuscenes-devkit's map API does, but each map is prepared once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import shapely
from scipy.spatial.transform import Rotation
from shapely import affinity

from data.frames import FrameError
from data.occupancy_truth import RigidPose
from data.scene_index import box_yaw, planar_yaw

CLASSES = ("divider", "crossing", "boundary", "drivable")
_LINES = ("road_divider", "lane_divider")
_POLYGONS = ("road_segment", "lane", "drivable_area")
_SAMPLE_METRES = 1.0  # lines are drawn through points this far apart; what is left of a line is cut off
_MARGIN = 0.2  # metres that boundaries keep from the edge, so that the edge is not one


def expansion_folder(root: pathlib.Path) -> pathlib.Path:
    return root / "maps" / "expansion"


def check_expansion(root: pathlib.Path, locations: Iterable[str]) -> None:
    """Raise FrameError naming what is missing of the maps of some locations."""
    missing = sorted({name for name in locations if not (expansion_folder(root) / f"{name}.json").is_file()})
    if missing:
        raise FrameError(
            f"{expansion_folder(root)}: map expansion is missing ({', '.join(f'{name}.json' for name in missing)}); "
            f"download 'Map expansion pack (v1.3)' from nuScenes' download page and extract it into {root / 'maps'}, "
            "or evaluate without the map"
        )


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The shapes of one layer of a city in the order of its table, and a tree that finds those near a patch."""

    shapes: np.ndarray  # (N) of shapely geometries
    tree: shapely.STRtree

    @classmethod
    def of(cls, shapes: list[Any]) -> _Layer:
        array = np.empty(len(shapes), object)
        array[:] = shapes
        return cls(array, shapely.STRtree(array))

    def near(self, patch: shapely.Polygon) -> np.ndarray:
        return self.shapes[np.sort(self.tree.query(patch))]


class CityMap:
    """Dividers, crossings, road outlines and drivable area of one location. Raises FrameError."""

    def __init__(self, root: pathlib.Path, location: str):
        from nuscenes.map_expansion.map_api import NuScenesMap

        try:
            city = NuScenesMap(dataroot=str(root), map_name=location)
        except Exception as error:  # damaged files fail anywhere; old versions raise a bare Exception
            reason = str(error) or type(error).__name__
            raise FrameError(
                f"{expansion_folder(root) / location}.json: not a map of version 1.3 ({reason})"
            ) from error
        self.layers: dict[str, _Layer] = {}
        for name in _LINES:
            lines = [city.extract_line(record["line_token"]) for record in getattr(city, name)]
            self.layers[name] = _Layer.of([line for line in lines if not line.is_empty])
        for name in _POLYGONS:
            tokens = [t for r in getattr(city, name) for t in r.get("polygon_tokens", [r.get("polygon_token")])]
            polygons = [city.extract_polygon(token) for token in tokens]
            # The devkit leaves invalid shapes out, except for drivable areas.
            keep = [_valid(p) for p in polygons] if name == "drivable_area" else [p for p in polygons if p.is_valid]
            self.layers[name] = _Layer.of(keep)
        crossings = [city.extract_polygon(record["polygon_token"]) for record in city.ped_crossing]
        self.layers["crossing"] = _Layer.of([edge for polygon in crossings for edge in _long_edges(polygon)])

    def masks(self, pose: RigidPose, canvas: tuple[int, int], patch: tuple[float, float]) -> np.ndarray:
        """(4,H,W) bool in the order of CLASSES; rows go with the lidar's y (ahead), columns with its x (right).

        `canvas` is rows and columns, `patch` their extent in metres.
        """
        rotation, translation = pose.ego2global
        turn = Rotation.from_matrix(rotation[None])
        around_ego = (translation[0], translation[1], planar_yaw(turn)[0] / np.pi * 180)
        divider = [line for name in _LINES for line in self._clipped(name, around_ego, patch)]
        crossing = self._clipped("crossing", around_ego, patch)
        roads, lanes = (self._clipped(name, around_ego, patch) for name in _POLYGONS[:2])
        outline = _outline(roads, lanes, patch)
        lines = _line_masks([divider, crossing, outline], canvas, patch)  # in the vehicle's frame
        lines = np.rot90(lines, k=-1, axes=(1, 2))
        l2g = turn * Rotation.from_matrix(pose.lidar2ego[0][None])
        centre = rotation @ pose.lidar2ego[1] + translation
        around_lidar = (centre[0], centre[1], math.degrees(box_yaw(l2g)[0]))
        area = _area_mask(self._clipped("drivable_area", around_lidar, patch), canvas, patch)
        return np.concatenate([lines, area[None]]).astype(bool)

    def _clipped(self, layer: str, around: tuple[float, float, float], patch: tuple[float, float]) -> list[Any]:
        """Shapes of a layer inside the patch around x, y, degrees, moved to its centre and turned back."""
        x, y, degrees = around
        window = affinity.rotate(_window(patch, x, y), degrees, origin=(x, y))
        found = []
        for shape in self.layers[layer].near(window):
            part = shape.intersection(window)
            if not part.is_empty:
                part = affinity.rotate(part, -degrees, origin=(x, y))
                found.append(affinity.affine_transform(part, [1.0, 0.0, 0.0, 1.0, -x, -y]))
        return found


@functools.lru_cache(maxsize=4)
def city_map(root: pathlib.Path, location: str) -> CityMap:
    """The prepared map of a location; nuScenes has four."""
    return CityMap(root, location)


# --- shapes ---


def _window(patch: tuple[float, float], x: float = 0.0, y: float = 0.0, margin: float = 0.0) -> shapely.Polygon:
    height, width = patch
    half_x, half_y = width / 2 - margin, height / 2 - margin
    return shapely.box(x - half_x, y - half_y, x + half_x, y + half_y)


def _valid(polygon: shapely.Polygon) -> Any:
    return polygon if polygon.is_valid else shapely.make_valid(polygon)


def _long_edges(polygon: shapely.Polygon) -> list[shapely.LineString]:
    """The two longest edges of a crossing: the lines along which one walks."""
    corners = np.array(polygon.exterior.coords)
    lengths = np.square(np.diff(corners, axis=0)).sum(axis=1)
    return [shapely.LineString(corners[edge : edge + 2]) for edge in np.argsort(lengths)[-2:]]


def _outline(roads: list[Any], lanes: list[Any], patch: tuple[float, float]) -> list[Any]:
    """Edges of the union of road segments and lanes: exteriors clockwise, holes counter-clockwise."""
    union = shapely.unary_union([shapely.unary_union(roads), shapely.unary_union(lanes)])
    window = _window(patch, margin=_MARGIN)
    edges = []
    polygons = _parts(union, "Polygon")
    rings = [(p.exterior, False) for p in polygons] + [(hole, True) for p in polygons for hole in p.interiors]
    for ring, counter_clockwise in rings:
        ring = ring if ring.is_ccw == counter_clockwise else shapely.LinearRing(ring.coords[::-1])
        inside = ring.intersection(window)
        edges.append(shapely.line_merge(inside) if inside.geom_type == "MultiLineString" else inside)
    return edges


def _parts(shape: Any, kind: str) -> list[Any]:
    """The pieces of a shape that are of one kind; a collection is taken apart."""
    if shape.geom_type == kind:
        return [] if shape.is_empty else [shape]
    return [piece for part in getattr(shape, "geoms", []) for piece in _parts(part, kind)]


# --- drawing ---


def _to_canvas(shape: Any, canvas: tuple[int, int], patch: tuple[float, float]) -> Any:
    """From metres around the centre to cells."""
    (rows, columns), (height, width) = canvas, patch
    shifted = affinity.affine_transform(shape, [1.0, 0.0, 0.0, 1.0, width / 2, height / 2])
    return affinity.scale(shifted, xfact=columns / width, yfact=rows / height, origin=(0, 0))


def _sampled(line: shapely.LineString) -> np.ndarray:
    """Points (P,2) along a line, a metre apart from its start."""
    distances = np.arange(0, line.length, _SAMPLE_METRES)
    return shapely.get_coordinates(shapely.line_interpolate_point(line, distances))


def _line_masks(classes: list[list[Any]], canvas: tuple[int, int], patch: tuple[float, float]) -> np.ndarray:
    """(classes,H,W) uint8: lines of each class, without what lies close to a line of a later class."""
    thickness = 2 if canvas[0] >= 200 else 1
    window = _window(patch)
    masks, broad = (np.zeros((len(classes), *canvas), np.uint8) for _ in range(2))
    for index, lines in enumerate(classes):
        for line in (piece for shape in lines for piece in _parts(shape, "LineString")):
            points = _sampled(line)
            if len(points) < 2:
                continue
            for piece in _parts(shapely.LineString(points).intersection(window), "LineString"):
                cells = shapely.get_coordinates(_to_canvas(piece, canvas, patch)).astype(np.int32)  # cut, not rounded
                cv2.polylines(masks[index], [cells], False, (1,), thickness)
                cv2.polylines(broad[index], [cells], False, (1,), thickness + 4)
    for index in reversed(range(len(classes))):
        masks[:index, broad[index] != 0] = 0
    return masks


def _area_mask(shapes: list[Any], canvas: tuple[int, int], patch: tuple[float, float]) -> np.ndarray:
    """(H,W) uint8: inside of polygons, one after the other; a later one's hole clears what an earlier one filled."""
    mask = np.zeros(canvas, np.uint8)
    for shape in shapes:
        polygons = _parts(_to_canvas(shape.intersection(_window(patch)), canvas, patch), "Polygon")

        def cells(ring: Any) -> np.ndarray:
            return shapely.get_coordinates(ring).round().astype(np.int32)

        cv2.fillPoly(mask, [cells(polygon.exterior) for polygon in polygons], (1,))
        cv2.fillPoly(mask, [cells(hole) for polygon in polygons for hole in polygon.interiors], (0,))
    return mask
