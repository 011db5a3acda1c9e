"""Files and folders that appear whole or not at all, and their hashes."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from errors import UniADError

# What `with np.load(path, allow_pickle=False)` and reading from it raise for a file that is no whole archive of plain
# arrays. The file of a single array can't be entered: a TypeError, an AttributeError before Python 3.11.
UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


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
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Give a temporary sibling to write; at the end of the block it takes the place of `path`.

    Where the block fails nothing stays behind. Raises UniADError where the file cannot be written.
    """
    target = pathlib.Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        reason = error.strerror or error
        raise UniADError(f"cannot write {path}: {reason}: give a folder that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


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
        work = target.with_name(prefix + secrets.token_hex(8))
        work.mkdir()  # mkdtemp's would stay private
    except OSError as error:
        raise UniADError(f"cannot write {path}: {error.strerror}: give a folder that can be written") from error
    descriptor = _lock(work)
    try:
        yield work
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
