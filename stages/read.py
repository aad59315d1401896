"""Reading files into buffers, and knowing whether they held still."""

from __future__ import annotations

import errno
import os
import stat
from heapq import nlargest
from operator import itemgetter

from manifests.xattrs import short_path
from stages.filesystem import MADE_UP, file_system

#: A file touched this shortly before its reading may change again within one tick of its clock.
QUIET_NS = 2_000_000_000
_PIECE = 4000
#: Holes of a file that are archived as such; they lie in one row.
HOLES_MOST = 4096
#: Holes shorter than this are read.
HOLE_SKIPPED = 64 << 10
#: More than this beyond the size that a file had when it was opened is not read.
GROWTH = 64 << 20


def open_below(path: bytes, folder: int | None = None, flags: int = os.O_RDONLY) -> int:
    """Open `path`, part by part where it is longer than the kernel takes at once. Raises OSError."""
    flags |= os.O_CLOEXEC
    if len(path) <= _PIECE:
        return os.open(path, flags, dir_fd=folder)
    cut = path.rindex(b"/", 0, _PIECE)
    inner = os.open(path[:cut], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return open_below(path[cut + 1 :].lstrip(b"/"), inner, flags)
    finally:
        os.close(inner)


class FolderCache:
    """The directory of the file that was opened last: neighbours are opened relative to it."""

    def __init__(self) -> None:
        self._path = b""
        self._fd = -1

    def open(self, path: bytes) -> int:
        """A descriptor of the file `path`, which must not be a symlink; a FIFO does not block. Raises OSError."""
        name = self._enter(path)
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)

    def short(self, path: bytes) -> bytes:
        """A short path that leads to `path` until the next call, for calls that take no descriptor of a directory.
        Raises OSError."""
        name = self._enter(path)
        return short_path(self._fd, name, path)

    def _enter(self, path: bytes) -> bytes:
        folder, _, name = path.rpartition(b"/")
        if folder != self._path or self._fd < 0:
            self.close()
            self._fd = open_below(folder or b"/", flags=os.O_PATH | os.O_DIRECTORY)
            self._path = folder
        return name

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def fill(fd: int, target: memoryview) -> tuple[int, bool]:
    """Read until `target` is full or the file ends: (bytes, ended). Raises OSError."""
    filled = 0
    while filled < len(target):
        count = os.readv(fd, [target[filled:]])
        if not count:
            return filled, True
        filled += count
    return filled, False


def find_holes(fd: int, info: os.stat_result) -> list[tuple[int, int]]:
    """(offset, length) of the holes of a file, in order; of more than HOLES_MOST the largest. What stat says spares
    files without holes the search. Raises OSError."""
    size = info.st_size
    if info.st_blocks * 512 >= size:
        return []
    holes, at = list[tuple[int, int]](), 0
    while at < size:
        start = size
        try:
            start = os.lseek(fd, at, os.SEEK_HOLE)
            at = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # there is no data from there on, or the file is shorter by now
                raise
            at = size
        if start < size:
            holes.append((start, min(at, size) - start))
        if len(holes) > 2 * HOLES_MOST:
            holes = _largest(holes)
    os.lseek(fd, 0, os.SEEK_SET)
    return _largest(holes) if len(holes) > HOLES_MOST else holes


def _largest(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(nlargest(HOLES_MOST, holes, key=itemgetter(1)))


def data_between(holes: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """(start, end) of what is read of a file: all but its larger holes. Smaller ones are read as the zeros that they
    are, for chunks between them would be too small."""
    found, at = [], 0
    for offset, length in holes:
        if length >= HOLE_SKIPPED:
            if offset > at:
                found.append((at, offset))
            at = offset + length
    return [*found, (at, size)] if at < size else found


def changed(before: os.stat_result, after: os.stat_result, size: int, made_up: bool = False) -> str:
    """Why the `size` bytes that were read may be a mixture, or not all, or an empty string. The change time tells what
    the others hide: a modification time that was set back, and a rewriting in place. `made_up`: see kernel_makes."""
    if not stat.S_ISREG(before.st_mode):
        return ""
    if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    ):
        return "it changed while it was read"
    if made_up or not after.st_size:
        return "it goes on and on; the first part is archived" if size >= growth_limit(before, made_up) else ""
    return "" if size == after.st_size else "its length is not what its file system says"


def growth_limit(before: os.stat_result, made_up: bool) -> int:
    """Where to stop reading a file that never ends, because somebody writes faster than we read, or the kernel makes it
    up. This is the rule."""
    return GROWTH if made_up else before.st_size + GROWTH


def kernel_makes(fd: int, info: os.stat_result) -> bool:
    """Whether the file's content is made up by the kernel as it is read, so that its size says nothing: below /sys,
    where all are of 4096 bytes, or /proc, where few have one. It costs a system call for a file that has a size but
    no blocks, and nothing for others."""
    if info.st_blocks or not info.st_size:
        return False
    return file_system(fd) in MADE_UP
