"""Which attentions of the whole network at full size become plugins: shapes alone, on torch's meta device."""

import collections

import numpy as np
import pytest
import torch
from graph_io import input_specs, state_specs

from config import load_config
from model import UniAD
from trtllm import Network, Tensor, net_guard
from trtllm.tensorrt_plugins import HEADS_MIN_LENGTH, PluginExecutor
from trtllm.torch_executor import TORCH, TorchExecutor

HALF = "float16"


class Asked(PluginExecutor):
    """Says whether an attention would be a plugin; makes none."""

    def __init__(self):
        self.plugins = frozenset(["multihead_attention"])

    def _plugin(self, *arguments, **attributes):
        return None

    def _as_int32(self, x):
        return None


class Shapes(TorchExecutor):
    """Computes no numbers; counts the attentions of many heads: (queries, keys, shape of the mask)."""

    def __init__(self):
        super().__init__("meta")
        self.plugins, self.composed = collections.Counter(), collections.Counter()

    def joint_heads(self, queries, memory, num_heads):
        return Asked().joint_heads(queries, memory, num_heads)

    def multihead_attention(self, query, key, value, blocked, first_heads):
        custom = Asked().multihead_attention(query, key, value, blocked, first_heads)
        counted = self.composed if custom is None else self.plugins
        counted[query.shape[-3], key.shape[-3], None if blocked is None else blocked.shape] += 1

    def tensors(self, specs) -> dict[str, Tensor]:
        empty = {s.name: torch.empty(s.shape, dtype=TORCH[s.dtype], device=self.device) for s in specs}
        return {s.name: Tensor(empty[s.name], s.dtype, tuple(s.shape)) for s in specs}


@pytest.fixture(scope="module")
def executor():
    executor, config = Shapes(), load_config("base_e2e")
    with torch.inference_mode(), net_guard(Network(executor, HALF)):
        model = UniAD(config)
        for _, parameter in model.named_parameters():
            parameter.array = np.zeros(parameter.shape, parameter.dtype or HALF)
        model(executor.tensors(input_specs(config)), executor.tensors(state_specs(config, HALF)))
    return executor


def test_the_large_ones_are_plugins(executor):
    """None is left out for its mask, above all."""
    assert executor.plugins == {
        (1157, 1157, (1157,)): 6,  # track decoder
        (256, 256, (256,)): 1,  # query interaction
        (300, 300, None): 6,  # map decoder
        (1542, 257, (1, 1, 257)): 3,  # modes to agents
        (1542, 300, None): 3,  # modes to map elements
        (100, 40000, None): 4,  # things of the map to all cells
        (625, 625, None): 5,  # occupancy: pixels among themselves
        (625, 256, (1, 625, 256)): 5,  # and to instances
    }


def test_the_small_ones_are_composed(executor):
    assert executor.composed[6, 6, None] == 7  # modes of one group or agent
    assert all(min(queries, keys) < HEADS_MIN_LENGTH for queries, keys, _ in executor.composed)
