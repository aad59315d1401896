"""Packs: blocks in, durable shards out.

The writer fills packs with blocks and seals them; threads compute parity and checksums and write the shards to their
backends while the next pack fills. A pack is given back only when its shards are durable. Workers of an ingest
(pipeline/ingest/write.py) and puts in the caller's process (pipeline/objects) write by it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.backends import BackendStorage, Place, place_of
from manifests.config import CodecSpec, ECScheme, shards_per_backend, survives_another_loss
from manifests.counts import counted
from manifests.errors import BackendError, BackendFull, TooFewBackends
from manifests.ids import NIL, new_id
from manifests.placement import Seat, is_full, kept_free, place, rooms
from manifests.sizes import format_size
from manifests.storage import Space
from manifests.troubles import together
from pipeline.metrics.backend import MeteredBackend
from pipeline.metrics.meters import Meters
from pipeline.station import StageClock
from pipeline.topology import ENCODE, PACK_BLOCKS, PACK_CHUNKS, WRITE
from stages.compress import Encoder
from stages.erasure import ErasureCoder
from stages.pack import PACK_LENGTHS, PackBuilder, SealedPack, large_buffer
from stages.shard import ShardRecord, cell_table, file_size, shard_key, shard_pieces

if TYPE_CHECKING:
    from manifests.config import StoreConfig
    from manifests.log import State
    from manifests.store import Members
    from pipeline.topology import IngestShape

#: How much more often a preferred backend is drawn than its free space says.
PREFERENCE = 1e6
Rows = npt.NDArray[np.void]

#: A pack's row and its shards' rows on their way home.
PACK_ROW = np.dtype(
    [
        ("pack_id", "u1", (16,)),
        *PACK_LENGTHS,
        ("raw", "<u8"),
    ]
)
SHARD_ROW = np.dtype([("backend", "<u2"), ("present", "u1")])


@dataclass(frozen=True)
class PackOptions:
    """What packs are like and where they go. `backends`: those that answer and may be written to, by number; `absent`:
    why the others don't, by number; `seats`: all that shards may be put on, by joining; `pack_capacity`: bytes of a
    pack's first buffer; `max_blocks`: blocks that one `add` brings at most."""

    max_blocks: int
    store_id: uuid.UUID
    scheme: ECScheme
    codec: CodecSpec
    pack_size: int
    pack_capacity: int
    backends: tuple[tuple[int, Place], ...]
    absent: tuple[tuple[int, str], ...]
    seats: tuple[Seat, ...]
    newest: uuid.UUID = NIL


def pack_options(members: Members, state: State, shape: IngestShape, config: StoreConfig) -> PackOptions:
    """The packs of a run over `state`, of input slots as in `shape`; `config`: with the codec of this run."""
    from manifests.finding import why_absent_by_number  # workers, who write packs, do without

    backends = tuple((m.number, place_of(m.storage)) for m in members.writable)
    absent = tuple(why_absent_by_number(members).items())
    return PackOptions(
        shape.max_blocks, config.store_id, config.scheme, config.codec, config.pack_size, shape.pack_capacity,
        backends, absent, members.seats, state.newest,
    )  # fmt: skip


#: What to do about backends that fail or do not answer.
MEND = "; attach or mend them, or, if they are gone for good, take them out of the store: drystone backend remove ID"


def require_still_safe(members: Members, lacking: Iterable[int], most: int) -> None:
    """Look at all backends again, right before a record is written: what was unmounted, replaced or removed meanwhile
    does not count. Raises TooFewBackends where then not every pack of the run would survive the loss of one more
    backend; `lacking`: backends that lack shards of the run; `most`: shards that its worst pack lacks."""
    from manifests.membership import drop_removed  # which reads the log; workers, who write packs, do without

    members.confirm()
    drop_removed(members)
    if members.vanished and not survives_another_loss(
        members.config.scheme, len(members.seats), shards_left(members, lacking, most)
    ):
        reasons = "; ".join(members.failed[number] for number in sorted(members.vanished))
        raise TooFewBackends(f"what was stored would not be safe, so it was not committed: {reasons}")


def shards_left(members: Members, lacking: Iterable[int], most: int) -> list[int]:
    """How many shards of a run's worst pack each backend holds, at least, without the backends that vanished."""
    scheme, count = members.config.scheme, len(members.seats)
    each = shards_per_backend(scheme, count)
    gone = min(most + each * len(members.vanished), each * len(members.vanished.union(lacking)))
    held, left = [], scheme.total_shards - gone
    while left > 0:
        held.append(min(each, left))
        left -= each
    return held


