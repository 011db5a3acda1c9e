"""Choosing and loading the plugin library, and what the plugin executor hands to TensorRT (a stand-in records it)."""

import shutil
import subprocess
import types

import numpy as np
import pytest

from errors import UniADError
from trtllm import Network, Tensor, net_guard, tensorrt_plugins
from trtllm import vision as V
from trtllm.tensorrt_plugins import OPERATIONS, PluginExecutor, find_library, load_plugins, select_plugins

STUB = """
extern "C" const char* uniad_plugins_build(void) { return "version=%s tensorrt=%s architectures=sm_90"; }
extern "C" int uniad_plugins_check_device(void) { return %d; }
extern "C" const char* uniad_error_string(int) { return "no kernel image is available"; }
extern "C" int uniad_register_plugins(void* registry) { return registry ? 3 : -1; }
"""


def flavour(rtx: bool = False, version: str = "8.6.0"):
    logger = types.SimpleNamespace(last=lambda: "no reason")
    return types.SimpleNamespace(
        rtx=rtx, version=version, logger=logger, trt=types.SimpleNamespace(__name__="tensorrt")
    )


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Makes libraries that say what they are told to; the registry is one that they accept."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ for a stand-in library")
    monkeypatch.setattr(tensorrt_plugins, "_registry", lambda flavour: 1)

    def make(version="1", tensorrt="8.6", device=0):
        source = tmp_path / f"stub{len(list(tmp_path.iterdir()))}.cpp"
        source.write_text(STUB % (version, tensorrt, device))
        path = source.with_suffix(".so")
        subprocess.run(["g++", "-shared", "-fPIC", source, "-o", path], check=True)
        return path

    return make


def test_selection(stub, monkeypatch, tmp_path):
    monkeypatch.setenv("UNIAD_PLUGINS", str(stub()))
    assert find_library() is not None
    assert select_plugins("auto", flavour()) == OPERATIONS
    assert select_plugins("off", flavour()) == ()
    assert select_plugins("temporal_attention,deformable_attention", flavour()) == OPERATIONS[:2]
    assert select_plugins("auto", flavour(rtx=True)) == ()
    with pytest.raises(UniADError, match="takes no plugins"):
        select_plugins("temporal_attention", flavour(rtx=True))
    with pytest.raises(UniADError, match="no rotation; there are deformable_attention"):
        select_plugins("rotation", flavour())
    monkeypatch.setenv("UNIAD_PLUGINS", str(tmp_path / "nothing.so"))
    with pytest.raises(UniADError, match="no plugin library there"):
        select_plugins("auto", flavour())


def test_loading(stub, tmp_path):
    library = load_plugins(flavour(), stub())
    assert library.facts["tensorrt"] == "8.6"
    text = tmp_path / "text.so"
    text.write_text("not a library")
    for path, message in (
        (text, "not a plugin library that loads here"),
        (stub(version="0"), "version 0 of the plugins, needed is 1"),
        (stub(tensorrt="10.13"), "headers of TensorRT 10.13, needed are 8.6.0's"),
        (stub(tensorrt="none"), "headers of TensorRT none"),
        (stub(device=209), "no code for this GPU .no kernel image"),
    ):
        with pytest.raises(UniADError, match=message):
            load_plugins(flavour(), path)
    load_plugins(flavour(), stub(device=209), on_device=False)


def test_missing_library(monkeypatch):
    monkeypatch.setattr(tensorrt_plugins, "find_library", lambda: None)
    assert select_plugins("auto", flavour()) == ()
    with pytest.raises(UniADError, match=r"libuniad_plugins.so is missing; build it with plugins/build.sh"):
        load_plugins(flavour())


class RecordingExecutor(PluginExecutor):
    """Records the plugins; every other operation gives a tensor of the right shape and nothing else."""

    def __init__(self, plugins):
        self.plugins, self.recorded, self._constants, self._path = frozenset(plugins), [], {}, ""

    def _plugin(self, kind, name, inputs, dtype, **attributes):
        self.recorded.append((kind, [tuple(x.shape) for x in inputs], attributes))
        return types.SimpleNamespace(name=name, shape=(1,))

    def cast(self, x, source, target):
        return types.SimpleNamespace(name=f"{x.name} as {target}", shape=x.shape)

    def constant(self, array):
        return types.SimpleNamespace(name="constant", shape=array.shape)


def tensor(dtype: str, *shape: int, array=None) -> Tensor:
    return Tensor(types.SimpleNamespace(name=f"{dtype} {shape}", shape=shape), dtype, shape, array)


def test_executor():
    executor = RecordingExecutor(OPERATIONS)
    half = "float16"
    with net_guard(Network(executor, half)):
        value, reference = tensor(half, 1, 60, 8, 32), tensor("float32", 1, 10, 4, 2)
        offsets, logits = tensor(half, 1, 10, 8, 4, 4, 2), tensor(half, 1, 10, 8, 16)
        V.deformable_attention(value, reference, offsets, logits, [(6, 10)], num_queries=40)
        maps, cells = tensor(half, 2, 60, 8, 32), tensor("float32", 60, 2)
        V.temporal_attention(maps, cells, tensor(half, 60, 8, 2, 4, 2), tensor(half, 60, 8, 2, 4), (6, 10))
        cameras, points, seen = tensor(half, 6, 60, 8, 32), tensor("float32", 6, 25, 4, 2), tensor("bool", 6, 25, 4)
        offsets, logits = tensor(half, 25, 8, 1, 8, 2), tensor(half, 25, 8, 8)
        V.camera_cross_attention(cameras, points, seen, offsets, logits, [(6, 10)])
        V.camera_cross_attention(cameras, points, seen, offsets, logits, [(6, 10)])
        weight = tensor(half, 64, 32, 3, 3, array=np.ones((64, 32, 3, 3), np.float16))
        statistics = [tensor("float32", 64, array=np.ones(64, np.float32)) for _ in range(4)]
        image, offset_mask = tensor(half, 2, 32, 5, 6), tensor(half, 2, 27, 5, 6)
        V.modulated_deform_conv2d_norm(image, offset_mask, weight, *statistics)
        V.after(points, value)
    flat, temporal, camera, again, conv, after = executor.recorded
    assert flat[2] == {"spatial_shapes": ((6, 10),), "num_queries": 40}
    assert temporal[1] == [(2, 60, 8, 32), (60, 2), (60, 8, 2, 4, 2), (60, 8, 2, 4)]
    assert temporal[2] == {"spatial_shapes": [(6, 10)], "mean": 1}
    assert camera == again
    assert camera[2]["grid_width"] == 5
    assert list(executor._constants) == [("as int32", "bool (6, 25, 4)")]  # cast once
    assert conv[1] == [(2, 32, 5, 6), (2, 27, 5, 6), (1, 9, 64, 32), (64,)]
    assert conv[2] == {"stride": 1, "padding": 1, "relu": 1}
    assert after == ("UniADAfter", [(6, 25, 4, 2), (1, 60, 8, 32)], {})


def test_executor_leaves_other_sizes_and_operations_to_the_composition():
    executor = RecordingExecutor(["deformable_attention"])
    value, rest = tensor("float32", 1, 60, 8, 24), [tensor("float32", 1)] * 3
    assert executor.deformable_attention(value, *rest, spatial_shapes=[(6, 10)], num_queries=None) is None
    value = tensor("float32", 2, 60, 8, 32)
    assert executor.temporal_attention(value, *rest, spatial_shape=(6, 10)) is None
