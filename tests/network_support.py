"""Runs parts of the network on the torch executor inside tests."""

import contextlib

import numpy as np
import torch

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
