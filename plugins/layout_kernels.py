"""The kernels between maps and rows of cells (src/kernels/map_layout.cuh): calls, inputs, and what they must give."""

import ctypes
from collections.abc import Sequence

import torch
from kernel_calls import call_kernel, pointer, poisoned
from kernel_cases import Case
from kernel_structures import MAX_LEVELS, FlattenMaps, Levels, SampleMap


def flatten_maps(
    library: ctypes.CDLL, maps: Sequence[torch.Tensor], embeds: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """trtllm.map_layout.flatten_maps: float16 maps (N,D,h,w), channels last, embeds (N,L,D) or None -> (N,S,D)."""
    (n, d), cells = maps[0].shape[:2], [x.shape[2] * x.shape[3] for x in maps]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    out = poisoned((n, sum(cells), d), maps[0]) if out is None else out
    arguments = FlattenMaps(
        input=(ctypes.c_void_p * MAX_LEVELS)(*(x.data_ptr() for x in maps)),
        embeds=None if embeds is None else pointer(embeds),
        out=pointer(out),
        images=n,
        channels=d,
        maps=len(maps),
        cells=Levels(*cells),
    )
    call_kernel(library, "uniad_flatten_maps", arguments, out)
    return out


def flatten_case(device, images: int, channels: int, shapes: Sequence[tuple[int, int]], embeds: bool = True) -> Case:
    """Arguments of flatten_maps."""
    maps = [torch.randn(images, h, w, channels, device=device).half().permute(0, 3, 1, 2) for h, w in shapes]
    added = torch.randn(images, len(maps), channels, device=device).half() if embeds else None
    return {"maps": maps, "embeds": added}


def flatten_reference(maps: Sequence[torch.Tensor], embeds: torch.Tensor | None) -> torch.Tensor:
    """What flatten_maps must give, to the bit."""
    rows = [x.flatten(2).transpose(1, 2) for x in maps]
    return torch.cat([x if embeds is None else x + embeds[:, i, None] for i, x in enumerate(rows)], 1)


def sample_map(
    library: ctypes.CDLL,
    rows: torch.Tensor,
    shape: tuple[int, int],
    positions: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows of trtllm.map_layout.sample_map's map: float16 (H*W,D), float32 positions (P,2) in cells -> (P,D)."""
    (height, width), channels = shape, rows.shape[1]
    assert len(rows) == height * width and (positions is None or positions.dtype == torch.float32)
    points = len(rows) if positions is None else len(positions)
    out = poisoned((points, channels), rows) if out is None else out
    arguments = SampleMap(
        input=pointer(rows),
        positions=None if positions is None else pointer(positions),
        out=pointer(out),
        height=height,
        width=width,
        points=points,
        channels=channels,
    )
    call_kernel(library, "uniad_sample_map", arguments, rows)
    return out


def sample_case(device, shape: tuple[int, int], channels: int, points: int | None) -> Case:
    """Arguments of sample_map: positions inside, on cells' centres and outside; None: the map as it is."""
    size = torch.tensor([shape[1], shape[0]], device=device)
    positions = None
    if points is not None:
        positions = torch.rand(points, 2, device=device) * (size + 3) - 2
        positions[::3] = positions[::3].round()
    rows = torch.randn(shape[0] * shape[1], channels, device=device).half()
    return {"rows": rows, "shape": shape, "positions": positions}


def sample_reference(rows: torch.Tensor, shape: tuple[int, int], positions: torch.Tensor | None) -> torch.Tensor:
    """What sample_map must give, float64."""
    if positions is None:
        return rows.double()
    planes = rows.double().T.reshape(1, -1, *shape)
    size = torch.tensor([shape[1], shape[0]], device=rows.device)
    grid = (2 * positions.double() + 1) / size - 1
    samples = torch.nn.functional.grid_sample(planes, grid.view(1, 1, -1, 2), align_corners=False)
    return samples[0, :, 0].T
