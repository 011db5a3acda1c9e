"""Inputs of the kernels for checks and benchmarks, and what they must give: references in float64.

The merging of masks has its reference in tests/op_references.py.

Sampling offsets are drawn as trained networks have them: Deformable DETR's start (each head looks in its own direction,
each point one cell farther) and noise around it. Shapes as in trtllm.sampled_attention and
trtllm.vision.
"""

import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import kernel_calls
import numpy as np
import torch
import torch.nn.functional as TF

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples" / "uniad"))

from trtllm.plugin_library import HOPPER_CHANNELS, HOPPER_OUTPUTS
from trtllm.plugin_weights import pack_deform_weight

Shapes = Sequence[tuple[int, int]]
Case = dict[str, Any]


def spread_offsets(lead: Sequence[int], heads: int, inner: Sequence[int], points: int, device, noise: float = 0.5):
    """float32 (*lead, heads, *inner, points, 2) in cells."""
    angle = torch.arange(heads, device=device) * (2 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)  # (M,2)
    start = direction.view(heads, *(1 for _ in inner), 1, 2) * torch.arange(1, points + 1, device=device).view(-1, 1)
    return start + noise * torch.randn(*lead, heads, *inner, points, 2, device=device)


def cell_centres(h: int, w: int, device) -> torch.Tensor:
    """float32 (h*w,2), x then y in [0,1]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([(x + 0.5) / w, (y + 0.5) / h], -1).reshape(-1, 2).float()


def deformable_case(
    dtype: torch.dtype,
    device,
    shapes: Shapes,
    batch: int = 1,
    heads: int = 8,
    channels: int = 32,
    queries: int | None = None,
    levels: int = 1,
    points: int = 4,
    reference_size: int = 2,
    flat_buffer: bool = False,
    mean: bool = False,
) -> Case:
    """Arguments of deformable_attention; `queries` None: one per cell of the first map."""
    cells = sum(h * w for h, w in shapes)
    out_queries = queries or shapes[0][0] * shapes[0][1]
    count = -(-out_queries // levels) if flat_buffer else out_queries
    if queries is None:
        reference = cell_centres(*shapes[0], device)[:count].view(1, count, 1, 2).expand(batch, -1, levels, -1)
    else:
        reference = torch.rand(batch, count, levels, 2, device=device) * 1.2 - 0.1
    if reference_size == 4:
        reference = torch.cat([reference, torch.rand(batch, count, levels, 2, device=device) * 0.2], -1)
    if mean:
        reference = reference[0]  # (Q,1,2)
        offsets = spread_offsets((count,), heads, (batch,), points, device)
        logits = torch.randn(count, heads, batch, points, device=device)
    else:
        offsets = spread_offsets((batch, count), heads, (levels,), points, device)
        logits = torch.randn(batch, count, heads, levels * points, device=device)
    return {
        "value": torch.randn(batch, cells, heads, channels, device=device).to(dtype),
        "reference_points": reference.contiguous(),
        "sampling_offsets": offsets.to(dtype).contiguous(),
        "attention_logits": (logits * 2).to(dtype),
        "spatial_shapes": list(shapes),
        "num_queries": out_queries if flat_buffer else None,
        "mean": mean,
    }


def joint_samples(case: Case) -> Case:
    """The same with offsets and logits in one tensor (…,3,M,L,P): of each query's numbers the logits are the last."""
    offsets, logits = case["sampling_offsets"], case["attention_logits"]
    *lead, heads, levels, points, _ = offsets.shape
    rows = torch.cat([x.reshape(*lead, -1) for x in (offsets, logits)], -1)  # (…,3MLP)
    return {**case, "sampling_offsets": rows.view(*lead, 3, heads, levels, points), "attention_logits": None}


