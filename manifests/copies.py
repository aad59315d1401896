"""Where chunks lie: the place that is tried first, and the others.

Several rows of `chunks` may place a chunk: packs that were stored again because a verification could not read the first
ones, two runs at once, manifests that lie. What is noted of a place only tells when it is tried. A chunk is lost where
no place gives it back, so whoever reads goes on to the next place. This is the rule, for all who read.

Most chunks have one place. Only of the others are places put in order, and written to a file without a name that
workers look into when reading fails.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from manifests import format as fmt
from manifests.places import BLOCK_AND_PACK, HAS_BYTES, SOUND, ChunkPlace

if TYPE_CHECKING:
    from manifests.catalog import Catalog

#: What makes one place of a chunk better than another: first where it may lie at all, and has the length that is asked
#: for, then where no verification failed to read the pack, then the pack that was stored first.
_ORDER = "NOT sound, NOT fits, unreadable, pack_id, block, chunk_offset, length"
_PLACE = "pack_id, block, chunk_offset, length"
_RECORD = struct.Struct("<32s16sBBQQIQIIBII")
#: The lengths that chunks should have, as objects tell.
_LENGTHS = f"""
    SELECT chunk_id, length FROM extents
    UNION ALL SELECT content_id, size FROM objects WHERE content_kind = {fmt.CONTENT_CHUNK} AND {HAS_BYTES}
"""
_COLUMNS = (
    "chunk_id, pack_id, k, m, payload, shard_length, block, block_offset, stored, raw, codec, chunk_offset, length"
)


def _candidates(lengths: str) -> str:
    """SQL for the distinct rows of the table `places` (chunk_id, pack_id, block, chunk_offset, length), with their
    blocks and packs, and what `_ORDER` needs; `lengths`: a table of chunks with the lengths that they should have."""
    return f"""
        SELECT pl.*, pk.k, pk.m, pk.payload, pk.shard_length, b."offset" AS block_offset, b.stored, b.raw, b.codec,
               coalesce({SOUND}, false) AS sound, coalesce(fits, false) AS fits,
               pl.pack_id IN (SELECT pack_id FROM unreadable) AS unreadable
        FROM (SELECT DISTINCT chunk_id, {_PLACE} FROM places) pl {BLOCK_AND_PACK}
        LEFT JOIN (SELECT DISTINCT chunk_id, length, true AS fits FROM {lengths}
                   WHERE chunk_id IN (SELECT chunk_id FROM places)) w
          ON w.chunk_id = pl.chunk_id AND w.length = pl.length
    """


def place_chunks(catalog: Catalog, pieces: str, places: str, others: OtherPlaces) -> None:
    """Make the table `places` (chunk_id, pack_id, block, chunk_offset, length) of where each chunk of the table
    `pieces` (chunk_id, …) is looked for first; `others` gets all places of those that have several. Chunks that no
    manifest places are left out. The views objects and extents are there."""
    execute = catalog.execute
    execute(
        f"""
        CREATE OR REPLACE TABLE {places} AS
        SELECT chunk_id, count(*) AS times, unnest(arg_min(
            {{pack_id: pack_id, block: block, chunk_offset: "offset", length: length}}, pack_id))
        FROM chunks WHERE chunk_id IN (SELECT chunk_id FROM {pieces}) GROUP BY chunk_id
        """
    )
    if not catalog.one(f"SELECT count(*) AS n FROM {places} WHERE times > 1")["n"]:
        return
    execute(
        f"""
        CREATE OR REPLACE TABLE candidates AS
        WITH places AS (
            SELECT chunk_id, pack_id, block, "offset" AS chunk_offset, length FROM chunks
            WHERE chunk_id IN (SELECT chunk_id FROM {places} WHERE times > 1))
        {_candidates(f"({_LENGTHS})")}
        """
    )
    execute(f"DELETE FROM {places} WHERE times > 1")
    execute(
        f"""
        INSERT INTO {places}
        SELECT chunk_id, count(*), unnest(min_by(
            {{pack_id: pack_id, block: block, chunk_offset: chunk_offset, length: length}}, row({_ORDER})))
        FROM candidates GROUP BY chunk_id
        """
    )
    query = f"""
        SELECT {_COLUMNS} FROM candidates SEMI JOIN (SELECT chunk_id FROM {places} WHERE times > 1) USING (chunk_id)
        WHERE sound AND octet_length(chunk_id) = 32 AND octet_length(pack_id) = 16 ORDER BY chunk_id, {_ORDER}
    """
    others.add_all(catalog.tuples(query))
    execute("DROP TABLE candidates")


def best_places(lengths: str) -> str:
    """SQL for the best row of the table `places` for each chunk, as `_candidates` has it, and whether it is `sound`."""
    return f"""
        SELECT * FROM ({_candidates(lengths)})
        QUALIFY row_number() OVER (PARTITION BY chunk_id ORDER BY {_ORDER}) = 1
    """


def places_of_chunk(catalog: Catalog, chunk_id: bytes) -> list[ChunkPlace]:
    """All sound places of a chunk, in the order in which they are tried."""
    catalog.use("chunks", "blocks", "packs", spare=True)
    query = f"""
        WITH places AS MATERIALIZED (
            SELECT chunk_id, pack_id, block, "offset" AS chunk_offset, length FROM chunks WHERE chunk_id = ?)
        SELECT sound, {_COLUMNS} FROM ({_candidates("places")}) ORDER BY {_ORDER}
    """
    return [_place(row) for sound, *row in catalog.tuples(query, [chunk_id]) if sound]


def _place(row: Sequence[Any]) -> ChunkPlace:
    """A row of _COLUMNS as a place, of no content."""
    chunk_id, *rest = row
    return ChunkPlace._make([*rest, chunk_id, 0])


class OtherPlaces:
    """The places of chunks that have several, in a file without a name: by chunk, those first that are tried first.
    Owned by the process that makes it; workers read it by its descriptor."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="drystone-places-")  # noqa: SIM115 - closed by close

    def __enter__(self) -> OtherPlaces:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def add_all(self, rows: Iterator[tuple[Any, ...]]) -> None:
        """Write rows of _COLUMNS, by chunk: all that there are. Raises OSError."""
        for row in rows:
            self._file.write(_RECORD.pack(*row))
        self._file.flush()


def read_places(fd: int, chunk_id: bytes) -> list[ChunkPlace]:
    """The places of a chunk, by the descriptor of the file; none where it has only one. Raises OSError."""
    low, high = 0, os.fstat(fd).st_size // _RECORD.size
    count = high
    while low < high:
        middle = (low + high) // 2
        if os.pread(fd, 32, middle * _RECORD.size) < chunk_id:
            low = middle + 1
        else:
            high = middle
    found = []
    while low < count:
        row = _RECORD.unpack(os.pread(fd, _RECORD.size, low * _RECORD.size))
        if row[0] != chunk_id:
            break
        found.append(_place(row))
        low += 1
    return found
