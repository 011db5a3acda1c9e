"""The kernels that TensorRT for RTX compiles on the GPU that it meets, kept in `<plan>.kernels` for the next start.

The file is the SHA-256 of the engine's SHA-256 and what follows, then TensorRT's serialized runtime cache. TensorRT
itself refuses one of another GPU, driver or version; the hash keeps away what is damaged or belongs to another engine,
also what a process reads while another one writes. The file may be deleted at any time.
"""

import contextlib
import hashlib
import pathlib

from errors import UniADError
from files import whole_file

_DIGEST_BYTES = hashlib.sha256().digest_size


def kernels_path(plan: pathlib.Path) -> pathlib.Path:
    return plan.with_name(plan.name + ".kernels")


def _digest(plan_sha256: str, kernels: bytes) -> bytes:
    digest = hashlib.sha256(plan_sha256.encode())
    digest.update(kernels)
    return digest.digest()


def read_kernels(plan: pathlib.Path, plan_sha256: str) -> bytes:
    """The runtime cache of an earlier start; empty where there is none for this engine."""
    try:
        data = kernels_path(plan).read_bytes()
    except OSError:
        return b""
    digest, kernels = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return kernels if digest == _digest(plan_sha256, kernels) else b""


def write_kernels(plan: pathlib.Path, plan_sha256: str, kernels: bytes) -> None:
    """Keep a runtime cache for the next start. Where the folder can't be written the next start compiles again."""
    with contextlib.suppress(UniADError), whole_file(kernels_path(plan)) as part:
        part.write_bytes(_digest(plan_sha256, kernels) + kernels)
