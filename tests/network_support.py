"""Runs parts of the network on the torch executor inside tests."""

import contextlib
import csv
import functools

import numpy as np
import torch
from support import load_script, shared_path

from trtllm import Module, Network, Tensor, net_guard
from trtllm import functional as F
from trtllm.torch_executor import torch_executor


@contextlib.contextmanager
def torch_network(dtype: str = "float32"):
    """A network on the CPU torch executor, keeping every tapped intermediate in `network.taps`."""
    network = Network(torch_executor("cpu"), dtype)
    network.taps = {}
    with torch.inference_mode(), net_guard(network):
        yield network


def const(array, dtype: str | None = None) -> Tensor:
    """An array as a tensor of the current network (integers become int32, float64 float32)."""
    return F.constant(np.asarray(array), dtype)


def value(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers."""
    return tensor.handle.numpy()


def load_op_weights(module: Module, arrays: dict[str, np.ndarray]) -> Module:
    """Fill a module from the `w.<key>` entries of a golden/ops file."""
    module.load({key[2:]: array for key, array in arrays.items() if key.startswith("w.")})
    return module


@functools.cache
def recipe(name: str):
    """The module golden/<name>.py: "recipe_weights" or "recipe_inputs"."""
    return load_script(shared_path("golden", f"{name}.py"))


@functools.cache
def tiny_weights(prefix: str, manifest: str = "tiny/tiny_manifest.tsv") -> dict[str, np.ndarray]:
    """The golden tiny model's weights whose keys begin with `prefix`, under the keys that remain without it."""
    weights = {}
    with open(shared_path("golden", *manifest.split("/")), newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            key = row["key"]
            if key.startswith(prefix) and not key.endswith("num_batches_tracked"):
                shape = tuple(int(d) for d in row["shape"].split("x"))
                weights[key[len(prefix) :]] = recipe("recipe_weights").make_tensor(key, shape)
    return weights
