"""The building blocks that every part of the network shares, under the key names of torch.nn and mmcv.

Shapes have no batch dimension unless said: UniAD runs one frame at a time.
"""

import math
from collections.abc import Sequence

import numpy as np

from trtllm import Module, ModuleList, Parameter, Sequential, Tensor, net_dtype
from trtllm import functional as F
from trtllm import vision as V

MOST_KEYS = 1000  # that one matrix product of an attention sums over


class Linear(Module):
    """y = x W^T + b: (…,in) -> (…,out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: str | None = None):
        super().__init__()
        self.weight = Parameter((out_features, in_features), dtype)
        if bias:
            self.bias = Parameter((out_features,), dtype)
        self.has_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return V.linear(x, self.weight.value, self.bias.value if self.has_bias else None)


def joint_linear(projections: Sequence[Linear], x: Tensor) -> Tensor:
    """What the projections give one after another in the last dimension, by one product: (…,in) -> (…,sum of out)."""
    parameters = ([getattr(p, name).array for p in projections] for name in ("weight", "bias"))
    return V.linear(x, *(F.constant(np.concatenate(arrays), net_dtype()) for arrays in parameters))


class Conv2d(Module):
    """2-d convolution with a square kernel: (N,in,H,W) -> (N,out,H',W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__()
        self.weight = Parameter((out_channels, in_channels, kernel_size, kernel_size))
        if bias:
            self.bias = Parameter((out_channels,))
        self.has_bias, self.stride, self.padding = bias, (stride, stride), (padding, padding)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.value if self.has_bias else None
        return F.conv2d(x, self.weight.value, bias, self.stride, self.padding)


class BatchNorm2d(Module):
    """Batch normalisation in evaluation mode, of (N,C,H,W). Its statistics stay in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = Parameter((channels,), "float32")
        self.bias = Parameter((channels,), "float32")
        self.running_mean = Parameter((channels,), "float32")
        self.running_var = Parameter((channels,), "float32")

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance, gain and shift (C), in the order of trtllm.vision's functions."""
        return self.running_mean.value, self.running_var.value, self.weight.value, self.bias.value

    def forward(self, x: Tensor) -> Tensor:
        return V.batch_norm(x, *self.statistics())


class LayerNorm(Module):
    """Layer normalisation of the last dimension; statistics in float32. (…,D) -> (…,D).

    `residual` (…,D) is added first. Give it where there are many rows, and executors may have one operation for both;
    of few rows the sum is as good on its own.
    """

    def __init__(self, features: int, eps: float = 1e-5, dtype: str | None = None):
        super().__init__()
        self.weight = Parameter((features,), dtype)
        self.bias = Parameter((features,), dtype)
        self.features, self.eps = features, eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        affine = self.weight.value, self.bias.value, self.eps
        return F.layer_norm(x, self.features, *affine) if residual is None else V.add_layer_norm(x, residual, *affine)


class Embedding(Module):
    """A table of vectors (num,dim); used whole through `weight.value`, or looked up."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: str | None = None):
        super().__init__()
        self.weight = Parameter((num_embeddings, embedding_dim), dtype)

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight.value)


def mlp(*widths: int, norm: bool = False) -> Sequential:
    """Linear, (LayerNorm,) ReLU, … Linear with torch.nn.Sequential's key numbers."""
    layers: list = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        layers.append(Linear(a, b))
        if i < len(widths) - 2:
            layers += [LayerNorm(b), F.relu] if norm else [F.relu]
    return Sequential(*layers)


class FFN(Module):
    """mmcv's feed-forward block, W2 relu(W1 x), without its residual. Keys layers.0.0 and layers.1."""

    def __init__(self, embed_dims: int, feedforward_channels: int):
        super().__init__()
        self.layers = ModuleList([Sequential(Linear(embed_dims, feedforward_channels), F.relu),
                                  Linear(feedforward_channels, embed_dims)])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x))


