"""Files and folders that appear whole or not at all, and their hashes."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from errors import UniADError


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _lock(folder: pathlib.Path) -> int | None:
    """A descriptor that holds the folder's lock, or None where another process does. Ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(parent: pathlib.Path, prefix: str) -> None:
    """Delete the temporary folders of runs that were killed: those whose lock nobody holds any more."""
    for leftover in parent.glob(f"{prefix}*"):
        if leftover.is_dir() and not leftover.is_symlink() and (descriptor := _lock(leftover)) is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, is_ours: Callable[[pathlib.Path], bool], what: str) -> Iterator[pathlib.Path]:
    """Fill a temporary sibling folder; at the end of the block it takes the place of `path`.

    An existing `path` is replaced only where it is empty or `is_ours(path)`; `what` names such folders in the error.
    Where the block fails nothing stays behind; what a killed run left is removed by the next one.
    Raises UniADError where `path` is something else or cannot be written.
    """
    target = pathlib.Path(path).resolve()
    if target.exists() and not (target.is_dir() and (is_ours(target) or not any(target.iterdir()))):
        raise UniADError(f"{path} exists and is not {what}: remove it or give another folder")
    prefix = f".{target.name}.tmp-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent, prefix)
        work = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise UniADError(f"cannot write {path}: {error.strerror}: give a folder that can be written") from error
    descriptor = _lock(work)
    try:
        yield work
        work.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        if target.exists():
            old = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            os.replace(target, old)
            os.replace(work, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(work, target)
    except OSError as error:
        raise UniADError(
            f"cannot write {path}: {error.strerror or error}: free space or give another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
