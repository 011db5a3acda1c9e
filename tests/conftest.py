"""One torch thread per test process: the suite runs in two of them. And fixtures that several files share."""

import os

import pytest
import torch
from kernels_support import kernels, library  # noqa: F401

from errors import UniADError
from trtllm.tensorrt_flavours import Flavour, load_flavour

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Indices of nuScenes roots are kept in the tests' own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """TensorRT for RTX; where it is absent, the same rule as for the shared data (support.shared_path)."""
    try:
        return load_flavour("tensorrt-rtx")
    except UniADError as error:
        if os.environ.get("UNIAD_REQUIRE_SHARED") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
