"""The generated towns: a grid of streets at each of nuScenes' four locations, and paths along their lanes.

Town frame: metres, streets run along x and y. A town lies turned and shifted in its map's global frame.
A direction is a number 0..3 for +x, +y, -x, -y. Offsets are metres from a street's middle line to the side on which
the town's traffic drives.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

LANE = 3.4  # width; two lanes each way, the inner one is lane 0
LANES = 2
PARKING = 2.4  # width of the strip beside the lanes
HALF = LANES * LANE + PARKING  # half of a street's width
WALK = 4.0  # width of a sidewalk
FILLET = 4.0  # radius of a kerb at a corner
BOX = HALF + FILLET  # half of a crossing's side
CROSSWALK = (BOX + 0.5, BOX + 3.5)  # from the crossing's middle
STOP = BOX + 4.5  # stop line, from the crossing's middle
NO_PARKING = STOP + 8.0  # parked cars keep this distance from a crossing's middle
STUB = 86.0  # streets go on this far behind the outermost crossings
MARGIN = 20.0  # between a town and the edge of its map

DIRECTIONS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
# Traffic keeps right (1) or left (-1), and how far the town is turned in the map, degrees.
LOCATIONS = {
    "boston-seaport": (1, 21.0),
    "singapore-onenorth": (-1, -34.0),
    "singapore-queenstown": (-1, 12.0),
    "singapore-hollandvillage": (-1, 63.0),
}


def token(*words: object) -> str:
    """32 hexadecimal digits, as nuScenes' tokens have, that follow from some words alone."""
    return hashlib.md5("/".join(map(str, ("generated", *words))).encode(), usedforsecurity=False).hexdigest()


def quaternion(yaw: float) -> list[float]:
    """w, x, y, z of a rotation about z, w not negative."""
    half = (float(yaw) + np.pi) % (2 * np.pi) / 2 - np.pi / 2  # [-pi/2, pi/2)
    return [round(float(np.cos(half)), 9), 0.0, 0.0, round(float(np.sin(half)), 9)]


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that follow from the seed and some names alone."""
    words = [int.from_bytes(name.encode(), "little") for name in names]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


@dataclasses.dataclass(frozen=True)
class Path:
    """A smooth line to drive or walk along: samples (n) at arc length s, heading unwrapped, curvature left positive."""

    s: np.ndarray
    x: np.ndarray
    y: np.ndarray
    yaw: np.ndarray
    curvature: np.ndarray

    def at(self, s) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and heading at arc lengths of any shape; straight on beyond the ends."""
        s = np.asarray(s, np.float64)
        inside = np.clip(s, self.s[0], self.s[-1])
        yaw = np.interp(inside, self.s, self.yaw)
        x, y = np.interp(inside, self.s, self.x), np.interp(inside, self.s, self.y)
        return x + (s - inside) * np.cos(yaw), y + (s - inside) * np.sin(yaw), yaw


def rounded(points: Sequence | np.ndarray, radii: Sequence[float], step: float = 0.25) -> Path:
    """Path along a polyline (n,2) whose inner corners (n-2) are rounded with the radii given."""
    points = np.array(points, np.float64)
    pieces: list[np.ndarray] = []  # rows of x, y, yaw, curvature
    position = points[0]
    heading = float(np.arctan2(*(points[1] - points[0])[::-1]))
    length = 0.0

    def add(count_length: float, curvature: float) -> None:
        nonlocal position, heading
        t = np.linspace(0.0, count_length, max(int(np.ceil(count_length / step)), 1) + 1)
        chord = t * np.sinc(curvature * t / 2 / np.pi)
        direction = heading + curvature * t / 2
        xy = position + chord[:, None] * np.stack([np.cos(direction), np.sin(direction)], 1)  # (m,2)
        pieces.append(np.column_stack([length + t, xy, heading + curvature * t, np.full(len(t), curvature)])[:-1])
        position, heading = xy[-1], heading + curvature * count_length

    for index in range(1, len(points)):
        straight = points[index] - position
        if index == len(points) - 1:
            add(float(np.linalg.norm(straight)), 0.0)
            break
        out = points[index + 1] - points[index]
        angle = float((np.arctan2(out[1], out[0]) - heading + np.pi) % (2 * np.pi) - np.pi)
        radius = radii[index - 1]
        cut = radius * np.tan(abs(angle) / 2)
        distance = float(np.linalg.norm(straight)) - cut
        if distance > 1e-6:
            add(distance, 0.0)
            length += distance
        if abs(angle) > 1e-6:
            add(radius * abs(angle), np.sign(angle) / radius)
            length += radius * abs(angle)
    rows = np.concatenate(pieces)
    end = np.array([[rows[-1, 0] + float(np.linalg.norm(position - rows[-1, 1:3])), *position, heading, 0.0]])
    return Path(*np.concatenate([rows, end]).T)


