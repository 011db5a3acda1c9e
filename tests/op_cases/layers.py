"""What is composed in layers/ and offered by executors, and where TensorRT 8.6 has been wrong."""

import math

import numpy as np
from op_references import likeliest, merged, mixed_masks, moved, projected

from config import load_config
from layers.basic import memory_attention
from layers.bev_encoder import temporal_inputs
from layers.bev_geometry import point_sampling
from layers.occ_head import likeliest_instance
from layers.resnet import normalise_images
from layers.seg_mask_head import attention_masks
from layers.seg_merge import merge_masks
from layers.track_life_cycle import EgoMotion, propagate
from op_cases.table import EXACT, RANDOM, SUMS, case, half, ints, normal, uniform, weight
from trtllm import functional as F
from trtllm import net_dtype
from trtllm.map_layout import flatten_maps, sample_map

# fmt: off
# ---- composed in layers/, offered by executors ---------------------------------------------------------------------

# Rectangles on 20 x 14 pixels, of all classes, some weak; values in sixteenths, so that sums are exact.
MERGE = np.zeros((12, 20, 14), np.float32)
for number, rectangle in enumerate(MERGE):
    (y, x), (rows, columns) = RANDOM.integers(0, 12, 2), RANDOM.integers(3, 9, 2)
    rectangle[y : y + rows, x : x + columns] = 1 - number / 32
MERGE = (MERGE * (1 - ints(5, 12, 20, 14) / 16)).reshape(12, 280).astype(np.float32)
MERGE_SCORES, MERGE_LABELS = half(RANDOM.permutation(12) / 16 + 0.25), ints(3, 12)
case("merge_masks", lambda *x: list(merge_masks(*x, 3, 0.2)), lambda t, *x: merged(t, *x, 3, 0.2),
     lambda m, s, labels: list(merge_masks(m, 1.0 - s, labels, 3, 0.2)), MERGE, MERGE_SCORES, MERGE_LABELS,
     islands=(0, 1), tolerance=EXACT)

CELLS = normal(1100, 128)  # enough for the plugin
case("memory_attention", memory_attention, lambda t, q, m: t.softmax(q @ m.T, -1) @ m,
     lambda q, m: memory_attention(-q, m), normal(5, 128, scale=0.25), CELLS, tolerance=SUMS)
MIX = (normal(8, 8, scale=0.3), normal(8), normal(1, 8), normal(1))
case("attention_masks", lambda q, k: attention_masks(q, k, *map(weight, MIX), num_heads=8),
     lambda t, q, k: mixed_masks(t, q, k, *MIX),
     lambda q, k: attention_masks(-q, k, *map(weight, MIX), num_heads=8), normal(5, 128), CELLS, tolerance=SUMS)
# Queries in sixteenths of a channel each, so that no product is near another's or the threshold.
LIKELY = (np.eye(128)[None, :7] * 4).repeat(2, 0).astype(np.float32), half(ints(9, 2, 128, 5, 6) / 8 - 0.5)
case("likeliest_instance", lambda q, s, c: likeliest_instance(q, s, c, 0.6),
     lambda t, q, s, c: likeliest(t, q, s, c, 0.6),
     lambda q, s, c: likeliest_instance(-q, s, c, 0.6), *LIKELY, half([1, 0.9375, 0.875, 0, 0.75, 0.8125, 0.6875]),
     islands=(2,), tolerance=EXACT)

# ---- where TensorRT 8.6 has been wrong -----------------------------------------------------------------------------

SINES, LANES = uniform(-3, 3, 24, 16), normal(16, 8)
case("sin of positions", lambda x: F.matmul(F.cast(F.sin(x * (2 * math.pi) + 1.5), net_dtype()), weight(LANES)),
     lambda t, x: (x * (2 * math.pi) + 1.5).sin() @ t.tensor(LANES),
     lambda x: F.matmul(F.cast(F.cos(x * (2 * math.pi) + 1.5), net_dtype()), weight(LANES)), SINES, islands=(0,),
     tolerance=SUMS)

# ---- geometry of layers/, offered by executors ---------------------------------------------------------------------

