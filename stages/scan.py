"""Walking sources in reading order: a directory, then its files by name, then its subdirectories.

Neighbours in a directory look alike, so this order makes for good solid compression. Directories are walked by
descriptor; listings are sorted in pieces of LISTING entries, so memory does not grow with a directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder

LISTING = 64 << 10
BATCH_ROWS = 1024
BATCH_HEAP = 256 << 10

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


class _Entry(NamedTuple):
    path: bytes
    source: int
    kind: int
    info: os.stat_result | None = None
    target: bytes = b""
    error: bytes = b""


def scan(sources: list[Source]) -> Iterator[Batch]:
    """OBJECT_DTYPE batches of all that lies below `sources`, numbered in order. What can't be looked at is a row with
    its error."""
    pending: list[_Entry] = []
    heap = first = 0
    for entry in _entries(sources):
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


def _entries(sources: list[Source]) -> Iterator[_Entry]:
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
            yield from _walk(source.path, None, source.name, number)


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


def _walk(name: bytes, folder: int | None, path: bytes, source: int) -> Iterator[_Entry]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        yield _Entry(path, source, KIND["unknown"], error=b"listing it failed: " + _reason(error))
        return
    try:
        with os.scandir(fd) as listing:
            while True:
                try:
                    some = list(islice(listing, LISTING))
                except OSError as error:
                    yield _Entry(path, source, KIND["unknown"], error=b"listing it failed: " + _reason(error))
                    return
                yield from _listed(
                    sorted(((os.fsencode(item.name), item) for item in some), key=lambda pair: pair[0]),
                    fd,
                    path,
                    source,
                )
                if len(some) < LISTING:
                    return
    finally:
        os.close(fd)


def _listed(items: list[tuple[bytes, os.DirEntry[str]]], fd: int, path: bytes, source: int) -> Iterator[_Entry]:
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
        else:
            yield from _one(below, source, info, name, fd)
    for name, info in folders:
        below = path + b"/" + name
        yield from _one(below, source, info, name, fd)
        yield from _walk(name, fd, below, source)
