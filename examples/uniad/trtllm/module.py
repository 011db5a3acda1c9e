"""Module, ModuleList, Sequential and Parameter, as in tensorrt_llm.module and tensorrt_llm.parameter.

Attribute names are the checkpoint's keys, so that loading weights is one loop over named_parameters().
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from trtllm.network import Tensor, default_net


class Parameter:
    """A weight. `dtype` None: the network's type; "float32": kept whatever the network's type."""

    def __init__(self, shape: Iterable[int], dtype: str | None = None):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.array: np.ndarray | None = None
        self.name = ""

    @property
    def value(self) -> Tensor:
        """The weight as a tensor of the current network (made once per network)."""
        network = default_net()
        tensor = network.parameters.get(id(self))
        if tensor is None:
            if self.array is None:
                raise RuntimeError(f"parameter {self.name or self.shape} has no value: load the weights first")
            array = np.ascontiguousarray(self.array, dtype=self.dtype or network.dtype)
            handle = network.executor.parameter(array, self.name)
            tensor = network.parameters[id(self)] = Tensor(handle, str(array.dtype), array.shape, array)
        return tensor


class Module:
    """A part of the network: parameters, submodules and `forward`."""

    def __init__(self) -> None:
        self._modules: dict[str, Module] = {}
        self._parameters: dict[str, Parameter] = {}
        self._name = type(self).__name__

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Module):
            self._modules[name] = value
            value.rename(name)
        elif isinstance(value, Parameter):
            self._parameters[name] = value
        super().__setattr__(name, value)

    def rename(self, name: str) -> None:
        """Set the name that this module has in module paths."""
        self._name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network = default_net()
        network.scope.append(self._name)
        network.executor.enter(network.scope)
        try:
            return self.forward(*args, **kwargs)
        finally:
            network.executor.leave(network.scope)
            network.scope.pop()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters with their checkpoint keys."""
        for name, parameter in self._parameters.items():
            yield prefix + name, parameter
        for name, module in self._modules.items():
            yield from module.named_parameters(f"{prefix}{name}.")

    def load(self, tensors: Mapping[str, np.ndarray], prefix: str = "") -> None:
        """Fill every parameter from `tensors[prefix + key]`.

        Raises KeyError naming all missing keys and ValueError naming all misshapen ones.
        """
        missing, misshapen = [], []
        for key, parameter in self.named_parameters():
            parameter.name = prefix + key
            if prefix + key not in tensors:
                missing.append(prefix + key)
                continue
            array = tensors[prefix + key]
            if tuple(array.shape) != parameter.shape:
                misshapen.append(f"{prefix + key}: {tuple(array.shape)}, not {parameter.shape}")
                continue
            parameter.array = array
        if missing:
            raise KeyError(f"{len(missing)} weights are missing: {', '.join(missing)}")
        if misshapen:
            raise ValueError(f"{len(misshapen)} weights have another shape: {'; '.join(misshapen)}")


class ModuleList(Module):
    """Modules under the names "0", "1", …; entries that are None or plain functions hold a place, not a name."""

    def __init__(self, modules: Iterable["Module | Callable | None"]):
        super().__init__()
        self._items = list(modules)
        for index, module in enumerate(self._items):
            if isinstance(module, Module):
                self._modules[str(index)] = module
                module.rename(str(index))

    def rename(self, name: str) -> None:
        """A list is no step of a module path (nothing calls it), so its items carry its name: "layers.0"."""
        super().rename(name)
        for key, module in self._modules.items():
            module.rename(f"{name}.{key}")

    def __getitem__(self, index: int) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Sequential(ModuleList):
    """Modules and functions applied in order, under torch.nn.Sequential's key names."""

    def __init__(self, *modules: "Module | Callable"):
        super().__init__(modules)

    def rename(self, name: str) -> None:
        """A sequence is called itself, so its items keep their own numbers: "ffn/0"."""
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x
