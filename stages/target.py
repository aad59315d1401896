"""Writing restored objects below a target directory.

An object is built in the staging directory and gets its final name when it is complete. Nothing is replaced but what
stood there under its own name before the restore began, and may be replaced (stages/standing.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from stages.attributes import Attributes, change_mode, set_attributes, set_attributes_by_name, set_time
from stages.closedfolders import ClosedFolders
from stages.copying import copy_data
from stages.durable import sync_file, sync_file_system, syncs_files_alone
from stages.errors import StageError
from stages.naming import NO_LINKS, Namer
from stages.staging import Exchanged, Identity, open_own
from stages.standing import StandingNames
from stages.standingfile import Differences, differences, set_differences
from stages.targetfolders import READ_FOLDER, SEE, Kept, TargetFolders

#: Name of an object in the making, in the staging directory of the process that makes it.
_NEW = b"new"
_FALLOC_PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE
_LIBC = ctypes.CDLL(None)
#: Bytes that are looked at at a time before a hole is made of them.
_LOOKED_AT = 1 << 20
#: Times are kept so coarsely at worst: FAT has two seconds.
_COARSEST = 2_000_000_000
#: The group of an object without hardlinks.
NO_GROUP = -1
_KEPT = f"something else is in place and was kept; {SEE}"


@dataclass(frozen=True)
class TargetOptions:
    """`staging`: the directory that objects are made in, and its `identity`; `strip`: leading bytes of each object's
    path that fall away; `overwrite`: never, if-changed or always; `fresh`: the target was empty: nothing stood in it;
    `passes_on`: new directories may inherit something; `durable`: what replaces something is on disk before it does;
    `all_durable`: all files are on disk in the end, for which somebody else syncs the file system, where that helps;
    `forbidden`: device and inode of directories that nothing is restored into, and why."""

    root: str
    staging: str
    identity: Identity
    strip: int
    overwrite: str
    owner: bool
    fresh: bool
    passes_on: bool
    durable: bool
    all_durable: bool = False
    forbidden: Mapping[tuple[int, int], str] = field(default_factory=dict)


class Target:
    """The directory that a restore writes into. Owned by one process; several work on the same one at a time."""

    def __init__(self, options: TargetOptions, name: str) -> None:
        """`name`: of the process, for a staging directory of its own: in a common one they would wait for each other
        at every file."""
        self._options = options
        try:
            self._staging = open_own(options.staging, options.identity)
            self._own = self._make_own(name)
        except Exchanged as error:
            raise StageError(f"restoring into {options.root} failed: {error.strerror}") from error
        standing = StandingNames(self._staging, options.staging)
        self.folders = TargetFolders(
            options.root,
            standing,
            ClosedFolders(self._staging),
            options.strip,
            fresh=options.fresh,
            passes_on=options.passes_on,
            forbidden=options.forbidden,
        )
        # What a new file has by itself; setting it again would cost a third of a small file. A file system that has no
        # modes shows that here.
        own = os.fstat(self._own)
        # Where a sync of the file system does nothing, each file is synced before it gets its name.
        self._sync_each = options.all_durable and syncs_files_alone(self._own)
        self._uid, self._gid = own.st_uid, own.st_gid
        self._has_modes = stat.S_IMODE(own.st_mode) == 0o700
        self._umask = _current_umask()
        self._namer = Namer()
        self._earliest, self._latest = self._range_of_times()
        #: Objects that are complete, and wait to be on disk before they replace something: the name in the own staging
        #: directory, and the path.
        self._held: list[tuple[bytes, bytes]] = []
        #: Objects that replaced something.
        self.replaced = 0

    def _make_own(self, name: str) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._staging)
        fd = os.open(name, READ_FOLDER, dir_fd=self._staging)
        if os.fstat(fd).st_uid != self._options.identity.uid:
            os.close(fd)
            raise Exchanged.at(os.path.join(self._options.staging, name))
        return fd

    def close(self) -> None:
        self.folders.close()
        os.close(self._own)
        os.close(self._staging)

    def wanted(
        self,
        path: bytes,
        attributes: Attributes,
        group: int = NO_GROUP,
        link: bytes | None = None,
        device: int | None = None,
    ) -> bool:
        """Whether an object is to be written; False where an equal one stands in its place, which then leads its
        `group`. One of the same content that differs in what it has besides gets that where it may be changed. `link`:
        where a symlink points to, if that is known; `device`: the number of a device node. Raises Kept, unless the
        object is needed for the other names of its group."""
        if self._options.fresh:
            return True
        folder, name = self.folders.parent(path)
        if not self.folders.stood(name) or self._options.overwrite == "always":
            return True
        info = self._same_content(folder, name, attributes, link, device)
        differ = None if info is None else differences(folder, name, info, attributes, self._options.owner)
        if info is not None and not differ:
            if group != NO_GROUP:
                self._lead_standing(folder, name, group, attributes)
            return False
        if self._options.overwrite == "if-changed":
            # What has further names, or runs as somebody else, is made anew: those names may be of other files' making.
            if info is None or not differ or info.st_nlink > 1 or (differ.owner and not self._options.owner):
                return True
            self._mend(folder, name, info, attributes, differ)
            if group != NO_GROUP:
                self._lead_standing(folder, name, group, attributes)
            return False
        reason = _KEPT if info is None else f"its {differ} from what was archived, and it was kept; {SEE}"
        if group != NO_GROUP:
            self._kept = path, reason
            return True
        raise Kept(reason)

    def wanted_link(self, path: bytes, attributes: Attributes, group: int) -> bool:
        """The same for another name of the object that came first in its `group`."""
        if self._options.fresh:
            return True
        folder, name = self.folders.parent(path)
        if not self.folders.stood(name) or self._options.overwrite == "always":
            return True
        info = self._same_content(folder, name, attributes)
        if info is None:
            if self._options.overwrite == "if-changed":
                return True
            raise Kept(_KEPT)
        if not self._could_be_linked(info, group):
            return self.wanted(path, attributes)
        first = os.stat(_master(group), dir_fd=self._staging, follow_symlinks=False)
        if os.path.samestat(info, first):
            return False
        if self._options.overwrite == "if-changed":
            return True
        raise Kept(f"it is a file of its own, no hardlink as was archived, and was kept; {SEE}")

    def _could_be_linked(self, info: os.stat_result, group: int) -> bool:
        """Whether an object that is in place is, or could be, a hardlink of the first of its group."""
        try:
            first = os.stat(_master(group), dir_fd=self._staging, follow_symlinks=False)
            if os.path.samestat(info, first):
                return True
            self._drop_new()
            os.link(_master(group), _NEW, src_dir_fd=self._staging, dst_dir_fd=self._own, follow_symlinks=False)
        except FileNotFoundError:  # the first one could not be restored
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
        return True

    def _same_content(
        self,
        folder: int,
        name: bytes,
        attributes: Attributes,
        link: bytes | None = None,
        device: int | None = None,
    ) -> os.stat_result | None:
        """What stat tells of an object in its place that passes for the archived one by its content; None where it does
        not, or is gone."""
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if link is not None and stat.S_ISLNK(info.st_mode):
                equal = os.readlink(name, dir_fd=folder) == link
            else:
                is_device = stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)
                equal = self._equal(info, attributes) and (not is_device or device in (None, info.st_rdev))
        except FileNotFoundError:
            return None
        return info if equal else None

    def _mend(
        self, folder: int, name: bytes, info: os.stat_result, attributes: Attributes, differ: Differences
    ) -> None:
        """Give an object in its place what it lacks. Raises Kept, OSError."""
        try:
            trouble = set_differences(folder, name, info, attributes, differ, self._options.owner)
        except (FileExistsError, FileNotFoundError):
            raise Kept(f"it was changed while it was looked at, and was kept; {SEE}") from None
        if trouble:
            raise Kept(f"it is in place, but {trouble}")

    def _equal(self, info: os.stat_result, attributes: Attributes) -> bool:
        """Whether what is in place passes for the archived object, by kind, size and modification time."""
        return (
            stat.S_IFMT(info.st_mode) == stat.S_IFMT(attributes.mode)
            and (info.st_size == attributes.size or not stat.S_ISREG(info.st_mode))
            and (info.st_mtime_ns == attributes.mtime_ns or self._keeps_as(attributes, info.st_mtime_ns))
        )

    def _keeps_as(self, attributes: Attributes, found: int) -> bool:
        """Whether a time is what the target's file system makes of an object's: that time, rounded. One that is far off
        tells nothing, for all times out of its range become the same."""
        return abs(found - attributes.mtime_ns) <= _COARSEST and found == self._kept_time(attributes)

    def _range_of_times(self) -> tuple[int, int]:
        """The earliest and the latest time that the target's file system keeps, looked at once, so that a file costs a
        comparison."""
        most = (1 << 63) - 1
        first, last = (self._kept_time(Attributes(0, 0, 0, time)) for time in (-most, most))
        return first if first is not None and first < 0 else -most, last if last is not None and last > 0 else most

    def _clipped(self, trouble: str, attributes: Attributes) -> str:
        """`trouble`, and that an object's time is none that the file system keeps."""
        if self._earliest - _COARSEST <= attributes.mtime_ns <= self._latest + _COARSEST:
            return trouble
        lost = "its time could not be set: the file system keeps no times so early or so late"
        return f"{trouble}; {lost}" if trouble else lost

    def _kept_time(self, attributes: Attributes) -> int | None:
        """What the target's file system makes of an object's time; None where it takes none."""
        fd = os.open(b"clock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._own)
        try:
            os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
            return os.fstat(fd).st_mtime_ns
        except OSError:
            return None
        finally:
            with suppress(OSError):  # nothing was written that closing could lose
                os.close(fd)

    # --- files -------------------------------------------------------------------------------------------------------

    def write_whole(
        self, path: bytes, pieces: Iterable[bytes | memoryview], attributes: Attributes, group: int = NO_GROUP
    ) -> str:
        """A file of which all bytes are at hand; what its end lacks is a hole. `group`: of the names that follow, see
        `make_link`. Returns what could not be set."""
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
                and self._has_modes
                and not attributes.xattrs
                and (not self._options.owner or (attributes.uid, attributes.gid) == (self._uid, self._gid))
            ):
                trouble = set_time(fd, attributes)
            else:
                trouble = set_attributes(fd, attributes, self._options.owner)
            if self._sync_each:
                sync_file(fd)
        finally:
            os.close(fd)
        if group == NO_GROUP:
            self._place(self._own, _NEW, path)
        else:
            self._finish(self._own, _NEW, path, attributes, group)
        return self._clipped(trouble, attributes)

    def _create(self, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(_NEW, flags, mode, dir_fd=self._own)
        except FileExistsError:  # left by a write that failed
            os.unlink(_NEW, dir_fd=self._own)
            return os.open(_NEW, flags, mode, dir_fd=self._own)

    def open_part(self, temp: bytes) -> int:
        """Descriptor of a file that several workers write, and read back; the caller closes it."""
        return os.open(temp, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._staging)

    @contextmanager
    def staged(self, temp: bytes, size: int) -> Iterator[int]:
        """Descriptor to read a file back of which all parts are written, once it has its `size`."""
        fd = os.open(temp, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging)
        try:
            os.ftruncate(fd, size)
            yield fd
        finally:
            os.close(fd)

    def finish_parts(
        self, temp: bytes, path: bytes, attributes: Attributes, holes: bytes, group: int = NO_GROUP
    ) -> str:
        """Give a file of which all parts are written its holes, its attributes and its name. `holes`: offset u64 and
        length u64 of each; where there is data, none is made. Returns what could not be set."""
        fd = self.open_part(temp)
        try:
            os.ftruncate(fd, attributes.size)
            for offset, length in struct.iter_unpack("<QQ", holes[: len(holes) // 16 * 16]):
                if offset + length <= attributes.size and _is_zero(fd, offset, offset + length):
                    _punch(fd, offset, length)
            trouble = set_attributes(fd, attributes, self._options.owner)
            if self._sync_each:
                sync_file(fd)
        finally:
            os.close(fd)
        try:
            self._finish(self._staging, temp, path, attributes, group)
        except BaseException:
            self.drop_parts(temp)
            raise
        return self._clipped(trouble, attributes)

    def drop_parts(self, temp: bytes) -> None:
        """Remove a file that can't be completed."""
        with suppress(FileNotFoundError):
            os.unlink(temp, dir_fd=self._staging)

    # --- links and nodes ---------------------------------------------------------------------------------------------

    def make_symlink(self, path: bytes, target: bytes, attributes: Attributes, group: int = NO_GROUP) -> str:
        """A symlink. Returns what could not be set. Raises OSError."""
        self._drop_new()
        os.symlink(target, _NEW, dir_fd=self._own)
        return self._finish_new(path, attributes, group)

    def make_node(self, path: bytes, attributes: Attributes, device: int, group: int = NO_GROUP) -> str:
        """A FIFO or a device node, as `attributes.mode` says. Returns what could not be set. Raises OSError; not
        everybody may make devices."""
        self._drop_new()
        number = 0 if stat.S_ISFIFO(attributes.mode) else device
        os.mknod(_NEW, stat.S_IFMT(attributes.mode) | 0o600, number, dir_fd=self._own)
        return self._finish_new(path, attributes, group)

    def _finish_new(self, path: bytes, attributes: Attributes, group: int) -> str:
        trouble = set_attributes_by_name(self._own, _NEW, attributes, self._options.owner)
        self._finish(self._own, _NEW, path, attributes, group)
        return self._clipped(trouble, attributes)

    def make_link(self, path: bytes, group: int, attributes: Attributes) -> str:
        """Another name of the object that came first in its `group` of hardlinks; a copy of it where the file system
        takes no more names. Returns what could not be set. Raises Kept, StageError where there is no first one, and
        OSError."""
        try:
            trouble = self._another(group, attributes)
        except FileNotFoundError:
            raise StageError("the first name of this hardlinked object could not be restored") from None
        self._place(self._own, _NEW, path)
        return self._clipped(trouble, attributes)

    def _lead_standing(self, folder: int, name: bytes, group: int, attributes: Attributes) -> None:
        """Let an object that stands in its place be the first of a group of hardlinks. Raises Kept, OSError."""
        master = _master(group)
        try:
            os.link(name, master, src_dir_fd=folder, dst_dir_fd=self._staging, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._copy(folder, name, self._staging, master, attributes)
        if not self._equal(os.stat(master, dir_fd=self._staging, follow_symlinks=False), attributes):
            os.unlink(master, dir_fd=self._staging)
            raise Kept(f"it was changed while it was looked at, and was kept; {SEE}")

    def _another(self, group: int, attributes: Attributes) -> str:
        """Make the new object another name of the first of its group, or a copy. Returns what could not be set."""
        self._drop_new()
        master = _master(group)
        try:
            os.link(master, _NEW, src_dir_fd=self._staging, dst_dir_fd=self._own, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return self._copy(self._staging, master, self._own, _NEW, attributes)
        return ""

    def _copy(self, source: int, name: bytes, folder: int, copy: bytes, attributes: Attributes) -> str:
        """Copy an object of any kind but a directory, by names in directories. Returns what could not be set."""
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), copy, dir_fd=folder)
            else:
                os.mknod(copy, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=folder)
            return set_attributes_by_name(folder, copy, attributes, self._options.owner)
        if source == self._staging and not found.st_mode & stat.S_IRUSR:
            change_mode(source, name, 0o600)  # of our own, and nobody else sees it
        original = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                copy_data(original, fd)
                trouble = set_attributes(fd, attributes, self._options.owner)
                if self._sync_each:
                    sync_file(fd)
                return self._clipped(trouble, attributes)
            finally:
                os.close(fd)
        finally:
            os.close(original)

    def _drop_new(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=self._own)

    # --- names -------------------------------------------------------------------------------------------------------

    def _finish(self, staging: int, temp: bytes, path: bytes, attributes: Attributes, group: int) -> None:
        """Give a complete object its name. The first of a group of hardlinks stays in the staging directory, too, where
        no other name can pass for it; where the file system takes no second name, the first one is a copy."""
        if group != NO_GROUP:
            os.rename(temp, _master(group), src_dir_fd=staging, dst_dir_fd=self._staging)
            self._another(group, attributes)
            staging, temp = self._own, _NEW
        self._place(staging, temp, path)

    def _place(self, staging: int, temp: bytes, path: bytes) -> None:
        folder, name = self.folders.parent(path)
        if self._options.overwrite != "never" and self.folders.stood(name):
            held = b"held-%d" % len(self._held)
            os.rename(temp, held, src_dir_fd=staging, dst_dir_fd=self._own)
            self._held.append((held, path))
            return
        try:
            self._namer.name(staging, temp, folder, name)
        except FileExistsError:
            if self.folders.stood(name):
                raise Kept(self._kept[1] if self._kept[0] == path else _KEPT) from None
            raise self.folders.taken(folder, name) from None

    def settle(self) -> Iterator[tuple[bytes, str]]:
        """Let what is to replace something do so. Where it is to be on disk before, one sync for many costs less than
        one for each. Yields (path, reason) of what could not be placed; what it was to replace is still there."""
        held, self._held = self._held, []
        trouble = ""
        if held and self._options.durable:
            try:
                sync_file_system(self._own)
            except OSError as error:
                trouble = f"bringing it to disk failed: {error.strerror}"
        for temp, path in held:
            try:
                if not trouble:
                    folder, name = self.folders.parent(path)
                    os.rename(temp, name, src_dir_fd=self._own, dst_dir_fd=folder)
                    self.replaced += 1
            except IsADirectoryError:
                yield path, "a directory is in its place and was kept; move it away, and restore this again"
            except OSError as error:
                yield path, f"writing it failed: {error.strerror}"
            except StageError as error:
                yield path, str(error)
            else:
                if trouble:
                    yield path, trouble


def _master(group: int) -> bytes:
    """Name of the first of a group of hardlinks, in the staging directory."""
    return b"first-%d" % group


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


def _current_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
