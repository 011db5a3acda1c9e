"""The plugin library, found and loaded, and its glue."""

import os
import pathlib
import re
import shutil
import subprocess
import types

import kernel_structures
import pytest
from support import ROOT

from errors import UniADError
from trtllm import plugin_library
from trtllm.plugin_library import (
    OPERATIONS,
    VERSION,
    find_library,
    load_plugins,
    select_plugins,
)

INCLUDES = sorted(ROOT.glob("third_party/tensorrt-*/include"))
CUDA = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
STUB = """
extern "C" const char* uniad_plugins_build(void) { return "version=%s tensorrt=%s architectures=sm_90"; }
extern "C" int uniad_plugins_check_device(void) { return %d; }
extern "C" int uniad_deform_conv_layout(int cells, int channels, int) { return channels %% 64 == 0 && cells < 100; }
extern "C" int uniad_occupancy_runs(int width) { return width == 128; }
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
    monkeypatch.setattr(plugin_library, "_registry", lambda flavour: 1)

    def make(version=VERSION, tensorrt="8.6", device=0):
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
    assert library.facts["tensorrt"] == "8.6" and library.facts["hopper"] == "1"
    assert (library.deform_conv_layout(60, 64, 256), library.deform_conv_layout(60, 32, 256)) == (1, 0)
    assert (library.occupancy_runs(128), library.occupancy_runs(256)) == (1, 0)
    text = tmp_path / "text.so"
    text.write_text("not a library")
    for path, message in (
        (text, "not a plugin library that loads here"),
        (stub(version="0"), f"version 0 of the plugins, needed is {VERSION}"),
        (stub(tensorrt="10.13"), "headers of TensorRT 10.13, needed are 8.6.0's"),
        (stub(tensorrt="none"), "headers of TensorRT none"),
        (stub(device=209), "no code for this GPU .no kernel image"),
    ):
        with pytest.raises(UniADError, match=message):
            load_plugins(flavour(), path)
    load_plugins(flavour(), stub(device=209), on_device=False)


def test_missing_library(monkeypatch):
    monkeypatch.setattr(plugin_library, "find_library", lambda: None)
    assert select_plugins("auto", flavour()) == ()
    with pytest.raises(UniADError, match=r"libuniad_plugins.so is missing; build it with plugins/build.sh"):
        load_plugins(flavour())


def test_numbers_of_the_header():
    """What kernels.h defines, and the glue's fields, said once more in Python."""
    text = (ROOT / "plugins" / "src" / "kernels.h").read_text()
    defined = {name: int(value) for name, value in re.findall(r"^#define UNIAD_(\w+) (\d+)", text, re.MULTILINE)}
    names = {"PLUGINS_VERSION": "VERSION"}
    assert len(defined) == 9
    assert {name: getattr(plugin_library, names.get(name, name)) for name in defined} == defined
    assert defined["MAX_LEVELS"] == kernel_structures.MAX_LEVELS


@pytest.mark.parametrize("include", INCLUDES or [None], ids=lambda path: path.parent.name if path else "none")
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "plugins" / "src").glob("*.cpp")))
def test_glue_compiles(include, source):
    """Against each TensorRT whose headers lie in third_party/tensorrt-<version>/include."""
    if include is None or not (CUDA / "include" / "cuda_runtime_api.h").exists() or shutil.which("g++") is None:
        pytest.skip("needs g++, CUDA's headers and third_party/tensorrt-<version>/include")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
    system = ["-isystem", include, "-isystem", CUDA / "include"]
    subprocess.run(["g++", *flags, *system, ROOT / "plugins" / "src" / source], check=True)
