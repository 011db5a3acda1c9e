"""The slice of TensorRT-LLM's API that UniAD needs, and the executors behind it."""

from trtllm.module import Module, ModuleList, Parameter, Sequential
from trtllm.network import Network, Tensor, default_net, net_dtype, net_guard, tap

__all__ = [
    "Module",
    "ModuleList",
    "Network",
    "Parameter",
    "Sequential",
    "Tensor",
    "default_net",
    "net_dtype",
    "net_guard",
    "tap",
]
