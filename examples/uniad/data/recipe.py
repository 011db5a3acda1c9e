"""A checkpoint, motion anchors and a drive that need no download: the demo's and the tests' input.

    python -m data.recipe -o DIR [--model tiny_e2e] [--frames 5]

writes `DIR/<model>.pth` in the released format, `DIR/motion_anchors.npy` and `DIR/frames/*.npz` (docs/design.md, frame
record). Everything follows from the names of the tensors and a seed: the same files on every machine, up to the
last bit of a pixel. The weights are random but scaled so that the network is alive: a few of its 901 queries become
tracks, the map and the occupancy are neither empty nor full. What the network says about the drive means nothing.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from config import UniADConfig, load_config
from data.cameras import LIDAR_AHEAD, LIDAR_HEIGHT, camera_rig, turn
from data.frames import Frame, save_frame
from errors import one_line_errors
from files import new_folder
from weight import COUNTER_SUFFIX, key_shapes

SEED = b"uniad demo drive 1"
MARKER = "recipe.json"


# --- weights ---------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """tensor = centre + spread * draw / sqrt(fan_in), draw standard normal; arrays go along the rows (first axis)."""

    keys: str  # regular expression, searched in the key
    spread: Any
    centre: Any = 0.0
    fan_in: bool = False  # divide by the root of the inputs of one output, so that a unit input gives a `spread` output
    balanced: bool = False  # each output's weights sum to zero: what all inputs share (ReLU's bias) has no effect
    folded: bool = False  # absolute values of the draw


def _rules(config: UniADConfig) -> list[Rule]:
    """The first rule that fits a key counts."""
    # Wider and deeper networks keep more of their signal, so that fewer sigmas separate a track from the rest.
    class_bias = -8.0 if config.embed_dims <= 128 else -6.3
    width = np.sqrt(128.0 / config.embed_dims)  # sums over D features that share a sign grow with D
    # Rows of a box: x y w l z h sin cos vx vy; sizes are logarithms.
    box_spread = np.array([0.5, 0.5, 0.35, 0.35, 0.5, 0.3, 1.0, 1.0, 2.0, 2.0])
    box_centre = np.array([0.0, 0.0, 0.65, 1.4, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    # Rows of a future step: x y log sigma_x log sigma_y rho.
    step_spread = np.tile([2.0, 2.0, 0.5, 0.5, 0.5], config.predict_steps)
    plan_centre = np.tile([0.1, 1.1], config.planning_steps)  # mostly forward
    return [
        Rule(r"running_mean$", 0.1),
        Rule(r"running_var$", 0.3, 1.0, folded=True),
        # Image backbone: pixels of +-100 in, residual branches small beside the trunk, offsets of about a pixel.
        Rule(r"^img_backbone\.conv1\.weight$", np.sqrt(2) / 60, fan_in=True),
        Rule(r"^img_backbone\..*\.bn3\.weight$", 0.05, 0.35),
        Rule(r"^img_backbone\..*\.downsample\.1\.weight$", 0.05, 0.8),
        Rule(r"conv_offset\.weight$", 0.7, fan_in=True),
        Rule(r"conv_offset\.bias$", 0.8),
        # Deformable attention looks around, and not everywhere with the same weight.
        Rule(r"sampling_offsets\.weight$", 0.5, fan_in=True),
        Rule(r"sampling_offsets\.bias$", 2.0),
        Rule(r"attention_weights\.weight$", 1.0, fan_in=True),
        # Track queries differ much in content: it is what separates their scores.
        Rule(r"^query_interact\.norm_feat\.weight$", 0.3, 3.0),
        Rule(r"^query_interact\.linear_(pos|feat)2\.weight$", 0.3, fan_in=True),
        Rule(r"reference_points\.weight$", 1.2, fan_in=True),
        Rule(r"(row_embed|col_embed)\.weight$|(level|cams)_embeds$", 0.5),
        Rule(r"(_embedding|_embed|stuff_query)\.weight$", 0.7),
        Rule(r"^pts_bbox_head\.cls_branches\.\d+\.6\.weight$", 4.0, fan_in=True, balanced=True),
        Rule(r"^pts_bbox_head\.cls_branches\.\d+\.6\.bias$", 0.3, class_bias),
        Rule(r"^pts_bbox_head\.reg_branches\.\d+\.4\.weight$", box_spread, fan_in=True),
        Rule(r"^pts_bbox_head\.reg_branches\.\d+\.4\.bias$", 0.1, box_centre),
        # The decoder's residual branches are weak: the queries stay different from each other.
        Rule(
            r"^pts_bbox_head\.transformer\.decoder\..*(out_proj|output_proj|ffns\.0\.layers\.1)\.weight$",
            0.4,
            fan_in=True,
            balanced=True,
        ),
        # Map: some queries score, and mask values lie on both sides of the threshold of 0.5.
        Rule(r"^seg_head\.cls_(thing_|stuff_)?branches\.\d+\.bias$", 0.3, -1.0),
        Rule(r"_mask_head\.attnen\.linear\.0\.weight$", 0.6, fan_in=True, folded=True),
        Rule(r"_mask_head\.attnen\.linear\.0\.bias$", 0.1, -0.6),
        Rule(r"^motion_head\.traj_reg_branches\.\d+\.4\.weight$", step_spread, fan_in=True),
        # Occupancy: logits of instances on both sides of zero.
        Rule(r"^occ_head\.query_to_occ_feat\.layers\.2\.weight$", 0.35, fan_in=True, balanced=True),
        Rule(r"^occ_head\.query_to_occ_feat\.layers\.2\.bias$", 0.05, -0.25 * width),
        Rule(r"^occ_head\.dense_decoder\.layers\.1\.conv\.5\.bias$", 0.05, 0.25 * width),
        Rule(r"^planning_head\.reg_branch\.2\.weight$", 0.8, fan_in=True),
        Rule(r"^planning_head\.reg_branch\.2\.bias$", 0.1, plan_centre),
        Rule(r"(out_proj|output_proj)\.weight$", 0.6, fan_in=True, balanced=True),
    ]


def _default_rule(shape: tuple[int, ...], key: str) -> Rule:
    """Norm gains near one, small biases, convolutions and linear layers that keep the size of a signal."""
    if key.endswith("bias"):
        return Rule("", 0.05)
    if len(shape) == 1:
        return Rule("", 0.1, 1.0)
    return Rule("", np.sqrt(2) if len(shape) == 4 else 1.2, fan_in=True, balanced=True)


def recipe_tensor(key: str, shape: tuple[int, ...], rules: list[Rule]) -> np.ndarray:
    """One tensor of the checkpoint, float32 (int64 for the counters), from its key alone."""
    if key.endswith(COUNTER_SUFFIX):
        return np.zeros(shape, np.int64)
    if key.endswith("code_weights"):  # of the training loss: the ten values of a box
        return np.array([1.0] * 8 + [0.2] * 2, np.float32)
    seed = int.from_bytes(hashlib.sha256(SEED + key.encode()).digest()[:16], "little")
    draw = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    if key == "query_embedding.weight":  # (901,2D): the position's half, then the content's
        return (draw * np.repeat([1.0, 3.0], shape[1] // 2)).astype(np.float32)
    rule = next((rule for rule in rules if re.search(rule.keys, key)), None) or _default_rule(shape, key)
    inputs = tuple(range(1, len(shape)))
    if rule.balanced:
        mean = draw.mean(axis=inputs, keepdims=True)
        draw = draw - np.round(mean, 6)  # rounded: the order of a sum differs between CPUs
    if rule.folded:
        draw = np.abs(draw)
    spread, centre = (np.reshape(value, (-1, *(1 for _ in inputs))) for value in (rule.spread, rule.centre))
    scale = spread / np.sqrt(np.prod([shape[axis] for axis in inputs])) if rule.fan_in else spread
    return (centre + scale * draw).astype(np.float32)


def recipe_state(config: UniADConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every key of the configuration's checkpoint with its tensor, in the checkpoint's order."""
    rules = _rules(config)
    for key, shape in key_shapes(config).items():
        yield key, recipe_tensor(key, shape, rules)


