"""Every functional and vision operation on the torch executors against plain torch, and what they refuse."""

import inspect

import numpy as np
import pytest
import torch
from op_cases import CASES, Case
from signatures import DEVIATIONS, SIGNATURES
from support import max_error

from layers.basic import memory_attention
from layers.bev_encoder import temporal_inputs
from layers.bev_geometry import point_sampling, rotate_nearest
from layers.occ_head import likeliest_instance
from layers.resnet import normalise_images
from layers.seg_mask_head import attention_masks
from layers.seg_merge import merge_masks
from layers.track_life_cycle import propagate
from trtllm import (
    Module,
    ModuleList,
    Network,
    Parameter,
    Sequential,
    Tensor,
    default_net,
    map_layout,
    net_dtype,
    net_guard,
    sampled_attention,
)
from trtllm import functional as F
from trtllm import vision as V
from trtllm.torch_executor import TorchCPUExecutor, TorchExecutor

RUNS = [pytest.param(c, d, id=f"{c.name}-{d}") for c in CASES for d in c.dtypes]


def as_list(result) -> list:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def compute(function, case: Case, dtype: str, executor) -> list[np.ndarray]:
    """What `function` (case.run or case.broken) gives in a network of that type."""
    with torch.inference_mode(), net_guard(Network(executor, dtype)):
        results = as_list(function(*(F.constant(a) for a in case.arrays(dtype))))
    for result in results:
        assert str(result.handle.dtype) == f"torch.{result.dtype}", "the tensor's type is not its value's"
        assert tuple(result.handle.shape) == result.shape
    return [result.handle.numpy() for result in results]


def expected(case: Case) -> list[np.ndarray]:
    return [r.numpy() for r in as_list(case.reference(torch, *map(torch.from_numpy, case.inputs)))]


def passes(actual: list[np.ndarray], wanted: list[np.ndarray], case: Case, dtype: str) -> bool:
    errors = [max_error(a, w) <= case.allowed(dtype, w) for a, w in zip(actual, wanted, strict=True)]
    return all(errors)


@pytest.mark.parametrize("executor", [TorchCPUExecutor, TorchExecutor])
@pytest.mark.parametrize("case, dtype", RUNS)
def test_operation(case, dtype, executor):
    wanted = expected(case)
    actual = compute(case.run, case, dtype, executor())
    errors = [(max_error(a, w), case.allowed(dtype, w)) for a, w in zip(actual, wanted, strict=True)]
    assert all(error <= allowed for error, allowed in errors), f"(error, allowed) by output: {errors}"
    assert not passes(compute(case.broken, case, dtype, executor()), wanted, case, dtype), "the broken variant passed"


HELPERS = ("make", "axis", "offered", "default_net")
# Operations that an executor may offer, composed in layers/.
OF_LAYERS = {
    f.__name__: f
    for f in (
        attention_masks, likeliest_instance, memory_attention, merge_masks, normalise_images, point_sampling, propagate,
        rotate_nearest, temporal_inputs,
    )
}  # fmt: skip


def public(module) -> dict:
    """Functions that network code may call, by name; `make`, `axis` and `offered` are helpers for new operations."""
    functions = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__.startswith("trtllm.")}
    return {n: f for n, f in functions.items() if not n.startswith("_") and n not in HELPERS}


def test_every_operation_has_a_docstring_and_a_case():
    functions = {**public(F), **public(V), **public(sampled_attention), **public(map_layout), **OF_LAYERS}
    assert len(functions) > 60
    assert [n for n, f in functions.items() if not (f.__doc__ or "").strip()] == []
    assert sorted(set(functions) - {c.function for c in CASES}) == []
    assert sorted({c.function for c in CASES} - set(functions)) == []
    assert len({c.name for c in CASES}) == len(CASES)


# ---- signatures -----------------------------------------------------------------------------------------------


def ours(function) -> str:
    """Parameter names in order, "name=default" where there is one; a bare "*" before keyword-only ones."""
    parts, keyword_only = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
            keyword_only = True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts.append(parameter.name + default)
    return ", ".join(parts)


def test_signatures_are_tensorrt_llms():
    functions = public(F)
    for name, function in functions.items():
        if name in DEVIATIONS:
            wanted, reason = DEVIATIONS[name]
            assert reason and wanted != SIGNATURES.get(name), f"{name}: the deviation is none"
        else:
            assert name in SIGNATURES, f"{name} is not in the table of TensorRT-LLM's functions"
            wanted = SIGNATURES[name]
        assert ours(function) == wanted, name
    assert set(SIGNATURES) | set(DEVIATIONS) == set(functions), "the table names functions that do not exist"


