"""The torch executor: each functional call computes at once, on the CPU or a CUDA device."""

import math

import numpy as np
import torch
import torch.nn.functional as TF

from trtllm import vision
from trtllm.functional import make
from trtllm.network import Tensor

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
UNARY = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "abs": torch.abs,
    "neg": torch.neg,
    "round": torch.round,
    "floor": torch.floor,
    "erf": torch.erf,
    "atan": torch.atan,
    "not": torch.logical_not,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "pow": torch.pow,
    "min": torch.minimum,
    "max": torch.maximum,
    "gt": torch.gt,
    "lt": torch.lt,
    "eq": torch.eq,
    "and": torch.logical_and,
    "or": torch.logical_or,
}


class TorchExecutor:
    """Primitive operations on torch tensors. Arguments were checked by trtllm.functional."""

    def __init__(self, device: str = "cpu"):
        self.device = torch.device(device)

    def enter(self, scope: list[str]) -> None:
        """A module's forward begins; scope is the module path."""

    def leave(self, scope: list[str]) -> None:
        """A module's forward ends."""

    def shape_of(self, x):
        return tuple(x.shape)

    def parameter(self, array: np.ndarray, name: str):
        return self.constant(array)

    def constant(self, array: np.ndarray):
        if not array.flags.writeable:  # torch refuses to share a read-only (memory-mapped) buffer
            array = array.copy()
        return torch.from_numpy(array).to(self.device)

    def cast(self, x, source: str, target: str):
        return x != 0 if target == "bool" else x.to(TORCH[target])

    def binary(self, op, a, b):
        return BINARY[op](a, b)

    def unary(self, op, x):
        return UNARY[op](x)

    def clip(self, x, low, high):
        return torch.clamp(x, low, high)

    def where(self, condition, a, b):
        return torch.where(condition, a, b)

    def view(self, x, shape):
        return x.reshape(shape)

    def permute(self, x, order):
        return x.permute(order)

    def expand(self, x, shape):
        return x.expand(shape)

    def slice(self, x, starts, sizes, strides):
        return x[tuple(slice(s, s + (n - 1) * t + 1, t) for s, n, t in zip(starts, sizes, strides))]

    def concat(self, xs, dim):
        return torch.cat(xs, dim)

    def pad(self, x, pad, value):
        return TF.pad(x, pad, value=value)

    def index_select(self, x, dim, index):
        return torch.index_select(x, dim, index)

    def gather(self, x, dim, indices):
        return torch.gather(x, dim, indices.long())

    def scatter(self, x, dim, indices, updates):
        return torch.scatter(x, dim, indices.long(), updates)

    def topk(self, x, k, dim, largest):
        if k == 1:  # a plain maximum is far cheaper along a dimension that is not the last
            values, indices = (torch.max if largest else torch.min)(x, dim, keepdim=True)
        else:
            values, indices = torch.topk(x, k, dim, largest=largest)
        return values, indices.to(torch.int32)

    def reduce(self, op, x, dims, keepdim):
        if op == "sum":
            return torch.sum(x, dims, keepdim=keepdim, dtype=x.dtype)
        return {"mean": torch.mean, "max": torch.amax, "min": torch.amin}[op](x, dims, keepdim=keepdim)

    def cumsum(self, x, dim, dtype):
        return torch.cumsum(x, dim, dtype=x.dtype)

    def softmax(self, x, dim):
        return torch.softmax(x, dim)

    def matmul(self, a, b, transa, transb):
        return torch.matmul(a.transpose(-1, -2) if transa else a, b.transpose(-1, -2) if transb else b)

    def einsum(self, equation, xs):
        return torch.einsum(equation, *xs)

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups):
        bias_handle = bias.handle if bias is not None else None
        return TF.conv2d(x.handle, weight.handle, bias_handle, stride, padding, dilation, groups)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps):
        gain = weight.handle.to(x.handle.dtype) if weight is not None else None
        shift = bias.handle.to(x.handle.dtype) if bias is not None else None
        return TF.layer_norm(x.handle, x.shape[-1:], gain, shift, eps)

    def interpolate(self, x, size, mode, align_corners):
        return TF.interpolate(x, size, mode=mode, align_corners=align_corners if mode == "bilinear" else None)

    def max_pool2d(self, x, kernel_size, stride, padding):
        return TF.max_pool2d(x, kernel_size, stride, padding)

    def batch_norm(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps):
        return TF.batch_norm(x.handle, mean.handle, var.handle, weight.handle, bias.handle, False, 0.0, eps)

    def grid_sample(self, x, grid, mode, align_corners):
        return TF.grid_sample(x, grid, mode, "zeros", align_corners)


def bilinear_corners(x: torch.Tensor, y: torch.Tensor, height: int, width: int):
    """The four cells around pixel position (x, y): flat indices and weights, both (…,4); 0 weight outside."""
    x0, y0 = torch.floor(x), torch.floor(y)
    fx, fy = x - x0, y - y0
    x0, y0 = x0.long(), y0.long()
    xs = torch.stack([x0, x0 + 1, x0, x0 + 1], -1)
    ys = torch.stack([y0, y0, y0 + 1, y0 + 1], -1)
    weights = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], -1)
    inside = (xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)
    return torch.where(inside, ys * width + xs, 0), torch.where(inside, weights, 0.0)


