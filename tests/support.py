"""Where the tests find the recorded goldens and the real nuScenes clip, and how close is close enough."""

import csv
import functools
import importlib.util
import os
import pathlib
from typing import NoReturn

import numpy as np
import pytest
from closeness import max_error

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "examples" / "uniad"
COMPACT = ROOT / "tests" / "golden"


def shared_path(*parts: str) -> pathlib.Path:
    """A path in the shared data folder ($UNIAD_SHARED, else `../shared` beside the checkout).

    Where it is absent, the compact goldens of tests/golden take its place as far as they reach; beyond them the test
    is skipped with a reason. With UNIAD_REQUIRE_SHARED=1 (set by `.ci/run`) an absent folder is a failure instead.
    """
    path = pathlib.Path(os.environ.get("UNIAD_SHARED", ROOT.parent / "shared")).joinpath(*parts)
    if path.exists():
        return path
    if os.environ.get("UNIAD_REQUIRE_SHARED") != "1" and (COMPACT.parent.joinpath(*parts)).exists():
        return COMPACT.parent.joinpath(*parts)
    return _absent(f"shared data {'/'.join(parts)} not found (set UNIAD_SHARED to its folder)")


def _absent(message: str) -> NoReturn:
    if os.environ.get("UNIAD_REQUIRE_SHARED") == "1":
        pytest.fail(message)
    pytest.skip(message)


def load_script(path: pathlib.Path):
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Compact(dict):
    """A compact golden file: asking for what only the full set has skips the test."""

    def __missing__(self, key: str):
        _absent(f"{key} is only in the full set of goldens (set UNIAD_SHARED to its folder)")


def golden(*parts: str) -> dict[str, np.ndarray]:
    """All arrays of one recorded golden file, e.g. golden("ops", "tsa.npz")."""
    path = shared_path("golden", *parts)
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if COMPACT not in path.parents or parts[0] == "ops":
        return arrays
    index = int(path.stem.removeprefix("frame_"))
    return _Compact(arrays, **{"in.img_u8": _images()[index]})


@functools.cache
def _images() -> list[np.ndarray]:
    frames = load_script(COMPACT / "recipe_inputs.py").sequence(128, 224)
    return [frame["img_u8"] for frame in frames]


@functools.cache
def noise_floor() -> dict[str, float]:
    """Largest difference of the original with itself (oneDNN against plain kernels) per recorded tensor."""
    with open(shared_path("golden", "tiny", "fp32_noise.tsv"), newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        next(rows)
        return {row[0]: float(row[1]) for row in rows}


def tolerance(key: str, factor: float) -> float:
    """factor x the noise floor of a recorded tensor; one float32 step of its largest value where that is larger."""
    with open(shared_path("golden", "tiny", "fp32_noise.tsv"), newline="") as file:
        largest = {row[0]: row[2] for row in csv.reader(file, delimiter="\t")}
    return factor * max(noise_floor()[key], float(largest[key]) * float(np.finfo(np.float32).eps))


def assert_close(actual, expected, atol: float, what: str = "") -> None:
    """Fail with the measured error where it exceeds `atol`."""
    error = max_error(actual, expected)
    assert error <= atol, f"{what}: max error {error:.3e} > {atol:.3e}"


def assert_differs(actual, expected, atol: float, what: str = "") -> None:
    """The check of the check: a deliberately broken case must exceed the tolerance."""
    error = max_error(actual, expected)
    assert error > atol, f"{what}: a broken case passed (max error {error:.3e} <= {atol:.3e})"
