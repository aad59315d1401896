"""Looking at a store's own files: packs to be verified, rotten copies of records and manifests, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

from manifests import format as fmt
from manifests.armour import is_intact, open_json, seal_json
from manifests.arrowrows import to_batch
from manifests.catalog import Catalog
from manifests.columns import PLAN_DTYPE, Batch
from manifests.directories import SUMS
from manifests.errors import BackendError, CorruptRecord
from manifests.log import Log, State
from manifests.longcolumns import name_objects
from manifests.places import BLOCK_AND_PACK, HAS_BYTES, SOUND
from manifests.plan import sound_rows
from manifests.store import BACKEND_KEY, STORE_KEY, Member, Members


@dataclass(frozen=True)
class BadCopy:
    """A file of the store that is missing or rotten on one backend, while the store holds it."""

    backend: str
    key: str
    reason: str


def bad_copies(members: Members, log: Log, state: State, check: Callable[[], None]) -> Iterator[BadCopy]:
    """Records and manifest files that are not whole, or not what they should be, on a backend that answers. Reads all
    of them. `check` is called between any two, and may raise."""
    store_id = str(members.config.store_id)
    sealed = {key: seal_json(record.body) for key, record in log.records.items()}
    for member in members.present.values():
        yield from _check_record(member, STORE_KEY, {"store_id": store_id})
        identity = {"store_id": store_id, "backend_id": str(member.info.backend_id)}
        yield from _check_record(member, BACKEND_KEY, identity)
        for key, record in log.records.items():
            check()
            # What came after a backend became read-only is not on it.
            if not (member.info.read_only and member.number not in log.holders[key]):
                yield from _check_record(member, key, record.body, sealed[key])
        for table in state.manifests:
            for file in state.files(table):
                check()
                try:
                    if member.info.read_only and not member.storage.exists(file.key):
                        continue
                    if blake3(member.storage.read(file.key)).digest() != file.blake3:
                        yield BadCopy(member.storage.location, file.key, "its bytes do not match the log")
                except BackendError as error:
                    yield BadCopy(member.storage.location, file.key, str(error))


def _check_record(member: Member, key: str, expected: dict[str, Any], whole: bytes | None = None) -> Iterator[BadCopy]:
    """What is wrong with a backend's copy of a record that holds the values `expected`; `whole`: its bytes, where they
    are known."""
    try:
        sealed = member.storage.read(key)
        if sealed == whole:
            return
        record, _ = open_json(sealed)
    except (BackendError, CorruptRecord) as error:
        yield BadCopy(member.storage.location, key, str(error))
        return
    if any(record.get(name) != value for name, value in expected.items()):
        yield BadCopy(member.storage.location, key, "it is another record than that of this place")
    elif not is_intact(sealed):
        yield BadCopy(member.storage.location, key, "it is rotten; its armour still heals it")


def packs(catalog: Catalog, dtype: np.dtype[np.void]) -> Iterator[Batch]:
    """All packs, with the columns of `dtype`: those of the table, and sums over what lies in them (directories.py)."""
    catalog.use("packs", "blocks", "chunks", spare=True)
    columns = dtype.names or ()
    sums = f"LEFT JOIN ({SUMS}) USING (pack_id)" if "chunk_sum" in columns else ""
    query = f"SELECT {', '.join(columns)} FROM (SELECT DISTINCT ON (pack_id) * FROM packs) {sums} ORDER BY pack_id"
    for batch in catalog.batches(query):
        yield to_batch(batch, dtype, {})


@dataclass(frozen=True)
class LostRange:
    """Bytes of a pack's payload that can't be given back: `start` to `end` (exclusive)."""

    pack_id: bytes
    start: int
    end: int


def chunks_of_pack(catalog: Catalog, pack_id: bytes) -> Iterator[Batch]:
    """PLAN_DTYPE batches of the chunks that the manifests place soundly in a pack, by block; what describes objects is
    zero."""
    catalog.use("chunks", "blocks", "packs", spare=True)
    query = f"""
        WITH places AS (
            SELECT DISTINCT chunk_id, pack_id, block, "offset" AS chunk_offset, length FROM chunks WHERE pack_id = ?)
        SELECT pl.pack_id, pk.k, pk.m, pk.payload, pk.shard_length, pl.block, b."offset" AS block_offset, b.stored,
               b.raw, b.codec, pl.chunk_offset, pl.length, pl.chunk_id, {SOUND} AS sound
        FROM places pl {BLOCK_AND_PACK} ORDER BY pl.block, pl.chunk_offset
    """
    for batch in catalog.batches(query, [pack_id]):
        yield to_batch(sound_rows(batch), PLAN_DTYPE, {})


def chunks_without_copy(catalog: Catalog, lost: list[tuple[bytes, bytes]]) -> int:
    """How many of the chunks that are lost, as (pack id, chunk id), are alive and have no copy in a readable pack."""
    catalog.use("chunks", spare=True)
    places = [[pack_id for pack_id, _ in lost], [chunk_id for _, chunk_id in lost]]
    query = """
        SELECT count(DISTINCT chunk_id) AS n FROM chunks
        SEMI JOIN (SELECT unnest(?::BLOB[]) AS pack_id, unnest(?::BLOB[]) AS chunk_id) USING (pack_id, chunk_id)
    """
    return int(catalog.one(query, places)["n"])


def affected_objects(
    catalog: Catalog, lost: list[tuple[bytes, bytes]], ranges: list[LostRange], limit: int, *, unplaced: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Objects that need a chunk which is lost where a restore looks for it, in the first pack that has it: those `lost`
    as (pack id, chunk id), and those in blocks that touch `ranges`; with `unplaced`, also chunks that no manifest
    places soundly. How many, and the first `limit` of them as run and path."""
    catalog.use("objects", "extents", "chunks", "blocks", "packs", spare=True)
    catalog.execute("CREATE OR REPLACE TABLE lost_ranges (pack_id BLOB, range_start UBIGINT, range_end UBIGINT)")
    if ranges:
        catalog.execute(
            "INSERT INTO lost_ranges SELECT unnest(?::BLOB[]), unnest(?::UBIGINT[]), unnest(?::UBIGINT[])",
            [[each.pack_id for each in ranges], [each.start for each in ranges], [each.end for each in ranges]],
        )
    catalog.execute(
        """
        CREATE OR REPLACE TABLE lost_places AS
        SELECT unnest(?::BLOB[]) AS pack_id, unnest(?::BLOB[]) AS chunk_id
        UNION SELECT c.pack_id, c.chunk_id
        FROM chunks c JOIN blocks b USING (pack_id, block) JOIN lost_ranges USING (pack_id)
        WHERE b."offset" < range_end AND b."offset" + b.stored > range_start
        """,
        [[pack_id for pack_id, _ in lost], [chunk_id for _, chunk_id in lost]],
    )
    catalog.execute(
        """
        CREATE OR REPLACE TABLE lost_chunks AS
        SELECT chunk_id FROM (
            SELECT chunk_id, min(pack_id) AS pack_id FROM chunks
            WHERE chunk_id IN (SELECT chunk_id FROM lost_places) GROUP BY chunk_id
        ) SEMI JOIN lost_places USING (pack_id, chunk_id)
        """
    )
    if unplaced:
        catalog.execute(
            f"""
            INSERT INTO lost_chunks
            WITH places AS (
                SELECT chunk_id, unnest(arg_min(
                    {{pack_id: pack_id, block: block, chunk_offset: "offset", length: length}}, pack_id))
                FROM chunks GROUP BY chunk_id)
            SELECT chunk_id FROM (
                SELECT content_id AS chunk_id FROM objects WHERE content_kind = {fmt.CONTENT_CHUNK}
                UNION SELECT chunk_id FROM extents)
            EXCEPT SELECT pl.chunk_id FROM places pl {BLOCK_AND_PACK} WHERE {SOUND}
            """
        )
    catalog.execute(
        f"""
        CREATE OR REPLACE TABLE lost_objects AS SELECT run, row FROM objects
        WHERE {HAS_BYTES} AND nonsense IS NULL AND (
            content_kind = {fmt.CONTENT_CHUNK} AND content_id IN (SELECT chunk_id FROM lost_chunks)
            OR content_kind = {fmt.CONTENT_EXTENTS} AND content_id IN (
                SELECT content_id FROM extents WHERE chunk_id IN (SELECT chunk_id FROM lost_chunks)))
        """
    )
    return name_objects(catalog, "lost_objects", limit)


