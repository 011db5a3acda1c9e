"""Who is in a generated scene: the ego vehicle's drive, and traffic, pedestrians and standing things around it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from data.synthetic_town import (
    BOX,
    CROSSWALK,
    DIRECTIONS,
    HALF,
    LANE,
    LANES,
    PARKING,
    STOP,
    WALK,
    Path,
    Town,
    generator,
    rounded,
)


class Scene(NamedTuple):
    """One scene of nuScenes-mini as it is drawn here."""

    name: str
    split: str
    location: str
    light: str  # see data.synthetic_render.LIGHTS
    direction: int  # of the ego vehicle at the start
    street: int
    distance: float  # from the vehicle to the first crossing's middle
    turns: str
    lane: int
    description: str


SCENES = (
    Scene("scene-0061", "mini_train", "singapore-onenorth", "day", 0, 1, 50.0, "LR", 0, "Turn left, construction"),
    Scene("scene-0103", "mini_val", "boston-seaport", "day", 1, 1, 25.0, "LRL", 0, "Turn left, many pedestrians"),
    Scene("scene-0553", "mini_train", "boston-seaport", "overcast", 1, 0, 45.0, "RS", 1, "Turn right, bus"),
    Scene("scene-0655", "mini_train", "boston-seaport", "day", 0, 2, 70.0, "SL", 0, "Straight on, parked cars"),
    Scene("scene-0757", "mini_train", "boston-seaport", "overcast", 3, 1, 60.0, "RL", 1, "Follow a car, turn right"),
    Scene("scene-0796", "mini_train", "singapore-queenstown", "day", 1, 1, 75.0, "SS", 1, "Straight on, truck"),
    Scene("scene-0916", "mini_val", "singapore-queenstown", "overcast", 0, 1, 25.0, "RLS", 0, "Turn right, crossing"),
    Scene("scene-1077", "mini_train", "singapore-hollandvillage", "dusk", 0, 0, 50.0, "SR", 1, "Dusk, straight on"),
    Scene("scene-1094", "mini_train", "singapore-hollandvillage", "dusk", 3, 2, 36.0, "RL", 0, "Dusk, turn right"),
    Scene("scene-1100", "mini_train", "singapore-hollandvillage", "dusk", 2, 2, 40.0, "LS", 1, "Dusk, turn left"),
)

# Category, smallest and largest width, length, height in metres (along nuScenes' w, l, h), top speed in m/s.
KINDS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...], float]] = {
    "car": ("vehicle.car", (1.75, 4.1, 1.45), (1.95, 4.9, 1.75), 9.0),
    "truck": ("vehicle.truck", (2.2, 6.2, 2.7), (2.4, 7.5, 3.2), 7.5),
    "bus": ("vehicle.bus.rigid", (2.5, 10.5, 3.1), (2.6, 11.5, 3.4), 7.0),
    "trailer": ("vehicle.trailer", (2.3, 6.5, 3.0), (2.4, 8.0, 3.4), 0.0),
    "construction": ("vehicle.construction", (2.3, 5.5, 2.8), (2.4, 6.2, 3.2), 0.0),
    "motorcycle": ("vehicle.motorcycle", (0.75, 2.0, 1.5), (0.85, 2.2, 1.6), 8.5),
    "bicycle": ("vehicle.bicycle", (0.55, 1.7, 1.6), (0.65, 1.8, 1.75), 4.5),
    "pedestrian": ("human.pedestrian.adult", (0.55, 0.5, 1.6), (0.75, 0.7, 1.9), 1.6),
    "child": ("human.pedestrian.child", (0.45, 0.4, 1.1), (0.5, 0.5, 1.4), 1.2),
    "worker": ("human.pedestrian.construction_worker", (0.6, 0.6, 1.7), (0.7, 0.7, 1.85), 0.0),
    "cone": ("movable_object.trafficcone", (0.35, 0.35, 0.7), (0.42, 0.42, 0.9), 0.0),
    "barrier": ("movable_object.barrier", (1.9, 0.45, 0.95), (2.1, 0.55, 1.1), 0.0),
    "ego": ("", (1.73, 4.08, 1.56), (1.73, 4.08, 1.56), 8.0),
}
EGO_CENTRE = 1.3  # metres from the rear axle, which the ego vehicle's pose follows, to the middle of its box
_CLEAR = 6.0  # metres between two vehicles at the start


@dataclasses.dataclass
class Agent:
    """Something with a box. It follows `path` from arc length `start`, is towed, or stands at `place`."""

    kind: str
    size: tuple[float, float, float]  # w, l, h
    look: int  # which of its kind's colours
    path: Path | None = None
    start: float = 0.0
    speed: float = 0.0  # top speed, m/s
    place: tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, y, heading in the town
    tractor: int | None = None  # index of the agent that tows it
    hitch: float = 0.0  # arc length behind the tractor
    crossing: tuple[int, int] | None = None  # of a pedestrian who will cross a street there
    rider: bool = True
    sits: bool = False

    @property
    def walks(self) -> bool:
        return KINDS[self.kind][0].startswith("human")


class _Crowd:
    """Agents as they are added; positions are drawn until they are clear of each other."""

    def __init__(self, scene: Scene, town: Town, seed: int):
        self.town, self.rng = town, generator(seed, "scene", scene.name)
        self.agents: list[Agent] = []
        self.taken: list[tuple[np.ndarray, float]] = []  # place (2) and half length of vehicles

    def add(self, kind: str, **facts: Any) -> Agent:
        low, high = KINDS[kind][1:3]
        w, length, h = (round(float(value), 3) for value in self.rng.uniform(low, high))
        facts.setdefault("look", int(self.rng.integers(1000)))
        if not facts.get("rider", True):
            h = round(0.66 * h, 3) if kind in ("bicycle", "motorcycle") else h
        if facts.get("sits"):
            h = round(0.72 * h, 3)
        self.agents.append(Agent(kind, (w, length, h), **facts))
        return self.agents[-1]

    def stand(self, kind: str, direction: int, street: int, along: float, offset: float, turn: float = 0.0, **facts):
        """A standing agent beside a street; `turn` is its heading against the traffic's."""
        x, y = self.town.point(direction, street, along, offset)
        return self.add(kind, place=(float(x), float(y), direction * np.pi / 2 + turn), **facts)

    def is_clear(self, place: np.ndarray, half: float) -> bool:
        return all(np.linalg.norm(place - other) > half + other_half + _CLEAR for other, other_half in self.taken)


