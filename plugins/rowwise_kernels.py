"""Kernels that make row by row of their output: geometry, images and norms. Calls, inputs, what they must give."""

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as TF
from kernel_calls import TYPES, call_kernel, pointer, poisoned
from kernel_cases import Case
from kernel_structures import AddLayerNorm, NormaliseImages, PointSampling, Propagate, Rotate, TemporalInputs

MEAN = (103.53, 116.28, 123.675)  # image_mean of the configurations


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
    """Arguments of point_sampling, which must give what camera_rig_points does."""
    from layers.bev_geometry import MIN_DEPTH, pillar_points

    config, matrices = _rig(model)
    arrays = {"lidar2img": matrices, **dict(zip("xyz", pillar_points(config)))}
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    tensors |= {name: tensors[name].flatten().contiguous() for name in "xyz"}
    return {**tensors, "size": (config.padded_width, config.padded_height), "min_depth": MIN_DEPTH}


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


def propagate_case(device, tracks: int) -> Case:
    """Arguments of propagate: poses a kilometre from the origin, ten metres from each other."""

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


def rotate_case(dtype: torch.dtype, device, shape: tuple[int, int], channels: int, degrees: float) -> Case:
    """Arguments of rotate_nearest: any map, turned and moved by a third of a cell. The same everywhere."""
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


def images_case(
    dtype: torch.dtype, device, count: int, shape: tuple[int, int], size: tuple[int, int], channels_last: bool = False
) -> Case:
    """Arguments of normalise_images: images of h x w pixels, padded to `size`."""
    pixels = torch.randint(256, (count, *shape, 3), dtype=torch.int32)  # the same for every device
    return {"img": pixels.to(dtype).to(device), "mean": MEAN, "size": size, "channels_last": channels_last}


def images_reference(img: torch.Tensor, mean, size: tuple[int, int], channels_last: bool) -> torch.Tensor:
    """What normalise_images must give, to the bit."""
    pad = (0, size[1] - img.shape[2], 0, size[0] - img.shape[1])
    out = TF.pad((img.float() - torch.tensor(mean, device=img.device)).permute(0, 3, 1, 2).to(img.dtype), pad)
    return TF.pad(out.permute(0, 2, 3, 1), (0, 5)).contiguous() if channels_last else out.contiguous()


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


def norm_case(dtype: torch.dtype, device, rows: int, channels: int, residual: bool = True) -> Case:
    """Arguments of add_layer_norm: rows whose means are larger than their deviations, and whose sizes
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


def temporal_inputs_case(dtype: torch.dtype, device, cells: int, channels: int, has_prev: bool) -> Case:
    """Arguments of temporal_inputs; without a history NaNs in what must not be read."""
    names = ("query", "query_pos", "prev_bev", "bev_query")
    maps = {name: torch.randn(cells, channels, device=device).to(dtype) for name in names}
    if not has_prev:
        maps |= {name: torch.full_like(maps[name], math.nan) for name in names[2:]}
    return {**maps, "has_prev": torch.tensor([has_prev], dtype=torch.int32, device=device)}


def temporal_inputs_reference(query, query_pos, prev_bev, bev_query, has_prev) -> tuple[torch.Tensor, torch.Tensor]:
    """What temporal_inputs must give, to the bit."""
    history, current = (prev_bev, bev_query) if has_prev.item() else (query, query)
    return torch.cat([history, query + query_pos], 1), torch.stack([history, current])
