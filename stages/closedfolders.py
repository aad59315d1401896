"""Directories of this user's own that deny their owner something: they are opened while a restore writes into them.

At the end such a directory gets its archived mode. Where the restore ends early, it gets back the mode that it had.
Paths and modes lie in a file in the staging directory, so memory does not grow with their number.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from stages.attributes import change_mode
from stages.errors import StageError

_TAIL = struct.Struct("<III")
_ALL = os.R_OK | os.W_OK | os.X_OK


class StaysClosed(StageError):
    """A directory that can't be written into."""


def is_closed(folder: int | None, name: bytes | str, info: os.stat_result) -> bool:
    """Whether the directory `name`, of which stat tells `info`, is this user's own and denies them something."""
    if info.st_uid != os.geteuid() or info.st_mode & stat.S_IRWXU == stat.S_IRWXU:
        return False
    return not os.access(name, _ALL, dir_fd=folder, effective_ids=True)


def opened_mode(info: os.stat_result) -> int:
    return stat.S_IMODE(info.st_mode) | stat.S_IRWXU


class ClosedFolders:
    """Those that one restore has opened."""

    def __init__(self, staging: int) -> None:
        """`staging`: descriptor of the directory that the notes lie in, which stays the caller's."""
        self._staging = staging
        self._notes = -1

    def open(self, folder: int, name: bytes, path: bytes, info: os.stat_result) -> None:
        """Open the directory `name` in `folder` for its owner if it is closed; `path` is noted. Raises StaysClosed."""
        if not is_closed(folder, name, info):
            return
        try:
            if self._notes < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._notes = os.open("closed-folders", flags, 0o600, dir_fd=self._staging)
            os.write(self._notes, path + _TAIL.pack(stat.S_IMODE(info.st_mode), opened_mode(info), len(path)))
            change_mode(folder, name, opened_mode(info))
        except OSError as error:
            raise StaysClosed(
                f"its owner may not write into it, and opening it failed: {error.strerror}; change its mode"
            ) from error

    def noted(self) -> Iterator[tuple[bytes, int, int]]:
        """(path, its mode before, its mode since) of those that were opened, the latest first. Raises OSError."""
        end = os.fstat(self._notes).st_size if self._notes >= 0 else 0
        while end:
            before, since, length = _TAIL.unpack(os.pread(self._notes, _TAIL.size, end - _TAIL.size))
            end -= _TAIL.size + length
            yield os.pread(self._notes, length, end), before, since

    def close(self) -> None:
        if self._notes >= 0:
            with suppress(OSError):  # nothing in it is needed any more
                os.close(self._notes)
            self._notes = -1
