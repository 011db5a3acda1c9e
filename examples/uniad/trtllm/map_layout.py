"""Between maps, which convolutions read, and their cells as rows, which products and attention read.

Channels-last maps and rows are the same bytes, but TensorRT 8.6 turns planes to rows and back in several passes. An
executor that knows better offers a method of the same name and is asked first.
"""

from collections.abc import Sequence

import numpy as np

from trtllm import functional as F
from trtllm.network import Tensor
from trtllm.vision import grid_sample, offered


def flatten_maps(
    maps: Sequence[Tensor], image_embeds: Tensor | None = None, map_embeds: Tensor | None = None
) -> Tensor:
    """The cells of L maps (N,D,h,w), row by row, one map after another: (N,S,D).

    Added to each cell where given, before the cell: image_embeds (N,D) + map_embeds (L,D).
    """
    custom = offered("flatten_maps", maps, image_embeds, map_embeds)
    if custom is not None:
        return custom
    parts = []
    for index, x in enumerate(maps):
        cells = F.permute(F.view(x, (*x.shape[:2], -1), False), (0, 2, 1))  # (N,hw,D)
        if image_embeds is not None and map_embeds is not None:
            cells = cells + (F.unsqueeze(image_embeds, 1) + F.narrow(map_embeds, 0, index, 1))  # (N,1,D) added
        parts.append(cells)
    return F.concat(parts, 1) if len(parts) > 1 else parts[0]


def sample_map(rows: Tensor, shape: tuple[int, int], grid: np.ndarray | None = None) -> Tensor:
    """The map (1,D,H,W) of cells (H*W,D), or (1,D,h,w): its bilinear samples at float32 grid (1,h,w,2) in [-1,1].

    x stands first in the grid; -1 and 1 are the centres of the outermost cells; the map is 0 beyond them.
    """
    custom = offered("sample_map", rows, shape, grid)
    if custom is not None:
        return custom
    planes = F.view(F.transpose(rows, 0, 1), (1, rows.shape[1], *shape))  # (1,D,H,W)
    if grid is None:
        return planes
    # The sampling positions stay in float32: float16 would move them by a tenth of a cell.
    return F.cast(grid_sample(F.cast(planes, "float32"), F.constant(grid), align_corners=True), rows.dtype)
