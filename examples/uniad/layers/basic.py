"""The building blocks that every part of the network shares, under the key names of torch.nn and mmcv.

Shapes have no batch dimension unless said: UniAD runs one frame at a time.
"""

import numpy as np

from trtllm import Module, ModuleList, Parameter, Sequential, Tensor
from trtllm import functional as F
from trtllm import vision as V


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

    def forward(self, x: Tensor) -> Tensor:
        return V.batch_norm(x, self.running_mean.value, self.running_var.value, self.weight.value, self.bias.value)


class LayerNorm(Module):
    """Layer normalisation of the last dimension; statistics in float32."""

    def __init__(self, features: int, eps: float = 1e-5, dtype: str | None = None):
        super().__init__()
        self.weight = Parameter((features,), dtype)
        self.bias = Parameter((features,), dtype)
        self.features, self.eps = features, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.features, self.weight.value, self.bias.value, self.eps)


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
    """mmcv's feed-forward block with residual: x + W2 relu(W1 x). Keys layers.0.0 and layers.1."""

    def __init__(self, embed_dims: int, feedforward_channels: int):
        super().__init__()
        self.layers = ModuleList([Sequential(Linear(embed_dims, feedforward_channels), F.relu),
                                  Linear(feedforward_channels, embed_dims)])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[1](self.layers[0](x))


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

    def project(self, x: Tensor, part: int) -> Tensor:
        """(…,L,D) -> (…,L,heads,D/heads) by the query (0), key (1) or value (2) third of in_proj."""
        d, m = self.embed_dims, self.num_heads
        weight = F.narrow(self.in_proj_weight.value, 0, part * d, d)
        bias = F.narrow(self.in_proj_bias.value, 0, part * d, d)
        y = V.linear(x, weight, bias)  # (…,L,D)
        return F.view(y, (*x.shape[:-1], m, d // m), False)  # (…,L,heads,D/heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        parts = [self.project(x, part) for part, x in enumerate((query, key, value))]
        return self._attend(parts, query.shape, blocked)

    def within(self, x: Tensor, size: int) -> Tensor:
        """Attention of rows (N*size,D) to the rows of their own group of `size` -> (N*size,D)."""
        rows = [self.project(x, part) for part in range(3)]  # (N*size,heads,D/heads)
        return self._attend([F.view(y, (-1, size, *y.shape[1:])) for y in rows], x.shape)  # of (N,size,heads,D/heads)

    def _attend(self, parts: list[Tensor], shape: tuple[int, ...], blocked: Tensor | None = None) -> Tensor:
        """Projected queries, keys and values (…,L,heads,D/heads) -> the attention's output, in `shape`."""
        q, k, v = (F.transpose(x, -3, -2) for x in parts)  # (…,heads,L,D/heads)
        out = V.attention(q, k, v, blocked)  # (…,heads,Q,D/heads)
        return self.out_proj(F.view(F.transpose(out, -3, -2), shape, False))


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
    """torch.nn.TransformerDecoderLayer, post-norm, ReLU. tgt (…,Q,D), memory (…,K,D) -> (…,Q,D)."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int):
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dims, num_heads)
        self.multihead_attn = MultiheadAttention(embed_dims, num_heads)
        self.linear1 = Linear(embed_dims, feedforward_channels)
        self.linear2 = Linear(feedforward_channels, embed_dims)
        self.norm1, self.norm2, self.norm3 = LayerNorm(embed_dims), LayerNorm(embed_dims), LayerNorm(embed_dims)

    def forward(self, tgt: Tensor, memory: Tensor, memory_blocked: Tensor | None = None) -> Tensor:
        x = self.norm1(tgt + self.self_attn(tgt, tgt, tgt))
        x = self.norm2(x + self.multihead_attn(x, memory, memory, memory_blocked))
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


def normalise_range(points: Tensor, pc_range: tuple[float, ...], dims: int = 2) -> Tensor:
    """Metres (…,dims) to fractions of the first `dims` axes of pc_range; float32."""
    low = np.asarray(pc_range[:dims], np.float32)
    size = np.asarray(pc_range[3 : 3 + dims], np.float32) - low
    return (points - F.constant(low)) / F.constant(size)


def metres_from_range(points: Tensor, pc_range: tuple[float, ...], dims: int = 3) -> Tensor:
    """Fractions (…,dims) of pc_range's axes to metres; float32."""
    low = np.asarray(pc_range[:dims], np.float32)
    size = np.asarray(pc_range[3 : 3 + dims], np.float32) - low
    return points * F.constant(size) + F.constant(low)
