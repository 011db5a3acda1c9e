"""Named ranges on the timeline of Nsight Systems, where the nvtx package is installed; else they cost nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

push: Callable[[str], object] | None
try:
    from nvtx import pop_range, push_range

    push = push_range
except ImportError:
    push = None


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """The block is one range."""
    if push is None:
        yield
        return
    push(name)
    try:
        yield
    finally:
        pop_range()
