"""Walking sources in reading order: a directory, then its files by name, then its subdirectories.

Neighbours in a directory look alike, so this order makes for good solid compression. Directories are walked by
descriptor, of which OPEN_FOLDERS at most are open; listings are sorted in pieces of LISTING entries, so memory does not
grow with a directory. Rows are collected column by column, a whole listing at a time.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple, Protocol

from manifests import format as fmt
from manifests.columns import Batch
from manifests.objectrows import PATH_MOST, ObjectRows
from manifests.xattrs import UnreadXattrs, read_xattrs, read_xattrs_of

LISTING = 64 << 10
#: Directories that are open at a time, the innermost ones.
OPEN_FOLDERS = 100
NO_LIMIT = 1 << 64
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOPS = b"it loops: it is a directory above it, mounted again"

_TOO_DEEP = b"a directory above it has a longer path than is archived"
_MOVED = b"a directory below it moved while it was walked; what else lies in there was not found again"
_UNREAD = b"reading its extended attributes failed: "
_ENCODING = sys.getfilesystemencoding()
_FORM = 0o170000

KIND = {name: number for number, name in enumerate(fmt.KINDS)}
_FILE = KIND["file"]
_BY_TYPE = {
    stat.S_IFREG: KIND["file"],
    stat.S_IFDIR: KIND["directory"],
    stat.S_IFLNK: KIND["symlink"],
    stat.S_IFIFO: KIND["fifo"],
    stat.S_IFCHR: KIND["chardev"],
    stat.S_IFBLK: KIND["blockdev"],
    stat.S_IFSOCK: KIND["socket"],
}


@dataclass(frozen=True)
class Source:
    """Something to be archived. `path`: its place on this machine, '-' with `stream` for standard input; a slash at its
    end follows a link. `name`: the paths of its objects begin with it; its first `parents` parts are directories above
    the source."""

    path: bytes
    name: bytes
    stream: bool = False
    parents: int = 0


class Chooser(Protocol):
    """Who says what is left out, and counts it: stages/select.py. Patterns are asked once a listing."""

    limit: int | None

    def keep(
        self, path: bytes, below: bytes, items: list[tuple[bytes, os.DirEntry[str]]]
    ) -> list[tuple[bytes, os.DirEntry[str]]]: ...
    def matches(self, path: bytes, below: bytes, is_folder: bool) -> bool: ...
    def too_large(self, path: bytes, info: os.stat_result) -> bool: ...
    def is_own(self, path: bytes, info: os.stat_result) -> bool: ...
    def crosses(self, path: bytes, device: int, info: os.stat_result) -> bool: ...
    def cache_tag(self, path: bytes, fd: int) -> bytes | None: ...


#: Instead of the number of a source, in an entry of a list: it lies below none; it can't be followed.
OUTSIDE, ASTRAY = -1, -2
_STRAY = {
    OUTSIDE: b"it does not lie below the source that the list is for",
    ASTRAY: b"a part of its path can't be followed",
}


class Listed(NamedTuple):
    """An entry of a list of paths: below the source of this number, as a path from it; or OUTSIDE or ASTRAY, and the
    path as given."""

    source: int
    path: bytes


def scan(
    sources: Sequence[Source], chooser: Chooser | None = None, listed: Iterable[Listed] | None = None
) -> Iterator[Batch]:
    """OBJECT_DTYPE batches of all that lies below `sources`, or of what `listed` names there, numbered in order. What
    can't be looked at is a row with its error. `listed` is sorted by source, then by the parts of the path."""
    rows = ObjectRows()
    for _ in _all(sources, chooser, rows) if listed is None else _listed(sources, chooser, listed, rows):
        yield from rows.batches()
    yield from rows.batches(everything=True)


def _reason(error: OSError) -> bytes:
    return (error.strerror or str(error)).encode()


def _all(sources: Sequence[Source], chooser: Chooser | None, rows: ObjectRows) -> Iterator[None]:
    made = set[bytes]()
    for number, source in enumerate(sources):
        if source.stream:
            rows.add(source.name, number, KIND["stream"])
            continue
        _parents(number, source, made, rows)
        try:
            info = os.lstat(source.path)
        except OSError as error:
            rows.add(source.name, number, KIND["unknown"], error=_reason(error))
            continue
        walk = _Walk(number, source, chooser, rows)
        if stat.S_ISDIR(info.st_mode):
            yield from walk.directory(source.name, info, source.path, None)
        else:
            walk.object(source.name, info, source.path, None)
        yield


