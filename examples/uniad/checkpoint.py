"""Reading what users bring to `pytorch_convert.py`: a released checkpoint and the motion anchors.

Both are files from elsewhere and both formats can carry code, so neither is ever unpickled freely.
"""

import dataclasses
import io
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from config import CONFIG_DIR, UniADConfig, load_config
from data.plain_pickle import PickleError, PlainUnpickler
from errors import UniADError
from weight import COUNTER_SUFFIX, key_shapes

SEG_LEVELS_KEY = "seg_head.transformer.encoder.layers.0.attentions.0.attention_weights.weight"
MAX_ANCHOR_BYTES = 1 << 24  # the released file has some kilobytes
ANCHORS_SOURCE = "motion_anchor_infos_mode6.pkl of the UniAD repository's release, placed there in data/others/"


class CheckpointError(UniADError):
    """The checkpoint or the anchors cannot be used."""


def _numpy_scalar_globals() -> list[Any]:
    """What torch's restricted unpickler must admit to read numpy scalars, under numpy 1's and numpy 2's names."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    dtypes = [type(np.dtype(kind)) for kind in (*kinds, "float16", "float32", "float64")]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *dtypes]


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a `.pth` file by key, and its `meta`. Tensors are mapped from the file, not copied.

    The file holds a state_dict or `{'state_dict': ..., 'meta': ...}`; a `module.` prefix of all keys is dropped.
    Only tensors, plain containers and numpy scalars are unpickled. Raises CheckpointError.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        # Files of torch < 1.6 are no archives and cannot be mapped.
        with torch.serialization.safe_globals(_numpy_scalar_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats: the error below says what matters
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the parsers under torch.load raise anything when fed a damaged file
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            text = f"it asks for {name[1]}, which is not part of a plain checkpoint; not loaded, no code of it was run"
        else:
            # torch's own text advises to switch the protection off: it is not passed on.
            text = "not a PyTorch checkpoint, truncated, or of objects that are no plain data; not loaded"
        raise CheckpointError(f"{path}: {text}") from error
    state, meta = loaded, dict[str, Any]()
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        state = loaded["state_dict"]
        meta = loaded["meta"] if isinstance(loaded.get("meta"), dict) else {}
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path}: holds no state_dict")
    if others := [key for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{path}: holds no state_dict: {', '.join(others[:5])} are not tensors")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state), meta


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def detect_convention(meta: Mapping) -> str | None:
    """The upstream release that trained the weights, by the versions in `meta`; None where it doesn't tell.

    v1.0.1 stands on mmdet 2.14 and mmdet3d 0.17, v2.0 on mmdet 2.26 and mmdet3d 1.0.0rc6.
    """
    known = {
        "mmdet_version": (("2.14", "v1.0.1"), ("2.26", "v2.0")),
        "mmdet3d_version": (("0.17", "v1.0.1"), ("1.0.0rc6", "v2.0")),
    }
    found = {
        convention
        for name, versions in known.items()
        for version, convention in versions
        if re.match(re.escape(version) + r"(?!\d)", str(meta.get(name, "")))
    }
    return found.pop() if len(found) == 1 else None


@dataclasses.dataclass(frozen=True)
class KeyReport:
    """How a checkpoint differs from a configuration's table of keys."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]  # with both shapes, or the type that is no floating point

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def describe(self, most: int | None = None) -> str:
        """One line; `most` limits the keys that are listed per kind."""
        parts = []
        for kind in ("missing", "unexpected", "misshapen"):
            keys = getattr(self, kind)
            if keys:
                parts.append(
                    f"{len(keys)} {kind}: {', '.join(keys[:most])}{', ...' if len(keys[:most]) < len(keys) else ''}"
                )
        return "; ".join(parts)