def populate(scene: Scene, seed: int) -> tuple[Town, list[Agent]]:
    """The town and the agents of a scene at its start; agent 0 is the ego vehicle."""
    from data.synthetic_town import make_town

    town = make_town(scene.location, seed)
    crowd = _Crowd(scene, town, seed)
    direction = scene.direction
    # The crossing of the middle street is the first one: the drive passes two crossings more at least.
    along = float(town.streets[1 - direction % 2][1] - DIRECTIONS[direction].sum() * scene.distance)
    offset = (scene.lane + 0.5) * LANE
    ego_path = town.route(direction, scene.street, along, offset, scene.turns)
    crowd.add("ego", path=ego_path, speed=KINDS["ego"][3])
    ego_place = town.point(direction, scene.street, along, offset)
    crowd.taken.append((ego_place, 2.0))
    if scene.distance > STOP + 35.0:  # someone to follow
        crowd.add("car", path=ego_path, start=18.0, speed=8.0)
        crowd.taken.append((np.array(ego_path.at(18.0)[:2]), 2.5))
    _add_traffic(crowd, ego_path)
    _add_construction(crowd, ego_path)
    _add_parked(crowd, ego_path)
    _add_pedestrians(crowd, ego_path)
    return town, crowd.agents


def _add_traffic(crowd: _Crowd, ego_path: Path) -> None:
    """Moving vehicles, half of them on the streets of the drive, not on a crossing nor too near to its stop line."""
    town, rng = crowd.town, crowd.rng
    ego_place = np.array([ego_path.x[0], ego_path.y[0]])
    kinds = ["bus", "truck", "truck", *["car"] * 12, "motorcycle", "motorcycle", "bicycle", "bicycle", "bicycle"]
    for number, kind in enumerate(kinds):
        towing = number == 1
        size = KINDS[kind][2]
        for _ in range(300):
            direction, street = int(rng.integers(4)), int(rng.integers(3))
            along = rng.uniform(town.low[direction % 2] + 5.0, town.high[direction % 2] - 30.0)
            lane = int(rng.integers(LANES))
            turns = "".join(rng.choice(list("SSLR"), 3))
            offset = LANES * LANE - 0.45 if kind == "bicycle" else (lane + 0.5) * LANE
            place = town.point(direction, street, along, offset)
            if kind == "bicycle":
                turns = "SSS"
            half = size[1] / 2 + (5.0 if towing else 0.0)
            far = np.linalg.norm(place - ego_place)
            cuts = town.streets[1 - direction % 2]
            if number % 2 == 0 and not _near(ego_path, place, 12.0):
                continue
            if far < 85.0 and crowd.is_clear(place, half) and np.abs(cuts - along).min() > STOP + half + 9.0:
                break
        else:
            continue
        path = town.route(direction, street, along - DIRECTIONS[direction].sum() * 2 * half, offset, turns)
        speed = KINDS[kind][3] * rng.uniform(0.8, 1.1)
        crowd.add(kind, path=path, start=2 * half, speed=float(speed))
        crowd.taken.append((place, half))
        if towing:
            tractor = len(crowd.agents) - 1
            trailer = crowd.add("trailer", path=path, tractor=tractor)
            trailer.hitch = (crowd.agents[tractor].size[1] + trailer.size[1]) / 2 + 0.6


