"""Camera pictures of generated scenes: flat faces painted from the farthest to the nearest, with light and haze.

Painter's algorithm (Newell, Newell and Sancha, 1972) on convex parts: faces that look away are left out, what is left
of an object is painted in the order of its parts' distance. Everything is drawn at twice its size and reduced.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from data.synthetic_ground import Paint
from data.synthetic_models import Part

_SCALE = 2  # supersampling
_NEAR = 0.25  # metres before the camera at which faces are cut
_CORNERS = 16  # of a shadow, at most
_SHIFT = 4  # binary places of a pixel that cv2 is given
_GROUND_REACH, _OBJECT_REACH, _DETAIL_REACH = 130.0, 170.0, 65.0  # metres

# Sun direction (towards it), its part of the light, overall brightness, and BGR of the sky above, of the haze.
LIGHTS = {
    "day": (np.array([0.45, 0.35, 0.82]), 0.5, 1.0, (215, 160, 105), (232, 222, 208)),
    "overcast": (np.array([-0.3, 0.4, 0.87]), 0.28, 0.85, (200, 190, 182), (214, 211, 206)),
    "dusk": (np.array([-0.75, 0.3, 0.59]), 0.4, 0.5, (105, 70, 52), (120, 145, 185)),
}
_HAZE = 260.0  # metres after which haze hides two thirds
_TILE = 512  # texels of the ground's grain
_TEXEL = 0.06  # metres


@dataclasses.dataclass(frozen=True)
class Camera:
    """intrinsic (3,3) in pixels, rotation (3,3) town to camera (rows right, down, ahead), position (3) in the town."""

    intrinsic: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Objects as arrays. Faces: quads (n,4,3), colours (n,3), outward normals (n,3), whether painted on a face, the
    part and the object that each belongs to. Centres of parts (p,3) and of objects (m,3); shadows (m,_CORNERS,2)."""

    quads: np.ndarray
    colours: np.ndarray
    normals: np.ndarray
    detail: np.ndarray
    part: np.ndarray
    owner: np.ndarray
    part_centres: np.ndarray
    centres: np.ndarray
    shadows: np.ndarray

    def placed(self, poses: np.ndarray) -> Mesh:
        """The objects moved to x, y, heading (m,3)."""
        c, s, o = np.cos(poses[:, 2]), np.sin(poses[:, 2]), np.zeros(len(poses))
        turns = np.stack([c, s, o, -s, c, o, o, o, o + 1], -1).reshape(-1, 3, 3)  # for row vectors
        shift = np.column_stack([poses[:, :2], o])
        part_owner = np.zeros(len(self.part_centres), int)
        part_owner[self.part] = self.owner
        return dataclasses.replace(
            self,
            quads=self.quads @ turns[self.owner] + shift[self.owner][:, None],
            normals=np.einsum("ni,nij->nj", self.normals, turns[self.owner]),
            part_centres=np.einsum("ni,nij->nj", self.part_centres, turns[part_owner]) + shift[part_owner],
            centres=np.einsum("ni,nij->nj", self.centres, turns) + shift,
            shadows=self.shadows @ turns[:, :2, :2] + poses[:, None, :2],
        )

    def without(self, faces: np.ndarray) -> Mesh:
        """The same objects without some of their faces (n) bool."""
        names = ("quads", "colours", "normals", "detail", "part", "owner")
        return dataclasses.replace(self, **{name: getattr(self, name)[~faces] for name in names})


def make_mesh(objects: Sequence[list[Part]], sun: np.ndarray) -> Mesh:
    """Arrays of a list of objects; `sun` points to the sun and throws their shadows."""
    rows: tuple[list, ...] = ([], [], [], [], [])
    part_centres: list[np.ndarray] = []
    centres, shadows = [], []
    for owner, parts in enumerate(objects):
        for part in parts:
            corners = np.concatenate([quad for quad, _ in part])
            for number, (quad, colour) in enumerate(part):
                for row, value in zip(rows, (quad, colour, number, len(part_centres), owner)):
                    row.append(value)
            part_centres.append((corners.min(0) + corners.max(0)) / 2)
        points = np.concatenate([quad for part in parts for quad, _ in part])
        centres.append((points.min(0) + points.max(0)) / 2)
        thrown = points[:, :2] - points[:, 2:] * sun[:2] / sun[2]
        hull = cv2.convexHull(np.concatenate([points[points[:, 2] < 0.5][:, :2], thrown]).astype(np.float32))[:, 0]
        shadows.append(hull[np.minimum(np.arange(_CORNERS), len(hull) - 1)])  # the last corner repeated
    quads = np.array(rows[0], np.float64)
    normals = np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(
        quads,
        np.array(rows[1], np.float64),
        normals,
        np.array(rows[2]) > 4,
        np.array(rows[3]),
        np.array(rows[4]),
        np.array(part_centres),
        np.array(centres),
        np.array(shadows, np.float64),
    )


