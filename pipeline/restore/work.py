"""The restore worker: hosts the stages fetch, decompress, verify and assemble.

A task is a run of planned chunks in the order in which blocks lie. Neighbouring blocks are fetched in one read; each is
decompressed once; each chunk is verified before it is written. An object in one block is finished at once, a part of a
larger one goes to its staged file.
"""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from manifests.backends import open_backend
from manifests.columns import ITEM_DTYPE, PLAN_DTYPE, Batch, HeapBuilder
from manifests.config import ECScheme
from manifests.errors import DrystoneError, Unreadable
from manifests.placement import Seat
from pipeline import messages
from pipeline.fan import fan_station
from pipeline.packreader import PackPlace, PackReaders, ReadFigures, ShardSource
from pipeline.station import Context, Station
from pipeline.topology import ASSEMBLE, DECOMPRESS, FETCH, VERIFY
from pipeline.trial import block_judge, search
from stages.assemble import chunk_is_good
from stages.compress import Decoder
from stages.digest import FixityCheck
from stages.scan import KIND
from stages.target import Attributes, Target, TargetOptions

#: What became of an object's planned chunks in a task; rows without a reason count parts of objects of many blocks.
OUTCOME_DTYPE = np.dtype(
    [
        ("row", "<u8"),
        ("multi", "<i8"),
        ("parts", "<u4"),
        ("files", "<u4"),
        ("bytes", "<u8"),
        ("reason_at", "<u4"),
        ("reason_len", "<u4"),
    ]
)
FETCH_AT_ONCE = 8 << 20
_NODES = (KIND["fifo"], KIND["chardev"], KIND["blockdev"])
OPEN_PARTS = 64
_ZEROS = memoryview(bytes(1 << 20))
#: Path, fixity and extended attributes of a planned chunk's object.
Texts = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class BackendPlaces:
    """The backends that answer, for a worker to open: (number, type, location); `seats`: all, by joining."""

    store_id: uuid.UUID
    answering: tuple[tuple[int, str, str], ...]
    seats: tuple[Seat, ...]

    def source(self) -> ShardSource:
        storages = {number: open_backend(kind, location) for number, kind, location in self.answering}
        return ShardSource(self.store_id, storages, self.seats)


@dataclass(frozen=True)
class RestoreOptions:
    index: int
    backends: BackendPlaces
    target: TargetOptions


class Item(NamedTuple):
    """A row of ITEM_DTYPE. `target`: of a symlink, or the first name of a hardlinked object."""

    kind: int
    row: int
    multi: int
    device: int
    attributes: Attributes
    path: bytes
    target: bytes
    fixity: bytes
    holes: bytes


class PartFiles:
    """Open staged files of objects in many blocks, the last used ones."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._open: OrderedDict[int, int] = OrderedDict()

    def get(self, row: int) -> int:
        fd = self._open.pop(row, None)
        if fd is None:
            fd = self._target.open_part(part_name(row))
        self._open[row] = fd
        if len(self._open) > OPEN_PARTS:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def close(self, row: int) -> None:
        fd = self._open.pop(row, None)
        if fd is not None:
            os.close(fd)


def part_name(row: int) -> str:
    """Name of an object's staged file."""
    return f"part-{row}"


class Outcomes:
    """What a task achieved, on its way home."""

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self._parts: dict[tuple[int, int], int] = {}
        self._reasons: dict[int, tuple[int, str]] = {}

    def part(self, row: int, multi: int) -> None:
        self._parts[row, multi] = self._parts.get((row, multi), 0) + 1

    def failed(self, row: int, multi: int, reason: str) -> None:
        self._reasons.setdefault(row, (multi, reason))

    def is_failed(self, row: int) -> bool:
        return row in self._reasons

    def batches(self, size: int) -> Iterator[Batch]:
        """OUTCOME_DTYPE batches of at most `size` bytes; at least one."""
        entries = [(0, -1, 0, self.files, self.bytes, b"")]
        entries += [(row, multi, parts, 0, 0, b"") for (row, multi), parts in self._parts.items()]
        entries += [(row, multi, 0, 0, 0, reason.encode()[:500]) for row, (multi, reason) in self._reasons.items()]
        step = size // (OUTCOME_DTYPE.itemsize + 500) - 1
        for start in range(0, len(entries), step):
            some = entries[start : start + step]
            rows, heap = np.zeros(len(some), OUTCOME_DTYPE), HeapBuilder()
            for column, name in enumerate(("row", "multi", "parts", "files", "bytes")):
                rows[name] = [entry[column] for entry in some]
            rows["reason_at"], rows["reason_len"] = heap.add_all([entry[5] for entry in some])
            yield Batch(rows, heap.getvalue())


