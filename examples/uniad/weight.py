"""The c-model: one raw little-endian file per tensor and a `config.ini` that describes them (docs/design.md).

`pytorch_convert.py` writes it through `write_tensor` and `write_config`; builders read it through `load_c_model`.
Nothing here needs torch.
"""

import concurrent.futures
import configparser
import csv
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from config import CONFIG_DIR, CONVENTIONS, ConfigError, UniADConfig, config_from_dict
from errors import UniADError
from files import sha256_of

FORMAT = 1
ANCHORS_KEY = "motion_head.kmeans_anchors"
COUNTER_SUFFIX = "num_batches_tracked"  # training counters of the batch norms: never stored
_KEY = re.compile(r"\w+(\.\w+)*", re.ASCII)
# The panoptic head's deformable attentions: their widths grow with the number of levels they were configured for.
_SEG_ATTENTION = re.compile(
    r"seg_head\.transformer\.(encoder\.layers\.\d+\.attentions\.0|decoder\.layers\.\d+\.attentions\.1)"
    r"\.(sampling_offsets|attention_weights)\.(weight|bias)"
)


class WeightError(UniADError):
    """A c-model is missing, incomplete or altered."""


def key_shapes(config: UniADConfig) -> dict[str, tuple[int, ...]]:
    """Every key of this model's checkpoint, in its order, with the tensor's shape.

    The table is `configs/<config.name>.keys.tsv`, recorded from the original's `state_dict()`; it includes keys that
    inference never reads. `config.seg_num_levels` decides the widths of the panoptic head's deformable attentions.
    Raises ConfigError where the table is absent.
    """
    path = CONFIG_DIR / f"{config.name}.keys.tsv"
    try:
        with open(path, newline="") as file:
            rows = [(row["key"], row["shape"]) for row in csv.DictReader(file, delimiter="\t")]
    except OSError as error:
        names = sorted(p.name.removesuffix(".keys.tsv") for p in CONFIG_DIR.glob("*.keys.tsv"))
        raise ConfigError(f"no table of keys for model {config.name!r}: set its name to one of {names}") from error
    shapes = {}
    for key, text in rows:
        shape = tuple(int(n) for n in text.split("x")) if text != "scalar" else ()
        if match := _SEG_ATTENTION.fullmatch(key):
            points = config.num_heads * config.seg_num_levels * config.num_points
            shape = (points * (2 if match[2] == "sampling_offsets" else 1), *shape[1:])
        shapes[key] = shape
    return shapes


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor of a c-model, as `config.ini` records it: `<dtype> <shape> <SHA-256 of the file>`."""

    dtype: str  # float32 or float16, little-endian in the file
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape))} {self.sha256}"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def _parse_entry(key: str, text: str) -> TensorEntry:
    match = re.fullmatch(r"(float32|float16) (\d+(?:x\d+)*) ([0-9a-f]{64})", text)
    if match is None or _KEY.fullmatch(key) is None:  # a key becomes a file name: no separators
        raise ValueError(f"tensor {key!r}: {text!r}")
    return TensorEntry(match[1], tuple(int(n) for n in match[2].split("x")), match[3])


class _Tensors(Mapping[str, np.ndarray]):
    """Key -> read-only array mapped from its file, of the stored type."""

    def __init__(self, folder: pathlib.Path, entries: dict[str, TensorEntry]):
        self._folder, self._entries = folder, entries

    def __getitem__(self, key: str) -> np.ndarray:
        entry = self._entries[key]
        dtype = np.dtype(entry.dtype).newbyteorder("<").str  # as text: it names numpy's own type, no copy of it
        return np.memmap(self._folder / f"{key}.bin", dtype=dtype, mode="r", shape=entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclasses.dataclass(frozen=True)
class CModel:
    """A converted checkpoint whose files were all verified.

    config: the model's configuration, `seg_num_levels` as the checkpoint showed.
    convention: "v1.0.1" or "v2.0", the upstream release whose box and CAN bus conventions the weights follow.
    source: file name, size and SHA-256 of the checkpoint and of the anchors, and what else was recorded of them.
    tensors: key -> array, mapped read-only; ANCHORS_KEY holds the motion anchors (groups, modes, steps, 2), metres.
    """

    config: UniADConfig
    convention: str
    source: dict[str, str]
    tensors: Mapping[str, np.ndarray]


def write_tensor(folder: pathlib.Path, key: str, array: np.ndarray) -> TensorEntry:
    """Write one float32 or float16 array as `<key>.bin`; returns what `config.ini` must record."""
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data.tofile(folder / f"{key}.bin")
    return TensorEntry(array.dtype.name, array.shape, hashlib.sha256(data.data).hexdigest())


def write_config(
    folder: pathlib.Path,
    config: UniADConfig,
    convention: str,
    storage_type: str,
    source: dict[str, str],
    entries: dict[str, TensorEntry],
) -> None:
    """Write `config.ini`, the last file of a c-model."""
    ini = _parser()
    ini["c_model"] = {
        "format": str(FORMAT),
        "convention": convention,
        "seg_num_levels": str(config.seg_num_levels),
        "storage_type": storage_type,
        "num_tensors": str(len(entries)),
        "not_stored": f"*.{COUNTER_SUFFIX}",
        "model": json.dumps(dataclasses.asdict(config)),
    }
    ini["source"] = source
    ini["tensors"] = {key: str(entry) for key, entry in entries.items()}
    with open(folder / "config.ini", "w", encoding="utf-8", errors="backslashreplace") as file:
        ini.write(file)


def _parser() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=(";",), interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys are case sensitive
    return parser


def is_c_model(folder: pathlib.Path) -> bool:
    """Whether the folder holds a c-model and nothing else, so that a new one may take its place."""
    ini = folder / "config.ini"
    if not ini.is_file() or any(p.suffix != ".bin" for p in folder.iterdir() if p != ini):
        return False
    with open(ini, encoding="utf-8", errors="replace") as file:
        return file.readline().strip() == "[c_model]"


def _fault(folder: pathlib.Path, key: str, entry: TensorEntry) -> str | None:
    """What is wrong with a tensor's file, or None."""
    path = folder / f"{key}.bin"
    try:
        size = path.stat().st_size
        if size != entry.num_bytes:
            return f"{path.name} is truncated or too long ({size} bytes, not {entry.num_bytes})"
        return None if sha256_of(path) == entry.sha256 else f"{path.name} was altered (SHA-256 differs)"
    except OSError as error:
        return f"{path.name}: {error.strerror}"


