"""Bytes in, durable packs out: the stages of an ingest in one process, slot by slot.

Contents are cut and named where they were read; small ones share a slot, long ones go on in the next, the bytes behind
the last sure boundary carried to its head. A full slot's new chunks become blocks, and these go to the pack writer.
Memory is a few slots and two packs, whatever comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from manifests import format as fmt
from manifests.config import CodecSpec, StoreConfig
from manifests.errors import UsageError
from manifests.index import Ids, Lengths, Mask
from pipeline.errors import PipelineError
from pipeline.ingest.chunktable import CHUNK_REF, ChunkTable, extent_rows
from pipeline.ingest.compress import Gather, make_blocks
from pipeline.metrics.codec import BlockCounter
from pipeline.metrics.figures import StoreFigures
from pipeline.packwriter import DurablePack, PackOptions, PackWriter
from pipeline.station import StageClock
from pipeline.topology import INGEST_STAGES, SLOT_FILES, IngestShape
from stages.chunk import Chunker, ContentHasher, chunk_id, chunk_ids
from stages.compress import BlockShaper, Encoder

Rows = npt.NDArray[np.void]
Extents = Callable[[Rows], None]
_EMPTY_DIGEST = blake3(b"").digest()


class ChunkIndex(Protocol):
    """What an intake needs of an index (manifests/index.py)."""

    def put_batch(self, ids: Ids, lengths: Lengths) -> Mask: ...


class BinaryReader(Protocol):
    """Anything with `read`; where it has `readinto`, bytes are copied once less."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Content:
    """A content that was taken in: `kind` and `content_id` as in table objects; `size` in bytes."""

    kind: int
    content_id: bytes
    digest: bytes
    size: int
    md5: str | None


@dataclass
class _Open:
    """The content that is being taken in; `offset`: where its next byte belongs."""

    row: int
    extents: Extents
    md5: Any
    hasher: ContentHasher = field(default_factory=ContentHasher)
    offset: int = 0
    chunks: int = 0
    first_id: bytes = b""


@dataclass
class _Compressor:
    encoder: Encoder
    counter: BlockCounter
    shaper: BlockShaper = field(default_factory=BlockShaper)


