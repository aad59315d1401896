"""Looking at a store's own files: packs to be verified, rotten copies of records and manifests, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

from manifests.armour import is_intact, open_json, seal_json
from manifests.arrowrows import to_batch
from manifests.catalog import Catalog
from manifests.columns import PLAN_DTYPE, Batch
from manifests.directories import SUMS
from manifests.errors import BackendError, CorruptRecord
from manifests.log import Log, State
from manifests.places import BLOCK_AND_PACK, SOUND
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
