"""Giving a complete object its name, and never taking one from what has it already.

The kernel's way is renameat2 with RENAME_NOREPLACE. Some file systems lack it (NFS, several FUSE ones): there a second
name is made and the first one removed. Those that know no second names either (FAT) get the name taken by an empty file
that must be new, over which the object is then renamed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from typing import Any

#: Reasons why a file system gives an object no further name. ENOTSUPP (524) is the kernel's own, which NFS lets out.
NO_LINKS = {errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EACCES, 524}
#: Answers of file systems and kernels that don't know RENAME_NOREPLACE.
_NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_RENAME_NOREPLACE = 1
_renameat2: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # None: an older C library


class Namer:
    """Names objects on one file system, and remembers what that file system lacks."""

    def __init__(self) -> None:
        self._ways = [_rename, _link, _reserve] if _renameat2 is not None else [_link, _reserve]

    def name(self, source: int, temp: bytes, folder: int, name: bytes) -> None:
        """Rename `temp` in the directory `source`, which is no directory itself, to `name` in `folder`. Raises
        FileExistsError where something has that name, and OSError; then `temp` is still there."""
        while not self._ways[0](source, temp, folder, name):
            del self._ways[0]


def _rename(source: int, temp: bytes, folder: int, name: bytes) -> bool:
    """Whether the file system knows how to."""
    if not _renameat2(source, temp, folder, name, _RENAME_NOREPLACE):
        return True
    number = ctypes.get_errno()
    if number in _NO_FLAGS:
        return False
    raise OSError(number, os.strerror(number), name)


def _link(source: int, temp: bytes, folder: int, name: bytes) -> bool:
    try:
        os.link(temp, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # A network file system that asked twice is told that its own first request was fulfilled.
        ours = os.stat(temp, dir_fd=source, follow_symlinks=False)
        if not os.path.samestat(ours, os.stat(name, dir_fd=folder, follow_symlinks=False)):
            raise
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    os.unlink(temp, dir_fd=source)
    return True


def _reserve(source: int, temp: bytes, folder: int, name: bytes) -> bool:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    reserved = os.fstat(fd)
    try:
        os.close(fd)
        os.rename(temp, name, src_dir_fd=source, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            if os.path.samestat(reserved, os.stat(name, dir_fd=folder, follow_symlinks=False)):
                os.unlink(name, dir_fd=folder)
        raise
    return True
