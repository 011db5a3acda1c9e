"""What the agents, houses and trees of a generated scene look like: convex parts of flat, coloured faces.

A part is a list of (quad, colour): four corners (4,3) in metres, counter-clockwise as seen from outside, and BGR.
Faces come first, then what is painted on them (windows, lights, wheels). Models stand on z = 0 around the origin and
face along x; they fill the box that annotates them.
"""

from __future__ import annotations

import numpy as np

from data.synthetic_town import FILLET, WALK, Town, generator

Quad = tuple[np.ndarray, tuple[int, int, int]]
Part = list[Quad]
Colour = tuple[int, int, int]

# Main colours of each kind, BGR; Agent.look chooses one.
PALETTES: dict[str, list[Colour]] = {
    "car": [
        (40, 40, 190),
        (200, 200, 205),
        (60, 55, 50),
        (170, 90, 30),
        (120, 120, 125),
        (225, 225, 225),
        (60, 110, 40),
    ],
    "truck": [(190, 120, 50), (70, 150, 60), (215, 215, 215), (60, 70, 180)],
    "bus": [(40, 170, 235), (60, 60, 200), (190, 130, 40)],
    "trailer": [(210, 210, 215), (150, 120, 70)],
    "construction": [(20, 180, 245)],
    "motorcycle": [(40, 40, 45), (30, 30, 170)],
    "bicycle": [(170, 120, 30), (60, 60, 190), (70, 150, 70)],
    "pedestrian": [(150, 70, 60), (60, 60, 170), (80, 140, 80), (50, 50, 55), (190, 190, 195), (60, 160, 200)],
    "child": [(60, 190, 220), (170, 80, 170)],
    "worker": [(30, 220, 240)],
    "cone": [(20, 100, 250)],
    "barrier": [(40, 60, 225)],
}
_GLASS: Colour = (75, 60, 45)
_TYRE: Colour = (32, 32, 34)
_SKIN: Colour = (140, 170, 215)
_TROUSERS: Colour = (90, 60, 45)
_WHITE: Colour = (240, 240, 240)


