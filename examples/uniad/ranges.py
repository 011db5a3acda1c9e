"""Named ranges on the timeline of Nsight Systems, where the nvtx package is installed; else they cost nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

try:
    from nvtx import pop_range, push_range
except ImportError:

    def push_range(message: str) -> None:
        """Begin a range."""

    def pop_range() -> None:
        """End the innermost range."""


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """The block is one range."""
    push_range(name)
    try:
        yield
    finally:
        pop_range()
