"""The kernels that TensorRT for RTX compiles are kept for the next start: on a GPU in host memory, and the real API."""

import hashlib

import pytest
from fake_gpu import FakeRTXEngine, FakeRuntime, FakeTensorRT, install
from test_tensorrt_session import FACTS, PLAN, assert_equal, compute, make_frames, reference, tensors

from runtime import cuda
from runtime.kernel_cache import kernels_path, read_kernels, write_kernels
from runtime.plan_files import write_plan
from runtime.session import open_session
from trtllm.tensorrt_flavours import Flavour, load_flavour

KERNELS = FakeRTXEngine.environment + b"kernels"


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(**what differs in the engine) opens a session in a "new process": how many compilations that took."""
    plan = tmp_path / "engine.plan"
    facts = {**FACTS, "kind": "uniad-tensorrt-rtx", "version": "1.7.1"}
    write_plan(plan, lambda path: path.write_bytes(PLAN), facts)
    frames = make_frames(3)

    def run(**differs) -> int:
        runtime = FakeRuntime()
        engine = FakeRTXEngine(runtime, tensors(), compute)
        vars(engine).update(differs)
        install(runtime, FakeTensorRT(engine, version="1.7.1", name="tensorrt_rtx"), monkeypatch)
        for cached in (cuda.runtime, load_flavour):
            cached.cache_clear()
        session = open_session(plan)
        for frame, expected in zip(frames, reference(frames)):
            assert_equal(session.infer(frame), expected)
        return engine.compiled

    run.plan = plan
    yield run
    for cached in (cuda.runtime, load_flavour):
        cached.cache_clear()


def test_the_second_start_compiles_nothing(start):
    assert start() == 1
    file = kernels_path(start.plan)
    assert file.name == "engine.plan.kernels" and read_kernels(start.plan, _sha256(PLAN)) == KERNELS
    written = file.stat().st_mtime_ns
    assert start() == 0 and file.stat().st_mtime_ns == written
    file.unlink()
    assert start() == 1 and file.exists()


def test_kernels_of_another_gpu_are_replaced(start):
    assert start() == 1
    assert start(environment=b"Fake A40, 1.7.1:") == 1
    assert start(environment=b"Fake A40, 1.7.1:") == 0
    assert start() == 1


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-3], lambda d: d[:20], lambda d: b"", lambda d: d[:40] + b"?" + d[41:]]
)
def test_damaged_kernels_never_reach_tensorrt(start, damage):
    start()
    file = kernels_path(start.plan)
    file.write_bytes(damage(file.read_bytes()))
    assert read_kernels(start.plan, _sha256(PLAN)) == b""
    assert start() == 1 and start() == 0  # mended


def test_kernels_of_another_engine(start):
    start()
    assert read_kernels(start.plan, _sha256(b"another")) == b""
    write_kernels(start.plan, _sha256(b"another"), KERNELS)
    assert start() == 1 and start() == 0


def test_a_folder_that_cannot_be_written(start, monkeypatch):
    """Also root's, whom modes don't stop: every start compiles, and nothing else happens."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("files.os.replace", refuse)
        assert start() == 1 and start() == 1
        assert not kernels_path(start.plan).exists()
        assert len(list(start.plan.parent.iterdir())) == 2  # plan and side file
    kernels_path(start.plan).mkdir()  # neither readable nor writable as a file
    assert start() == 1


def test_other_flavours_keep_none():
    assert Flavour("tensorrt", FakeTensorRT(version="10.13.3")).compiled_kernels(None, KERNELS) is None


def test_the_calls_exist(rtx):
    """What the fake stands for, in the installed TensorRT for RTX (an engine can't be opened without a GPU)."""
    trt = rtx.trt
    for kind, names in {
        trt.ICudaEngine: ("create_runtime_config", "create_execution_context", "device_memory_size_v2"),
        trt.IRuntimeConfig: (
            "create_runtime_cache",
            "set_runtime_cache",
            "set_execution_context_allocation_strategy",
        ),
        trt.IRuntimeCache: ("serialize", "deserialize"),
    }.items():
        assert not [name for name in names if not hasattr(kind, name)]
    assert "runtime_config: " in trt.ICudaEngine.create_execution_context.__doc__
    assert "-> bool" in trt.IRuntimeCache.deserialize.__doc__


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
