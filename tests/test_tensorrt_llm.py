"""--functional tensorrt_llm: the same network from its functions, on a stand-in; and the real thing where installed."""

import collections
import functools
import importlib
import importlib.util
import inspect
import json
import sys
import types

import builder
import numpy as np
import op_engines
import pytest
from fake_tensorrt_llm import FakeTensorRTLLM
from graph_io import TASKS
from op_cases import BOTH, CASES
from signatures import SIGNATURES
from test_builder import recipe_c_model
from test_functional import ours, public

from errors import UniADError
from model import load_model
from runtime import tensorrt_plan
from runtime.plan_files import sidecar_path
from trtllm import Network, net_guard, tensorrt_builder
from trtllm import functional as F
from trtllm import vision as V
from trtllm.tensorrt_builder import BuildOptions, build_engine, describe_layers
from trtllm.tensorrt_executor import TensorRTExecutor
from trtllm.tensorrt_flavours import Flavour, load_flavour
from trtllm.tensorrt_layers import NativeLayers
from trtllm.tensorrt_llm_layers import TensorRTLLMLayers, load_tensorrt_llm
from trtllm.tensorrt_plugins import PluginExecutor

PLAIN = public(F)  # the others are compositions of these
GROUPS = [(d, [i for i in group if CASES[i].function in PLAIN]) for d, group in op_engines.all_groups(40)]
GROUPS = [(d, group) for d, group in GROUPS if group]
REAL = "tensorrt_llm isn't installed: nothing of it has run here, only the stand-in (docs/design.md)"

# Kind of layer -> the functions that add it. Kinds that are not here have no function: their layers are native.
KINDS = {
    "constant": ["constant"],
    "cast": ["cast"],
    "elementwise": ["add", "sub", "mul", "div", "floordiv", "pow", "minimum", "maximum"]
    + ["gt", "lt", "eq", "op_and", "op_or"],
    "unary": ["exp", "log", "sqrt", "sin", "cos", "abs", "round", "not_op", "unary"],
    "activation": ["relu", "sigmoid", "tanh", "clip"],
    "select": ["where"],
    "shuffle": ["view", "permute"],
    "slice": ["slice"],
    "concatenation": ["concat"],
    "gather": ["embedding", "gather"],
    "scatter": ["scatter"],
    "topk": ["topk"],
    "reduce": ["sum", "mean", "max", "min"],
    "softmax": ["softmax"],
    "matrix_multiply": ["matmul"],
    "einsum": ["einsum"],
    "convolution": ["conv2d"],
    "normalization": ["layer_norm"],
}
NATIVE = {"identity", "scale", "pooling", "grid_sample"}


@pytest.fixture
def fake(rtx, monkeypatch) -> FakeTensorRTLLM:
    """The stand-in as the installed tensorrt_llm. Native clips are one layer, as its are: the only difference."""
    monkeypatch.setattr(NativeLayers, "clips", True)
    return FakeTensorRTLLM(rtx.trt).install(monkeypatch)


def definition(kind: type[NativeLayers], define, inputs, dtype: str, rtx: Flavour) -> list[tuple[str, str, str]]:
    """The layers of a network, which is not built."""
    trt_builder = rtx.trt.Builder(rtx.logger)
    network = rtx.create_network(trt_builder)
    executor = TensorRTExecutor(network, rtx, kind(network, rtx))
    with net_guard(Network(executor, dtype)):
        for name, tensor in define({name: executor.input(name, *spec) for name, spec in inputs.items()}).items():
            executor.output(tensor, name)
    return describe_layers(network)


def engine_bytes(define, inputs, dtype, rtx, functional) -> list[int]:
    """How often each byte stands in the engine: TensorRT puts outputs that don't depend on each other in any order."""
    plan = build_engine(define, inputs, rtx, BuildOptions(dtype, functional=functional)).plan
    return np.bincount(np.frombuffer(plan, np.uint8), minlength=256).tolist()


# ---- the same network


@pytest.mark.parametrize("dtype, indices", GROUPS, ids=[f"{d}-{g[0]}to{g[-1]}" for d, g in GROUPS])
def test_every_operation_is_the_same(dtype, indices, rtx, fake):
    inputs = {n: (str(a.dtype), a.shape) for n, a in op_engines.input_arrays(indices, dtype).items()}
    own, theirs = (engine_bytes(op_engines.define(indices), inputs, dtype, rtx, f) for f in ("own", "tensorrt_llm"))
    assert own == theirs
    assert fake.calls


