"""Reading packs from whatever backends are left: checked cell by cell, decoded row by row where cells are bad or
gone."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from manifests import format as fmt
from manifests.backends import BackendStorage
from manifests.config import ECScheme, placement
from manifests.errors import BackendError, KeyNotFound, Unreadable, UnsupportedFormat
from stages.erasure import ErasureCoder
from stages.errors import DamagedShard
from stages.shard import (
    CellTable,
    ShardRecord,
    cell_count,
    confirmed,
    data_offset,
    file_size,
    shard_key,
    table_size,
)


@dataclass(frozen=True)
class PackPlace:
    """A pack as manifests know it. Lengths in bytes."""

    pack_id: uuid.UUID
    scheme: ECScheme
    payload: int
    shard_length: int


@dataclass
class ReadFigures:
    """What reading cost and met. `bad_cells`: (pack, shard) → cells whose checksum failed; `healed_cells`: those that
    were decoded from others; `missing`: shards that no backend holds readably, with the reason."""

    requests: int = 0
    bytes: int = 0
    healed_cells: int = 0
    bad_cells: dict[tuple[uuid.UUID, int], set[int]] = field(default_factory=dict)
    missing: dict[tuple[uuid.UUID, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenShard:
    """A shard file that was found, with its record's word for what it is."""

    storage: BackendStorage
    key: str
    number: int
    record: ShardRecord
    table: CellTable


class ShardSource:
    """Where shards lie. `backends`: those that answer, by number; `order`: numbers of all, by joining."""

    def __init__(self, store_id: uuid.UUID, backends: Mapping[int, BackendStorage], order: Sequence[int]) -> None:
        self.store_id = store_id
        self._backends = backends
        self._order = order
        self.figures = ReadFigures()

    def candidates(self, place: PackPlace, index: int) -> Iterator[tuple[int, BackendStorage]]:
        """Backends to look on for a shard: first where the placement rule puts it, then all others."""
        first = placement(place.scheme, self._order, place.pack_id)[index]
        for number in sorted(self._backends, key=lambda number: number != first):
            yield number, self._backends[number]

    def read(self, storage: BackendStorage, key: str, offset: int, length: int) -> bytes:
        """A ranged read, counted."""
        self.figures.requests += 1
        data = storage.read_range(key, offset, length)
        self.figures.bytes += len(data)
        return data

    def open(self, place: PackPlace, index: int) -> OpenShard | None:
        """Shard `index` from the first backend that holds it with a readable record, or None."""
        reasons = []
        for number, storage in self.candidates(place, index):
            key = shard_key(place.pack_id, index)
            try:
                return self._open_on(storage, key, number, place, index)
            except (BackendError, DamagedShard, UnsupportedFormat) as error:
                if not isinstance(error, KeyNotFound):
                    reasons.append(str(error))
        self.figures.missing[(place.pack_id, index)] = "; ".join(reasons) or "it is on no backend that answers"
        return None

    def _open_on(self, storage: BackendStorage, key: str, number: int, place: PackPlace, index: int) -> OpenShard:
        head_size = data_offset(place.shard_length)
        head = self.read(storage, key, 0, head_size)
        try:
            record = self._own_record(head[: fmt.RECORD_SIZE], place, index)
            table = head[fmt.RECORD_SIZE :]
            if confirmed(table, record):
                return OpenShard(storage, key, number, record, CellTable(table, table))
        except DamagedShard:
            record, table = None, b""
        # The head is damaged: the same stands again at the end.
        tail = self.read(storage, key, file_size(place.shard_length) - head_size, head_size)
        size = table_size(place.shard_length)
        if record is None:
            record = self._own_record(tail[size:], place, index)
        if confirmed(tail[:size], record):
            return OpenShard(storage, key, number, record, CellTable(tail[:size], tail[:size]))
        return OpenShard(storage, key, number, record, CellTable(head[fmt.RECORD_SIZE :], tail[:size]))

    def _own_record(self, sealed: bytes, place: PackPlace, index: int) -> ShardRecord:
        record, _ = ShardRecord.parse(sealed)
        identity = (record.store_id, record.pack_id, record.index, record.payload, record.scheme)
        if identity != (self.store_id, place.pack_id, index, place.payload, place.scheme):
            raise DamagedShard(f"the file of shard {index} of pack {place.pack_id} holds another shard")
        return record


