"""Writing restored objects below a target directory, by directory descriptors.

An object is built in the staging directory and gets its final name when it is complete. Nothing outside the target is
touched: each part of a path is opened without following symlinks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from manifests.xattrs import set_xattrs
from stages.errors import StageError

STAGING_MARK = ".drystone-restore-"
#: Directories on the way to the current one that are kept open: the first ones, and below them one of as many.
_KEPT_OPEN = 64
#: Name of an object in the making, in the staging directory of the process that makes it.
_NEW = "new"
#: A link that could not be made for one of these reasons becomes a copy.
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP)
_COPY_PIECE = 1 << 20
_SEE = "see --overwrite"
_FALLOC_PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE
_LIBC = ctypes.CDLL(None)
#: Bytes that are looked at at a time before a hole is made of them.
_LOOKED_AT = 1 << 20
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Attributes(NamedTuple):
    """What is set on an object besides its content. Times in ns, `xattrs` packed (manifests/xattrs.py). (A named tuple,
    for one is made for each file.)"""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    xattrs: bytes = b""


@dataclass(frozen=True)
class TargetOptions:
    """`strip`: leading bytes of each object's path that fall away; `overwrite`: never, if-changed or always; `fresh`:
    the target was empty, so nothing can be in the way."""

    root: str
    staging: str
    strip: int
    overwrite: str
    owner: bool
    fresh: bool


class Kept(StageError):
    """An object that was in the way was left as it is, and differs from the archived one."""


class UnsafePath(StageError):
    """A path that leads out of the target."""

    @classmethod
    def of(cls, path: bytes) -> UnsafePath:
        return cls(f"the path {os.fsdecode(path)!r} leads out of the target; it was not restored")


def split_path(path: bytes) -> list[bytes]:
    """Parts of an object's path. Raises UnsafePath on what no archived tree can hold."""
    parts = path.split(b"/")
    if not path or b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise UnsafePath.of(path)
    return parts


