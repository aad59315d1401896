"""The restore worker: hosts the stages fetch, decompress, verify and assemble.

A task is a run of planned chunks in the order in which blocks lie. Neighbouring blocks are fetched in one read; each is
decompressed once; each chunk is verified before it is written. An object in one block is finished at once, a part of a
larger one goes to its staged file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.backends import BackendStorage, Place
from manifests.columns import ITEM_DTYPE, PLAN_DTYPE, Batch
from manifests.config import ECScheme
from manifests.copies import read_places
from manifests.errors import DrystoneError, Unreadable
from manifests.longfields import read_fields
from manifests.placement import Seat
from pipeline import messages
from pipeline.arena import Message
from pipeline.badmedia import BadMedia
from pipeline.chunkreader import BlockCache, ChunkReader
from pipeline.fan import Work, fan_station
from pipeline.handles import FdHandle
from pipeline.metrics.backend import MeteredBackend
from pipeline.metrics.codec import MeteredDecoder
from pipeline.metrics.meters import Meters
from pipeline.packreader import PackPlace, PackReaders, ReadFigures, ShardSource
from pipeline.restore.items import CONTENTS, Begun, ItemMaker, PartFiles, require_fixity
from pipeline.restore.outcomes import Outcomes
from pipeline.restore.prefixes import HASH_DTYPE, LARGE_FILE
from pipeline.station import Context, Station
from pipeline.topology import ASSEMBLE, DECOMPRESS, FETCH, VERIFY
from pipeline.trial import block_judge, search
from stages.assemble import chunk_is_good
from stages.attributes import Attributes
from stages.target import NO_GROUP, Target, TargetOptions

FETCH_AT_ONCE = 8 << 20
#: Decompressed blocks that are kept of those that chunks are taken from whose planned place failed.
ELSEWHERE_BYTES = 4 << 20
#: Path, fixity and extended attributes of a planned chunk's object; and where the first and the last are, if they are
#: long.
Texts = tuple[bytes, bytes, bytes, int]


@dataclass(frozen=True)
class BackendPlaces:
    """The backends that answer, by number, for a worker to open; `stores`: ids that shards may name; `seats`: all, by
    joining."""

    stores: frozenset[uuid.UUID]
    answering: tuple[tuple[int, Place], ...]
    seats: tuple[Seat, ...]

    def source(self, meters: Meters | None = None, media: BadMedia | None = None) -> ShardSource:
        """Where shards lie; `meters`, if given, count what is asked of them; `media`: what a reader of the same process
        knows already to be unreadable."""
        storages: dict[int, BackendStorage] = {number: place.open() for number, place in self.answering}
        if meters is not None:
            storages = {number: MeteredBackend(each, meters, number) for number, each in storages.items()}
        source = ShardSource(self.stores, storages, self.seats)
        source.figures.media = source.figures.media if media is None else media
        return source


@dataclass(frozen=True)
class RestoreOptions:
    index: int
    backends: BackendPlaces
    target: TargetOptions
    long_fields: FdHandle
    other_places: FdHandle


class Restorer:
    """State of one restore worker."""

    def __init__(self, context: Context, options: RestoreOptions) -> None:
        self._context = context
        source = options.backends.source(context.meters)
        self._readers = PackReaders(source)
        self._decoder = MeteredDecoder(context.meters)
        self._other_places = options.other_places.detach()
        self._chunks = ChunkReader(
            source,
            partial(read_places, self._other_places),
            BlockCache(ELSEWHERE_BYTES),
            partial(MeteredDecoder, context.meters),
        )
        self._target = Target(options.target, f"restore-{options.index}")
        self._parts = PartFiles(self._target)
        self._long_fields = options.long_fields.detach()
        self._maker = ItemMaker(context, self._target, self._long_fields)
        self._hashed: dict[int, Begun] = {}

    def close(self) -> None:
        """Release descriptors: inline, the process goes on."""
        self._parts.close_all()
        self._target.close()
        os.close(self._long_fields)
        os.close(self._other_places)

    @property
    def figures(self) -> ReadFigures:
        return self._readers.source.figures

    def make_items(self, kind: int, batch: Batch, outcomes: Outcomes) -> None:
        """Make the objects of an ITEM_DTYPE batch."""
        self._maker.make_all(kind, batch, outcomes, lambda item: self._hashed.pop(item.row, None))

    def settle(self, kind: int, task: Batch, outcomes: Outcomes) -> None:
        """Let what a task made take the place of what it replaces. What can't is not restored after all."""
        places: dict[bytes, int] = {}
        before = self._target.replaced
        for path, reason in self._target.settle():
            places = places or {each: number for number, each in enumerate(self._paths(task))}
            row = task.rows[places[path]]
            outcomes.failed(int(row["row"]), -1, reason)
            if kind == messages.PLAN or (kind == messages.ITEMS and row["multi"] >= 0):
                outcomes.bytes -= int(row["size"])
            outcomes.files -= kind == messages.PLAN or int(row["kind"]) in CONTENTS
        outcomes.replaced += self._target.replaced - before

    def _paths(self, task: Batch) -> Iterator[bytes]:
        for path, long in zip(task.all_bytes("path"), task.rows["long"].tolist(), strict=True):
            yield read_fields(self._long_fields, long).path if long else path

    def close_parts(self, outcomes: Outcomes) -> None:
        """Close what a task wrote of larger files: what can't be closed may not be there."""
        for row, reason in self._parts.close_all().items():
            outcomes.lost(row, f"writing it failed: {reason}")

    def hash(self, batch: Batch) -> None:
        """Hash large files (HASH_DTYPE) as far as they are written, while others of their parts are on their way."""
        self._context.clock.switch(VERIFY)
        for row, end in zip(*(batch.rows[name].tolist() for name in ("row", "end")), strict=True):
            if not end:
                self._hashed.pop(row, None)
                continue
            begun = self._hashed.setdefault(row, Begun())
            try:
                begun.read(self._parts.get(row), end)
            except OSError:
                del self._hashed[row]  # it is read back when it is complete, and then fails by its name

    def restore(self, batch: Batch, outcomes: Outcomes) -> None:
        """Fetch the blocks of a PLAN_DTYPE batch and write what they hold."""
        rows = batch.rows
        columns = (batch.all_bytes(name) for name in ("path", "fixity", "xattrs"))
        texts = list(zip(*columns, rows["long"].tolist(), strict=True))
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
            self._write_elsewhere(rows[slice(*blocks[0])], texts[slice(*blocks[0])], outcomes, str(error))
            return
        clock.count(FETCH, len(blocks), length)
        for first, last in blocks:
            row = rows[first]
            at = int(row["block_offset"]) - start
            clock.switch(DECOMPRESS)
            try:
                raw = self._decoder.decode(int(row["codec"]), data[at : at + int(row["stored"])], int(row["raw"]))
            except DrystoneError as error:
                reason = f"pack {place.pack_id}: {error}"
                self._write_elsewhere(rows[first:last], texts[first:last], outcomes, reason)
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

    def _write_elsewhere(
        self,
        rows: npt.NDArray[np.void],
        texts: list[Texts],
        outcomes: Outcomes,
        reason: str,
        raw: memoryview | None = None,
        is_good: Sequence[bool] = (),
    ) -> None:
        """Write the chunks of rows whose place failed from other places that they have; what no other place gives back
        fails for this `reason`. Those that are good in their block, `raw`, are taken from there."""
        rows, gathered = rows.copy(), bytearray()
        places: dict[bytes, tuple[int, int] | None] = {}
        for number, row in enumerate(rows):
            chunk_id = row["chunk_id"].tobytes()
            if chunk_id not in places:
                start, length = int(row["chunk_offset"]), int(row["length"])
                if raw is not None and is_good[number]:
                    chunk: bytes | memoryview | None = raw[start : start + length]
                else:
                    where = row["pack_id"].tobytes(), int(row["block"]), start, length
                    chunk = self._chunks.elsewhere(chunk_id, where)
                    outcomes.elsewhere += chunk is not None
                places[chunk_id] = None if chunk is None else (len(gathered), len(chunk))
                gathered += chunk or b""
            if (place := places[chunk_id]) is not None:
                row["chunk_offset"], row["length"] = place
        found = np.array([places[row["chunk_id"].tobytes()] is not None for row in rows])
        for row, multi in zip(rows["row"][~found].tolist(), rows["multi"][~found].tolist(), strict=True):
            outcomes.failed(row, multi, reason)
        self._write_chunks(memoryview(gathered), rows[found], _those(texts, found), outcomes)

    def _write_block(self, raw: memoryview, rows: npt.NDArray[np.void], texts: list[Texts], outcomes: Outcomes) -> None:
        clock = self._context.clock
        clock.switch(VERIFY)
        ids = rows["chunk_id"].tobytes()
        offsets, lengths = rows["chunk_offset"].tolist(), rows["length"].tolist()
        good: list[bool] = []
        place, named, fine = (-1, -1), b"", False
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            identity = ids[number * 32 : number * 32 + 32]
            if (offset, length) != place or identity != named:  # a chunk that several objects need is hashed once
                place, named, chunk = (offset, length), identity, raw[offset : offset + length]
                fine = len(chunk) == length and chunk_is_good(identity, chunk)
            good.append(fine)
        clock.count(VERIFY, len(rows), len(raw))
        if all(good):
            self._write_chunks(raw, rows, texts, outcomes)
        else:
            reason = "a chunk is damaged: its bytes do not match its id"
            self._write_elsewhere(rows, texts, outcomes, reason, raw, good)

    def _write_chunks(
        self, raw: memoryview, rows: npt.NDArray[np.void], texts: list[Texts], outcomes: Outcomes
    ) -> None:
        """Write verified chunks, which lie in `raw`."""
        self._context.clock.switch(ASSEMBLE)
        in_parts = rows["multi"] >= 0
        if in_parts.any():
            self._write_parts(raw, rows[in_parts], outcomes)
        if not in_parts.all():
            whole = np.flatnonzero(~in_parts)
            self._write_whole(raw, rows[whole], [texts[number] for number in whole], outcomes)

    def _write_parts(self, raw: memoryview, rows: npt.NDArray[np.void], outcomes: Outcomes) -> None:
        """Write chunks of objects in many blocks: those that lie side by side in the block as in their object, at
        once."""
        rows = rows[np.lexsort((rows["file_offset"], rows["row"]))]
        columns = (rows[name].astype(np.int64) for name in ("row", "multi", "chunk_offset", "file_offset", "length"))
        owner, multi, source, target, length = columns
        follows = (
            (owner[1:] == owner[:-1])
            & (source[1:] == source[:-1] + length[:-1])
            & (target[1:] == target[:-1] + length[:-1])
        )
        starts = np.flatnonzero(np.concatenate(([True], ~follows)))
        counts = np.diff(np.append(starts, len(rows)))
        sums = np.add.reduceat(length, starts)
        runs = zip(*(column.tolist() for column in (owner[starts], multi[starts], source[starts], target[starts], sums,
                                                    counts, rows["size"][starts])), strict=True)  # fmt: skip
        for row, number, at, offset, size, count, whole in runs:
            try:
                self._parts.write(row, offset, raw[at : at + size])
            except OSError as error:
                outcomes.failed(row, number, f"writing it failed: {error.strerror}")
                continue
            outcomes.passed += size
            outcomes.parts(row, number, count)
            if whole >= LARGE_FILE:
                outcomes.written(row, offset, size)

    def _write_whole(self, raw: memoryview, rows: npt.NDArray[np.void], texts: list[Texts], outcomes: Outcomes) -> None:
        """Write objects of which this block holds all chunks."""
        gathered: dict[int, list[int]] = {}
        columns = [
            rows[name].tolist()
            for name in (
                "row",
                "size",
                "chunk_offset",
                "length",
                "file_offset",
                "leads",
                "mode",
                "uid",
                "gid",
                "mtime_ns",
            )
        ]
        for number, (row, size, at, length, _, leads, mode, uid, gid, mtime) in enumerate(zip(*columns, strict=True)):
            if length == size:
                attributes = Attributes(mode, uid, gid, mtime, size)
                self._write_file(row, leads, texts[number], [raw[at : at + length]], attributes, outcomes)
            else:
                gathered.setdefault(row, []).append(number)
        _, sizes, starts, lengths, offsets, *rest = columns
        for row, numbers in gathered.items():
            numbers.sort(key=offsets.__getitem__)
            first = numbers[0]
            pieces = [raw[starts[number] : starts[number] + lengths[number]] for number in numbers]
            leads, mode, uid, gid, mtime = (column[first] for column in rest)
            if [offsets[number] for number in numbers] != list(accumulate(map(len, pieces[:-1]), initial=0)):
                outcomes.failed(row, -1, "the manifests do not place its chunks side by side")
            if not outcomes.is_failed(row):
                attributes = Attributes(mode, uid, gid, mtime, sizes[first])
                self._write_file(row, leads, texts[first], pieces, attributes, outcomes)

    def _write_file(
        self, row: int, leads: bool, texts: Texts, pieces: list[Any], attributes: Attributes, outcomes: Outcomes
    ) -> None:
        path, fixity, xattrs, long = texts
        group = row if leads else NO_GROUP
        try:
            if long:
                path, _, xattrs, _ = read_fields(self._long_fields, long)
            attributes = attributes._replace(xattrs=xattrs) if xattrs else attributes
            if sum(map(len, pieces)) != attributes.size:
                raise Unreadable("its chunks do not add up to its size")
            if self._target.wanted(path, attributes, group):
                require_fixity(fixity, pieces)
                trouble = self._target.write_whole(path, pieces, attributes, group)
                if trouble:
                    outcomes.failed(row, -1, trouble)
            else:
                outcomes.in_place += 1
                outcomes.in_place_bytes += attributes.size
            outcomes.files += 1
            outcomes.bytes += attributes.size
            outcomes.passed += attributes.size
        except OSError as error:
            outcomes.failed(row, -1, f"writing it failed: {error.strerror}")
        except DrystoneError as error:
            outcomes.failed(row, -1, str(error))


