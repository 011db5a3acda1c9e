"""Every operation as a TensorRT engine (TensorRT for RTX builds without a GPU), and what builds promise."""

import copy
import os
import subprocess
import sys
import types

import numpy as np
import op_engines
import pytest
from op_cases import CASES
from support import ROOT, SCRIPTS

from errors import UniADError
from trtllm import Module, ModuleList, Network, Parameter, Tensor, net_guard, polynomials, tensorrt_builder
from trtllm import functional as F
from trtllm import vision as V
from trtllm.sampled_attention import MANY_QUERIES, camera_cross_attention
from trtllm.tensorrt_builder import BuildOptions, build_engine
from trtllm.tensorrt_executor import TensorRTExecutor
from trtllm.tensorrt_flavours import Flavour, load_flavour

GROUPS = op_engines.all_groups(24)


@pytest.mark.parametrize("dtype, indices", GROUPS, ids=[f"{d}-{g[0]}to{g[-1]}" for d, g in GROUPS])
def test_every_operation_builds(dtype, indices, rtx):
    options = BuildOptions(dtype)
    try:
        engine = op_engines.build(indices, rtx, options)
    except UniADError:
        failures = {}
        for index in indices:  # one by one, to name it
            try:
                op_engines.build([index], rtx, options)
            except UniADError as error:
                failures[CASES[index].name] = str(error)
        assert not failures, failures
        raise
    assert len(engine.plan) > 1000
    assert len({name for name, _, _ in engine.layers}) == len(engine.layers), "layer names must differ"


def executor_of(rtx: Flavour) -> TensorRTExecutor:
    builder = rtx.trt.Builder(rtx.logger)
    executor = TensorRTExecutor(rtx.create_network(builder), rtx)
    executor.builder = builder  # must outlive the network
    return executor


def test_a_wrong_type_is_caught_where_it_is_added(rtx):
    executor = executor_of(rtx)
    a, b = executor.input("a", "float32", (2,)), executor.input("b", "float16", (2,))
    with pytest.raises(UniADError, match="add"):
        executor.binary("add", a.handle, b.handle)
    with pytest.raises(UniADError, match=r"cast: TensorRT makes DataType\.HALF of it, not float32"):
        executor._add(executor.network.add_cast(a.handle, rtx.types["float16"]), "cast", "float32")


def test_constants_are_shared(rtx):
    executor = executor_of(rtx)
    large = np.zeros((100, 9), np.float32)
    assert executor.constant(large) is executor.constant(large)
    assert executor.constant(large) is not executor.constant(large.copy())
    assert executor.constant(np.ones(3, np.float32)) is executor.constant(np.ones(3, np.float32))
    small = [np.ones(3, np.float32), np.ones((1, 3), np.float32), np.ones(3, np.int32), np.ones(3, np.float16)]
    assert len({executor.constant(a).name for a in small}) == 4


class Block(Module):
    def __init__(self):
        super().__init__()
        self.weight = Parameter((3, 3))

    def forward(self, x):
        return F.relu(F.matmul(x, self.weight.value))


class Model(Module):
    def __init__(self):
        super().__init__()
        self.layers = ModuleList([Block(), Block()])
        self._name = ""

    def forward(self, x):
        return self.layers[1](self.layers[0](x)) + 1.0


def build_model(rtx, outputs=None, **options):
    model = Model()
    model.load({f"layers.{i}.weight": np.eye(3, dtype=np.float32) + i for i in range(2)})

    def define(inputs):
        y = model(inputs["x"])
        return {"y": y, "same": y, "x_out": inputs["x"], "exp": F.exp(y)}

    return build_engine(define, {"x": ("float32", (4, 3))}, rtx, BuildOptions(**options), outputs)


def test_layers_carry_the_module_path_and_weights_their_key(rtx):
    names = [name for name, _, _ in build_model(rtx).layers]
    wanted = ["layers.0/matmul", "layers.0/relu", "layers.0.weight", "layers.1/matmul", "layers.1/relu", "add", "exp"]
    assert set(wanted) <= set(names), names
    assert "layers.1.weight" in names and names.count("constant") == 1


def test_outputs_are_pruned(rtx):
    kinds = [kind for _, kind, _ in build_model(rtx, ["y", "x_out"]).layers]
    assert kinds.count("identity") == 2
    with pytest.raises(UniADError, match="no output z: the network has y, same, x_out, exp"):
        build_model(rtx, ["y", "z"])