class PackReader:
    """Reads one pack. Not for several threads at once."""

    def __init__(self, source: ShardSource, place: PackPlace, coder: ErasureCoder) -> None:
        self._source = source
        self._place = place
        self._coder = coder
        self._shards: dict[int, OpenShard | None] = {}

    def shard(self, index: int) -> OpenShard | None:
        """Shard `index`, opened once, or None when there is no readable one."""
        if index not in self._shards:
            self._shards[index] = self._source.open(self._place, index)
        return self._shards[index]

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes of the payload from `offset`. Raises Unreadable when too few good cells are left."""
        if offset < 0 or length < 0 or offset + length > self._place.payload:
            raise Unreadable(f"pack {self._place.pack_id} has no bytes {offset} to {offset + length}")
        pieces, each = [], self._place.shard_length
        while length > 0:
            index, start = divmod(offset, each)
            count = min(length, each - start)
            pieces.append(self._shard_bytes(index, start, count))
            offset, length = offset + count, length - count
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check(self, index: int, first: int, last: int) -> None:
        """Read the cells `first` to `last` (exclusive) of a shard only to note which are bad."""
        self._good_cells(index, first, last)

    def _shard_bytes(self, index: int, start: int, length: int) -> bytes:
        first, last = start // fmt.CELL_SIZE, -(-(start + length) // fmt.CELL_SIZE)
        data, bad = self._good_cells(index, first, last)
        if bad:
            data = self._decoded(index, first, last, data, bad)
        at = start - first * fmt.CELL_SIZE
        return data[at : at + length]

    def _good_cells(self, index: int, first: int, last: int) -> tuple[bytes, list[int]]:
        """Cells of a shard as they lie on its backend, and the numbers of those that are bad or missing."""
        start, end = first * fmt.CELL_SIZE, min(last * fmt.CELL_SIZE, self._place.shard_length)
        shard = self.shard(index)
        if shard is None:
            return b"", list(range(first, last))
        try:
            data = self._source.read(
                shard.storage, shard.key, data_offset(self._place.shard_length) + start, end - start
            )
        except BackendError as error:
            self._source.figures.missing[(self._place.pack_id, index)] = str(error)
            self._shards[index] = None
            return b"", list(range(first, last))
        view = memoryview(data)
        bad = [
            number
            for number in range(first, last)
            if not self._is_good(shard, number, view[number * fmt.CELL_SIZE - start :][: fmt.CELL_SIZE])
        ]
        if bad:
            self._source.figures.bad_cells.setdefault((self._place.pack_id, index), set()).update(bad)
        return data, bad

    def _is_good(self, shard: OpenShard, number: int, cell: memoryview) -> bool:
        length = min(fmt.CELL_SIZE, self._place.shard_length - number * fmt.CELL_SIZE)
        return len(cell) == length and shard.table.is_good(number, cell)

    def _decoded(self, index: int, first: int, last: int, data: bytes, bad: list[int]) -> bytes:
        """`data` with its bad cells decoded from the other shards."""
        total = min(last * fmt.CELL_SIZE, self._place.shard_length) - first * fmt.CELL_SIZE
        whole = bytearray(data.ljust(total, b"\0"))
        for start, end in _runs(bad):
            at = (start - first) * fmt.CELL_SIZE
            piece = self._decode_rows(index, start, end)
            whole[at : at + len(piece)] = piece
            self._source.figures.healed_cells += end - start
        return bytes(whole)

    def _decode_rows(self, index: int, first: int, last: int) -> bytes:
        """Rows `first` to `last` of data shard `index` from the good cells of others: in one go from k shards without a
        flaw there, else row by row."""
        k = self._place.scheme.k
        whole: dict[int, bytes] = {}
        cells: dict[int, tuple[bytes, set[int]]] = {}
        for other in self._other_shards(index):
            data, bad = self._good_cells(other, first, last)
            if not bad:
                whole[other] = data
            elif data:
                cells[other] = (data, set(bad))
            if len(whole) == k:
                return self._coder.decode(whole)[index]
        if last - first == 1 or not cells:
            raise Unreadable(
                f"pack {self._place.pack_id}: only {len(whole)} good cells are left in rows {first} to {last - 1}, "
                f"{k} are needed"
            )
        return b"".join(self._decode_rows(index, row, row + 1) for row in range(first, last))

    def _other_shards(self, index: int) -> list[int]:
        return [other for other in range(self._place.scheme.total_shards) if other != index]

    @property
    def cells(self) -> int:
        """Cells of each shard."""
        return cell_count(self._place.shard_length)


class PackReaders:
    """The packs that were read last, opened once. Not for several threads at once."""

    def __init__(self, source: ShardSource, capacity: int = 8) -> None:
        self.source = source
        self._capacity = capacity
        self._open: OrderedDict[uuid.UUID, PackReader] = OrderedDict()
        self._coders: dict[ECScheme, ErasureCoder] = {}

    def get(self, place: PackPlace) -> PackReader:
        reader = self._open.pop(place.pack_id, None)
        if reader is None:
            if place.scheme not in self._coders:
                self._coders[place.scheme] = ErasureCoder(place.scheme)
            reader = PackReader(self.source, place, self._coders[place.scheme])
        self._open[place.pack_id] = reader
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)
        return reader


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbours in a sorted list, as (first, last + 1)."""
    start = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield start, previous + 1
            start = number
        previous = number
    yield start, previous + 1
