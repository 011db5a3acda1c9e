"""Where the cells of the BEV are: in the cameras' images, and in the last frame's map.

Upstream: uniad/modules/encoder.py (get_reference_points, point_sampling), uniad/modules/transformer.py (the rotation).
All of it is float32, and executors may offer both operations: float16 is too coarse for pixels and cells.
"""

import numpy as np

from config import UniADConfig
from trtllm import Tensor
from trtllm import functional as F
from trtllm import vision as V

MIN_DEPTH = 1e-5  # metres in front of the camera


def cell_centres(config: UniADConfig) -> np.ndarray:
    """Centres x, y of the BEV cells in fractions of the grid, float32 (B,2)."""
    x = (np.arange(config.bev_w, dtype=np.float32) + 0.5) / np.float32(config.bev_w)
    y = (np.arange(config.bev_h, dtype=np.float32) + 0.5) / np.float32(config.bev_h)
    return np.stack(np.broadcast_arrays(x[None], y[:, None]), -1).reshape(-1, 2)


def pillar_points(config: UniADConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchors of the pillars over the cells, lidar frame, metres, float32: x (B,1), y (B,1), z (1,Z)."""
    low, high = (np.asarray(config.pc_range[i : i + 3]) for i in (0, 3))
    size, start = (high - low).astype(np.float32), low.astype(np.float32)
    xy = cell_centres(config) * size[:2] + start[:2]  # (B,2)
    height = high[2] - low[2]
    z = np.linspace(0.5, height - 0.5, config.num_points_in_pillar, dtype=np.float32) / np.float32(height)
    return xy[:, :1], xy[:, 1:], (z * size[2] + start[2])[None]


def point_sampling(lidar2img: Tensor, config: UniADConfig) -> tuple[Tensor, Tensor]:
    """Project the pillars' anchors into the cameras.

    Args:
        lidar2img: float32 (6,4,4), lidar point -> pixel * depth of the unpadded image.

    Returns:
        reference_points_cam, float32 (6,B,Z,2): x, y in fractions of the *padded* image; and the mask, bool (6,B,Z):
        in front of the camera and strictly inside the image.
    """
    anchors, size = pillar_points(config), (config.padded_width, config.padded_height)
    flat = (p.flatten() for p in anchors)  # (B) (B) (Z), copies: the executor may want them contiguous
    custom = V.offered("point_sampling", lidar2img, *flat, size=size, min_depth=MIN_DEPTH)
    if custom is not None:
        return custom
    x, y, z = (F.constant(p[None]) for p in anchors)  # (1,B,1) (1,B,1) (1,1,Z)

    def row(index: int) -> Tensor:
        # Multiplied out element by element, in the matrix product's order: a matrix product of the same numbers may
        # run in TF32, whose 10 bits of mantissa move a point by several pixels.
        a = [F.view(F.slice(lidar2img, (0, index, j), (config.num_cams, 1, 1)), (-1, 1, 1)) for j in range(4)]
        return a[0] * x + a[1] * y + a[2] * z + a[3]  # (6,B,Z)

    depth = row(2)
    divisor = F.maximum(depth, MIN_DEPTH)
    u, v = (row(axis) / divisor / float(size[axis]) for axis in (0, 1))
    mask = depth > MIN_DEPTH
    for position in (u, v):
        mask = F.op_and(mask, F.op_and(position > 0.0, position < 1.0))
    return F.stack([u, v], 3), mask


def rotate_nearest(input: Tensor, matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rotate a square-celled map by nearest sampling, 0 outside, as torchvision.transforms.functional.rotate.

    Args:
        input: (H*W,C), row-major cells.
        matrix: float32 (2,3), torchvision's inverse affine matrix: centred output pixel -> centred input pixel.
        shape: (H, W).

    Returns:
        (H*W,C): each row one row of the input, or zeros.
    """
    custom = V.offered("rotate_nearest", input, matrix, shape=tuple(shape))
    if custom is not None:
        return custom
    h, w = shape
    # Multiplied out element by element: a matrix product may run in TF32, and nearest sampling forgives nothing. The
    # detour over [-1,1] is grid_sample's, for its roundings.
    ys = F.constant(np.linspace(-h * 0.5 + 0.5, h * 0.5 - 0.5, h, dtype=np.float32).reshape(h, 1))
    xs = F.constant(np.linspace(-w * 0.5 + 0.5, w * 0.5 - 0.5, w, dtype=np.float32).reshape(1, w))
    half = F.constant(np.array([[0.5 * w], [0.5 * h]], np.float32))
    theta = matrix / half  # (2,3)
    index, inside = None, None
    for i, size in ((1, h), (0, w)):
        a, b, c = (F.view(F.slice(theta, (i, j), (1, 1)), (1, 1)) for j in range(3))
        position = F.round(((xs * a + ys * b + c + 1.0) * float(size) - 1.0) * 0.5)  # (H,W)
        here = F.op_and(position > -0.5, position < size - 0.5)
        cell = F.cast(F.clip(position, 0.0, size - 1.0), "int32")
        index = cell if index is None else index * w + cell
        inside = here if inside is None else F.op_and(inside, here)
    assert index is not None and inside is not None
    rows = F.index_select(input, 0, F.view(index, (h * w,)))  # (HW,C)
    return F.where(F.view(inside, (h * w, 1)), rows, 0.0)
