"""Reading large files without pushing out of the page cache what others keep there: pages that were resident before us
stay, the others go when they were read.

What is resident must be known before anything is read, so the kernel's own reading ahead is turned off, and a file is
read window by window: mincore tells which pages are missing, WILLNEED asks for them while the window before is worked
on, DONTNEED drops them behind us. A window that is resident costs 0.1 ms. Neither RWF_NOWAIT nor reading itself can
tell, for both have the kernel fetch what is missing. Of files that belong to others and that one may not write, mincore
says nothing (since Linux 5.2); they are read as they are.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections import deque

from stages.filesystem import KEPT_IN_MEMORY, file_system

#: Shorter files are read as they are.
LARGE_FILE = 4 << 20
#: How far pages are looked at and asked for at once. Two windows are under way.
WINDOW = 4 << 20
#: The kernel reads no more than this for one WILLNEED, on disks that are set up for short requests.
_ASKED = 512 << 10
_PAGE = mmap.PAGESIZE
_ABSENT = re.compile(rb"[\0\2\4\6]+")  # only the lowest bit of what mincore says is defined

Run = tuple[int, int]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_MAP_FAILED = ctypes.c_void_p(-1).value


def absent_runs(fd: int, start: int, end: int) -> list[Run]:
    """(start, end) of the pages that are not resident, of those of a file from `start`, which is a page's, to `end`.
    Raises OSError."""
    length = end - start
    states = ctypes.create_string_buffer(-(-length // _PAGE))
    place = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if place == _MAP_FAILED:
        raise _last_error()
    try:
        if _libc.mincore(place, length, states):
            raise _last_error()
    finally:
        _libc.munmap(place, length)
    found = _ABSENT.finditer(states.raw)
    return [(start + match.start() * _PAGE, start + match.end() * _PAGE) for match in found]


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _is_told(fd: int) -> bool:
    """Whether mincore tells the truth of a file: else it calls a page resident that lies behind its end. False also
    where the file system maps no files."""
    behind = -(-os.fstat(fd).st_size // _PAGE) * _PAGE
    try:
        return bool(absent_runs(fd, behind, behind + _PAGE))
    except OSError:
        return False


class LargeFile:
    """A file that is read once from its beginning to its end, with leaps. The descriptor is the caller's, and so is its
    position, where reading goes on. Methods raise OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen = 0
        self._ours: deque[Run] = deque()
        self._plain = file_system(fd) in KEPT_IN_MEMORY or not _is_told(fd)  # read as any file
        if not self._plain:
            self._advise(0, 0, os.POSIX_FADV_RANDOM)

    def fill(self, target: memoryview) -> tuple[int, bool]:
        """Read until `target` is full or the file ends: (bytes, ended)."""
        start = at = os.lseek(self._fd, 0, os.SEEK_CUR)
        end = start + len(target)
        while at < end:
            count = self._read(target[at - start :], at)
            if not count:
                break
            at += count
        return at - start, at < end

    def _read(self, target: memoryview, at: int) -> int:
        """Some bytes from `at`, where the descriptor stands; 0 at the end."""
        if self._plain:
            return os.readv(self._fd, [target])
        self._look_ahead(at)
        count = os.readv(self._fd, [target[: self._seen - at]])
        self._drop(at + count)
        return count

    def _look_ahead(self, at: int) -> None:
        """See to it that the window at `at` and the next one are seen and asked for."""
        self._seen = max(self._seen, at // _PAGE * _PAGE)
        size = os.fstat(self._fd).st_size
        while self._seen <= at or (self._seen - at <= WINDOW and self._seen < size):
            start, end = self._seen, self._seen + WINDOW
            if start < size:
                runs = absent_runs(self._fd, start, min(end, size))
                self._ours += runs
                for first, last in runs:
                    for asked in range(first, last, _ASKED):
                        self._advise(asked, min(_ASKED, last - asked), os.POSIX_FADV_WILLNEED)
            self._seen = end

    def _advise(self, start: int, length: int, advice: int) -> None:
        """Give advice; a file system that takes none has the file read as it is."""
        try:
            os.posix_fadvise(self._fd, start, length, advice)
        except OSError:
            self._plain = True

    def _drop(self, until: int) -> None:
        """Drop the pages before `until` that were not there before us."""
        while self._ours and self._ours[0][0] < until:
            start, end = self._ours.popleft()
            if end > until:
                rest = until // _PAGE * _PAGE
                self._ours.appendleft((rest, end))
                if rest == start:
                    break
                end = rest
            self._advise(start, end - start, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Drop what was asked for and not read, too: the file ended early, or its reading failed."""
        for start, end in self._ours:
            self._advise(start, end - start, os.POSIX_FADV_DONTNEED)
        self._ours.clear()
