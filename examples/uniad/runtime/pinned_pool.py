"""Page-locked arrays that are lent and come back by themselves."""

from __future__ import annotations

import collections
import ctypes
import math
import threading
import weakref

import numpy as np

from runtime.cuda import PinnedBuffer


class PinnedPool:
    """uint8 arrays of one shape in page-locked memory, which the device reads and writes directly.

    Memory is lent again once nothing refers to it any more: neither the array that was lent, nor a view of it, nor
    anything that holds one of them. So it can't change under its holder, and whoever starts a copy keeps the array
    until the copy is done. Any thread may call.

    Args:
        limit: arrays lent at a time; each is made when it is first needed.
    """

    def __init__(self, shape: tuple[int, ...], limit: int):
        self._shape, self._limit = shape, limit
        self._free: collections.deque[PinnedBuffer] = collections.deque()
        self._addresses: set[int] = set()
        self._lock = threading.Lock()

    def lend(self) -> np.ndarray | None:
        """An array, its contents arbitrary; None while `limit` of them are in use. Raises CudaError."""
        with self._lock:
            if self._free:
                buffer = self._free.pop()
            elif len(self._addresses) < self._limit:
                buffer = PinnedBuffer(math.prod(self._shape))
                self._addresses.add(int(buffer.handle))
            else:
                return None
        # A new object each time: every array over this memory refers to it, and it to nothing.
        memory = (ctypes.c_uint8 * buffer.nbytes).from_address(int(buffer.handle))
        weakref.finalize(memory, self._free.append, buffer).atexit = False
        return np.ctypeslib.as_array(memory).reshape(self._shape)

    def owns(self, array: np.ndarray) -> bool:
        """Whether an array is one that was lent, or a view of all of it."""
        whole = array.dtype == np.uint8 and array.shape == self._shape and array.flags.c_contiguous
        return whole and array.ctypes.data in self._addresses
