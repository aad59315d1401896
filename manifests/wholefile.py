"""A file that appears whole and durable under its name, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress

from manifests.directory import UNABLE, set_mode

TEMP_MARK = ".tmp-"
#: What keeps an unnamed file from getting a name: no /proc, or a file system or a sandbox that does not allow it.
_NOT_NAMED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EXDEV, *UNABLE)


def write_whole(folder: int, name: str, put: Callable[[int], None], mode: int, unnamed: bool = True) -> bool:
    """Let `put` write an open file, make it durable, and let it appear as `name` in the open directory `folder` in one
    step, replacing what was there; the directory itself is not synced. Until then the file has no name, so that the
    kernel frees it if we die; a temporary one where that can't be, or `unnamed` says not to try. Whether it makes sense
    to try again."""
    if unnamed:
        fd = _open_unnamed(folder)
        if fd is not None:
            try:
                _fill(fd, put, mode)
                if _give_name(fd, folder, name):
                    return True
            finally:
                os.close(fd)
    temp = _temporary_name()
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        _fill(fd, put, mode)
        _rename(temp, folder, name)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    return False


def _open_unnamed(folder: int) -> int | None:
    try:
        return os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EISDIR, *UNABLE):
            raise
        return None


def _fill(fd: int, put: Callable[[int], None], mode: int) -> None:
    set_mode(fd, mode)
    put(fd)
    os.fsync(fd)


def _give_name(fd: int, folder: int, name: str) -> bool:
    """Whether an unnamed file has its name now."""
    source = f"/proc/self/fd/{fd}"
    try:
        try:
            os.link(source, name, dst_dir_fd=folder, follow_symlinks=True)
        except FileExistsError:
            temp = _temporary_name()
            os.link(source, temp, dst_dir_fd=folder, follow_symlinks=True)
            _rename(temp, folder, name)
    except OSError as error:
        # Where the directory itself was removed meanwhile, it is not the system that can't.
        if error.errno not in _NOT_NAMED or not os.fstat(folder).st_nlink:
            raise
        return False
    return True


def _rename(temp: str, folder: int, name: str) -> None:
    try:
        os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp, dir_fd=folder)
        raise


def _temporary_name() -> str:
    return f"{TEMP_MARK}{secrets.token_hex(8)}"
