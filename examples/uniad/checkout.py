"""Which commit of this project is running: results carry it."""

import os
import pathlib
import subprocess


def git_commit() -> str | None:
    """Commit of this checkout, with -dirty where tracked files were changed; None outside of git.

    $UNIAD_COMMIT goes first: of a copy that has no history, or an older one.
    """
    if stated := os.environ.get("UNIAD_COMMIT"):
        return stated
    here = str(pathlib.Path(__file__).resolve().parent)
    try:
        command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
