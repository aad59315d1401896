"""Backends: the places that hold a store's files, behind one small interface.

A key is a relative path with '/' between its parts. A put is whole or absent: unnamed file, fsync, link (or rename over
what was there), fsync of the directory; until it has its name, a kill leaves nothing behind. Any implementation must
pass tests/test_backends.py.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from manifests.errors import BackendError, BackendFull, KeyNotFound, UsageError

Buffer = bytes | bytearray | memoryview
TEMP_MARK = ".tmp-"


class BackendStorage(Protocol):
    """One place that holds files by key. Methods raise BackendError, naming the backend and the key.

    One instance serves the threads of one process.
    """

    @property
    def location(self) -> str:
        """Where it is, for messages."""

    def write(self, key: str, pieces: Sequence[Buffer]) -> None:
        """Store the concatenation of `pieces` under `key`: durable on return, whole or absent, replacing what was
        there. The buffers stay the caller's."""

    def read(self, key: str) -> bytes:
        """All bytes of `key`. Raises KeyNotFound."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`: fewer at the end, none past it. Raises KeyNotFound."""

    def delete(self, key: str) -> None:
        """Remove `key`; an absent key is fine."""

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int:
        """Length of `key` in bytes. Raises KeyNotFound."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys in the folder `prefix` and below, in no order, without temporary files."""

    def free_bytes(self) -> int: ...

    def device(self) -> str:
        """Failure domain that the backend lies in unless it was told another."""


class LocalDirectory:
    """A directory as a backend."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._made: set[str] = set()

    @property
    def location(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        return self.root / key

    def _error(self, action: str, key: str, error: OSError) -> BackendError:
        where = f"{action} {self.path(key)}: {error.strerror or error}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and action != "writing":
            return KeyNotFound(where)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return BackendFull(f"{where}; free some space or remove the backend")
        return BackendError(where)

    def _make_parent(self, parent: Path) -> None:
        """Make `parent` and make its entry durable; the root itself is never made, it may be an empty mount point."""
        if str(parent) in self._made or parent == self.root:
            return
        self._make_parent(parent.parent)
        with suppress(FileExistsError):
            os.mkdir(parent)
        _fsync_directory(parent.parent)
        self._made.add(str(parent))

    def _open_parent(self, parent: Path) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._make_parent(parent)
        try:
            return os.open(parent, flags)
        except FileNotFoundError:
            self._made.clear()  # somebody removed it since we made it
            self._make_parent(parent)
            return os.open(parent, flags)

    def write(self, key: str, pieces: Sequence[Buffer]) -> None:
        final = self.path(key)
        try:
            folder = self._open_parent(final.parent)
            try:
                _write_named(folder, final.name, pieces)
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._error("writing", key, error) from error

    def read(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except OSError as error:
            raise self._error("reading", key, error) from error

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        try:
            fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                pieces = []
                length = min(length, max(0, os.fstat(fd).st_size - offset))  # pread makes room for all that it is asked
                while length > 0:
                    piece = os.pread(fd, length, offset)
                    if not piece:
                        break
                    pieces.append(piece)
                    offset += len(piece)
                    length -= len(piece)
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error("reading", key, error) from error

    def delete(self, key: str) -> None:
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.path(key))
        except OSError as error:
            raise self._error("deleting", key, error) from error

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except KeyNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        try:
            return os.stat(self.path(key)).st_size
        except OSError as error:
            raise self._error("looking at", key, error) from error

    def list(self, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(self.path(prefix)) as entries:
                for entry in entries:
                    key = f"{prefix}/{entry.name}" if prefix else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        yield from self.list(key)
                    elif not entry.name.startswith(TEMP_MARK):
                        yield key
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error("listing", prefix, error) from error

    def free_bytes(self) -> int:
        try:
            stat = os.statvfs(self.root)
        except OSError as error:
            raise self._error("looking at", "", error) from error
        return stat.f_bavail * stat.f_frsize

    def device(self) -> str:
        try:
            return f"device:{os.stat(self.root).st_dev}"
        except OSError as error:
            raise self._error("looking at", "", error) from error

    def remove_folder(self, prefix: str) -> None:
        """Remove the folder `prefix` with what it holds, temporary files too: for folders of one owner only."""
        top = self.path(prefix)
        try:
            for folder, _, names in os.walk(top, topdown=False):
                for name in names:
                    os.unlink(os.path.join(folder, name))
                os.rmdir(folder)
        except OSError as error:
            raise self._error("removing", prefix, error) from error


def _write_named(folder: int, name: str, pieces: Sequence[Buffer]) -> None:
    """Write a file whole and durably, and let it appear as `name` in the directory `folder` in one step, replacing what
    was there. Until then it has no name, so that the kernel frees it if we die; a temporary one where the file system
    has no unnamed files."""
    temp: str | None = None
    try:
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o644, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        temp = _temporary_name()
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        for piece in pieces:
            _write_all(fd, piece)
        os.fsync(fd)
        if temp is None:
            try:
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
                return
            except FileExistsError:
                temp = _temporary_name()
                os.link(f"/proc/self/fd/{fd}", temp, dst_dir_fd=folder, follow_symlinks=True)
        os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        if temp is not None:
            with suppress(OSError):
                os.unlink(temp, dir_fd=folder)
        raise
    finally:
        os.close(fd)


def _temporary_name() -> str:
    return f"{TEMP_MARK}{secrets.token_hex(8)}"


def _write_all(fd: int, piece: Buffer) -> None:
    view = memoryview(piece).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


BACKEND_TYPES: dict[str, Callable[[str], BackendStorage]] = {"local": LocalDirectory}


def open_backend(kind: str, location: str) -> BackendStorage:
    """The backend of type `kind` at `location`; nothing is touched yet."""
    try:
        factory = BACKEND_TYPES[kind]
    except KeyError:
        raise UsageError(f"no backend type {kind!r}; there are {', '.join(BACKEND_TYPES)}") from None
    return factory(location)
