"""How the agents of a generated scene move: vehicles keep their distance and take turns at crossings.

A kinematic simulation in steps of a fifth of a second. Every agent follows its path; its speed is what lets it stop
before what stands in its way, take the next bend gently, and stop at the line of a crossing that others use.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data.synthetic_scenes import EGO_CENTRE, Agent, on_street
from data.synthetic_town import STOP, Path, Town

STEP = 0.2  # seconds
LEAD_IN = 1.0  # seconds that are simulated before the first keyframe
_ACCELERATION, _BRAKING, _HARDEST = 1.8, 2.2, 6.0  # m/s^2: speeding up, planned braking, the most there is
_SIDEWAYS = 2.2  # m/s^2 in bends
_SIGHT = 30.0  # metres ahead that are looked at
_PATIENCE = 30  # steps after which those who wait at a crossing go before those who could join
_GAP = 1.5  # metres kept to what is ahead


@dataclasses.dataclass(frozen=True)
class Motion:
    """Where everything is at any time: arc lengths and speeds (steps, agents) at multiples of STEP from -LEAD_IN."""

    agents: list[Agent]
    s: np.ndarray
    v: np.ndarray

    def along(self, index: int, time) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Arc length, speed and acceleration of a moving agent at seconds after the first keyframe."""
        t = (np.asarray(time, np.float64) + LEAD_IN) / STEP
        k = np.clip(np.floor(t).astype(int), 0, len(self.s) - 2)
        tau = (t - k) * STEP
        acceleration = (self.v[k + 1, index] - self.v[k, index]) / STEP
        v = self.v[k, index] + acceleration * tau
        return self.s[k, index] + (self.v[k, index] + v) / 2 * tau, v, acceleration

    def place(self, index: int, time: float) -> tuple[float, float, float, float] | None:
        """x, y, heading and speed in the town's frame; None where the agent has left the town."""
        agent = self.agents[index]
        if agent.path is None:
            return (*agent.place, 0.0)
        if agent.tractor is not None:
            s, v, _ = self.along(agent.tractor, time)
            s = s - agent.hitch
        else:
            s, v, _ = self.along(index, time)
        if s > agent.path.s[-1]:
            return None
        x, y, yaw = agent.path.at(s)
        return float(x), float(y), float(yaw), float(v)


class _Crossing:
    """Who may be on a crossing: vehicles straight on along one axis, one that turns, or pedestrians.

    Those who ask first enter first. Others of the same use join them for a while.
    """

    def __init__(self) -> None:
        self.use: object = None
        self.since = 0  # step in which this use began
        self.holders: set[int] = set()
        self.queue: list[int] = []

    def enter(self, index: int, use: object, first: bool, step: int) -> bool:
        """Whether an agent may enter, now or already. `first`: it goes before those who wait."""
        if index in self.holders:
            return True
        if index not in self.queue:
            self.queue.insert(0 if first else len(self.queue), index)
        if self.holders:
            if use is None or use != self.use or step - self.since > _PATIENCE:
                return False
        elif self.queue[0] != index:
            return False
        else:
            self.use, self.since = use, step
        self.queue.remove(index)
        self.holders.add(index)
        return True


@dataclasses.dataclass
class _Visit:
    """A crossing on an agent's path: where it begins and ends, and what for."""

    crossing: tuple[int, int]
    enter: float
    leave: float
    use: object


def _visits(town: Town, agent: Agent) -> list[_Visit]:
    path = agent.path
    assert path is not None
    found = []
    for j, i, middle in town.crossings():
        if agent.walks:
            if agent.crossing != (j, i):
                continue
            inside = on_street(town, path.x, path.y, (j, i))
        else:
            inside = np.maximum(np.abs(path.x - middle[0]), np.abs(path.y - middle[1])) < STOP
        if not inside.any():
            continue
        first, last = np.flatnonzero(inside)[[0, -1]]
        straight = abs(path.yaw[last] - path.yaw[first]) < 0.1
        use = "walk" if agent.walks else round(path.yaw[first] / (np.pi / 2)) % 2 if straight else None
        found.append(_Visit((j, i), float(path.s[first]), float(path.s[last]), use))
    return sorted(found, key=lambda visit: visit.enter)


def _discs(agent: Agent) -> np.ndarray:
    """Discs (n,3) that cover an agent's box, along its longer side: place ahead and to the left, radius."""
    w, length = agent.size[:2]
    narrow, wide = sorted((w, length))
    count = int(np.ceil(wide / narrow))
    places = ((np.arange(count) + 0.5) / count - 0.5) * wide
    ahead, left = (places, 0 * places) if length >= w else (0 * places, places)
    centre = EGO_CENTRE if agent.kind == "ego" else 0.0
    return np.column_stack([centre + ahead, left, np.full(count, 0.55 * narrow)])


def _placed(discs: np.ndarray, x: Any, y: Any, yaw: Any) -> np.ndarray:
    """Discs (n,3) in the town: x, y, radius."""
    c, s = np.cos(yaw), np.sin(yaw)
    ahead, left, radius = discs.T
    return np.column_stack([x + c * ahead - s * left, y + s * ahead + c * left, radius])


def _speed_limit(path: Path) -> np.ndarray:
    """Highest speed (n) at the path's samples from which every bend ahead can be taken."""
    with np.errstate(divide="ignore"):
        square = np.minimum(_SIDEWAYS / np.abs(path.curvature), 1e4)
    reach = square + 2 * _BRAKING * path.s  # v0^2 <= v1^2 + 2 b (s1 - s0)
    return np.sqrt(np.minimum.accumulate(reach[::-1])[::-1] - 2 * _BRAKING * path.s)