def test_ours_accepts_what_theirs_does_by_position():
    """A deviation may leave out parameters at the end, or ask for one; it never reorders."""
    for name, (mine, _) in DEVIATIONS.items():
        if name in SIGNATURES:
            names = [p.split("=")[0] for p in mine.split(", ")]
            theirs = [p.split("=")[0] for p in SIGNATURES[name].split(", ")]
            assert names == theirs[: len(names)], name


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    with torch.inference_mode(), net_guard(Network(TorchCPUExecutor(), "float32")) as network:
        yield network


def zeros(*shape: int, dtype="float32") -> Tensor:
    return F.constant(np.zeros(shape, dtype))


REFUSED = {
    "float32 + float16": (lambda: zeros(2) + zeros(2, dtype="float16"), TypeError, "add: types differ .*float16"),
    "float + int32": (lambda: zeros(2) * zeros(2, dtype="int32"), TypeError, "mul: types differ"),
    "bool + bool": (lambda: zeros(2, dtype="bool") + zeros(2, dtype="bool"), TypeError, "add: bool is not one of"),
    "uint8 + uint8": (lambda: zeros(2, dtype="uint8") + 1, TypeError, "add: uint8 is not one of"),
    "int32 * 0.5": (lambda: zeros(2, dtype="int32") * 0.5, TypeError, "mul: the number 0.5 beside int32"),
    "two numbers": (lambda: F.add(1, 2), TypeError, "one side must be a tensor"),
    "and of ints": (lambda: F.op_and(zeros(2, dtype="int32"), zeros(2, dtype="int32")), TypeError, "and: int32"),
    "div of ints": (lambda: zeros(2, dtype="int32") / 2, TypeError, "use floordiv"),
    "sqrt of ints": (lambda: F.sqrt(zeros(2, dtype="int32")), TypeError, "sqrt: int32"),
    "not of floats": (lambda: F.not_op(zeros(2)), TypeError, "not: float32"),
    "clip of ints": (lambda: F.clip(zeros(2, dtype="int32"), 0, 1), TypeError, "clip: int32"),
    "broadcast": (lambda: zeros(2, 3) + zeros(2), ValueError, r"add: shapes \(2, 3\) and \(2,\)"),
    "where by floats": (lambda: F.where(zeros(2), zeros(2), zeros(2)), TypeError, "where: float32"),
    "where of two types": (
        lambda: F.where(zeros(2, dtype="bool"), zeros(2), zeros(2, dtype="int32")), TypeError, "where: types differ"),
    "where broadcast": (lambda: F.where(zeros(3, dtype="bool"), zeros(2), 0.0), ValueError, "where: shapes"),
    "cast to float64": (lambda: F.cast(zeros(2), "float64"), TypeError, "no type 'float64'"),
    "constant of complex": (lambda: F.constant(np.zeros(2, np.complex64)), TypeError, "no tensor type complex64"),
    "view": (lambda: F.view(zeros(2, 3), (4, -1)), ValueError, r"view: \(2, 3\) as"),
    "view to more": (lambda: F.view(zeros(2, 3), (2, 4)), ValueError, r"view: \(2, 3\) as \(2, 4\)"),
    "two unknowns": (lambda: F.view(zeros(2, 3), (-1, -1)), ValueError, "view"),
    "squeeze": (lambda: F.squeeze(zeros(2, 3), 0), ValueError, "squeeze: dimension 0"),
    "unsqueeze": (lambda: F.unsqueeze(zeros(2, 3), 3), IndexError, "dimension 3"),
    "permute": (lambda: F.permute(zeros(2, 3), (0, 0)), ValueError, "permute"),
    "no such dimension": (lambda: F.transpose(zeros(2, 3), 0, 2), IndexError, "dimension 2 of a tensor with 2"),
    "expand": (lambda: F.expand(zeros(2, 3), (2, 6)), ValueError, "expand"),
    "slice": (lambda: F.slice(zeros(4), (2,), (3,)), ValueError, "slice: .* leave"),
    "slice of too few": (lambda: F.slice(zeros(4, 2), (2,), (1,)), ValueError, "2 starts"),
    "narrow": (lambda: F.narrow(zeros(4), 0, 3, 2), ValueError, "leave"),
    "narrow to all from 1": (lambda: F.narrow(zeros(4), 0, 1, 4), ValueError, "leave"),
    "select": (lambda: F.select(zeros(4), 0, 4), ValueError, "leave"),
    "split": (lambda: F.split(zeros(4), 3), ValueError, "split: 4 in pieces of 3"),
    "split in sizes": (lambda: F.split(zeros(4), [1, 2]), ValueError, "split"),
    "chunk": (lambda: F.chunk(zeros(4), 3), ValueError, "chunk: 4 in 3"),
    "concat": (lambda: F.concat([zeros(2, 3), zeros(2, 4)]), ValueError, "concat: shapes"),
    "concat of two types": (lambda: F.concat([zeros(2), zeros(2, dtype="int32")]), TypeError, "concat: types differ"),
    "repeat": (lambda: F.repeat(zeros(2, 3), (2,)), ValueError, "repeat"),
    "pad": (lambda: F.pad(zeros(2), (-1, 0)), ValueError, "pad"),
    "pad by reflection": (lambda: F.pad(zeros(2), (1, 0), "reflect"), ValueError, "reflect"),
    "index of floats": (lambda: F.index_select(zeros(2), 0, zeros(2)), TypeError, "index_select: float32"),
    "index of rank 2": (lambda: F.index_select(zeros(2), 0, zeros(2, 2, dtype="int32")), ValueError, "index has shape"),
    "gather": (lambda: F.gather(zeros(2, 3), 0, zeros(2, dtype="int32")), ValueError, "gather"),
    "gather beyond": (lambda: F.gather(zeros(2, 3), 0, zeros(2, 4, dtype="int32")), ValueError, "exceed"),
    "scatter": (lambda: F.scatter(zeros(4), 0, zeros(2, dtype="int32"), zeros(3)), ValueError, "scatter"),
    "topk of ints": (lambda: F.topk(zeros(4, dtype="int32"), 1, 0), TypeError, "topk: int32"),
    "topk of too many": (lambda: F.topk(zeros(4), 5, 0), ValueError, "topk: 5 of 4"),
    "mean of ints": (lambda: F.mean(zeros(4, dtype="int32"), 0), TypeError, "mean: int32"),
    "cumsum of float16": (lambda: F.cumsum(zeros(4, dtype="float16"), 0), TypeError, "cumsum: float16"),
    "matmul": (lambda: F.matmul(zeros(2, 3), zeros(2, 3)), ValueError, "matmul"),
    "matmul of two types": (lambda: F.matmul(zeros(2, 2), zeros(2, 2, dtype="float16")), TypeError, "matmul: types"),
    "conv2d": (lambda: F.conv2d(zeros(1, 3, 8, 8), zeros(4, 2, 3, 3)), ValueError, "conv2d: input"),
    "conv2d of two types": (
        lambda: F.conv2d(zeros(1, 3, 8, 8), zeros(4, 3, 3, 3, dtype="float16")), TypeError, "conv2d: types differ"),
    "layer_norm": (lambda: F.layer_norm(zeros(2, 3), 4), ValueError, "layer_norm"),
    "interpolate": (lambda: F.interpolate(zeros(1, 1, 2, 2)), ValueError, "size or scale_factor"),
    "interpolate mode": (lambda: F.interpolate(zeros(1, 1, 2, 2), (4, 4), mode="bicubic"), ValueError, "nearest or"),
    "grid_sample types": (
        lambda: V.grid_sample(zeros(1, 1, 2, 2, dtype="float16"), zeros(1, 2, 2, 2)), TypeError, "float16 at float32"),
    "grid_sample border": (
        lambda: V.grid_sample(zeros(1, 1, 2, 2), zeros(1, 2, 2, 2), padding_mode="border"), ValueError, "border"),
    "linear of two types": (lambda: V.linear(zeros(2, 3), zeros(4, 3, dtype="float16")), TypeError, "linear: types"),
    "attention of two types": (
        lambda: V.attention(zeros(2, 3), zeros(4, 3), zeros(4, 3, dtype="float16")), TypeError, "attention: types"),
    "heads of two types": (
        lambda: V.multihead_attention(zeros(2, 2, 3), zeros(4, 2, 3), zeros(4, 2, 3, dtype="float16")),
        TypeError, "multihead_attention: types"),
    "heads of two sizes": (
        lambda: V.multihead_attention(zeros(2, 2, 3), zeros(4, 2, 4), zeros(4, 2, 4)), ValueError, "multihead_att"),
    "heads that there are not": (
        lambda: V.multihead_attention(zeros(2, 2, 3), zeros(4, 4, 3), zeros(4, 4, 3), None, (0, 3)),
        ValueError, "2 heads from .0, 3. of 4"),
    "keys without a value": (
        lambda: V.multihead_attention(zeros(2, 2, 3), zeros(4, 2, 3), zeros(5, 2, 3)), ValueError, "multihead_att"),
    "atan2 of float16": (lambda: V.atan2(zeros(2, dtype="float16"), zeros(2, dtype="float16")), TypeError, "float32"),
    "deform conv": (
        lambda: V.modulated_deform_conv2d(zeros(1, 2, 4, 4), zeros(1, 18, 4, 4), zeros(2, 2, 3, 3)), ValueError, "tap"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, network):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


# ---- networks and modules -------------------------------------------------------------------------------------


def test_calls_need_a_network():
    with pytest.raises(RuntimeError, match="net_guard"):
        F.constant(np.zeros(2))
    with pytest.raises(ValueError, match="bfloat16"):
        Network(TorchCPUExecutor(), "bfloat16")


def test_net_guards_nest_and_end():
    outer, inner = Network(TorchCPUExecutor(), "float32"), Network(TorchCPUExecutor(), "float16")
    with net_guard(outer):
        with net_guard(inner):
            assert net_dtype() == "float16" and default_net() is inner
        assert net_dtype() == "float32" and default_net() is outer
        with pytest.raises(ZeroDivisionError), net_guard(inner):
            raise ZeroDivisionError
        assert default_net() is outer
    with pytest.raises(RuntimeError):
        net_dtype()


class Scale(Module):
    def __init__(self, dtype: str | None = None):
        super().__init__()
        self.weight = Parameter((3,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.value


class Model(Module):
    def __init__(self):
        super().__init__()
        self.first = Scale()
        self.layers = ModuleList([Scale(), None, Scale("float32")])
        self.ffn = Sequential(Scale(), F.relu, Scale())

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.layers[0](self.first(x)))


KEYS = ["first.weight", "layers.0.weight", "layers.2.weight", "ffn.0.weight", "ffn.2.weight"]


def test_parameters_have_the_checkpoint_keys_and_the_network_type():
    model = Model()
    assert [key for key, _ in model.named_parameters()] == KEYS
    arrays = {f"head.{key}": np.full(3, i + 1, np.float32) for i, key in enumerate(KEYS)}
    model.load(arrays, "head.")
    for dtype in ("float32", "float16"):  # one model serves several networks
        with torch.inference_mode(), net_guard(Network(TorchCPUExecutor(), dtype)):
            x = F.constant(np.array([1, -1, 2], dtype))
            assert model(x).handle.tolist() == [40, 0, 80]  # 1 * 1 * 2 * 4 * 5 and a relu
            assert model.first.weight.value.dtype == dtype
            assert model.first.weight.value is model.first.weight.value
            assert model.layers[2].weight.value.dtype == "float32"


def test_load_names_every_missing_and_every_misshapen_key():
    arrays = {key: np.zeros(3, np.float32) for key in KEYS}
    del arrays["first.weight"], arrays["ffn.2.weight"]
    with pytest.raises(KeyError, match=r"2 weights are missing: first\.weight, ffn\.2\.weight"):
        Model().load(arrays)
    arrays = {key: np.zeros(4 if "0" in key else 3, np.float32) for key in KEYS}
    with pytest.raises(ValueError, match=r"2 weights .*layers\.0\.weight: \(4,\), not \(3,\); ffn\.0\.weight"):
        Model().load(arrays)


def test_a_parameter_without_a_value_says_which(network):
    model = Model()
    with pytest.raises(RuntimeError, match="load the weights first"):
        model(zeros(3))
    assert network.scope == [], "a failed call must leave no scope behind"


def test_module_paths():
    """What executors see of the call in progress: attribute names, with a list's items as "layers.0"."""

    class Recorder(TorchCPUExecutor):
        def __init__(self):
            super().__init__()
            self.paths = []

        def enter(self, scope):
            self.paths.append("/".join(scope))

        def leave(self, scope):
            self.paths.append("leave " + scope[-1])

    model, recorder = Model(), Recorder()
    model.load({key: np.zeros(3, np.float32) for key in KEYS})
    with net_guard(Network(recorder)):
        model(zeros(3))
    assert [p for p in recorder.paths if not p.startswith("leave")] == [
        "Model", "Model/first", "Model/layers.0", "Model/ffn", "Model/ffn/0", "Model/ffn/2"]  # fmt: skip
    assert recorder.paths[-1] == "leave Model" and len(recorder.paths) == 12


def test_module_list_holds_places():
    layers = Model().layers
    assert len(layers) == 3 and layers[1] is None and [m is None for m in layers] == [False, True, False]
