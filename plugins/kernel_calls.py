"""How the *_kernels.py call the kernels on torch tensors through their C interface (src/kernels.h), without TensorRT.

For tests and benchmarks. The host build of the kernels (tests/kernels_host.cpp) takes CPU tensors, the CUDA library
tensors on the GPU. Outputs are filled with NaN first, so that an unwritten element can't pass for a result.
"""

import ctypes
from collections.abc import Sequence

import torch

TYPES = {torch.float32: 0, torch.float16: 1}


def load(path) -> ctypes.CDLL:
    """The library at `path`."""
    return ctypes.CDLL(str(path))


def poisoned(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """NaNs of the given shape, -1 for whole numbers."""
    value = float("nan") if like.is_floating_point() else -1
    return torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)


def pointer(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
    return tensor.data_ptr()


def call_kernel(
    library: ctypes.CDLL, function: str, arguments: ctypes.Structure, like: torch.Tensor, *options: int
) -> None:
    """`options`: what the function takes between the arguments and the stream (type, variant)."""
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else None
    error = getattr(library, function)(ctypes.byref(arguments), *map(ctypes.c_int, options), ctypes.c_void_p(stream))
    if error:
        raise RuntimeError(f"{function}: error {error} for {like.dtype}, type and variant {options}")


def build_facts(library: ctypes.CDLL) -> dict[str, str]:
    """What uniad_plugins_build says: version, cuda, tensorrt, architectures, variants."""
    library.uniad_plugins_build.restype = ctypes.c_char_p
    return dict(fact.split("=", 1) for fact in library.uniad_plugins_build().decode().split())
