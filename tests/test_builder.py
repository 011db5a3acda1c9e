"""builder.py and TensorRT plans: choices, refusals, the self-check (on a GPU in host memory), and real engines."""

import csv
import enum
import json
import pathlib
import sys
import types

import builder
import numpy as np
import pytest
from fake_gpu import FakeEngine, FakeRuntime, FakeTensorRT, install
from graph_io import TASKS, describe_graph, output_specs

from config import load_config
from data.recipe import recipe_anchors, recipe_state
from errors import UniADError
from runtime import cuda, self_check, tensorrt_plan
from runtime.plan_files import Sidecar, sidecar_path
from trtllm import plugin_library
from trtllm.plugin_library import OPERATIONS, PluginLibrary
from trtllm.tensorrt_builder import BuildOptions, Engine
from trtllm.tensorrt_flavours import load_flavour
from weight import ANCHORS_KEY, COUNTER_SUFFIX, CModel

TINY = load_config("tiny_e2e")
SOURCE = {"checkpoint": "recipe", "checkpoint_sha256": "ab" * 32}


def recipe_c_model(name: str) -> CModel:
    config = load_config(name)
    tensors = {key: array for key, array in recipe_state(config) if not key.endswith(COUNTER_SUFFIX)}
    return CModel(config, "v2.0", SOURCE, {**tensors, ANCHORS_KEY: recipe_anchors(config)})


# --- the command line ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-quant=True"], "-quant=True: INT8 engines are not there yet"),
        (["--max-tracks", "0"], "--max-tracks 0: use 1 to 1024"),
        (["--outputs", "map,lanes"], "no task lanes; the tasks are track,"),
        (["--workspace", "0"], "--workspace 0.0"),
        (["--aux-streams", "-1"], "--aux-streams -1"),
        (["--backend", "tensorrt"], "is not a c-model"),  # all arguments are right
    ],
)
def test_refusals(options, message, monkeypatch, tmp_path):
    command = ["builder.py", "-i", str(tmp_path / "none"), "-o", str(tmp_path / "engine.plan"), *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UniADError, match=message):
        builder.main()
    assert list(tmp_path.iterdir()) == []


def test_default_backend(monkeypatch):
    """TensorRT where it is installed and there is a GPU, before TensorRT for RTX where it knows the GPU; else torch."""
    rtx = FakeTensorRT(version="1.7.1", name="tensorrt_rtx")
    rtx.ComputeCapability = enum.Enum("ComputeCapability", ["SM80", "SM86"])
    monkeypatch.setattr(builder, "load_flavour", lambda backend: types.SimpleNamespace(trt=rtx))
    both, only_rtx = {"tensorrt", "tensorrt_rtx"}, {"tensorrt_rtx"}
    for count, installed, capability, best in [
        (1, both, "8.6", "tensorrt"),
        (1, only_rtx, "8.6", "tensorrt-rtx"),
        (1, only_rtx, "9.0", "torch"),
        (1, set(), "8.6", "torch"),
        (0, both, "8.6", "torch"),
    ]:
        monkeypatch.setattr(cuda, "device_count", lambda n=count: n)
        monkeypatch.setattr(cuda, "compute_capability", lambda c=capability: c)
        monkeypatch.setattr(builder.importlib.util, "find_spec", lambda name, there=installed: name in there)
        assert builder.best_backend() == best


def test_torch_backend_without_torch(monkeypatch):
    """Where only TensorRT is installed and there is no GPU, the line says what is missing."""
    monkeypatch.setitem(sys.modules, "runtime.torch_plan", None)  # importing it raises ImportError
    with pytest.raises(UniADError, match=r"--backend torch can.t be used here .*requirements-torch.txt"):
        builder.build_torch(None, None, [])


def test_progress_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with builder.progress_display() as show:
        assert show is None
    monkeypatch.delitem(sys.modules, "rich.progress")
    with builder.progress_display() as show:
        for step in range(3):
            show("whole", step, 2, 0)
            show("a phase", step, 2, 1)


# --- plan, side file and self-check, with a TensorRT in host memory ---

