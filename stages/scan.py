"""Walking sources in reading order: a directory, then its files by name, then its subdirectories.

Neighbours in a directory look alike, so this order makes for good solid compression. Directories are walked by
descriptor; listings are sorted in pieces of LISTING entries, so memory does not grow with a directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple, Protocol

import numpy as np

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder

LISTING = 64 << 10
BATCH_ROWS = 1024
BATCH_HEAP = 256 << 10
NO_LIMIT = 1 << 64
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOPS = b"it loops: it is a directory above it, mounted again"
_OUTSIDE = b"it does not lie below the source that the list is for"

KIND = {name: number for number, name in enumerate(fmt.KINDS)}
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
    """Something to be archived: `path` on this machine ('-' with `stream` for standard input), `name` is the first
    part of its objects' paths."""

    path: bytes
    name: bytes
    stream: bool = False


class Chooser(Protocol):
    """Who says what is left out, and counts it: stages/select.py. Patterns are asked once a listing."""

    limit: int | None

    def keep(
        self, path: bytes, below: bytes, items: list[tuple[bytes, os.DirEntry[str]]]
    ) -> list[tuple[bytes, os.DirEntry[str]]]: ...
    def matches(self, path: bytes, below: bytes, is_folder: bool) -> bool: ...
    def too_large(self, path: bytes, info: os.stat_result) -> bool: ...
    def crosses(self, path: bytes, device: int, info: os.stat_result) -> bool: ...
    def cache_tag(self, path: bytes, fd: int) -> bytes | None: ...


class Listed(NamedTuple):
    """An entry of a list of paths: below the source of this number, as a path from it; or `source` −1 and the path as
    given, where it lies below none."""

    source: int
    path: bytes


class _Walk:
    """The walk of one source. `above`: device and inode of the directories that are open, the outermost first, by
    which a directory that is mounted below itself is known again; `device`: where the walk began."""

    def __init__(self, number: int, source: Source, chooser: Chooser | None) -> None:
        self.source = number
        self.chooser = chooser
        self.limit = NO_LIMIT if chooser is None or chooser.limit is None else chooser.limit
        self.device = -1
        self.above: list[tuple[int, int]] = []
        self._skip = len(source.name) + 1

    def below(self, path: bytes) -> bytes:
        """The path from the source of the object `path`, empty for the source itself."""
        return path[self._skip :]

    def enter(self, fd: int) -> bool:
        """Note that the directory `fd` is open until `leave`; False where it is open already."""
        info = os.fstat(fd)
        here = (info.st_dev, info.st_ino)
        if here in self.above:
            return False
        if not self.above:
            self.device = info.st_dev
        self.above.append(here)
        return True

    def leave(self) -> None:
        self.above.pop()


class _Entry(NamedTuple):
    path: bytes
    source: int
    kind: int
    info: os.stat_result | None = None
    target: bytes = b""
    error: bytes = b""


def scan(
    sources: Sequence[Source], chooser: Chooser | None = None, listed: Iterable[Listed] | None = None
) -> Iterator[Batch]:
    """OBJECT_DTYPE batches of all that lies below `sources`, or of what `listed` names there, numbered in order. What
    can't be looked at is a row with its error. `listed` is sorted by source, then by the parts of the path."""
    pending: list[_Entry] = []
    heap = first = 0
    for entry in _entries(sources, chooser) if listed is None else _listed_entries(sources, chooser, listed):
        pending.append(entry)
        heap += len(entry.path) + len(entry.target) + len(entry.error)
        if len(pending) >= BATCH_ROWS or heap >= BATCH_HEAP:
            yield _to_batch(pending, first)
            first += len(pending)
            pending, heap = [], 0
    if pending:
        yield _to_batch(pending, first)


def _to_batch(entries: list[_Entry], first: int) -> Batch:
    rows = np.zeros(len(entries), OBJECT_DTYPE)
    rows["row"] = np.arange(first, first + len(entries))
    rows["kind"] = [entry.kind for entry in entries]
    rows["source"] = [entry.source for entry in entries]
    places = [number for number, entry in enumerate(entries) if entry.info is not None]
    infos = [entry.info for entry in entries if entry.info is not None]
    if infos:
        rows["mode"][places] = [info.st_mode for info in infos]
        rows["uid"][places] = [info.st_uid for info in infos]
        rows["gid"][places] = [info.st_gid for info in infos]
        rows["links"][places] = [info.st_nlink for info in infos]
        rows["mtime_ns"][places] = [info.st_mtime_ns for info in infos]
        rows["ctime_ns"][places] = [info.st_ctime_ns for info in infos]
        rows["device"][places] = [info.st_dev for info in infos]
        rows["inode"][places] = [info.st_ino for info in infos]
        rows["rdev"][places] = [info.st_rdev for info in infos]
        rows["size"][places] = [info.st_size if stat.S_ISREG(info.st_mode) else 0 for info in infos]
    heap = HeapBuilder()
    for name in ("path", "target", "error"):
        rows[f"{name}_at"], rows[f"{name}_len"] = heap.add_all([getattr(entry, name) for entry in entries])
    return Batch(rows, heap.getvalue())