def _near(ego_path: Path, place: np.ndarray, distance: float) -> bool:
    return bool(np.hypot(ego_path.x - place[0], ego_path.y - place[1]).min() < distance)


def _add_construction(crowd: _Crowd, ego_path: Path) -> None:
    """A site on the parking strip nearest to the drive's first half minute: machine, barriers, cones, a worker."""
    town, rng = crowd.town, crowd.rng
    early = ego_path.at(np.linspace(15.0, 90.0, 16))
    early_points = np.stack(early[:2], 1)

    def distance(strip) -> float:
        middle = town.point(strip[0], strip[1], (strip[2] + strip[3]) / 2, HALF)
        return float(np.linalg.norm(early_points - middle, axis=1).min())

    direction, street, start, end = min(town.parking(), key=distance)
    site = (start + end) / 2 - 9.0 + rng.uniform(-3.0, 3.0)
    crowd.taken.append((town.point(direction, street, site + 9.0, HALF), 14.0))
    edge = LANES * LANE + 0.35
    crowd.stand("construction", direction, street, site + 9.0, edge + 1.75)
    for number in range(5):
        crowd.stand("barrier", direction, street, site + 4.0 + 2.6 * number, edge + 0.05, turn=np.pi / 2)
    for number in range(4):
        for end_of_site in (2.0 - 1.6 * number, 16.4 + 1.6 * number):
            crowd.stand("cone", direction, street, site + end_of_site, edge + 0.1 + 0.55 * number)
    crowd.stand("worker", direction, street, site + 4.5, edge + 2.4, turn=rng.uniform(-3, 3))


