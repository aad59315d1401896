"""A directory as a backend.

A put is whole or absent: unnamed file, fsync, link (or rename over what was there), fsync of the directory; until it
has its name, a kill leaves nothing behind.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from manifests.errors import BackendError, KeyNotFound, StoreExists
from manifests.storage import Buffer, Space, check_range, checked_key, storage_error

TEMP_MARK = ".tmp-"
#: What O_DIRECT wants offsets, lengths and addresses to be multiples of, on any disk.
_ALIGN = 4096
_DIRECT_PIECE = 1 << 20


def _write_pieces(fd: int, pieces: Sequence[Buffer]) -> None:
    for piece in pieces:
        _write_all(fd, piece)


def _write_all(fd: int, piece: Buffer) -> None:
    view = memoryview(piece).cast("B")
    while view:
        view = view[os.write(fd, view) :]


class LocalDirectory:
    """A directory as a backend."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._made: set[str] = set()

    @property
    def type(self) -> str:
        return "local"

    @property
    def location(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        return self.root / checked_key(self.location, key)

    def _error(self, action: str, key: str, error: OSError) -> BackendError:
        return storage_error(action, str(self.root / key), error)

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
                _write_named(folder, final.name, pieces, self._put)
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._error("writing", key, error) from error

    #: Writes pieces to an open file, one after the other.
    _put = staticmethod(_write_pieces)

    def read(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except OSError as error:
            raise self._error("reading", key, error) from error

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_range(self.location, key, offset, length)
        try:
            fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                pieces = []
                length = min(
                    length, max(0, _length(os.fstat(fd)) - offset)
                )  # pread makes room for all that it is asked
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
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
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
            return _length(os.stat(self.path(key)))
        except OSError as error:
            raise self._error("looking at", key, error) from error

    def list(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self._entries(prefix))

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for key, entry in self._entries(prefix):
            try:
                yield key, entry.stat(follow_symlinks=True).st_size
            except FileNotFoundError:
                continue  # it went while we looked
            except OSError as error:
                raise self._error("looking at", key, error) from error

    def _entries(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            with os.scandir(self.path(prefix) if prefix else self.root) as entries:
                for entry in entries:
                    key = f"{prefix}/{entry.name}" if prefix else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._entries(key)
                    elif not entry.name.startswith(TEMP_MARK):
                        yield key, entry
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error("listing", prefix, error) from error

    def space(self) -> Space:
        try:
            room = os.statvfs(self.root)
        except OSError as error:
            raise self._error("looking at", "", error) from error
        return Space(room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)

    def device(self) -> str:
        try:
            return f"device:{os.stat(self.root).st_dev}"
        except OSError as error:
            raise self._error("looking at", "", error) from error

    def local_path(self, key: str) -> Path | None:
        return self.path(key)

    def require_empty(self) -> None:
        try:
            with os.scandir(self.root) as entries:
                if next(entries, None) is not None:
                    raise StoreExists(f"{self.root} is not empty; a backend wants an empty or a new directory")
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise StoreExists(f"{self.root} is not a directory") from error
        except OSError as error:
            raise self._error("listing", "", error) from error

    def make(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error("making", "", error) from error

    def folders(self) -> Sequence[str]:
        try:
            with os.scandir(self.root) as entries:
                return sorted(str(self.root / entry.name) for entry in entries if entry.is_dir())
        except OSError:
            return []  # what can't be looked into holds no backend that could be used

    def close(self) -> None:
        """Nothing to release: no file is kept open."""

    def remove_folder(self, prefix: str) -> None:
        top = self.path(prefix)
        try:
            for folder, _, names in os.walk(top, topdown=False):
                for name in names:
                    os.unlink(os.path.join(folder, name))
                os.rmdir(folder)
        except OSError as error:
            raise self._error("removing", prefix, error) from error


def _length(found: os.stat_result) -> int:
    """The length of a file. Raises IsADirectoryError: a folder is no key."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return found.st_size


class DirectDirectory(LocalDirectory):
    """A directory that is read and written past the page cache (O_DIRECT), so that a large run does not push out what
    others use, and a verification sees the disk. Through the cache where the file system has no O_DIRECT."""

    @property
    def type(self) -> str:
        return "local-direct"

    def read(self, key: str) -> bytes:
        return self._read(key, 0, None)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_range(self.location, key, offset, length)
        return self._read(key, offset, length)

    def _read(self, key: str, offset: int, length: int | None) -> bytes:
        """A range, to the end where `length` is None: the end of the file that is open, which another may replace."""
        try:
            fd = _open_direct(self.path(key))
        except OSError as error:
            raise self._error("reading", key, error) from error
        if fd is None:
            return super().read(key) if length is None else super().read_range(key, offset, length)
        try:
            left = max(0, _length(os.fstat(fd)) - offset)
            length = left if length is None else min(length, left)
            return _read_direct(fd, offset, length) if length > 0 else b""
        except OSError as error:
            raise self._error("reading", key, error) from error
        finally:
            os.close(fd)

    @staticmethod
    def _put(fd: int, pieces: Sequence[Buffer]) -> None:
        _write_direct(fd, pieces)


def _open_direct(path: Path) -> int | None:
    """A file for reading with O_DIRECT; None where its file system has none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
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
        _write_pieces(fd, pieces)
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


def _write_named(
    folder: int, name: str, pieces: Sequence[Buffer], put: Callable[[int, Sequence[Buffer]], None]
) -> None:
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
        put(fd, pieces)
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


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