class Intake:
    """One batch on its way into packs. Owned by one thread; unusable after an error of a backend. `on_pack` hears of
    each pack that is durable."""

    def __init__(
        self,
        config: StoreConfig,
        shape: IngestShape,
        packs: PackOptions,
        index: ChunkIndex,
        on_pack: Callable[[DurablePack], None],
        figures: StoreFigures,
    ) -> None:
        self._config = config
        self._index = index
        self._on_pack = on_pack
        self._chunker = Chunker(config.chunker, config.seed)
        self._payload, self._max_blocks = shape.payload, shape.max_blocks
        self._view = memoryview(bytearray(shape.payload))
        self._target = memoryview(bytearray(shape.payload))
        self._gather = Gather(shape.payload)
        self._table = ChunkTable()
        self._fill = 0
        self._slots = 0
        self._whole = True
        self._codec = config.codec
        self._compressors: dict[CodecSpec, _Compressor] = {}
        self._meters = figures.meters
        clock = StageClock(np.zeros((len(INGEST_STAGES), 4), np.uint64))
        meters = figures.meters if figures.backends else None  # only where metrics are wanted
        self.writer = PackWriter(packs, clock, lambda item: None, meters)
        self.deduplicated = 0

    # --- contents ----------------------------------------------------------------------------------------------------

    def take(
        self, reader: BinaryReader, row: int, extents: Extents, codec: CodecSpec | None = None, md5: bool = True
    ) -> Content:
        """Read a content to its end. `extents` gets those of it (ROW_EXTENT_DTYPE) for object `row`, if it has several.
        What `reader` raises passes through; then nothing of it is left in the slot, though chunks may be in packs."""
        self._use(codec or self._config.codec)
        if len(self._table) >= SLOT_FILES:
            self.flush()
        start, chunks, slots = self._fill, len(self._table), self._slots
        try:
            return self._take(reader, row, extents, md5)
        except BaseException:
            if self._slots == slots:
                self._fill = start
                self._table.cut(chunks)
            else:
                self._fill = 0
                self._table.cut(0)
            raise

    def _take(self, reader: BinaryReader, row: int, extents: Extents, md5: bool) -> Content:
        start = self._fill
        length, ended = _fill(reader, self._view[start:])
        if ended and length <= self._config.chunker.minimum:
            return self._one_chunk(start, length, md5)
        content = _Open(row, extents, hashlib.md5(usedforsecurity=False) if md5 else None)
        end = start + length
        while True:
            lengths = self._chunker.cut(self._view[start:end], ended)
            covered = sum(lengths)
            self._name(content, start, lengths)
            if content.md5 is not None:
                content.md5.update(self._view[start : start + covered])
            content.offset += covered
            self._fill = start + covered
            if ended:
                break
            tail = bytes(self._view[self._fill : end])
            self.flush()
            self._view[: len(tail)] = tail
            length, ended = _fill(reader, self._view[len(tail) :])
            start, end = 0, len(tail) + length
        whole = content.chunks == 1
        return Content(
            fmt.CONTENT_CHUNK if whole else fmt.CONTENT_EXTENTS,
            content.first_id if whole else content.hasher.content_id(content.offset),
            content.hasher.digest(),
            content.offset,
            None if content.md5 is None else content.md5.hexdigest(),
        )

    def _one_chunk(self, start: int, length: int, md5: bool) -> Content:
        data = self._view[start : start + length]
        tag = hashlib.md5(data, usedforsecurity=False).hexdigest() if md5 else None
        if not length:
            return Content(fmt.CONTENT_NONE, b"", _EMPTY_DIGEST, 0, tag)
        identity = chunk_id(data)
        self._table.add(start, length, identity)
        self._fill = start + length
        return Content(fmt.CONTENT_CHUNK, identity, identity, length, tag)

    def _name(self, content: _Open, start: int, lengths: list[int]) -> None:
        """Add chunks that lie one after the other from `start` to the slot's table and to the content."""
        if not lengths:
            return
        data = self._view[start : start + sum(lengths)]
        ids = chunk_ids(data, lengths)
        content.hasher.add_bytes(data)
        self._table.add_run(start, lengths, ids)
        rows = extent_rows(content.row, content.offset, lengths, ids)
        content.hasher.add_extents(rows)
        content.extents(rows)
        content.first_id = content.first_id or ids[0]
        content.chunks += len(lengths)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def take_chunk(self, identity: bytes, data: bytes | memoryview) -> None:
        """Take a chunk that somebody else has cut and that was checked."""
        if len(data) > self._payload:
            refs = np.zeros(1, CHUNK_REF)
            refs["length"], refs["id"] = len(data), np.frombuffer(identity, np.uint8)
            self._store(memoryview(data), refs, memoryview(bytearray(len(data))))
            return
        if self._fill + len(data) > self._payload or len(self._table) >= SLOT_FILES:
            self.flush()
        self._view[self._fill : self._fill + len(data)] = data
        self._table.add(self._fill, len(data), identity)
        self._fill += len(data)

    # --- slots -------------------------------------------------------------------------------------------------------

    def _use(self, codec: CodecSpec) -> None:
        if codec != self._codec:
            self.flush()
            self._codec = codec

    def flush(self) -> None:
        """Empty the slot: its new chunks go into the pack that is being filled."""
        refs, self._fill, self._slots = self._table.take(), 0, self._slots + 1
        if len(refs):
            self._store(self._view, refs, self._target)

    def _store(self, source: memoryview, refs: Rows, target: memoryview) -> None:
        """Whatever goes wrong here, chunks count as known that are in no pack: then all of the batch is given up."""
        self._require_whole()
        self._whole = False
        self._store_new(source, refs, target)
        self._whole = True

    def _require_whole(self) -> None:
        if not self._whole:
            raise PipelineError("an earlier part of the batch could not be stored, so nothing of it is committed")

    def _store_new(self, source: memoryview, refs: Rows, target: memoryview) -> None:
        fresh = refs[self._index.put_batch(refs["id"], refs["length"])]
        self.deduplicated += len(refs) - len(fresh)
        if not len(fresh):
            return
        squeeze = self._compressors.get(self._codec)
        if squeeze is None:
            squeeze = self._compressors[self._codec] = _Compressor(
                Encoder(self._codec), BlockCounter(self._meters, self._codec.name)
            )
        blocks, chunks = make_blocks(
            squeeze.encoder,
            squeeze.shaper,
            self._gather,
            source,
            fresh,
            target,
            self._max_blocks,
            squeeze.counter,
        )
        self._hear(self.writer.add(target, blocks, chunks))

    def _hear(self, packs: Iterator[DurablePack]) -> None:
        for pack in packs:
            self._on_pack(pack)

    def finish(self) -> None:
        """All that was taken in is durable when this returns; the intake can't be used any more."""
        self._require_whole()
        self.flush()
        self._hear(self.writer.finish())

    def close(self) -> None:
        """Give up."""
        self.writer.close()


def _fill(reader: BinaryReader, target: memoryview) -> tuple[int, bool]:
    """Read until `target` is full or the reader ends: (bytes, ended). Raises UsageError where it is no binary reader
    that blocks."""
    into: Callable[[memoryview], int | None] | None = getattr(reader, "readinto", None)
    if into is None and not callable(getattr(reader, "read", None)):
        raise UsageError(f"a {type(reader).__name__} is no reader: it has no read(); wrap bytes in io.BytesIO")
    done = 0
    while done < len(target):
        room = len(target) - done
        count = into(target[done:]) if into is not None else _read(reader, target[done:])
        if count is None:
            raise UsageError("the reader has nothing to give yet; a put needs one that blocks")
        if not isinstance(count, int) or not 0 <= count <= room:
            raise UsageError(f"the reader says that it gave {count!r} bytes, of {room} that it was asked for")
        if not count:
            return done, True
        done += count
    return done, False


def _read(reader: BinaryReader, target: memoryview) -> int | None:
    """What `readinto` would do, by `read`."""
    data = reader.read(min(len(target), 1 << 20))
    if data is None:
        return None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UsageError(f"the reader gave {type(data).__name__} instead of bytes; open it in binary mode")
    with memoryview(data).cast("B") as view:
        if len(view) <= len(target):
            target[: len(view)] = view
        return len(view)