def _add_parked(crowd: _Crowd, ego_path: Path) -> None:
    """Cars, a few trucks, a trailer and motorcycles on the parking strips; bicycles on the sidewalk."""
    town, rng = crowd.town, crowd.rng
    offset = LANES * LANE + PARKING / 2
    first = ["trailer", "car", "truck"]  # there is one of each in every scene
    for direction, street, start, end in town.parking():
        for along in np.arange(start + 4.0, end - 4.0, 8.2):
            chance, roll, shift, look = rng.uniform(0, 1, 4)
            place = town.point(direction, street, along, offset)
            site_place, site_half = crowd.taken[-1]
            if chance > 0.32 or not _near(ego_path, place, 45.0) or np.linalg.norm(place - site_place) < site_half + 5:
                continue
            kind = "car" if roll < 0.82 else "truck" if roll < 0.88 else "trailer" if roll < 0.92 else "motorcycle"
            if first and _near(ego_path, place, 20.0):
                kind = first.pop(0)
            agent = crowd.stand(
                kind, direction, street, float(along + 0.5 * shift), offset, rider=False, look=int(1000 * look)
            )
            if kind in ("truck", "trailer"):
                agent.size = (2.2, 6.4, agent.size[2])
        along = rng.uniform(start, end)
        place = town.point(direction, street, along, HALF)
        if _near(ego_path, place, 30.0) and np.linalg.norm(place - crowd.taken[-1][0]) > crowd.taken[-1][1] + 5:
            for number in range(int(rng.integers(0, 4))):
                crowd.stand("bicycle", direction, street, along + 0.9 * number, HALF + 0.95, turn=1.4, rider=False)


def _add_pedestrians(crowd: _Crowd, ego_path: Path) -> None:
    """People who walk around blocks, stand, sit, and cross streets at the drive's crossings."""
    town, rng = crowd.town, crowd.rng
    start = ego_path.at(np.linspace(0.0, 100.0, 21))
    early = np.stack(start[:2], 1)  # (21,2)
    rings = 0
    for low, high in town.blocks():
        nearest = np.linalg.norm(np.clip(early, low, high) - early, axis=1).argmin()
        if np.linalg.norm(np.clip(early[nearest], low, high) - early[nearest]) > 12.0:
            continue
        for number in range(5):
            inset = 2.3 + 0.35 * number
            a, b = low + inset, high - inset
            corners = np.array([a, [b[0], a[1]], b, [a[0], b[1]]])
            if (number + rings) % 2:
                corners = corners[::-1]
            loop = np.concatenate([corners, corners, corners[:1]])
            path = rounded(loop, [0.6] * (len(loop) - 2))
            near = np.hypot(path.x - early[nearest, 0], path.y - early[nearest, 1])
            near[(path.s < 45.0) | (path.s > path.s[-1] - 60.0)] = np.inf
            begin = float(path.s[near.argmin()] + rng.uniform(-28.0, 28.0))
            kind = "child" if rng.uniform() < 0.12 else "pedestrian"
            if rng.uniform() < 0.25:
                x, y, yaw = (float(value) for value in path.at(begin))
                crowd.add(kind, place=(x, y, yaw + rng.uniform(-2, 2)), sits=bool(rng.uniform() < 0.3))
            else:
                crowd.add(kind, path=path, start=begin, speed=float(rng.uniform(0.9, 1.6)))
        rings += 1
    for j, i, middle in town.crossings():
        if np.linalg.norm(early - middle, axis=1).min() > 15.0:
            continue
        for _ in range(4):
            axis, sign, way = int(rng.integers(2)), rng.choice([-1.0, 1.0]), rng.choice([-1.0, 1.0])
            along = sign * rng.uniform(CROSSWALK[0] + 0.6, CROSSWALK[1] - 0.6)
            kerb = HALF + WALK / 2 - 0.4
            behind = along + sign * rng.uniform(5.0, 9.0)  # where they come from and go to, on the sidewalk
            points = np.array([[behind, -way * kerb], [along, -way * kerb], [along, way * kerb], [behind, way * kerb]])
            path = rounded(middle + (points if axis == 0 else points[:, ::-1]), [0.5, 0.5])
            crowd.add(
                "pedestrian",
                path=path,
                start=float(rng.uniform(0.0, 4.0)),
                speed=float(rng.uniform(1.1, 1.6)),
                crossing=(j, i),
            )


def on_street(town: Town, x: np.ndarray, y: np.ndarray, crossing: tuple[int, int]) -> np.ndarray:
    """Whether points are on a street's roadway near a crossing, its crosswalks included."""
    dx, dy = np.abs(x - town.streets[1][crossing[1]]), np.abs(y - town.streets[0][crossing[0]])
    return ((dx < HALF) | (dy < HALF)) & (np.maximum(dx, dy) < BOX + 6.0)
