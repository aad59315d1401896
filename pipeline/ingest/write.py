"""The writer: hosts the stages encode and write.

It fills packs with blocks, seals them, computes parity and checksums, and writes the shards to their backends in
threads while the next pack fills. A pack's rows go home only when its shards are durable.
"""

from __future__ import annotations

import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests import format as fmt
from manifests.backends import BackendStorage, open_backend
from manifests.config import CodecSpec, ECScheme, survives_another_loss
from manifests.errors import BackendError, BackendFull, TooFewBackends
from manifests.ids import NIL, new_id
from manifests.placement import Seat, is_full, place, rooms
from manifests.sizes import format_size
from manifests.storage import Space
from pipeline import messages
from pipeline.arena import Message
from pipeline.metrics.backend import MeteredBackend
from pipeline.station import Acquire, Context, Station, Steps, Take
from pipeline.topology import ENCODE, PACK_BLOCKS, PACK_CHUNKS, SMALL_SLOT, WRITE
from stages.compress import Encoder
from stages.erasure import ErasureCoder
from stages.pack import PackBuilder, SealedPack, large_buffer
from stages.shard import ShardRecord, cell_table, file_size, shard_key, shard_pieces

#: A pack's row and its shards' rows on their way home.
PACK_ROW = np.dtype(
    [
        ("pack_id", "u1", (16,)),
        ("payload", "<u8"),
        ("shard_length", "<u8"),
        ("directory_offset", "<u8"),
        ("directory_stored", "<u4"),
        ("directory_raw", "<u4"),
        ("directory_codec", "u1"),
        ("chunks", "<u4"),
        ("raw", "<u8"),
    ]
)
SHARD_ROW = np.dtype([("backend", "<u2"), ("present", "u1")])
CHUNKS_PER_SLOT = SMALL_SLOT // fmt.CHUNK_DTYPE.itemsize


@dataclass(frozen=True)
class WriteOptions:
    """`backends`: (number, type, location) of those that answer and may be written to; `seats`: all that shards may be
    put on, by joining."""

    index: int
    compressors: int
    payload: int
    max_blocks: int
    store_id: uuid.UUID
    scheme: ECScheme
    codec: CodecSpec
    pack_size: int
    pack_capacity: int
    backends: tuple[tuple[int, str, str], ...]
    seats: tuple[Seat, ...]
    newest: uuid.UUID = NIL


@dataclass
class PackUnderWay:
    """A sealed pack whose shards are being written; `writes` holds (shard, backend, future)."""

    pack_id: uuid.UUID
    sealed: SealedPack
    shard_length: int
    parity: memoryview
    writes: list[tuple[int, int, Future[None]]]


