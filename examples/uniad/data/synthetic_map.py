"""Map files of a generated town: nuScenes' map expansion (version 1.3) and the semantic prior mask.

Format: nuscenes-devkit, map_expansion/map_api.py and docs/schema_nuscenes.md. Coordinates are the global frame's.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import cv2
import numpy as np

from data.synthetic_ground import crosswalks, stop_lines
from data.synthetic_town import (
    BOX,
    CROSSWALK,
    DIRECTIONS,
    FILLET,
    HALF,
    LANE,
    LANES,
    STOP,
    WALK,
    Town,
    crossing_outline,
    rounded_rectangle,
    token,
)

# The official files' names; nuscenes-devkit's BitMap has them built in.
MASKS = {
    "singapore-onenorth": "53992ee3023e5494b90c316c183be829",
    "singapore-hollandvillage": "37819e65e09e5547b8a3ceaefba56bb2",
    "singapore-queenstown": "93406b464a165eaba6d9de76ca09f5da",
    "boston-seaport": "36092f0b03a857c6a3403e25b4b7aab3",
}
_LAYERS = (
    *("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway"),
    *("stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector"),
)
_PIXELS = 10  # a metre of the mask


class _Map:
    """Tables of a map as they grow. Points that coincide share a node."""

    def __init__(self, town: Town):
        self.town = town
        self.tables: dict[str, list[dict[str, Any]]] = {layer: [] for layer in _LAYERS}
        self.paths: dict[str, list[dict[str, Any]]] = {}
        self.connectivity: dict[str, dict[str, list[str]]] = {}
        self._nodes: dict[tuple[float, float], str] = {}

    def add(self, layer: str, **fields: Any) -> str:
        record = {"token": token("map", self.town.location, layer, len(self.tables[layer])), **fields}
        self.tables[layer].append(record)
        return record["token"]

    def node(self, point: np.ndarray) -> str:
        key = (round(float(point[0]), 4), round(float(point[1]), 4))
        if key not in self._nodes:
            x, y = self.town.to_global(point)
            self._nodes[key] = self.add("node", x=round(float(x), 6), y=round(float(y), 6))
        return self._nodes[key]

    def line(self, points: np.ndarray) -> str:
        return self.add("line", node_tokens=[self.node(point) for point in points])

    def polygon(self, outline: np.ndarray, holes: tuple[np.ndarray, ...] = ()) -> str:
        inner = [{"node_tokens": [self.node(point) for point in hole]} for hole in holes]
        return self.add("polygon", exterior_node_tokens=[self.node(point) for point in outline], holes=inner)

    def pose(self, x: float, y: float, yaw: float) -> list[float]:
        global_x, global_y = self.town.to_global([x, y])
        heading = (yaw + self.town.yaw + np.pi) % (2 * np.pi) - np.pi
        return [float(global_x), float(global_y), float(heading)]


def _strip(
    map_: _Map, direction: int, street: int, along: tuple[float, float], offsets: tuple[float, float]
) -> np.ndarray:
    """Corners (4,2): start outer, end outer, end inner, start inner, as the traffic in a direction sees it."""
    point = map_.town.point
    (a, b), (inner, outer) = along, offsets
    return np.array([point(direction, street, *place) for place in ((a, outer), (b, outer), (b, inner), (a, inner))])


def _road_pieces(map_: _Map) -> dict[tuple, str]:
    """Road segments, blocks, lanes, dividers and parking of the streets between crossings; tokens of the lanes.

    A lane's key: direction, street, the crossing it leads to and comes from (-1 and 3 at the edges), number.
    """
    town, lanes = map_.town, {}
    parking = {(direction, street, start): (a, b) for direction, street, a, b in town.parking() for start in [a]}
    for axis, street, start, end in town.segments():
        middle = town.streets[axis][street]
        outline = np.array([[start, middle - HALF], [end, middle - HALF], [end, middle + HALF], [start, middle + HALF]])
        outline = outline if axis == 0 else outline[::-1, ::-1]
        segment = map_.add(
            "road_segment", polygon_token=map_.polygon(outline), is_intersection=False, drivable_area_token=""
        )
        middle_line = np.array([[start, middle], [end, middle]])
        middle_line = middle_line if axis == 0 else middle_line[:, ::-1]
        map_.add("road_divider", line_token=map_.line(middle_line), road_segment_token=segment)
        for direction in (axis, axis + 2):
            along = (start, end) if direction < 2 else (end, start)
            corners = _strip(map_, direction, street, along, (0.0, LANES * LANE))
            edges = {
                "from_edge_line_token": map_.line(corners[[0, 3]]),
                "to_edge_line_token": map_.line(corners[[1, 2]]),
            }
            block = map_.add("road_block", polygon_token=map_.polygon(corners), road_segment_token=segment, **edges)
            for first, last in (span for key, span in parking.items() if key[:2] == (direction, street)):
                if start <= first and last <= end:
                    park = _strip(map_, direction, street, (first, last), (LANES * LANE, HALF))
                    map_.add(
                        "carpark_area", polygon_token=map_.polygon(park), orientation="PARALLEL", road_block_token=block
                    )
            for lane in range(LANES):
                corners = _strip(map_, direction, street, along, (lane * LANE, (lane + 1) * LANE))
                outer, inner = corners[[0, 1]], corners[[3, 2]]
                left, right = (inner, outer) if town.side == 1 else (outer, inner)

                def divider(points: np.ndarray, kind: str) -> list[dict[str, str]]:
                    return [{"node_token": map_.node(point), "segment_type": kind} for point in points]

                kinds = ("DOUBLE_SOLID_YELLOW" if lane == 0 else "DOUBLE_DASHED_WHITE", "DOUBLE_DASHED_WHITE")
                kinds = (kinds[0], "SINGLE_SOLID_WHITE" if lane == LANES - 1 else kinds[1])  # inner, outer
                lane_token = map_.add(
                    "lane",
                    polygon_token=map_.polygon(corners),
                    lane_type="CAR",
                    from_edge_line_token=map_.line(corners[[0, 3]]),
                    to_edge_line_token=map_.line(corners[[1, 2]]),
                    left_lane_divider_segments=divider(left, kinds[0] if town.side == 1 else kinds[1]),
                    right_lane_divider_segments=divider(right, kinds[1] if town.side == 1 else kinds[0]),
                )
                x, y = town.point(direction, street, along[0], (lane + 0.5) * LANE)
                length = abs(end - start)
                map_.paths[lane_token] = [_arc(map_, (x, y, direction * np.pi / 2), 0.0, length)]
                map_.connectivity[lane_token] = {"incoming": [], "outgoing": []}
                lanes[direction, street, round(along[0], 3), "from", lane] = lane_token
                lanes[direction, street, round(along[1], 3), "to", lane] = lane_token
                if lane:
                    dashes = [{"node_token": map_.node(p), "segment_type": "DOUBLE_DASHED_WHITE"} for p in inner]
                    map_.add("lane_divider", line_token=map_.line(inner), lane_divider_segments=dashes)
    return lanes


def _arc(map_: _Map, start: tuple[float, float, float], curvature: float, length: float) -> dict[str, Any]:
    """An arcline path that is one arc (left positive) or, with curvature 0, straight."""
    x, y, yaw = start
    middle = yaw + curvature * length / 2
    chord = length * np.sinc(curvature * length / 2 / np.pi)
    end = (x + chord * np.cos(middle), y + chord * np.sin(middle), yaw + curvature * length)
    lengths = [float(length), 0.0, 0.0] if curvature else [0.0, float(length), 0.0]
    return {
        "start_pose": map_.pose(*start),
        "end_pose": map_.pose(*end),
        "shape": "RSR" if curvature < 0 else "LSL",
        "radius": float(1 / abs(curvature)) if curvature else 999.999,
        "segment_length": lengths,
    }


def _crossings(map_: _Map, lanes: dict[tuple, str]) -> None:
    """Road segments of the crossings and the lane connectors on them."""
    town = map_.town
    for j, i, middle in town.crossings():
        map_.add(
            "road_segment",
            polygon_token=map_.polygon(crossing_outline(middle)),
            is_intersection=True,
            drivable_area_token="",
        )
        for direction in range(4):
            axis, sign = direction % 2, DIRECTIONS[direction].sum()
            street, cross = (j, i) if axis == 0 else (i, j)
            for way in "SLR":
                new = (direction + {"S": 0, "L": 1, "R": -1}[way]) % 4
                for lane in range(LANES):
                    offset = (lane + 0.5) * LANE
                    entry = town.point(direction, street, middle[axis] - sign * BOX, offset)
                    new_street = street if way == "S" else cross
                    new_axis, new_sign = new % 2, DIRECTIONS[new].sum()
                    leave_along = middle[new_axis] + new_sign * BOX
                    leave = town.point(new, new_street, leave_along, offset)
                    turn = 0.0
                    length = 2 * BOX
                    if way != "S":
                        radius = BOX + offset * (1 if (way == "L") == (town.side == 1) else -1)
                        turn, length = (1 if way == "L" else -1) / radius, radius * np.pi / 2
                    aside = LANE / 2 * np.array([[-DIRECTIONS[d][1], DIRECTIONS[d][0]] for d in (direction, new)])
                    outline = np.array([entry + aside[0], entry - aside[0], leave - aside[1], leave + aside[1]])
                    connector = map_.add("lane_connector", polygon_token=map_.polygon(outline))
                    start = (float(entry[0]), float(entry[1]), direction * np.pi / 2)
                    map_.paths[connector] = [_arc(map_, start, turn, length)]
                    before = lanes[direction, street, round(middle[axis] - sign * BOX, 3), "to", lane]
                    after = lanes[new, new_street, round(leave_along, 3), "from", lane]
                    map_.connectivity[connector] = {"incoming": [before], "outgoing": [after]}
                    map_.connectivity[before]["outgoing"].append(connector)
                    map_.connectivity[after]["incoming"].append(connector)


def map_expansion(town: Town) -> dict[str, Any]:
    """The content of `maps/expansion/<location>.json`."""
    map_ = _Map(town)
    lanes = _road_pieces(map_)
    _crossings(map_, lanes)
    segments = map_.tables["road_segment"]
    drivable = map_.add("drivable_area", polygon_tokens=[segment["polygon_token"] for segment in segments])
    for segment in segments:
        segment["drivable_area_token"] = drivable
    crossing_tokens = {}
    for axis, street, along, outline in crosswalks(town):
        place = town.point(axis, street, along, 0.0)
        nearest = _segment_at(town, axis, street, along)
        crossing_tokens[round(place[0], 2), round(place[1], 2)] = map_.add(
            "ped_crossing", polygon_token=map_.polygon(outline), road_segment_token=segments[nearest]["token"]
        )
    for direction, street, outline in stop_lines(town):
        axis, sign = direction % 2, DIRECTIONS[direction].sum()
        along = outline.mean(0)[axis] + sign * (STOP + 0.225 - sum(CROSSWALK) / 2)
        place = town.point(direction, street, along, 0.0)
        map_.add(
            "stop_line",
            polygon_token=map_.polygon(outline),
            stop_line_type="PED_CROSSING",
            ped_crossing_tokens=[crossing_tokens[round(place[0], 2), round(place[1], 2)]],
            traffic_light_tokens=[],
            road_block_token="",
        )
    for low, high in town.blocks():
        yard = rounded_rectangle(low + WALK, high - WALK, 0.5, 2)
        map_.add("walkway", polygon_token=map_.polygon(rounded_rectangle(low, high, FILLET), (yard,)))
    return {
        **map_.tables,
        "arcline_path_3": map_.paths,
        "connectivity": map_.connectivity,
        "canvas_edge": list(town.canvas),
        "version": "1.3",
    }


def _segment_at(town: Town, axis: int, street: int, along: float) -> int:
    """Index among town.segments() of the piece of a street that a place is on."""
    return next(
        n for n, (a, s, start, end) in enumerate(town.segments()) if (a, s) == (axis, street) and start <= along <= end
    )


def prior_mask(town: Town) -> np.ndarray:
    """Semantic prior, uint8 (H,W): 255 on streets and sidewalks, 0 elsewhere; 10 pixels a metre, north up."""
    width, height = (round(edge * _PIXELS) for edge in town.canvas)
    mask = np.zeros((height, width), np.uint8)

    def fill(outline: np.ndarray, value: int) -> None:
        pixels = town.to_global(outline) * _PIXELS
        cv2.fillPoly(mask, [np.round(np.stack([pixels[:, 0], height - pixels[:, 1]], 1)).astype(np.int32)], (value,))

    (x0, y0), (x1, y1) = town.low, town.high
    fill(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), 255)
    for low, high in town.blocks():
        fill(rounded_rectangle(low + WALK, high - WALK, 0.5, 2), 0)
    return mask


def write_map(root: pathlib.Path, town: Town) -> None:
    """Write a town's expansion file and mask below `maps` of a root."""
    (root / "maps" / "expansion").mkdir(parents=True, exist_ok=True)
    (root / "maps" / "expansion" / f"{town.location}.json").write_text(json.dumps(map_expansion(town)))
    _, png = cv2.imencode(".png", prior_mask(town), [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE])
    (root / "maps" / f"{MASKS[town.location]}.png").write_bytes(png.tobytes())