def compare_keys(state: Mapping[str, torch.Tensor], config: UniADConfig) -> KeyReport:
    """Every key that is missing, unexpected or of another shape or kind. Counters of batch norms may be missing."""
    shapes = key_shapes(config)
    misshapen = []
    for key, shape in shapes.items():
        tensor = state.get(key)
        if tensor is None or key.endswith(COUNTER_SUFFIX):
            continue
        if tuple(tensor.shape) != shape:
            misshapen.append(f"{key} ({_by(tensor.shape)}, not {_by(shape)})")
        elif not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_quantized:
            misshapen.append(f"{key} ({str(tensor.dtype).removeprefix('torch.')}, not a plain floating point tensor)")
    return KeyReport(
        missing=tuple(key for key in shapes if key not in state and not key.endswith(COUNTER_SUFFIX)),
        unexpected=tuple(key for key in state if key not in shapes),
        misshapen=tuple(misshapen),
    )


def _by(shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _with_seg_levels(state: Mapping[str, torch.Tensor], config: UniADConfig) -> UniADConfig:
    """Set the panoptic head's levels from the rows of its attention weights.

    The released configurations say 4 on a single map; a repaired checkpoint has 1 (OpenDriveLab/UniAD issue 108).
    """
    tensor = state.get(SEG_LEVELS_KEY)
    for levels in (1, 4):
        if tensor is not None and tensor.ndim and tensor.shape[0] == config.num_heads * config.num_points * levels:
            return config.replace(seg_num_levels=levels)
    return config


def fit_config(state: Mapping[str, torch.Tensor], model: str | None = None) -> UniADConfig:
    """The configuration of a checkpoint: the one named, or else the one of `configs/` that its shapes fit.

    Raises CheckpointError with every missing, unexpected and misshapen key against the named or the closest one.
    """
    names = sorted(p.stem for p in CONFIG_DIR.glob("*.json"))
    candidates = [_with_seg_levels(state, load_config(name)) for name in ([model] if model else names)]
    reports = [compare_keys(state, config) for config in candidates]
    report, config = min(zip(reports, candidates), key=lambda pair: len(pair[0]))
    if not len(report):
        return config
    if len(report) > len(key_shapes(config)) // 4:  # not a flaw but another model: a list of all would be no help
        hint = ""
        if model:
            fitting = [
                name for name in names if not len(compare_keys(state, _with_seg_levels(state, load_config(name))))
            ]
            hint = f"it fits --model {fitting[0]}; " if fitting else ""
        wrong = f"--model {config.name}" if model else f"any of {', '.join(names)} (the closest is {config.name})"
        raise CheckpointError(f"the checkpoint does not fit {wrong}: {hint}{report.describe(most=3)}")
    raise CheckpointError(f"the checkpoint does not fit model {config.name}: {report.describe()}")


def load_anchors(path: str | os.PathLike | None, config: UniADConfig) -> np.ndarray:
    """The motion anchors, float32 (groups, modes, steps, 2): x, y in metres relative to an agent, one step 0.5 s.

    From the upstream pickle (`anchors_all`, one array per group of classes) or an `.npy` file. Raises CheckpointError.
    """
    if path is None:
        raise CheckpointError(f"the motion anchors are not part of the checkpoint: give --anchors ({ANCHORS_SOURCE})")
    shape = (len(config.group_id_list), config.predict_modes, config.predict_steps, 2)
    try:
        data = pathlib.Path(path).read_bytes() if os.path.getsize(path) <= MAX_ANCHOR_BYTES else None
    except OSError as error:
        raise CheckpointError(f"anchors {path}: {error.strerror}: give --anchors ({ANCHORS_SOURCE})") from error
    if data is None:
        raise CheckpointError(f"anchors {path}: larger than {MAX_ANCHOR_BYTES >> 20} MB, not an anchors file")
    try:
        if data.startswith(b"\x93NUMPY"):
            groups = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            groups = PlainUnpickler(io.BytesIO(data)).load()["anchors_all"]
        if any(np.asarray(group).dtype.kind not in "fiu" for group in groups):
            raise ValueError("not arrays of numbers")
        anchors = np.stack([np.asarray(group, np.float32) for group in groups])
    except PickleError as error:
        raise CheckpointError(f"anchors {path}: {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(f"anchors {path}: not an anchors file ({_first_line(error)})") from error
    if anchors.shape != shape:
        raise CheckpointError(f"anchors {path}: shape {_by(anchors.shape)}, but model {config.name} takes {_by(shape)}")
    if not np.isfinite(anchors).all():
        raise CheckpointError(f"anchors {path}: some values are not finite")
    return anchors
