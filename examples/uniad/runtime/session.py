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

TORCH_KIND = "uniad-torch"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16")

_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit


class SessionError(UniADError):
    """An engine can't be opened or run."""


class Session(Protocol):
    """One engine and its state. Tensor names, types and shapes are those of docs/design.md, without a batch axis."""

    config: UniADConfig
    convention: str  # "v1.0.1" or "v2.0"

    def describe(self) -> dict[str, Any]:
        """Engine, device, precision and library versions, for run.json."""

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one frame: inputs to outputs. The carried state stays inside."""

    def reset(self) -> None:
        """Forget all state, `max_obj_id` too: as before the first frame."""

    def get_state(self) -> dict[str, np.ndarray]:
        """What a run that continues at the next scene start needs: `max_obj_id`, int32 (1). The rest of the state
        is not read there (`has_prev` is 0)."""

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue at a scene start from `get_state()` of another run."""


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


def open_session(engine_path: pathlib.Path, device: str = "cpu", dtype: str = "float32") -> Session:
    """Open an engine by what its file says it is.

    Args:
        engine_path: `engine.plan` of builder.py.
        device: "cpu" or "cuda".
        dtype: type of the network's floating-point tensors, "float32" or "float16".
    Raises:
        SessionError: no such file, not an engine, an engine kind that this installation can't run, no such device.
    """
    if device not in DEVICES or dtype not in DTYPES:
        raise SessionError(f"device must be one of {DEVICES} and dtype one of {DTYPES}, not {device!r}, {dtype!r}")
    metadata = read_plan_metadata(engine_path)
    kind = metadata.get("kind")
    if kind == TORCH_KIND:
        from runtime.torch_session import TorchSession  # torch only where the engine needs it

        return TorchSession(engine_path, metadata, device, dtype)
    raise SessionError(f"{engine_path}: engine kind {kind!r} is not known here; known: {TORCH_KIND!r}")