LAYERS = [("img_backbone/conv1/conv2d", "convolution", "float (6, 3) -> float (6, 16)"), ("output", "identity", "")]


def answers(offset: float = 0.0):
    """What the fake engine computes, and the reference: any numbers, `offset` apart in the BEV map."""
    rng = np.random.default_rng(3)
    bev = rng.normal(size=(TINY.bev_h * TINY.bev_w, TINY.embed_dims)).astype(np.float32)
    outputs = {s.name: rng.integers(0, 2, s.shape).astype(s.dtype) for s in output_specs(TINY)}
    reference = {**outputs, "prev_bev": bev[:: self_check.ROWS]}
    states = {f"{r['name']}_out": np.zeros(r["shape"], r["dtype"]) for r in describe_graph(TINY, "float32")["state"]}
    return {**outputs, **states, "prev_bev_out": bev + np.float32(offset)}, reference


@pytest.fixture
def write(monkeypatch, tmp_path):
    """write(offset, **options): a "build" whose engine is `offset` away from the reference."""
    runtime = FakeRuntime()
    graph = describe_graph(TINY, "float32")
    tensors = [(r["name"], "INPUT", r["dtype"], tuple(r["shape"])) for r in graph["inputs"] + graph["state"]]
    tensors += [(r["name"], "OUTPUT", r["dtype"], tuple(r["shape"])) for r in graph["outputs"]]
    tensors += [(f"{r['name']}_out", "OUTPUT", r["dtype"], tuple(r["shape"])) for r in graph["state"]]
    trt = FakeTensorRT()
    install(runtime, trt, monkeypatch)
    for cached in (cuda.runtime, load_flavour):
        cached.cache_clear()
    monkeypatch.setattr(tensorrt_plan, "load_model", lambda c_model, config, tasks: None)
    monkeypatch.setattr(tensorrt_plan, "_build", lambda network, config, flavour, options: Engine(b"ftrt plan", LAYERS))

    def run(offset, reference=True, **options):
        made, expected = answers(offset)
        trt.engine = FakeEngine(runtime, tensors, lambda given: made)

        def torch_reference(*_):
            if not reference:
                raise ImportError("torch")
            return expected

        monkeypatch.setattr(tensorrt_plan, "torch_reference", torch_reference)
        c_model = CModel(TINY, "v2.0", SOURCE, {})
        path = tmp_path / "engine.plan"
        return path, tensorrt_plan.write_tensorrt_plan(
            c_model, TINY, load_flavour("tensorrt"), BuildOptions(), path, **options
        )

    yield run
    for cached in (cuda.runtime, load_flavour):
        cached.cache_clear()


