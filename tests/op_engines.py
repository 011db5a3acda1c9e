"""TensorRT engines of the operation cases, several cases in one. Needs no torch."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from op_cases import BOTH, CASES, Case

from trtllm import Tensor
from trtllm import functional as F
from trtllm.tensorrt_builder import BuildOptions, Engine, build_engine
from trtllm.tensorrt_flavours import Flavour


def as_list(result) -> list:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def groups(dtype: str, size: int) -> Iterator[list[int]]:
    """Indices of the cases of a type, `size` at a time."""
    fitting = [index for index, case in enumerate(CASES) if dtype in case.dtypes]
    yield from (fitting[start : start + size] for start in range(0, len(fitting), size))


def all_groups(size: int) -> list[tuple[str, list[int]]]:
    return [(dtype, group) for dtype in BOTH for group in groups(dtype, size)]


def input_arrays(indices: Sequence[int], dtype: str) -> dict[str, np.ndarray]:
    """Inputs of the engine of these cases, by tensor name."""
    return {f"{i}.in{n}": array for i in indices for n, array in enumerate(CASES[i].arrays(dtype))}


def define(indices: Sequence[int], choose: Callable[[Case], Callable] = lambda case: case.run):
    """The network of these cases: input `3.in0` is the first one of case 3, output `3.out0` its first result."""

    def network(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = {}
        for i in indices:
            results = choose(CASES[i])(*(inputs[f"{i}.in{n}"] for n in range(len(CASES[i].inputs))))
            for n, result in enumerate(as_list(results)):
                outputs[f"{i}.out{n}"] = F.cast(result, "int32") if result.dtype == "bool" else result
        return outputs

    return network


def build(indices: Sequence[int], flavour: Flavour, options: BuildOptions) -> Engine:
    """One engine of these cases, in the type that the options say. Raises UniADError."""
    inputs = {name: (str(a.dtype), a.shape) for name, a in input_arrays(indices, options.dtype).items()}
    return build_engine(define(indices), inputs, flavour, options)