def join(first: Mesh, second: Mesh) -> Mesh:
    """Both meshes' objects, the second's after the first's."""
    joined = {
        f.name: np.concatenate([getattr(first, f.name), getattr(second, f.name)]) for f in dataclasses.fields(Mesh)
    }
    joined["part"] = np.concatenate([first.part, second.part + len(first.part_centres)])
    joined["owner"] = np.concatenate([first.owner, second.owner + len(first.centres)])
    return Mesh(**joined)


def _clip_near(points: np.ndarray) -> np.ndarray:
    """A polygon (n,3) in the camera's frame without what is nearer than _NEAR (Sutherland and Hodgman, 1974)."""
    kept = []
    corners = points.tolist()
    a = corners[-1]
    for b in corners:
        if (a[2] >= _NEAR) != (b[2] >= _NEAR):
            t = (_NEAR - a[2]) / (b[2] - a[2])
            kept.append([p + (q - p) * t for p, q in zip(a, b)])
        if b[2] >= _NEAR:
            kept.append(b)
        a = b
    return np.array(kept).reshape(-1, 3)


def _project(camera: Camera, matrix: np.ndarray, polygons: np.ndarray) -> list[np.ndarray | None]:
    """Corners of polygons (n,v,3) of the town in fixed-point pixels, None where all is behind the camera."""
    points = (polygons - camera.position) @ camera.rotation.T  # (n,v,3)
    nearest, farthest = points[..., 2].min(1), points[..., 2].max(1)
    pixels = points @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        corners = pixels[..., :2] / pixels[..., 2:] * 2**_SHIFT
    fixed: list[np.ndarray | None] = list(np.round(np.nan_to_num(np.clip(corners, -1e8, 1e8))).astype(np.int32))
    for index in np.flatnonzero(nearest < _NEAR).tolist():
        fixed[index] = None
        if farthest[index] > _NEAR:
            cut = _clip_near(points[index]) @ matrix.T
            fixed[index] = np.round(cut[:, :2] / cut[:, 2:] * 2**_SHIFT).astype(np.int32)
    return fixed


def _with_height(outlines: np.ndarray) -> np.ndarray:
    """Polygons (n,v,2) on the ground as (n,v,3)."""
    return np.concatenate([outlines, np.zeros((*outlines.shape[:2], 1))], -1)