class PackWriter:
    """Packs of one writer. Unusable after an error."""

    def __init__(self, context: Context, options: WriteOptions) -> None:
        self._context = context
        self._options = options
        self._coder = ErasureCoder(options.scheme)
        self._encoder = Encoder(options.codec)
        self._builders = [PackBuilder(options.pack_capacity), PackBuilder(options.pack_capacity)]
        self._parities = [large_buffer(1), large_buffer(1)]
        self._blocks = self._chunks = 0
        self._under_way: PackUnderWay | None = None
        self._newest = options.newest
        self._storages: dict[int, BackendStorage] = {
            number: MeteredBackend(open_backend(kind, location), context.meters, number)
            for number, kind, location in options.backends
        }
        self._failed: dict[int, str] = {}
        self._threads = ThreadPoolExecutor(min(8, len(options.seats)), "shard")

    def add(self, view: memoryview, block_count: int, chunk_count: int) -> Steps:
        """Append the blocks of a slot; a full pack is sealed."""
        payload = self._options.payload
        blocks = np.frombuffer(view, fmt.BLOCK_DTYPE, block_count, payload)
        at = payload + self._options.max_blocks * fmt.BLOCK_DTYPE.itemsize
        chunks = np.frombuffer(view, fmt.CHUNK_DTYPE, chunk_count, at)
        self._context.clock.switch(ENCODE)
        self._builders[0].add(view, blocks, chunks)
        self._blocks += block_count
        self._chunks += chunk_count
        del blocks, chunks
        full = self._builders[0].fill >= self._options.pack_size
        if full or self._blocks >= PACK_BLOCKS - self._options.max_blocks or self._chunks >= PACK_CHUNKS:
            yield from self._seal()

    def finish(self) -> Steps:
        """Seal what is left and wait until all shards are durable."""
        if self._blocks:
            yield from self._seal()
        yield from self._settle()
        self._threads.shutdown()

    def _seal(self) -> Steps:
        options, scheme = self._options, self._options.scheme
        sealed = self._builders[0].seal(self._encoder, scheme)
        yield from self._settle()
        self._context.clock.switch(ENCODE)
        length = scheme.shard_length(sealed.length)
        if len(self._parities[0]) < scheme.m * length:
            self._parities[0] = large_buffer(scheme.m * length)
        parity = memoryview(self._parities[0])[: scheme.m * length]
        self._coder.parity(sealed.payload, length, parity)
        pack_id = self._newest = new_id(self._newest)
        self._context.at(f"pack {pack_id}")
        spaces = {number: self._space(number) for number in self._storages}
        writes = []
        for index, number in enumerate(
            place(scheme, options.seats, pack_id, rooms(options.seats, spaces, file_size(length)))
        ):
            source, at = (sealed.payload, index) if index < scheme.k else (parity, index - scheme.k)
            data = source[at * length : (at + 1) * length]
            writes.append((index, number, self._write_shard(number, pack_id, index, sealed, length, data)))
        self._context.clock.count(ENCODE, 1, sealed.length)
        self._under_way = PackUnderWay(pack_id, sealed, length, parity, writes)
        self._builders.reverse()
        self._parities.reverse()
        self._blocks = self._chunks = 0

    def _write_shard(
        self, number: int, pack_id: uuid.UUID, index: int, sealed: SealedPack, length: int, data: memoryview
    ) -> Future[None]:
        table = cell_table(data)
        record = ShardRecord.of(self._options.store_id, pack_id, index, self._options.scheme, sealed, length, table)
        pieces = shard_pieces(record, table, data)
        return self._threads.submit(self._put, number, shard_key(pack_id, index), pieces)

    def _space(self, number: int) -> Space:
        try:
            return self._storages[number].space()
        except BackendError:
            return Space(0, 0)  # not known; writing to it will tell what ails it

    def _put(self, number: int, key: str, pieces: Any) -> None:
        storage = self._storages.get(number)
        if storage is None:
            raise BackendError(self._failed.get(number, f"backend {number} does not answer"))
        space, size = self._space(number), sum(map(len, pieces))
        if is_full(space, size):
            raise BackendFull(
                f"writing {storage.location}/{key}: No space left on device that is worth the name: "
                f"{format_size(space.free)} are free, and a shard takes {format_size(size)}; free some space or remove "
                "the backend"
            )
        storage.write(key, pieces)

    def _settle(self) -> Steps:
        """Wait for the pack under way, and send its rows home."""
        pack, self._under_way = self._under_way, None
        if pack is None:
            return
        self._context.clock.switch(WRITE)
        shards = np.zeros(len(pack.writes), SHARD_ROW)
        for index, number, write in pack.writes:
            shards[index]["backend"] = number
            error = write.exception()
            if error is None:
                shards[index]["present"] = 1
            elif isinstance(error, BackendError):
                self._failed.setdefault(number, str(error))
                self._storages.pop(number, None)
                if isinstance(error, BackendFull) and not self._storages:
                    raise error
            else:
                raise error
        self._require_safe(shards)
        self._context.clock.count(WRITE, len(shards), int(shards["present"].sum()) * file_size(pack.shard_length))
        yield from self._send_rows(pack, shards)
        pack.sealed.payload.release()
        pack.parity.release()

    def _require_safe(self, shards: np.ndarray[Any, np.dtype[np.void]]) -> None:
        """Each pack must survive the loss of one more backend (where there is parity), else the run fails."""
        scheme = self._options.scheme
        good = np.bincount(shards["backend"][shards["present"] != 0], minlength=1)
        if not survives_another_loss(scheme, len(self._options.seats), good.tolist()):
            reasons = "; ".join(self._failed.values())
            full = any("No space" in reason for reason in self._failed.values())
            raise (BackendFull if full else TooFewBackends)(
                f"{int(good.sum())} of {scheme.total_shards} shards of a pack could be written, "
                f"too few to be safe: {reasons}"
            )

    def _send_rows(self, pack: PackUnderWay, shards: np.ndarray[Any, np.dtype[np.void]]) -> Steps:
        pool, sealed = f"packs/{self._options.index}", pack.sealed
        for start in range(0, len(sealed.chunks), CHUNKS_PER_SLOT):
            part = sealed.chunks[start : start + CHUNKS_PER_SLOT]
            yield from self._send(pool, messages.PACK_CHUNKS, len(part), part.tobytes())
        row = np.zeros(1, PACK_ROW)
        row["pack_id"] = np.frombuffer(pack.pack_id.bytes, np.uint8)
        row["payload"], row["shard_length"] = sealed.length, pack.shard_length
        row["directory_offset"], row["directory_stored"] = sealed.directory_offset, sealed.directory_stored
        row["directory_raw"], row["directory_codec"] = sealed.directory_raw, sealed.directory_codec
        row["chunks"], row["raw"] = len(sealed.chunks), int(sealed.blocks["raw"].sum())
        body = row.tobytes() + shards.tobytes() + sealed.blocks.tobytes()
        yield from self._send(pool, messages.PACK, len(sealed.blocks), body)

    def _send(self, pool: str, kind: int, count: int, body: bytes) -> Steps:
        slot = yield Acquire(pool)
        with self._context.slot(pool, slot) as view:
            view[: len(body)] = body
        self._context.seal(pool, slot)
        self._context.send(pool, Message(kind, slot, amount=count, first=self._options.index))


def write_station(context: Context, options: WriteOptions) -> Station:
    """Takes BLOCKS on blocks/<compressor>/<index>, sends PACK_CHUNKS and PACK on packs/<index>."""
    context.clock.switch(ENCODE)
    writer = PackWriter(context, options)
    rings = tuple(f"blocks/{compressor}/{options.index}" for compressor in range(options.compressors))
    left = len(rings)
    while left:
        _, message = yield Take(rings)
        if message.kind == messages.END:
            left -= 1
            continue
        pool = f"blocks/{message.first}"
        with context.slot(pool, message.slot) as view:
            yield from writer.add(view, message.amount, message.second)
        context.release(pool, message.slot)
    yield from writer.finish()
    context.send(f"packs/{options.index}", Message(messages.END))
