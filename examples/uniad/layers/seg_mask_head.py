"""Mask decoders of the map head (Panoptic SegFormer, Li et al. 2022; seg_mask_head.py of UniAD).

N = queries (seg_max_num things, or num_stuff_classes stuff), B = BEV cells, D = embed_dims, M = num_heads. The largest
tensor is the attention of (M,N,B): at full size 8 x 100 x 40000, 128 MB in float32; three of them live at once at most.
"""

from collections.abc import Sequence

from config import UniADConfig
from layers.basic import LayerNorm, Linear, attend_memory, attend_parts, joint_linear, parts_of
from layers.deformable_attention import Joint
from trtllm import Module, ModuleList, Sequential, Tensor
from trtllm import functional as F
from trtllm import vision as V

MLP_RATIO = 4
NORM_EPS = 1e-6


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(L,D) -> (M,L,D/M)."""
    length, d = x.shape
    return F.permute(F.view(x, (length, num_heads, d // num_heads), False), (1, 0, 2))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of heads: query (M,N,C), key and value (M,L,C) -> (N,M*C).

    Many keys are taken in parts, see attend_parts.
    """
    (m, n, c), length = query.shape, key.shape[1]
    parts = parts_of(length)
    if parts == 1:
        out = V.attention(query, key, value)
    else:
        key, value = (F.view(x, (m, parts, length // parts, c)) for x in (key, value))  # (M,S,L/S,C)
        logits = attention_logits(F.unsqueeze(query, 1), key)  # (M,S,N,L/S)
        out = attend_parts(logits, value)
    return F.view(F.permute(out, (1, 0, 2)), (n, m * c))


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Scaled products of heads: query (M,…,N,C), key (M,…,L,C) -> (M,…,N,L)."""
    return F.matmul(query * query.shape[-1] ** -0.5, key, transb=True)


def attention_masks(
    query: Tensor, key: Tensor, mix: Tensor, mix_bias: Tensor, sum: Tensor, sum_bias: Tensor, num_heads: int
) -> Tensor:
    """relu(sum . relu(mix . logits + mix_bias) + sum_bias), of the logits of all heads for a query and a cell.

    Args:
        query, key: (N,D) and (B,D), projected.
        mix, sum: constants (M,M) and (1,M); mix_bias (M), sum_bias (1).

    Returns:
        float32 (N,B): thresholds decide on it.
    """
    custom = V.offered("attention_masks", query, key, mix, mix_bias, sum, sum_bias, num_heads=num_heads)
    if custom is not None:
        return custom
    logits = attention_logits(split_heads(query, num_heads), split_heads(key, num_heads))
    x = F.unsqueeze(logits, 0)  # (1,M,N,B)
    # The two Linears mix heads: with the heads in front they are convolutions, and no logits are transposed. As one
    # matrix product it would have four million columns, for which TensorRT 8.6 has no float32 kernel.
    for weight, bias in ((mix, mix_bias), (sum, sum_bias)):
        assert weight.array is not None
        kernel = F.constant(weight.array.reshape(*weight.shape, 1, 1), weight.dtype)
        x = F.relu(F.conv2d(x, kernel, bias))  # (1,M,N,B), then (1,1,N,B)
    return F.cast(F.view(x, logits.shape[1:]), "float32")


class Mlp(Module):
    """Linear, exact GELU, Linear: (N,D) -> (N,D)."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.fc1 = Linear(embed_dims, MLP_RATIO * embed_dims)
        self.fc2 = Linear(MLP_RATIO * embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(V.gelu_erf(self.fc1(x)))


class SelfAttention(Module):
    """Attention among the queries: (N,D) -> (N,D)."""

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.qkv = Linear(embed_dims, 3 * embed_dims)
        self.proj = Linear(embed_dims, embed_dims)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.num_heads) for part in F.chunk(self.qkv(x), 3, 1))
        return self.proj(attend(query, key, value))


class Attention(Module):
    """Attention of queries (N,D) to the BEV (B,D) -> (N,D).

    The checkpoint's linear_l1 and linear make a mask here too, which only the training losses read.
    """

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.q = Linear(embed_dims, embed_dims)
        self.k = Linear(embed_dims, embed_dims)
        self.v = Linear(embed_dims, embed_dims)
        self.proj = Linear(embed_dims, embed_dims)
        self.num_heads = num_heads

    def forward(self, query: Tensor, memory: Tensor, joint: Joint | None) -> Tensor:
        """`joint`: what joint_heads gave for this attention."""
        if joint is not None:
            (heads, first), (n, d), m = joint, query.shape, self.num_heads
            q = F.view(self.q(query), (n, m, d // m))
            return self.proj(F.view(V.multihead_attention(q, heads, heads, None, (first, first + m)), (n, d)))
        q = split_heads(self.q(query), self.num_heads)
        if query.shape[0] * self.num_heads <= memory.shape[1]:  # less work, and reads the BEV only
            return self.proj(attend_memory(q, memory, self.k.weight.value, self.v.weight.value, self.v.bias.value))
        k, v = (split_heads(x, self.num_heads) for x in (self.k(memory), self.v(memory)))
        return self.proj(attend(q, k, v))


def joint_heads(attentions: Sequence[Attention], queries: int, memory: Tensor) -> Sequence[Joint | None]:
    """Keys and values of all attentions by one product with the memory (B,D); None where the executor reads none."""
    m, (length, d) = attentions[0].num_heads, memory.shape
    if not V.offered("joint_heads", queries, memory, m):
        return [None] * len(attentions)
    projections = [projection for attention in attentions for projection in (attention.k, attention.v)]
    # Others project the memory too: of a copy, as for joint_values of layers/deformable_attention.py.
    heads = joint_linear(projections, V.after(memory))  # (B,layers*2*D)
    heads = F.view(heads, (length, len(projections) * m, d // m))
    return [(heads, layer * 2 * m) for layer in range(len(attentions))]


class AttentionTail(Module):
    """The last attention, whose logits are the mask: queries (N,D), BEV (B,D) -> float32 (N,B), at or above 0."""

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.q = Linear(embed_dims, embed_dims)
        self.k = Linear(embed_dims, embed_dims)
        self.linear_l1 = Sequential(Linear(num_heads, num_heads), F.relu)
        self.linear = Sequential(Linear(num_heads, 1), F.relu)
        self.num_heads = num_heads

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        mix, last = self.linear_l1[0], self.linear[0]
        small = (mix.weight.value, mix.bias.value, last.weight.value, last.bias.value)
        return attention_masks(self.q(query), self.k(memory), *small, self.num_heads)


class Block(Module):
    """One decoder layer: (self-attention of the queries,) attention to the BEV, MLP; norms after each. -> (N,D)."""

    def __init__(self, embed_dims: int, num_heads: int, self_attn: bool):
        super().__init__()
        self.head_norm1 = LayerNorm(embed_dims, NORM_EPS)
        self.attn = Attention(embed_dims, num_heads)
        self.head_norm2 = LayerNorm(embed_dims, NORM_EPS)
        self.mlp = Mlp(embed_dims)
        if self_attn:
            self.self_attention = SelfAttention(embed_dims, num_heads)
            self.norm3 = LayerNorm(embed_dims, NORM_EPS)
        self.self_attn = self_attn

    def forward(self, query: Tensor, memory: Tensor, joint: Joint | None) -> Tensor:
        if self.self_attn:
            query = self.norm3(query + self.self_attention(query))
        query = self.head_norm1(query + self.attn(query, memory, joint))
        return self.head_norm2(query + self.mlp(query))


class SegMaskHead(Module):
    """Queries (N,D), the BEV (B,D), positions (N,D) or none -> float32 masks (N,B), and each layer's queries (N,D).

    A cell belongs to a mask where the value exceeds 0.5; there is no sigmoid.
    """

    def __init__(self, config: UniADConfig, num_layers: int, self_attn: bool = False):
        super().__init__()
        d, m = config.embed_dims, config.num_heads
        self.blocks = ModuleList([Block(d, m, self_attn) for _ in range(num_layers)])
        self.attnen = AttentionTail(d, m)

    def forward(self, query: Tensor, memory: Tensor, query_pos: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        queries = []
        joints = joint_heads([block.attn for block in self.blocks], query.shape[0], memory)
        for block, joint in zip(self.blocks, joints):
            # A region of all layers would take TensorRT 8.6 minutes to compile.
            query = V.after(block(query + query_pos if query_pos is not None else query, memory, joint))
            queries.append(query)
        masks = self.attnen(query + query_pos if query_pos is not None else query, memory)
        return masks, queries
