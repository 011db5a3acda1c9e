"""The kernels that multiply on tensor cores, but for the convolution: calls through the C interface (src/kernels.h) on
torch tensors, cases and float64 references.
"""

import ctypes

import torch
from kernel_calls import call_kernel, pointer, poisoned
from kernel_cases import Case
from kernel_structures import AttentionMasks, MemoryAttention, MultiheadAttention, NarrowConv, Occupancy

from trtllm.plugin_weights import pack_narrow_bias, pack_narrow_weight


def attention_workspace(library: ctypes.CDLL, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """The scratch memory of memory_attention, uint8; NaN where it is read as float32."""
    library.uniad_memory_attention_workspace.restype = ctypes.c_size_t
    nbytes = library.uniad_memory_attention_workspace(len(query), len(memory), query.shape[1])
    return torch.full((max(nbytes, 16),), 255, dtype=torch.uint8, device=query.device)


def memory_attention(
    library: ctypes.CDLL,
    query: torch.Tensor,
    memory: torch.Tensor,
    workspace: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """layers.basic.memory_attention: float16 (R,D), (L,D) -> (R,D). `workspace` and `out` are used when given."""
    assert query.dtype == memory.dtype == torch.float16
    workspace = attention_workspace(library, query, memory) if workspace is None else workspace
    out = poisoned(query.shape, query) if out is None else out
    arguments = MemoryAttention(
        query=pointer(query),
        memory=pointer(memory),
        out=pointer(out),
        workspace=pointer(workspace),
        rows=len(query),
        cells=len(memory),
        width=query.shape[1],
    )
    call_kernel(library, "uniad_memory_attention", arguments, query)
    return out


def memory_attention_case(device, rows: int, cells: int, width: int, sharp: float = 0.3) -> Case:
    """`sharp`: standard deviation of the queries; larger ones look at fewer cells."""
    query, memory = torch.randn(rows, width) * sharp, torch.randn(cells, width)
    return {"query": query.half().to(device), "memory": memory.half().to(device)}


def memory_attention_reference(query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    memory = memory.double()
    return torch.softmax(query.double() @ memory.T, -1) @ memory


def _heads(query, key, value, blocked, first_heads) -> MultiheadAttention:
    """The arguments of the kernel but for output and scratch memory."""
    assert query.dtype == key.dtype == value.dtype == torch.float16
    assert key.shape == value.shape and (blocked is None or blocked.dtype == torch.int32)
    groups, queries, heads, channels = query.shape
    return MultiheadAttention(
        query=pointer(query),
        key=pointer(key),
        value=pointer(value),
        blocked=None if blocked is None else pointer(blocked),
        groups=groups,
        queries=queries,
        keys=key.shape[1],
        heads=heads,
        channels=channels,
        blocked_rows=0 if blocked is None else blocked.numel() // key.shape[1],
        row_heads=key.shape[2],
        key_head=first_heads[0],
        value_head=first_heads[1],
    )


def heads_workspace(
    library: ctypes.CDLL, query, key, value, blocked: torch.Tensor | None = None, first_heads: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """The scratch memory of multihead_attention, uint8; NaN where it is read as float32."""
    arguments = _heads(query, key, value, blocked, first_heads)
    library.uniad_multihead_attention_workspace.restype = ctypes.c_size_t
    nbytes = library.uniad_multihead_attention_workspace(ctypes.byref(arguments))
    return torch.full((nbytes,), 255, dtype=torch.uint8, device=query.device)


def multihead_attention(
    library: ctypes.CDLL,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocked: torch.Tensor | None = None,
    first_heads: tuple[int, int] = (0, 0),
    workspace: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """trtllm.vision.multihead_attention: float16 (G,Q,M,C), (G,K,H,C) twice, int32 (K), (Q,K) or None -> (G,Q,M,C).

    `workspace` and `out` are used when given.
    """
    out = poisoned(query.shape, query) if out is None else out
    if workspace is None:
        workspace = heads_workspace(library, query, key, value, blocked, first_heads)
    arguments = _heads(query, key, value, blocked, first_heads)
    arguments.workspace, arguments.out = pointer(workspace), pointer(out)
    call_kernel(library, "uniad_multihead_attention", arguments, query)
    return out


def multihead_attention_case(
    device, groups: int, queries: int, keys: int, heads: int, channels: int, mask: tuple[int, ...] = (), layers: int = 0
) -> Case:
    """`mask`: the shape of blocked, of which about half is; one row in seven of (Q,K) sees nothing. `layers`: keys and
    values are those of so many attentions in one tensor, of which the last one's are read."""
    sizes = {"query": (queries, heads), "key": (keys, heads), "value": (keys, heads)}
    if layers:
        sizes["key"] = (keys, 2 * layers * heads)
    tensors = {name: torch.randn(groups, *size, channels).half() for name, size in sizes.items()}
    tensors["query"] *= 2  # looks at fewer keys
    if mask:
        tensors["blocked"] = (torch.rand(mask) < 0.5).int()
    if len(mask) == 2:
        tensors["blocked"][::7] = 1
    case: Case = {name: x.to(device) for name, x in tensors.items()}
    if layers:
        case |= {"value": case["key"], "first_heads": ((2 * layers - 2) * heads, (2 * layers - 1) * heads)}
    return case


def multihead_attention_reference(
    query, key, value, blocked: torch.Tensor | None = None, first_heads: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    key, value = (x[:, :, first : first + query.shape[2]] for x, first in zip((key, value), first_heads))  # (G,K,M,C)
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))  # (G,M,L,C)
    logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # (G,M,Q,K)
    if blocked is not None:
        logits = torch.where(blocked.bool(), -10000.0, logits)
    return (torch.softmax(logits, -1) @ v).transpose(1, 2)  # (G,Q,M,C)


def attention_masks(
    library: ctypes.CDLL,
    query: torch.Tensor,
    key: torch.Tensor,
    *weights: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """layers.seg_mask_head.attention_masks: float16 (N,D), (B,D), float32 mix (M,M), mix_bias (M), sum (1,M) and
    sum_bias (1) -> float32 (N,B)."""
    assert query.dtype == key.dtype == torch.float16 and {w.dtype for w in weights} == {torch.float32}
    out = poisoned((len(query), len(key)), weights[0]) if out is None else out
    arguments = AttentionMasks(
        query=pointer(query),
        key=pointer(key),
        **dict(zip(("mix", "mix_bias", "sum", "sum_bias"), map(pointer, weights))),
        out=pointer(out),
        queries=len(query),
        cells=len(key),
        heads=len(weights[0]),
        width=query.shape[1],
    )
    call_kernel(library, "uniad_attention_masks", arguments, query)
    return out


def attention_masks_case(device, queries: int, cells: int, width: int, heads: int = 8) -> Case:
    """Weights whose masks are above 0 at about half of the cells."""
    tensors = {
        "query": (torch.randn(queries, width) * 2).half(),
        "key": torch.randn(cells, width).half(),
        "mix": torch.randn(heads, heads),
        "mix_bias": torch.randn(heads),
        "sum": torch.randn(1, heads),
        "sum_bias": torch.randn(1),
    }
    return {name: x.to(device) for name, x in tensors.items()}


def attention_masks_reference(query, key, mix, mix_bias, sum, sum_bias) -> torch.Tensor:
    heads, width = len(mix), query.shape[1]
    left, right = (x.double().view(len(x), heads, -1).transpose(0, 1) for x in (query, key))  # (M,N,C) (M,B,C)
    logits = left @ right.transpose(1, 2) * (width / heads) ** -0.5  # (M,N,B)
    mixed = torch.relu(torch.einsum("om,mnb->onb", mix.double(), logits) + mix_bias.double().view(-1, 1, 1))
    return torch.relu(torch.einsum("m,mnb->nb", sum.double().view(-1), mixed) + sum_bias.double())


def occupancy(
    library: ctypes.CDLL,
    query: torch.Tensor,
    state: torch.Tensor,
    score: torch.Tensor,
    threshold: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """layers.occ_head.likeliest_instance: float16 (T,A,D), (T,B,D), float32 (A) -> int32 (T,B)."""
    assert query.dtype == state.dtype == torch.float16 and score.dtype == torch.float32
    if out is None:
        out = poisoned(state.shape[:2], torch.empty(0, dtype=torch.int32, device=query.device))
    arguments = Occupancy(
        query=pointer(query),
        state=pointer(state),
        score=pointer(score),
        out=pointer(out),
        steps=query.shape[0],
        instances=query.shape[1],
        cells=state.shape[1],
        width=query.shape[2],
        threshold=threshold,
    )
    call_kernel(library, "uniad_occupancy", arguments, query)
    return out


def occupancy_case(device, steps: int, instances: int, cells: int, width: int) -> Case:
    """Three tenths of the instances don't count; about half of the cells are free."""
    score = torch.rand(instances) * (torch.rand(instances) > 0.3)
    tensors = {
        "query": (torch.randn(steps, instances, width) * 0.1).half(),
        "state": torch.randn(steps, cells, width).half(),
        "score": score,
    }
    tensors = {name: x.to(device) for name, x in tensors.items()}
    best = occupancy_scores(**tensors).max(1).values
    return {**tensors, "threshold": float(best.float().median())}


def occupancy_scores(query: torch.Tensor, state: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """float64 (T,A,B)."""
    products = query.double() @ state.double().transpose(1, 2)  # (T,A,B)
    return torch.sigmoid(products) * score.double().view(1, -1, 1)


def occupancy_errors(found: torch.Tensor, query, state, score, threshold: float, margin: float = 1e-5) -> int:
    """Cells that are wrong: another instance than the likeliest, by more than `margin` of a score, or on the wrong side
    of the threshold by more than that."""
    scores = occupancy_scores(query, state, score)
    best = scores.max(1).values  # (T,B)
    if int(found.min()) < 0 or int(found.max()) > query.shape[1]:
        return found.numel()
    chosen = scores.gather(1, (found.long() - 1).clamp(min=0).unsqueeze(1)).squeeze(1)  # (T,B)
    occupied = (found > 0) & (chosen >= best - margin) & (best > threshold - margin)
    return int((~(occupied | (found == 0) & (best <= threshold + margin))).sum())


def narrow_conv(
    library: ctypes.CDLL,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A 3x3 convolution with few outputs: float16 (N,H,W,C), weight and bias packed -> (N,H,W,32)."""
    assert x.dtype == weight.dtype == torch.float16 and bias.dtype == torch.float32
    n, h, w, c = x.shape
    out = poisoned((n, h, w, 32), x) if out is None else out
    arguments = NarrowConv(
        input=pointer(x),
        weight=pointer(weight),
        bias=pointer(bias),
        out=pointer(out),
        batch=n,
        channels=c,
        height=h,
        width=w,
    )
    call_kernel(library, "uniad_narrow_conv", arguments, x)
    return out


def narrow_conv_case(device, size: tuple[int, int, int, int], outputs: int = 27) -> Case:
    """`size`: N, C, H, W. With the plain weight (O,C,3,3) and bias (O) beside the packed ones."""
    n, c, h, w = size
    weight, bias = (torch.randn(outputs, c, 3, 3) / (9 * c) ** 0.5).half(), torch.randn(outputs).half()
    tensors = {
        "x": torch.randn(n, h, w, c).half(),
        "weight": torch.from_numpy(pack_narrow_weight(weight.numpy())),
        "bias": torch.from_numpy(pack_narrow_bias(bias.numpy())),
        "plain_weight": weight,
        "plain_bias": bias,
    }
    return {name: x.to(device) for name, x in tensors.items()}


def narrow_conv_reference(x, weight, bias, plain_weight, plain_bias) -> torch.Tensor:
    """float64 (N,H,W,32), zeros behind the outputs."""
    image = x.double().permute(0, 3, 1, 2)
    out = torch.nn.functional.conv2d(image, plain_weight.double(), plain_bias.double(), padding=1)
    return torch.nn.functional.pad(out.permute(0, 2, 3, 1), (0, 32 - len(plain_bias)))
