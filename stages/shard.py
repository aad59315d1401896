"""Shard files: record, cell table, data, the table again, the record again.

A shard file is a pure function of its content and identity: no time, host or backend in it, so writing it again gives
the same bytes.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from manifests import format as fmt
from manifests.armour import open_record, seal_record
from manifests.config import ECScheme
from manifests.errors import CorruptRecord, UnsupportedFormat, UsageError
from stages.errors import DamagedShard


def shard_key(pack_id: uuid.UUID, index: int) -> str:
    """Where shard `index` of a pack lies on its backend. This is the rule."""
    text = str(pack_id)
    return f"packs/{text[-2:]}/{text}.{index}"


def cell_count(shard_length: int) -> int:
    return -(-shard_length // fmt.CELL_SIZE)


def table_size(shard_length: int) -> int:
    return cell_count(shard_length) * fmt.CELL_DIGEST


def data_offset(shard_length: int) -> int:
    """Where the data begins in a shard file."""
    return fmt.RECORD_SIZE + table_size(shard_length)


def file_size(shard_length: int) -> int:
    return 2 * data_offset(shard_length) + shard_length


def cell_digest(cell: bytes | memoryview) -> bytes:
    return blake3(cell).digest(fmt.CELL_DIGEST)


def cell_table(data: memoryview) -> bytes:
    """Checksums of the cells of a shard's data, one after the other."""
    return b"".join(
        blake3(data[at : at + fmt.CELL_SIZE]).digest(fmt.CELL_DIGEST) for at in range(0, len(data), fmt.CELL_SIZE)
    )


class PackShape(Protocol):
    """The lengths of a sealed pack that its shards' records hold."""

    @property
    def length(self) -> int: ...
    @property
    def directory_stored(self) -> int: ...
    @property
    def directory_raw(self) -> int: ...
    @property
    def directory_codec(self) -> int: ...


@dataclass(frozen=True)
class ShardRecord:
    """Identity and shape of a shard, from either end of its file."""

    store_id: uuid.UUID
    pack_id: uuid.UUID
    index: int
    scheme: ECScheme
    payload: int
    shard_length: int
    directory_stored: int
    directory_raw: int
    directory_codec: int
    table_digest: bytes
    kind: int = fmt.PACK_KIND_DATA

    @classmethod
    def of(
        cls,
        store_id: uuid.UUID,
        pack_id: uuid.UUID,
        index: int,
        scheme: ECScheme,
        shape: PackShape,
        shard_length: int,
        table: bytes,
    ) -> ShardRecord:
        """The record of shard `index` of a pack, whose cell table is `table`."""
        return cls(
            store_id,
            pack_id,
            index,
            scheme,
            shape.length,
            shard_length,
            shape.directory_stored,
            shape.directory_raw,
            shape.directory_codec,
            blake3(table).digest(fmt.CELL_DIGEST),
        )

    @property
    def directory_offset(self) -> int:
        return self.payload - self.directory_stored

    def seal(self) -> bytes:
        """The armoured record, RECORD_SIZE bytes."""
        return seal_record(
            fmt.SHARD_RECORD.pack(
                fmt.SHARD_MAGIC,
                0,
                0,
                0,
                self.store_id.bytes,
                self.pack_id.bytes,
                self.kind,
                self.index,
                self.scheme.k,
                self.scheme.m,
                fmt.CELL_SIZE,
                self.payload,
                self.shard_length,
                self.directory_stored,
                self.directory_raw,
                self.directory_codec,
                self.table_digest,
            )
        )

    @classmethod
    def parse(cls, sealed: bytes, heal: bool = True) -> tuple[ShardRecord, bool]:
        """The record, and whether it had to be healed. Raises DamagedShard, UnsupportedFormat."""
        try:
            body, healed = open_record(sealed, heal)
        except CorruptRecord as error:
            raise DamagedShard(f"shard {error}") from error
        try:
            (
                magic,
                incompat,
                _,
                _,
                store,
                pack,
                kind,
                index,
                k,
                m,
                cell,
                payload,
                length,
                stored,
                raw,
                codec,
                table,
            ) = fmt.SHARD_RECORD.unpack_from(body)
            if magic != fmt.SHARD_MAGIC:
                raise DamagedShard("not a shard record")
            if incompat & ~fmt.PACK_INCOMPAT_KNOWN or cell != fmt.CELL_SIZE:
                raise UnsupportedFormat(f"shard uses a feature unknown to this version (incompat flag {incompat:#x})")
            scheme = ECScheme(k, m)
        except (struct.error, UsageError) as error:
            raise DamagedShard(f"shard record makes no sense: {error}") from error
        if not (index < k + m and stored <= payload <= fmt.PACK_MAX and length == scheme.shard_length(payload)):
            raise DamagedShard("the lengths in a shard record do not add up")
        record = cls(
            uuid.UUID(bytes=store),
            uuid.UUID(bytes=pack),
            index,
            scheme,
            payload,
            length,
            stored,
            raw,
            codec,
            table,
            kind,
        )
        return record, healed


def shard_pieces(record: ShardRecord, table: bytes, data: memoryview) -> Sequence[bytes | memoryview]:
    """A shard file as pieces to be written one after the other; `data` is not copied."""
    sealed = record.seal()
    return [sealed, table, data, table, sealed]


@dataclass(frozen=True)
class CellTable:
    """Cell checksums of a shard as read from its file: `first` and `second` are the two copies; either may be short or
    rotten. When the digest in the record confirms one, that one is kept for both."""

    first: bytes
    second: bytes

    def is_good(self, number: int, cell: bytes | memoryview) -> bool:
        """Whether a copy of the table vouches for cell `number`."""
        digest = cell_digest(cell)
        at = slice(number * fmt.CELL_DIGEST, (number + 1) * fmt.CELL_DIGEST)
        return digest in (self.first[at], self.second[at])

    def vouches(self, first: int, last: int, cells: memoryview) -> bool:
        """Whether the first copy vouches for the cells `first` to `last` (exclusive), all at once. One that was cut off
        before them vouches for nothing, not even for no cells."""
        digests = self.first[first * fmt.CELL_DIGEST : last * fmt.CELL_DIGEST]
        return len(digests) == (last - first) * fmt.CELL_DIGEST and cell_table(cells) == digests


def confirmed(table: bytes, record: ShardRecord) -> bool:
    """Whether `table` is the one that the record names."""
    return blake3(table).digest(fmt.CELL_DIGEST) == record.table_digest
