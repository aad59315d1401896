"""Having data on disk. A file system that does not know how is taken to do its best."""

from __future__ import annotations

import ctypes
import errno
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def sync_file(fd: int) -> None:
    """Have an open file or directory on disk. Raises OSError where that failed."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def sync_file_system(fd: int) -> None:
    """Have all of an open object's file system on disk. The object is not opened with O_PATH. Raises OSError."""
    if _LIBC.syncfs(fd):
        number = ctypes.get_errno()
        if number not in _CANNOT:
            raise OSError(number, os.strerror(number))
