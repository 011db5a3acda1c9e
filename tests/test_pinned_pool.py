"""Lent page-locked memory: when it comes back, and when it must not."""

import concurrent.futures
import gc

import numpy as np
import pytest
from fake_gpu import FakeRuntime, FakeTensorRT, Status, install

from runtime import cuda
from runtime.pinned_pool import PinnedPool

SHAPE = (6, 4, 5, 3)


@pytest.fixture
def gpu(monkeypatch):
    runtime = FakeRuntime()
    install(runtime, FakeTensorRT(), monkeypatch)
    cuda.runtime.cache_clear()
    yield runtime
    gc.collect()
    cuda.runtime.cache_clear()


def address(array):
    return array.ctypes.data


def test_comes_back_with_its_last_holder(gpu):
    pool = PinnedPool(SHAPE, 3)
    array = pool.lend()
    assert array.shape == SHAPE and array.dtype == np.uint8 and array.flags.writeable
    home = address(array)
    view = array[2].reshape(-1)[5:6].view(np.int8)  # a view of a view, of another type
    del array
    assert address(pool.lend()) != home  # the view holds it
    del view
    kept = [pool.lend(), pool.lend()]
    assert len({address(a) for a in kept}) == 2 and home in {address(a) for a in kept}
    assert len(gpu.memory) == 2


def test_limit(gpu):
    pool = PinnedPool(SHAPE, 2)
    kept = [pool.lend(), pool.lend()]
    assert pool.lend() is None
    kept.pop()
    assert pool.lend() is not None and len(gpu.memory) == 2


def test_owns_only_its_own(gpu):
    pool, other = PinnedPool(SHAPE, 1), PinnedPool(SHAPE, 1)
    array = pool.lend()
    assert pool.owns(array) and pool.owns(array[:]) and not other.owns(array)
    for foreign in (array.copy(), array[:5], array[::-1], array.view(np.int8), array.reshape(-1), array[..., ::-1]):
        assert not pool.owns(foreign)


def test_outlives_the_pool_and_is_freed(gpu):
    pool = PinnedPool(SHAPE, 2)
    array = pool.lend()
    array[...] = 7
    del pool
    gc.collect()
    assert len(gpu.memory) == 1 and (array == 7).all()
    del array
    gc.collect()
    assert not gpu.memory


def test_threads_never_get_the_same(gpu):
    pool = PinnedPool(SHAPE, 4)

    def use(number):
        wrong = 0
        for _ in range(200):
            array = pool.lend()
            array[...] = number
            wrong += not (array == number).all()
        return wrong

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(use, range(4))) == 0
    assert len(gpu.memory) <= 4


def test_out_of_memory(gpu):
    gpu.fail["cudaHostAlloc"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(cuda.CudaError, match="out of"):
        PinnedPool(SHAPE, 1).lend()
