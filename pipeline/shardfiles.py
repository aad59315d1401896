"""Finding the files of a pack's shards on whatever backends are left, and reading what can be read of them.

A file is taken for the shard that its record says. Rot may have taken the record from both ends; then the name alone
says what the file may be, and it is not believed before a chunk id has confirmed it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from manifests import format as fmt
from manifests.backends import BackendStorage
from manifests.config import ECScheme
from manifests.errors import BackendError, KeyNotFound, Unreadable, UnsupportedFormat
from manifests.placement import Seat, likely_places, rooms
from pipeline.carefulreads import SECTOR, CarefulReader
from stages.errors import DamagedShard
from stages.shard import CellTable, ShardRecord, confirmed, data_offset, file_size, shard_key, table_size

#: Why a shard is missing that was looked for everywhere, and met no error.
NOWHERE = "it is on no backend that answers"


class ForeignShard(DamagedShard):
    """A shard file whose record says that it is another shard."""


@dataclass(frozen=True)
class PackPlace:
    """A pack as manifests know it. Lengths in bytes. Raises Unreadable where they can't be those of a pack."""

    pack_id: uuid.UUID
    scheme: ECScheme
    payload: int
    shard_length: int

    def __post_init__(self) -> None:
        if not 0 < self.payload <= fmt.PACK_MAX or self.shard_length != self.scheme.shard_length(self.payload):
            raise Unreadable(
                f"pack {self.pack_id}: the manifests give it {self.payload} bytes in shards of {self.shard_length}, "
                "which is no pack"
            )


class Trust(IntEnum):
    """How far a cell is believed. LIKELY: its checksum holds, but nothing says that the file is this shard; UNKNOWN:
    its checksum can't be read; BAD: its checksum says that it is not the cell."""

    SURE = 0
    LIKELY = 1
    UNKNOWN = 2
    BAD = 3


@dataclass
class ShardFile:
    """A file that holds a shard, or may hold it. `record`: its record, None where both are lost; `confirmed`: whether
    the record confirms the table; `proven`: whether the file is known to be this shard."""

    storage: BackendStorage
    key: str
    record: ShardRecord | None
    table: CellTable
    confirmed: bool
    proven: bool

    def trust(self, number: int, cell: bytes | memoryview, length: int) -> Trust:
        """What cell `number`, as it was read, is worth; whole it has `length` bytes."""
        if len(cell) == length and self.table.is_good(number, cell):
            return Trust.SURE if self.proven else Trust.LIKELY
        return Trust.BAD if self.confirmed or len(cell) != length else Trust.UNKNOWN

    @property
    def doubtful(self) -> bool:
        """Whether it may hold good cells that are not sure."""
        return not (self.proven and self.confirmed)