def _reason(error: OSError) -> bytes:
    return (error.strerror or str(error)).encode()


def _entries(sources: Sequence[Source], chooser: Chooser | None) -> Iterator[_Entry]:
    for number, source in enumerate(sources):
        if source.stream:
            yield _Entry(source.name, number, KIND["stream"])
            continue
        try:
            info = os.lstat(source.path)
        except OSError as error:
            yield _Entry(source.name, number, KIND["unknown"], error=_reason(error))
            continue
        yield from _one(source.name, number, info, source.path, None)
        if stat.S_ISDIR(info.st_mode):
            yield from _walk(source.path, None, source.name, _Walk(number, source, chooser))


def _one(path: bytes, source: int, info: os.stat_result, name: bytes, folder: int | None) -> Iterator[_Entry]:
    kind = _BY_TYPE.get(stat.S_IFMT(info.st_mode), KIND["unknown"])
    target = error = b""
    if kind == KIND["symlink"]:
        try:
            target = os.readlink(name, dir_fd=folder)
        except OSError as trouble:
            error = _reason(trouble)
    elif kind in (KIND["socket"], KIND["unknown"]):
        error = b"sockets are not archived" if kind == KIND["socket"] else b"not a kind of file that can be archived"
    yield _Entry(path, source, kind, info, target, error)


def _walk(name: bytes, folder: int | None, path: bytes, walk: _Walk) -> Iterator[_Entry]:
    try:
        fd = os.open(name, _OPEN_FOLDER, dir_fd=folder)
    except OSError as error:
        yield _Entry(path, walk.source, KIND["unknown"], error=b"listing it failed: " + _reason(error))
        return
    try:
        if not walk.enter(fd):
            yield _Entry(path, walk.source, KIND["unknown"], error=_LOOPS)
            return
        yield from _entered(fd, path, walk)
        walk.leave()
    finally:
        os.close(fd)


def _entered(fd: int, path: bytes, walk: _Walk) -> Iterator[_Entry]:
    """What lies in the directory `fd`."""
    source, chooser = walk.source, walk.chooser
    tag = None if chooser is None else chooser.cache_tag(path, fd)
    if tag is not None:
        yield from _named(path + b"/" + tag, source, tag, fd)
        return
    with os.scandir(fd) as listing:
        while True:
            try:
                some = list(islice(listing, LISTING))
            except OSError as error:
                yield _Entry(path, source, KIND["unknown"], error=b"listing it failed: " + _reason(error))
                return
            items = sorted(((os.fsencode(item.name), item) for item in some), key=lambda pair: pair[0])
            if chooser is not None:
                items = chooser.keep(path, walk.below(path), items)
            yield from _listing(items, fd, path, walk)
            if len(some) < LISTING:
                return


def _named(path: bytes, source: int, name: bytes, folder: int | None) -> Iterator[_Entry]:
    """An object by its name; nothing below it."""
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        yield _Entry(path, source, KIND["unknown"], error=_reason(error))
        return
    yield from _one(path, source, info, name, folder)


def _listing(items: list[tuple[bytes, os.DirEntry[str]]], fd: int, path: bytes, walk: _Walk) -> Iterator[_Entry]:
    source, chooser, limit = walk.source, walk.chooser, walk.limit
    folders: list[tuple[bytes, os.stat_result]] = []
    for name, item in items:
        below = path + b"/" + name
        try:
            info = item.stat(follow_symlinks=False)
        except OSError as error:
            yield _Entry(below, source, KIND["unknown"], error=_reason(error))
            continue
        if stat.S_ISDIR(info.st_mode):
            folders.append((name, info))
        elif info.st_size <= limit or chooser is None or not chooser.too_large(below, info):
            yield from _one(below, source, info, name, fd)
    for name, info in folders:
        below = path + b"/" + name
        yield from _one(below, source, info, name, fd)
        if chooser is None or not chooser.crosses(below, walk.device, info):
            yield from _walk(name, fd, below, walk)