def parts_of(keys: int) -> int:
    """In how many equal parts an attention should take so many keys."""
    return next(s for s in range(-(-keys // MOST_KEYS), keys + 1) if keys % s == 0)


def attend_parts(logits: Tensor, value: Tensor) -> Tensor:
    """softmax(logits) value, of keys in S parts: logits (…,S,N,L/S), value (…,S,L/S,C) -> (…,N,C).

    The parts are summed at the end, weighted by their largest logits ("FlashAttention", Dao et al. 2022, section 3.1).
    One product over all 40000 cells of a BEV would be as many steps of a handful of thread blocks, and its weights
    would be too small for float16.
    """
    keys, part = logits.ndim() - 1, logits.ndim() - 3
    peak = F.max(logits, keys, True) + math.log(64)  # (…,S,N,1); the 64 is room for float16: sums of MOST_KEYS values
    weights = F.exp(logits - peak)  # (…,S,N,L/S), at most 1/64
    share = F.exp(F.cast(peak - F.max(peak, part, True), "float32"))  # (…,S,N,1), of a part
    total = F.sum(share * F.sum(F.cast(weights, "float32"), keys, True), part)  # (…,N,1)
    seen = F.sum(share * F.cast(F.matmul(weights, value), "float32"), part)  # (…,N,C)
    return F.cast(seen / total, logits.dtype)


def memory_attention(query: Tensor, memory: Tensor) -> Tensor:
    """softmax(query memory^T) memory: rows (R,D) attend to a memory (L,D) that is its own keys and values -> (R,D)."""
    custom = V.offered("memory_attention", query, memory)
    if custom is not None:
        return custom
    length, d = memory.shape
    parts = parts_of(length)
    memory = F.view(memory, (parts, length // parts, d))  # (S,L/S,D)
    logits = F.matmul(F.unsqueeze(query, 0), memory, transb=True)  # (S,R,L/S)
    return attend_parts(logits, memory)


def attend_memory(
    query: Tensor, memory: Tensor, key_weight: Tensor, value_weight: Tensor, value_bias: Tensor
) -> Tensor:
    """Attention of few queries to many rows, whose keys and values are never written.

    The projections are taken to the other side of the products: q (W_k m) = (W_k^T q) m, and the sum of a W_v m is
    W_v times the sum of a m. The keys' bias adds the same to all logits of a query, so that it has no effect.

    Args:
        query: (M,N,C), the projected queries of M heads.
        memory: (L,D).
        key_weight, value_weight: (M*C,D), of the two projections; value_bias: (M*C).

    Returns:
        (N,M*C).
    """
    (m, n, c), d = query.shape, memory.shape[1]
    asking = F.matmul(query * c**-0.5, F.view(key_weight, (m, c, d)))  # (M,N,D)
    seen = F.view(memory_attention(F.view(asking, (m * n, d)), memory), (m, n, d))
    seen = F.matmul(seen, F.view(value_weight, (m, c, d)), transb=True)  # (M,N,C)
    return F.view(F.permute(seen, (1, 0, 2)), (n, m * c)) + value_bias


class MultiheadAttention(Module):
    """torch.nn.MultiheadAttention in evaluation mode: keys in_proj_weight, in_proj_bias, out_proj.

    query (…,Q,D), key and value (…,K,D) with equal leading dimensions -> (…,Q,D).
    `blocked` (bool, broadcastable to (…,heads,Q,K)) marks keys that a query must not see.
    """

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.in_proj_weight = Parameter((3 * embed_dims, embed_dims))
        self.in_proj_bias = Parameter((3 * embed_dims,))
        self.out_proj = Linear(embed_dims, embed_dims)
        self.embed_dims, self.num_heads = embed_dims, num_heads

    def _third(self, part: int) -> tuple[Tensor, Tensor]:
        """Weight (D,D) and bias (D) of the query (0), key (1) or value (2) projection."""
        d = self.embed_dims
        return F.narrow(self.in_proj_weight.value, 0, part * d, d), F.narrow(self.in_proj_bias.value, 0, part * d, d)

    def project(self, x: Tensor, part: int) -> Tensor:
        """(…,L,D) -> (…,L,heads,D/heads) by the query (0), key (1) or value (2) third of in_proj."""
        d, m = self.embed_dims, self.num_heads
        y = V.linear(x, *self._third(part))  # (…,L,D)
        return F.view(y, (*x.shape[:-1], m, d // m), False)  # (…,L,heads,D/heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        parts = [self.project(x, part) for part, x in enumerate((query, key, value))]
        return self._attend(parts, query.shape, blocked)

    def within(self, x: Tensor, size: int) -> Tensor:
        """Attention of rows (N*size,D) to the rows of their own group of `size` -> (N*size,D)."""
        rows = [self.project(x, part) for part in range(3)]  # (N*size,heads,D/heads)
        return self._attend([F.view(y, (-1, size, *y.shape[1:])) for y in rows], x.shape)  # of (N,size,heads,D/heads)

    def over(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attention of few queries (N,D) to many rows (L,D), as attend_memory takes it -> (N,D)."""
        (key_weight, _), value = self._third(1), self._third(2)
        query = F.transpose(self.project(query, 0), 0, 1)  # (heads,N,D/heads)
        return self.out_proj(attend_memory(query, memory, key_weight, *value))

    def _attend(self, parts: list[Tensor], shape: tuple[int, ...], blocked: Tensor | None = None) -> Tensor:
        """Projected queries, keys and values (…,L,heads,D/heads) -> the attention's output, in `shape`."""
        query, key, value = parts
        out = V.multihead_attention(query, key, value, blocked)  # (…,Q,heads,D/heads)
        return self.out_proj(F.view(out, shape, False))


class MmcvMultiheadAttention(Module):
    """mmcv's wrapper: adds positions to query and key, and the query (without position) as residual. Key `attn`."""

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.attn = MultiheadAttention(embed_dims, num_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        blocked: Tensor | None = None,
    ) -> Tensor:
        q = query + query_pos if query_pos is not None else query
        k = key + key_pos if key_pos is not None else key
        return query + self.attn(q, k, value, blocked)


class TransformerDecoderLayer(Module):
    """torch.nn.TransformerDecoderLayer, post-norm, ReLU. Few queries (N,D), a large memory (L,D) -> (N,D)."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int):
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dims, num_heads)
        self.multihead_attn = MultiheadAttention(embed_dims, num_heads)
        self.linear1 = Linear(embed_dims, feedforward_channels)
        self.linear2 = Linear(feedforward_channels, embed_dims)
        self.norm1, self.norm2, self.norm3 = LayerNorm(embed_dims), LayerNorm(embed_dims), LayerNorm(embed_dims)

    def forward(self, tgt: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(tgt + self.self_attn(tgt, tgt, tgt))
        x = self.norm2(x + self.multihead_attn.over(x, memory))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class TransformerEncoderLayer(Module):
    """torch.nn.TransformerEncoderLayer, post-norm, ReLU, for rows (N*size,D) in groups of `size` -> (N*size,D)."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int):
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dims, num_heads)
        self.linear1 = Linear(embed_dims, feedforward_channels)
        self.linear2 = Linear(feedforward_channels, embed_dims)
        self.norm1, self.norm2 = LayerNorm(embed_dims), LayerNorm(embed_dims)

    def forward(self, x: Tensor, size: int) -> Tensor:
        x = self.norm1(x + self.self_attn.within(x, size))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


def range_extent(pc_range: tuple[float, ...], dims: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Lower end and size of the first `dims` axes of pc_range, metres, float32 (dims) each."""
    low = np.asarray(pc_range[:dims], np.float32)
    return low, np.asarray(pc_range[3 : 3 + dims], np.float32) - low


def normalise_range(points: Tensor, pc_range: tuple[float, ...], dims: int = 2) -> Tensor:
    """Metres (…,dims) to fractions of the first `dims` axes of pc_range; float32."""
    low, size = range_extent(pc_range, dims)
    return (points - F.constant(low)) / F.constant(size)


def metres_from_range(points: Tensor, pc_range: tuple[float, ...], dims: int = 3) -> Tensor:
    """Fractions (…,dims) of pc_range's axes to metres; float32."""
    low, size = range_extent(pc_range, dims)
    return points * F.constant(size) + F.constant(low)