@dataclasses.dataclass(frozen=True)
class Town:
    """Streets of one location. `streets[0]` are the y of streets along x, `streets[1]` the x of streets along y."""

    location: str
    side: int  # 1: traffic keeps right, -1: left
    yaw: float  # town frame to global, radians
    streets: tuple[np.ndarray, np.ndarray]

    @property
    def low(self) -> np.ndarray:
        """Lower corner (2) of the built-up rectangle."""
        return np.array([self.streets[1][0] - STUB, self.streets[0][0] - STUB])

    @property
    def high(self) -> np.ndarray:
        return np.array([self.streets[1][-1] + STUB, self.streets[0][-1] + STUB])

    @functools.cached_property
    def _turned(self) -> np.ndarray:
        """Corners (4,2) of the rectangle, turned but not yet shifted."""
        (x0, y0), (x1, y1) = self.low, self.high
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return corners @ np.array([[c, s], [-s, c]])

    @functools.cached_property
    def origin(self) -> np.ndarray:
        """Global place (2) of the town frame's origin."""
        return np.round(MARGIN - self._turned.min(0), 3)

    @property
    def canvas(self) -> tuple[float, float]:
        """Width and height of the map, metres, a multiple of a decimetre."""
        width, height = np.ceil(10 * (np.ptp(self._turned, axis=0) + 2 * MARGIN)) / 10
        return float(width), float(height)

    def to_global(self, points) -> np.ndarray:
        """Global points (...,2) of town points (...,2)."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.asarray(points, np.float64) @ np.array([[c, s], [-s, c]]) + self.origin

    def point(self, direction: int, street: int, along: float, offset: float) -> np.ndarray:
        """Town point (2) beside a street as seen by traffic in a direction; `along` is the x or y it runs along."""
        axis = direction % 2
        right = np.array([DIRECTIONS[direction][1], -DIRECTIONS[direction][0]])
        point = np.zeros(2)
        point[axis], point[1 - axis] = along, self.streets[axis][street]
        return point + self.side * offset * right

    def next_crossing(self, direction: int, along: float) -> int | None:
        """Index of the street that crosses next, from a place along another."""
        sign = DIRECTIONS[direction].sum()
        ahead = sign * (self.streets[1 - direction % 2] - along)
        return int(np.where(ahead > 0, ahead, np.inf).argmin()) if (ahead > 0).any() else None

    def route(self, direction: int, street: int, along: float, offset: float, turns: Iterable[str]) -> Path:
        """Path from a place to the town's edge; one of "S", "L", "R" for each crossing, straight on after the last.

        Arcs begin and end on the crossing's border, around its corner.
        """
        points, radii = [self.point(direction, street, along, offset)], []
        for way in turns:
            crossing = self.next_crossing(direction, along)
            if crossing is None:
                break
            along = float(self.streets[1 - direction % 2][crossing])
            if way == "S":
                continue
            entry = self.point(direction, street, along, offset)
            new = (direction + (1 if way == "L" else -1)) % 4
            along = float(self.streets[direction % 2][street])
            leave = self.point(new, crossing, along, offset)
            points.append(np.where(DIRECTIONS[direction] != 0, leave, entry))
            radii.append(BOX + offset * (1 if (way == "L") == (self.side == 1) else -1))
            direction, street = new, crossing
        edge = self.high if DIRECTIONS[direction].sum() > 0 else self.low
        points.append(self.point(direction, street, edge[direction % 2], offset))
        return rounded(points, radii)

    def crossings(self) -> list[tuple[int, int, np.ndarray]]:
        """Street along x, street along y, middle (2) of every crossing."""
        return [(j, i, np.array([x, y])) for j, y in enumerate(self.streets[0]) for i, x in enumerate(self.streets[1])]

    def segments(self) -> list[tuple[int, int, float, float]]:
        """Axis, street, and from where to where (at the crossings' borders) of every street between two crossings."""
        found = []
        for axis in (0, 1):
            cuts = self.streets[1 - axis]
            starts = [self.low[axis], *(cuts + BOX)]
            ends = [*(cuts - BOX), self.high[axis]]
            for street in range(len(self.streets[axis])):
                found += [(axis, street, float(a), float(b)) for a, b in zip(starts, ends)]
        return found

    def blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Lower and upper corner (2) of every block of houses with its sidewalk."""
        spans = []
        for axis in (0, 1):
            cuts = self.streets[1 - axis]
            spans.append(list(zip([self.low[axis], *(cuts + HALF)], [*(cuts - HALF), self.high[axis]])))
        return [(np.array([x0, y0]), np.array([x1, y1])) for x0, x1 in spans[0] for y0, y1 in spans[1]]

    def parking(self) -> list[tuple[int, int, float, float]]:
        """Direction, street, from, to of every strip where cars park."""
        strips = []
        for axis, street, start, end in self.segments():
            first = start if start == self.low[axis] else start + NO_PARKING - BOX
            last = end if end == self.high[axis] else end - NO_PARKING + BOX
            strips += [(direction, street, first, last) for direction in (axis, axis + 2)]
        return strips


def make_town(location: str, seed: int) -> Town:
    """The town of a location: three by three streets, some ninety metres apart."""
    side, degrees = LOCATIONS[location]
    gaps = generator(seed, "town", location).uniform(86.0, 102.0, (2, 2))
    streets = tuple(np.round(np.concatenate([[0.0], np.cumsum(gap)]), 1) for gap in gaps)
    return Town(location, side, float(np.deg2rad(degrees)), streets)


def rounded_rectangle(low: np.ndarray, high: np.ndarray, radius: float, steps: int = 6) -> np.ndarray:
    """Counter-clockwise corners (4*steps,2)."""
    angles = np.linspace(0.0, np.pi / 2, steps)
    corners = []
    for quarter, centre in enumerate(([high[0], high[1]], [low[0], high[1]], [low[0], low[1]], [high[0], low[1]])):
        inward = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])[quarter] * radius
        angle = angles + quarter * np.pi / 2
        corners.append(np.array(centre) + inward + radius * np.stack([np.cos(angle), np.sin(angle)], 1))
    return np.concatenate(corners)


def crossing_outline(middle: np.ndarray, steps: int = 6) -> np.ndarray:
    """Counter-clockwise outline (n,2) of a crossing: a plus whose inner corners are the kerbs' arcs."""
    outline = []
    for quarter in range(4):
        angle = np.linspace(1.5 * np.pi, np.pi, steps) + quarter * np.pi / 2  # around the corner, as seen from there
        turned = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])[quarter] * BOX
        outline.append(middle + turned + FILLET * np.stack([np.cos(angle), np.sin(angle)], 1))
    return np.concatenate(outline)