def recipe_anchors(config: UniADConfig) -> np.ndarray:
    """Motion anchors (groups, modes, steps, 2), float32 metres, y ahead: arcs from slow right turns to fast left ones.

    In place of k-means centres of real trajectories (upstream: motion_anchor_infos_mode6.pkl).
    """
    top_speed = np.array([12.0, 8.0, 1.6, 0.8])  # m/s of vehicles, cycles, pedestrians, what stands
    modes = np.linspace(0.25, 1.0, config.predict_modes)
    rates = np.linspace(-0.2, 0.2, config.predict_modes)  # rad/s, left positive
    time = 0.5 * np.arange(1, config.predict_steps + 1)
    speed = top_speed[np.arange(len(config.group_id_list)) % 4, None] * modes  # (groups, modes)
    turn = rates[:, None] * time  # (modes, steps)
    direction = np.stack([-np.sin(turn / 2), np.cos(turn / 2)], -1)  # chord of an arc: half the turn
    length = speed[..., None] * (time * np.sinc(turn / 2 / np.pi))  # (groups, modes, steps)
    return (length[..., None] * direction).astype(np.float32)


# --- frames ----------------------------------------------------------------------------------------------------------

STREET = 8.0  # half width, metres


def _lidar2img(height: int, width: int) -> np.ndarray:
    """(6,4,4): lidar point to pixel * depth."""
    lidar2ego = turn(-np.pi / 2)
    matrices = []
    for intrinsic, ego2camera, position in zip(*camera_rig(height, width)):
        to_camera = ego2camera @ lidar2ego
        offset = ego2camera @ (np.array([LIDAR_AHEAD, 0.0, LIDAR_HEIGHT]) - position)
        matrix = np.eye(4)
        matrix[:3] = intrinsic @ np.column_stack([to_camera, offset])
        matrices.append(matrix)
    return np.stack(matrices)


