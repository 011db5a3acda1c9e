"""Weighted sums of bilinear samples on the CPU, as weighted sums of table rows.

torch's embedding_bag adds weighted rows of a table several times faster than grid_sample and a sum can, and needs no
memory for the single samples. A plane of h x w cells becomes a table of (h+2) x (w+2) rows with a border of zeros, so
that every corner of a sample has a row; positions farther outside are moved onto the border.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as TF

BLOCK = 2048  # queries or output pixels at a time: their rows, weights and sums stay in the cache


def bordered_rows(value: torch.Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, list[int]]:
    """Planes (S,…), S the sum of h*w, each with a border: (R,…), R the sum of (h+2)*(w+2), and where each begins."""
    sizes = [(h + 2) * (w + 2) for h, w in spatial_shapes]
    table = value.new_empty(sum(sizes), *value.shape[1:])
    planes = value.split([h * w for h, w in spatial_shapes])
    for (h, w), plane, space in zip(spatial_shapes, planes, table.split(sizes)):
        space = space.view(h + 2, w + 2, *value.shape[1:])
        space[1:-1, 1:-1] = plane.view(h, w, *value.shape[1:])
        for border in (space[0], space[-1], space[:, 0], space[:, -1]):
            border.zero_()
    return table, [sum(sizes[:level]) for level in range(len(sizes))]


def corner_rows(x, y, share, width, height, scale: int, start) -> tuple[torch.Tensor, torch.Tensor]:
    """Table rows and weights of the four cells around each position.

    Args:
        x, y: float32 (N,K), columns and rows in cells, 0 at the centre of the first; overwritten.
        share: float32 (N,K), the weight of each position.
        width, height: float32 (K) or (1), of the position's plane.
        scale, start: cell i of a plane's table is row `i * scale + start`; start broadcasts to (N,K).

    Returns:
        int32 (N,4*K) rows, counted in float32 on the way (exact below 2**24), and float32 (N,4*K) weights.
    """
    count, points = share.shape
    cells = []
    for position, size in ((x, width), (y, height)):
        position.clamp_(min=-1)
        torch.minimum(position, size, out=position)
        cells.append(torch.minimum(torch.floor(position), size - 1))
        position -= cells[-1]  # now the fraction beyond that cell
    line = (width + 2) * scale  # rows from one line of cells to the next
    first = (cells[1].add_(1).mul_(line).add_(cells[0].add_(1), alpha=scale) + start).to(torch.int32)
    first.clamp_(min=0)  # the position may be NaN: so is its weight, but the row must exist
    line = line.to(torch.int32)
    rows = torch.empty(count, 4, points, dtype=torch.int32)
    rows[:, 0] = first
    torch.add(first, scale, out=rows[:, 1])
    torch.add(first, line, out=rows[:, 2])
    torch.add(first, line + scale, out=rows[:, 3])
    weights = torch.empty(count, 4, points)
    lower = share * y
    upper = share - lower
    torch.mul(upper, x, out=weights[:, 1])
    torch.mul(lower, x, out=weights[:, 3])
    torch.sub(upper, weights[:, 1], out=weights[:, 0])
    torch.sub(lower, weights[:, 3], out=weights[:, 2])
    return rows.view(count, 4 * points), weights.view(count, 4 * points)


def weighted_rows(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of weights (N,K) times table (S,C) at rows (N,K) -> (N,C)."""
    return TF.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


class LevelTable:
    """The levels of one value (S,M,C), ready to be sampled."""

    def __init__(self, value: torch.Tensor, spatial_shapes: Sequence[tuple[int, int]]):
        self.heads, self.channels = value.shape[1:]
        table, starts = bordered_rows(value, spatial_shapes)
        self.rows = table.view(-1, self.channels)  # (R*M,C)
        self.width = torch.tensor([float(w) for _, w in spatial_shapes])  # (L)
        self.height = torch.tensor([float(h) for h, _ in spatial_shapes])
        head = torch.arange(self.heads, dtype=torch.float32).view(-1, 1)
        self.start = torch.tensor(starts) * self.heads + head  # (M,L)

    def sample(self, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """locations (Q,M,L,P,2) in [0,1] and weights (Q,M,L,P) -> (Q,M*C)."""
        q, points = weights.shape[0], weights.shape[3]
        width, height, start = (t.repeat_interleave(points, -1) for t in (self.width, self.height, self.start))
        out = torch.empty(q, self.heads * self.channels)
        for first in range(0, q, BLOCK):
            at, share = locations[first : first + BLOCK], weights[first : first + BLOCK]
            count = len(share)
            x, y = (
                # In the steps of grid_sample, which the original calls: the same rounding.
                (at[..., i] * 2).sub_(1).view(count * self.heads, -1).add_(1).mul_(size).sub_(1).mul_(0.5)
                for i, size in enumerate((width, height))
            )  # (qM,L*P) cells
            rows, share = corner_rows(x, y, share.reshape(x.shape), width, height, self.heads, start.repeat(count, 1))
            out[first : first + count] = weighted_rows(self.rows, rows, share).view(count, -1)
        return out


def deform_conv(
    images: torch.Tensor, offset_mask: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """vision.modulated_deform_conv2d: images (N,C,H,W), offset_mask (N,27,H',W'), weight (O,C,3,3) -> (N,O,H',W')."""
    (n, c, h, w), (o, _, kh, kw), (ho, wo) = images.shape, weight.shape, offset_mask.shape[2:]
    taps = kh * kw
    kernel = weight.permute(2, 3, 1, 0).reshape(taps * c, o)
    base_y = torch.arange(kh).repeat_interleave(kw).view(-1, 1, 1) + torch.arange(ho).view(1, -1, 1) * stride - padding
    base_x = torch.arange(kw).repeat(kh).view(-1, 1, 1) + torch.arange(wo).view(1, 1, -1) * stride - padding
    width, height = torch.tensor([float(w)]), torch.tensor([float(h)])
    out = torch.empty(n, ho * wo, o)
    for image, numbers, result in zip(images, offset_mask, out):
        table, _ = bordered_rows(image.view(c, h * w).T, [(h, w)])  # ((h+2)(w+2),C)
        offset = numbers[: 2 * taps].view(taps, 2, ho, wo)
        mask = torch.sigmoid(numbers[2 * taps :])
        x, y, share = (
            t.permute(1, 2, 0).reshape(ho * wo, taps) for t in (base_x + offset[:, 1], base_y + offset[:, 0], mask)
        )  # (H'W',9)
        for first in range(0, ho * wo, BLOCK // 2):
            block = slice(first, first + BLOCK // 2)
            at_x, at_y, part = (t[block].reshape(-1, 1) for t in (x, y, share))  # (9n,1)
            rows, shares = corner_rows(at_x, at_y, part, width, height, scale=1, start=0)  # (9n,4)
            columns = weighted_rows(table, rows, shares).view(-1, taps * c)  # (n,9C)
            torch.mm(columns, kernel, out=result[block])
    return out.view(n, ho, wo, o).permute(0, 3, 1, 2)  # channels last in memory
