"""Which names stood in a target's directories before the restore began, as the directories themselves list them.

A file system may take several names for one, so that an object is found under a name that is not its own. Only an
object whose very name was listed stood there by itself: it may pass for the archived one, or be replaced. Anything else
that turns up under a name was made meanwhile, perhaps by this restore out of another archived name, and is kept.

Each listing is a file of sorted 8-byte digests in the staging directory, so that all processes of a restore share it
and none needs memory for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

_NONE = np.zeros(0, np.uint64)
#: Listings from this size on are not read, but mapped.
_MAPPED = 1 << 20


class StandingNames:
    """The listings of one restore."""

    def __init__(self, staging: int, salt: str) -> None:
        """`staging`: descriptor of the directory that the listings lie in, which stays the caller's; `salt`: of the
        restore, that nobody foresees."""
        self._staging = staging
        self._salt = os.fsencode(salt)
        self._folder: bytes | None = None
        self._names: npt.NDArray[np.uint64] = _NONE

    def note(self, folder: bytes, names: Iterable[str | bytes]) -> None:
        """What the directory `folder`, a path below the target, lists. Raises OSError."""
        digests = bytearray()
        for name in names:
            digests += self._digest(os.fsencode(name))
        marks = np.frombuffer(digests, "<u8")
        marks.sort()
        self._folder = None
        with self._open(folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            marks.tofile(file)

    def holds(self, folder: bytes, name: bytes) -> bool:
        """Whether `name` was listed in `folder`; no directory was listed that this restore made. Raises OSError."""
        if folder != self._folder:
            self._folder = folder
            try:
                with self._open(folder, os.O_RDONLY) as file:
                    small = os.fstat(file.fileno()).st_size < _MAPPED
                    self._names = np.fromfile(file, "<u8") if small else np.memmap(file, "<u8", "r")
            except FileNotFoundError:
                self._names = _NONE
        mark = np.frombuffer(self._digest(name), "<u8")
        at = int(np.searchsorted(self._names, mark)[0])
        return at < len(self._names) and self._names[at] == mark[0]

    def _digest(self, name: bytes) -> bytes:
        return blake3(self._salt + name).digest(8)

    def _open(self, folder: bytes, flags: int) -> BinaryIO:
        name = f"listing-{blake3(folder).hexdigest(16)}"
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._staging)
        return os.fdopen(fd, "wb" if flags & os.O_WRONLY else "rb")