def _those(texts: list[Texts], mask: npt.NDArray[np.bool_]) -> list[Texts]:
    return [text for text, wanted in zip(texts, mask.tolist(), strict=True) if wanted]


def pack_place(row: np.void) -> PackPlace:
    """The pack of a PLAN_DTYPE row."""
    return PackPlace(
        uuid.UUID(bytes=row["pack_id"].tobytes()),
        ECScheme(int(row["k"]), int(row["m"])),
        int(row["payload"]),
        int(row["shard_length"]),
    )


_TASKS = {
    messages.PLAN: PLAN_DTYPE,
    messages.HASH: HASH_DTYPE,
    messages.ITEMS: ITEM_DTYPE,
    messages.LINKS: ITEM_DTYPE,
}


def restore_station(context: Context, options: RestoreOptions) -> Station:
    """Takes PLAN, HASH, ITEMS and LINKS, answers with OUTCOME_DTYPE reports."""
    context.clock.switch(FETCH)
    restorer = Restorer(context, options)
    size = len(context.slot(f"reports/{options.index}", 0))

    def work(message: Message, view: memoryview) -> Work:
        return done(message.kind, Batch.load(view, _TASKS[message.kind]).copy())

    def done(kind: int, task: Batch) -> Work:
        outcomes = Outcomes()
        if kind == messages.PLAN:
            restorer.restore(task, outcomes)
        elif kind == messages.HASH:
            restorer.hash(task)
        else:
            restorer.make_items(kind, task, outcomes)
        restorer.close_parts(outcomes)
        if kind != messages.HASH:
            restorer.settle(kind, task, outcomes)
        context.clock.count(ASSEMBLE, outcomes.files, outcomes.passed)
        yield from outcomes.batches(size)

    try:
        yield from fan_station(context, options.index, work, lambda: restorer.figures)
    finally:
        restorer.close()