@dataclass(frozen=True)
class StoreStats:
    """Sums over a store, in objects, chunks and bytes. `logical`: what the runs hold, each for itself; `unique`: each
    distinct chunk once; `stored`: blocks and directories of the packs; `parity`: shard files less that; `manifests`:
    the manifests of one backend."""

    runs: int
    files: int
    objects: int
    logical: int
    chunks: int
    unique: int
    packs: int
    stored: int
    parity: int
    manifests: int

    @property
    def dedupe_ratio(self) -> float:
        return self.logical / self.unique if self.unique else 1.0

    @property
    def compression_ratio(self) -> float:
        return self.unique / self.stored if self.stored else 1.0


def store_stats(catalog: Catalog, state: State) -> StoreStats:
    """Statistics by DuckDB over the manifests."""
    catalog.use("objects", "chunks", "packs", "shards")
    row = catalog.one(
        """
        SELECT (SELECT count(*) FROM objects) AS objects,
               (SELECT count(*) FROM objects WHERE kind IN ('file', 'stream')) AS files,
               (SELECT coalesce(sum(size), 0)::HUGEINT FROM objects
                WHERE kind IN ('file', 'stream') AND nonsense IS NULL) AS logical,
               (SELECT count(DISTINCT chunk_id) FROM chunks) AS chunks,
               (SELECT coalesce(sum(length), 0)::UBIGINT
                FROM (SELECT chunk_id, any_value(length) AS length FROM chunks GROUP BY chunk_id)) AS "unique",
               (SELECT count(DISTINCT pack_id) FROM packs) AS packs,
               (SELECT coalesce(sum(payload), 0)::HUGEINT FROM (SELECT DISTINCT pack_id, payload FROM packs)) AS stored,
               (SELECT coalesce(sum(size), 0)::HUGEINT
                FROM (SELECT DISTINCT pack_id, shard, size FROM shards WHERE present)) AS shard_bytes
        """
    )
    shard_bytes = row.pop("shard_bytes")
    manifests = sum(file.size for table in state.manifests for file in state.files(table))
    return StoreStats(runs=len(state.runs), parity=shard_bytes - row["stored"], manifests=manifests, **row)
