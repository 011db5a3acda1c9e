"""One picture per frame: six cameras with projected boxes, the bird's-eye view, a close-up of the plan, a legend.

Everything is drawn at twice its size with Pillow and reduced, which smooths lines. Metres are the lidar frame's: x
right, y forward; the bird's-eye view looks down with the vehicle heading up.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from config import UniADConfig
from data.frames import COMMANDS, Frame
from files import whole_file
from runtime.boxes import box_corners

Colour = tuple[int, ...]

# How the cameras of a frame (order of data.frames.CAMERAS) are laid out: row by row, as the driver would see them.
_LAYOUT = ((2, "front left"), (0, "front"), (1, "front right"), (4, "back left"), (3, "back"), (5, "back right"))
_WIDTH, _CELL, _PANEL, _HEADER = 1920, 640, 800, 44
_SCALE = 2  # supersampling

_CLASS_COLOURS: dict[str, Colour] = {
    "car": (255, 158, 27),
    "truck": (255, 99, 71),
    "construction_vehicle": (233, 150, 122),
    "bus": (255, 210, 63),
    "trailer": (255, 140, 180),
    "barrier": (150, 165, 185),
    "motorcycle": (255, 61, 129),
    "bicycle": (190, 120, 255),
    "pedestrian": (70, 170, 255),
    "traffic_cone": (120, 235, 220),
}
_OTHER: Colour = (225, 225, 225)
_BACKGROUND: Colour = (20, 22, 28)
_PANEL_BACKGROUND: Colour = (30, 33, 41)
_TEXT: Colour = (222, 226, 233)
_DIM: Colour = (150, 158, 172)
_RING: Colour = (140, 150, 170, 110)
_EGO: Colour = (245, 245, 245)
_DRIVABLE: Colour = (62, 74, 92)
_LANES: tuple[tuple[str, Colour], ...] = (
    ("lane divider", (236, 200, 95)),
    ("crossing", (110, 190, 235)),
    ("road edge", (205, 110, 120)),
)
_PLAN: Colour = (60, 230, 110)
_RAW_PLAN: Colour = (255, 60, 255)
_DRIVEN: Colour = (255, 255, 255)
_EGO_SIZE = (4.08, 1.73)  # metres, length and width of the vehicle that recorded nuScenes

# Edges of a box by the corner numbers of runtime.boxes.box_corners.
_FRONT = (0, 1, 2, 3)
_REAR_EDGES = ((4, 5), (5, 6), (6, 7), (7, 4))
_SIDE_EDGES = ((0, 4), (1, 5), (2, 6), (3, 7))
_NEAR = 0.3  # metres before the camera at which boxes are cut


def draw_frame(
    frame: Frame,
    result: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    config: UniADConfig,
    convention: str,
) -> None:
    """Draw one frame and its result into a PNG file.

    Args:
        frame: images uint8 (6,H,W,3) BGR and their lidar2img (6,4,4).
        result: arrays of the result record (docs/design.md); what is absent is not drawn.
        path: the PNG file, written whole or not at all.
        convention: of the boxes, see runtime.boxes.
    Raises:
        UniADError: unknown convention, or the file cannot be written.
    """
    picture = frame_picture(frame, result, config, convention)
    with whole_file(path) as part:
        picture.save(part, format="PNG", compress_level=1)


def frame_picture(frame: Frame, result: Mapping[str, np.ndarray], config: UniADConfig, convention: str) -> Image.Image:
    """What draw_frame draws, RGB. Raises UniADError: unknown convention."""
    tracks = _tracks(result, config, convention)
    cell_height = round(_CELL * frame.img.shape[1] / frame.img.shape[2])
    picture = Image.new("RGB", (_WIDTH, _HEADER + 2 * cell_height + _PANEL), _BACKGROUND)
    for position, (camera, name) in enumerate(_LAYOUT):
        image = _camera(frame.img[camera], frame.lidar2img[camera], tracks, name, cell_height)
        picture.paste(image, (position % 3 * _CELL, _HEADER + position // 3 * cell_height))
    top = _HEADER + 2 * cell_height
    reach = max(abs(edge) for edge in (*config.pc_range[:2], *config.pc_range[3:5]))
    picture.paste(_birds_eye(result, tracks, config, reach, 10.0, "bird's-eye view"), (0, top))
    picture.paste(_birds_eye(result, tracks, config, 20.0, 5.0, "close-up"), (_PANEL, top))
    picture.paste(_legend(result, tracks, config, convention), (2 * _PANEL, top))
    moment = f"{frame.timestamp:.3f} s    command: {COMMANDS[frame.command]}    {len(tracks)} boxes"
    title = f"scene {frame.scene_token}    sample {frame.sample_token}    {moment}"
    ImageDraw.Draw(picture).text((16, _HEADER // 2), title, fill=_TEXT, font=_font(19), anchor="lm")
    return picture


# --- what is drawn ---


def _tracks(result: Mapping[str, np.ndarray], config: UniADConfig, convention: str) -> list[dict[str, Any]]:
    """One record per track: corners (8,3), centre (2), velocity (2), colour, name, trajectories; nearest last."""
    boxes = np.asarray(result.get("boxes_3d", np.zeros((0, 9))), np.float64).reshape(-1, 9)
    tracks: list[dict[str, Any]] = []
    for row, corners in enumerate(box_corners(boxes, convention)):
        label = int(result["labels_3d"][row])
        name = config.class_names[label] if 0 <= label < len(config.class_names) else f"class {label}"
        track = {"corners": corners, "centre": boxes[row, :2], "velocity": boxes[row, 7:9], "class": name}
        track |= {"colour": _CLASS_COLOURS.get(name, _OTHER), "id": int(result["track_ids"][row])}
        if "traj" in result:  # offsets from the box, along the lidar's axes
            track["modes"] = result["traj"][row, :, :, :2] + boxes[row, :2]  # (modes,steps,2)
            track["mode_scores"] = np.exp(result["traj_scores"][row])  # (modes)
        tracks.append(track)
    return sorted(tracks, key=lambda track: -float(np.hypot(*track["centre"])))


def _visible(width: float, height: float) -> np.ndarray:
    """Half-spaces (5,3) of (u*d, v*d, d) that hold what a camera sees, with a margin of one image each way."""
    return np.array(
        [[0, 0, 1], [1, 0, width], [-1, 0, 2 * width], [0, 1, height], [0, -1, 2 * height]],
        np.float64,
    )


def _clip(points: np.ndarray, planes: np.ndarray, closed: bool) -> np.ndarray:
    """Cut a polygon (closed) or a line, (n,3) homogeneous, to half-spaces (Sutherland and Hodgman, 1974)."""
    for number, plane in enumerate(planes):
        value = points @ plane - (_NEAR if number == 0 else 0.0)
        kept = []
        for i in range(len(points)):
            if value[i] >= 0:
                kept.append(points[i])
            j = i + 1
            if j == len(points):
                if not closed:
                    break
                j = 0
            if (value[i] >= 0) != (value[j] >= 0):
                kept.append(points[i] + (points[j] - points[i]) * value[i] / (value[i] - value[j]))
        if len(kept) < 2:
            return np.zeros((0, 3))
        points = np.array(kept)
    return points


def _camera(
    image: np.ndarray, lidar2img: np.ndarray, tracks: list[dict[str, Any]], name: str, height: int
) -> Image.Image:
    """One camera's cell: the image (H,W,3) BGR with every track's box."""
    size = (_CELL * _SCALE, height * _SCALE)
    whole = Image.frombuffer("RGB", (image.shape[1], image.shape[0]), np.ascontiguousarray(image), "raw", "BGR", 0, 1)
    canvas = whole.resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas, "RGBA")
    zoom = np.array([size[0] / image.shape[1], size[1] / image.shape[0], 1.0])
    planes = _visible(*size)
    captions = []
    for track in tracks:
        homogeneous = np.concatenate([track["corners"], np.ones((8, 1))], axis=1)  # (8,4)
        points = (homogeneous @ lidar2img.T)[:, :3] * zoom  # (8,3): u*d, v*d, d
        if points[:, 2].max() < _NEAR:
            continue
        depth = float(points[:, 2].mean())
        colour, dark = track["colour"], tuple(int(0.6 * c) for c in track["colour"])
        thin, thick = (3, 5) if depth < 25 else (2, 3)  # in pixels before the reduction
        for edges, tint in ((_REAR_EDGES, dark), (_SIDE_EDGES, colour)):
            for edge in edges:
                line = _clip(points[list(edge)], planes, closed=False)
                if len(line) > 1:
                    draw.line([tuple(p) for p in line[:, :2] / line[:, 2:]], fill=(*tint, 235), width=thin)
        face = _clip(points[list(_FRONT)], planes, closed=True)
        if len(face) > 2:
            outline = [tuple(p) for p in face[:, :2] / face[:, 2:]]
            draw.polygon(outline, fill=(*colour, 70))
            draw.line([*outline, outline[0]], fill=colour, width=thick, joint="curve")
        if points[:, 2].min() > _NEAR:
            pixels = points[:, :2] / points[:, 2:]
            (x0, y0), (x1, y1) = pixels.min(axis=0), pixels.max(axis=0)
            if x1 > 0 and y1 > 0 and x0 < size[0] and y0 < size[1]:
                captions.append((depth, ((x0 + x1) / 2, y0 - 6), track))
    taken: list[tuple[float, ...]] = []
    for depth, at, track in sorted(captions, key=lambda caption: caption[0]):  # the nearer one keeps its place
        plate = draw.textbbox(at, str(track["id"]), font=_font(28 if depth < 25 else 22), anchor="mb")
        if not any(plate[0] < t[2] and t[0] < plate[2] and plate[1] < t[3] and t[1] < plate[3] for t in taken):
            _plate(draw, at, str(track["id"]), track["colour"], 28 if depth < 25 else 22)
            taken.append(plate)
    _plate(draw, (12, 12), name, _TEXT, 30, "lt")
    return canvas.reduce(_SCALE)


def _birds_eye(
    result: Mapping[str, np.ndarray],
    tracks: list[dict[str, Any]],
    config: UniADConfig,
    reach: float,
    ring: float,
    name: str,
) -> Image.Image:
    """A square seen from above, `reach` metres each way, range rings every `ring` metres."""
    size = _PANEL * _SCALE
    zoom = size / (2 * reach)

    def to_pixels(points) -> list[tuple[float, float]]:
        # Untrained weights can put boxes anywhere; coordinates stay within what the drawing library takes.
        pixels = np.clip(np.nan_to_num((np.asarray(points, np.float64) + (reach, -reach)) * (zoom, -zoom)), -1e5, 1e5)
        return [(x, y) for x, y in pixels.tolist()]

    canvas = Image.new("RGB", (size, size), _PANEL_BACKGROUND)
    _paint_map(canvas, result, config, reach)
    _paint_occupancy(canvas, result, config, reach)
    draw = ImageDraw.Draw(canvas, "RGBA")
    for radius in np.arange(ring, reach * 1.42, ring):
        (left, top), (right, bottom) = to_pixels([(-radius, radius), (radius, -radius)])
        draw.ellipse((left, top, right, bottom), outline=_RING, width=2)
        if radius < reach:
            at = to_pixels([(-radius * 0.5**0.5, -radius * 0.5**0.5)])[0]
            draw.text(at, f"{radius:g} m", fill=_DIM, font=_font(24), anchor="mm")
    for track in tracks:
        _paint_trajectories(draw, track, to_pixels)
    _paint_plan(draw, result, to_pixels)
    for track in tracks:
        footprint = to_pixels(track["corners"][[2, 3, 7, 6], :2])  # front right, front left, rear left, rear right
        draw.polygon(footprint, fill=(*track["colour"], 60))
        draw.line([*footprint, footprint[0]], fill=track["colour"], width=3, joint="curve")
        draw.line(footprint[:2], fill=track["colour"], width=8)  # the front
    length, width = _EGO_SIZE
    half = np.array([[width, length], [-width, length], [-width, -length], [width, -length]]) / 2
    ego = to_pixels(half)
    draw.polygon(ego, fill=(*_EGO, 90))
    draw.line([*ego, ego[0]], fill=_EGO, width=4, joint="curve")
    draw.polygon(to_pixels([(0, length / 2), (-width / 3, 0), (width / 3, 0)]), fill=_EGO)
    for track in tracks:
        if np.abs(track["centre"]).max() < reach:
            (x, y) = to_pixels(track["corners"][[0, 1, 4, 5], :2].max(axis=0)[None])[0]
            _plate(draw, (x + 4, y), str(track["id"]), track["colour"], 22, "lb")
    bar = 2 * ring
    start, end = (size - 40 - bar * zoom, size - 40), (size - 40, size - 40)
    draw.line([start, end], fill=_TEXT, width=5)
    for x, y in (start, end):
        draw.line([(x, y - 10), (x, y + 10)], fill=_TEXT, width=5)
    draw.text(((start[0] + end[0]) / 2, size - 52), f"{bar:g} m", fill=_TEXT, font=_font(28), anchor="mb")
    _plate(draw, (16, 16), f"{name}, ±{reach:g} m", _TEXT, 30, "lt")
    draw.rectangle((0, 0, size - 1, size - 1), outline=_BACKGROUND, width=6)
    return canvas.reduce(_SCALE)


def _overlay(canvas: Image.Image, layer: np.ndarray, extent: tuple[float, float, float, float], reach: float) -> None:
    """Blend an RGBA layer (h,w,4), row 0 = least y, covering x0 x1 y0 y1 metres, over a bird's-eye canvas."""
    x0, x1, y0, y1 = extent
    left, right, low, high = max(x0, -reach), min(x1, reach), max(y0, -reach), min(y1, reach)  # what is in view
    columns, rows = layer.shape[1] / (x1 - x0), layer.shape[0] / (y1 - y0)  # cells per metre
    source = ((left - x0) * columns, (y1 - high) * rows, (right - x0) * columns, (y1 - low) * rows)
    zoom = canvas.width / (2 * reach)
    size = round((right - left) * zoom), round((high - low) * zoom)
    image = Image.fromarray(np.ascontiguousarray(layer[::-1])).resize(size, Image.Resampling.NEAREST, box=source)
    canvas.paste(image, (round((left + reach) * zoom), round((reach - high) * zoom)), image)