def _parked_cars(scene: int) -> np.ndarray:
    """(12,6): boxes along the street, lower and upper corners; x along the street, y to its left."""
    rng = np.random.Generator(np.random.PCG64(100 + scene))
    x = np.arange(12) // 2 * 14.0 - 26.0 + rng.uniform(-3, 3, 12)
    y = np.where(np.arange(12) % 2, 6.2, -6.2)
    size = np.stack([rng.uniform(3.8, 6.5, 12), rng.uniform(1.7, 2.2, 12), rng.uniform(1.4, 2.6, 12)], -1)
    centre = np.stack([x, y, size[:, 2] / 2], -1)
    return np.concatenate([centre - size / 2, centre + size / 2], -1)


def _noise(x: np.ndarray, y: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) for each whole-numbered cell of the plane."""
    a, b = np.floor(x).astype(np.int64) & 0xFFFF, np.floor(y).astype(np.int64) & 0xFFFF
    mixed = (a * 73856093 ^ b * 19349663 ^ salt * 83492791) & 0xFFFFFFFF
    return ((mixed * 2654435761 >> 8) & 0xFFFF) / 65536.0


def _paint(origin: np.ndarray, rays: np.ndarray, scene: int) -> np.ndarray:
    """BGR float (...,3) of rays (...,3) from `origin`, in the street's frame: street, houses, parked cars, sky."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ground = np.where(rays[..., 2] < 0, -origin[2] / rays[..., 2], np.inf)
        wall = np.where(rays[..., 1] != 0, (np.sign(rays[..., 1]) * 14.0 - origin[1]) / rays[..., 1], np.inf)
        wall = np.where(origin[2] + wall * rays[..., 2] < 7.0, wall, np.inf)  # houses are 7 m high
        cars, number = np.full(ground.shape, np.inf), np.zeros(ground.shape)
        for index, box in enumerate(_parked_cars(scene)):
            low, high = (box[:3] - origin) / rays, (box[3:] - origin) / rays
            enter, leave = np.minimum(low, high).max(-1), np.maximum(low, high).min(-1)
            hit = (enter < leave) & (enter > 0) & (enter < cars)
            cars, number = np.where(hit, enter, cars), np.where(hit, index + 1.0, number)
        distance = np.minimum(np.minimum(ground, wall), cars)
        point = origin + np.where(np.isfinite(distance), distance, 0.0)[..., None] * rays
    x, y, z = np.moveaxis(point, -1, 0)
    asphalt = 75 + 25 * _noise(2 * x, 2 * y, 1)
    line = (np.abs(y) < 0.15) & (x % 6 < 3) | (np.abs(np.abs(y) - 4) < 0.12)
    pavement = 130 + 60 * _noise(x, y, 2)
    floor = np.where(np.abs(y) < STREET, np.where(line, 235.0, asphalt), pavement)
    house = 60 + 150 * _noise(x / 3, z / 2.2, 3 + scene)
    car = 40 + 190 * _noise(number * 7, number + np.floor(z * 2), 5)
    sky = 215 - 40 * rays[..., 2] / np.linalg.norm(rays, axis=-1)
    hits = [~np.isfinite(distance), distance == cars, distance == wall]
    grey = np.select(hits, [sky, car, house], floor)
    tint = np.select(
        [hit[..., None] for hit in hits], [(1.1, 1.0, 0.9), (0.8, 0.9, 1.1), (0.85, 0.95, 1.05)], (1.0,) * 3
    )
    return grey[..., None] * tint


