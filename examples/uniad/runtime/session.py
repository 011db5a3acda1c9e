"""Sessions: one engine, loaded, with the state it carries from frame to frame."""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from config import UniADConfig
from errors import UniADError
from runtime.plan_files import Sidecar, sidecar_path

TORCH_KIND = "uniad-torch"
TENSORRT_KINDS = {"uniad-tensorrt": "tensorrt", "uniad-tensorrt-rtx": "tensorrt-rtx"}  # kind -> builder's --backend
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16")

_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit


class SessionError(UniADError):
    """An engine can't be opened or run."""


class Session(Protocol):
    """One engine and its state. Tensor names, types and shapes are those of docs/design.md, without a batch axis."""

    config: UniADConfig
    convention: str  # "v1.0.1" or "v2.0"
    latency: float  # seconds that the last collected frame took, or takes where no other frame is in flight

    def describe(self) -> dict[str, Any]:
        """Engine, device, precision and library versions, for run.json."""

    def image_buffer(self) -> np.ndarray | None:
        """Memory for the next frame's `img`, uint8 (6,H,W,3), contents arbitrary, from where the device reads it
        without a copy on the host. It is lent until nothing refers to it. None: use memory of your own. Any thread
        may call."""

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one frame: inputs to outputs. The carried state stays inside."""

    def submit(self, inputs: Mapping[str, np.ndarray]) -> None:
        """The first half of `infer`: hand in the next frame. A frame may be submitted before the last is collected."""

    def collect(self) -> dict[str, np.ndarray]:
        """The second half of `infer`: the outputs of the oldest frame that was submitted."""

    def reset(self) -> None:
        """Forget all state, `max_obj_id` too: as before the first frame."""

    def get_state(self) -> dict[str, np.ndarray]:
        """What a run that continues at the next scene start needs: `max_obj_id`, int32 (1). The rest of the state
        is not read there (`has_prev` is 0)."""

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue at a scene start from `get_state()` of another run."""

    def start_profile(self) -> dict[str, list[float]]:
        """From now on every frame runs layer by layer, without the CUDA graph.

        Returns a mapping that each frame adds to: layer name -> its milliseconds, frame after frame. Raises
        SessionError where the engine has no layers to time.
        """

    def carried_state(self) -> dict[str, np.ndarray]:
        """All that the next frame reads (docs/design.md, state), copied to the host: for tests and checks."""


def read_plan_metadata(path: pathlib.Path) -> dict[str, str]:
    """The metadata of a safetensors file, read from its header alone. Raises SessionError where it isn't one."""
    if not path.is_file():
        raise SessionError(f"{path}: no such engine; builder.py makes it")
    foreign = SessionError(f"{path}: not an engine of builder.py; give the engine.plan that it wrote")
    with open(path, "rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= size <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise foreign
        try:
            metadata = json.loads(file.read(size))["__metadata__"]
        except (ValueError, KeyError, TypeError) as error:
            raise foreign from error
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise foreign
    return metadata


def open_session(
    engine_path: pathlib.Path, device: str = "cpu", dtype: str | None = None, cuda_graph: bool = True
) -> Session:
    """Open an engine by what its files say it is. A TensorRT engine runs on the GPU and has its type built in.

    Args:
        engine_path: `engine.plan` of builder.py.
        device: "cpu" or "cuda", where the torch executor computes.
        dtype: type of the network's floating-point tensors there, "float32" or "float16"; None: as it was built.
        cuda_graph: launch a TensorRT engine as a CUDA graph.
    Raises:
        SessionError: no such file, not an engine, an engine kind that this installation can't run, no such device.
    """
    if sidecar := _tensorrt_sidecar(engine_path):
        from runtime.tensorrt_session import TensorRTSession  # neither torch nor TensorRT where the other runs

        return TensorRTSession(engine_path, sidecar, cuda_graph)
    metadata = read_plan_metadata(engine_path)
    dtype = dtype or metadata.get("dtype", "float32")
    if device not in DEVICES or dtype not in DTYPES:
        raise SessionError(f"device must be one of {DEVICES} and dtype one of {DTYPES}, not {device!r}, {dtype!r}")
    kind = metadata.get("kind")
    if kind == TORCH_KIND:
        try:
            from runtime.torch_session import TorchSession  # torch only where the engine needs it
        except ImportError as error:
            message = f"{engine_path} runs on torch, which can't be imported here ({error}): see requirements-torch.txt"
            raise SessionError(message) from error

        return TorchSession(engine_path, metadata, device, dtype)
    known = ", ".join(map(repr, (TORCH_KIND, *TENSORRT_KINDS)))
    raise SessionError(f"{engine_path}: engine kind {kind!r} is not known here; known: {known}")


def _tensorrt_sidecar(engine_path: pathlib.Path) -> Sidecar | None:
    """The side file of a TensorRT engine; None where the file does not look like one."""
    if not engine_path.is_file():
        return None
    with open(engine_path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # safetensors: it describes itself
        return None
    if start[1:4] != b"trt" and not sidecar_path(engine_path).exists():
        return None
    sidecar = Sidecar(engine_path)
    return sidecar if sidecar.kind in TENSORRT_KINDS else None
