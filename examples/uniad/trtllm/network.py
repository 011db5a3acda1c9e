"""Tensor handles, and the network (an executor and a number type) that functional calls act on.

Which executor computes is chosen here and nowhere else: `net_guard(Network(executor, dtype))`. TensorRT-LLM's
`net_guard` plays the same part for its one executor.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

DTYPES = ("float32", "float16", "int32", "uint8", "bool")
FLOATS = ("float32", "float16")


class Tensor:
    """A value in the current network: the executor's own handle, with its type and static shape.

    `array` is set on constants only: the numpy value, for executors that fold it.
    """

    __array_priority__ = 100  # numpy must not grab `ndarray * Tensor`
    __hash__ = object.__hash__

    def __init__(self, handle: Any, dtype: str, shape: tuple[int, ...], array: np.ndarray | None = None):
        self.handle = handle
        self.dtype = dtype
        self.shape = tuple(int(d) for d in shape)
        self.array = array

    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {self.shape})"

    if TYPE_CHECKING:  # trtllm.functional provides the operators

        def __add__(self, other: "Operand") -> "Tensor": ...
        def __radd__(self, other: "Operand") -> "Tensor": ...
        def __sub__(self, other: "Operand") -> "Tensor": ...
        def __rsub__(self, other: "Operand") -> "Tensor": ...
        def __mul__(self, other: "Operand") -> "Tensor": ...
        def __rmul__(self, other: "Operand") -> "Tensor": ...
        def __truediv__(self, other: "Operand") -> "Tensor": ...
        def __rtruediv__(self, other: "Operand") -> "Tensor": ...
        def __lt__(self, other: "Operand") -> "Tensor": ...
        def __gt__(self, other: "Operand") -> "Tensor": ...
        def __neg__(self) -> "Tensor": ...


Operand = Tensor | float | int | bool


class Network:
    """What functional calls add to, or compute on: an executor, and the type of the network's weights.

    Args:
        executor: an object with one method per primitive operation (trtllm/torch_executor.py is the reference).
        dtype: "float32" or "float16", the type of parameters that do not ask for another.
    """

    def __init__(self, executor: Any, dtype: str = "float32"):
        if dtype not in FLOATS:
            raise ValueError(f"network type {dtype!r}: use one of {FLOATS}")
        self.executor = executor
        self.dtype = dtype
        self.parameters: dict[int, Tensor] = {}  # id(Parameter) -> its tensor in this network
        self.scope: list[str] = []  # module path of the call in progress
        self.taps: dict[str, Tensor] | None = None  # named intermediates, when asked for


_current: contextvars.ContextVar[Network | None] = contextvars.ContextVar("network", default=None)


@contextlib.contextmanager
def net_guard(network: Network) -> Iterator[Network]:
    """Make `network` the one that functional calls act on, inside the with block."""
    token = _current.set(network)
    try:
        yield network
    finally:
        _current.reset(token)


def default_net() -> Network:
    """The network of the enclosing net_guard. Raises RuntimeError outside of one."""
    network = _current.get()
    if network is None:
        raise RuntimeError("no network: call functional operations inside net_guard(...)")
    return network


def net_dtype() -> str:
    """The current network's type: "float32" or "float16"."""
    return default_net().dtype


def tap(name: str, tensor: Tensor) -> None:
    """Record a named intermediate, where the network was asked to keep them (tests, calibration)."""
    network = default_net()
    if network.taps is not None:
        network.taps[name] = tensor