def camera_case(
    dtype: torch.dtype,
    device,
    shapes: Shapes,
    reference,
    visible,
    heads: int = 8,
    channels: int = 32,
    points: int = 8,
    value_heads: int | None = None,
    first_head: int = 0,
) -> Case:
    """Arguments of camera_cross_attention for the given float32 (N,Q,Z,2) and bool (N,Q,Z); `value_heads`: of value,
    where it has more than `heads`."""
    cameras, queries = visible.shape[:2]
    cells = sum(h * w for h, w in shapes)
    return {
        "value": torch.randn(cameras, cells, value_heads or heads, channels, device=device).to(dtype),
        "reference_points_cam": reference.to(device).contiguous(),
        "visible": visible.to(device).int().contiguous(),
        "sampling_offsets": spread_offsets((queries,), heads, (len(shapes),), points, device).to(dtype).contiguous(),
        "attention_logits": torch.randn(queries, heads, len(shapes) * points, device=device).to(dtype),
        "spatial_shapes": list(shapes),
        "first_head": first_head,
    }


def _rig(model: str):
    """The configuration, and lidar2img float32 (6,4,4) of six cameras as on nuScenes' vehicle."""
    from config import load_config
    from data.recipe import _lidar2img

    config = load_config(model)
    return config, _lidar2img(config.image_height, config.image_width).astype(np.float32)


