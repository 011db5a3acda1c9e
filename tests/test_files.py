"""Files and folders that appear whole or not at all: what stays behind after an error, and their modes."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from errors import UniADError
from files import new_folder, whole_file
from runtime.plan_files import sidecar_path, write_plan


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_modes_follow_the_umask(umask, tmp_path):
    """Of a file, a folder and an engine, also where the library that writes makes its files private."""
    file, folder = 0o666 & ~umask, 0o777 & ~umask
    with whole_file(tmp_path / "report.md") as part:
        part.write_text("whole")
    for _ in range(2):  # new, and in the place of the first
        with new_folder(tmp_path / "c-model", lambda path: True, "a c-model") as work:
            work.joinpath("a.bin").write_bytes(b"1")
    assert modes(tmp_path) == {"report.md": file, "c-model": folder}
    assert modes(tmp_path / "c-model") == {"a.bin": file}

    def write_private(path):
        path.unlink()
        os.close(os.open(path, os.O_CREAT, 0o600))

    for write in (write_private, lambda path: save_file({"a": np.zeros(3)}, path)):
        plan = tmp_path / "plans" / "engine.plan"
        write_plan(plan, write, {})
        assert modes(plan.parent) == {plan.name: file, sidecar_path(plan).name: file}


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.md"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(UniADError, match=r"cannot write .*report\.md: No space left"), whole_file(path) as part:
        raise OSError(28, "No space left")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UniADError, match=r"cannot write .*report\.md/a"), whole_file(path / "a"):
        pass
