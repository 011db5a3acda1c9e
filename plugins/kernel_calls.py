"""The kernels called on torch tensors through their C interface (src/kernels.h), without TensorRT.

For tests and benchmarks. The host build of the kernels (tests/kernels_host.cpp) takes CPU tensors, the CUDA library
tensors on the GPU. Outputs are filled with NaN first, so that an unwritten element can't pass for a result.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from kernel_structures import (
    AddLayerNorm,
    CameraAttention,
    DeformableAttention,
    DeformConv,
    Levels,
    MergeMasks,
    NormaliseImages,
    PointSampling,
    Propagate,
    Rotate,
    TemporalInputs,
)

VARIANTS = range(10)  # of the attention kernels, in a library built with UNIAD_VARIANTS
CONV_VARIANTS = range(9)  # of the float16 deformable convolution with COMMON_LAYOUT; see conv_variants
WIDE_VARIANT = 6  # for multiples of 512 channels
COMMON_LAYOUT, HOPPER_LAYOUT = 0, 1  # of its weight: UniadWeightLayout
HALF_BLEND = {1, 6, 8}  # variants that add a point's corners in float16
TYPES = {torch.float32: 0, torch.float16: 1}


def load(path) -> ctypes.CDLL:
    """The library at `path`."""
    return ctypes.CDLL(str(path))


def poisoned(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """NaNs of the given shape, -1 for whole numbers."""
    value = float("nan") if like.is_floating_point() else -1
    return torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)


def pointer(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
    return tensor.data_ptr()


def call_kernel(
    library: ctypes.CDLL, function: str, arguments: ctypes.Structure, like: torch.Tensor, *options: int
) -> None:
    """`options`: what the function takes between the arguments and the stream (type, variant)."""
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else None
    error = getattr(library, function)(ctypes.byref(arguments), *map(ctypes.c_int, options), ctypes.c_void_p(stream))
    if error:
        raise RuntimeError(f"{function}: error {error} for {like.dtype}, type and variant {options}")


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
    batch, cells, value_heads, channels = value.shape
    samples, (heads, levels, points) = _samples(sampling_offsets, attention_logits)
    source = reference_points.shape[0 if mean else 1]
    queries = num_queries or source
    if out is None:
        out = poisoned((queries, heads * channels) if mean else (batch, queries, heads * channels), value)
    arguments = DeformableAttention(
        value=pointer(value),
        reference=pointer(reference_points),
        **samples,
        out=pointer(out),
        batch=batch,
        cells=cells,
        heads=heads,
        channels=channels,
        value_heads=value_heads,
        first_head=first_head,
        queries=queries,
        source_queries=source,
        levels=1 if mean else levels,
        points=points,
        reference_size=reference_points.shape[-1],
        maps=len(spatial_shapes),
        **_levels(spatial_shapes),
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
    cameras, cells, value_heads, channels = value.shape
    queries, (samples, (heads, levels, points)) = len(sampling_offsets), _samples(sampling_offsets, attention_logits)
    assert visible.dtype == torch.int32
    if out is None:
        out = poisoned((queries, heads * channels), value)
    arguments = CameraAttention(
        value=pointer(value),
        reference=pointer(reference_points_cam),
        visible=pointer(visible),
        **samples,
        out=pointer(out),
        cameras=cameras,
        cells=cells,
        heads=heads,
        channels=channels,
        value_heads=value_heads,
        first_head=first_head,
        queries=queries,
        anchors=visible.shape[2],
        levels=levels,
        points=points,
        **_levels(spatial_shapes),
        grid_width=grid_width,
    )
    call_kernel(library, "uniad_camera_attention", arguments, value, TYPES[value.dtype], variant)
    return out


def deform_conv(
    library: ctypes.CDLL,
    x: torch.Tensor,
    offset_mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    relu: bool = False,
    stride: int = 1,
    padding: int = 1,
    layout: int = COMMON_LAYOUT,
    variant: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """relu(DCNv2 + bias): (N,C,H,W) -> (N,O,H',W'); float16 tensors lie in channels_last order.

    Args:
        offset_mask: (N,27,H',W'), or a view of more channels, in either order.
        weight: as packed by trtllm.plugin_weights.pack_deform_weight for `layout`.
        bias: float32 (O).
    """
    n, c, h, w = x.shape
    o, (ho, wo) = bias.shape[0], offset_mask.shape[2:]
    order = torch.channels_last if x.dtype == torch.float16 else torch.contiguous_format
    if out is None:
        out = poisoned((n, o, ho, wo), x).contiguous(memory_format=order)
    assert x.is_contiguous(memory_format=order) and out.is_contiguous(memory_format=order)
    assert offset_mask.stride(2) == wo * offset_mask.stride(3)
    arguments = DeformConv(
        input=x.data_ptr(),
        offset_mask=offset_mask.data_ptr(),
        weight=pointer(weight),
        bias=pointer(bias),
        out=out.data_ptr(),
        batch=n,
        channels=c,
        height=h,
        width=w,
        out_channels=o,
        out_height=ho,
        out_width=wo,
        stride=stride,
        padding=padding,
        relu=relu,
        offset_image=offset_mask.stride(0),
        offset_channel=offset_mask.stride(1),
        offset_pixel=offset_mask.stride(3),
        layout=layout,
    )
    call_kernel(library, "uniad_deform_conv", arguments, x, TYPES[x.dtype], variant)
    return out


def merge_workspace(library: ctypes.CDLL, masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Scratch memory of merge_masks, filled with ones. Empty for sizes that it doesn't take."""
    library.uniad_merge_masks_workspace.restype = ctypes.c_size_t
    size = library.uniad_merge_masks_workspace(*masks.shape, num_classes)
    return torch.full((size,), 255, dtype=torch.uint8, device=masks.device)


