"""Report files that appear whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from errors import UniADError


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
