"""Where Drystone imports from: never from the current directory, which may belong to the owner of what is archived.

Python puts the current directory on its path for `-c`, `-m` and prompts, and for each empty or relative entry of
PYTHONPATH. A file `queue.py` there would then run with the rights of whoever archives that directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator


def safe_path() -> list[str]:
    """This process's import path without the current directory and what was named relative to it. If Drystone itself
    lies there, the directory comes last, where it can't hide a module of the standard library or of a dependency."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    unsafe = set(_relative_entries())
    here = _identity(os.curdir)
    path = [
        entry
        for entry in sys.path
        if os.path.isabs(entry) and entry not in unsafe and (here is None or _identity(entry) != here)
    ]
    return path if root in path else [*path, root]


def _relative_entries() -> Iterator[str]:
    """The directories that relative entries of PYTHONPATH have become: Python makes them absolute when it starts."""
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if not os.path.isabs(entry):
            try:
                yield os.path.abspath(entry)
            except FileNotFoundError:  # the current directory was removed
                return


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of `path`; None if it can't be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