def small(t):
    """Also what the operation cases, whose inputs are all tensors, do not have: weights that are constants."""
    rng, x = np.random.default_rng(0), t["x"]  # (1,4,8,8)
    weight, bias = (F.constant(rng.normal(size=s).astype(x.dtype)) for s in ((6, 2, 3, 3), (6,)))
    y = F.conv2d(x, weight, bias, stride=(2, 1), padding=(1, 1), dilation=(1, 2), groups=2)  # (1,6,4,6)
    z = F.pad(F.conv2d(x, weight, groups=2), (1, 2, 0, 1), value=0.5)  # (1,6,7,9)
    return {"y": F.where(y > 0.0, F.sum(y, 2, True), F.exp(y)), "z": F.softmax(F.sub(z, 2.0), 2)}


@pytest.mark.parametrize("dtype", BOTH)
def test_small_network_is_the_same(dtype, rtx, fake, monkeypatch):
    inputs = {"x": (dtype, (1, 4, 8, 8))}
    own, theirs = (engine_bytes(small, inputs, dtype, rtx, functional) for functional in ("own", "tensorrt_llm"))
    assert own == theirs
    once = ("gt", "where", "sum", "exp", "sub", "softmax", "slice")
    assert dict(fake.calls) == {"conv2d": 2, "constant": 5, **dict.fromkeys(once, 1)}
    functional = fake.modules["tensorrt_llm.functional"]
    for name, broken in {
        "constant": lambda a, right=functional.constant: right(np.asarray(a * 2, a.dtype)),
        "where": lambda c, a, b, right=functional.where: right(c, b, a),
        "sub": lambda a, b, right=functional.sub: right(b, a),
        "sum": functional.max,
        "exp": functional.sin,
        "softmax": lambda x, dim, right=functional.softmax: right(x, 3),
        "conv2d": lambda x, w, b, s, p, d, g, right=functional.conv2d: right(x, w, None, s, p, d, g),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(functional, name, broken)
            assert engine_bytes(small, inputs, dtype, rtx, "tensorrt_llm") != own, f"a broken {name} passed"


def test_beside_plugins(rtx, fake, monkeypatch):
    """A plugin (here a stand-in for one) takes its place among the layers of its functions."""

    def plugin(self, kind, name, inputs, dtype, **attributes):
        return self._add(self.layers.identity(inputs[0]), kind, dtype)

    monkeypatch.setattr(PluginExecutor, "_plugin", plugin)
    monkeypatch.setattr(tensorrt_builder, "load_plugins", lambda flavour: None)
    options = BuildOptions(plugins=["temporal_attention"], functional="tensorrt_llm")
    engine = build_engine(lambda t: {"y": F.exp(V.after(t["x"]))}, {"x": ("float32", (4,))}, rtx, options)
    assert [name for name, _, _ in engine.layers] == ["UniADAfter", "exp", "output"] and fake.calls["exp"] == 1


@pytest.fixture
def define_tiny(rtx, monkeypatch):
    """define_tiny(kind, dtype): the layers of the whole tiny network."""
    c_model = recipe_c_model("tiny_e2e")
    network = load_model(c_model, c_model.config, TASKS)

    def run(kind, dtype):
        def layers(define, inputs, flavour, options):
            return definition(kind, define, inputs, options.dtype, flavour)

        monkeypatch.setattr(tensorrt_plan, "build_engine", layers)
        return tensorrt_plan._build(network, c_model.config, rtx, BuildOptions(dtype))

    return run


@pytest.mark.parametrize("dtype", BOTH)
def test_tiny_network_is_the_same(dtype, fake, define_tiny, monkeypatch):
    """Names, kinds, types and shapes of all layers; and a call of a function stands behind each that has one."""
    layers = define_tiny(TensorRTLLMLayers, dtype)
    calls = collections.Counter(fake.calls)
    assert layers == define_tiny(NativeLayers, dtype)
    counts = collections.Counter(kind for _, kind, _ in layers)
    resizes = counts.pop("resize")
    assert 0 < calls["interpolate"] < resizes, "those with aligned corners are native"
    assert set(counts) <= set(KINDS) | NATIVE
    for kind, functions in KINDS.items():
        assert sum(calls[name] for name in functions) == counts[kind], kind
    assert set(calls) <= {name for functions in KINDS.values() for name in functions} | {"interpolate"}

    monkeypatch.setattr(TensorRTLLMLayers, "permute", lambda self, x, order: self._call("view", x, tuple(x.shape)))
    with pytest.raises(ValueError):  # a wrong shape stops the next operation
        define_tiny(TensorRTLLMLayers, dtype)


def test_engine_builds(rtx, fake, tmp_path, monkeypatch, capsys):
    """builder.py's own way, to the plan and its side file; the detector of the tiny network."""
    path = tmp_path / "engine.plan"
    command = ["builder.py", "-i", "c-model", "-o", str(path), "--backend", "tensorrt-rtx", "--dtype", "float16"]
    monkeypatch.setattr(sys, "argv", [*command, "--outputs", "track", "--functional", "tensorrt_llm"])
    what = builder.build_tensorrt(builder.parse_args(), recipe_c_model("tiny_e2e"), ["track"])
    assert what.startswith("tensorrt-rtx ")
    assert "--functional tensorrt_llm: 1.2.1" in capsys.readouterr().out
    facts = json.loads(sidecar_path(path).read_text())
    assert facts["functional"] == "tensorrt_llm 1.2.1" and path.read_bytes()[1:4] == b"trt"
    assert fake.calls["conv2d"] > 50 and fake.calls["matmul"] > 100


@pytest.mark.full
@pytest.mark.parametrize("dtype", BOTH)
def test_tiny_engine_builds(dtype, rtx, fake):
    c_model = recipe_c_model("tiny_e2e")
    network = load_model(c_model, c_model.config, TASKS)
    engine = tensorrt_plan._build(network, c_model.config, rtx, BuildOptions(dtype, functional="tensorrt_llm"))
    assert engine.functional == "tensorrt_llm 1.2.1" and len(engine.plan) > 10e6 and len(engine.layers) > 1000


# ---- what is refused


def replaced(fake, name, **changes):
    """The modules of the stand-in, one of them with other attributes."""
    return {**fake.modules, name: types.SimpleNamespace(**{**vars(fake.modules[name]), **changes})}


def broken_import(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)


def test_unfit_installations(rtx, fake, monkeypatch):
    """One line each, which says what to do."""
    other = types.SimpleNamespace(__name__="tensorrt")
    for modules, message in [
        (
            dict.fromkeys(fake.modules),
            r"can't be imported \(.*\): install it, at most 1\.2\.1, or use --functional own",
        ),
        ({**fake.modules, "tensorrt_llm.network": None}, r"can't be imported"),
        (replaced(fake, "tensorrt_llm", __version__="1.3.0rc15"), r"1\.3\.0rc15 has no functions .*install 1\.2\.1"),
        (replaced(fake, "tensorrt_llm", __version__="1.2.2"), r"1\.2\.2 has no functions"),
        (replaced(fake, "tensorrt_llm.functional", trt=other), r"module tensorrt, not tensorrt_rtx: use --backend ten"),
    ]:
        with monkeypatch.context() as patch, pytest.raises(UniADError, match=message) as caught:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            load_tensorrt_llm(rtx)
        assert "\n" not in str(caught.value)
    for version in ("0.17.0", "1.2.0rc8", "1.2.1", "1.2.1.post1"):
        for name, module in replaced(fake, "tensorrt_llm", __version__=version).items():
            monkeypatch.setitem(sys.modules, name, module)
        assert load_tensorrt_llm(rtx).version == version
    for error in (AssertionError(), OSError("\nlibnvinfer.so.10: no such file\nmore"), RuntimeError("MPI")):
        with monkeypatch.context() as patch, pytest.raises(UniADError, match="can't be imported") as caught:
            broken_import(patch, error)
            load_tensorrt_llm(rtx)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["8.6.0", "11.0.1"])
