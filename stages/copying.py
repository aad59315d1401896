"""Copying the content of a file, with its holes."""

from __future__ import annotations

import errno
import os

_PIECE = 1 << 20


def copy_data(source: int, target: int) -> None:
    """Copy an open file into an empty one; what is a hole stays one. Raises OSError."""
    size, at = os.fstat(source).st_size, 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                break
            if error.errno != errno.EINVAL:
                raise
            end = size  # the file system can't tell where holes are
        while at < end:
            piece = memoryview(os.pread(source, min(_PIECE, end - at), at))
            if not piece:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            while piece:
                count = os.pwrite(target, piece, at)
                piece, at = piece[count:], at + count
    os.ftruncate(target, size)