def test_progress(rtx):
    steps = []
    build_model(rtx, progress=lambda *step: steps.append(step), optimization_level=0)
    assert steps and steps[0][1] == 0 and steps[0][3] == 0 and all(0 <= step <= count for _, step, count, _ in steps)


def test_timing_cache(rtx, tmp_path):
    """Used where it fits and replaced where it does not, on a stand-in; TensorRT for RTX has none and says so."""

    class Config:
        def create_timing_cache(self, data):
            return types.SimpleNamespace(data=data, serialize=lambda: b"new") if data != b"damaged" else None

        def set_timing_cache(self, cache, ignore_mismatch):
            if fits := cache.data != b"another GPU":
                self.cache = cache
            return fits

        def get_timing_cache(self):
            return self.cache

    file, config = tmp_path / "timing.cache", Config()
    for content, used in [(None, b""), (b"damaged", b""), (b"another GPU", b""), (b"good", b"good")]:
        if content:
            file.write_bytes(content)
        tensorrt_builder._read_timing_cache(config, file)
        assert config.cache.data == used
    tensorrt_builder._write_timing_cache(config, file)
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(UniADError, match="no timing cache"):
        build_model(rtx, timing_cache=file)


def test_refusals_name_the_layer_and_the_reason(rtx):
    def build(define, dtype="float32", shape=(4000,), **options):
        build_engine(lambda t: {"y": define(t["x"])}, {"x": (dtype, shape)}, rtx, BuildOptions(**options))

    with pytest.raises(UniADError, match="topk of 3841 rows; TensorRT sorts at most 3840"):
        build(lambda x: F.topk(x, 3841, 0)[0])
    with pytest.raises(UniADError, match="einsum"):
        build(lambda x: F.einsum("ij,jk->ik", [x, x]))
    with pytest.raises(UniADError, match=r"can't build for 9\.0: it knows 7\.5, 8\.0, 8\.6"):
        build(F.exp, compute_capabilities=("9.0",))
    with pytest.raises(UniADError, match="statistics of a batch norm must be constants"):
        build(lambda x: V.batch_norm(x, *[F.exp(F.constant(np.ones(4, np.float32)))] * 4), shape=(1, 4, 2, 2))


def test_unknown_and_missing_backends(monkeypatch):
    with pytest.raises(UniADError, match="no backend 'cuda': use one of tensorrt-rtx, tensorrt"):
        load_flavour("cuda")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UniADError, match=r"tensorrt can't be imported \(.*\): install it"):
        load_flavour("tensorrt")


def test_types_are_constrained_on_8_6(rtx):
    """The weakly typed flavour, on a stand-in for its module: what each layer is told."""
    trt = types.SimpleNamespace(
        **{n: getattr(rtx.trt, n) for n in ("DataType", "ILogger", "LayerType")}, __version__="8.6.0", __name__="trt"
    )
    flavour = Flavour("tensorrt", trt)
    assert not flavour.strongly_typed

    class Layer:
        def __init__(self, kind):
            self.type, self.precision, self.outputs = kind, None, {}

        def set_output_type(self, index, dtype):
            self.outputs[index] = dtype

    half, single, kinds = trt.DataType.HALF, trt.DataType.FLOAT, trt.LayerType
    for kind, compute, outputs, precision, told in [
        (kinds.MATRIX_MULTIPLY, "float16", ["float16"], half, {0: half}),
        (kinds.ELEMENTWISE, "float32", ["bool"], single, {}),
        (kinds.ELEMENTWISE, None, ["int32"], None, {}),
        (kinds.TOPK, "float32", ["float32", "int32"], single, {0: single}),
        (kinds.CAST, "float16", ["int32"], None, {0: trt.DataType.INT32}),
        (kinds.GRID_SAMPLE, "float16", ["float16"], half, {0: half}),
        # what only moves elements is left alone
        (kinds.CONSTANT, "float16", ["float16"], None, {}),
        (kinds.SHUFFLE, "float16", ["float16"], None, {}),
        (kinds.SLICE, "float32", ["float32"], None, {}),
        (kinds.CONCATENATION, "float16", ["float16"], None, {}),
        (kinds.GATHER, "float16", ["float16"], None, {}),
        (kinds.SCATTER, "float16", ["float16"], None, {}),
        (kinds.SELECT, "float32", ["float32"], None, {}),
        (kinds.IDENTITY, "float16", ["float16"], None, {}),
    ]:
        layer = Layer(kind)
        flavour.constrain(layer, compute, outputs)
        assert (layer.precision, layer.outputs) == (precision, told), (kind, outputs)
    trt.__version__ = "8.5.3"
    with pytest.raises(UniADError, match="too old"):
        Flavour("tensorrt", trt)


