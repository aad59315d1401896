"""A directory as a backend.

All is reached from a descriptor of the directory (directory.py), which is opened when it is first needed. Before each
put the path must still lead there: so nothing is written below a mount point, and nothing to a disk that was taken out
of the tree.

A put is whole or absent (wholefile.py), and durable with the entries of the folders above it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from manifests.access import PRIVATE, Access
from manifests.directory import OpenDirectory, set_mode, sync_directory
from manifests.errors import BackendError, KeyNotFound, StoreExists
from manifests.limits import LimitReached
from manifests.storage import Buffer, Space, check_range, checked_key, storage_error
from manifests.wholefile import TEMP_MARK, write_whole

#: Pieces that one system call takes.
_PIECES = 1024
#: How files are opened for reading. Opening a FIFO that somebody put in a file's place must not wait for its writer.
READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
#: Directories that are put at the top of a new disk without a user's doing: by mkfs of ext2, ext3 and ext4 for what
#: fsck may find, and by Windows on its file systems.
OWN_FOLDERS = ("lost+found", "System Volume Information")
#: Slashes in the longest key, with room for what later versions may add.
_DEEPEST = 8


class LocalDirectory:
    """A directory as a backend. `identity`: which one it must be; whatever it is when it is opened, unless told."""

    def __init__(self, root: str | Path, identity: str = "") -> None:
        self.root = Path(root)
        self._expected = identity
        self._opened: OpenDirectory | None = None
        self._closed = False
        self._made: set[str] = set()
        #: Whether files can be written without a name; tried by the first.
        self._unnamed = True
        #: Directories that `make` made, the outermost first, and what the place was if it was there before.
        self._new: list[Path] = []
        self._old: os.stat_result | None = None

    @property
    def type(self) -> str:
        return "local"

    @property
    def location(self) -> str:
        return str(self.root)

    def _error(self, action: str, key: str, error: OSError) -> BackendError | LimitReached:
        return storage_error(action, str(self.root / key), error)

    def _open(self) -> OpenDirectory:
        """The directory, the same one from the first call on. Raises OSError where it can't be opened."""
        if self._opened is None:
            if self._closed:
                raise BackendError(f"{self.location}: the store that used this backend is closed; open it again")
            found = OpenDirectory(self.root)
            if self._expected and found.identity != self._expected:
                raise self._moved()
            self._opened = found
        return self._opened

    def _moved(self) -> BackendError:
        return BackendError(
            f"{self.location} is not the directory any more that it was when the store was opened: it was unmounted, "
            "moved or replaced; mount it again"
        )

    def identity(self) -> str:
        try:
            return self._open().identity
        except OSError as error:
            raise self._error("opening", "", error) from error

    def require_in_place(self) -> None:
        try:
            if not self._open().is_at(self.root):
                raise self._moved()
        except OSError as error:
            raise self._error("opening", "", error) from error

    # --- writing -----------------------------------------------------------------------------------------------------

    def _make_folder(self, folder: str) -> None:
        """Make a folder with those above it, and make their entries durable."""
        if not folder or folder in self._made:
            return
        above = os.path.dirname(folder)
        self._make_folder(above)
        self._open().make_folder(folder)
        with self._folder(above) as fd:
            sync_directory(fd)
        self._made.add(folder)

    @contextmanager
    def _folder(self, folder: str) -> Iterator[int]:
        """A descriptor of a folder of the backend; of the backend itself where it is empty."""
        opened = self._open()
        if not folder:
            yield opened.fd
            return
        fd = opened.open_folder(folder)
        try:
            yield fd
        finally:
            os.close(fd)

    def write(self, key: str, pieces: Sequence[Buffer]) -> None:
        folder, name = os.path.split(checked_key(self.location, key))
        try:
            if not self._open().is_at(self.root):
                raise self._moved()
            self._make_folder(folder)
            try:
                self._write_in(folder, name, pieces)
            except FileNotFoundError:
                self._made.clear()  # somebody removed the folder since we made it
                self._make_folder(folder)
                self._write_in(folder, name, pieces)
        except OSError as error:
            raise self._error("writing", key, error) from error

    def _write_in(self, folder: str, name: str, pieces: Sequence[Buffer]) -> None:
        with self._folder(folder) as fd:
            mode = self._open().file_mode
            self._unnamed = write_whole(fd, name, lambda file: self._put(file, pieces), mode, self._unnamed)
            sync_directory(fd)

    @staticmethod
    def _put(fd: int, pieces: Sequence[Buffer]) -> None:
        """Write pieces to an open file, one after the other."""
        write_pieces(fd, pieces)

    def delete(self, key: str) -> None:
        checked_key(self.location, key)
        try:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                os.unlink(key, dir_fd=self._open().fd)
        except OSError as error:
            raise self._error("deleting", key, error) from error

    def remove_folder(self, prefix: str) -> None:
        checked_key(self.location, prefix)

        def fail(error: OSError) -> None:
            raise error

        try:
            root = self._open().fd
            for _, folders, names, fd in os.fwalk(prefix, topdown=False, onerror=fail, dir_fd=root):
                for name in names:
                    os.unlink(name, dir_fd=fd)
                for name in folders:
                    try:
                        os.rmdir(name, dir_fd=fd)
                    except NotADirectoryError:  # a link to one
                        os.unlink(name, dir_fd=fd)
            os.rmdir(prefix, dir_fd=root)
        except FileNotFoundError:
            return
        except RecursionError as error:
            raise BackendError(f"removing {self.root / prefix}: its folders are nested too deep; remove it") from error
        except OSError as error:
            raise self._error("removing", prefix, error) from error

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, key: str) -> bytes:
        return self._read(key, 0, None)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_range(self.location, key, offset, length)
        return self._read(key, offset, length)

    def _read(self, key: str, offset: int, length: int | None) -> bytes:
        """A range, to the end where `length` is None: the end of the file that is open, which another may replace."""
        checked_key(self.location, key)
        try:
            fd = os.open(key, READING, dir_fd=self._open().fd)
            try:
                return _read_open(fd, offset, length)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error("reading", key, error) from error

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except KeyNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        checked_key(self.location, key)
        try:
            return length_of(os.stat(key, dir_fd=self._open().fd))
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
                if error.errno == errno.ELOOP:
                    continue  # a link to itself is nobody's
                raise self._error("looking at", key, error) from error

    def _entries(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        if prefix:
            checked_key(self.location, prefix)
        try:
            fd = self._open().open_folder(prefix)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        key = f"{prefix}/{entry.name}" if prefix else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            if key.count("/") < _DEEPEST:  # else it is nobody's, however deep it goes on
                                yield from self._entries(key)
                        elif not entry.name.startswith(TEMP_MARK):
                            yield key, entry
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error("listing", prefix, error) from error

    # --- the place ---------------------------------------------------------------------------------------------------

    def space(self) -> Space:
        try:
            room = os.statvfs(self._open().fd)
        except OSError as error:
            raise self._error("looking at", "", error) from error
        return Space(room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)

    def device(self) -> str:
        return f"device:{self.identity().partition(':')[0]}"

    def local_path(self, key: str) -> Path | None:
        checked_key(self.location, key)
        try:
            return self.root / key if self._open().is_at(self.root) else None
        except OSError:
            return None

    def way_up(self) -> Sequence[str]:
        names: list[str] = []
        missing: list[str] = []  # parts below the deepest directory that is there, the last one first
        real = Path(os.path.realpath(self.root))
        for place in (real, *real.parents):
            try:
                found = os.stat(place)
            except OSError:
                missing.append(place.name)
                continue
            there = f"{found.st_dev}:{found.st_ino}"
            if not names:
                names += ["/".join([there, *reversed(missing[at:])]) for at in range(len(missing))]
            names.append(there)
        return names

    def changed(self, key: str) -> float | None:
        checked_key(self.location, key)
        try:
            return os.stat(key, dir_fd=self._open().fd).st_ctime
        except OSError as error:
            raise self._error("looking at", key, error) from error

    def require_empty(self) -> None:
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    if entry.name not in OWN_FOLDERS or not entry.is_dir(follow_symlinks=False):
                        raise StoreExists(
                            f"{self.root} is not empty: it holds {entry.name}; a backend wants an empty or a new "
                            "directory"
                        )
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise StoreExists(f"{self.root} is not a directory") from error
        except OSError as error:
            raise self._error("listing", "", error) from error

    def make(self, access: Access = PRIVATE) -> None:
        missing = [place for place in (self.root, *self.root.parents) if not os.path.lexists(place)]
        try:
            for place in reversed(missing):
                os.mkdir(place, 0o700)
                self._new.append(place)
                self._give(place, access)
            if not missing:
                self._old = os.stat(self.root)
                self._give(self.root, access)
        except OSError as error:
            raise self._error("making", "", error) from error

    def _give(self, place: Path, access: Access) -> None:
        """Open a directory to those that `access` names, and to nobody else."""
        opened = OpenDirectory(place)
        found = os.fstat(opened.fd)
        if found.st_uid != os.geteuid() != 0:
            if stat.S_IMODE(found.st_mode) & 0o077 & ~access.mode or access.group not in (None, found.st_gid):
                raise BackendError(
                    f"{place} belongs to another user, and its mode or group are not those that were asked for; have "
                    "them changed, or make a directory of your own in it"
                )
            return
        if access.group not in (None, found.st_gid):
            try:
                os.fchown(opened.fd, -1, access.group)
            except PermissionError as error:
                raise BackendError(
                    f"{place} can't be given to group {access.group}: only root and members of the group may do that"
                ) from error
        set_mode(opened.fd, access.mode)

    def unmake(self) -> None:
        try:
            while self._new:
                os.rmdir(self._new.pop())
            if self._old is not None:
                if os.fstat(self._open().fd).st_gid != self._old.st_gid:
                    os.fchown(self._open().fd, -1, self._old.st_gid)
                set_mode(self._open().fd, stat.S_IMODE(self._old.st_mode))
        except OSError as error:
            raise self._error("removing", "", error) from error

    def access(self) -> Access:
        try:
            found = os.fstat(self._open().fd)
        except OSError as error:
            raise self._error("looking at", "", error) from error
        return Access(stat.S_IMODE(found.st_mode), found.st_gid)

    def shortcomings(self) -> Sequence[str]:
        try:
            synced = sync_directory(self._open().fd)
        except OSError as error:
            raise self._error("looking at", "", error) from error
        return [] if synced else ["it can't make the names of new files durable, so a power failure may take the last"]

    def folders(self, limit: int | None = None) -> Sequence[str]:
        try:
            with os.scandir(self.root) as entries:
                found = [(entry.is_symlink(), entry.name) for entry in islice(entries, limit) if _is_folder(entry)]
        except OSError as error:
            raise self._error("listing", "", error) from error
        return [str(self.root / name) for _, name in sorted(found)]

    def close(self) -> None:
        self._closed = True
        self._opened = None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a directory, or leads to one; what can't be followed leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def length_of(found: os.stat_result) -> int:
    """The length of a file. Raises IsADirectoryError, for a folder is no key, and OSError for a FIFO, a socket or a
    device."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return found.st_size


def _read_open(fd: int, offset: int, length: int | None) -> bytes:
    left = max(0, length_of(os.fstat(fd)) - offset)
    length = left if length is None else min(length, left)  # pread makes room for all that it is asked
    pieces = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_pieces(fd: int, pieces: Sequence[Buffer]) -> None:
    """Write pieces to an open file, one after the other."""
    views = [view for piece in pieces if (view := memoryview(piece).cast("B"))]
    first = 0
    while first < len(views):
        count = os.writev(fd, views[first : first + _PIECES])
        while first < len(views) and count >= len(views[first]):
            count -= len(views[first])
            first += 1
        if count:
            views[first] = views[first][count:]
