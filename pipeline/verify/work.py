"""The verification worker: reads every cell of a pack once, decodes it, and checks every chunk id."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from manifests import format as fmt
from manifests.columns import PIECE_DTYPE, PLAN_DTYPE, Batch
from manifests.directories import directory_sums
from manifests.errors import BackendError, DrystoneError, Unreadable
from manifests.ids import NIL
from pipeline import messages
from pipeline.arena import Message
from pipeline.badmedia import BadMedia
from pipeline.carefulreads import SECTOR
from pipeline.fan import Work, fan_station
from pipeline.handles import FdHandle
from pipeline.metrics.codec import MeteredDecoder
from pipeline.packreader import PackPlace, PackReader, PackReaders, ReadFigures, ShardSource
from pipeline.restore.work import BackendPlaces, pack_place
from pipeline.shardfiles import ShardFile
from pipeline.station import Context, Station
from pipeline.topology import DECOMPRESS, FETCH, VERIFY
from pipeline.trial import block_judge, search
from pipeline.verify.contentwork import ContentVerifier, wrong_contents
from pipeline.verify.findings import (
    BAD_CELLS,
    CHECKED,
    FLAWED_SHARD,
    LOST_CHUNK,
    LOST_DIRECTORY,
    LOST_PACK,
    LOST_PLACE,
    MISLISTED,
    MISSING_SHARD,
    Finding,
    PackFindings,
)
from pipeline.verify.piecework import PieceReader
from pipeline.verify.window import BlockPieces, BlockWindow
from stages.assemble import chunk_is_good
from stages.pack import PACK_LENGTHS, parse_directory
from stages.shard import data_offset, file_size, table_size

#: A pack on its way to a worker. Beside it, as beside planned chunks, are the numbers (u32) of those of its blocks that
#: the pass over large contents decompresses.
PACK_TASK_DTYPE = np.dtype(
    [
        ("pack_id", "u1", (16,)),
        ("k", "u1"),
        ("m", "u1"),
        *PACK_LENGTHS,
        ("block_sum", "<u8"),
        ("chunk_sum", "<u8"),
    ]
)
#: What is read and hashed in one go: it stays in the cache, and its memory is used again.
FETCH_AT_ONCE = 2 << 20
CELLS_AT_ONCE = FETCH_AT_ONCE // fmt.CELL_SIZE
NAMED_CELLS = 8


@dataclass(frozen=True)
class VerifyOptions:
    index: int
    hashers: int
    backends: BackendPlaces
    other_places: FdHandle


class PackVerifier:
    """Checks packs. Owned by one worker."""

    def __init__(self, context: Context, backends: BackendPlaces, media: BadMedia) -> None:
        self._clock = context.clock
        self._readers = PackReaders(backends.source(context.meters, media), capacity=1)
        self._decoder = MeteredDecoder(context.meters)

    @property
    def figures(self) -> ReadFigures:
        return self._readers.source.figures

    def verify(self, task: np.void, covered: np.ndarray) -> PackFindings:
        """Everything that is wrong with a pack; the first finding counts the bytes read. `covered`: numbers of blocks
        that somebody else decompresses, to check all their chunks."""
        findings = PackFindings(task["pack_id"].tobytes())
        figures = self._readers.source.figures
        before = figures.bytes
        self._clock.switch(FETCH)
        try:
            reader = self._readers.get(pack_place(task))
        except DrystoneError as error:
            findings.entries.append(Finding(LOST_PACK, reason=str(error)))
        else:
            for index in range(reader.place.scheme.total_shards):
                reader.shard(index)
            try:
                blocks, chunks = self._directory(reader, task)
            except DrystoneError as error:
                findings.entries.append(Finding(LOST_DIRECTORY, reason=str(error)))
            else:
                if directory_sums(blocks, chunks) != (int(task["block_sum"]), int(task["chunk_sum"])):
                    findings.entries.append(Finding(MISLISTED))
                    covered = covered[:0]  # so say the manifests, of other chunks than these
                is_covered = np.isin(np.arange(len(blocks)), covered)
                self._check_chunks(reader, blocks, chunks, is_covered, findings)
            self._check_rest(reader)
            self._note_shards(reader, findings)
        self._clock.count(FETCH, 1, figures.bytes - before)
        findings.entries.insert(0, Finding(CHECKED, count=figures.bytes - before))
        return findings

    def check_planned(self, rows: np.ndarray, covered: np.ndarray) -> PackFindings:
        """What is lost of the chunks in these rows (PLAN_DTYPE, one pack, by block): for a pack whose directory can't
        be read, out of the manifests. `covered` as above."""
        findings = PackFindings(rows[0]["pack_id"].tobytes())
        numbers, first, inverse = np.unique(rows["block"], return_index=True, return_inverse=True)
        blocks = np.zeros(len(first), fmt.BLOCK_DTYPE)
        for name, column in (("offset", "block_offset"), ("stored", "stored"), ("raw", "raw"), ("codec", "codec")):
            blocks[name] = rows[column][first]
        chunks = np.zeros(len(rows), fmt.CHUNK_DTYPE)
        chunks["block"] = inverse
        for name, column in (("id", "chunk_id"), ("offset", "chunk_offset"), ("length", "length")):
            chunks[name] = rows[column]
        figures = self._readers.source.figures
        try:
            reader = self._readers.get(pack_place(rows[0]))
            self._check_chunks(reader, blocks, chunks, np.isin(numbers, covered), findings)
        except DrystoneError as error:
            self._lose(chunks, str(error), findings)
        for entry in findings.entries:
            entry.kind, entry.block = LOST_PLACE, int(numbers[entry.block])
        figures.bad_cells.clear()
        figures.missing.clear()
        figures.flaws.clear()
        return findings

    def _note_shards(self, reader: PackReader, findings: PackFindings) -> None:
        """Findings about the shards' files, out of the figures and of a look at records and tables."""
        figures = self._readers.source.figures
        for index in range(reader.place.scheme.total_shards):
            file = reader.shard(index)
            flaws = list(frame_flaws(self._readers.source, reader.place, file)) if file is not None else []
            if reason := figures.flaws.get((reader.place.pack_id, index)):
                flaws.append(reason)
            if flaws and (reader.place.pack_id, index) not in figures.missing:
                findings.entries.append(Finding(FLAWED_SHARD, index, reason="; ".join(flaws)))
        for (_, shard), cells in sorted(figures.bad_cells.items()):
            findings.entries.append(Finding(BAD_CELLS, shard, len(cells), reason=_numbers(sorted(cells))))
        for (_, shard), reason in sorted(figures.missing.items()):
            findings.entries.append(Finding(MISSING_SHARD, shard, reason=reason))
        figures.bad_cells.clear()
        figures.missing.clear()
        figures.flaws.clear()

    def _directory(self, reader: PackReader, task: np.void) -> tuple[np.ndarray, np.ndarray]:
        """Blocks and chunks of the pack, by block. Raises where the directory can't be read."""
        codec, raw_length = int(task["directory_codec"]), int(task["directory_raw"])

        def parse(stored: bytes | memoryview) -> tuple[np.ndarray, np.ndarray]:
            return parse_directory(bytes(self._decoder.decode(codec, stored, raw_length)))

        def judge(stored: bytes) -> bool:
            try:
                return len(parse(stored)[1]) == int(task["chunks"])
            except DrystoneError:
                return False

        offset, length = int(task["directory_offset"]), int(task["directory_stored"])
        try:
            stored = reader.read(offset, length)
        except Unreadable:
            stored = search(reader, offset, length, judge)
        blocks, chunks = parse(stored)
        return blocks, chunks[np.argsort(chunks["block"], kind="stable")]

    def _check_chunks(
        self,
        reader: PackReader,
        blocks: np.ndarray,
        chunks: np.ndarray,
        is_covered: np.ndarray,
        findings: PackFindings,
    ) -> None:
        """Check each chunk of these blocks against its id. Those that are covered are only read: their chunks are lost
        where that fails, and otherwise up to who decompresses them."""
        borders = np.searchsorted(chunks["block"], np.arange(len(blocks) + 1))
        for first, last, data in self._fetched(reader, blocks, findings, chunks, borders):
            for number in (first + np.flatnonzero(~is_covered[first:last])).tolist():
                self._check_block(
                    blocks[number],
                    data,
                    int(blocks[first]["offset"]),
                    chunks[borders[number] : borders[number + 1]],
                    findings,
                )
            self._clock.switch(FETCH)

    def _fetched(
        self, reader: PackReader, blocks: np.ndarray, findings: PackFindings, chunks: np.ndarray, borders: np.ndarray
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Runs of blocks with their stored bytes; those that can't be read are noted as lost chunks."""
        first = 0
        while first < len(blocks):
            start, last = int(blocks[first]["offset"]), first + 1
            while (
                last < len(blocks)
                and int(blocks[last]["offset"]) + int(blocks[last]["stored"]) - start <= FETCH_AT_ONCE
            ):
                last += 1
            for begin, end in ((first, last), *((n, n + 1) for n in range(first, last))):
                at = int(blocks[begin]["offset"])
                length = int(blocks[end - 1]["offset"]) + int(blocks[end - 1]["stored"]) - at
                try:
                    data = self._read(reader, blocks[begin:end], chunks[borders[begin] : borders[end]], at, length)
                except DrystoneError as error:
                    if end - begin == 1:
                        self._lose(chunks[borders[begin] : borders[end]], str(error), findings)
                    continue
                yield begin, end, memoryview(data)
                if (begin, end) == (first, last):
                    break
            first = last

    def _read(
        self, reader: PackReader, blocks: np.ndarray, chunks: np.ndarray, at: int, length: int
    ) -> bytes | memoryview:
        """Stored bytes of neighbouring blocks; of a single one that its chunks judge, if need be."""
        if length > max(fmt.BLOCK_MAX, FETCH_AT_ONCE):
            raise Unreadable(f"the directory tells of a block of {length} bytes, which is none")
        try:
            return reader.read(at, length)
        except Unreadable:
            if len(blocks) > 1:
                raise
        ids = [bytes(each) for each in chunks["id"]]
        known = list(zip(ids, chunks["offset"].tolist(), chunks["length"].tolist(), strict=True))
        judge = block_judge(self._decoder, int(blocks[0]["codec"]), int(blocks[0]["raw"]), known)
        return search(reader, at, length, judge)

    def _check_block(
        self, block: np.void, data: memoryview, start: int, chunks: np.ndarray, findings: PackFindings
    ) -> None:
        at = int(block["offset"]) - start
        self._clock.switch(DECOMPRESS)
        try:
            raw = self._decoder.decode(int(block["codec"]), data[at : at + int(block["stored"])], int(block["raw"]))
        except DrystoneError as error:
            self._lose(chunks, str(error), findings)
            return
        self._clock.count(DECOMPRESS, 1, len(raw))
        self._clock.switch(VERIFY)
        ids = chunks["id"].tobytes()
        for number, (offset, length) in enumerate(
            zip(chunks["offset"].tolist(), chunks["length"].tolist(), strict=True)
        ):
            if not chunk_is_good(ids[number * 32 : number * 32 + 32], raw[offset : offset + length]):
                self._lose(chunks[number : number + 1], "its bytes do not match its id", findings)
        self._clock.count(VERIFY, len(chunks), len(raw))

    @staticmethod
    def _lose(chunks: np.ndarray, reason: str, findings: PackFindings) -> None:
        columns = zip(*(chunks[name].tolist() for name in ("block", "offset", "length")), strict=True)
        findings.entries.extend(
            Finding(LOST_CHUNK, 0, 0, bytes(chunk_id), block, offset, length, reason)
            for chunk_id, (block, offset, length) in zip(chunks["id"], columns, strict=True)
        )

    @staticmethod
    def _check_rest(reader: PackReader) -> None:
        """The cells that no block lies in: parity, and padding behind the payload."""
        place, cells = reader.place, reader.cells
        length = place.shard_length
        for index in range(place.scheme.total_shards):
            used = max(0, min(length, place.payload - index * length)) if index < place.scheme.k else 0
            for first in range(-(-used // fmt.CELL_SIZE), cells, CELLS_AT_ONCE):
                reader.check(index, first, min(first + CELLS_AT_ONCE, cells))


def frame_flaws(source: ShardSource, place: PackPlace, file: ShardFile) -> Iterator[str]:
    """What is wrong with a shard file around its data: length, and both copies of table and record."""
    if file.record is None:
        return
    sealed, size = file.record.seal(), table_size(place.shard_length)
    table = file.table.first if file.confirmed else None
    if table is None:
        yield "neither copy of its table of checksums is whole"
    end = data_offset(place.shard_length) + place.shard_length
    try:
        length = file.storage.size(file.key)
        if length != file_size(place.shard_length):
            yield f"it has {length} bytes instead of {file_size(place.shard_length)}"
        for name, at, expected in (
            ("first record", 0, sealed),
            ("first table", fmt.RECORD_SIZE, table),
            ("second table", end, table),
            ("second record", end + size, sealed),
        ):
            if expected is not None and source.read(file.storage, file.key, at, len(expected), SECTOR) != expected:
                yield f"its {name} is damaged"
    except BackendError as error:
        yield str(error)


def _numbers(cells: list[int]) -> str:
    """Numbers of bad cells for people, the first of them."""
    text = ", ".join(map(str, cells[:NAMED_CELLS]))
    return f"{text}, …" if len(cells) > NAMED_CELLS else text


def verify_station(context: Context, options: VerifyOptions) -> Station:
    """Takes TASK (one pack each), PLAN (chunks of one pack) and CONTENTS, and PIECES, whose bytes it hands on as RAW;
    answers with FINDING_DTYPE reports."""
    context.clock.switch(FETCH)
    media, other_places = BadMedia(), options.other_places.detach()
    verifier, contents = PackVerifier(context, options.backends, media), ContentVerifier(context, VERIFY)
    window = BlockWindow(context, options.backends, True, media, other_places)
    pieces = PieceReader(context, options.index, BlockWindow(context, options.backends, False, media, other_places))

    def work(message: Message, view: memoryview) -> Work:
        if message.kind == messages.PIECES:
            return pieces.work(message, Batch.load(view, PIECE_DTYPE).copy())
        if message.kind == messages.CONTENTS:
            batch = Batch.load(view, PIECE_DTYPE).copy()
            return _check_contents(contents, batch, window)
        task = Batch.load(view, PACK_TASK_DTYPE if message.kind == messages.TASK else PLAN_DTYPE).copy()
        covered = np.frombuffer(task.heap, np.uint32)
        context.at(f"pack {uuid.UUID(bytes=task.rows[0]['pack_id'].tobytes())}")
        if message.kind == messages.TASK:
            return verifier.verify(task.rows[0], covered).batches()
        return verifier.check_planned(task.rows, covered).batches()

    try:
        yield from fan_station(context, options.index, work, lambda: verifier.figures)
    finally:
        os.close(other_places)
    for hasher in range(options.hashers):
        context.send(f"raw/{options.index}/{hasher}", Message(messages.END))


def _check_contents(contents: ContentVerifier, batch: Batch, window: BlockWindow) -> Work:
    yield from PackFindings(NIL.bytes, [Finding(CHECKED)]).batches()
    wrong = contents.check(batch, BlockPieces(window, batch.rows))
    if wrong:  # whole as they are in a task, they can be read once more
        wrong = contents.check(batch, BlockPieces(window, batch.rows, sure=True))
    yield from wrong_contents(wrong)
