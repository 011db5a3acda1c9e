"""The torch executor: each functional call computes at once, on the CPU or a CUDA device."""

import math
import os

import numpy as np
import torch
import torch.nn.functional as TF
from ranges import pop_range, push_range

from trtllm import sampled_attention, vision
from trtllm.functional import make
from trtllm.network import Tensor
from trtllm.torch_sampling import BLOCK, LevelTable, deform_conv

# Huge pages for torch's large CPU tensors, a fifth of the encoder's time. torch reads it at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
SHORT_ROW = 16  # torch's softmax is slow along a last dimension shorter than this
LARGE_ATTENTION = 16384  # logits of a head from which on torch's fused attention is faster
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
        push_range("/".join(filter(None, scope)))

    def leave(self, scope: list[str]) -> None:
        """A module's forward ends."""
        pop_range()

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
        a, b = (a.transpose(-1, -2) if transa else a), (b.transpose(-1, -2) if transb else b)
        if b.dim() > 2 and math.prod(b.shape[:-2]) == 1:  # one product of all rows, not one for each leading index
            b = b.reshape(b.shape[-2:])
        return torch.matmul(a, b)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None):
        return make(TF.linear(x.handle, weight.handle, bias.handle if bias is not None else None), x.dtype)

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


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The layout (N,H,W,C) in memory, in which the CPU's convolutions need no copies."""
    return x.contiguous(memory_format=torch.channels_last)


class TorchCPUExecutor(TorchExecutor):
    """The torch executor on the CPU in float32, with the heavy vision operations done the fast way (torch_sampling).

    Queries that a camera cannot see are skipped, as the original does.
    """

    def where(self, condition, a, b):
        if condition.numel() == 1:  # torch would still go through all of both
            return (a if condition else b).expand(torch.broadcast_shapes(condition.shape, a.shape, b.shape))
        return torch.where(condition, a, b)

    def softmax(self, x, dim):
        if dim == x.dim() - 1 and x.shape[-1] <= SHORT_ROW:
            return torch.softmax(x.movedim(-1, 0).contiguous(), 0).movedim(0, -1)
        return torch.softmax(x, dim)

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups):
        bias_handle = bias.handle if bias is not None else None
        pixels, kernel = channels_last(x.handle), channels_last(weight.handle)
        return TF.conv2d(pixels, kernel, bias_handle, stride, padding, dilation, groups)

    def atan2(self, y, x):
        return make(torch.atan2(y.handle, x.handle), "float32")

    def attention(self, query, key, value, blocked):
        if query.dtype != "float32" or query.ndim() not in (3, 4) or query.shape[-2] * key.shape[-2] < LARGE_ATTENTION:
            return None
        # torch's fused attention never holds all logits; it wants four dimensions.
        q, k, v = (t.handle.view(-1, *t.shape[-3:]) for t in (query, key, value))
        bias = None
        if blocked is not None:
            bias = torch.zeros(blocked.shape).masked_fill_(blocked.handle, vision.BLOCKED)
            bias = bias.view((1,) * (4 - bias.dim()) + bias.shape)
        return make(TF.scaled_dot_product_attention(q, k, v, bias).view(query.shape), "float32")

    def deformable_attention(self, value, reference_points, offsets, logits, spatial_shapes, num_queries, first_head):
        if value.dtype != "float32":
            return None
        locations, weights = sampled_attention.sampling_points(
            reference_points, offsets, logits, spatial_shapes, num_queries
        )
        heads = value.handle[:, :, first_head : first_head + offsets.shape[2]]  # (B,S,M,C), a view
        triples = zip(heads, locations.handle, weights.handle)
        return make(torch.stack([LevelTable(v, spatial_shapes).sample(at, by) for v, at, by in triples]), "float32")

    def temporal_attention(self, value, reference_points, offsets, logits, spatial_shape):
        if value.dtype != "float32":
            return None
        b, s, m, c = value.shape
        q = offsets.shape[0]
        # The maps are as good as levels of one map, at weights that sum to 1 over all of them.
        h, w = spatial_shape
        locations = reference_points.handle.view(q, 1, 1, 1, 2) + offsets.handle * torch.tensor([1 / w, 1 / h])
        weights = self.softmax(logits.handle, 3) / b
        table = LevelTable(value.handle.reshape(b * s, m, c), [spatial_shape] * b)
        return make(table.sample(locations, weights), "float32")

    def camera_cross_attention(self, value, reference_points_cam, visible, offsets, logits, spatial_shapes, first_head):
        if value.dtype != "float32":
            return None
        q, m, levels, points, _ = offsets.shape
        heads = value.handle[:, :, first_head : first_head + m]  # (6,S,M,C), a view
        z = visible.shape[2]
        scale = torch.tensor([[1 / w, 1 / h] for h, w in spatial_shapes]).view(levels, 1, 2)
        weights = torch.softmax(logits.handle, -1).view(q, m, levels, points)
        seen = visible.handle.any(2)  # (6,Q)
        out = torch.zeros(q, m * value.shape[3])
        for cam in range(value.shape[0]):
            rows = torch.nonzero(seen[cam]).squeeze(1)
            if not len(rows):
                continue
            table = LevelTable(heads[cam], spatial_shapes)
            for part in torch.split(rows, BLOCK):
                reference = reference_points_cam.handle[cam, part].view(-1, 1, 1, 1, z, 2)
                moved = (offsets.handle[part] * scale).view(-1, m, levels, points // z, z, 2)
                locations = (reference + moved).view(-1, m, levels, points, 2)
                out[part] += table.sample(locations, weights[part])
        return make(out / seen.sum(0).clamp(min=1).unsqueeze(1), "float32")

    def modulated_deform_conv2d(self, x, offset_mask, weight, stride, padding):
        if x.dtype != "float32":
            return None
        return make(deform_conv(x.handle, offset_mask.handle, weight.handle, stride, padding), "float32")

    def conv2d_norm(self, x, weight, mean, var, gain, shift, residual, stride, padding, relu, eps):
        if x.dtype != "float32":
            return None
        # The normalisation goes into the weights, the rest happens in place: each pass over a feature map that is
        # saved counts, as does its memory.
        scale = gain.handle / torch.sqrt(var.handle + eps)
        folded = channels_last(weight.handle * scale.view(-1, 1, 1, 1))
        out = TF.conv2d(channels_last(x.handle), folded, shift.handle - mean.handle * scale, stride, padding)
        if residual is not None:
            out += residual.handle
        return make(out.relu_() if relu else out, "float32")


def torch_executor(device: str = "cpu") -> TorchExecutor:
    """The executor for a torch device ("cpu" or "cuda"). On CUDA, TF32 is switched off: float32 has 24 bits."""
    if device == "cpu":
        return TorchCPUExecutor()
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions, not for products
    return TorchExecutor(device)
