"""Deformable attention and camera cross-attention (src/kernels/attention.cuh): calls, inputs, float64 references.

Sampling offsets are drawn as trained networks have them: Deformable DETR's start (each head looks in its own direction,
each point one cell farther) and noise around it. Shapes as in trtllm.sampled_attention.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as TF
from kernel_calls import TYPES, call_kernel, pointer, poisoned
from kernel_cases import Case, Shapes, cell_centres
from kernel_structures import CameraAttention, DeformableAttention, Levels

VARIANTS = range(10)  # of the attention kernels, in a library built with UNIAD_VARIANTS
HALF_BLEND = {1, 6, 8}  # variants that add a point's corners in float16


def _levels(spatial_shapes: Sequence[tuple[int, int]]) -> dict[str, ctypes.Array]:
    return {"height": Levels(*(h for h, _ in spatial_shapes)), "width": Levels(*(w for _, w in spatial_shapes))}


def _grid_width(queries: int, spatial_shapes: Sequence[tuple[int, int]]) -> int:
    """The columns of the map, where the queries are its cells; else 0."""
    h, w = spatial_shapes[0]
    return w if queries == h * w else 0


def _samples(offsets: torch.Tensor, logits: torch.Tensor | None) -> tuple[dict[str, int], tuple[int, ...]]:
    """Pointers and strides, and the sizes (M,L,P) of offsets (…,M,L,P,2); joint (…,3,M,L,P) where logits are None."""
    if logits is not None:
        return {"offsets": pointer(offsets), "logits": pointer(logits)}, tuple(offsets.shape[-4:-1])
    inner = tuple(offsets.shape[-3:])
    begin, count = pointer(offsets), math.prod(inner)
    behind = begin + 2 * count * offsets.element_size()
    return {"offsets": begin, "logits": behind, "offset_stride": 3 * count, "logit_stride": 3 * count}, inner


def _fields(
    value: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    first_head: int,
) -> tuple[dict[str, Any], tuple[int, int]]:
    """What both structures have, and the sizes (M,L) of the samples."""
    (_, cells, value_heads, channels), (samples, (heads, levels, points)) = value.shape, _samples(offsets, logits)
    sizes = {"cells": cells, "heads": heads, "channels": channels, "value_heads": value_heads, "points": points}
    fields = {"value": pointer(value), **samples, **sizes, "first_head": first_head, **_levels(spatial_shapes)}
    return fields, (heads, levels)


def deformable_attention(
    library: ctypes.CDLL,
    value: torch.Tensor,
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    num_queries: int | None = None,
    first_head: int = 0,
    mean: bool = False,
    grid_width: int | None = None,
    variant: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """trtllm.sampled_attention.deformable_attention; with `mean` its temporal_attention. `out` is used when given."""
    batch, channels = value.shape[0], value.shape[3]
    fields, (heads, levels) = _fields(value, sampling_offsets, attention_logits, spatial_shapes, first_head)
    source = reference_points.shape[0 if mean else 1]
    queries = num_queries or source
    if out is None:
        out = poisoned((queries, heads * channels) if mean else (batch, queries, heads * channels), value)
    arguments = DeformableAttention(
        **fields,
        reference=pointer(reference_points),
        out=pointer(out),
        batch=batch,
        queries=queries,
        source_queries=source,
        levels=1 if mean else levels,
        reference_size=reference_points.shape[-1],
        maps=len(spatial_shapes),
        grid_width=_grid_width(queries, spatial_shapes) * (num_queries is None) if grid_width is None else grid_width,
        flat_buffer=num_queries is not None,
        mean=mean,
    )
    call_kernel(library, "uniad_deformable_attention", arguments, value, TYPES[value.dtype], variant)
    return out


def camera_cross_attention(
    library: ctypes.CDLL,
    value: torch.Tensor,
    reference_points_cam: torch.Tensor,
    visible: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    first_head: int = 0,
    grid_width: int = 0,
    variant: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """trtllm.sampled_attention.camera_cross_attention; `visible` is int32 here. `out` is used when given."""
    fields, (heads, levels) = _fields(value, sampling_offsets, attention_logits, spatial_shapes, first_head)
    queries = len(sampling_offsets)
    assert visible.dtype == torch.int32
    if out is None:
        out = poisoned((queries, heads * value.shape[3]), value)
    arguments = CameraAttention(
        **fields,
        reference=pointer(reference_points_cam),
        visible=pointer(visible),
        out=pointer(out),
        cameras=len(value),
        queries=queries,
        anchors=visible.shape[2],
        levels=levels,
        grid_width=grid_width,
    )
    call_kernel(library, "uniad_camera_attention", arguments, value, TYPES[value.dtype], variant)
    return out


def spread_offsets(lead: Sequence[int], heads: int, inner: Sequence[int], points: int, device, noise: float = 0.5):
    """float32 (*lead, heads, *inner, points, 2) in cells."""
    angle = torch.arange(heads, device=device) * (2 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)  # (M,2)
    start = direction.view(heads, *(1 for _ in inner), 1, 2) * torch.arange(1, points + 1, device=device).view(-1, 1)
    return start + noise * torch.randn(*lead, heads, *inner, points, 2, device=device)


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