def _parents(number: int, source: Source, made: set[bytes], rows: ObjectRows) -> None:
    """Add the directories above a source that its name tells of, the outermost first, but for those in `made`. Of one
    that can't be looked at there is no row: the source's own says why."""
    name, place, above = source.name, source.path.rstrip(b"/"), list[tuple[bytes, bytes]]()
    for _ in range(source.parents):
        name, place = name.rpartition(b"/")[0], place.rpartition(b"/")[0]
        above.append((name, place + b"/"))
    for name, place in reversed(above):
        if name in made:
            continue
        made.add(name)
        try:
            info, xattrs = os.stat(place), read_xattrs(place)
        except OSError:
            continue
        rows.add(name, number, KIND["directory"], info, xattrs=xattrs)


class _Folder:
    """A directory that is being walked. `fd` is −1 while it is closed to save descriptors."""

    def __init__(self, path: bytes, fd: int, identity: tuple[int, int]) -> None:
        self.path = path  # empty while the walk is below: together they would take memory by the square of the depth
        self.fd = fd
        self.identity = identity
        self.above = 0  # length of the path of the directory above
        self.folders: list[tuple[bytes, os.stat_result]] = []
        self._listing: Iterator[os.DirEntry[str]] | None = None
        self._ended = False

    def listing(self) -> list[os.DirEntry[str]]:
        """The next entries, LISTING at most; none at the end. Raises OSError."""
        if self._ended:
            return []
        if self._listing is None:
            self._listing = os.scandir(self.fd)
        some = list(islice(self._listing, LISTING))
        if len(some) < LISTING:
            self.end_listing()
        return some

    def end_listing(self) -> None:
        self._ended = True
        if self._listing is not None:
            self._listing.close()  # type: ignore[attr-defined]

    def suspend(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def resume(self, child: int) -> bool:
        """Open it again from a directory in it. False where that has moved meanwhile."""
        self.fd = os.open(b"..", _OPEN_FOLDER, dir_fd=child)
        info = os.fstat(self.fd)
        return (info.st_dev, info.st_ino) == self.identity

    def close(self) -> None:
        self.end_listing()
        if self.fd >= 0:
            self.suspend()


def _fd_of(folder: _Folder | None) -> int | None:
    return None if folder is None else folder.fd


class _Walk:
    """The walk of one source, which adds to `rows`. `above`: device and inode of the directories that it is in, the
    outermost first, by which a directory that is mounted below itself is known again; `device`: where it began."""

    def __init__(self, number: int, source: Source, chooser: Chooser | None, rows: ObjectRows) -> None:
        self.source = number
        self.chooser = chooser
        self.limit = NO_LIMIT if chooser is None or chooser.limit is None else chooser.limit
        self.device = -1
        self.above: list[tuple[int, int]] = []
        self.rows = rows
        self.refusal = b""
        self._skip = len(source.name) + 1
        self._root = source.path

    def below(self, path: bytes) -> bytes:
        """The path from the source of the object `path`, empty for the source itself."""
        return path[self._skip :]

    def object(self, path: bytes, info: os.stat_result, name: bytes, folder: _Folder | None) -> None:
        """Add what is no directory, and lies as `name` in `folder`; without one it is the source itself."""
        kind = _BY_TYPE.get(stat.S_IFMT(info.st_mode), KIND["unknown"])
        target = error = xattrs = b""
        try:
            if kind == KIND["symlink"]:
                target = os.readlink(name, dir_fd=_fd_of(folder))
            if kind == KIND["socket"]:
                error = b"sockets are not archived"
            elif kind == KIND["unknown"]:
                error = b"not a kind of file that can be archived"
            elif kind != _FILE:  # whoever reads a file reads its attributes, too
                full = self._root + path[self._skip - 1 :]
                xattrs = read_xattrs(name) if folder is None else read_xattrs_of(folder.fd, name, full)
        except UnreadXattrs as trouble:
            xattrs, error = trouble.others, _UNREAD + _reason(trouble)
        except OSError as trouble:
            error = _reason(trouble)
        identity = (0, 0) if folder is None else folder.identity
        self.rows.add(path, self.source, kind, info, identity, target=target, error=error, xattrs=xattrs)

    def bare_directory(self, path: bytes, info: os.stat_result, fd: int, error: bytes = b"") -> None:
        """Add an open directory, and nothing that lies in it."""
        xattrs = b""
        try:
            xattrs = read_xattrs(fd)
        except OSError as trouble:
            xattrs = trouble.others if isinstance(trouble, UnreadXattrs) else b""
            error = error or _UNREAD + _reason(trouble)
        self.rows.add(path, self.source, KIND["directory"], info, error=error, xattrs=xattrs)

    def enter(self, path: bytes, info: os.stat_result, name: bytes, folder: _Folder | None) -> _Folder | None:
        """Add a directory and open it for a walk; None where nothing in it goes in, and then `refusal` is why, or
        empty where that was wanted. `info`: what was known of it; if another one has its name by now, that goes in."""
        self.refusal = b""
        if len(path) > PATH_MOST:
            self.refusal = _TOO_DEEP
            self.rows.add(path, self.source, KIND["directory"], info)
            return None
        try:
            fd = os.open(name, _OPEN_FOLDER, dir_fd=_fd_of(folder))
        except OSError as error:
            self.refusal = b"listing it failed: " + _reason(error)
            self.rows.add(path, self.source, KIND["directory"], info, error=self.refusal)
            return None
        now = os.fstat(fd)
        here = _Folder(path, fd, (now.st_dev, now.st_ino))
        chooser = self.chooser
        if chooser is not None and (
            chooser.is_own(path, now) or (self.above and chooser.crosses(path, self.device, now))
        ):
            self.bare_directory(path, now, fd)
        elif here.identity in self.above:
            self.refusal = _LOOPS
            self.bare_directory(path, now, fd, _LOOPS)
        else:
            self.bare_directory(path, now, fd)
            if not self.above:
                self.device = now.st_dev
            self.above.append(here.identity)
            tag = None if chooser is None else chooser.cache_tag(path, fd)
            if tag is None:
                return here
            self.named(path + b"/" + tag, tag, here)
            self.above.pop()
        here.close()
        return None

    def named(self, path: bytes, name: bytes, folder: _Folder) -> None:
        """Add an object by its name; nothing below it."""
        try:
            info = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError as error:
            self.rows.add(path, self.source, KIND["unknown"], error=_reason(error))
            return
        self.object(path, info, name, folder)

    def directory(self, path: bytes, info: os.stat_result, name: bytes, folder: _Folder | None) -> Iterator[None]:
        """Add a directory and all below it."""
        top = self.enter(path, info, name, folder)
        stack = [] if top is None else [top]
        try:
            while stack:
                here = stack[-1]
                if here.folders:
                    name, info = here.folders.pop()
                    child = self.enter(here.path + b"/" + name, info, name, here)
                    if child is not None:
                        child.above = len(here.path)
                        here.path = b""
                        stack.append(child)
                        if len(stack) > OPEN_FOLDERS:
                            stack[-1 - OPEN_FOLDERS].suspend()
                elif not self._list(here):
                    self._leave(stack)
                yield
        finally:
            for here in stack:
                here.close()

    def _leave(self, stack: list[_Folder]) -> None:
        here = stack.pop()
        self.above.pop()
        if stack:
            stack[-1].path = here.path[: here.above]
        if stack and stack[-1].fd < 0:
            try:
                moved = not stack[-1].resume(here.fd)
            except OSError:
                moved = True
            if moved:
                for name, info in reversed(stack[-1].folders):
                    path = stack[-1].path + b"/" + name
                    self.rows.add(path, self.source, KIND["directory"], info, error=_MOVED)
                stack[-1].folders.clear()
                stack[-1].end_listing()
        here.close()

    def _list(self, here: _Folder) -> bool:
        """Add what comes next in a directory, and note its subdirectories; False at its end."""
        try:
            some = here.listing()
        except OSError as error:
            self.rows.add(here.path, self.source, KIND["unknown"], error=b"listing it failed: " + _reason(error))
            here.end_listing()
            return False
        items = sorted([(item.name.encode(_ENCODING, "surrogateescape"), item) for item in some], key=itemgetter(0))
        if self.chooser is not None:
            items = self.chooser.keep(here.path, self.below(here.path), items)
        prefix, identity, limit, chooser = here.path + b"/", here.identity, self.limit, self.chooser
        paths: list[bytes] = []
        infos: list[os.stat_result] = []
        for name, item in items:
            try:
                info = item.stat(follow_symlinks=False)
            except OSError as error:
                self.rows.add(prefix + name, self.source, KIND["unknown"], error=_reason(error))
                continue
            form = info.st_mode & _FORM
            if form == stat.S_IFDIR:
                here.folders.append((name, info))
            elif info.st_size > limit and chooser is not None and chooser.too_large(prefix + name, info):
                continue
            elif form == stat.S_IFREG:
                paths.append(prefix + name)
                infos.append(info)
            else:
                self.rows.add_files(paths, self.source, infos, identity)
                paths, infos = [], []
                self.object(prefix + name, info, name, here)
        self.rows.add_files(paths, self.source, infos, identity)
        here.folders.reverse()
        return bool(some)


# --- lists of paths --------------------------------------------------------------------------------------------------


def _listed(
    sources: Sequence[Source], chooser: Chooser | None, listed: Iterable[Listed], rows: ObjectRows
) -> Iterator[None]:
    for number, entries in groupby(listed, key=lambda entry: entry.source):
        if number < 0:
            for _, path in entries:
                rows.add(path, 0, KIND["unknown"], error=_STRAY[number])
                yield
            continue
        source = sources[number]
        folders = _OpenFolders(source, _Walk(number, source, chooser, rows))
        try:
            last: bytes | None = None
            for _, path in entries:
                if path != last:
                    yield from folders.entry(path)
                    yield
                last = path
        finally:
            folders.close()


class _OpenFolders:
    """Objects below one source by their paths, which come sorted by their parts: each directory on the way is an
    object, once, and stays open while there are entries in it. Owns the descriptors."""

    def __init__(self, source: Source, walk: _Walk) -> None:
        self._source = source
        self._walk = walk
        self._open: list[tuple[bytes, _Folder]] = []  # path from the source, the source itself first
        #: At and below this path nothing is left to do: all is in already, or left out, or there is this error.
        self._closed: tuple[bytes, bytes] | None = None

    def entry(self, path: bytes) -> Iterator[None]:
        """Add the object at `path`, all below it, and the directories on the way that are new."""
        if self._closed is not None and _is_below(path, self._closed[0]):
            if self._closed[1]:
                self._failed(path, self._closed[1])
            return
        while self._open and not _is_below(path, self._open[-1][0]):
            self._leave()
        parts = path.split(b"/") if path else []
        for depth in range(len(self._open), len(parts)):
            at = b"/".join(parts[:depth])
            error = self._enter(at, parts[depth - 1] if depth else self._source.path)
            if error is not None:
                self._closed = at, error
                if error:
                    self._failed(path, error)
                return
        yield from self._last(path, parts[-1] if parts else self._source.path)

    def _enter(self, at: bytes, name: bytes) -> bytes | None:
        """Open a directory on the way; returns None, or why nothing in it can go in, empty where that is no error."""
        walk, chooser, path = self._walk, self._walk.chooser, self._object(at)
        try:
            info = os.stat(name, dir_fd=_fd_of(self._folder), follow_symlinks=False)
        except OSError as error:
            return _reason(error)
        if not stat.S_ISDIR(info.st_mode):
            return b"a part of its path is no directory"
        if at and chooser is not None and chooser.matches(path, at, True):
            return b""
        folder = walk.enter(path, info, name, self._folder)
        if folder is None:
            return walk.refusal
        self._open.append((at, folder))
        return None

    def _last(self, path: bytes, name: bytes) -> Iterator[None]:
        walk, chooser, whole = self._walk, self._walk.chooser, self._object(path)
        try:
            info = os.stat(name, dir_fd=_fd_of(self._folder), follow_symlinks=False)
        except OSError as error:
            self._failed(path, _reason(error))
            return
        is_folder = stat.S_ISDIR(info.st_mode)
        if path and chooser is not None and chooser.matches(whole, path, is_folder):
            self._closed = path, b""
        elif is_folder:
            walk.device = info.st_dev
            yield from walk.directory(whole, info, name, self._folder)
            self._closed = path, b""
        elif info.st_size <= walk.limit or chooser is None or not chooser.too_large(whole, info):
            walk.object(whole, info, name, self._folder)

    @property
    def _folder(self) -> _Folder | None:
        return self._open[-1][1] if self._open else None

    def _object(self, at: bytes) -> bytes:
        return self._source.name + b"/" + at if at else self._source.name

    def _failed(self, path: bytes, error: bytes) -> None:
        self._walk.rows.add(self._object(path), self._walk.source, KIND["unknown"], error=error)

    def _leave(self) -> None:
        self._open.pop()[1].close()
        self._walk.above.pop()

    def close(self) -> None:
        while self._open:
            self._leave()


def _is_below(path: bytes, folder: bytes) -> bool:
    return not folder or path == folder or path.startswith(folder + b"/")
