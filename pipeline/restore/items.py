"""Making objects that need no block any more: links, nodes, empty files, files of which all parts are written, and
other names of what is there."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from manifests.columns import Batch
from manifests.errors import DrystoneError, Unreadable
from manifests.fixity import parse_fixity
from manifests.longfields import read_fields
from pipeline import messages
from pipeline.restore.outcomes import Outcomes
from pipeline.station import Context
from pipeline.topology import ASSEMBLE, VERIFY
from stages.attributes import Attributes
from stages.digest import PIECE, Digester, FixityCheck, read_pieces
from stages.scan import KIND
from stages.target import Target

#: Kinds of objects that count as files.
CONTENTS = (KIND["file"], KIND["stream"])
_NODES = (KIND["fifo"], KIND["chardev"], KIND["blockdev"])
_ZEROS = memoryview(bytes(1 << 20))
OPEN_PARTS = 64


class Item(NamedTuple):
    """A row of ITEM_DTYPE. `target`: of a symlink, or the first name of a hardlinked object; `group`, `long`: see
    there."""

    kind: int
    row: int
    multi: int
    group: int
    device: int
    attributes: Attributes
    path: bytes
    target: bytes
    fixity: bytes
    holes: bytes
    long: int


class Begun:
    """The BLAKE3 of the first `hashed` bytes of a staged file."""

    def __init__(self) -> None:
        self.digester = Digester(["blake3"])
        self.hashed = 0

    def read(self, fd: int, end: int) -> None:
        """Go on to `end`; all bytes before it are written. Raises OSError."""
        for piece in read_pieces(fd, PIECE, self.hashed, end):
            self.digester.update(piece)
        self.hashed = end


class PartFiles:
    """Open staged files of objects in many blocks, the last used ones."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._open: OrderedDict[int, int] = OrderedDict()
        self._failed: dict[int, str] = {}

    def get(self, row: int) -> int:
        """Descriptor of an object's staged file, which stays this one's. Raises OSError."""
        fd = self._open.pop(row, None)
        if fd is None:
            fd = self._target.open_part(_part_name(row))
        self._open[row] = fd
        if len(self._open) > OPEN_PARTS:
            self._close(next(iter(self._open)))
        return fd

    def write(self, row: int, offset: int, data: memoryview) -> None:
        """Write a part of an object. Raises OSError."""
        fd = self.get(row)
        while data:
            count = os.pwrite(fd, data, offset)
            data, offset = data[count:], offset + count

    def close_all(self) -> dict[int, str]:
        """Close what is open. Returns why, by object, closing failed since the last call: what was written is lost."""
        for row in list(self._open):
            self._close(row)
        failed, self._failed = self._failed, {}
        return failed

    def _close(self, row: int) -> None:
        try:
            os.close(self._open.pop(row))
        except OSError as error:
            self._failed[row] = error.strerror or str(error)


def _part_name(row: int) -> bytes:
    """Name of an object's staged file."""
    return b"part-%d" % row


