"""The directories of a restore's target, opened one within another without following a symlink, and who has which name
in them."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress

from stages.attributes import Attributes, change_mode, set_attributes
from stages.closedfolders import ClosedFolders, StaysClosed
from stages.errors import StageError
from stages.inheritance import disinherit, drop_acls
from stages.standing import StandingNames
from stages.waydown import FLAGS, WayDown

READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SEE = "see --overwrite"
#: A process looks through directories for the name that has an object's place so often; it may take long.
_SEARCHES = 1000


class Kept(StageError):
    """An object that was in the way was left as it is, and differs from the archived one."""


class Taken(Kept):
    """A name was given to something else while the restore was at work."""


class Forbidden(Taken):
    """A directory that stands in the target, and that nothing is restored into."""


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


class TargetFolders:
    """The directories below a target's root. Owned by one process."""

    def __init__(
        self,
        root: str,
        standing: StandingNames,
        closed: ClosedFolders,
        strip: int,
        *,
        fresh: bool,
        passes_on: bool,
        forbidden: Mapping[tuple[int, int], str],
    ) -> None:
        """As in TargetOptions."""
        self._root_path = root
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._strip = strip
        self._fresh = fresh
        self._passes_on = passes_on
        self._forbidden = {} if fresh else forbidden
        self._standing = standing
        self._closed = closed
        self._folder = self._root
        self._folder_path: bytes | None = None
        self._way = WayDown(self._root, self._open_or_make)
        #: Inodes of the directories that this process made because they were archived, 8 bytes each.
        self._made = array("Q")
        self._searches = 0
        #: Directories that replaced something.
        self.replaced = 0

    def close(self) -> None:
        self._way.close()
        self._closed.close()
        os.close(self._root)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that `path` goes into, and its name there."""
        above, slash, name = path[self._strip :].rpartition(b"/")
        if above != self._folder_path:
            self._folder_path = None
            self._folder = self._way.enter(split_path(above) if above else [])
            self._folder_path = above
        if name in (b"", b".", b"..") or b"\0" in name or (slash and not above):
            raise UnsafePath.of(path)
        return self._folder, name

    def _open_or_make(self, folder: int, name: bytes) -> int:
        """Descriptor of the directory `name` in `folder`, made where it is missing. Raises Kept, Forbidden, OSError."""
        try:
            try:
                inner = os.open(name, FLAGS, dir_fd=folder)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    self._make(folder, name)
                inner = os.open(name, FLAGS, dir_fd=folder)
        except NotADirectoryError as error:  # a link, too: none is followed
            raise Kept(f"{os.fsdecode(name)!r} on its way is no directory; {SEE}") from error
        try:
            self._require_allowed(os.fstat(inner) if self._forbidden else None)
        except Forbidden:
            os.close(inner)
            raise
        return inner

    def _require_allowed(self, found: os.stat_result | None) -> None:
        reason = self._forbidden.get((found.st_dev, found.st_ino)) if found is not None else None
        if reason is not None:
            raise Forbidden(reason)

    def note_standing(self) -> None:
        """Note what stands in the target itself, before anything is made in it. Raises OSError."""
        if not self._fresh:
            with os.scandir(self._root_path) as entries:
                self._standing.note(b"", (entry.name for entry in entries))

    def stood(self, name: bytes) -> bool:
        """Whether the name, in the directory of the last `parent`, stood there under these very bytes."""
        return not self._fresh and self._standing.holds(self._folder_path or b"", name)

    def make(self, path: bytes, *, replace: bool) -> None:
        """Make a directory, open for the owner only until its attributes are set. One that stood there is used, and
        opened for its owner if that is this user. If something else stood there, also a link to a directory, it makes
        way where `replace`. Raises Kept, Taken, StaysClosed, OSError."""
        folder, name = self.parent(path)
        try:
            self._made.append(self._make(folder, name))
            return
        except FileExistsError:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        self._require_allowed(found)
        stood = self.stood(name)
        if not stood and (found.st_ino in self._made or self._listed_as(folder, name, found) != name):
            raise self.taken(folder, name) from None
        if stat.S_ISDIR(found.st_mode):
            if stood:
                self._open_for_owner(path, folder, name, found)
            return
        if not stood or not replace:
            raise Kept(f"something that is no directory is in its place and was kept; {SEE}")
        os.unlink(name, dir_fd=folder)
        self._made.append(self._make(folder, name))
        self.replaced += 1

    def _open_for_owner(self, path: bytes, folder: int, name: bytes, found: os.stat_result) -> None:
        """Open a directory that stood there, and note what stands in it. Raises StaysClosed, OSError."""
        try:
            self._closed.open(folder, name, path, found)
        except StaysClosed:
            with suppress(PermissionError):  # without a listing, what stands in it counts as new
                self._note_folder(path[self._strip :], folder, name)
            raise
        self._note_folder(path[self._strip :], folder, name)

    def _make(self, folder: int, name: bytes) -> int:
        """Make a directory that has inherited nothing. Returns its inode."""
        os.mkdir(name, 0o700, dir_fd=folder)
        if not self._passes_on:
            return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
        fd = os.open(name, READ_FOLDER, dir_fd=folder)
        try:
            disinherit(fd)
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def _note_folder(self, path: bytes, folder: int, name: bytes) -> None:
        fd = os.open(name, READ_FOLDER, dir_fd=folder)
        try:
            with os.scandir(fd) as entries:
                self._standing.note(path, (entry.name for entry in entries))
        finally:
            os.close(fd)

    def finish(self, path: bytes, attributes: Attributes, owner: bool) -> str:
        """Set a directory's attributes, after all below it is written. Returns what could not be set."""
        folder, name = self.parent(path)
        fd = os.open(name, READ_FOLDER, dir_fd=folder)
        try:
            if not self._fresh:
                drop_acls(fd)  # of a directory that stood there
            return set_attributes(fd, attributes, owner)
        finally:
            os.close(fd)

    def close_again(self) -> Iterator[str]:
        """Give directories that were opened for their owner the modes that they had, where a restore ends before they
        have those that were archived. Yields what could not be done."""
        for path, before, since in self._closed.noted():
            try:
                folder, name = self.parent(path)
                if stat.S_IMODE(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode) == since:
                    change_mode(folder, name, before)
            except OSError as error:
                where = os.path.join(self._root_path, os.fsdecode(path[self._strip :]))
                yield f"{where} has the mode {since:04o} and had {before:04o}: setting it failed: {error.strerror}"

    def taken(self, folder: int, name: bytes) -> Taken:
        """Why an object can't have its name, with the name that has it, as far as that is found."""
        holder = None
        with suppress(OSError):
            holder = self._listed_as(folder, name, os.stat(name, dir_fd=folder, follow_symlinks=False))
        if holder is not None and holder != name:
            return Taken(
                f"the target's file system takes its name for that of {os.fsdecode(holder)!r}, which is there and was "
                "kept; restore this one into another directory"
            )
        return Taken(
            "something got its name while this restore was at work, another restore or an archived name that the "
            "target's file system takes for the same, and was kept; restore this one into another directory"
        )

    def _listed_as(self, folder: int, name: bytes, found: os.stat_result) -> bytes | None:
        """Under which name the directory lists what is found as `name`; None if it is not known."""
        self._searches += 1
        if self._searches > _SEARCHES:
            return None
        fd = os.open(".", READ_FOLDER, dir_fd=folder)
        try:
            other = None
            with os.scandir(fd) as entries:
                for entry in entries:
                    listed = os.fsencode(entry.name)
                    if listed == name:
                        return name
                    if entry.inode() == found.st_ino:
                        other = listed
            return other
        finally:
            os.close(fd)