class NumpyExecutor(TensorRTExecutor):
    """The executor of a flavour that is not strongly typed; handles are arrays, and the layers below compute."""

    def __init__(self):
        self.flavour, self._constants = types.SimpleNamespace(strongly_typed=False), {}

    def constant(self, array):
        return np.asarray(array)

    def cast(self, x, source, target):
        assert x.dtype == source
        return x.astype(target)

    def view(self, x, shape):
        return x.reshape(shape)

    def _type(self, x):
        return str(x.dtype)

    def reduce(self, op, x, dims, keepdim):
        return {"mean": np.mean}[op](x, axis=dims, keepdims=keepdim)

    def unary(self, op, x):
        return {"sqrt": np.sqrt, "abs": np.abs}[op](x)

    def binary(self, op, a, b):
        assert a.dtype == b.dtype == np.float32
        names = {"sub": "subtract", "mul": "multiply", "div": "divide", "min": "minimum", "max": "maximum"}
        return getattr(np, names.get(op, {"gt": "greater", "lt": "less"}.get(op, op)))(a, b)

    def where(self, condition, a, b):
        return np.where(condition, a, b)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("learned", ["constant", "computed", None])
def test_layer_norm_of_8_6(dtype, learned):
    """Built from elementary layers in float32, which must give what the one layer of other versions gives."""
    rng = np.random.default_rng(5)
    x = (300 + 2 * rng.normal(size=(3, 5, 16))).astype(dtype)  # its squares are too large for float16
    gain, shift = rng.normal(size=(2, 16)).astype(dtype)
    affine = [Tensor(a, dtype, a.shape, a if learned == "constant" else None) for a in (gain, shift)]
    affine = affine if learned else [None, None]
    result = NumpyExecutor().layer_norm(Tensor(x, dtype, x.shape), *affine, 1e-5)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = expected * gain + shift if learned else expected
    tolerance = {"float32": 1e-4, "float16": 5e-3}[dtype]
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=tolerance)
    broken = NumpyExecutor().layer_norm(Tensor(x, dtype, x.shape), *affine, 1.0)
    assert np.abs(broken - expected).max() > 10 * tolerance


@pytest.mark.parametrize("op", ["sin", "cos", "atan"])
@pytest.mark.parametrize(("reach", "tolerance"), [(4.0, 5e-7), (60.0, 5e-6), (395.0, 4e-5)])
def test_polynomials_of_8_6(op, reach, tolerance):
    """As exact as float32 is for an angle of that size."""
    tolerance = 5e-7 if op == "atan" else tolerance
    x = np.random.default_rng(6).uniform(-reach, reach, 20000).astype(np.float32)
    x[:6] = 0.0, np.pi, -np.pi, np.pi / 2, 1.0, -1.0
    expected = {"sin": np.sin, "cos": np.cos, "atan": np.arctan}[op](x.astype(np.float64))
    actual = polynomials.FUNCTIONS[op](NumpyExecutor(), x)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)
    broken = polynomials.FUNCTIONS[op](NumpyExecutor(), x * np.float32(1.001))
    assert np.abs(broken - expected).max() > 2 * tolerance
    far = polynomials.FUNCTIONS[op](NumpyExecutor(), np.array([-1e6, -400, 400, 1e6, np.nan], np.float32))
    assert np.abs(far[:4]).max() < 1.6 and np.isnan(far[4])  # no nonsense where it is not exact, no number for none


def weakly_typed(rtx: Flavour) -> Flavour:
    """The flavour as one that is held to its types by constraints; they are not set: strong typing checks the types."""
    flavour = copy.copy(rtx)
    flavour.strongly_typed = False
    flavour.constrain = flavour.declare_border = lambda *_: None
    return flavour


