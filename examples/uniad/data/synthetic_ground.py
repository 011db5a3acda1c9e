"""What is painted on the ground of a generated town: streets, sidewalks, lane lines, crosswalks.

Polygons (n,2) in the town's frame, counter-clockwise and convex, each with a BGR colour, in the order of painting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
    rounded_rectangle,
)

_GRASS = (70, 125, 95)
_ASPHALT = (92, 90, 88)
_STRIP = (104, 101, 98)  # where cars park
_KERB = (165, 168, 168)
_SIDEWALK = (140, 146, 150)
_YARD = (85, 130, 110)
_LINE = (232, 234, 234)
_MIDDLE = (70, 190, 235)
_DASH, _DASH_GAP = 3.0, 4.5


class Paint(NamedTuple):
    outline: np.ndarray
    colour: tuple[int, int, int]


def _rectangle(axis: int, along: tuple[float, float], across: tuple[float, float]) -> np.ndarray:
    """Corners (4,2) of a rectangle, `along` an axis of the town and `across` it."""
    (a0, a1), (c0, c1) = sorted(along), sorted(across)
    low_high = (a0, a1, c0, c1) if axis == 0 else (c0, c1, a0, a1)
    x0, x1, y0, y1 = low_high
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def crosswalks(town: Town) -> list[tuple[int, int, float, np.ndarray]]:
    """Axis of the street, the street, the place along it, and the outline (4,2) of every crosswalk."""
    found = []
    for axis in (0, 1):
        for street, middle in enumerate(town.streets[axis]):
            for cut in town.streets[1 - axis]:
                for sign in (-1.0, 1.0):
                    along = (cut + sign * CROSSWALK[0], cut + sign * CROSSWALK[1])
                    outline = _rectangle(axis, along, (middle - HALF, middle + HALF))
                    found.append((axis, street, float(cut + sign * sum(CROSSWALK) / 2), outline))
    return found


def stop_lines(town: Town) -> list[tuple[int, int, np.ndarray]]:
    """Direction of the traffic that stops, the street, and the outline (4,2) of every stop line."""
    found = []
    for direction in range(4):
        axis, sign = direction % 2, DIRECTIONS[direction].sum()
        for street, middle in enumerate(town.streets[axis]):
            outer = town.point(direction, street, 0.0, LANES * LANE)[1 - axis]
            for cut in town.streets[1 - axis]:
                along = (cut - sign * STOP, cut - sign * (STOP + 0.45))
                found.append((direction, street, _rectangle(axis, along, (middle, outer))))
    return found


def paint_town(town: Town) -> list[Paint]:
    """Everything on the ground."""
    far = 3000.0
    low, high = town.low, town.high
    paints = [
        Paint(np.array([[-far, -far], [far, -far], [far, far], [-far, far]]), _GRASS),
        Paint(np.array([low, [high[0], low[1]], high, [low[0], high[1]]]), _ASPHALT),
    ]
    for direction, street, start, end in town.parking():
        axis = direction % 2
        edge, kerb = (town.point(direction, street, 0.0, offset)[1 - axis] for offset in (LANES * LANE, HALF))
        paints.append(Paint(_rectangle(axis, (start, end), (edge, kerb)), _STRIP))
    blocks = town.blocks()
    for inset, radius, colour in ((0.0, FILLET, _KERB), (0.3, FILLET - 0.3, _SIDEWALK), (WALK, 0.5, _YARD)):
        paints += [Paint(rounded_rectangle(a + inset, b - inset, radius), colour) for a, b in blocks]
    for axis, street, start, end in town.segments():
        first = start if start == town.low[axis] else start + STOP - BOX
        last = end if end == town.high[axis] else end - STOP + BOX
        middle = town.streets[axis][street]
        for offset in (-0.16, 0.16):
            paints.append(
                Paint(_rectangle(axis, (first, last), (middle + offset - 0.07, middle + offset + 0.07)), _MIDDLE)
            )
        for side in (-1, 1):
            for lane in range(1, LANES):
                line = middle + side * lane * LANE
                for dash in np.arange(first, last - _DASH, _DASH + _DASH_GAP):
                    paints.append(Paint(_rectangle(axis, (dash, dash + _DASH), (line - 0.07, line + 0.07)), _LINE))
    for direction, street, start, end in town.parking():
        axis = direction % 2
        edge, kerb = (town.point(direction, street, 0.0, offset)[1 - axis] for offset in (LANES * LANE, HALF))
        paints.append(Paint(_rectangle(axis, (start, end), (edge - 0.06, edge + 0.06)), _LINE))
        for along in np.arange(start, end, 8.2):
            paints.append(Paint(_rectangle(axis, (along, along + 0.12), (edge, kerb)), _LINE))
    for axis, street, along, _ in crosswalks(town):
        middle, reach = town.streets[axis][street], (CROSSWALK[1] - CROSSWALK[0]) / 2
        for stripe in np.arange(-HALF + 0.6, HALF - 0.6, 1.2):
            across = (middle + stripe, middle + stripe + 0.6)
            paints.append(Paint(_rectangle(axis, (along - reach, along + reach), across), _LINE))
    paints += [Paint(outline, _LINE) for _, _, outline in stop_lines(town)]
    return paints