def camera_rig_points(model: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What a rig of six cameras as on nuScenes' vehicle sees: points (6,Q,4,2), mask (6,Q,4), columns of the BEV."""
    from layers.bev_geometry import point_sampling
    from trtllm import Network, net_guard
    from trtllm import functional as F
    from trtllm.torch_executor import TorchExecutor

    config, matrices = _rig(model)
    with torch.inference_mode(), net_guard(Network(TorchExecutor("cpu"))):
        points, mask = point_sampling(F.constant(matrices), config)
        return points.handle.clone(), mask.handle.clone(), config.bev_w


def point_sampling_case(model: str, device) -> Case:
    """Arguments of kernel_calls.point_sampling, which must give what camera_rig_points does."""
    from layers.bev_geometry import MIN_DEPTH, pillar_points

    config, matrices = _rig(model)
    arrays = {"lidar2img": matrices, **dict(zip("xyz", pillar_points(config)))}
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    tensors |= {name: tensors[name].flatten().contiguous() for name in "xyz"}
    return {**tensors, "size": (config.padded_width, config.padded_height), "min_depth": MIN_DEPTH}


def _sample(value, locations, weights, shapes: Shapes) -> torch.Tensor:
    """float64: value (B,S,M,C) at locations (B,Q,M,L,P,2) in [0,1] with weights (B,Q,M,L,P) -> (B,Q,M*C)."""
    b, _, m, c = value.shape
    q, p = locations.shape[1], locations.shape[4]
    out = torch.zeros(b * m, c, q, dtype=torch.float64, device=value.device)
    start = 0
    for level, (h, w) in enumerate(shapes):
        plane = value[:, start : start + h * w].double().permute(0, 2, 3, 1).reshape(b * m, c, h, w)
        grid = (locations[:, :, :, level] * 2 - 1).permute(0, 2, 1, 3, 4).reshape(b * m, q, p, 2)
        share = weights[:, :, :, level].permute(0, 2, 1, 3).reshape(b * m, 1, q, p)
        out += (TF.grid_sample(plane, grid, align_corners=False) * share).sum(-1)
        start += h * w
    return out.view(b, m * c, q).transpose(1, 2)


def deformable_reference(
    value, reference_points, sampling_offsets, attention_logits, spatial_shapes, num_queries=None, mean=False
) -> torch.Tensor:
    """What deformable_attention must give, float64."""
    if mean:
        batch = value.shape[0]
        reference_points = reference_points.unsqueeze(0).expand(batch, -1, -1, -1)
        sampling_offsets = sampling_offsets.permute(2, 0, 1, 3, 4).unsqueeze(3)
        attention_logits = attention_logits.permute(2, 0, 1, 3)
    b, q, m, levels, points, _ = sampling_offsets.shape
    weights = attention_logits.double().softmax(-1).view(b, q, m, levels, points)
    reference = reference_points.double().view(b, q, 1, levels, 1, -1)
    cells = torch.tensor([(w, h) for h, w in spatial_shapes], dtype=torch.float64, device=value.device)
    offsets = sampling_offsets.double()
    if reference.shape[-1] == 2:
        locations = reference + offsets / cells.view(-1, 1, 2)
    else:
        locations = reference[..., :2] + offsets * reference[..., 2:] * (0.5 / points)
    if num_queries is not None:  # blocks of P entries of the flat buffers, one per query and head
        count = num_queries * m * points
        locations = locations.reshape(b, -1, 2)[:, :count].view(b, num_queries, m, 1, points, 2)
        weights = weights.reshape(b, -1)[:, :count].view(b, num_queries, m, 1, points)
    out = _sample(value, locations, weights, spatial_shapes)
    return out.mean(0) if mean else out


def camera_reference(
    value, reference_points_cam, visible, sampling_offsets, attention_logits, spatial_shapes, first_head=0
) -> torch.Tensor:
    """What camera_cross_attention must give, float64."""
    q, m, levels, points, _ = sampling_offsets.shape
    value = value[:, :, first_head : first_head + m]
    weights = attention_logits.double().softmax(-1).view(q, m, levels, points)
    cells = torch.tensor([(w, h) for h, w in spatial_shapes], dtype=torch.float64, device=value.device)
    offsets = sampling_offsets.double() / cells.view(levels, 1, 2)
    anchor = torch.arange(points, device=value.device) % visible.shape[2]
    out = torch.zeros(q, m * value.shape[3], dtype=torch.float64, device=value.device)
    count = torch.zeros(q, 1, dtype=torch.float64, device=value.device)
    for camera in range(value.shape[0]):
        rows = visible[camera].any(-1).nonzero().squeeze(1)
        locations = reference_points_cam[camera, rows].double()[:, None, None, anchor] + offsets[rows]
        out[rows] += _sample(value[camera : camera + 1], locations[None], weights[None, rows], spatial_shapes)[0]
        count[rows] += 1
    return out / count.clamp(min=1)


def deform_conv_case(
    dtype: torch.dtype, device, size: tuple[int, int, int, int], outputs: int, stride: int = 1, relu: bool = True
) -> Case:
    """What deform_conv_arguments and deform_conv_reference take.

    `plain_weight` is (O,C,3,3), `hopper_weight` None where the Hopper kernel doesn't take these sizes.
    """
    n, c, h, w = size
    ho, wo = (h - 1) // stride + 1, (w - 1) // stride + 1
    offset_mask = torch.randn(n, 27, ho, wo, device=device)
    offset_mask[:, :18] *= 1.5  # pixels
    offset_mask[:, :18, 0, 0] = 3e4  # far outside, on both sides
    offset_mask[:, 1:18:2, -1, -1] = -3e4
    weight = torch.randn(outputs, c, 3, 3, device=device).div((9 * c) ** 0.5).to(dtype)
    layout = torch.channels_last if dtype == torch.float16 else torch.contiguous_format
    for_hopper = dtype == torch.float16 and outputs % HOPPER_OUTPUTS == 0 and c % HOPPER_CHANNELS == 0
    return {
        "x": torch.randn(n, c, h, w, device=device).to(dtype).contiguous(memory_format=layout),
        "offset_mask": offset_mask.to(dtype),
        "weight": pack_weight(weight),
        "bias": torch.randn(outputs, device=device),
        "relu": relu,
        "stride": stride,
        "plain_weight": weight,
        "hopper_weight": pack_weight(weight, kernel_calls.HOPPER_LAYOUT) if for_hopper else None,
    }


def deform_conv_arguments(case: Case, layout: int = kernel_calls.COMMON_LAYOUT) -> Case:
    """Arguments of kernel_calls.deform_conv, with the weight in the layout."""
    weight = case["hopper_weight" if layout == kernel_calls.HOPPER_LAYOUT else "weight"]
    return {**{key: x for key, x in case.items() if not key.endswith("_weight")}, "weight": weight, "layout": layout}


def pack_weight(weight: torch.Tensor, layout: int = kernel_calls.COMMON_LAYOUT) -> torch.Tensor:
    """(O,C,3,3) in the order that the kernel of its type and layout reads."""
    return torch.from_numpy(pack_deform_weight(weight.cpu().numpy(), layout)).to(weight.device)


def deform_conv_reference(
    x, offset_mask, plain_weight, bias, relu, stride, weight=None, hopper_weight=None
) -> torch.Tensor:
    """What deform_conv must give, float64, one image at a time; of the weights only `plain_weight` is read."""
    (n, c, h, w), (ho, wo) = x.shape, offset_mask.shape[2:]
    out = []
    tap = torch.arange(9, device=x.device).view(9, 1, 1)
    base_y = torch.arange(ho, device=x.device).view(1, -1, 1) * stride - 1 + tap // 3
    base_x = torch.arange(wo, device=x.device).view(1, 1, -1) * stride - 1 + tap % 3
    for i in range(n):
        offset = offset_mask[i, :18].double().view(9, 2, ho, wo)
        y, x_ = base_y + offset[:, 0], base_x + offset[:, 1]  # (9,H',W')
        grid = torch.stack([(2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1], -1).view(1, 9 * ho, wo, 2)
        columns = TF.grid_sample(x[i : i + 1].double(), grid, align_corners=False).view(c, 9, ho, wo)
        columns = columns * offset_mask[i, 18:].double().sigmoid()
        product = plain_weight.double().view(-1, 9 * c) @ columns.view(9 * c, ho * wo)
        out.append(product.view(-1, ho, wo) + bias.double().view(-1, 1, 1))
    result = torch.stack(out)
    return result.relu() if relu else result


def merge_case(device, count: int, size: tuple[int, int], num_classes: int = 3) -> Case:
    """Arguments of kernel_calls.merge_masks: soft ellipses on a map of h x w cells, two fifths of them with good class
    scores, as a trained map head gives them. The same for every device."""
    (h, w), cells = size, cell_centres(*size, "cpu")
    centre, angle = torch.rand(count, 1, 2), torch.rand(count, 1) * math.pi
    x, y = (cells - centre).unbind(-1)  # (N,P)
    radius = torch.rand(count, 1, 2) * 0.35 + 1.0 / min(h, w)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    distance = torch.hypot(along / radius[..., 0], across / (0.3 * radius[..., 1]))
    masks = torch.sigmoid(6 * (torch.rand(count, 1) * 0.4 + 0.8 - distance))
    scores = torch.rand(count) * torch.where(torch.rand(count) < 0.4, 0.9, 0.1)
    labels = torch.randint(num_classes, (count,), dtype=torch.int32)
    tensors = {"masks": masks, "scores": scores, "labels": labels}
    return {
        **{name: x.to(device).contiguous() for name, x in tensors.items()},
        "num_classes": num_classes,
        "quality_thresh": 0.1,
    }


def propagate_case(device, tracks: int) -> Case:
    """Arguments of kernel_calls.propagate: poses a kilometre from the origin, ten metres from each other."""

    def rotation(degrees: float) -> torch.Tensor:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    here = torch.tensor([1208.3, -873.9, 4.1])
    tensors = {
        "ref_pts": torch.randn(tracks, 3) * 2,
        "velocity": torch.randn(tracks, 2) * 5,
        "l2g_r_prev": rotation(31.0),
        "l2g_t_prev": here - torch.tensor([6.1, -7.7, 0.2]),
        "l2g_t": here,
        "l2g_r_inv": rotation(-33.0),
        "time_delta": torch.tensor([0.5]),
    }
    return {name: x.to(device) for name, x in tensors.items()}


def propagate_reference(range_: tuple[float, ...], **tensors: torch.Tensor) -> torch.Tensor:
    """layers.track_life_cycle.propagate as the torch executor gives it on the CPU; range_ as config.pc_range."""
    from layers.track_life_cycle import EgoMotion, propagate
    from trtllm import Network, net_guard
    from trtllm.functional import make
    from trtllm.torch_executor import torch_executor

    with torch.inference_mode(), net_guard(Network(torch_executor("cpu"), "float32")):
        ref_pts, velocity, *motion = (make(x.cpu(), "float32") for x in tensors.values())
        return propagate(ref_pts, velocity, EgoMotion(*motion), range_).handle


def rotate_case(dtype: torch.dtype, device, shape: tuple[int, int], channels: int, degrees: float) -> Case:
    """Arguments of kernel_calls.rotate_nearest: any map, turned and moved by a third of a cell. The same everywhere."""
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cosine, sine, 1 / 3], [-sine, cosine, -1 / 3]])
    x = torch.randn(shape[0] * shape[1], channels).to(dtype)
    return {"input": x.to(device), "matrix": matrix.to(device), "shape": shape}


