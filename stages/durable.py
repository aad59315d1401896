"""Having data on disk. A file system that does not know how is taken to do its best."""

from __future__ import annotations

import ctypes
import errno
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
#: Kinds of file systems (statfs) whose kernel side does not pass a syncfs on: FUSE and 9p.
_DEAF = {0x65735546, 0x01021997}
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


def syncs_files_alone(fd: int) -> bool:
    """Whether the file system of an open object has data on disk by `sync_file` alone: a `sync_file_system` of it
    succeeds and does nothing."""
    buffer = (ctypes.c_long * 64)()
    return _LIBC.fstatfs(fd, buffer) == 0 and buffer[0] in _DEAF