class Target:
    """The directory that a restore writes into. Owned by one process; several work on the same one at a time."""

    def __init__(self, options: TargetOptions, name: str) -> None:
        """`name`: of the process, for a staging directory of its own: in a common one they would wait for each other
        at every file."""
        self._options = options
        self._root = os.open(options.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._staging = os.open(options.staging, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._staging)
        self._own = os.open(name, _FOLDER, dir_fd=self._staging)
        # What a new file in the staging directory has by itself; setting it again would cost a third of a small file.
        staging = os.fstat(self._staging)
        self._uid = os.geteuid()
        self._gid = staging.st_gid if staging.st_mode & stat.S_ISGID else os.getegid()
        self._umask = _current_umask()
        self._folder_path: bytes | None = None
        self._open: list[tuple[list[bytes], int]] = []

    def close(self) -> None:
        self._leave(0)
        os.close(self._root)
        os.close(self._own)
        os.close(self._staging)

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that `path` goes into, and its name there."""
        above, slash, name = path[self._options.strip :].rpartition(b"/")
        if above != self._folder_path:
            self._enter(split_path(above) if above else [])
            self._folder_path = above
        if name in (b"", b".", b"..") or b"\0" in name or (slash and not above):
            raise UnsafePath.of(path)
        return (self._open[-1][1] if self._open else self._root), name

    def _enter(self, parts: list[bytes]) -> None:
        """Open the directory `parts`, made where it is missing; what it shares with the last one is open already."""
        deeper = range(_KEPT_OPEN, len(parts), _KEPT_OPEN)
        steps = [[part] for part in parts[:_KEPT_OPEN]] + [parts[at : at + _KEPT_OPEN] for at in deeper]
        shared = 0
        for (step, _), wanted in zip(self._open, steps, strict=False):
            if step != wanted:
                break
            shared += 1
        self._leave(shared)
        for step in steps[shared:]:
            folder = os.dup(self._open[-1][1] if self._open else self._root)
            for part in step:
                try:
                    inner = _open_folder(folder, part)
                except NotADirectoryError as error:  # a link, too: none is followed
                    raise Kept(f"{os.fsdecode(part)!r} on its way is no directory; {_SEE}") from error
                finally:
                    os.close(folder)
                folder = inner
            self._open.append((step, folder))

    def _leave(self, depth: int) -> None:
        """Close the open directories below the first `depth`."""
        self._folder_path = None
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def make_folder(self, path: bytes) -> None:
        """Make a directory, open for the owner only until its attributes are set. An existing one is used; of what else
        is there, also a link to a directory, `always` makes one. Raises Kept, OSError."""
        folder, name = self._parent(path)
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return
            if self._options.overwrite != "always":
                raise Kept(f"something that is no directory is in its place and was kept; {_SEE}") from None
            os.unlink(name, dir_fd=folder)
            os.mkdir(name, 0o700, dir_fd=folder)

    def finish_folder(self, path: bytes, attributes: Attributes) -> str:
        """Set a directory's attributes, after all below it is written. Returns what could not be set."""
        folder, name = self._parent(path)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            return self._set_attributes(fd, attributes)
        finally:
            os.close(fd)

    def wanted(self, path: bytes, attributes: Attributes) -> bool:
        """Whether an object is to be written; False where an equal one is in place. Raises Kept."""
        if self._options.fresh or self._options.overwrite == "always":
            return True
        folder, name = self._parent(path)
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if _equal(info, attributes):
            return False
        if self._options.overwrite == "if-changed":
            return True
        raise Kept(f"something else is in place and was kept; {_SEE}")

    def write_whole(self, path: bytes, pieces: Iterable[bytes | memoryview], attributes: Attributes) -> str:
        """A file of which all bytes are at hand; what its end lacks is a hole. Returns what could not be set."""
        mode = attributes.mode & 0o777 & ~self._umask
        fd = self._create(mode)
        try:
            written = 0
            for piece in pieces:
                view = memoryview(piece)
                written += len(view)
                while view:
                    view = view[os.write(fd, view) :]
            if written < attributes.size:
                os.ftruncate(fd, attributes.size)
            if (
                stat.S_IMODE(attributes.mode) == mode
                and not attributes.xattrs
                and (not self._options.owner or (attributes.uid, attributes.gid) == (self._uid, self._gid))
            ):
                trouble = ""
                os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
            else:
                trouble = self._set_attributes(fd, attributes)
        finally:
            os.close(fd)
        self._place(self._own, _NEW, path)
        return trouble

    def _create(self, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(_NEW, flags, mode, dir_fd=self._own)
        except FileExistsError:  # left by a write that failed
            os.unlink(_NEW, dir_fd=self._own)
            return os.open(_NEW, flags, mode, dir_fd=self._own)

    def open_part(self, temp: str) -> int:
        """Descriptor of a file that several workers write, and read back; the caller closes it."""
        return os.open(temp, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._staging)

    @contextmanager
    def staged(self, temp: str, size: int) -> Iterator[int]:
        """Descriptor to read a file back of which all parts are written, once it has its `size`."""
        fd = os.open(temp, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging)
        try:
            os.ftruncate(fd, size)
            yield fd
        finally:
            os.close(fd)

    def finish_parts(self, temp: str, path: bytes, attributes: Attributes, holes: bytes) -> str:
        """Give a file of which all parts are written its holes, its attributes and its name. `holes`: offset u64 and
        length u64 of each; where there is data, none is made. Returns what could not be set."""
        fd = self.open_part(temp)
        try:
            os.ftruncate(fd, attributes.size)
            for offset, length in struct.iter_unpack("<QQ", holes[: len(holes) // 16 * 16]):
                if offset + length <= attributes.size and _is_zero(fd, offset, offset + length):
                    _punch(fd, offset, length)
            trouble = self._set_attributes(fd, attributes)
        finally:
            os.close(fd)
        self._place(self._staging, temp, path)
        return trouble

    def drop_parts(self, temp: str) -> None:
        """Remove a file that can't be completed."""
        with suppress(FileNotFoundError):
            os.unlink(temp, dir_fd=self._staging)

    def make_symlink(self, path: bytes, target: bytes, attributes: Attributes) -> str:
        """A symlink. Returns what could not be set. Raises OSError."""
        self._drop_new()
        os.symlink(target, os.fsencode(_NEW), dir_fd=self._own)
        return self._name_new(path, attributes, mode=False)

    def _drop_new(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=self._own)

    def make_node(self, path: bytes, attributes: Attributes, device: int) -> str:
        """A FIFO or a device node, as `attributes.mode` says. Returns what could not be set. Raises OSError, as for who
        may not make devices."""
        self._drop_new()
        os.mknod(_NEW, stat.S_IFMT(attributes.mode) | 0o600, device, dir_fd=self._own)
        return self._name_new(path, attributes, mode=True)

    def _name_new(self, path: bytes, attributes: Attributes, mode: bool) -> str:
        """Give the object in the making its attributes and its name; for what can't be opened to do so."""
        trouble = ""
        if self._options.owner:
            try:
                os.chown(_NEW, attributes.uid, attributes.gid, dir_fd=self._own, follow_symlinks=False)
            except OSError as error:
                trouble = f"its owner could not be set: {error.strerror}"
        if mode:
            os.chmod(_NEW, stat.S_IMODE(attributes.mode), dir_fd=self._own)
        if attributes.xattrs:
            name = b"/proc/self/fd/%d/%s" % (self._own, os.fsencode(_NEW))
            trouble = trouble or set_xattrs(name, attributes.xattrs, self._options.owner)
        times = (attributes.mtime_ns, attributes.mtime_ns)
        os.utime(_NEW, ns=times, dir_fd=self._own, follow_symlinks=False)
        self._place(self._own, _NEW, path)
        return trouble

    def make_link(self, path: bytes, first: bytes, attributes: Attributes) -> str:
        """Another name of the object that was restored as `first`; a copy where the file system takes no more names.
        Returns what could not be set. Raises Kept where `first` is not that object, and OSError."""
        folder, name = self._parent(first)
        there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if not _equal(os.fstat(there), attributes):
                raise Kept(f"its other name {os.fsdecode(first)!r} is not the archived object")
            self._drop_new()
            try:
                os.link(name, _NEW, src_dir_fd=folder, dst_dir_fd=self._own, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINKS or not stat.S_ISREG(attributes.mode):
                    raise
                with open(f"/proc/self/fd/{there}", "rb") as source:
                    return self.write_whole(path, iter(lambda: source.read(_COPY_PIECE), b""), attributes)
        finally:
            os.close(there)
        self._place(self._own, _NEW, path)
        self._drop_new()  # renaming to another name of the same object does nothing
        return ""

    def _set_attributes(self, fd: int, attributes: Attributes) -> str:
        """Set all attributes of an open file or directory. Returns what could not be set."""
        mode, trouble = stat.S_IMODE(attributes.mode), ""
        if self._options.owner:
            try:
                os.fchown(fd, attributes.uid, attributes.gid)
            except OSError as error:
                # Nobody else's file may become one that runs as whoever owns it now.
                mode &= ~(stat.S_ISUID | stat.S_ISGID)
                trouble = f"its owner could not be set: {error.strerror}"
        # chown clears setuid and capabilities, and chmod changes an ACL's mask, so they come in this order.
        os.fchmod(fd, mode)
        if attributes.xattrs:
            trouble = trouble or set_xattrs(fd, attributes.xattrs, self._options.owner)
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
        return trouble

    def _place(self, staging: int, temp: str, path: bytes) -> None:
        folder, name = self._parent(path)
        os.rename(temp, name, src_dir_fd=staging, dst_dir_fd=folder)


def _equal(info: os.stat_result, attributes: Attributes) -> bool:
    """Whether what is in place passes for the archived object, by kind, size and modification time."""
    return (
        stat.S_IFMT(info.st_mode) == stat.S_IFMT(attributes.mode)
        and info.st_mtime_ns == attributes.mtime_ns
        and (info.st_size == attributes.size or not stat.S_ISREG(info.st_mode))
    )


def _is_zero(fd: int, start: int, end: int) -> bool:
    """Whether a file holds nothing but zeros from `start` to `end`; what was never written is not read."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            return error.errno == errno.ENXIO  # there is no data behind it
        stop = min(end, start + _LOOKED_AT)
        if start < stop:
            stop = min(stop, os.lseek(fd, start, os.SEEK_HOLE))
            if os.pread(fd, stop - start, start).strip(b"\0"):
                return False
        start = max(start, stop)
    return True


def _punch(fd: int, offset: int, length: int) -> None:
    """Make a hole where zeros are; a file system that knows none keeps the zeros."""
    _LIBC.fallocate(fd, _FALLOC_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length))


def _open_folder(folder: int, name: bytes) -> int:
    """Descriptor of the directory `name` in `folder`, made where it is missing."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
        return os.open(name, _FOLDER, dir_fd=folder)


def _current_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