class ItemMaker:
    """Makes objects in a target. Owned by one worker."""

    def __init__(self, context: Context, target: Target, long_fields: int) -> None:
        """`long_fields`: descriptor of the file of long fields (manifests/longfields.py)."""
        self._context = context
        self._long_fields = long_fields
        self._target = target

    def make_all(
        self,
        kind: int,
        batch: Batch,
        outcomes: Outcomes,
        begun: Callable[[Item], Begun | None] = lambda item: None,
    ) -> None:
        """Make the objects of an ITEM_DTYPE batch. ITEMS: links and empty files, and files whose parts are all written,
        of which `begun` may know the digest of the beginning; LINKS: other names of objects that are there."""
        self._context.clock.switch(ASSEMBLE)
        for item in _items(batch):
            is_file = item.kind in CONTENTS
            try:
                if item.long:
                    item = self._with_long_fields(item)
                trouble = self._make_link(item) if kind == messages.LINKS else self._make(item, begun(item))
                outcomes.files += is_file
                outcomes.in_place += is_file and trouble is None
                if kind == messages.ITEMS and item.multi >= 0:
                    outcomes.bytes += item.attributes.size
                    outcomes.in_place_bytes += item.attributes.size if trouble is None else 0
            except OSError as error:
                trouble = f"writing it failed: {error.strerror}"
            except DrystoneError as error:
                trouble = str(error)
            if trouble:
                outcomes.failed(item.row, item.multi, trouble)

    def _with_long_fields(self, item: Item) -> Item:
        """The item with the fields that its batch has no room for."""
        path, target, xattrs, holes = read_fields(self._long_fields, item.long)
        return item._replace(path=path, target=target, holes=holes, attributes=item.attributes._replace(xattrs=xattrs))

    def _make_link(self, item: Item) -> str | None:
        if not self._target.wanted_link(item.path, item.attributes, item.group):
            return None
        return self._target.make_link(item.path, item.group, item.attributes)

    def _make(self, item: Item, begun: Begun | None) -> str | None:
        """Make an object; returns what of it could not be set, or None if it is in place."""
        target, path, attributes = self._target, item.path, item.attributes
        link = item.target if item.kind == KIND["symlink"] else None
        device = item.device if item.kind in _NODES else None
        if not target.wanted(path, attributes, item.group, link, device):
            target.drop_parts(_part_name(item.row))
            return None
        if item.multi >= 0:
            return self._finish_parts(item, begun)
        if item.kind == KIND["symlink"]:
            return target.make_symlink(path, item.target, attributes, item.group)
        if item.kind in _NODES:
            return target.make_node(path, attributes, item.device, item.group)
        require_fixity(item.fixity, _zeros(attributes.size))
        return target.write_whole(path, (), attributes, item.group)

    def _finish_parts(self, item: Item, begun: Begun | None) -> str:
        """Name a staged file, once what of it was not hashed yet is read back and it is what was archived. Returns what
        could not be set."""
        name = _part_name(item.row)
        try:
            with self._target.staged(name, item.attributes.size) as fd:
                if item.fixity:
                    self._context.at(os.fsdecode(item.path))
                    self._context.clock.switch(VERIFY)
                    if begun is None or [name for name, _ in parse_fixity(item.fixity)] != ["blake3"]:
                        check = FixityCheck(item.fixity)
                        check.read(fd)
                    else:
                        check = FixityCheck(item.fixity, begun.digester)
                        check.read(fd, begun.hashed)
                    _require(check.trouble())
                    self._context.clock.switch(ASSEMBLE)
        except Unreadable:
            self._target.drop_parts(name)
            raise
        return self._target.finish_parts(name, item.path, item.attributes, item.holes, item.group)


def _items(batch: Batch) -> Iterator[Item]:
    names = ("kind", "row", "multi", "group", "rdev", "long", "mode", "uid", "gid", "mtime_ns", "size")
    numbers = zip(*(batch.rows[name].tolist() for name in names), strict=True)
    texts = zip(*(batch.all_bytes(name) for name in ("path", "target", "fixity", "holes", "xattrs")), strict=True)
    for (kind, row, multi, group, device, long, mode, uid, gid, mtime, size), (
        path, target, fixity, holes, xattrs,
    ) in zip(numbers, texts, strict=True):  # fmt: skip
        attributes = Attributes(mode, uid, gid, mtime, size, xattrs)
        yield Item(kind, row, multi, group, device, attributes, path, target, fixity, holes, long)


def _zeros(count: int) -> Iterator[memoryview]:
    while count:
        piece = _ZEROS[:count]
        yield piece
        count -= len(piece)


def require_fixity(fixity: bytes, pieces: Iterable[bytes | memoryview]) -> None:
    """Raise Unreadable unless a content has the digests that were recorded of it."""
    if fixity:
        check = FixityCheck(fixity)
        for piece in pieces:
            check.update(piece)
        _require(check.trouble())


def _require(trouble: str) -> None:
    if trouble:
        raise Unreadable(trouble)
