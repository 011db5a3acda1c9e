"""Result records by sample token, as the metrics read them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from config import CONVENTIONS
from data.ground_truth import GroundTruth
from errors import UniADError
from files import UNREADABLE
from report.compare import load_result


@dataclasses.dataclass(frozen=True)
class Results:
    """Result records (docs/design.md) by sample token, and the box convention they are in."""

    records: Mapping[str, Mapping[str, np.ndarray]]
    convention: str
    where: str = "result"

    def arrays(self, sample_token: str, *keys: str) -> list[np.ndarray]:
        """Some arrays of a frame. Raises UniADError naming an output that the engine was built without."""
        record = self.records[sample_token]
        missing = [key for key in keys if key not in record]
        if missing:
            raise UniADError(f"{self.where}: frame {sample_token} has no {', '.join(missing)}: the engine gave none")
        return [record[key] for key in keys]


class _FileRecord(Mapping[str, np.ndarray]):
    """One frame file; each array is decoded when it is asked for."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def _open(self) -> Any:
        return np.load(self._path, allow_pickle=False)

    def _read(self, read: Any) -> Any:
        try:
            with self._open() as file:
                return read(file)
        except UNREADABLE as error:
            raise UniADError(f"{self._path}: not a readable frame file ({error}); make the result again") from error

    def __getitem__(self, key: str) -> np.ndarray:
        array = self._read(lambda file: file[key])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UniADError(f"{self._path}: {key} holds NaN or infinity")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._read(lambda file: list(file.files)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def read_results(path: pathlib.Path) -> Results:
    """The records of a RESULT folder; run.json tells the convention. Raises UniADError."""
    result = load_result(path, "result")
    convention = result.run.get("convention")
    if convention not in CONVENTIONS:
        raise UniADError(f"{path / 'run.json'}: convention {convention!r} is none of {', '.join(CONVENTIONS)}")
    records = {token: _FileRecord(result.frames[name]) for token, name in result.by_token.items()}
    return Results(records, convention, str(path))


def check_frames(results: Results, truth: GroundTruth) -> None:
    """Raise UniADError unless result and ground truth have the same keyframes and the same convention."""
    if results.convention != truth.convention:
        raise UniADError(f"{results.where} is in convention {results.convention}, ground truth in {truth.convention}")
    lacking = [token for token in truth.tokens if token not in results.records]
    if lacking:
        raise UniADError(
            f"{results.where} lacks {len(lacking)} of the {len(truth)} keyframes, the first is {lacking[0]}: run the "
            "whole scenes, or choose those that are there with --scenes"
        )
    known = set(truth.tokens)
    strange = [token for token in results.records if token not in known]
    if strange:
        raise UniADError(f"{results.where}: {len(strange)} frames are not in the chosen scenes, e.g. {strange[0]}")


def frames(truth: GroundTruth, task: str) -> Iterable[int]:
    """Indices of all keyframes, with a progress bar that goes away."""
    return tqdm(range(len(truth)), desc=task, unit="frame", disable=None, leave=False)


class Shown(list):
    """A list whose iteration shows how far it has got. For loops inside the devkit."""

    def __init__(self, items: Iterable[Any], task: str):
        super().__init__(items)
        self._task = task

    def __iter__(self) -> Iterator[Any]:
        return iter(tqdm(self[:], desc=self._task, unit="class", disable=None, leave=False))


def number(value: Any) -> float | None:
    """A metric as JSON has it: None where there was nothing to measure."""
    return float(value) if np.isfinite(value) else None


def ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None
