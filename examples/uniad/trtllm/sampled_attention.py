"""Attention that samples maps at the places it predicts: deformable, temporal and to the cameras.

Compositions of plain operations. An executor that has something better (a plugin, a faster loop) offers a method of the
same name and is asked first.

Offsets (…,M,L,P,2) and logits can be one tensor: attention_logits None says that sampling_offsets is (…,3,M,L,P), of
whose 3*M*L*P numbers the first two thirds are offsets, the others logits. An executor that reads both in place says so
(`joint_samples`); for the others they are cut apart.
"""

from collections.abc import Sequence

import numpy as np

from trtllm import functional as F
from trtllm.network import Tensor
from trtllm.vision import after, grid_sample, offered

MANY_QUERIES = 10_000  # of the composed camera attention in float16, above which 8.6 takes the cameras one by one: in
# one region the full size (40000) gave NaN, parted the tiny one (2500) other results each time (docs/fidelity.md)


def deformable_attention(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    num_queries: int | None = None,
    first_head: int = 0,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al. 2021) with softmax and reference points inside.

    Args:
        value: (B,S,M,C) with S the sum of h*w over `spatial_shapes`, M heads; or (B,S,H,C) with more, those of other
            layers too, of which the heads [first_head, first_head + M) are read.
        reference_points: float32 (B,Q,L,2) x, y in [0,1], or (B,Q,L,4) with width and height after them; B may be 1
            where all maps have the same.
        sampling_offsets: (B,Q,M,L,P,2), in cells (2-d references) or in halves of width and height over P (4-d).
        attention_logits: (B,Q,M,L*P); the softmax runs over L*P. None: joint samples (B,Q,3,M,L,P).
        spatial_shapes: (h, w) of each real level.
        num_queries: set where L configured levels meet ONE real level: the original's CUDA kernel
            (mmcv ms_deform_attn_cuda_kernel.cuh) then walks the flat buffers of locations and weights, so that
            output query q and head m use entries [(q*M+m)*P, +P) of the flattened (Q,M,L,P). The tensors need only
            the ceil(num_queries/L) first queries.

    Returns:
        (B, num_queries or Q, M*C), in value's type.

    Raises:
        ValueError: value does not have these heads.
    """
    sampling_offsets, attention_logits = _samples(
        "deformable_attention", value, sampling_offsets, attention_logits, spatial_shapes
    )
    _check_heads("deformable_attention", sampling_offsets, attention_logits, first_head, value.shape[2])
    custom = offered(
        "deformable_attention",
        value,
        reference_points,
        sampling_offsets,
        attention_logits,
        spatial_shapes=tuple(spatial_shapes),
        num_queries=num_queries,
        first_head=first_head,
    )
    if custom is not None:
        return custom
    assert attention_logits is not None, "joint_samples promised more"
    locations, weights = sampling_points(
        reference_points, sampling_offsets, attention_logits, spatial_shapes, num_queries
    )
    value = F.narrow(value, 2, first_head, sampling_offsets.shape[2])  # (B,S,M,C)
    return after(sample_levels(value, locations, weights, spatial_shapes))


def _samples(
    operation: str,
    value: Tensor,
    offsets: Tensor,
    logits: Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    per_map: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Joint samples (…,3,M,L,P) as offsets (…,M,L,P,2) and logits (…,M,L*P), or (…,M,L,P) with per_map, unless the
    executor wants them as they are."""
    *lead, m, levels, points = offsets.shape
    count = m * levels * points
    if logits is not None or offered("joint_samples", operation, value.shape[3], tuple(spatial_shapes), count):
        return offsets, logits
    lead.pop()  # the 3
    rows = F.view(offsets, (*lead, 3 * count))
    offsets, logits = F.split(rows, [2 * count, count], -1)  # (…,2MLP) (…,MLP)
    inner = (levels, points) if per_map else (levels * points,)
    return F.view(offsets, (*lead, m, levels, points, 2)), F.view(logits, (*lead, m, *inner))


def _check_heads(operation: str, offsets: Tensor, logits: Tensor | None, first_head: int, value_heads: int) -> None:
    heads = offsets.shape[-3 if logits is None else -4]
    if first_head < 0 or first_head + heads > value_heads:
        raise ValueError(f"{operation}: {heads} heads from {first_head} of {value_heads}")