def load_c_model(path: str | os.PathLike) -> CModel:
    """Read a c-model and verify the size and SHA-256 of every file. Arrays are mapped when first asked for.

    Raises WeightError naming the files that are missing, truncated or altered, ConfigError for a bad configuration.
    """
    folder = pathlib.Path(path)
    ini = _parser()
    try:
        with open(folder / "config.ini", encoding="utf-8") as file:
            ini.read_file(file)
    except OSError as error:
        raise WeightError(f"{path} is not a c-model (config.ini: {error.strerror}): run pytorch_convert.py") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise WeightError(f"{path}/config.ini is damaged ({str(error).splitlines()[0]}): convert again") from error
    try:
        head = ini["c_model"]
        if head["format"] != str(FORMAT):
            raise WeightError(f"{path}: c-model format {head['format']}, this version reads {FORMAT}: convert again")
        entries = {key: _parse_entry(key, text) for key, text in ini["tensors"].items()}
        if len(entries) != int(head["num_tensors"]):
            raise ValueError(f"{len(entries)} tensors listed, not {head['num_tensors']}")
        if head["convention"] not in CONVENTIONS:
            raise ValueError(f"convention {head['convention']!r}")
        config, source = config_from_dict(json.loads(head["model"])), dict(ini["source"])
    except (KeyError, ValueError, TypeError) as error:
        raise WeightError(f"{path}/config.ini is damaged ({error}): convert again") from error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [f for f in pool.map(lambda item: _fault(folder, *item), entries.items()) if f]
    if faults:
        more = f" and {len(faults) - 5} more files" if len(faults) > 5 else ""
        raise WeightError(f"{path}: {'; '.join(faults[:5])}{more}: convert again")
    return CModel(config, head["convention"], source, _Tensors(folder, entries))