def _paint_map(canvas: Image.Image, result: Mapping[str, np.ndarray], config: UniADConfig, reach: float) -> None:
    """Drivable area and lane classes, cells of the BEV grid: rows along y, columns along x."""
    if "map_drivable" not in result:
        return
    x0, y0, _, x1, y1, _ = config.pc_range
    layer = np.zeros((*result["map_drivable"].shape, 4), np.uint8)
    layer[result["map_drivable"].astype(bool)] = (*_DRIVABLE, 255)
    for mask, (_, colour) in zip(result["map_lane"], _LANES):
        layer[mask > 0] = (*colour, 130)
    _overlay(canvas, layer, (x0, x1, y0, y1), reach)


def _paint_occupancy(canvas: Image.Image, result: Mapping[str, np.ndarray], config: UniADConfig, reach: float) -> None:
    """Occupied cells by instance: now strong, the coming two seconds faint."""
    if "occ_ins" not in result:
        return
    lower, upper, _ = config.occ_grid
    layer = np.zeros((*result["occ_ins"].shape[1:], 4), np.uint8)
    for step in range(len(result["occ_ins"]) - 1, -1, -1):
        cells = result["occ_ins"][step]
        for instance in np.unique(cells[cells > 0]):
            layer[cells == instance] = (*_instance_colour(int(instance)), 170 if step == 0 else 60)
    _overlay(canvas, layer, (lower, upper, lower, upper), reach)


