"""What nothing gives back: from places that failed, or are out of reach, to chunks and objects.

A chunk is lost where none of the places that the manifests know gives it back. So whoever finds places that fail notes
them in the table `bad_places` and, when all are noted, looks at what is left. All of it lies in tables of the catalog,
so memory is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from manifests import format as fmt
from manifests.catalog import BATCH_ROWS, Catalog
from manifests.longcolumns import name_objects
from manifests.places import BLOCK_AND_PACK, HAS_BYTES, SOUND

_BAD_PLACES = pa.schema(
    [
        ("pack_id", pa.binary()),
        ("chunk_id", pa.binary()),
        ("block", pa.uint32()),
        ("chunk_offset", pa.uint32()),
        ("length", pa.uint32()),
        ("is_told", pa.bool_()),
    ]
)
_LOST_RANGES = pa.schema([("pack_id", pa.binary()), ("range_start", pa.uint64()), ("range_end", pa.uint64())])
_BAD_PACKS = pa.schema([("pack_id", pa.binary()), ("is_loss", pa.bool_())])
_PLACE = "chunk_id, pack_id, block, chunk_offset, length"
_ALL_PLACES = 'SELECT chunk_id, pack_id, block, "offset" AS chunk_offset, length FROM chunks'
#: Objects (o) that need one of the `lost_chunks`.
NEEDS_LOST = f"""
    (o.content_kind = {fmt.CONTENT_CHUNK} AND o.content_id IN (SELECT chunk_id FROM lost_chunks)
     OR o.content_kind = {fmt.CONTENT_EXTENTS} AND o.content_id IN (
         SELECT content_id FROM extents WHERE chunk_id IN (SELECT chunk_id FROM lost_chunks)))
"""


class BadPlace(NamedTuple):
    """A place that does not give back its chunk. `is_told`: only the manifests tell of it, not the pack's own
    directory."""

    pack_id: bytes
    chunk_id: bytes
    block: int
    chunk_offset: int
    length: int
    is_told: bool


class LostRange(NamedTuple):
    """Bytes of a pack's payload that can't be given back: `start` to `end` (exclusive)."""

    pack_id: bytes
    start: int
    end: int


class Losses:
    """Places that failed, and what is lost with them. Uses the catalog's connection."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._bad: list[BadPlace] = []
        catalog.use("objects", "extents", "chunks", "blocks", "packs", spare=True)
        catalog.replace("bad_places", _BAD_PLACES)
        catalog.replace("bad_packs", _BAD_PACKS)

    def add(self, place: BadPlace) -> None:
        self._bad.append(place)
        if len(self._bad) >= BATCH_ROWS:
            self._flush()

    def add_packs(self, packs: Sequence[bytes]) -> None:
        """Packs that give back nothing."""
        rows = [pa.array(packs, pa.binary()), pa.array([True] * len(packs))]
        self._catalog.append("bad_packs", pa.table(rows, schema=_BAD_PACKS))

    def add_noted(self, *, is_believed: bool) -> None:
        """Packs that verifications could not read whole. Unless that `is_believed`, and something was lost with them,
        they are only no second place for what is lost elsewhere."""
        self._catalog.execute("INSERT INTO bad_packs SELECT pack_id, is_loss AND ? FROM unreadable", [is_believed])

    def add_ranges(self, ranges: Sequence[LostRange]) -> None:
        """All places in blocks that touch these ranges."""
        self._catalog.replace("lost_ranges", _LOST_RANGES)
        columns = zip(*ranges, strict=True) if ranges else ((), (), ())
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _LOST_RANGES, strict=True)]
        self._catalog.append("lost_ranges", pa.table(arrays, schema=_LOST_RANGES))
        self.add_places_in("lost_ranges")

    def add_places_in(self, ranges: str) -> None:
        """All places in blocks that touch ranges of a table (pack_id, range_start, range_end)."""
        self._catalog.execute(
            f"""
            INSERT INTO bad_places SELECT DISTINCT c.pack_id, c.chunk_id, c.block, c."offset", c.length, false
            FROM chunks c JOIN blocks b USING (pack_id, block) JOIN {ranges} r USING (pack_id)
            WHERE b."offset" < range_end AND b."offset" + b.stored > range_start
            """
        )

    def _flush(self) -> None:
        columns = zip(*self._bad, strict=True)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _BAD_PLACES, strict=True)]
        self._catalog.append("bad_places", pa.table(arrays, schema=_BAD_PLACES))
        self._bad.clear()

    def judge(self, *, unplaced: bool) -> int:
        """Make the table `lost_chunks` of the chunks that are alive and that no place gives back; `unplaced`: also of
        those that an object needs and no manifest places soundly. How many there are."""
        if self._bad:
            self._flush()
        execute = self._catalog.execute
        execute(
            """
            CREATE OR REPLACE TABLE suspects AS
            SELECT DISTINCT chunk_id FROM chunks
            WHERE chunk_id IN (SELECT chunk_id FROM bad_places)
               OR pack_id IN (SELECT pack_id FROM bad_packs WHERE is_loss)
            """
        )
        if unplaced:
            execute(
                f"""
                INSERT INTO suspects
                WITH places AS ({_ALL_PLACES})
                SELECT chunk_id FROM (
                    SELECT content_id AS chunk_id FROM objects
                    WHERE content_kind = {fmt.CONTENT_CHUNK} AND {HAS_BYTES} AND nonsense IS NULL
                    UNION SELECT chunk_id FROM extents)
                EXCEPT SELECT pl.chunk_id FROM places pl {BLOCK_AND_PACK} GROUP BY pl.chunk_id HAVING bool_or({SOUND})
                """
            )
        execute(
            f"""
            CREATE OR REPLACE TABLE lost_chunks AS
            WITH places AS ({_ALL_PLACES} WHERE chunk_id IN (SELECT chunk_id FROM suspects))
            SELECT DISTINCT chunk_id FROM suspects WHERE chunk_id NOT IN (
                SELECT pl.chunk_id FROM (
                    SELECT * FROM places ANTI JOIN bad_places USING ({_PLACE})
                    WHERE pack_id NOT IN (SELECT pack_id FROM bad_packs)) pl {BLOCK_AND_PACK}
                GROUP BY pl.chunk_id HAVING bool_or({SOUND}))
            """
        )
        return int(self._catalog.one("SELECT count(*) AS n FROM lost_chunks")["n"])

    def unreadable_packs(self, mislisted: Sequence[bytes]) -> set[bytes]:
        """After `judge`, the packs that did not give back all that lies in them, and those that a lost chunk is placed
        in. A place that the manifests give and the directory of the pack, one of `mislisted`, does not have is no fault
        of the pack."""
        query = """
            SELECT pack_id FROM bad_packs WHERE is_loss
            UNION SELECT pack_id FROM bad_places
                  WHERE NOT is_told OR pack_id NOT IN (SELECT unnest(?::BLOB[]))
            UNION SELECT pack_id FROM chunks WHERE chunk_id IN (SELECT chunk_id FROM lost_chunks)
        """
        return {pack_id for (pack_id,) in self._catalog.tuples(query, [list(mislisted)]) if len(pack_id) == 16}

    def objects(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """After `judge`, the objects that need a lost chunk, in the table `lost_objects`: how many, and the first
        `limit` of them as run and path."""
        self._catalog.execute(
            f"""
            CREATE OR REPLACE TABLE lost_objects AS
            SELECT run, row FROM objects o WHERE {HAS_BYTES} AND nonsense IS NULL AND {NEEDS_LOST}
            """
        )
        return name_objects(self._catalog, "lost_objects", limit)
