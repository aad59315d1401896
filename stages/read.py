"""Reading files into buffers, and knowing whether they held still."""

from __future__ import annotations

import errno
import os
import stat
from heapq import nlargest
from operator import itemgetter

from stages.filesystem import MADE_UP, NUMBERED_ANEW, file_system

#: A file touched this shortly before its reading may change again within one tick of its clock.
QUIET_NS = 2_000_000_000
#: Holes of a file that are archived as such; they lie in one row.
HOLES_MOST = 4096
#: Holes shorter than this are read.
HOLE_SKIPPED = 64 << 10
#: More than this beyond the size that a file had when it was opened is not read.
GROWTH = 64 << 20


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


def is_same_file(fd: int, now: os.stat_result, device: int, inode: int, looks: tuple[int, int, int, int]) -> bool:
    """Whether an open file, of which stat tells `now`, is the one that the scan met: with this device and inode, and of
    these `looks`, as `looks_of` has them. This is the rule. Raises OSError."""
    if now.st_dev != device:
        return False
    if now.st_ino == inode:
        return True
    kind = file_system(fd)
    return kind in MADE_UP or (kind in NUMBERED_ANEW and looks_of(now) == looks)


def looks_of(info: os.stat_result) -> tuple[int, int, int, int]:
    """What tells a file from others besides its inode: size, both times, mode."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_mode


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