def merge_masks(
    library: ctypes.CDLL,
    masks: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    quality_thresh: float,
    workspace: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """layers.seg_merge.merge_masks: (lane int32, lane_score float32), both (C,P). `workspace` and `out` are used when
    given."""
    assert (masks.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int32)
    count, pixels = masks.shape
    lane, lane_score = out or (poisoned((num_classes, pixels), like) for like in (labels, masks))
    if workspace is None:
        workspace = merge_workspace(library, masks, num_classes)
    arguments = MergeMasks(
        masks=pointer(masks),
        scores=pointer(scores),
        labels=pointer(labels),
        lane=pointer(lane),
        lane_score=pointer(lane_score),
        workspace=pointer(workspace),
        count=count,
        pixels=pixels,
        classes=num_classes,
        quality_thresh=quality_thresh,
    )
    call_kernel(library, "uniad_merge_masks", arguments, masks)
    return lane, lane_score


def point_sampling(
    library: ctypes.CDLL,
    lidar2img: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    size: tuple[float, float],
    min_depth: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """layers.bev_geometry.point_sampling: lidar2img (N,4,4), x, y (B), z (Z), all float32 -> reference points (N,B,Z,2)
    and int32 visible (N,B,Z)."""
    assert {t.dtype for t in (lidar2img, x, y, z)} == {torch.float32}
    shape = (len(lidar2img), len(x), len(z))
    reference = poisoned((*shape, 2), lidar2img)
    visible = poisoned(shape, torch.empty(0, dtype=torch.int32, device=lidar2img.device))
    arguments = PointSampling(
        lidar2img=pointer(lidar2img),
        x=pointer(x),
        y=pointer(y),
        z=pointer(z),
        reference=pointer(reference),
        visible=pointer(visible),
        cameras=shape[0],
        cells=shape[1],
        anchors=shape[2],
        width=size[0],
        height=size[1],
        min_depth=min_depth,
    )
    call_kernel(library, "uniad_point_sampling", arguments, lidar2img)
    return reference, visible


def propagate(
    library: ctypes.CDLL, ref_pts: torch.Tensor, *others: torch.Tensor, low: Sequence[float], size: Sequence[float]
) -> torch.Tensor:
    """ref_pts (T,3), then velocity, l2g_r_prev, l2g_t_prev, l2g_t, l2g_r_inv, time_delta, all float32 -> (T,3)."""
    tensors = (ref_pts, *others)
    assert len(tensors) == 7 and {t.dtype for t in tensors} == {torch.float32}
    out, names = poisoned(ref_pts.shape, ref_pts), [name for name, _ in Propagate._fields_]
    arguments = Propagate(
        **dict(zip(names, map(pointer, tensors))),
        out=pointer(out),
        tracks=len(ref_pts),
        low=tuple(low),
        size=tuple(size),
    )
    call_kernel(library, "uniad_propagate", arguments, ref_pts)
    return out


def rotate_nearest(
    library: ctypes.CDLL,
    input: torch.Tensor,
    matrix: torch.Tensor,
    shape: tuple[int, int],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """layers.bev_geometry.rotate_nearest: (H*W,C), float32 (2,3) -> (H*W,C)."""
    assert matrix.dtype == torch.float32 and matrix.shape == (2, 3)
    (height, width), out = shape, poisoned(input.shape, input) if out is None else out
    arguments = Rotate(
        input=pointer(input),
        matrix=pointer(matrix),
        out=out.data_ptr(),
        height=height,
        width=width,
        channels=input.shape[1],
    )
    call_kernel(library, "uniad_rotate", arguments, input, TYPES[input.dtype])
    return out


def normalise_images(
    library: ctypes.CDLL,
    img: torch.Tensor,
    mean: Sequence[float],
    size: tuple[int, int],
    channels_last: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """layers.resnet.normalise_images: (N,H,W,3) -> (N,3,H',W'), or float16 (N,H',W',8) with channels_last."""
    out = poisoned((len(img), *size, 8) if channels_last else (len(img), 3, *size), img) if out is None else out
    arguments = NormaliseImages(
        input=pointer(img),
        out=pointer(out),
        images=img.shape[0],
        height=img.shape[1],
        width=img.shape[2],
        out_height=size[0],
        out_width=size[1],
        channels_last=channels_last,
        mean=tuple(mean),
    )
    call_kernel(library, "uniad_normalise_images", arguments, img, TYPES[img.dtype])
    return out


def add_layer_norm(
    library: ctypes.CDLL,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """trtllm.vision.add_layer_norm: (…,D), (…,D) or None, float32 (D) and (D) -> (…,D)."""
    assert weight.dtype == bias.dtype == torch.float32 and weight.shape == bias.shape == x.shape[-1:]
    assert residual is None or (residual.shape, residual.dtype) == (x.shape, x.dtype)
    out = poisoned(x.shape, x) if out is None else out
    arguments = AddLayerNorm(
        input=pointer(x),
        residual=None if residual is None else pointer(residual),
        gain=pointer(weight),
        shift=pointer(bias),
        out=pointer(out),
        rows=x[..., 0].numel(),
        channels=x.shape[-1],
        eps=eps,
    )
    call_kernel(library, "uniad_add_layer_norm", arguments, x, TYPES[x.dtype])
    return out


def temporal_inputs(
    library: ctypes.CDLL,
    query: torch.Tensor,
    query_pos: torch.Tensor,
    prev_bev: torch.Tensor,
    bev_query: torch.Tensor,
    has_prev: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """layers.bev_encoder.temporal_inputs: four (B,D) and int32 (1) -> pair (B,2D) and maps (2,B,D)."""
    maps = (query, query_pos, prev_bev, bev_query)
    assert has_prev.dtype == torch.int32 and len({(t.shape, t.dtype) for t in maps}) == 1
    cells, channels = query.shape
    pair, both = out or (poisoned(shape, query) for shape in ((cells, 2 * channels), (2, cells, channels)))
    arguments = TemporalInputs(
        query=pointer(query),
        position=pointer(query_pos),
        prev_bev=pointer(prev_bev),
        bev_query=pointer(bev_query),
        has_prev=pointer(has_prev),
        pair=pointer(pair),
        maps=pointer(both),
        cells=cells,
        channels=channels,
    )
    call_kernel(library, "uniad_temporal_inputs", arguments, query, TYPES[query.dtype])
    return pair, both


def deform_conv_layout(library: ctypes.CDLL, x: torch.Tensor, outputs: int) -> int:
    """How the fastest kernel for (N,C,H,W) on this GPU reads its weight."""
    n, c, h, w = x.shape
    return library.uniad_deform_conv_layout(n * h * w, c, outputs) if x.dtype == torch.float16 else COMMON_LAYOUT


def conv_variants(facts: dict[str, str], outputs: int) -> list[int]:
    """The variants of the float16 deformable convolution with COMMON_LAYOUT that a library of these facts has."""
    if facts["variants"] != "1" or outputs % 256:
        return [0]
    return [variant for variant in CONV_VARIANTS if variant != WIDE_VARIANT or outputs % 512 == 0]


def build_facts(library: ctypes.CDLL) -> dict[str, str]:
    """What uniad_plugins_build says: version, cuda, tensorrt, architectures, variants."""
    library.uniad_plugins_build.restype = ctypes.c_char_p
    return dict(fact.split("=", 1) for fact in library.uniad_plugins_build().decode().split())
