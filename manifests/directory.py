"""An open directory: known by a descriptor, so that what is mounted over its path or taken from under it later does
not send a reader or a writer elsewhere."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from contextlib import suppress

#: The errors of a file system that has no means for a request.
UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class OpenDirectory:
    """A directory, opened by its path. The descriptor is closed when the last user of the object lets go of it: a
    thread that still reads never finds it closed, or standing for something else."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.fd = os.open(path, _FLAGS)
        weakref.finalize(self, os.close, self.fd).atexit = False
        found = os.fstat(self.fd)
        self.identity = f"{found.st_dev}:{found.st_ino}"
        self._mode = found.st_mode

    @property
    def folder_mode(self) -> int:
        """Mode of directories in it: as open as it is itself, whatever the umask of who makes them."""
        return self._mode & 0o2777 | 0o700

    @property
    def file_mode(self) -> int:
        """Mode of files in it, likewise."""
        return self._mode & 0o666 | 0o600

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether `path` leads to this directory now."""
        try:
            found = os.stat(path)
        except OSError:
            return False
        return f"{found.st_dev}:{found.st_ino}" == self.identity

    def open_folder(self, name: str) -> int:
        """A descriptor of the directory `name` in it."""
        return os.open(name or ".", _FLAGS, dir_fd=self.fd)

    def make_folder(self, name: str) -> None:
        """Make the directory `name`; one that is there stays as it is."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
            fd = self.open_folder(name)
            try:
                # A group that is inherited comes with the bit that hands it on.
                set_mode(fd, self.folder_mode | os.fstat(fd).st_mode & stat.S_ISGID)
            finally:
                os.close(fd)


def set_mode(fd: int, mode: int) -> None:
    """Give an open file or directory `mode`, whatever the umask was. Where the file system keeps no modes of its own,
    as FAT and some network ones, its mount says who may read; `status` names a backend that is open to others."""
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, *UNABLE):
            raise


def sync_directory(fd: int) -> bool:
    """Make the entries of an open directory durable. False where its file system has no means to: then it does so by
    itself, or not at all. What else fails, as a disk that can't write, raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno in (errno.EBADF, *UNABLE):
            return False
        raise
    return True