def rotate_reference(input: torch.Tensor, matrix: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """layers.bev_geometry.rotate_nearest as the torch executor gives it on the CPU."""
    from layers.bev_geometry import rotate_nearest
    from trtllm import Network, net_guard
    from trtllm.functional import make
    from trtllm.torch_executor import TORCH, torch_executor

    name = next(name for name, dtype in TORCH.items() if dtype == input.dtype)
    with torch.inference_mode(), net_guard(Network(torch_executor("cpu"), name)):
        return rotate_nearest(make(input.cpu(), name), make(matrix.cpu(), "float32"), shape).handle


MEAN = (103.53, 116.28, 123.675)  # image_mean of the configurations


def images_case(
    dtype: torch.dtype, device, count: int, shape: tuple[int, int], size: tuple[int, int], channels_last: bool = False
) -> Case:
    """Arguments of kernel_calls.normalise_images: images of h x w pixels, padded to `size`."""
    pixels = torch.randint(256, (count, *shape, 3), dtype=torch.int32)  # the same for every device
    return {"img": pixels.to(dtype).to(device), "mean": MEAN, "size": size, "channels_last": channels_last}


def images_reference(img: torch.Tensor, mean, size: tuple[int, int], channels_last: bool) -> torch.Tensor:
    """What normalise_images must give, to the bit."""
    pad = (0, size[1] - img.shape[2], 0, size[0] - img.shape[1])
    out = TF.pad((img.float() - torch.tensor(mean, device=img.device)).permute(0, 3, 1, 2).to(img.dtype), pad)
    return TF.pad(out.permute(0, 2, 3, 1), (0, 5)).contiguous() if channels_last else out.contiguous()


def temporal_inputs_case(dtype: torch.dtype, device, cells: int, channels: int, has_prev: bool) -> Case:
    """Arguments of kernel_calls.temporal_inputs; without a history NaNs in what must not be read."""
    names = ("query", "query_pos", "prev_bev", "bev_query")
    maps = {name: torch.randn(cells, channels, device=device).to(dtype) for name in names}
    if not has_prev:
        maps |= {name: torch.full_like(maps[name], math.nan) for name in names[2:]}
    return {**maps, "has_prev": torch.tensor([has_prev], dtype=torch.int32, device=device)}


def temporal_inputs_reference(query, query_pos, prev_bev, bev_query, has_prev) -> tuple[torch.Tensor, torch.Tensor]:
    """What temporal_inputs must give, to the bit."""
    history, current = (prev_bev, bev_query) if has_prev.item() else (query, query)
    return torch.cat([history, query + query_pos], 1), torch.stack([history, current])


def norm_case(dtype: torch.dtype, device, rows: int, channels: int, residual: bool = True) -> Case:
    """Arguments of kernel_calls.add_layer_norm: rows whose means are larger than their deviations, and whose sizes
    differ by a thousand."""
    size = torch.logspace(-2, 1, rows, device=device).view(-1, 1)
    x = (torch.randn(rows, channels, device=device) + 4) * size
    return {
        "x": x.to(dtype),
        "residual": (torch.randn(rows, channels, device=device) * size).to(dtype) if residual else None,
        "weight": torch.rand(channels, device=device) + 0.5,
        "bias": torch.randn(channels, device=device),
    }


def norm_reference(x, residual, weight, bias) -> torch.Tensor:
    """What add_layer_norm must give, float64; the sum is not rounded."""
    total = x.double() if residual is None else x.double() + residual.double()
    return TF.layer_norm(total, x.shape[-1:], weight.double(), bias.double())


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the Euclidean norm; infinite where a number is missing or shapes differ."""
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return math.inf
    return float((actual.double() - expected).norm() / expected.norm())


def rounding_noise(expected: torch.Tensor, dtype: torch.dtype) -> float:
    """The relative error of the exact result when it is merely stored as `dtype`."""
    return relative_error(expected.to(dtype), expected)