# --- lists of paths --------------------------------------------------------------------------------------------------


def _listed_entries(sources: Sequence[Source], chooser: Chooser | None, listed: Iterable[Listed]) -> Iterator[_Entry]:
    for number, entries in groupby(listed, key=lambda entry: entry.source):
        if number < 0:
            for _, path in entries:
                yield _Entry(path, 0, KIND["unknown"], error=_OUTSIDE)
            continue
        source = sources[number]
        folders = _OpenFolders(source, _Walk(number, source, chooser))
        try:
            last: bytes | None = None
            for _, path in entries:
                if path != last:
                    yield from folders.entry(path)
                last = path
        finally:
            folders.close()


class _OpenFolders:
    """Objects below one source by their paths, which come sorted by their parts: each directory on the way is an
    object, once, and stays open while there are entries in it. Owns the descriptors."""

    def __init__(self, source: Source, walk: _Walk) -> None:
        self._source = source
        self._walk = walk
        self._open: list[tuple[bytes, int]] = []  # path from the source and descriptor, the source's own first
        #: At and below this path nothing is left to do: all is in already, or left out, or there is this error.
        self._closed: tuple[bytes, bytes] | None = None

    def entry(self, path: bytes) -> Iterator[_Entry]:
        """The object at `path`, all below it, and the directories on the way that are new."""
        if self._closed is not None and _is_below(path, self._closed[0]):
            if self._closed[1]:
                yield self._failed(path, self._closed[1])
            return
        while self._open and not _is_below(path, self._open[-1][0]):
            self._leave()
        parts = path.split(b"/") if path else []
        for depth in range(len(self._open), len(parts)):
            at = b"/".join(parts[:depth])
            error = yield from self._enter(at, parts[depth - 1] if depth else self._source.path)
            if error is not None:
                self._closed = at, error
                if error:
                    yield self._failed(path, error)
                return
        yield from self._last(path, parts[-1] if parts else self._source.path)

    def _enter(self, at: bytes, name: bytes) -> Generator[_Entry, None, bytes | None]:
        """Open a directory on the way; returns None, or why nothing in it can go in, empty where that is no error."""
        walk, chooser, path = self._walk, self._walk.chooser, self._object(at)
        try:
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISDIR(info.st_mode):
                return b"a part of its path is no directory"
            if at and chooser is not None and chooser.matches(path, at, True):
                return b""
            fd = os.open(name, _OPEN_FOLDER, dir_fd=self._folder)
        except OSError as error:
            return _reason(error)
        self._open.append((at, fd))
        yield from _one(path, walk.source, info, name, None)
        if not walk.enter(fd):
            os.close(self._open.pop()[1])
            return _LOOPS
        tag = None if chooser is None else chooser.cache_tag(path, fd)
        if tag is None:
            return None
        yield from _named(path + b"/" + tag, walk.source, tag, fd)
        return b""

    def _last(self, path: bytes, name: bytes) -> Iterator[_Entry]:
        walk, chooser, whole = self._walk, self._walk.chooser, self._object(path)
        try:
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            yield self._failed(path, _reason(error))
            return
        is_folder = stat.S_ISDIR(info.st_mode)
        if path and chooser is not None and chooser.matches(whole, path, is_folder):
            self._closed = path, b""
        elif is_folder:
            yield from _one(whole, walk.source, info, name, self._folder)
            walk.device = info.st_dev
            yield from _walk(name, self._folder, whole, walk)
            self._closed = path, b""
        elif info.st_size <= walk.limit or chooser is None or not chooser.too_large(whole, info):
            yield from _one(whole, walk.source, info, name, self._folder)

    @property
    def _folder(self) -> int | None:
        return self._open[-1][1] if self._open else None

    def _object(self, at: bytes) -> bytes:
        return self._source.name + b"/" + at if at else self._source.name

    def _failed(self, path: bytes, error: bytes) -> _Entry:
        return _Entry(self._object(path), self._walk.source, KIND["unknown"], error=error)

    def _leave(self) -> None:
        os.close(self._open.pop()[1])
        self._walk.leave()

    def close(self) -> None:
        while self._open:
            self._leave()


def _is_below(path: bytes, folder: bytes) -> bool:
    return not folder or path == folder or path.startswith(folder + b"/")