def test_another_tensorrt(version, rtx, monkeypatch):
    """Refused before the import, which would load two of them."""
    trt = types.SimpleNamespace(
        **{n: getattr(rtx.trt, n) for n in ("DataType", "ILogger", "LayerType")}, __version__=version, __name__="trt"
    )
    broken_import(monkeypatch, AssertionError("imported"))
    with pytest.raises(UniADError, match=rf"needs TensorRT 10, here is {version}: install .*--functional own"):
        load_tensorrt_llm(Flavour("tensorrt", trt))


@pytest.mark.parametrize("backend", ["torch", "tensorrt-rtx"])
def test_needs_tensorrt(backend, monkeypatch, tmp_path):
    command = ["builder.py", "-i", "none", "-o", str(tmp_path / "plan"), "--backend", backend]
    monkeypatch.setattr(sys, "argv", [*command, "--functional", "tensorrt_llm"])
    with pytest.raises(UniADError, match="--functional tensorrt_llm defines networks of TensorRT 10: use --backend"):
        builder.main()


def test_functions_that_do_not_fit(rtx, fake, monkeypatch):
    """Another signature, more than one layer, what TensorRT refuses: one line, and the next network is untouched."""

    def build(define, dtype="float16", **functions):
        with monkeypatch.context() as patch:
            for name, function in functions.items():
                patch.setitem(fake.modules["tensorrt_llm.functional"].__dict__, name, function)
            inputs = {"x": (dtype, (4, 4)), "y": (dtype, (4, 4))}
            return definition(TensorRTLLMLayers, lambda t: {"z": define(t["x"], t["y"])}, inputs, dtype, rtx)

    matmul = fake.function("matmul")
    for define, functions, message in [
        (
            lambda x, y: F.softmax(x, 1),
            {"softmax": lambda input: input},
            "^softmax of tensorrt_llm 1.2.1 fails .*takes 1",
        ),
        (lambda x, y: F.topk(x, 2, 1)[0], {"topk": lambda input, k, dim, largest: 1}, "topk .*'prefer_plugin'"),
        (F.matmul, {"matmul": lambda *a, use_fp32_acc: matmul(*a)}, "matmul of .* adds 4 layers where one is meant"),
        (F.add, {"add": lambda left, right: left}, "add of .* fails .*producer|add of .* adds 0 layers"),
        (lambda x, y: F.einsum("ij,jk->ik,", [x, y]), {}, "einsum of tensorrt_llm 1.2.1 fails .*TensorRT: .*insum"),
    ]:
        with pytest.raises(UniADError, match=message) as caught:
            build(define, **functions)
        assert "\n" not in str(caught.value)
        assert [kind for _, kind, _ in build(F.add)] == ["elementwise", "identity"]


