"""Engines of the torch executor: a safetensors file of weights that describes itself."""

import dataclasses
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import save_file

from config import UniADConfig
from errors import UniADError
from files import sha256_of
from graph_io import input_specs, output_specs, state_specs
from model import UniAD
from runtime.session import TORCH_KIND
from weight import CModel


def describe_graph(config: UniADConfig, dtype: str) -> dict[str, Any]:
    """Inputs, outputs and state pairs of the graph, for a sidecar file."""
    return {
        "inputs": [spec._asdict() for spec in input_specs(config)],
        "outputs": [spec._asdict() for spec in output_specs(config)],
        "state": [{**spec._asdict(), "out": f"{spec.name}_out"} for spec in state_specs(config, dtype)],
    }


def write_torch_plan(c_model: CModel, config: UniADConfig, dtype: str, path: pathlib.Path) -> None:
    """Write an engine.plan for the torch executor and its sidecar, whole or not at all.

    Raises UniADError where the c-model lacks weights of the network or `path` can't be written.
    """
    network = UniAD(config)
    try:
        network.load(c_model.tensors)
    except (KeyError, ValueError) as error:
        raise UniADError(f"the c-model does not fit {config.name}: {error.args[0]}") from error
    weights: Mapping[str, np.ndarray] = {
        key: np.asarray(parameter.array, parameter.dtype or dtype) for key, parameter in network.named_parameters()
    }
    metadata = {
        "kind": TORCH_KIND,
        "config": config.to_json(),
        "convention": c_model.convention,
        "dtype": dtype,
        "checkpoint": c_model.source["checkpoint"],
        "checkpoint_sha256": c_model.source["checkpoint_sha256"],
        "built_with": f"torch {torch.__version__}, safetensors {safetensors.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}",
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
            plan, sidecar = pathlib.Path(work, "plan"), pathlib.Path(work, "json")
            save_file(dict(weights), plan, metadata)
            facts = {**metadata, "config": dataclasses.asdict(config), "plan_sha256": sha256_of(plan)}
            sidecar.write_text(json.dumps({**facts, **describe_graph(config, dtype)}, indent=1))
            os.replace(plan, path)
            os.replace(sidecar, path.with_name(path.name + ".json"))
    except (OSError, safetensors.SafetensorError) as error:
        raise UniADError(f"cannot write {path}: {error}: free space or give another file") from error
