"""The error of a process that has no place for caches, which are disposable: it goes on without."""

from __future__ import annotations

import errno
import os


class NoCache(OSError):
    """There is no directory for caches."""

    def __init__(self) -> None:
        super().__init__(
            errno.ENOENT,
            f"user {os.getuid()} has no home directory to keep caches in; set DRYSTONE_CACHE to a directory, or HOME",
        )
