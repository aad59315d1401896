"""Room on disk for queries that spill, in the cache: a directory for each catalog, gone with the store that made it.

A store holds a lock on its directory, which the kernel lets go of when the process dies, however it dies; whoever makes
the next one removes those that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from manifests.access import make_private

_PREFIX = "tmp-"


class Scratch:
    """Directories below one of a store's own in the cache, which is made when the first is wanted. `close` removes all;
    the store's lock keeps threads apart."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._own = cache / f"{_PREFIX}{secrets.token_hex(8)}"
        self._fd = -1
        self._count = 0

    def folder(self) -> Path:
        """A name that is not in use, for who makes the directory when it needs one. Where the cache can't be written,
        nobody will be able to, and who needs it says so."""
        if self._fd < 0:
            with suppress(OSError):
                make_private(self._cache)
                self._sweep()
                self._make()
        self._count += 1
        return self._own / str(self._count)

    def _make(self) -> None:
        while self._fd < 0:
            with suppress(FileExistsError):
                self._own.mkdir(mode=0o700)
            try:
                fd = os.open(self._own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                self._fd = fd
            else:
                os.close(fd)  # somebody swept it away before it was locked

    def _sweep(self) -> None:
        """Remove directories of processes that died."""
        for folder in self._cache.glob(f"{_PREFIX}*"):
            with suppress(OSError):  # somebody else removes it, or may do so
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                finally:
                    os.close(fd)

    def close(self) -> None:
        if self._fd >= 0:
            shutil.rmtree(self._own, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1
