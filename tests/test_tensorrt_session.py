"""The TensorRT session against a GPU in host memory: order of work, carried state, errors, and no torch."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest
from fake_gpu import FakeEngine, FakeEngineV2, FakeRuntime, FakeTensorRT, Status, install
from graph_io import TensorSpec, describe_graph

from config import load_config
from errors import UniADError
from runtime import cuda, tensorrt_session
from runtime.blocks import ALIGNMENT, pack, views
from runtime.plan_files import PlanError, sidecar_path, write_plan
from runtime.session import SessionError, open_session
from trtllm.plugin_library import PluginLibrary
from trtllm.tensorrt_flavours import load_flavour

CONFIG = load_config("tiny_e2e").replace(image_height=8, image_width=16)
GRAPH = describe_graph(CONFIG, "float16")
PLAN = b"ftrt-a-fake-engine"
FACTS = {
    "kind": "uniad-tensorrt", "config": dataclasses.asdict(CONFIG), "convention": "v2.0", "dtype": "float16",
    "version": "8.6.0", "targets": ["8.6"], "gpu": "Fake A10", "checkpoint_sha256": "ab" * 32, **GRAPH,
}  # fmt: skip


def compute(given):
    """A made-up frame: what comes out depends on every input and on the state."""
    mean = given["img"].astype(np.float32).mean()
    seen = float(sum(np.abs(given[row["name"]].astype(np.float64)).sum() for row in GRAPH["inputs"][1:]))
    carried = float(given["prev_bev"].astype(np.float64).sum()) * int(given["has_prev"][0])
    outputs = {row["name"]: np.zeros(row["shape"], row["dtype"]) for row in GRAPH["outputs"]}
    outputs["sdc_traj_raw"] += np.float32(mean + carried)
    outputs["track_ids"] += given["max_obj_id"]
    outputs["boxes_3d"] += np.float32(seen)
    state = {f"{row['name']}_out": np.zeros(row["shape"], row["dtype"]) for row in GRAPH["state"]}
    state["prev_bev_out"][0, 0] = mean / 8 + carried / 4
    state["max_obj_id_out"][:] = given["max_obj_id"] + 1 + given["command"]
    return outputs | state


def tensors():
    rows = [(r["name"], "INPUT", r["dtype"], tuple(r["shape"])) for r in GRAPH["inputs"] + GRAPH["state"]]
    rows += [(r["name"], "OUTPUT", r["dtype"], tuple(r["shape"])) for r in GRAPH["outputs"]]
    return rows + [(f"{r['name']}_out", "OUTPUT", r["dtype"], tuple(r["shape"])) for r in GRAPH["state"]]


def make_frames(count):
    rng = np.random.default_rng(1)
    frames = []
    for index in range(count):
        frame = {}
        for row in GRAPH["inputs"]:
            draw = rng.integers(0, 200, row["shape"]) if row["dtype"] == "uint8" else rng.normal(size=row["shape"])
            frame[row["name"]] = draw.astype(row["dtype"])
        frame["command"][:], frame["has_prev"][:] = index % 3, index not in (0, 4)
        frames.append(frame)
    return frames


def reference(frames, max_obj_id=0):
    """The frames one after the other in plain numpy."""
    state = {row["name"]: np.zeros(row["shape"], row["dtype"]) for row in GRAPH["state"]}
    state["max_obj_id"][:] = max_obj_id
    results = []
    for frame in frames:
        made = compute({**frame, **state})
        state = {name: made[f"{name}_out"] for name in state}
        results.append({row["name"]: made[row["name"]] for row in GRAPH["outputs"]})
    return results


@pytest.fixture
def gpu(monkeypatch):
    """A fake GPU with TensorRT 8.6.0 and an engine of `compute`."""
    runtime = FakeRuntime()
    runtime.trt = FakeTensorRT(FakeEngine(runtime, tensors(), compute))
    install(runtime, runtime.trt, monkeypatch)
    for cached in (cuda.runtime, load_flavour):
        cached.cache_clear()
    yield runtime
    for cached in (cuda.runtime, load_flavour):
        cached.cache_clear()


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "engine.plan"
    write_plan(path, lambda target: target.write_bytes(PLAN), FACTS)
    return path


def change(plan, **facts):
    """Change some facts of the side file."""
    path = sidecar_path(plan)
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def test_pack():
    specs = [("a", "uint8", (3,)), ("b", "float16", (200,)), ("c", "int32", (2, 2)), ("d", "float32", ())]
    block = pack(TensorSpec(*spec) for spec in specs)
    assert block.offsets == {"a": 0, "b": 256, "c": 768, "d": 1024} and block.nbytes == 1280
    assert all(offset % ALIGNMENT == 0 for offset in block.offsets.values())
    memory = np.zeros(block.nbytes, np.uint8)
    parts = views(memory, block)
    for value, (name, dtype, shape) in enumerate(specs, 1):
        assert parts[name].dtype == dtype and parts[name].shape == shape
        parts[name][...] = value
    for value, (name, _, _) in enumerate(specs, 1):  # nothing overlaps
        assert (parts[name] == value).all()


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("engine_type", [FakeEngine, FakeEngineV2])
def test_sequence(gpu, plan, cuda_graph, engine_type):
    gpu.trt.engine = engine_type(gpu, tensors(), compute)
    frames = make_frames(6)
    session = open_session(plan, cuda_graph=cuda_graph)
    gpu.copies.clear()
    for frame, expected in zip(frames, reference(frames)):
        assert_equal(session.infer(frame), expected)
    uploads = [nbytes for kind, nbytes in gpu.copies if kind == 1]
    assert len(uploads) == 7 * len(frames)  # each camera's image, and all other inputs of a frame
    assert gpu.launches == (len(frames) if cuda_graph else 0)
    assert session.engine_ms == 1.5 and session.describe()["cuda_graph"] is cuda_graph
    session.reset()  # as before the first frame
    for frame, expected in zip(frames[:3], reference(frames[:3])):
        assert_equal(session.infer(frame), expected)
    with pytest.raises(AssertionError):  # without the reset the ids go on
        assert_equal(session.infer(frames[0]), reference(frames[:1])[0])


def test_two_frames_in_flight(gpu, plan):
    frames = make_frames(6)
    expected = reference(frames)
    session = open_session(plan)
    session.submit(frames[0])
    for index, frame in enumerate(frames):
        if index + 1 < len(frames):
            waiting = len(session._stream.handle.operations)
            session.submit(frames[index + 1])
            session._upload.handle.drain()  # the upload needs nothing of the frame before it ...
            assert len(session._stream.handle.operations) > waiting > 0  # ... which has not run yet
            with pytest.raises(RuntimeError, match="collect"):
                session.submit(frame)
        assert_equal(session.collect(), expected[index])


def test_missing_wait_is_seen(gpu, plan, monkeypatch):
    frames = make_frames(2)
    monkeypatch.setattr(cuda.Stream, "wait", lambda self, event: None)
    with pytest.raises(AssertionError):
        assert_equal(open_session(plan).infer(frames[0]), reference(frames)[0])


def test_continued_run(gpu, plan):
    frames = make_frames(6)
    whole = open_session(plan)
    expected = [whole.infer(frame) for frame in frames]
    first, second = open_session(plan), open_session(plan)
    for frame in frames[:3]:
        first.infer(frame)
    second.infer(frames[2])  # leaves something behind, which set_state forgets
    second.set_state(first.get_state())
    later = [dict(frames[4]), frames[5]]  # frame 4 starts a scene
    first.infer(frames[3])
    second.set_state(first.get_state())
    for frame, result in zip(later, expected[4:]):
        assert_equal(second.infer(frame), result)


def test_carried_state(gpu, plan):
    session, frames = open_session(plan), make_frames(3)
    for count, frame in enumerate(frames, 1):
        session.infer(frame)
        state = session.carried_state()
        assert [(name, array.dtype, array.shape) for name, array in state.items()] == [
            (row["name"], row["dtype"], tuple(row["shape"])) for row in GRAPH["state"]
        ]
        assert state["max_obj_id"] == reference(frames[:count] + frames[:1])[-1]["track_ids"][0]
        assert state["prev_bev"][0, 0] != 0


def test_profile(gpu, plan):
    session, frames = open_session(plan), make_frames(3)
    times = session.start_profile()
    for frame, expected in zip(frames, reference(frames)):
        assert_equal(session.infer(frame), expected)
    assert times == {"img_backbone/conv1": [2.0] * 3, "seg_head/softmax": [0.5] * 3}
    assert gpu.launches == 0 and not session.describe()["cuda_graph"]


def test_latency_has_every_part(gpu, plan):
    session = open_session(plan)
    session.infer(make_frames(1)[0])
    assert session.latency > 2 * 0.0015  # upload and engine, 1.5 ms each here, and the host's copies


def test_wrong_inputs(gpu, plan):
    session, (frame, _) = open_session(plan), make_frames(2)
    for key, array in {"img": frame["img"][:, :4], "shift": frame["shift"].astype(np.float64), "command": None}.items():
        bad = {name: value for name, value in {**frame, key: array}.items() if value is not None}
        with pytest.raises(SessionError, match=f"input {key} is"):
            session.infer(bad)
    assert_equal(session.infer(frame), reference([frame])[0])  # nothing has happened before


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": "10.13.3.9"}, "built with tensorrt 10.13.3.9, here is 8.6.0"),
        ({"kind": "uniad-tensorrt-rtx"}, "needs tensorrt-rtx 8.6.0: tensorrt_rtx can't be imported"),
        ({"targets": ["7.5", "8.9"]}, r"compute capability 7.5 and 8.9; this GPU \(Fake A10\) has 8.6"),
        ({"plan_sha256": "0" * 64}, "was altered"),
        ({"kind": "uniad-future"}, "not an engine of builder.py"),
        ({"inputs": GRAPH["inputs"][:-1]}, "has_prev .* is not what engine.plan.json says"),
        ({"state": [*GRAPH["state"], {"name": "extra", "dtype": "int32", "shape": [1]}]}, "does not make extra_out"),
    ],
)
def test_engines_that_do_not_fit(gpu, plan, facts, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    change(plan, **facts)
    with pytest.raises(SessionError, match=message) as caught:
        open_session(plan)
    assert "\n" not in str(caught.value)


def test_plugins_are_loaded_first(gpu, plan, monkeypatch):
    change(plan, plugins=["deformable_attention"], plugins_library={"version": "1"})
    monkeypatch.setenv("UNIAD_PLUGINS", str(plan.parent / "none.so"))
    with pytest.raises(UniADError, match="no plugin library there"):
        open_session(plan)
    order = []
    deserialize = gpu.trt.Runtime

    def load_plugins(flavour, version="1"):
        order.append("plugins")
        return PluginLibrary(pathlib.Path("library.so"), {"version": version, "hopper": "0"}, lambda *sizes: 0)

    monkeypatch.setattr(tensorrt_session, "load_plugins", load_plugins)
    monkeypatch.setattr(gpu.trt, "Runtime", lambda logger: order.append("runtime") or deserialize(logger))
    open_session(plan)
    assert order == ["plugins", "runtime"]
    monkeypatch.setattr(tensorrt_session, "load_plugins", lambda flavour: load_plugins(flavour, "2"))
    with pytest.raises(SessionError, match=r"needs version 1 of the plugin library, the one here .library.so. is vers"):
        open_session(plan)
    assert order[2:] == ["plugins"]
    monkeypatch.setattr(tensorrt_session, "load_plugins", load_plugins)
    change(plan, plugins=["modulated_deform_conv2d_norm"], plugins_library={"version": "1", "hopper": "1"})
    with pytest.raises(SessionError, match=r"weights packed for Hopper's kernels, which library.so lacks for this GPU"):
        open_session(plan)
    assert order[3:] == ["plugins"]


def test_another_gpu_of_the_kind_is_a_warning(gpu, plan):
    change(plan, gpu="Fake A40")
    with pytest.warns(UserWarning, match="built on Fake A40, not on Fake A10"):
        open_session(plan)


def test_files_missing_or_damaged(gpu, plan):
    sidecar = sidecar_path(plan)
    text = sidecar.read_text()
    for broken in (text[: len(text) // 2], "[]", "{}", text.replace('"float16"', "16"), text.replace("pc_range", "x")):
        sidecar.write_text(broken)
        with pytest.raises(PlanError, match=r"engine.plan.json: damaged .*build the engine again"):
            open_session(plan)
    sidecar.unlink()
    with pytest.raises(PlanError, match=r"engine.plan.json: .* copy both files"):
        open_session(plan)
    plan.unlink()
    with pytest.raises(SessionError, match="no such engine"):
        open_session(plan)


def test_out_of_memory_and_no_gpu(gpu, plan):
    gpu.total = 300_000
    with pytest.raises(cuda.CudaError, match=r"out of GPU memory.*MB wanted"):
        open_session(plan)
    gpu.trt.engine, gpu.trt.error = None, "Error Code 2: OutOfMemory (no further information)"
    with pytest.raises(SessionError, match=r"out of GPU memory \("):
        open_session(plan)
    gpu.trt.error = "Serialization assertion stdVersionRead == serializationVersion failed\nmore"
    with pytest.raises(SessionError, match="can't load the engine: Serialization assertion") as caught:
        open_session(plan)
    assert "\n" not in str(caught.value)
    gpu.fail["cudaGetDeviceProperties"] = Status.cudaErrorNoDevice
    with pytest.raises(cuda.CudaError, match="no usable NVIDIA GPU"):
        open_session(plan)


def test_missing_cuda_bindings(plan, gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    cuda.runtime.cache_clear()
    with pytest.raises(cuda.CudaError, match="pip install cuda-bindings"):
        open_session(plan)


def test_a_launch_that_fails_later(gpu, plan):
    session = open_session(plan)
    gpu.fail["cudaEventSynchronize"] = Status.cudaErrorUnknown
    with pytest.raises(cuda.CudaError, match="cudaErrorUnknown"):
        session.infer(make_frames(1)[0])
