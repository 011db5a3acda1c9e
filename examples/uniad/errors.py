"""The one way in which the scripts fail: a single clear line and a non-zero exit status."""

import contextlib
import sys


class UniADError(Exception):
    """Something the user can act on. The message says what is wrong and what to do."""


@contextlib.contextmanager
def one_line_errors():
    """Turn a UniADError (or Ctrl-C) inside a script into one line on stderr and exit status 2 (130)."""
    try:
        yield
    except UniADError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left; run the same command again", file=sys.stderr)
        sys.exit(130)