def test_what_8_6_builds_otherwise(rtx):
    """Layer norms in elementary layers, grouped or dilated convolutions in float32, regions parted: it still builds."""
    kernel = np.ones((4, 2, 3, 3), np.float32)

    def define(t):
        convolved = F.conv2d(t["x"], F.constant(kernel, "float16"), None, groups=2)
        return {"y": F.layer_norm(V.after(t["x"], convolved), 6), "z": convolved}

    def kinds(flavour):
        inputs = {"x": ("float16", (1, 4, 6, 6))}
        executor = TensorRTExecutor(rtx.create_network(builder := rtx.trt.Builder(rtx.logger)), flavour)
        with net_guard(Network(executor, "float16")):
            outputs = define({name: executor.input(name, *spec) for name, spec in inputs.items()})
        for name, tensor in outputs.items():
            executor.output(tensor, name)
            assert tensor.dtype == "float16" and tensor.handle.dtype == rtx.types["float16"]
        layers = [(kind, tensors) for _, kind, tensors in tensorrt_builder.describe_layers(executor.network)]
        del builder
        return layers

    strong, weak = kinds(rtx), kinds(weakly_typed(rtx))
    assert "normalization" in dict(strong) and "normalization" not in dict(weak)
    assert "activation" in dict(weak) and "activation" not in dict(strong)
    assert "half" in dict(strong)["convolution"] and "half" not in dict(weak)["convolution"]


def test_cameras_of_8_6_one_by_one(rtx):
    """Of many queries in float16, all that a camera samples, places and maps, waits for the camera before."""

    def earlier_samplings(flavour, dtype: str, queries: int) -> list[list[int]]:
        """For both inputs of each sampling, in the order of the calls, how many others they depend on."""
        specs = {
            "value": (dtype, (3, 60, 2, 4)),
            "points": ("float32", (3, queries, 2, 2)),
            "seen": ("bool", (3, queries, 2)),
            "offsets": (dtype, (queries, 2, 2, 4, 2)),
            "logits": (dtype, (queries, 2, 8)),
        }
        network = rtx.create_network(builder := rtx.trt.Builder(rtx.logger))
        executor = TensorRTExecutor(network, flavour)
        with net_guard(Network(executor, dtype)):
            inputs = [executor.input(name, *spec) for name, spec in specs.items()]
            camera_cross_attention(*inputs, [(6, 8), (3, 4)])
        before: dict[str, set[int]] = {}
        counts = []
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            sources = [before.get(layer.get_input(i).name, set()) for i in range(layer.num_inputs)]
            own = {index} if layer.type == rtx.trt.LayerType.GRID_SAMPLE else set()
            counts += [[len(found) for found in sources]] if own else []
            before[layer.get_output(0).name] = own.union(*sources)
        del builder
        return counts

    weak, many = weakly_typed(rtx), MANY_QUERIES + 1
    assert earlier_samplings(weak, "float16", many) == [[0, 0]] * 2 + [[2, 2]] * 2 + [[4, 4]] * 2
    for other in ((rtx, "float16", many), (weak, "float32", many), (weak, "float16", MANY_QUERIES)):
        assert earlier_samplings(*other) == [[0, 0]] * 6


def test_building_needs_no_torch(rtx):
    """The whole path from functional calls to an engine, in a process of its own, with torch out of reach."""
    code = """
import sys
sys.modules["torch"] = None  # an import would fail
from trtllm.tensorrt_flavours import load_flavour
from trtllm.tensorrt_builder import BuildOptions
import op_engines
print(len(op_engines.build([0], load_flavour("tensorrt-rtx"), BuildOptions()).plan))
"""
    path = os.pathsep.join([str(SCRIPTS), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 1000


def test_execution_context_is_the_networks(rtx):
    """Two networks at once keep their parameters apart."""
    model = Block()
    model.load({"weight": np.eye(3, dtype=np.float32)})
    first, second = executor_of(rtx), executor_of(rtx)
    with net_guard(Network(first, "float32")):
        a = model(first.input("x", "float32", (3, 3)))
        with net_guard(Network(second, "float16")):
            b = model(second.input("x", "float16", (3, 3)))
        assert model.weight.value.dtype == "float32"
    assert (a.dtype, b.dtype) == ("float32", "float16")
    assert (first.network.num_layers, second.network.num_layers) == (3, 3)