def sampling_points(
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    num_queries: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Locations (B,Q,M,L,P,2) in [0,1] and weights (B,Q,M,L,P), float32, of deformable_attention's arguments."""
    b, q, m, levels, points, _ = sampling_offsets.shape
    # Positions and the softmax stay in float32: float16 would move a point by up to 0.05 cells at 200 cells.
    offsets = F.cast(sampling_offsets, "float32")
    weights = F.softmax(F.cast(attention_logits, "float32"), -1)
    weights = F.view(weights, (b, q, m, levels, points))
    reference = F.view(reference_points, (-1, q, 1, levels, 1, reference_points.shape[-1]))  # (B|1,Q,1,L,1,2|4)
    if reference_points.shape[-1] == 2:
        shapes = [spatial_shapes[0]] * levels if len(spatial_shapes) == 1 else spatial_shapes
        scale = np.array([[1 / w, 1 / h] for h, w in shapes], np.float32).reshape(1, 1, 1, levels, 1, 2)
        locations = reference + offsets * F.constant(scale)  # (B,Q,M,L,P,2)
    else:
        centre, extent = F.narrow(reference, -1, 0, 2), F.narrow(reference, -1, 2, 2)
        locations = centre + offsets * (1 / points) * extent * 0.5
    if num_queries is not None:
        count = num_queries * m * points
        locations = F.narrow(F.view(locations, (b, -1, 2)), 1, 0, count)
        weights = F.narrow(F.view(weights, (b, -1)), 1, 0, count)
        locations = F.view(locations, (b, num_queries, m, 1, points, 2))
        weights = F.view(weights, (b, num_queries, m, 1, points))
    return locations, weights


def sample_levels(
    value: Tensor, locations: Tensor, weights: Tensor, spatial_shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Weighted sum of bilinear samples: value (B,S,M,C) at locations (B,Q,M,L,P,2), weights (B,Q,M,L,P)
    -> (B,Q,M*C) in value's type. Sampled in float32."""
    b, _, m, c = value.shape
    q, points = locations.shape[1], locations.shape[4]
    grid = F.permute(locations * 2.0 - 1.0, (0, 2, 1, 3, 4, 5))  # (B,M,Q,L,P,2)
    weights = F.permute(weights, (0, 2, 1, 3, 4))  # (B,M,Q,L,P)
    start, out = 0, None
    for level, (h, w) in enumerate(spatial_shapes):
        plane = F.narrow(value, 1, start, h * w)  # (B,hw,M,C)
        plane = F.view(F.permute(plane, (0, 2, 3, 1)), (b * m, c, h, w))
        points_at = F.view(F.select(grid, 3, level), (b * m, q, points, 2))
        samples = grid_sample(F.cast(plane, "float32"), points_at)  # (BM,C,Q,P)
        share = F.view(F.select(weights, 3, level), (b * m, 1, q, points))
        part = F.sum(samples * share, 3)  # (BM,C,Q)
        out = part if out is None else out + part
        start += h * w
    assert out is not None
    out = F.permute(F.view(out, (b, m * c, q)), (0, 2, 1))  # (B,Q,MC)
    return F.cast(out, value.dtype)


def temporal_attention(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor | None,
    spatial_shape: tuple[int, int],
) -> Tensor:
    """Deformable attention over B maps of one shape, averaged: BEVFormer's temporal self-attention (Li et al. 2022).

    Args:
        value: (B,S,M,C) with S = h * w, M heads.
        reference_points: float32 (Q,2) x, y in [0,1], the same for all maps.
        sampling_offsets: (Q,M,B,P,2) in cells, each map's own.
        attention_logits: (Q,M,B,P); the softmax runs over P. None: joint samples (Q,3,M,B,P).
        spatial_shape: (h, w).

    Returns:
        (Q,M*C), in value's type.
    """
    sampling_offsets, attention_logits = _samples(
        "temporal_attention", value, sampling_offsets, attention_logits, [spatial_shape], per_map=True
    )
    custom = offered(
        "temporal_attention",
        value,
        reference_points,
        sampling_offsets,
        attention_logits,
        spatial_shape=spatial_shape,
    )
    if custom is not None:
        return custom
    assert attention_logits is not None, "joint_samples promised more"
    q, m, b, p = attention_logits.shape
    reference = F.view(reference_points, (1, q, 1, 2))
    offsets = F.permute(F.view(sampling_offsets, (q, m, b, 1, p, 2)), (2, 0, 1, 3, 4, 5))  # (B,Q,M,1,P,2)
    logits = F.permute(attention_logits, (2, 0, 1, 3))  # (B,Q,M,P)
    return F.mean(deformable_attention(value, reference, offsets, logits, [spatial_shape]), 0)


def camera_cross_attention(
    value: Tensor,
    reference_points_cam: Tensor,
    visible: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    first_head: int = 0,
) -> Tensor:
    """BEVFormer's spatial cross-attention (Li et al. 2022) over all cameras, before its output projection.

    Args:
        value: (6,S,M,C), projected image features of each camera; or (6,S,H,C) with more heads, those of other layers
            too, of which the heads [first_head, first_head + M) are read.
        reference_points_cam: float32 (6,Q,Z,2), the pillar's Z anchors in each image, x, y in [0,1].
        visible: bool (6,Q,Z); a camera counts for a query where any of its anchors is visible.
        sampling_offsets: (Q,M,L,P,2) in cells, the same for all cameras; point p starts from anchor p % Z.
        attention_logits: (Q,M,L*P). None: joint samples (Q,3,M,L,P).
        spatial_shapes: (h, w) of the L levels.

    Returns:
        (Q,M*C): the mean over the cameras that see the query, 0 where none does.

    Raises:
        ValueError: value does not have these heads.
    """
    sampling_offsets, attention_logits = _samples(
        "camera_cross_attention", value, sampling_offsets, attention_logits, spatial_shapes
    )
    _check_heads("camera_cross_attention", sampling_offsets, attention_logits, first_head, value.shape[2])
    custom = offered(
        "camera_cross_attention",
        value,
        reference_points_cam,
        visible,
        sampling_offsets,
        attention_logits,
        spatial_shapes=tuple(spatial_shapes),
        first_head=first_head,
    )
    if custom is not None:
        return custom
    assert attention_logits is not None, "joint_samples promised more"
    cams, (q, m, levels, points, _), z = value.shape[0], sampling_offsets.shape, visible.shape[2]
    value = F.narrow(value, 2, first_head, m)  # (6,S,M,C)
    seen = F.max(F.cast(visible, "int32"), 2)  # (6,Q)
    count = F.maximum(F.cast(F.sum(seen, 0), "float32"), 1.0)  # (Q)
    weights = F.softmax(F.cast(attention_logits, "float32"), -1)
    weights = F.view(weights, (1, q, m, levels, points))
    scale = np.array([[1 / w, 1 / h] for h, w in spatial_shapes], np.float32).reshape(1, 1, levels, 1, 2)

    def scaled(cells: Tensor) -> Tensor:
        offsets = F.cast(cells, "float32") * F.constant(scale)  # (Q,M,L,P,2)
        return F.view(offsets, (1, q, m, levels, points // z, z, 2))

    total, one_by_one = None, value.dtype == "float16" and q > MANY_QUERIES
    offsets = None if one_by_one else scaled(sampling_offsets)
    for cam in range(cams):  # one camera at a time bounds the memory of the samples
        planes = None
        if one_by_one:
            planes = after(F.narrow(value, 0, cam, 1), sampling_offsets if total is None else total)  # (1,S,M,C)
            offsets = scaled(sampling_offsets if total is None else after(sampling_offsets, total))
        assert offsets is not None
        reference = F.view(F.select(reference_points_cam, 0, cam), (1, q, 1, 1, 1, z, 2))
        locations = F.view(reference + offsets, (1, q, m, levels, points, 2))
        # Not before: 8.6 was checked with the layers in this order.
        planes = F.narrow(value, 0, cam, 1) if planes is None else planes  # (1,S,M,C)
        out = sample_levels(planes, locations, weights, spatial_shapes)  # (1,Q,MC)
        here = F.cast(F.view(F.select(seen, 0, cam), (1, q, 1)), "bool")
        out = F.where(here, F.cast(out, "float32"), 0.0)
        total = out if total is None else total + out
    assert total is not None
    mean = F.squeeze(total, 0) / F.view(count, (q, 1))
    return after(F.cast(mean, value.dtype))
