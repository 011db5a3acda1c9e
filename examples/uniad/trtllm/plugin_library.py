"""The plugin library (plugins/): found, checked and registered with TensorRT.

Built by plugins/CMakeLists.txt or plugins/build.sh. An engine with plugins needs the library wherever it runs: load it
before the engine is deserialized.
"""

import ctypes
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from errors import UniADError
from trtllm.plugin_weights import HOPPER_LAYOUT
from trtllm.tensorrt_flavours import Flavour

# UNIAD_… of plugins/src/kernels.h; VERSION is UNIAD_PLUGINS_VERSION.
VERSION = 8
HOPPER_CHANNELS, HOPPER_OUTPUTS = 64, 256
MAX_LEVELS, MERGE_MAX_MASKS, MERGE_MAX_PIXELS, MERGE_MAX_CLASSES = 8, 1024, 262144, 64
NORM_MAX_CHANNELS, OCCUPANCY_MAX_INSTANCES = 1024, 256
OPERATIONS = (
    "deformable_attention",
    "temporal_attention",
    "camera_cross_attention",
    "modulated_deform_conv2d_norm",
    "merge_masks",
    "point_sampling",
    "propagate",
    "rotate_nearest",
    "memory_attention",
    "multihead_attention",
    "attention_masks",
    "occupancy",
    "narrow_conv2d",
    "conv2d_norm",
    "stem",
    "add_layer_norm",
    "normalise_images",
    "flatten_maps",
    "sample_map",
    "temporal_inputs",
)
LIBRARY = "libuniad_plugins.so"
BUILD_HINT = "build it with plugins/build.sh, or use --plugins off"  # of the library


class PluginLibrary(NamedTuple):
    """A loaded and registered library.

    `deform_conv_layout(cells, channels, outputs)` is how the convolution's fastest float16 kernel on the current GPU
    reads its weight, for N*H*W cells of the input. `occupancy_runs(width)` is whether this GPU has the shared memory
    that the kernel of that operation needs.
    """

    path: pathlib.Path
    facts: dict[str, str]  # version, cuda, tensorrt, architectures; hopper: "1" where HOPPER_LAYOUT runs on this GPU
    deform_conv_layout: Callable[[int, int, int], int]
    occupancy_runs: Callable[[int], int] = lambda width: 0


def find_library() -> pathlib.Path | None:
    """$UNIAD_PLUGINS, else build/plugins/libuniad_plugins.so of this checkout; None where there is none.

    Raises:
        UniADError: $UNIAD_PLUGINS names no file.
    """
    named = os.environ.get("UNIAD_PLUGINS")
    if named:
        path = pathlib.Path(named)
        path = path / LIBRARY if path.is_dir() else path
        if not path.is_file():
            raise UniADError(f"UNIAD_PLUGINS={named}: no plugin library there; {BUILD_HINT}")
        return path
    path = pathlib.Path(__file__).resolve().parents[3] / "build" / "plugins" / LIBRARY
    return path if path.is_file() else None


def select_plugins(choice: str, flavour: Flavour) -> tuple[str, ...]:
    """The operations that `--plugins choice` puts into an engine: "auto", "off", or names separated by commas.

    "auto" takes all where a library is found and the flavour has plugins, else none.

    Raises:
        UniADError: an unknown name; plugins asked for by name where there can be none.
    """
    if choice == "off":
        return ()
    if choice == "auto":
        return OPERATIONS if not flavour.rtx and find_library() else ()
    names = [name for name in choice.split(",") if name]
    if unknown := sorted(set(names) - set(OPERATIONS)):
        raise UniADError(f"--plugins: no {', '.join(unknown)}; there are {', '.join(OPERATIONS)}, auto and off")
    if names and flavour.rtx:
        raise UniADError("--plugins: tensorrt-rtx takes no plugins; use --plugins off")
    return tuple(name for name in OPERATIONS if name in names)


def load_plugins(flavour: Flavour, path: pathlib.Path | None = None, on_device: bool = True) -> PluginLibrary:
    """Load the library and register its plugins with the flavour's TensorRT; again and again does no harm.

    Args:
        path: the library; None: find_library().
        on_device: also check that it has code for the current GPU.

    Raises:
        UniADError: it is missing, can't be loaded, or was built for other versions or another GPU.
    """
    path = path or find_library()
    if path is None:
        raise UniADError(f"the plugin library {LIBRARY} is missing; {BUILD_HINT}")
    try:
        library = ctypes.CDLL(str(path))
        library.uniad_plugins_build.restype = ctypes.c_char_p
        facts = dict(fact.split("=", 1) for fact in library.uniad_plugins_build().decode().split())
    except (OSError, AttributeError) as error:
        raise UniADError(f"{path}: not a plugin library that loads here ({error}); {BUILD_HINT}") from error
    if facts["version"] != str(VERSION):
        raise UniADError(f"{path}: version {facts['version']} of the plugins, needed is {VERSION}; {BUILD_HINT}")
    major = flavour.version.split(".")[0]
    if facts["tensorrt"].split(".")[0] != major:
        needed = f"needed are {flavour.version}'s: set TENSORRT_INCLUDE_DIR and build again"
        raise UniADError(f"{path}: built with the headers of TensorRT {facts['tensorrt']}, {needed}")
    if on_device and (status := library.uniad_plugins_check_device()):
        library.uniad_error_string.restype = ctypes.c_char_p
        reason = library.uniad_error_string(status).decode()
        built = f"built for {facts['architectures']}"
        raise UniADError(f"{path}: has no code for this GPU ({reason}; {built}): set ARCH and build again")
    if library.uniad_register_plugins(ctypes.c_void_p(_registry(flavour))) < 0:
        raise UniADError(f"{path}: TensorRT {flavour.version} refuses its plugins: {flavour.logger.last()}")
    facts["hopper"] = str(int(library.uniad_deform_conv_layout(1, HOPPER_CHANNELS, HOPPER_OUTPUTS) == HOPPER_LAYOUT))
    return PluginLibrary(path, facts, library.uniad_deform_conv_layout, library.uniad_occupancy_runs)


def _registry(flavour: Flavour) -> int:
    """The address of TensorRT's plugin registry, from the libnvinfer that the Python module has loaded."""
    name = f"libnvinfer.so.{flavour.version.split('.')[0]}"
    try:
        get = ctypes.CDLL(name).getPluginRegistry
    except (OSError, AttributeError) as error:
        raise UniADError(f"{name} can't be found beside {flavour.trt.__name__} ({error}): install it again") from error
    get.restype = ctypes.c_void_p
    return get()