def test_the_stand_in_takes_what_the_table_says(fake):
    functional = fake.modules["tensorrt_llm.functional"]
    for name, wanted in SIGNATURES.items():
        assert ours(getattr(functional, name)) == wanted
    with pytest.raises(TypeError, match="axis"):
        functional.softmax(None, axis=1)
    with pytest.raises(TypeError):
        functional.min(None, 1)
    with pytest.raises(NotImplementedError, match="index_select"):
        functional.index_select(None, 0, None)


# ---- the real thing


def signature_of(function) -> str:
    """As in the table: without the parameters that a partial has fixed."""
    fixed = getattr(function, "keywords", {})
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name not in fixed]

    def shown(): ...

    shown.__signature__ = signature.replace(parameters=kept)
    return ours(shown)


def test_signatures_of_partials():
    """Most of its element-wise functions are made so."""

    def reduce(input, op, dim, keepdim=False): ...

    assert signature_of(functools.partial(reduce, op="MIN")) == SIGNATURES["min"]
    assert signature_of(reduce) == SIGNATURES["reduce"] != signature_of(functools.partial(reduce, dim=0))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is None, reason=REAL)
def test_real_signatures():
    functional = load_tensorrt_llm(load_flavour("tensorrt")).functional
    assert {name: signature_of(getattr(functional, name)) for name in SIGNATURES} == SIGNATURES


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is None, reason=REAL)
@pytest.mark.parametrize("dtype, indices", GROUPS, ids=[f"{d}-{g[0]}to{g[-1]}" for d, g in GROUPS])
def test_real_functions(dtype, indices):
    """Needs a GPU, as every build with TensorRT does. Numbers: tests/gpu/check_ops.py --functional tensorrt_llm."""
    inputs = {n: (str(a.dtype), a.shape) for n, a in op_engines.input_arrays(indices, dtype).items()}
    flavour = load_flavour("tensorrt")
    for define, specs in [(op_engines.define(indices), inputs), (small, {"x": (dtype, (1, 4, 8, 8))})]:
        engine = build_engine(define, specs, flavour, BuildOptions(dtype, functional="tensorrt_llm"))
        assert engine.functional.startswith("tensorrt_llm ") and len(engine.plan) > 1000
