"""Which packs survive what: the shards that listings found, joined with the manifests.

A shard counts as good where its file has the right length and the last reading of all bytes did not find it bad. Packs
whose good shards lie on the same backends have the same *pattern*, so a store of many packs has few of them, and what
each survives is counted once a pattern.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any

import pyarrow as pa

from manifests import format as fmt
from manifests.catalog import Catalog
from manifests.errors import Unreadable
from manifests.known import readable_paths
from manifests.log import State
from manifests.lost import Losses
from manifests.places import BLOCK_AND_PACK, SOUND

#: Sets of backends that are looked at one by one for a pattern; beyond, a lower bound is good enough.
COMBINATIONS = 20_000
#: Listed files that are held before they go to DuckDB.
BATCH_ROWS = 64 << 10
#: Length of a shard file, of its columns (stages/shard.py, file_size).
_FILE_SIZE = (
    f"2 * ({fmt.RECORD_SIZE} + {fmt.CELL_DIGEST} * ((shard_length + {fmt.CELL_SIZE - 1}) // {fmt.CELL_SIZE}))"
    " + shard_length"
)
_LISTED = pa.schema([("name", pa.string()), ("size", pa.uint64()), ("backend", pa.uint16())])
_SHARD_NAME = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[.](0|[1-9][0-9]{0,2})"


@dataclass(frozen=True)
class Pattern:
    """Where the good shards of some packs lie: `placed` as (shard, backend number), a shard on two backends twice.
    `pack_id`: one of the `packs`; `there`: shards of which a file is there, good or damaged somewhere; `unreadable`: a
    verification did not get all chunks out of them, and something was lost; `spare`: of packs that are
    lost, or that a verification could not read whole, all chunks lie elsewhere, too."""

    k: int
    m: int
    placed: tuple[tuple[int, int], ...]
    packs: int
    pack_id: uuid.UUID
    there: int = 0
    unreadable: bool = False
    spare: bool = False

    @cached_property
    def good(self) -> int:
        """Shards of which a good copy is there."""
        return len({shard for shard, _ in self.placed})

    @property
    def recoverable(self) -> bool:
        """Whether the pack is there. Shards that are damaged somewhere give back what is left of them, row by row; only
        a verification can tell whether that was enough."""
        return max(self.good, self.there) >= self.k and not self.unreadable

    def without(self, backend: int) -> Pattern:
        """The same when a backend is lost."""
        return replace(self, placed=tuple(each for each in self.placed if each[1] != backend))

    def _groups(self, group_of: Mapping[int, Hashable]) -> dict[Hashable, set[int]]:
        groups: dict[Hashable, set[int]] = {}
        for shard, backend in self.placed:
            groups.setdefault(group_of.get(backend, backend), set()).add(shard)
        return groups

    def bears(self, group_of: Mapping[int, Hashable]) -> int:
        """How many groups of backends, whichever they are, may be lost: each backend for itself where `group_of` is
        empty, failure domains where it names them. −1 where the pack is lost already. This is the rule."""
        if not self.recoverable:
            return -1
        groups = self._groups(group_of)
        for losses in range(len(groups) + 1):
            if self._fatal(groups, losses):
                return max(losses - 1, 0)
        return len(groups)

    def _fatal(self, groups: dict[Hashable, set[int]], losses: int) -> bool:
        """Whether the loss of some so many groups leaves less than k shards."""
        single = sum(map(len, groups.values())) == self.good
        if not single and comb(len(groups), losses) <= COMBINATIONS:
            return next(self._lethal(groups, losses), None) is not None
        # Each shard in one group: the largest groups are the worst. Otherwise that is a lower bound for what is left.
        largest = sorted(map(len, groups.values()), reverse=True)[:losses]
        return self.good - sum(largest) < self.k

    def _lethal(self, groups: dict[Hashable, set[int]], losses: int) -> Iterator[tuple[Hashable, ...]]:
        for lost in combinations(sorted(groups, key=str), losses):
            kept = set[int]().union(*(shards for name, shards in groups.items() if name not in lost))
            if len(kept) < self.k:
                yield lost

    def lethal_sets(self, limit: int) -> list[tuple[int, ...]]:
        """The smallest sets of backends that the packs would not survive losing, at most `limit` of them; none where
        they are lost already, or nothing can be lost with what there is."""
        if self.good < self.k:
            return []
        groups, losses = self._groups({}), self.bears({}) + 1
        found = []
        for lost in self._lethal(groups, losses):
            found.append(tuple(sorted(int(str(each)) for each in lost)))
            if len(found) == limit:
                break
        return sorted(found)


class Presence:
    """What the listings of a store's backends come to. Owned by one process, its tables live in `catalog`.
    `lost_notes`: why it is not known what verifications found; `unnamed`: of packs that no manifest names,
    shards that lie somewhere → packs with so many."""

    def __init__(self, catalog: Catalog, state: State) -> None:
        self._catalog = catalog
        self._state = state
        catalog.use("packs", spare=True)
        catalog.use_unreadable()
        if catalog.lost:
            raise Unreadable(
                f"which packs the store has is not known: {'; '.join(catalog.lost)}. Attach the backends that are "
                "absent; see also: drystone verify"
            )
        self.lost_notes: list[str] = []
        self.unnamed: dict[int, int] = {}
        catalog.replace("listed", _LISTED)
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._backends: list[int] = []

    def add(self, names: Sequence[str], sizes: Sequence[int], backend: int) -> None:
        """Note files that a backend lists, by the last part of their keys."""
        self._names += names
        self._sizes += sizes
        self._backends += [backend] * len(names)
        if len(self._names) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = {"name": self._names, "size": self._sizes, "backend": self._backends}
        self._catalog.append("listed", pa.table(columns, schema=_LISTED))
        self._names, self._sizes, self._backends = [], [], []

    def finish(self) -> None:
        """Join what was listed with the manifests; to be called once, before all that asks."""
        self._flush()
        execute = self._catalog.execute
        self._load_findings()
        execute(
            "CREATE OR REPLACE TABLE known_packs AS SELECT DISTINCT ON (pack_id) pack_id, k, m, shard_length FROM packs"
        )
        execute(
            f"""
            CREATE OR REPLACE TABLE found_shards AS
            SELECT pack_id, shard, backend, size, bad IS NOT NULL AS bad FROM (
                SELECT unhex(replace(left(name, 36), '-', '')) AS pack_id, substr(name, 38)::USMALLINT AS shard, size,
                       backend
                FROM listed WHERE regexp_full_match(name, '{_SHARD_NAME}')
            ) JOIN known_packs USING (pack_id)
            LEFT JOIN bad_shards USING (pack_id, shard, backend)
            WHERE shard < k + m AND size = {_FILE_SIZE}
            """
        )
        unnamed = self._catalog.rows(
            f"""
            SELECT shards, count(*) AS packs FROM (
                SELECT count(DISTINCT name) AS shards FROM listed
                WHERE regexp_full_match(name, '{_SHARD_NAME}')
                  AND unhex(replace(left(name, 36), '-', '')) NOT IN (SELECT pack_id FROM known_packs)
                GROUP BY left(name, 36)
            ) GROUP BY shards
            """
        )
        self.unnamed = {row["shards"]: row["packs"] for row in unnamed}
        execute("DROP TABLE listed")
        execute(
            """
            CREATE OR REPLACE TABLE patterns AS
            SELECT pack_id, k, m, coalesce(placed, []) AS placed, coalesce(there, 0) AS there,
                   pack_id IN (SELECT pack_id FROM unreadable WHERE is_loss) AS unreadable, false AS spare
            FROM known_packs LEFT JOIN (
                SELECT pack_id, count(DISTINCT shard) AS there,
                       list_sort(list(DISTINCT shard::UINTEGER * 65536 + backend) FILTER (NOT bad)) AS placed
                FROM found_shards GROUP BY pack_id
            ) USING (pack_id)
            """
        )
        self._find_spare()

    def _find_spare(self) -> None:
        """Which of the packs that are lost nobody lacks: all that lives in them was stored again."""
        self._catalog.execute(
            """
            CREATE OR REPLACE TABLE lost_packs AS
            SELECT pack_id FROM patterns WHERE there < k OR pack_id IN (SELECT pack_id FROM unreadable)
            """
        )
        if not self._catalog.one("SELECT count(*) AS n FROM lost_packs")["n"]:
            return  # so nobody need read what chunks there are
        self._catalog.use("chunks", "blocks", spare=True)
        if self._catalog.lost:
            return  # then nobody can tell which chunks they held
        self._catalog.execute(
            f"""
            CREATE OR REPLACE TABLE stored_again AS
            WITH places AS (
                SELECT chunk_id, pack_id, block, "offset" AS chunk_offset, length
                FROM chunks ANTI JOIN lost_packs USING (pack_id)
                WHERE chunk_id IN (SELECT chunk_id FROM chunks SEMI JOIN lost_packs USING (pack_id)))
            SELECT pl.chunk_id FROM places pl {BLOCK_AND_PACK} GROUP BY pl.chunk_id HAVING bool_or({SOUND})
            """
        )
        self._catalog.execute(
            """
            UPDATE patterns SET spare = true WHERE pack_id IN (SELECT pack_id FROM lost_packs) AND pack_id NOT IN (
                SELECT pack_id FROM chunks SEMI JOIN lost_packs USING (pack_id)
                WHERE chunk_id NOT IN (SELECT chunk_id FROM stored_again))
            """
        )

    def losses(self) -> Losses:
        """What the backends that answer do not give back, as far as listings, manifests and notes of verifications
        tell: chunks in shards that packs lack beyond their parity, or in packs that could not be read when something
        was lost, and what no manifest places."""
        losses = Losses(self._catalog)
        losses.add_noted(is_believed=True)
        self._catalog.execute(
            """
            CREATE OR REPLACE TABLE missing_ranges AS
            SELECT pack_id, shard::UBIGINT * shard_length AS range_start,
                   (shard + 1)::UBIGINT * shard_length AS range_end
            FROM (
                SELECT pack_id, shard_length, unnest(range(k))::USMALLINT AS shard FROM known_packs
                WHERE pack_id IN (SELECT pack_id FROM patterns WHERE there < k)
            ) ANTI JOIN found_shards USING (pack_id, shard)
            """
        )
        losses.add_places_in("missing_ranges")
        losses.judge(unplaced=True)
        return losses

    def _load_findings(self) -> None:
        """What the last reading of all bytes found bad, and is there all the same."""
        self._catalog.execute(
            "CREATE OR REPLACE TABLE bad_shards (pack_id BLOB, shard USMALLINT, backend USMALLINT, bad BOOLEAN)"
        )
        last = next((each for each in reversed(self._state.verifications) if each.data), None)
        if last is None or not last.adds:
            return
        paths = readable_paths(list(last.adds), self._catalog.replicas, self.lost_notes)
        if paths:
            self._catalog.execute(
                "INSERT INTO bad_shards SELECT DISTINCT pack_id, shard, backend, true "
                f"FROM ({self._catalog.reading('scrubs', paths)}) WHERE NOT missing"
            )

    def patterns(self) -> Iterator[Pattern]:
        """All patterns, streamed, in no order."""
        query = """
            SELECT k, m, placed, there, unreadable, spare, count(*) AS packs, min(pack_id) AS pack_id FROM patterns
            GROUP BY k, m, placed, there, unreadable, spare
        """
        return map(_pattern, self._catalog.rows(query))

    def packs(self) -> Iterator[Pattern]:
        """The pattern of each pack by itself, streamed, by pack id."""
        query = "SELECT *, 1 AS packs FROM patterns ORDER BY pack_id"
        return map(_pattern, self._catalog.rows(query))

    def named(self, packs: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of these packs the manifests name."""
        query = "SELECT pack_id FROM known_packs WHERE pack_id IN (SELECT unnest(?::BLOB[]))"
        return {uuid.UUID(bytes=row["pack_id"]) for row in self._catalog.rows(query, [[each.bytes for each in packs]])}

    def stored(self) -> dict[int, tuple[int, int]]:
        """Backend number → good shards on it, and their length in bytes."""
        query = """
            SELECT backend, count(*) AS shards, sum(size)::UBIGINT AS size FROM found_shards WHERE NOT bad
            GROUP BY backend
        """
        return {row["backend"]: (row["shards"], row["size"]) for row in self._catalog.rows(query)}


def _pattern(row: dict[str, Any]) -> Pattern:
    placed = tuple(divmod(each, 1 << 16) for each in row["placed"])
    return Pattern(
        row["k"],
        row["m"],
        placed,
        row["packs"],
        uuid.UUID(bytes=row["pack_id"]),
        row["there"],
        row["unreadable"],
        row["spare"],
    )
