"""An engine.plan and the `<plan>.json` beside it: written together, and the side file read back."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from graph_io import TensorSpec

from config import ConfigError, UniADConfig, config_from_dict
from errors import UniADError
from files import sha256_of


class PlanError(UniADError):
    """An engine's files are missing, damaged or don't belong together."""


def sidecar_path(plan: pathlib.Path) -> pathlib.Path:
    return plan.with_name(plan.name + ".json")


def write_plan(
    path: pathlib.Path,
    write: Callable[[pathlib.Path], None],
    facts: Mapping[str, Any],
    check: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Write an engine and its side file, both or neither.

    Args:
        write: writes the engine to the path that it is given.
        facts: what the side file says; `plan_sha256` is added.
        check: is given the path of the finished engine, not yet in its place; where it raises, nothing is written.
    Raises:
        UniADError: `path` can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
            plan = pathlib.Path(work, path.name)
            plan.touch()
            mode = plan.stat().st_mode
            write(plan)
            plan.chmod(mode)  # safetensors makes its files private
            sidecar_path(plan).write_text(json.dumps({**facts, "plan_sha256": sha256_of(plan)}, indent=1))
            if check is not None:
                check(plan)
            os.replace(plan, path)
            os.replace(sidecar_path(plan), sidecar_path(path))
    except OSError as error:
        raise UniADError(f"cannot write {path}: {error}: free space or give another file") from error


class Sidecar:
    """What `<plan>.json` says of an engine: `facts` as they stand there, the rest checked and converted."""

    config: UniADConfig
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    state: list[TensorSpec]  # in as `name`, out as `name`_out

    def __init__(self, plan: pathlib.Path):
        """Read the side file of `plan`. Raises PlanError where it is missing, damaged or incomplete."""
        path = sidecar_path(plan)
        try:
            self.facts: dict[str, Any] = json.loads(path.read_text())
            self.config = config_from_dict(self.facts["config"])
            tables = ([_spec(row) for row in self.facts[table]] for table in ("inputs", "outputs", "state"))
            self.inputs, self.outputs, self.state = tables
            self.kind, self.convention, self.dtype, self.sha256 = (
                _text(self.facts, key) for key in ("kind", "convention", "dtype", "plan_sha256")
            )
        except OSError as error:
            message = f"{path}: {error.strerror}; an engine is read together with it: copy both files"
            raise PlanError(message) from error
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise PlanError(f"{path}: damaged ({what}); build the engine again with builder.py") from error


def _spec(row: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(int(size) for size in row["shape"])
    return TensorSpec(_text(row, "name"), _text(row, "dtype"), shape, str(row.get("task", "")))


def _text(facts: Mapping[str, Any], key: str) -> str:
    if not isinstance(facts[key], str):
        raise TypeError(f"{key} is no text")
    return facts[key]
