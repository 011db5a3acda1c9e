"""Engines of the torch executor: a safetensors file of weights that describes itself."""

import dataclasses
import pathlib
import platform
from collections.abc import Collection, Mapping

import numpy as np
import safetensors
import torch
from graph_io import TASKS, describe_graph
from safetensors.numpy import save_file

from config import UniADConfig
from model import UniAD, load_model
from runtime.plan_files import write_plan
from runtime.session import TORCH_KIND
from weight import CModel


def write_torch_plan(
    c_model: CModel, config: UniADConfig, dtype: str, path: pathlib.Path, tasks: Collection[str] = TASKS
) -> UniAD:
    """Write an engine.plan for the torch executor and its sidecar, whole or not at all. Returns the model.

    Raises UniADError where the c-model lacks weights of the network or `path` can't be written.
    """
    network = load_model(c_model, config, tasks)
    weights: Mapping[str, np.ndarray] = {
        key: np.asarray(parameter.array, parameter.dtype or dtype) for key, parameter in network.named_parameters()
    }
    metadata = {
        "kind": TORCH_KIND,
        "config": config.to_json(),
        "convention": c_model.convention,
        "dtype": dtype,
        "tasks": ",".join(tasks),
        "checkpoint": c_model.source["checkpoint"],
        "checkpoint_sha256": c_model.source["checkpoint_sha256"],
        "built_with": f"torch {torch.__version__}, safetensors {safetensors.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}",
    }
    facts = {**metadata, "config": dataclasses.asdict(config), **describe_graph(config, dtype, tasks)}
    write_plan(path, lambda plan: _save(weights, plan, metadata), facts)
    return network


def _save(weights: Mapping[str, np.ndarray], path: pathlib.Path, metadata: dict[str, str]) -> None:
    try:
        save_file(dict(weights), path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