@dataclasses.dataclass
class _Mover:
    """An agent that moves by itself, with what it tows."""

    path: Path
    limit: np.ndarray
    speed: float
    walks: bool
    half_width: float
    front: float  # how far it reaches before and behind its place on the path
    rear: float
    bodies: list[tuple[float, np.ndarray]]  # arc length behind, discs
    visits: list[_Visit]
    first: bool  # whether it goes before others: the ego vehicle, and whom it follows

    def placed(self, s: float) -> np.ndarray:
        """Its discs (n,3) in the town."""
        there = [(s - behind, discs) for behind, discs in self.bodies if s - behind <= self.path.s[-1]]
        return np.concatenate([np.zeros((0, 3)), *(_placed(discs, *self.path.at(arc)) for arc, discs in there)])


def _mover(town: Town, agents: list[Agent], index: int) -> _Mover:
    agent = agents[index]
    assert agent.path is not None
    centre = EGO_CENTRE if agent.kind == "ego" else 0.0
    bodies, rear = [(0.0, _discs(agent))], agent.size[1] / 2 - centre
    for trailer in agents:
        if trailer.tractor == index:
            bodies.append((trailer.hitch, _discs(trailer)))
            rear = trailer.hitch + trailer.size[1] / 2
    front = agent.size[1] / 2 + centre
    limit = np.full(len(agent.path.s), np.inf) if agent.walks else _speed_limit(agent.path)
    visits = _visits(town, agent)
    return _Mover(
        agent.path,
        limit,
        agent.speed,
        agent.walks,
        agent.size[0] / 2,
        front,
        rear,
        bodies,
        visits,
        agent.path is agents[0].path,
    )


def simulate(town: Town, agents: list[Agent], seconds: float) -> Motion:
    """Let the agents move from LEAD_IN before the first keyframe until `seconds` after it."""
    steps = int(np.ceil((seconds + LEAD_IN) / STEP)) + 2
    s, v = np.zeros((steps, len(agents))), np.zeros((steps, len(agents)))
    movers = {n: _mover(town, agents, n) for n, a in enumerate(agents) if a.path is not None and a.tractor is None}
    crossings = {(j, i): _Crossing() for j, i, _ in town.crossings()}
    standing = [_placed(_discs(agent), *agent.place) for agent in agents if agent.path is None]
    fixed = np.concatenate([np.zeros((0, 3)), *standing])
    for n, mover in movers.items():
        s[0, n] = agents[n].start
        for visit in mover.visits:
            if visit.enter < s[0, n] + mover.front and s[0, n] - mover.rear < visit.leave:
                crossings[visit.crossing].enter(n, visit.use, True, 0)
        v[0, n] = min(mover.speed, np.interp(s[0, n], mover.path.s, mover.limit))
    for k in range(steps - 1):
        bodies = {n: mover.placed(s[k, n]) for n, mover in movers.items()}
        discs = np.concatenate([fixed, *bodies.values()])
        owners = np.repeat([-1, *bodies], [len(fixed), *map(len, bodies.values())])
        for n, mover in movers.items():
            free = np.inf if mover.walks else _free_way(mover, s[k, n], discs[owners != n])
            wanted = _wanted_speed(mover, n, s[k, n], free, crossings, k)
            v[k + 1, n] = np.clip(wanted, max(v[k, n] - _HARDEST * STEP, 0.0), v[k, n] + _ACCELERATION * STEP)
            s[k + 1, n] = s[k, n] + (v[k, n] + v[k + 1, n]) / 2 * STEP
    return Motion(agents, s, v)


def _free_way(mover: _Mover, s: float, discs: np.ndarray) -> float:
    """Metres ahead until the first of the discs (n,3) stands in the way; infinite where none does."""
    x, y, _ = mover.path.at(s + mover.front + np.arange(0.0, _SIGHT, 1.0))  # (30)
    near = discs[np.hypot(discs[:, 0] - x[0], discs[:, 1] - y[0]) < _SIGHT + 5.0]
    clearance = np.hypot(x[:, None] - near[:, 0], y[:, None] - near[:, 1]) - near[:, 2]  # (30,m)
    hit = (clearance < mover.half_width + 0.3).any(1)
    return float(hit.argmax()) if hit.any() else np.inf


def _stopping(distance: float) -> float:
    """Speed from which one can stop within a distance."""
    return float(np.sqrt(2 * _BRAKING * max(distance, 0.0)))


def _wanted_speed(
    mover: _Mover, n: int, s: float, free: float, crossings: dict[tuple[int, int], _Crossing], step: int
) -> float:
    wanted = min(mover.speed, float(np.interp(s, mover.path.s, mover.limit)), _stopping(free - _GAP))
    for visit in mover.visits:
        crossing = crossings[visit.crossing]
        if s - mover.rear > visit.leave:
            crossing.holders.discard(n)
            continue
        distance = visit.enter - (s + mover.front)
        if distance > _SIGHT:
            break
        # Nobody takes a crossing while somebody else stands between.
        if n not in crossing.holders and (free < distance + 1.0 or not crossing.enter(n, visit.use, mover.first, step)):
            wanted = min(wanted, _stopping(distance - (0.1 if mover.walks else 0.6)))
        break
    return wanted
