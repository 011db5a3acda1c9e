"""Signatures of tensorrt_llm.functional 1.2.1 (names, order and defaults of parameters), and where ours deviate.

Facts read off NVIDIA/TensorRT-LLM, tensorrt_llm/functional.py. Element-wise functions and `min` are partials there,
with `op` fixed: the parameters after `op` can then only be given by keyword.
"""

_BINARY, _UNARY, _REDUCE = "left, right", "input", "input, dim, keepdim=False"

SIGNATURES = {
    **dict.fromkeys(("add", "sub", "mul", "div", "floordiv", "pow", "minimum", "maximum"), _BINARY),
    **dict.fromkeys(("gt", "lt", "eq", "op_and", "op_or"), _BINARY),
    **dict.fromkeys(("exp", "log", "sqrt", "sin", "cos", "abs", "round", "not_op"), _UNARY),
    **dict.fromkeys(("relu", "sigmoid", "tanh"), _UNARY),
    **dict.fromkeys(("sum", "mean", "max", "argmax"), _REDUCE),
    "min": "input, *, dim, keepdim=False",
    "elementwise_binary": "left, right, op",
    "unary": "input, op",
    "reduce": "input, op, dim, keepdim=False",
    "constant": "ndarray, as_dtype=None, as_shape=None",
    "cast": "input, dtype",
    "clip": "input, alpha, beta",
    "where": "condition, left, right",
    "view": "input, shape, zero_is_placeholder=True",
    "flatten": "input, start_dim=0, end_dim=-1",
    "unsqueeze": "input, axis",
    "squeeze": "input, dim=None, zero_is_placeholder=False",
    "permute": "input, dims",
    "transpose": "input, dim0, dim1",
    "expand": "input, expand_shape",
    "slice": "input, starts, sizes, strides=None, mode=None, fill_value=None",
    "select": "input, dim, index",
    "split": "tensor, split_size_or_sections, dim=0",
    "chunk": "tensor, chunks, dim=0",
    "unbind": "input, dim=0",
    "concat": "inputs, dim=0",
    "stack": "inputs, dim=0",
    "repeat": "input, sizes",
    "repeat_interleave": "tensor, repeats, dim",
    "pad": "input, pad, mode='constant', value=None",
    "index_select": "input, dim, index",
    "gather": "input, dim, indices",
    "scatter": "input, dim, indices, updates",
    "embedding": "input, weight, tp_size=1, tp_group=None, sharding_dim=0, tp_rank=None, per_token_scale=None, "
    "padding=None",
    "topk": "input, k, dim, largest=True, prefer_plugin=True",
    "cumsum": "input, dim, prefer_plugin=True",
    "softmax": "input, dim=None",
    "log_softmax": "input, dim",
    "matmul": "input, mat2, transa=False, transb=False, use_fp32_acc=True",
    "einsum": "einsum_eq, inputs",
    "conv2d": "input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, "
    "pre_padding=None, post_padding=None",
    "layer_norm": "input, normalized_shape, weight=None, bias=None, eps=1e-05, use_diff_of_squares=True",
    "interpolate": "input, size=None, scale_factor=None, mode='nearest', align_corners=False, "
    "recompute_scale_factor=False, antialias=False",
}

# name: (our signature, why)
DEVIATIONS = {
    "constant": ("ndarray, as_dtype=None", "an array is given in its shape"),
    "flatten": ("input", "used whole only; view does the rest"),
    "squeeze": ("input, dim", "dropping every 1 would depend on sizes of the configuration"),
    "slice": ("input, starts, sizes, strides=None", "strict bounds; pad fills"),
    "embedding": ("input, weight", "one GPU"),
    "topk": ("input, k, dim, largest=True", "plugins are the executor's business"),
    "cumsum": ("input, dim", "plugins are the executor's business"),
    "softmax": ("input, dim", "the dimension is always said"),
    "matmul": ("input, mat2, transa=False, transb=False", "the executor accumulates in float32 where it can"),
    "conv2d": (
        "input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1",
        "padding is the same before and after",
    ),
    "layer_norm": ("input, normalized_shape, weight=None, bias=None, eps=1e-05", "a detail of their plugin"),
    "interpolate": (
        "input, size=None, scale_factor=None, mode='nearest', align_corners=False",
        "the other two only have their defaults there too",
    ),
    "narrow": ("input, dim, start, size", "not in TensorRT-LLM: slice along one dimension, as torch.narrow"),
}