def _frustum(x, y, z, colour: Colour, inset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Part:
    """A box between pairs x, y, z whose top is drawn in at the front, the rear and each side. Faces: front, rear,
    left, right, top."""
    (x0, x1), (y0, y1), (z0, z1) = x, y, z
    front, rear, side = inset
    low = np.array([[x0, y0, z0], [x1, y0, z0], [x1, y1, z0], [x0, y1, z0]])
    high = (
        low + [0.0, 0.0, z1 - z0] + np.array([[rear, side, 0], [-front, side, 0], [-front, -side, 0], [rear, -side, 0]])
    )
    return [(quad, colour) for quad in _sides(low, high)]


def _sides(low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    a, b, c, d = low
    e, f, g, h = high
    return [np.array(quad) for quad in ([b, c, g, f], [d, a, e, h], [c, d, h, g], [a, b, f, e], [e, f, g, h])]


def _panel(face: Quad, u: tuple[float, float], v: tuple[float, float], colour: Colour, taper: float = 0.0) -> Quad:
    """A piece of a face: u from its left to its right, v from its bottom to its top, as fractions."""
    s = np.array([u[0] + taper, u[1] - taper, u[1], u[0]])
    t = np.array([v[0], v[0], v[1], v[1]])
    weights = np.stack([(1 - t) * (1 - s), (1 - t) * s, t * s, t * (1 - s)], 1)  # (4,4) of the face's corners
    return weights @ face[0], colour


def _scaled(colour: Colour, factor: float) -> Colour:
    b, g, r = (min(int(factor * c), 255) for c in colour)
    return b, g, r


def _wheels(part: Part, places: list[float], radius: float, height: float) -> list[Quad]:
    """Wheels on the left and right faces at fractions of the length from the rear; two trapezoids each."""
    wheels = []
    for face, mirrored in ((part[2], True), (part[3], False)):
        length = float(np.linalg.norm(face[0][1] - face[0][0]))
        r, rise = radius / length, radius / height
        for place in places:
            u = 1 - place if mirrored else place
            wheels.append(_panel(face, (u - r, u + r), (0.0, rise), _TYRE, taper=0.4 * r))
            top = _panel(face, (u - 0.55 * r, u + 0.55 * r), (rise, 1.8 * rise), _TYRE, taper=-0.45 * r)
            wheels.append(top)
            wheels.append(_panel(face, (u - 0.4 * r, u + 0.4 * r), (0.55 * rise, 1.3 * rise), (150, 150, 150)))
    return wheels


def _lights(part: Part, v: tuple[float, float], wide: float = 0.2) -> list[Quad]:
    front, rear = part[0], part[1]
    return [
        _panel(front, (0.04, 0.04 + wide), v, (235, 250, 255)),
        _panel(front, (0.96 - wide, 0.96), v, (235, 250, 255)),
        _panel(rear, (0.04, 0.04 + wide), v, (40, 30, 220)),
        _panel(rear, (0.96 - wide, 0.96), v, (40, 30, 220)),
    ]


def _car(w: float, length: float, h: float, colour: Colour) -> list[Part]:
    x, y = (-length / 2, length / 2), (-w / 2, w / 2)
    body = _frustum(x, y, (0.0, 0.56 * h), colour, (0.04 * length, 0.03 * length, 0.03))
    under = [_panel(face, (0, 1), (0.0, 0.22), (45, 45, 48)) for face in body[:4]]
    body += under + _wheels(body, [0.2, 0.81], 0.32, 0.56 * h) + _lights(body, (0.6, 0.82))
    body.append(_panel(body[1], (0.36, 0.64), (0.35, 0.52), _WHITE))
    cabin_x = (-0.42 * length, 0.22 * length)
    cabin = _frustum(cabin_x, (-0.46 * w, 0.46 * w), (0.56 * h, h), colour, (0.15 * length, 0.09 * length, 0.12 * w))
    cabin += [_panel(face, (0.07, 0.93), (0.08, 0.84), _GLASS) for face in cabin[:2]]
    cabin += [_panel(face, u, (0.1, 0.82), _GLASS) for face in cabin[2:4] for u in ((0.08, 0.47), (0.53, 0.92))]
    return [body, cabin]


def _box_on_wheels(w: float, x: tuple[float, float], h: float, colour: Colour, places: list[float]) -> Part:
    body = _frustum(x, (-w / 2, w / 2), (0.0, h), colour)
    body += [_panel(face, (0, 1), (0.0, 0.16), (50, 50, 52)) for face in body[:4]]
    return body + _wheels(body, places, 0.45, h)


def _truck(w: float, length: float, h: float, colour: Colour) -> list[Part]:
    cab = _box_on_wheels(0.96 * w, (0.24 * length, length / 2), 0.82 * h, colour, [0.5])
    cab += [_panel(cab[0], (0.08, 0.92), (0.5, 0.88), _GLASS)]
    cab += [_panel(face, (0.2, 0.8), (0.52, 0.86), _GLASS) for face in cab[2:4]]
    cab += _lights(cab, (0.2, 0.3), 0.16)[:2]
    load = _box_on_wheels(w, (-length / 2, 0.21 * length), h, (225, 225, 222), [0.2, 0.36])
    load += [_panel(face, (0.04, 0.96), (0.32, 0.42), colour) for face in load[2:4]]
    load += [_panel(load[1], (0.48, 0.52), (0.2, 0.97), (140, 140, 140)), *_lights(load, (0.17, 0.24), 0.14)[2:]]
    return [cab, load]


def _bus(w: float, length: float, h: float, colour: Colour) -> list[Part]:
    body = _box_on_wheels(w, (-length / 2, length / 2), h, colour, [0.22, 0.8])
    for face in body[2:4]:
        body += [_panel(face, (0.04 + 0.134 * n, 0.15 + 0.134 * n), (0.48, 0.82), _GLASS) for n in range(7)]
        body.append(_panel(face, (0.0, 1.0), (0.9, 0.95), _WHITE))
    body += [_panel(body[0], (0.06, 0.94), (0.38, 0.82), _GLASS), _panel(body[1], (0.15, 0.85), (0.52, 0.82), _GLASS)]
    body.append(_panel(body[0], (0.2, 0.8), (0.87, 0.96), (30, 200, 250)))
    return [body + _lights(body, (0.2, 0.27), 0.14)]


def _trailer(w: float, length: float, h: float, colour: Colour) -> list[Part]:
    body = _box_on_wheels(w, (-length / 2, length / 2), h, colour, [0.14, 0.26])
    body += [
        _panel(face, (0.02 + 0.16 * n, 0.03 + 0.16 * n), (0.2, 0.98), (165, 165, 165))
        for face in body[2:4]
        for n in range(7)
    ]
    return [body + _lights(body, (0.17, 0.25), 0.14)[2:]]


def _construction(w: float, length: float, h: float, colour: Colour) -> list[Part]:
    tracks = _frustum((-length / 2, 0.1 * length), (-w / 2, w / 2), (0.0, 0.28 * h), (60, 60, 62), (0.25, 0.25, 0.0))
    engine = _frustum((-length / 2, -0.02 * length), (-0.47 * w, 0.47 * w), (0.28 * h, 0.66 * h), colour)
    engine += [_panel(face, (0.1, 0.9), (0.1, 0.3), (40, 40, 40)) for face in engine[:4]]
    cab = _frustum((-0.22 * length, 0.06 * length), (-0.05 * w, 0.47 * w), (0.66 * h, h), colour, (0.15, 0.0, 0.0))
    cab += [_panel(face, (0.12, 0.88), (0.15, 0.85), _GLASS) for face in cab[:4]]
    arm = _frustum((-0.02 * length, 0.4 * length), (-0.3 * w, -0.1 * w), (0.5 * h, 0.82 * h), colour, (0.3, 0.1, 0.0))
    bucket = _frustum((0.36 * length, length / 2), (-0.4 * w, 0.05 * w), (0.0, 0.55 * h), (70, 75, 80), (0.2, 0.0, 0.0))
    return [tracks, engine, cab, arm, bucket]


def _person(w: float, length: float, h: float, colour: Colour, seat: float = 0.0) -> list[Part]:
    """Legs, trunk with arms, head; of a rider (`seat` > 0) only what is above the seat."""
    x, y = (-0.3 * length, 0.3 * length), (-0.3 * w, 0.3 * w)
    legs = _frustum(x, y, (0.0, 0.48 * h), _TROUSERS)
    legs += [_panel(face, (0.46, 0.54), (0.0, 0.9), (40, 30, 25)) for face in legs[:2]]
    trunk = _frustum((-0.4 * length, 0.4 * length), (-w / 2, w / 2), (0.46 * h, 0.84 * h), colour, (0.05, 0.05, 0.08))
    trunk += [_panel(face, u, (0.0, 0.85), _scaled(colour, 0.75)) for face in trunk[:2] for u in ((0, 0.16), (0.84, 1))]
    head = _frustum((-0.12, 0.12), (-0.1, 0.1), (0.85 * h, h), _SKIN, (0.02, 0.02, 0.02))
    head.append(_panel(head[1], (0, 1), (0.15, 1), (35, 45, 60)))
    head.append((head[4][0], (35, 45, 60)))
    parts = [legs, trunk, head]
    if seat:
        lift = np.array([0.0, 0.0, seat])
        scale = np.array([1.0, 1.0, (h - seat) / h])
        parts = [[(quad * scale + lift, tint) for quad, tint in part] for part in parts]
    return parts


def _cycle(w: float, length: float, h: float, colour: Colour, rider: bool, heavy: bool) -> list[Part]:
    frame_h = (0.62 if heavy else 0.55) * h if rider else h
    half = (0.16 if heavy else 0.07) * (1.0 if rider else 1.4)
    parts: list[Part] = []
    radius = 0.5 * min(0.62, frame_h)
    for x in (-length / 2 + radius, length / 2 - radius):
        wheel = _frustum((x - 0.7 * radius, x + 0.7 * radius), (-0.05, 0.05), (0.0, 2 * radius), _TYRE)
        wheel += [_panel(face, (0.2, 0.8), (0.2, 0.8), (120, 120, 120)) for face in wheel[2:4]]
        parts.append(wheel)
    reach = 0.34 * length if heavy else 0.28 * length
    parts.append(_frustum((-reach, reach), (-half, half), (0.35 * frame_h, 0.85 * frame_h), colour, (0.1, 0.1, 0.0)))
    bar = 0.22 * length
    parts.append(_frustum((bar, bar + 0.08), (-w / 2, w / 2), (0.85 * frame_h, frame_h), (50, 50, 50)))
    if rider:
        shift = np.array([-0.12 * length, 0.0, 0.0])
        person = _person(0.9 * w, 0.5, h, (150, 70, 60) if not heavy else (45, 45, 50), seat=0.42 * frame_h)
        parts += [[(quad + shift, tint) for quad, tint in part] for part in person]
    return parts


def _cone(w: float, h: float, colour: Colour) -> list[Part]:
    base = _frustum((-w / 2, w / 2), (-w / 2, w / 2), (0.0, 0.08 * h), (30, 60, 150))
    top = 0.4 * w
    cone = _frustum((-top, top), (-top, top), (0.08 * h, h), colour, (0.9 * top, 0.9 * top, 0.9 * top))
    return [base, cone + [_panel(face, (0, 1), v, _WHITE) for face in cone[:4] for v in ((0.28, 0.42), (0.66, 0.8))]]


def _barrier(w: float, length: float, h: float, colour: Colour) -> list[Part]:
    body = _frustum((-length / 2, length / 2), (-w / 2, w / 2), (0.0, h), _WHITE, (0.3 * length, 0.3 * length, 0.0))
    body += [
        _panel(face, (0.02 + 0.25 * n, 0.15 + 0.25 * n), (0.1, 0.95), colour) for face in body[:2] for n in range(4)
    ]
    return [body]


def agent_model(kind: str, size: tuple[float, float, float], look: int, rider: bool) -> list[Part]:
    """Parts of an agent of a size (w, l, h); see the module's description."""
    w, length, h = size
    colours = PALETTES[kind]
    colour = colours[look % len(colours)]
    if kind == "car":
        return _car(w, length, h, colour)
    if kind == "cone":
        return _cone(w, h, colour)
    if kind in ("bicycle", "motorcycle"):
        return _cycle(w, length, h, colour, rider, kind == "motorcycle")
    if kind in ("pedestrian", "child", "worker"):
        return _person(w, length, h, colour)
    shapes = {
        "truck": _truck,
        "bus": _bus,
        "trailer": _trailer,
        "construction": _construction,
        "barrier": _barrier,
    }
    return shapes[kind](w, length, h, colour)


def _moved(part: Part, x: float, y: float, yaw: float = 0.0) -> Part:
    c, s = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return [(quad @ rotation + [x, y, 0.0], colour) for quad, colour in part]


def _house(x: tuple[float, float], y: tuple[float, float], rng: np.random.Generator) -> Part:
    """A house with a shop window, a door and rows of windows on every side."""
    colours = [(150, 165, 190), (120, 150, 185), (170, 175, 180), (110, 120, 150), (185, 195, 205), (140, 150, 150)]
    floors = int(rng.integers(2, 7))
    house = _frustum(x, y, (0.0, 1.2 + 3.1 * floors), colours[int(rng.integers(len(colours)))])
    glass: Colour = [(120, 100, 80), (90, 75, 60), (150, 130, 105)][int(rng.integers(3))]
    height = 1.2 + 3.1 * floors
    for face in house[:4]:
        length = float(np.linalg.norm(face[0][1] - face[0][0]))
        columns = max(int(length / 3.2), 1)
        house.append(_panel(face, (0.0, 1.0), (3.3 / height, 3.6 / height), (95, 100, 110)))
        house.append(_panel(face, (0.12, 0.7), (0.5 / height, 2.8 / height), glass))
        house.append(_panel(face, (0.78, 0.9), (0.0, 2.5 / height), (60, 70, 90)))
        for floor in range(1, floors):
            v = (3.1 * floor + 1.5) / height, (3.1 * floor + 3.0) / height
            house += [_panel(face, ((n + 0.25) / columns, (n + 0.75) / columns), v, glass) for n in range(columns)]
    return house


def _tree(x: float, y: float, rng: np.random.Generator) -> list[Part]:
    size = rng.uniform(0.85, 1.25)
    green, darker = (_scaled((55, 110, 70), shade * rng.uniform(0.8, 1.2)) for shade in (1.0, 0.8))
    trunk = _frustum((-0.14, 0.14), (-0.14, 0.14), (0.0, 2.2 * size), (60, 80, 100))
    r = 1.5 * size
    crown_low = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [0.6 * r, 0.6 * r, 0] + [0, 0, 1.9 * size]
    crown_mid = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [r, r, 0] + [0, 0, 3.0 * size]
    crown_top = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [0.3 * r, 0.3 * r, 0] + [0, 0, 5.2 * size]
    below: Part = [(quad, darker) for quad in _sides(crown_low, crown_mid)[:4]]
    above: Part = [(quad, green) for quad in _sides(crown_mid, crown_top)]
    yaw = rng.uniform(0, np.pi / 2)
    return [_moved(trunk, x, y), _moved(below, x, y, yaw), _moved(above, x, y, yaw)]


def town_models(town: Town, seed: int) -> list[list[Part]]:
    """Houses around every block, trees on the sidewalks, lamp posts at the corners; each a list of parts."""
    rng = generator(seed, "houses", town.location)
    models: list[list[Part]] = []
    for low, high in town.blocks():
        inner_low, inner_high = low + WALK, high - WALK
        for side in range(4):
            axis, far = side % 2, side // 2
            depth = 10.0
            start, end = inner_low[axis], inner_high[axis]
            if axis == 1:  # the corners belong to the houses along x
                start, end = start + depth, end - depth
            while start < end - 5.0:
                width = min(rng.uniform(9.0, 15.0), end - start)
                width = end - start if end - start - width < 5.0 else width
                across = (
                    (inner_high[1 - axis] - depth, inner_high[1 - axis])
                    if far
                    else (inner_low[1 - axis], inner_low[1 - axis] + depth)
                )
                spans = ((start, start + width), across) if axis == 0 else (across, (start, start + width))
                if rng.uniform() < 0.15:
                    models += [
                        _tree(float(np.mean(spans[0])) + d, float(np.mean(spans[1])) + d, rng) for d in (-2.5, 2.5)
                    ]
                else:
                    models.append([_house(spans[0], spans[1], rng)])
                start += width
        for side in range(4):
            axis, far = side % 2, side // 2
            for along in np.arange(low[axis] + FILLET + 5.0, high[axis] - FILLET - 4.0, 11.0):
                if rng.uniform() < 0.45:
                    across = high[1 - axis] - 0.8 if far else low[1 - axis] + 0.8
                    x, y = (along, across) if axis == 0 else (across, along)
                    models.append(_tree(float(x), float(y), rng))
        for x in (low[0] + 1.6, high[0] - 1.6):
            for y in (low[1] + 1.6, high[1] - 1.6):
                post = _frustum((-0.08, 0.08), (-0.08, 0.08), (0.0, 5.5), (90, 95, 90))
                head = _frustum((-0.35, 0.35), (-0.35, 0.35), (5.5, 5.75), (215, 235, 240))
                models.append([_moved(post, x, y), _moved(head, x, y)])
    return models
