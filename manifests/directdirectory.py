"""A directory that is used past the page cache."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence

from manifests.localdirectory import READING, LocalDirectory, length_of, write_pieces
from manifests.storage import Buffer, checked_key

#: What O_DIRECT wants offsets, lengths and addresses to be multiples of, on any disk.
_ALIGN = 4096
_DIRECT_PIECE = 1 << 20


class DirectDirectory(LocalDirectory):
    """A directory that is read and written past the page cache (O_DIRECT), so that a large run does not push out what
    others use, and a verification sees the disk. Through the cache where the file system has no O_DIRECT."""

    @property
    def type(self) -> str:
        return "local-direct"

    def _read(self, key: str, offset: int, length: int | None) -> bytes:
        checked_key(self.location, key)
        try:
            fd = _open_direct(key, self._open().fd)
        except OSError as error:
            raise self._error("reading", key, error) from error
        if fd is None:
            return super()._read(key, offset, length)
        try:
            left = max(0, length_of(os.fstat(fd)) - offset)
            length = left if length is None else min(length, left)
            return _read_direct(fd, offset, length) if length > 0 else b""
        except OSError as error:
            raise self._error("reading", key, error) from error
        finally:
            os.close(fd)

    @staticmethod
    def _put(fd: int, pieces: Sequence[Buffer]) -> None:
        _write_direct(fd, pieces)


def _open_direct(key: str, root: int) -> int | None:
    """A file below an open directory for reading with O_DIRECT; None where its file system has none."""
    try:
        return os.open(key, READING | os.O_DIRECT, dir_fd=root)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _read_direct(fd: int, offset: int, length: int) -> bytes:
    """A range, read as whole aligned pieces through a page-aligned buffer."""
    start, end = offset // _ALIGN * _ALIGN, offset + length
    found = bytearray()
    with mmap.mmap(-1, min(_DIRECT_PIECE, -(-(end - start) // _ALIGN) * _ALIGN)) as buffer:
        while start < end:
            count = os.preadv(fd, [buffer], start)
            if not count:
                break
            found += buffer[max(0, offset - start) : min(count, end - start)]
            if count % _ALIGN:
                break  # the end of the file
            start += count
    return bytes(found)


def _write_direct(fd: int, pieces: Sequence[Buffer]) -> None:
    """Write pieces through a page-aligned buffer; what is left behind the last whole page goes through the cache."""
    if not _set_direct(fd, True):
        write_pieces(fd, pieces)
        return
    aligned = memoryview(mmap.mmap(-1, _DIRECT_PIECE))  # goes with its last view
    fill = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            count = min(len(view), _DIRECT_PIECE - fill)
            aligned[fill : fill + count] = view[:count]
            view, fill = view[count:], fill + count
            if fill == _DIRECT_PIECE:
                _write_pages(fd, aligned)
                fill = 0
    whole = fill // _ALIGN * _ALIGN
    _write_pages(fd, aligned[:whole])
    _set_direct(fd, False)
    _write_all(fd, aligned[whole:fill])


def _write_pages(fd: int, pages: memoryview) -> None:
    """Write whole pages with O_DIRECT. Where the system took an odd part, the rest goes through the cache."""
    while pages:
        pages = pages[os.write(fd, pages) :]
        if len(pages) % _ALIGN:
            _set_direct(fd, False)
            _write_all(fd, pages)
            _set_direct(fd, True)
            return


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _set_direct(fd: int, on: bool) -> bool:
    """Turn O_DIRECT on or off for an open file; whether its file system knows it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