class ShardSource(CarefulReader):
    """Where shards lie. `stores`: ids that they may name as theirs; `backends`: those that answer, by number; `seats`:
    all, by joining."""

    def __init__(
        self, stores: frozenset[uuid.UUID], backends: Mapping[int, BackendStorage], seats: tuple[Seat, ...]
    ) -> None:
        super().__init__()
        self._stores = stores
        self._backends = backends
        self._seats = seats
        self._weights: tuple[float, ...] | None = None

    def candidates(self, place: PackPlace, index: int) -> Iterator[BackendStorage]:
        """Backends to look on for a shard: first where the rule most likely put it. Once that was in vain, their room
        is asked for, and the rule again; then come its neighbours in the order of joining, for a backend more or less
        before it moves a shard by one."""
        first = None
        if self._weights is None:
            first = likely_places(place.scheme, self._seats, place.pack_id)[index]
            if first in self._backends:
                yield self._backends[first]
            self._weights = self._ask_for_room()
        likely = likely_places(place.scheme, self._seats, place.pack_id, self._weights)[index]
        at = {seat.number: position for position, seat in enumerate(self._seats)}

        def distance(number: int) -> int:
            away = abs(at[number] - at[likely])
            return min(away, len(at) - away)

        for number in sorted(self._backends, key=distance):
            if number != first:
                yield self._backends[number]

    def _ask_for_room(self) -> tuple[float, ...]:
        """Weights for `likely_places`, by the room that there is now: about in proportion to what there was when packs
        were written."""
        spaces = {}
        for number, storage in self._backends.items():
            with suppress(BackendError):  # as good as the others then
                spaces[number] = storage.space()
        known = rooms(self._seats, spaces, 0)
        even = sum(known[number].weight for number in spaces) / len(spaces) if spaces else 1.0
        return tuple(known[seat.number].weight if seat.number in spaces else even for seat in self._seats)

    def files(self, place: PackPlace, index: int) -> Iterator[ShardFile]:
        """Files of shard `index`: those first whose record says that they are it, then those without a record, which
        may be. Looks no further than it is asked, and not on backends that were given up."""
        unnamed, reasons, found = [], list[str](), False
        for storage in self.candidates(place, index):
            if self.figures.media.gave_up(storage.location):
                continue
            try:
                file = self._open(storage, place, index)
            except KeyNotFound:
                continue
            except (BackendError, DamagedShard, UnsupportedFormat) as error:
                reasons.append(str(error))
                continue
            if file.proven:
                if reasons:
                    self.figures.flaws[place.pack_id, index] = "; ".join(reasons)
                found = True
                yield file
            else:
                reasons.append(f"{storage.location}/{file.key}: both records are damaged beyond their armour")
                unnamed.append(file)
        if not found:
            reasons += self._given_up()
            reason = "; ".join(reasons) or NOWHERE
            self.figures.missing[place.pack_id, index] = reason
        elif reasons:
            self.figures.flaws[place.pack_id, index] = "; ".join(reasons)
        yield from unnamed

    def _given_up(self) -> list[str]:
        media = self.figures.media
        places = [storage.location for storage in self._backends.values() if media.gave_up(storage.location)]
        return [f"it was not looked for on a backend that was {media.why(location)}" for location in places]

    def last_files(self, place: PackPlace, index: int) -> Iterator[ShardFile]:
        """Files of shard `index` on backends that were given up, for who has nothing else."""
        for storage in self._backends.values():
            if self.figures.media.gave_up(storage.location):
                with suppress(BackendError, DamagedShard, UnsupportedFormat):
                    yield self._open(storage, place, index, at_last=True)

    def _open(self, storage: BackendStorage, place: PackPlace, index: int, at_last: bool = False) -> ShardFile:
        """The file of a shard on one backend. Raises BackendError, DamagedShard where it is another one."""
        key = shard_key(place.pack_id, index)
        head_size, size = data_offset(place.shard_length), table_size(place.shard_length)
        head = b""
        try:
            head = self.read(storage, key, 0, head_size, SECTOR, at_last=at_last)
            record = self._own_record(head[: fmt.RECORD_SIZE], storage, place, index, heal=False)
            first = head[fmt.RECORD_SIZE :]
            if confirmed(first, record):
                return ShardFile(storage, key, record, CellTable(first, first), True, True)
        except KeyNotFound:
            raise
        except (BackendError, DamagedShard):
            pass  # the same stands again at the end, where reading fails aloud
        end = file_size(place.shard_length)
        tail = self.read(storage, key, end - head_size, head_size, SECTOR, at_last=at_last)
        first, second = head[fmt.RECORD_SIZE :], tail[:size]
        found = self._either_record(head[: fmt.RECORD_SIZE], tail[size:], storage, place, index)
        self.figures.healed_records += 1
        for table in (first, second):
            if found is not None and confirmed(table, found):
                return ShardFile(storage, key, found, CellTable(table, table), True, True)
        return ShardFile(storage, key, found, CellTable(first, second), False, found is not None)

    def _either_record(
        self, first: bytes, second: bytes, storage: BackendStorage, place: PackPlace, index: int
    ) -> ShardRecord | None:
        """The record from either end of a file; healed only where neither is whole. None where both are beyond healing;
        raises ForeignShard where one says that the file is another shard, and the other does not gainsay it."""
        foreign: ForeignShard | None = None
        for heal in (False, True):
            for sealed in (first, second):
                try:
                    return self._own_record(sealed, storage, place, index, heal)
                except ForeignShard as error:
                    foreign = error
                except DamagedShard:
                    continue
            if foreign is not None:
                raise foreign
        return None

    def _own_record(
        self, sealed: bytes, storage: BackendStorage, place: PackPlace, index: int, heal: bool
    ) -> ShardRecord:
        record, _ = ShardRecord.parse(sealed, heal)
        identity = (record.pack_id, record.index, record.payload, record.scheme)
        if record.store_id not in self._stores or identity != (place.pack_id, index, place.payload, place.scheme):
            raise ForeignShard(
                f"{storage.location}/{shard_key(place.pack_id, index)} holds another shard: number {record.index} of "
                f"pack {record.pack_id}"
            )
        return record