def recipe_frames(config: UniADConfig, count: int) -> Iterator[Frame]:
    """A drive of `count` keyframes, half a second apart, in two scenes; the last two fifths are the second scene.

    The vehicle starts from rest, then swings left and right along a street; its heading passes 360 degrees.
    """
    height, width = config.image_height, config.image_width
    lidar2img = _lidar2img(height, width)
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([column, row, np.ones_like(row)], -1)  # (H,W,3)
    first_scene = count - count * 2 // 5
    l2e_r, l2e_t = turn(-np.pi / 2), np.array([LIDAR_AHEAD, 0.0, LIDAR_HEIGHT])
    for index in range(count):
        scene, step = (0, index) if index < first_scene else (1, index - first_scene)
        street_yaw, corner = ((np.deg2rad(357.0), (402.5, 1187.0)), (np.deg2rad(118.0), (871.0, 655.5)))[scene]
        street_r, street_t = turn(street_yaw), np.array([*corner, 0.0])
        speed = 0.0 if step == 0 else 5.0 + 0.7 * scene
        swing = 0.06 * step  # heading against the street, radians
        along = np.array([2.5 * step, -2.0 + 0.5 * 2.5 * step * swing, 0.0])  # metres, in the street's frame
        position, yaw = street_r @ along + street_t, street_yaw + swing
        e2g_r = turn(yaw)
        l2g_r, l2g_t = l2e_r.T @ e2g_r.T, l2e_t @ e2g_r.T + position
        rng = np.random.Generator(np.random.PCG64(1000 * scene + step))
        images = []
        for matrix in lidar2img:
            to_lidar = np.linalg.inv(matrix[:3, :3])
            origin = -to_lidar @ matrix[:3, 3] @ l2g_r + l2g_t
            rays = pixels @ to_lidar.T @ l2g_r @ street_r  # to global, then into the street's frame
            images.append(_paint((origin - street_t) @ street_r, rays, scene) + 6 * rng.standard_normal(pixels.shape))
        heading = yaw % (2 * np.pi)
        can_bus = np.zeros(18)
        can_bus[:3] = position
        can_bus[3:7] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        can_bus[7:10] = 0.4 * (step == 1), 0.0, 9.81
        can_bus[12] = 0.12 * (step > 0)  # rad/s about z
        can_bus[13] = speed
        can_bus[16:] = heading, np.rad2deg(heading)
        yield Frame(
            img=np.clip(np.round(np.stack(images)), 0, 255).astype(np.uint8),
            can_bus=can_bus,
            lidar2img=lidar2img,
            l2g_r_mat=l2g_r.astype(np.float32),
            l2g_t=l2g_t.astype(np.float32),
            timestamp=1.6e9 + 3600.0 * scene + 0.5 * step,
            command=(2, 1)[step % 4 == 3],
            scene_token=f"demo-street-{scene}",
            sample_token=f"demo-{scene}-{step:03d}",
        )


# --- files -----------------------------------------------------------------------------------------------------------


def write_checkpoint(path: str | os.PathLike, config: UniADConfig) -> None:
    """Write the recipe's checkpoint in the released format, `{'meta', 'state_dict'}`."""
    import torch  # neither is needed for weights and frames alone, as the checks of an engine take them
    from tqdm import tqdm

    tensors = tqdm(recipe_state(config), desc="checkpoint", unit="tensor", delay=1, disable=None, leave=False)
    state = {key: torch.from_numpy(array) for key, array in tensors}
    meta = {"recipe": SEED.decode(), "model": config.name, "mmdet_version": "2.26.0", "mmdet3d_version": "1.0.0rc6"}
    torch.save({"meta": meta, "state_dict": state}, path)


def write_demo(folder: str | os.PathLike, config: UniADConfig, frames: int) -> None:
    """Write checkpoint, anchors and frames into a new folder. Raises UniADError where the folder is something else."""
    from tqdm import tqdm

    with new_folder(folder, lambda path: (path / MARKER).is_file(), "a folder of this recipe") as work:
        write_checkpoint(work / f"{config.name}.pth", config)
        np.save(work / "motion_anchors.npy", recipe_anchors(config))
        (work / "frames").mkdir()
        drive = tqdm(recipe_frames(config, frames), total=frames, unit="frame", delay=1, disable=None, leave=False)
        for index, frame in enumerate(drive):
            save_frame(work / "frames" / f"{index:06d}.npz", frame)
        (work / MARKER).write_text(json.dumps({"recipe": SEED.decode(), "model": config.name, "frames": frames}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a demo checkpoint, motion anchors and a short drive.")
    parser.add_argument("-o", "--out-dir", required=True, metavar="DIR", type=pathlib.Path)
    parser.add_argument("--model", default="tiny_e2e", help="a name in configs/ or a .json file (default: tiny_e2e)")
    parser.add_argument("--frames", type=int, default=5, help="keyframes of the drive, in two scenes (default: 5)")
    args = parser.parse_args()
    if args.frames < 1:
        parser.error("--frames must be at least 1")
    config = load_config(args.model)
    write_demo(args.out_dir, config, args.frames)
    print(f"{args.out_dir}: {config.name}.pth, motion_anchors.npy, {args.frames} frames in frames/")


if __name__ == "__main__":
    with one_line_errors():
        main()