class Restorer:
    """State of one restore worker."""

    def __init__(self, context: Context, options: RestoreOptions) -> None:
        self._context = context
        self._readers = PackReaders(options.backends.source())
        self._decoder = Decoder()
        self._target = Target(options.target, f"restore-{options.index}")
        self._parts = PartFiles(self._target)

    @property
    def figures(self) -> ReadFigures:
        return self._readers.source.figures

    # --- planned chunks ----------------------------------------------------------------------------------------------

    def restore(self, batch: Batch, outcomes: Outcomes) -> None:
        """Fetch the blocks of a PLAN_DTYPE batch and write what they hold."""
        rows = batch.rows
        texts = list(zip(*(batch.all_bytes(name) for name in ("path", "fixity", "xattrs")), strict=True))
        same = (rows["pack_id"][1:] == rows["pack_id"][:-1]).all(axis=1) & (rows["block"][1:] == rows["block"][:-1])
        starts = [0, *(np.flatnonzero(~same) + 1).tolist(), len(rows)]
        blocks = list(pairwise(starts))
        for first, last in self._fetch_groups(rows, blocks):
            self._fetch(rows, texts, blocks[first:last], outcomes)

    @staticmethod
    def _fetch_groups(rows: npt.NDArray[np.void], blocks: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Runs of blocks that lie side by side, as (first, last + 1), up to FETCH_AT_ONCE bytes."""
        heads = rows[[start for start, _ in blocks]]
        packs, offsets, stored = heads["pack_id"], heads["block_offset"].tolist(), heads["stored"].tolist()
        first = 0
        for number in range(1, len(blocks) + 1):
            if (
                number == len(blocks)
                or offsets[number] != offsets[number - 1] + stored[number - 1]
                or (packs[number] != packs[number - 1]).any()
                or offsets[number] + stored[number] - offsets[first] > FETCH_AT_ONCE
            ):
                yield first, number
                first = number

    def _fetch(
        self, rows: npt.NDArray[np.void], texts: list[Texts], blocks: list[tuple[int, int]], outcomes: Outcomes
    ) -> None:
        head, tail = rows[blocks[0][0]], rows[blocks[-1][0]]
        start = int(head["block_offset"])
        length = int(tail["block_offset"]) + int(tail["stored"]) - start
        clock = self._context.clock
        clock.switch(FETCH)
        try:
            place = pack_place(head)
            try:
                data = memoryview(self._readers.get(place).read(start, length))
            except Unreadable:
                if len(blocks) > 1:
                    raise
                data = memoryview(self._tried(place, rows[blocks[0][0] : blocks[0][1]]))
        except DrystoneError as error:
            if len(blocks) > 1:  # some of the blocks may be readable
                for block in blocks:
                    self._fetch(rows, texts, [block], outcomes)
                return
            self._fail(rows, blocks[0], outcomes, str(error))
            return
        clock.count(FETCH, len(blocks), length)
        for first, last in blocks:
            row = rows[first]
            at = int(row["block_offset"]) - start
            clock.switch(DECOMPRESS)
            try:
                raw = self._decoder.decode(int(row["codec"]), data[at : at + int(row["stored"])], int(row["raw"]))
            except DrystoneError as error:
                self._fail(rows, (first, last), outcomes, f"pack {place.pack_id}: {error}")
                continue
            clock.count(DECOMPRESS, 1, len(raw))
            self._write_block(raw, rows[first:last], texts[first:last], outcomes)

    def _tried(self, place: PackPlace, rows: npt.NDArray[np.void]) -> bytes:
        """The stored bytes of a block whose sure cells are too few, as its chunks judge them. Raises Unreadable."""
        head = rows[0]
        ids = [bytes(each) for each in rows["chunk_id"]]
        chunks = list(zip(ids, rows["chunk_offset"].tolist(), rows["length"].tolist(), strict=True))
        judge = block_judge(self._decoder, int(head["codec"]), int(head["raw"]), list(dict.fromkeys(chunks)))
        return search(self._readers.get(place), int(head["block_offset"]), int(head["stored"]), judge)

    @staticmethod
    def _fail(rows: npt.NDArray[np.void], block: tuple[int, int], outcomes: Outcomes, reason: str) -> None:
        some = rows[block[0] : block[1]]
        for row, multi in zip(some["row"].tolist(), some["multi"].tolist(), strict=True):
            outcomes.failed(row, multi, reason)

    def _write_block(self, raw: memoryview, rows: npt.NDArray[np.void], texts: list[Texts], outcomes: Outcomes) -> None:
        clock = self._context.clock
        clock.switch(VERIFY)
        ids = rows["chunk_id"].tobytes()
        offsets, lengths = rows["chunk_offset"].tolist(), rows["length"].tolist()
        chunks: list[memoryview | None] = []
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            if number and offset == offsets[number - 1]:
                chunks.append(chunks[-1])
                continue
            chunk = raw[offset : offset + length]
            good = len(chunk) == length and chunk_is_good(ids[number * 32 : number * 32 + 32], chunk)
            chunks.append(chunk if good else None)
        clock.count(VERIFY, len(rows), len(raw))
        clock.switch(ASSEMBLE)
        self._write_chunks(chunks, rows, texts, outcomes)

    def _write_chunks(
        self, chunks: list[memoryview | None], rows: npt.NDArray[np.void], texts: list[Texts], outcomes: Outcomes
    ) -> None:
        gathered: dict[int, list[int]] = {}
        columns = [
            rows[name].tolist() for name in ("row", "multi", "size", "file_offset", "mode", "uid", "gid", "mtime_ns")
        ]
        for number, (row, multi, size, at, mode, uid, gid, mtime) in enumerate(zip(*columns, strict=True)):
            chunk = chunks[number]
            if chunk is None:
                outcomes.failed(row, multi, "a chunk is damaged: its bytes do not match its id")
            elif multi >= 0:
                self._write_part(row, multi, at, chunk, outcomes)
            elif len(chunk) == size:
                self._write_file(row, texts[number], [chunk], Attributes(mode, uid, gid, mtime, size), outcomes)
            else:
                gathered.setdefault(row, []).append(number)
        for row, numbers in gathered.items():
            numbers.sort(key=columns[3].__getitem__)
            first = numbers[0]
            pieces = [chunk for number in numbers if (chunk := chunks[number]) is not None]
            size, mode, uid, gid, mtime = (column[first] for column in (columns[2], *columns[4:]))
            if [columns[3][number] for number in numbers] != list(accumulate(map(len, pieces[:-1]), initial=0)):
                outcomes.failed(row, -1, "the manifests do not place its chunks side by side")
            if not outcomes.is_failed(row):
                self._write_file(row, texts[first], pieces, Attributes(mode, uid, gid, mtime, size), outcomes)

    def _write_part(self, row: int, multi: int, at: int, chunk: memoryview, outcomes: Outcomes) -> None:
        try:
            fd = self._parts.get(row)
            while chunk:
                count = os.pwrite(fd, chunk, at)
                chunk, at = chunk[count:], at + count
                outcomes.bytes += count
            outcomes.part(row, multi)
        except OSError as error:
            outcomes.failed(row, multi, f"writing it failed: {error.strerror}")

    def _write_file(
        self, row: int, texts: Texts, pieces: list[Any], attributes: Attributes, outcomes: Outcomes
    ) -> None:
        path, fixity, xattrs = texts
        attributes = attributes._replace(xattrs=xattrs) if xattrs else attributes
        try:
            if sum(map(len, pieces)) != attributes.size:
                raise Unreadable("its chunks do not add up to its size")
            if self._target.wanted(path, attributes):
                _require_fixity(fixity, pieces)
                trouble = self._target.write_whole(path, pieces, attributes)
                if trouble:
                    outcomes.failed(row, -1, trouble)
            outcomes.files += 1
            outcomes.bytes += attributes.size
        except OSError as error:
            outcomes.failed(row, -1, f"writing it failed: {error.strerror}")
        except DrystoneError as error:
            outcomes.failed(row, -1, str(error))

    # --- items -------------------------------------------------------------------------------------------------------

    def make_items(self, kind: int, batch: Batch, outcomes: Outcomes) -> None:
        """Make the objects of an ITEM_DTYPE batch. ITEMS: links and empty files, and files whose parts are all written;
        LINKS: other names of objects that are there."""
        self._context.clock.switch(ASSEMBLE)
        make = self._make_link if kind == messages.LINKS else self._make_item
        for item in _items(batch):
            try:
                trouble = make(item)
                outcomes.files += item.kind in (KIND["file"], KIND["stream"])
            except OSError as error:
                trouble = f"writing it failed: {error.strerror}"
            except DrystoneError as error:
                trouble = str(error)
            if trouble:
                outcomes.failed(item.row, item.multi, trouble)

    def _make_link(self, item: Item) -> str:
        if not self._target.wanted(item.path, item.attributes):
            return ""
        return self._target.make_link(item.path, item.target, item.attributes)

    def _make_item(self, item: Item) -> str:
        """Make an object; returns what of it could not be set."""
        target, path, attributes = self._target, item.path, item.attributes
        if item.multi >= 0:
            self._parts.close(item.row)
        if not target.wanted(path, attributes):
            target.drop_parts(part_name(item.row))
            return ""
        if item.multi >= 0:
            return self._finish_parts(item)
        if item.kind == KIND["symlink"]:
            return target.make_symlink(path, item.target, attributes)
        if item.kind in _NODES:
            return target.make_node(path, attributes, item.device)
        _require_fixity(item.fixity, _zeros(attributes.size))
        return target.write_whole(path, (), attributes)

    def _finish_parts(self, item: Item) -> str:
        """Name a staged file, once it is read back and is what was archived. Returns what could not be set."""
        name = part_name(item.row)
        try:
            with self._target.staged(name, item.attributes.size) as fd:
                if item.fixity:
                    self._context.at(os.fsdecode(item.path))
                    self._context.clock.switch(VERIFY)
                    check = FixityCheck(item.fixity)
                    check.read(fd)
                    _require(check.trouble())
                    self._context.clock.switch(ASSEMBLE)
        except Unreadable:
            self._target.drop_parts(name)
            raise
        return self._target.finish_parts(name, item.path, item.attributes, item.holes)


def _items(batch: Batch) -> Iterator[Item]:
    names = ("kind", "row", "multi", "rdev", "mode", "uid", "gid", "mtime_ns", "size")
    numbers = zip(*(batch.rows[name].tolist() for name in names), strict=True)
    texts = zip(*(batch.all_bytes(name) for name in ("path", "target", "fixity", "holes", "xattrs")), strict=True)
    for (kind, row, multi, device, mode, uid, gid, mtime, size), (path, target, fixity, holes, xattrs) in zip(
        numbers, texts, strict=True
    ):
        attributes = Attributes(mode, uid, gid, mtime, size, xattrs)
        yield Item(kind, row, multi, device, attributes, path, target, fixity, holes)


def _zeros(count: int) -> Iterator[memoryview]:
    while count:
        piece = _ZEROS[:count]
        yield piece
        count -= len(piece)


def _require_fixity(fixity: bytes, pieces: Iterable[bytes | memoryview]) -> None:
    """Raise Unreadable unless a content has the digests that were recorded of it."""
    if fixity:
        check = FixityCheck(fixity)
        for piece in pieces:
            check.update(piece)
        _require(check.trouble())


def _require(trouble: str) -> None:
    if trouble:
        raise Unreadable(trouble)


def pack_place(row: np.void) -> PackPlace:
    """The pack of a PLAN_DTYPE row."""
    return PackPlace(
        uuid.UUID(bytes=row["pack_id"].tobytes()),
        ECScheme(int(row["k"]), int(row["m"])),
        int(row["payload"]),
        int(row["shard_length"]),
    )


def restore_station(context: Context, options: RestoreOptions) -> Station:
    """Takes PLAN, ITEMS and LINKS, answers with OUTCOME_DTYPE reports."""
    context.clock.switch(FETCH)
    restorer = Restorer(context, options)
    size = len(context.slot(f"reports/{options.index}", 0))

    def work(kind: int, view: memoryview) -> Iterator[Batch]:
        outcomes = Outcomes()
        if kind == messages.PLAN:
            restorer.restore(Batch.load(view, PLAN_DTYPE).copy(), outcomes)
        else:
            restorer.make_items(kind, Batch.load(view, ITEM_DTYPE).copy(), outcomes)
        context.clock.count(ASSEMBLE, outcomes.files, outcomes.bytes)
        return outcomes.batches(size)

    return fan_station(context, options.index, work, lambda: restorer.figures)
