"""Files whose names are Drystone's own choice, in a directory that somebody else may write into: a cache, metrics.

What has such a name is opened only if it is a regular file of this user's, and replaced as a whole. A link leads
nowhere, and a FIFO, a socket or a device holds nobody up: opening one may wait for ever, or do something.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress

from manifests.directory import sync_directory

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ForeignFile(OSError):
    """What has the name is no regular file, or is somebody else's."""


def require_own(path: str | os.PathLike[str]) -> os.stat_result:
    """How the file `path` looks. It must be a regular file that belongs to this user, or to the owner of its directory:
    some file systems give all files one owner. Raises ForeignFile, FileNotFoundError and other OSErrors."""
    return _required(os.lstat(path), path)


def open_own(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file `path`, made with O_CREAT for its owner alone. Raises ForeignFile and other OSErrors."""
    with suppress(FileNotFoundError):
        require_own(path)  # before it is opened, for that alone starts some devices
    fd = os.open(path, flags | _FLAGS, 0o600)
    try:
        _required(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _required(found: os.stat_result, path: str | os.PathLike[str]) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        raise ForeignFile(errno.EINVAL, "it is no regular file", os.fspath(path))
    if found.st_uid not in (os.geteuid(), os.stat(os.path.dirname(path) or os.curdir).st_uid):
        raise ForeignFile(errno.EPERM, "it is another user's file", os.fspath(path))
    return found


def read_own(path: str | os.PathLike[str]) -> bytes:
    """What the file `path` holds. Raises ForeignFile and other OSErrors."""
    with open(open_own(path), "rb") as file:
        return file.read()


def write_own(path: str | os.PathLike[str], data: bytes, mode: int = 0o600, *, durable: bool = False) -> None:
    """Write the file `path` with this mode whatever the umask: whole, or what was there stays. `durable`: it is
    on disk then. Raises OSError."""
    folder, name = os.path.split(path)
    reading = os.O_RDONLY if durable else os.O_PATH
    place = os.open(folder or os.curdir, reading | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _replace(place, name, data, mode, durable)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # not the name that it has till then
    finally:
        os.close(place)


def _replace(place: int, name: str, data: bytes, mode: int, durable: bool) -> None:
    temp = f".{name}.{secrets.token_hex(8)}"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        try:
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)  # which may be where writing fails
        os.rename(temp, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        os.unlink(temp, dir_fd=place)
        raise
    if durable:
        sync_directory(place)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove what has the name: a file of any kind, a link, or an empty directory. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.rmdir(path)
