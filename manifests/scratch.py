"""Room on disk for queries that spill: a directory for each store, gone with the store that made it. It lies in the
cache or, where that can't be written, in the directory for temporary files.

A store holds a lock on its directory, which the kernel lets go of when the process dies, however it dies; whoever makes
the next one removes those that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from manifests.access import make_private

_PREFIX = "tmp-"
#: Of directories that lie beside those of other programs.
_PREFIX_OUTSIDE = "drystone-tmp-"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """Directories below one of a store's own, which is made when the first is wanted. `close` removes all; the store's
    lock keeps threads apart."""

    def __init__(self, cache: Path | None) -> None:
        """`cache`: the store's own folder in the cache, or None where there is none."""
        self._cache = cache
        self._own = Path()
        self._fd = -1
        self._count = 0

    def folder(self) -> Path:
        """A name that is not in use, for who makes the directory when it needs one. Where nothing can be written,
        nobody will be able to, and who needs it says so."""
        if self._fd < 0:
            for place, prefix in self._places():
                self._own = place / f"{prefix}{secrets.token_hex(8)}"
                with suppress(OSError):
                    if place == self._cache:
                        make_private(place)
                    _sweep(place, prefix)
                    self._make()
                    break
        self._count += 1
        return self._own / str(self._count)

    def _places(self) -> Iterator[tuple[Path, str]]:
        if self._cache is not None:
            yield self._cache, _PREFIX
        try:
            yield Path(tempfile.gettempdir()), _PREFIX_OUTSIDE
        except FileNotFoundError:  # no directory for temporary files can be written to
            if self._cache is None:
                yield Path("/tmp"), _PREFIX_OUTSIDE

    def _make(self) -> None:
        while self._fd < 0:
            with suppress(FileExistsError):
                self._own.mkdir(mode=0o700)
            try:
                fd = os.open(self._own, _FLAGS)
            except FileNotFoundError:
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                self._fd = fd
            else:
                os.close(fd)  # somebody swept it away before it was locked

    def close(self) -> None:
        if self._fd >= 0:
            shutil.rmtree(self._own, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def _sweep(place: Path, prefix: str) -> None:
    """Remove directories of processes of this user that died."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):  # somebody else removes it, or may do so
            fd = os.open(folder, _FLAGS)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(fd)