class Renderer:
    """Draws one town in one light."""

    def __init__(self, paints: Sequence[Paint], houses: Sequence[list[Part]], light: str, seed: int):
        self.sun, self.direct, self.brightness, sky, haze = LIGHTS[light]
        self.sun = self.sun / np.linalg.norm(self.sun)
        self.sky, self.haze = np.array(sky, np.float64), np.array(haze, np.float64)
        self.houses = make_mesh(houses, self.sun)
        self._layers = []  # outlines (n,v,2), colours, centres (n,2), radii (n) of paints with equally many corners
        for _, group in itertools.groupby(paints, lambda paint: len(paint.outline)):
            members = list(group)
            outlines = np.array([paint.outline for paint in members])
            colours = np.round(np.array([paint.colour for paint in members]) * self.brightness).astype(int).tolist()
            radii = np.linalg.norm(np.ptp(outlines, axis=1), axis=1) / 2
            self._layers.append((outlines, colours, outlines.mean(1), radii))
        rng = np.random.Generator(np.random.PCG64(seed))
        coarse = cv2.resize(rng.uniform(-1, 1, (_TILE // 8, _TILE // 8)), (_TILE, _TILE))
        self._grain = np.round(236 + 10 * coarse + rng.uniform(-9, 9, (_TILE, _TILE))).astype(np.uint8)
        self._backgrounds: dict[tuple, tuple[np.ndarray, int, np.ndarray]] = {}

    def gather(self, agents: Mesh, place: np.ndarray) -> Mesh:
        """What may be seen from cameras about a place (2): the houses' faces and, behind them in order, the agents'."""
        houses = self.houses
        distance = np.hypot(*(houses.centres[:, :2] - place).T)[houses.owner]
        return join(houses.without((distance > _OBJECT_REACH) | houses.detail & (distance > _DETAIL_REACH)), agents)

    def render(self, camera: Camera, mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One picture of what `gather` found.

        Returns:
            image uint8 (H,W,3) BGR, the pixels (m) of it that show each agent, and those (m) that would show it if
            nothing stood before it (by its convex outline).
        """
        houses = len(self.houses.centres)
        size = (camera.width, camera.height)
        zoom = np.diag([_SCALE, _SCALE, 1.0])
        zoom[:2, 2] = (_SCALE - 1) / 2  # centres of pixels
        matrix = zoom @ camera.intrinsic  # (3,3)
        sky, horizon, clear = self._background(camera)
        canvas = cv2.resize(sky, None, fx=_SCALE, fy=_SCALE, interpolation=cv2.INTER_NEAREST)
        self._draw_ground(camera, matrix, canvas)
        image = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
        self._shade_ground(camera, image, horizon, clear, mesh)
        canvas = cv2.resize(image, None, fx=_SCALE, fy=_SCALE, interpolation=cv2.INTER_NEAREST)
        canvas = cv2.cvtColor(canvas, cv2.COLOR_BGR2BGRA)  # (2H,2W,4), the fourth channel 255
        whole = self._draw_objects(camera, matrix, canvas, mesh, houses)
        seen = np.bincount(canvas[..., 3].ravel(), minlength=256)[: len(mesh.centres) - houses]
        image = cv2.cvtColor(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGRA2BGR)
        return image, seen / _SCALE**2, whole / _SCALE**2

    def _background(self, camera: Camera) -> tuple[np.ndarray, int, np.ndarray]:
        """Image (H,W,3) of the sky, the horizon's row, and how little haze hides the rows below it, float32."""
        matrix = camera.intrinsic
        key = (*matrix.ravel(), camera.width, camera.height)
        if key not in self._backgrounds:
            horizon = int(np.ceil(matrix[1, 2]))
            up = np.clip((matrix[1, 2] - np.arange(camera.height)) / matrix[0, 0] / 0.45, 0, 1)[:, None] ** 0.6
            rows = np.round(self.haze * (1 - up) + self.sky * up).astype(np.uint8)  # (H,3)
            image = np.repeat(rows[:, None], camera.width, axis=1)
            rows_down = np.arange(horizon, camera.height) + 0.5 - matrix[1, 2]
            clear = np.exp(-camera.position[2] * matrix[1, 1] / rows_down / _HAZE).astype(np.float32)
            self._backgrounds[key] = image, horizon, np.repeat(clear[:, None], camera.width, axis=1)
        return self._backgrounds[key]

    def _draw_ground(self, camera: Camera, matrix: np.ndarray, canvas: np.ndarray) -> None:
        width = matrix[0, 2] / matrix[0, 0]  # tangent of half the angle of view
        for outlines, colours, centres, radii in self._layers:
            offset = centres - camera.position[:2]
            ahead, aside = offset @ camera.rotation[2, :2], np.abs(offset @ camera.rotation[0, :2])
            chosen = (ahead > -radii) & (np.hypot(*offset.T) < np.minimum(_GROUND_REACH, 50 * radii) + radii)
            chosen &= aside < np.maximum(ahead, 0) * width + radii * np.hypot(1, width) + 1.0
            numbers = np.flatnonzero(chosen).tolist()
            for index, corners in zip(numbers, _project(camera, matrix, _with_height(outlines[numbers]))):
                if corners is not None:
                    cv2.fillConvexPoly(canvas, corners, colours[index], cv2.LINE_8, _SHIFT)

    def _shade_ground(self, camera: Camera, image: np.ndarray, horizon: int, clear: np.ndarray, mesh: Mesh) -> None:
        """Grain, shadows and haze, below the horizon."""
        below = image[horizon:]
        ground2pixel = camera.intrinsic @ camera.rotation @ np.column_stack([np.eye(3)[:, :2], -camera.position])
        lift = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -horizon], [0.0, 0.0, 1.0]])
        texel2pixel = lift @ ground2pixel @ np.diag([_TEXEL, _TEXEL, 1.0])  # (3,3)
        size = (below.shape[1], below.shape[0])
        grain = cv2.warpPerspective(self._grain, texel2pixel, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        mask = np.zeros(image.shape[:2], np.uint8)
        near = np.hypot(*(mesh.centres[:, :2] - camera.position[:2]).T) < _DETAIL_REACH
        near &= (mesh.centres[:, :2] - camera.position[:2]) @ camera.rotation[2, :2] > -20.0
        for corners in _project(camera, camera.intrinsic, _with_height(mesh.shadows[near])):
            if corners is not None:
                cv2.fillConvexPoly(mask, corners, (255,), cv2.LINE_AA, _SHIFT)
        dark = cv2.convertScaleAbs(mask[horizon:], alpha=self.direct * 0.8)
        shade = cv2.multiply(grain, cv2.bitwise_not(dark), scale=1 / 255)
        lit = cv2.multiply(below, cv2.merge([shade] * 3), scale=1 / 255)
        haze = np.empty_like(below)
        haze[:] = np.round(self.haze)
        image[horizon:] = cv2.blendLinear(lit, haze, clear, 1 - clear)

    def _draw_objects(
        self, camera: Camera, matrix: np.ndarray, canvas: np.ndarray, mesh: Mesh, houses: int
    ) -> np.ndarray:
        """Paint the objects; the canvas' fourth channel says which agent, up to 254, a pixel shows."""
        distance = np.hypot(*(mesh.centres[:, :2] - camera.position[:2]).T)
        towards = np.einsum("nj,nj->n", mesh.normals, camera.position - mesh.quads[:, 0]) > 0
        faces = np.flatnonzero(towards & (distance[mesh.owner] < _OBJECT_REACH))
        x, y, z = np.moveaxis((mesh.quads[faces] - camera.position) @ (matrix @ camera.rotation).T, -1, 0)  # (k,4)
        inside = (z > _NEAR).any(1) & (x > 0).any(1) & (x < canvas.shape[1] * z).any(1)
        inside &= (y > 0).any(1) & (y < canvas.shape[0] * z).any(1) | (z < _NEAR).any(1)
        faces = faces[inside]
        owner, normals = mesh.owner[faces], mesh.normals[faces]
        part_distance = np.linalg.norm(mesh.part_centres - camera.position, axis=1)[mesh.part[faces]]
        faces_order = np.lexsort((np.arange(len(faces)), -part_distance, -distance[owner]))
        sun = np.maximum(normals @ self.sun, 0.0)
        light = self.brightness * ((1 - self.direct) * (0.86 + 0.14 * normals[:, 2]) + 1.25 * self.direct * sun)
        clear = np.exp(-distance[owner] / _HAZE)[:, None]
        colours = np.clip(mesh.colours[faces] * light[:, None], 0, 255) * clear + self.haze * (1 - clear)
        tints = np.column_stack([np.round(colours), np.where(owner < houses, 255, owner - houses)]).astype(int).tolist()
        polygons = _project(camera, matrix, mesh.quads[faces])
        drawn: dict[int, list[np.ndarray]] = {}
        owners = owner.tolist()
        for index in faces_order.tolist():
            corners = polygons[index]
            if corners is None:
                continue
            cv2.fillConvexPoly(canvas, corners, tints[index], cv2.LINE_8, _SHIFT)
            if owners[index] >= houses:
                drawn.setdefault(owners[index] - houses, []).append(corners)
        areas = np.zeros(len(mesh.centres) - houses)
        height, width = canvas.shape[:2]
        frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        for agent, shapes in drawn.items():
            hull = cv2.convexHull(np.concatenate(shapes).astype(np.float32) / 2**_SHIFT)
            areas[agent] = cv2.intersectConvexConvex(hull, frame)[0]
        return areas