def test_plan_and_side_file(write, tmp_path):
    path, built = write(0.0, layers_file=tmp_path / "layers.tsv")
    assert path.read_bytes() == b"ftrt plan" and built.num_layers == 2
    assert built.findings and built.findings[0].value < 1e-6 and not built.unchecked
    facts, graph = Sidecar(path).facts, describe_graph(TINY, "float32")
    assert (facts["kind"], facts["version"], facts["gpu"]) == ("uniad-tensorrt", "8.6.0", "Fake A10")
    assert facts["targets"] == ["8.6"] and facts["num_layers"] == 2 and facts["build_seconds"] >= 0
    assert facts["checkpoint_sha256"] == SOURCE["checkpoint_sha256"] and facts["tasks"] == list(TASKS)
    assert [row["name"] for row in facts["outputs"]] == [row["name"] for row in graph["outputs"]]
    assert facts["state"][0]["out"] == "prev_bev_out"
    with open(tmp_path / "layers.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[1] == ["img_backbone/conv1", "img_backbone/conv1/conv2d", "convolution", LAYERS[0][2]]


def test_plugins_of_a_plan(write, monkeypatch, capsys):
    """The side file says which library the engine needs; `auto` without one says so."""
    library = PluginLibrary(pathlib.Path("library.so"), {"version": "1", "tensorrt": "8.6"}, lambda *sizes: 0)
    monkeypatch.setattr(tensorrt_plan, "load_plugins", lambda flavour: library)
    options = BuildOptions(plugins=["temporal_attention"])
    arguments = (CModel(TINY, "v2.0", SOURCE, {}), TINY, load_flavour("tensorrt"))
    facts = tensorrt_plan._facts(*arguments, options, TASKS)
    assert (facts["plugins"], facts["plugins_library"]) == (["temporal_attention"], library.facts)
    assert tensorrt_plan._facts(*arguments, BuildOptions(), TASKS)["plugins_library"] == {}
    for asked, taken in ((None, 1), (0, 0), (3, 3)):  # left to us, it is the level that was measured
        assert (
            tensorrt_plan._facts(*arguments, BuildOptions(optimization_level=asked), TASKS)["optimization_level"]
            == taken
        )

    monkeypatch.setattr(tensorrt_plan, "write_tensorrt_plan", lambda *_, **__: tensorrt_plan.Built(1.0, 2, None, ""))
    command = ["builder.py", "-i", "c-model", "-o", "engine.plan", "--backend", "tensorrt"]
    for found, said in [(None, True), (library.path, False)]:
        monkeypatch.setattr(plugin_library, "find_library", lambda path=found: path)
        monkeypatch.setattr(sys, "argv", command)
        what = builder.build_tensorrt(builder.parse_args(), arguments[0], list(TASKS))
        assert ("--plugins auto: no plugin library here" in capsys.readouterr().out) == said
        assert what.endswith("no plugins" if said else f"{len(OPERATIONS)} kinds of plugins")


def test_wrong_engine_is_not_written(write, tmp_path):
    with pytest.raises(UniADError, match="nothing written: the engine fails its check: BEV map, relative error"):
        write(0.1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UniADError, match="fails its check"):
        write(float("nan"))
    path, built = write(0.1, check=False)
    assert path.exists() and built.unchecked == "--no-check"


def test_reference_file(write, tmp_path):
    _, reference = answers()
    file = tmp_path / "reference.npz"
    self_check.save_reference(file, reference, SOURCE["checkpoint_sha256"])
    assert write(0.0, reference=False, reference_file=file)[1].findings
    with pytest.raises(UniADError, match="fails its check"):
        write(0.1, reference=False, reference_file=file)
    self_check.save_reference(file, reference, "another")
    with pytest.raises(UniADError, match="of another checkpoint"):
        write(0.0, reference_file=file)
    file.write_bytes(b"PK damaged")
    with pytest.raises(UniADError, match="no readable reference"):
        write(0.0, reference_file=file)
    path, built = write(0.0, reference=False)  # neither torch nor a file
    assert path.exists() and built.findings is None and "--check-reference" in built.unchecked


def test_check_frame():
    """The coarse frame has the engine's size, and its cameras see what they saw."""
    frame = next(self_check.check_frames(TINY, 1))
    assert frame.img.shape == (6, TINY.image_height, TINY.image_width, 3) and frame.img.dtype == np.uint8
    point = np.array([5.0, 12.0, -1.0, 1.0])  # in front of the vehicle
    u, v, depth, _ = frame.lidar2img[0] @ point
    assert depth > 0 and 0 < u / depth < TINY.image_width and 0 < v / depth < TINY.image_height


# --- TensorRT for RTX builds the real network without a GPU ---


def build_rtx(rtx, name, dtype, path):
    c_model = recipe_c_model(name)
    return tensorrt_plan.write_tensorrt_plan(c_model, c_model.config, rtx, BuildOptions(dtype), path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tiny_engine_builds(dtype, rtx, tmp_path):
    path = tmp_path / "engine.plan"
    built = build_rtx(rtx, "tiny_e2e", dtype, path)
    assert built.findings is None and built.unchecked == "no GPU here"
    assert path.read_bytes()[1:4] == b"trt" and path.stat().st_size > 10e6
    facts = json.loads(sidecar_path(path).read_text())
    assert (facts["kind"], facts["dtype"], facts["targets"]) == ("uniad-tensorrt-rtx", dtype, ["8.6"])
    assert facts["gpu"] == "" and facts["num_layers"] > 1000