def _instance_colour(number: int) -> Colour:
    """Neighbouring numbers get hues far apart (multiples of the golden ratio)."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(number * 0.618 % 1, 0.55, 0.85))


def _paint_trajectories(draw: ImageDraw.ImageDraw, track: dict[str, Any], to_pixels) -> None:
    """All modes faint, the best one strong with a dot each second. With none, the velocity as a line of one second."""
    if "modes" not in track:
        draw.line(to_pixels([track["centre"], track["centre"] + track["velocity"]]), fill=track["colour"], width=3)
        return
    best = int(np.argmax(track["mode_scores"]))
    for mode, points in enumerate(track["modes"]):
        if mode != best:
            draw.line(to_pixels([track["centre"], *points]), fill=(*track["colour"], 70), width=2)
    line = to_pixels([track["centre"], *track["modes"][best]])
    draw.line(line, fill=track["colour"], width=4, joint="curve")
    for point in line[2::2]:
        _dot(draw, point, 5, track["colour"])


def _paint_plan(draw: ImageDraw.ImageDraw, result: Mapping[str, np.ndarray], to_pixels) -> None:
    """The ego's predicted modes, the driven way, the plan before (hollow dots) and after (full dots) collision
    optimisation; dark edges set them off from whatever lies below."""
    if "traj" in result:
        for points in result["traj"][-1, :, :, :2]:
            draw.line(to_pixels([(0.0, 0.0), *points]), fill=(*_EGO, 80), width=2)
    for key, colour, width in (("driven", _DRIVEN, 14), ("sdc_traj_raw", _RAW_PLAN, 4), ("sdc_traj", _PLAN, 6)):
        if key not in result:
            continue
        line = to_pixels([(0.0, 0.0), *result[key]])
        if key == "driven":  # a broad band below the plans
            draw.line(line, fill=(*colour, 110), width=width, joint="curve")
            continue
        draw.line(line, fill=_BACKGROUND, width=width + 4, joint="curve")
        draw.line(line, fill=colour, width=width, joint="curve")
        for point in line[1:]:
            _dot(draw, point, 10, _BACKGROUND)
            _dot(draw, point, 8, colour)
            if key == "sdc_traj_raw":
                _dot(draw, point, 4, _PANEL_BACKGROUND)


def _legend(
    result: Mapping[str, np.ndarray], tracks: list[dict[str, Any]], config: UniADConfig, convention: str
) -> Image.Image:
    """The column beside the bird's-eye views: what each colour and mark means."""
    canvas = Image.new("RGB", ((_WIDTH - 2 * _PANEL) * _SCALE, _PANEL * _SCALE), _BACKGROUND)
    draw = ImageDraw.Draw(canvas, "RGBA")
    rows: list[tuple[str, Colour, str]] = []
    for name in config.class_names:
        count = sum(track["class"] == name for track in tracks)
        rows.append((f"{name.replace('_', ' ')}  {count or ''}", _CLASS_COLOURS.get(name, _OTHER), "box"))
    rows.append(("ego vehicle", _EGO, "box"))
    if "traj" in result:
        rows += [("best mode, 6 s", _OTHER, "line"), ("other modes", (*_OTHER, 80), "line")]
    elif tracks:
        rows.append(("velocity, 1 s", _OTHER, "line"))
    if "sdc_traj_raw" in result:
        rows.append(("plan of the network", _RAW_PLAN, "hollow"))
    if "sdc_traj" in result:
        rows.append(("plan, optimised", _PLAN, "dots"))
    if "driven" in result:
        rows.append(("driven way, 3 s", (*_DRIVEN, 110), "band"))
    if "map_drivable" in result:
        rows += [("drivable", _DRIVABLE, "area"), *((name, colour, "area") for name, colour in _LANES)]
    if "occ_ins" in result:
        rows += [
            ("occupied now, hue: object", (170,), "hues"),
            ("occupied within 2 s", (60,), "hues"),
        ]
    for row, (text, colour, mark) in enumerate(rows):
        y = 44 + row * 58
        if mark in ("box", "area"):
            box = (32, y - 16, 84, y + 16)
            draw.rectangle(box, fill=(*colour[:3], 60) if mark == "box" else colour)
            if mark == "box":
                draw.rectangle(box, outline=colour, width=3)
                draw.line([(84, y - 16), (84, y + 16)], fill=colour, width=8)
        elif mark == "hues":
            for strip in range(4):
                draw.rectangle(
                    (32 + 13 * strip, y - 16, 45 + 13 * strip, y + 16), fill=(*_instance_colour(strip), *colour)
                )
        else:
            draw.line([(32, y), (84, y)], fill=colour, width=14 if mark == "band" else 5)
            if mark not in ("line", "band"):
                _dot(draw, (58, y), 10, colour)
            if mark == "hollow":
                _dot(draw, (58, y), 5, _BACKGROUND)
        draw.text((108, y), text, fill=_TEXT, font=_font(32), anchor="lm")
    notes = ("thick edge, tinted face: the front", "a dot each second (plan: 0.5 s)", f"box convention {convention}")
    for row, note in enumerate(notes):
        draw.text((32, canvas.height - 44 * (len(notes) - row)), note, fill=_DIM, font=_font(26), anchor="lm")
    return canvas.reduce(_SCALE)


# --- small parts ---


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _dot(draw: ImageDraw.ImageDraw, point: tuple[float, float], radius: float, colour: Colour) -> None:
    x, y = point
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _plate(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: Colour, size: int, anchor: str = "mb"
) -> None:
    """Text on a dark plate."""
    left, top, right, bottom = draw.textbbox(at, text, font=_font(size), anchor=anchor)
    draw.rectangle((left - 5, top - 4, right + 5, bottom + 4), fill=(10, 12, 16, 170))
    draw.text(at, text, fill=colour, font=_font(size), anchor=anchor)