@dataclass(frozen=True)
class DurablePack:
    """A pack whose shards are durable, all that could be written: `row` (PACK_ROW) and `shards` (SHARD_ROW), `blocks`
    (BLOCK_DTYPE), `chunks` (CHUNK_DTYPE). Its arrays are its own."""

    row: Any
    shards: Rows
    blocks: Rows
    chunks: Rows

    @property
    def pack_id(self) -> uuid.UUID:
        return uuid.UUID(bytes=self.row["pack_id"].tobytes())


@dataclass
class PackUnderWay:
    """A sealed pack whose shards are being made and written: shard i for backend `places[i]`. `writes`: what comes of
    each, in the order of the shards, once parity and checksums are there."""

    pack_id: uuid.UUID
    sealed: SealedPack
    shard_length: int
    parity: memoryview
    places: list[int]
    writes: Future[list[Future[None]]]


class PackWriter:
    """Packs of one writer. Unusable after an error. `preferred`: number of a backend that packs are to have a shard on,
    if placement lets them."""

    def __init__(
        self, options: PackOptions, clock: StageClock, at: Callable[[str], None], meters: Meters | None = None
    ) -> None:
        """`clock` counts, and so do `meters` what is asked of backends; `at` hears which pack is being written."""
        self._options = options
        self._clock = clock
        self._at = at
        self._coder = ErasureCoder(options.scheme)
        self._encoder = Encoder(options.codec)
        self._builders = [PackBuilder(options.pack_capacity), PackBuilder(options.pack_capacity)]
        self._parities = [large_buffer(1), large_buffer(1)]
        self._blocks = self._chunks = 0
        self._under_way: PackUnderWay | None = None
        self._newest = options.newest
        self._storages: dict[int, BackendStorage] = {number: place.open() for number, place in options.backends}
        if meters is not None:
            self._storages = {number: MeteredBackend(each, meters, number) for number, each in self._storages.items()}
        #: Backends that failed, by number, and why. Nothing more is written to them.
        self.failed: dict[int, str] = {}
        self._encoding = ThreadPoolExecutor(1, "encode")
        self._threads = ThreadPoolExecutor(min(8, len(options.seats)), "shard")
        self.preferred: int | None = None

    def add(self, data: memoryview, blocks: Rows, chunks: Rows) -> Iterator[DurablePack]:
        """Append blocks (BLOCK_DTYPE) that lie in `data`, with their chunks (CHUNK_DTYPE); copies. A full pack is
        sealed. Yields the packs that have become durable. Raises BackendFull, TooFewBackends."""
        self._clock.switch(ENCODE)
        self._builders[0].add(data, blocks, chunks)
        self._blocks += len(blocks)
        self._chunks += len(chunks)
        full = self._builders[0].fill >= self._options.pack_size
        if full or self._blocks >= PACK_BLOCKS - self._options.max_blocks or self._chunks >= PACK_CHUNKS:
            yield from self._seal()

    def finish(self) -> Iterator[DurablePack]:
        """Seal what is left; yields what was not durable yet. The writer can't be used any more."""
        if self._blocks:
            yield from self._seal()
        yield from self._settle()
        self.close()

    def close(self) -> None:
        """Wait for what is being written; a pack that was not given back is nobody's."""
        self._encoding.shutdown()
        self._threads.shutdown()
        for storage in self._storages.values():
            storage.close()

    def _seal(self) -> Iterator[DurablePack]:
        scheme = self._options.scheme
        sealed = self._builders[0].seal(self._encoder, scheme)
        yield from self._settle()
        self._clock.switch(ENCODE)
        length = scheme.shard_length(sealed.length)
        if len(self._parities[0]) < scheme.m * length:
            self._parities[0] = large_buffer(scheme.m * length)
        parity = memoryview(self._parities[0])[: scheme.m * length]
        pack_id = self._newest = new_id(self._newest)
        self._at(f"pack {pack_id}")
        places = self._places(pack_id, length)
        writes = self._encoding.submit(self._make_shards, pack_id, sealed, length, parity, places)
        self._clock.count(ENCODE, 1, sealed.length)
        self._under_way = PackUnderWay(pack_id, sealed, length, parity, places, writes)
        self._builders.reverse()
        self._parities.reverse()
        self._blocks = self._chunks = 0

    def _places(self, pack_id: uuid.UUID, shard_length: int) -> list[int]:
        """The backend of each shard."""
        spaces = {number: self._space(number) for number in self._storages}
        found = rooms(self._options.seats, spaces, file_size(shard_length))
        if self.preferred in found:
            room = found[self.preferred]
            found[self.preferred] = replace(room, weight=room.weight * PREFERENCE)
        return place(self._options.scheme, self._options.seats, pack_id, found)

    def _make_shards(
        self, pack_id: uuid.UUID, sealed: SealedPack, length: int, parity: memoryview, places: list[int]
    ) -> list[Future[None]]:
        """Encode a pack and have its shards written, each as soon as its checksums are there. Runs in a thread."""
        options, k = self._options, self._options.scheme.k
        self._coder.parity(sealed.payload, length, parity)
        writes = []
        for index, number in enumerate(places):
            source, at = (sealed.payload, index) if index < k else (parity, index - k)
            data = source[at * length : (at + 1) * length]
            table = cell_table(data)
            record = ShardRecord.of(options.store_id, pack_id, index, options.scheme, sealed, length, table)
            pieces = shard_pieces(record, table, data)
            writes.append(self._threads.submit(self._put, number, shard_key(pack_id, index), pieces))
        return writes

    def _space(self, number: int) -> Space:
        try:
            return self._storages[number].space()
        except BackendError:
            return Space(0, 0)  # not known; writing to it will tell what ails it

    def _put(self, number: int, key: str, pieces: Any) -> None:
        storage = self._storages.get(number)
        if storage is None:
            raise BackendError(self.failed.get(number) or dict(self._options.absent)[number])
        space, size = self._space(number), sum(map(len, pieces))
        if is_full(space, size):
            raise BackendFull(
                f"writing {storage.location}/{key}: No space left on device beyond the {format_size(kept_free(size))} "
                f"that are kept free: {format_size(space.free)} are free, and a shard takes {format_size(size)}; free "
                "some space or remove the backend"
            )
        storage.write(key, pieces)

    def _settle(self) -> Iterator[DurablePack]:
        """Wait for the pack under way."""
        pack, self._under_way = self._under_way, None
        if pack is None:
            return
        self._clock.switch(ENCODE)
        writes = pack.writes.result()
        self._clock.switch(WRITE)
        shards = np.zeros(len(writes), SHARD_ROW)
        for index, (number, write) in enumerate(zip(pack.places, writes, strict=True)):
            shards[index]["backend"] = number
            error = write.exception()
            if error is None:
                shards[index]["present"] = 1
            elif isinstance(error, BackendError):
                self.failed.setdefault(number, str(error))
                self._storages.pop(number, None)
                if isinstance(error, BackendFull) and not self._storages:
                    raise error
            else:
                raise error
        self._require_safe(shards)
        self._clock.count(WRITE, len(shards), int(shards["present"].sum()) * file_size(pack.shard_length))
        yield self._durable(pack, shards)
        pack.sealed.payload.release()
        pack.parity.release()

    def _require_safe(self, shards: np.ndarray[Any, np.dtype[np.void]]) -> None:
        """Each pack must survive the loss of one more backend (where there is parity), else the run fails."""
        scheme = self._options.scheme
        good = np.bincount(shards["backend"][shards["present"] != 0], minlength=1)
        if not survives_another_loss(scheme, len(self._options.seats), good.tolist()):
            reasons = together(self.failed.values())
            full = any("No space" in reason for reason in self.failed.values())
            raise (BackendFull if full else TooFewBackends)(
                f"{int(good.sum())} of {counted(scheme.total_shards, 'shard')} of a pack could be written, too few to "
                f"be safe, as each pack must survive the loss of one more backend: {reasons}{'' if full else MEND}"
            )

    @staticmethod
    def _durable(pack: PackUnderWay, shards: Rows) -> DurablePack:
        sealed = pack.sealed
        row = np.zeros(1, PACK_ROW)
        row["pack_id"] = np.frombuffer(pack.pack_id.bytes, np.uint8)
        row["payload"], row["shard_length"] = sealed.length, pack.shard_length
        row["directory_offset"], row["directory_stored"] = sealed.directory_offset, sealed.directory_stored
        row["directory_raw"], row["directory_codec"] = sealed.directory_raw, sealed.directory_codec
        row["chunks"], row["raw"] = len(sealed.chunks), int(sealed.blocks["raw"].sum())
        return DurablePack(row[0], shards, sealed.blocks, sealed.chunks)