class TorchCPUExecutor(TorchExecutor):
    """The torch executor on the CPU in float32, with the sampling operations as weighted sums of table rows.

    torch's embedding_bag adds weighted rows of a table several times faster than grid_sample and a sum can, and
    needs no memory for the single samples. Queries that a camera cannot see are skipped, as the original does.
    """

    query_block = 8192  # queries sampled at a time: bounds the memory of indices and weights

    def _sample(self, table: torch.Tensor, locations, weights, spatial_shapes) -> torch.Tensor:
        """table (S,M,C), locations (Q,M,L,P,2), weights (Q,M,L,P) -> (Q,M*C)."""
        _, m, c = table.shape
        rows = table.reshape(-1, c)
        head = torch.arange(m).view(1, m, 1, 1, 1)
        out = []
        for first in range(0, locations.shape[0], self.query_block):
            block = slice(first, first + self.query_block)
            start, indices, shares = 0, [], []
            for level, (h, w) in enumerate(spatial_shapes):
                grid = locations[block, :, level] * 2 - 1  # grid_sample's rounding, which the original has too
                x, y = ((grid[..., 0] + 1) * w - 1) / 2, ((grid[..., 1] + 1) * h - 1) / 2
                index, share = bilinear_corners(x, y, h, w)  # (q,M,P,4)
                indices.append((index + start) * m + head[:, :, 0])
                shares.append(share * weights[block, :, level, :, None])
                start += h * w
            index = torch.stack(indices, 2).flatten(2)  # (q,M,L*P*4)
            share = torch.stack(shares, 2).flatten(2)
            count = index.shape[0]
            bags = TF.embedding_bag(
                index.view(count * m, -1), rows, mode="sum", per_sample_weights=share.view(count * m, -1)
            )
            out.append(bags.view(count, m * c))
        return torch.cat(out)

    def atan2(self, y, x):
        return make(torch.atan2(y.handle, x.handle), "float32")

    def deformable_attention(self, value, reference_points, offsets, logits, spatial_shapes, num_queries):
        if value.dtype != "float32":
            return None
        locations, weights = vision.sampling_points(reference_points, offsets, logits, spatial_shapes, num_queries)
        pairs = zip(value.handle, locations.handle, weights.handle)
        return make(torch.stack([self._sample(v, at, by, spatial_shapes) for v, at, by in pairs]), "float32")

    def camera_cross_attention(self, value, reference_points_cam, visible, offsets, logits, spatial_shapes):
        if value.dtype != "float32":
            return None
        q, m, levels, points, _ = offsets.shape
        z = visible.shape[2]
        scale = torch.tensor([[1 / w, 1 / h] for h, w in spatial_shapes]).view(levels, 1, 2)
        weights = torch.softmax(logits.handle, -1).view(q, m, levels, points)
        seen = visible.handle.any(2)  # (6,Q)
        out = torch.zeros(q, math.prod(value.shape[2:]))
        for cam in range(value.shape[0]):
            rows = torch.nonzero(seen[cam]).squeeze(1)
            for part in torch.split(rows, self.query_block):
                reference = reference_points_cam.handle[cam, part].view(-1, 1, 1, 1, z, 2)
                moved = (offsets.handle[part] * scale).view(-1, m, levels, points // z, z, 2)
                locations = (reference + moved).view(-1, m, levels, points, 2)
                out[part] += self._sample(value.handle[cam], locations, weights[part], spatial_shapes)
        return make(out / seen.sum(0).clamp(min=1).unsqueeze(1), "float32")

    def modulated_deform_conv2d(self, x, offset_mask, weight, stride, padding):
        if x.dtype != "float32":
            return None
        (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
        ho, wo = offset_mask.shape[2:]
        taps = kh * kw
        base_y = (
            torch.arange(ho).view(1, ho, 1) * stride - padding + torch.arange(kh).repeat_interleave(kw).view(-1, 1, 1)
        )
        base_x = torch.arange(wo).view(1, 1, wo) * stride - padding + torch.arange(kw).repeat(kh).view(-1, 1, 1)
        kernel = weight.handle.permute(0, 2, 3, 1).reshape(o, taps * c)  # (O,9C)
        out = torch.empty(n, o, ho, wo)
        for i in range(n):
            table = x.handle[i].permute(1, 2, 0).reshape(h * w, c)
            offset = offset_mask.handle[i, : 2 * taps].view(taps, 2, ho, wo)
            mask = torch.sigmoid(offset_mask.handle[i, 2 * taps :])  # (9,H',W')
            index, share = bilinear_corners(base_x + offset[:, 1], base_y + offset[:, 0], h, w)  # (9,H',W',4)
            share = share * mask.unsqueeze(-1)
            index, share = (t.permute(1, 2, 0, 3).reshape(-1, 4) for t in (index, share))  # (H'W'9,4)
            columns = TF.embedding_bag(index, table, mode="sum", per_sample_weights=share)  # (H'W'9,C)
            out[i] = (kernel @ columns.view(ho * wo, taps * c).T).view(o, ho, wo)
        return make(out, "float32")


def torch_executor(device: str = "cpu") -> TorchExecutor:
    """The executor for a torch device ("cpu" or "cuda")."""
    return TorchCPUExecutor() if device == "cpu" else TorchExecutor(device)