SMALL = load_config("tiny_e2e").replace(bev_h=5, bev_w=6, rotate_center=(3, 2))
CAMERAS = normal(6, 4, 4, scale=8.0)
CAMERAS[:, 2] = half([0.05, -0.03, 0.1, 60])  # the depth: no point is near the camera's plane
case("point_sampling", lambda m: point_sampling(m, SMALL)[0], lambda t, m: projected(t, m, SMALL),
     lambda m: point_sampling(-m, SMALL)[0], CAMERAS, islands=(0,), tolerance=(1e-5, 5e-3))

LEVELS = [normal(2, 16, *shape) for shape in ((3, 4), (2, 2), (2, 1), (1, 1))]
IMAGE_EMBEDS, LEVEL_EMBEDS = normal(2, 16), normal(4, 16)


def flattened(t, *maps):
    embeds = t.tensor(IMAGE_EMBEDS)[:, None] + t.tensor(LEVEL_EMBEDS)  # (N,L,D)
    return t.cat([x.flatten(2).transpose(1, 2) + embeds[:, i, None] for i, x in enumerate(maps)], 1)


case("flatten_maps of a pyramid", lambda *x: flatten_maps(x, weight(IMAGE_EMBEDS), weight(LEVEL_EMBEDS)), flattened,
     lambda *x: flatten_maps(x, weight(IMAGE_EMBEDS), weight(LEVEL_EMBEDS[::-1].copy())), *LEVELS)
case("flatten_maps of one", lambda x: flatten_maps([x]), lambda t, x: x.flatten(2).transpose(1, 2),
     lambda x: flatten_maps([F.permute(x, (0, 1, 3, 2))]), LEVELS[0], tolerance=EXACT)
GRID = uniform(-1.25, 1.25, 1, 4, 5, 2)
case("sample_map", lambda x: sample_map(x, (3, 4)), lambda t, x: x.T.reshape(1, 16, 3, 4),
     lambda x: F.view(x, (1, 16, 3, 4)), normal(12, 16), tolerance=EXACT)
case("sample_map at a grid", lambda x: sample_map(x, (3, 4), GRID),
     lambda t, x: t.nn.functional.grid_sample(x.T.reshape(1, 16, 3, 4), t.tensor(GRID), align_corners=True),
     lambda x: sample_map(x, (3, 4), GRID[:, ::-1].copy()), normal(12, 16))

PIXELS = ints(256, 6, 5, 9, 3).astype(np.uint8)
PICTURE = SMALL.replace(image_height=5, image_width=9)  # padded to multiples of 32


def normalised(t, x):
    size = (0, PICTURE.padded_width - 9, 0, PICTURE.padded_height - 5)
    return t.nn.functional.pad((x.float() - t.tensor(PICTURE.image_mean)).permute(0, 3, 1, 2), size)


case("normalise_images", lambda x: normalise_images(x, PICTURE), normalised,
     lambda x: normalise_images(x, PICTURE.replace(image_mean=PICTURE.image_mean[::-1])), PIXELS)

BEV = [normal(9, 16) for _ in range(4)]


def joined(t, query, query_pos, prev_bev, bev_query, has_prev):
    history, current = (prev_bev, bev_query) if has_prev.item() else (query, query)
    return [t.cat([history, query + query_pos], 1), t.stack([history, current])]


for flag in (True, False):
    case(f"temporal_inputs with{'' if flag else 'out'} a history", lambda *x: list(temporal_inputs(*x)), joined,
         lambda *x: list(temporal_inputs(*x[:-1], F.not_op(x[-1]))), *BEV, np.array([flag]))

TURN, BACK = (half([[c, s, 0], [-s, c, 0], [0, 0, 1]]) for c, s in ((0.8, 0.6), (0.78125, -0.625)))
MOTION = (TURN, half([20, -31, 1]), half([22, -28.5, 1.25]), BACK, half([0.5]))
case("propagate", lambda r, v, *ego: propagate(r, v, EgoMotion(*ego), SMALL.pc_range),
     lambda t, r, v, *ego: moved(t, r, v, *ego, SMALL.pc_range),
     lambda r, v, *ego: propagate(r, -v, EgoMotion(*ego), SMALL.pc_range), normal(9, 3, scale=0.5),
     normal(9, 2, scale=3.0), *MOTION, islands=tuple(range(7)), tolerance=(3e-5, 2e-2))
