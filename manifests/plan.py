"""Planning a restore: which blocks hold the wanted objects, in the order in which packs lie.

The plan is columnar and streamed: PLAN_DTYPE rows, one for each place where a chunk is to be written, sorted by pack,
block and place in the block, so that each block is read and decompressed once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import format as fmt
from manifests.arrowrows import bools, to_batch
from manifests.catalog import Catalog, path_filter
from manifests.columns import ITEM_DTYPE, PLAN_DTYPE, Batch, cut_batch, join_batches
from manifests.copies import OtherPlaces, place_chunks
from manifests.failedobjects import FailedObjects
from manifests.fixity import FIXITY
from manifests.longcolumns import SHOWN_PATH, named_paths, place_long_fields, short_columns
from manifests.longfields import LongFields
from manifests.places import BLOCK_AND_PACK, HAS_BYTES, SOUND
from manifests.sense import CONTRADICTION, NAMESAKE, NOT_ITS_EXTENTS, PATH_HASH, find_doubles, not_their_extents

#: Plan rows of one block beyond which its tasks are cut up, in bytes: chunks that many objects share.
CROWDED_BYTES = 400_000
#: Planned chunks that are sorted at a time, about.
GROUP_ROWS = 32 << 10

#: Names of one hardlinked object, among the rows of a run: those that this condition holds for, and that have these
#: columns in common. What was changed between the readings of two names is two objects. This is the rule.
LINKED = "links > 1 AND kind <> 'directory' AND error IS NULL"
ONE_OBJECT = "device, inode, kind, content_kind, content_id, digest, size, mtime_ns, rdev, target_id"
#: What tells the targets of such objects apart.
TARGET_ID = "CASE WHEN links > 1 THEN sha256(target) END AS target_id"

_PLAN_VARIABLE = {name: name for name in ("path", "fixity", "xattrs")}
_ITEM_COLUMNS = 'row, "group", size, mode, uid, gid, mtime_ns, rdev, path, target, fixity, xattrs, holes, long'
_ITEM_VARIABLE = {name: name for name in ("path", "target", "fixity", "xattrs", "holes")}
#: Objects that can be made, though something of them may be missing: what was read of a file, a link with its target.
_MAKEABLE = """
    (error IS NULL OR digest IS NOT NULL OR target IS NOT NULL
     OR kind IN ('directory', 'fifo', 'chardev', 'blockdev'))
"""


@dataclass(frozen=True)
class PlanTotals:
    """What a restore is going to write: objects with content, their bytes, those that lie in several blocks, and the
    extents that no manifest places."""

    files: int
    bytes: int
    multi: int
    lost: int


class RestorePlan:
    """The plan for the objects of one run at and below a path. Uses the catalog's connection alone while it lives. It
    knows the objects from the beginning, and where their bytes lie after `locate`."""

    def __init__(self, catalog: Catalog, run: uuid.UUID, path: bytes, long_fields: LongFields) -> None:
        """`long_fields`: gets the fields of objects with long ones, whose rows in batches have the place in `long`."""
        self._catalog, self._run, self.long_fields = catalog, run, long_fields
        #: Objects that were not restored whole, for whoever carries the plan out to note.
        self.failed = FailedObjects(catalog)
        condition, parameters = path_filter(path)
        self._chosen, self._parameters = f"run = ? AND {condition}", [run.bytes, *parameters]
        catalog.use("objects", spare=True)
        execute = catalog.execute
        execute(
            f"""
            CREATE OR REPLACE TABLE wanted AS
            SELECT run, row, kind, size, content_kind, content_id, digest, mode, uid, gid, user_name, group_name,
                   mtime_ns, device, inode, links, rdev, {FIXITY} AS fixity, nonsense, {PATH_HASH} AS path_hash,
                   {LINKED} AS linked, {TARGET_ID}, {_MAKEABLE} AS makeable, holes IS NOT NULL AS has_holes,
                   (-1)::BIGINT AS "group", {short_columns()}
            FROM objects WHERE run = ? AND {condition}
            """,
            [run.bytes, *parameters],
        )
        self.count: int = catalog.one("SELECT count(*) AS n FROM wanted")["n"]
        execute("CREATE OR REPLACE TABLE senseless (row UBIGINT, nonsense VARCHAR)")
        execute("CREATE OR REPLACE TABLE unnumbered (row UBIGINT, path BLOB, nonsense VARCHAR)")
        if catalog.one("SELECT count(*) AS n FROM wanted WHERE nonsense IS NOT NULL")["n"]:
            nonsense = f"SELECT * FROM objects WHERE nonsense IS NOT NULL AND run = ? AND {condition}"
            self._note_unnumbered(nonsense, parameters)
            execute("DELETE FROM wanted WHERE nonsense IS NOT NULL")
        if find_doubles(catalog, "wanted"):
            self._part_doubles(condition, parameters)
        place_long_fields(catalog, run, "wanted", long_fields)
        self._part_links()

    def locate(self, others: OtherPlaces) -> None:
        """Find the blocks that the wanted objects lie in; `others` gets the places of chunks that have several. What
        needs the objects alone can be read meanwhile, in another thread."""
        self._catalog.replace("unsound", pa.schema([("row", pa.uint64())]))
        self._catalog.use("extents", "chunks", "blocks", "packs", spare=True)
        self._part_undigested()
        execute = self._catalog.execute
        execute(
            f"""
            CREATE OR REPLACE TABLE pieces AS
            SELECT row, 0::UBIGINT AS file_offset, content_id AS chunk_id
            FROM wanted WHERE content_kind = {fmt.CONTENT_CHUNK} AND {HAS_BYTES}
            UNION ALL
            SELECT DISTINCT w.row, e."offset", e.chunk_id
            FROM wanted w JOIN extents e ON e.content_id = w.content_id
            WHERE w.content_kind = {fmt.CONTENT_EXTENTS} AND {HAS_BYTES}
            """
        )
        place_chunks(self._catalog, "pieces", "places", others)
        execute(
            """
            CREATE OR REPLACE TABLE located AS
            SELECT pc.row, pc.file_offset, pc.chunk_id, pl.pack_id, pl.block, pl.chunk_offset, pl.length
            FROM pieces pc LEFT JOIN places pl USING (chunk_id)
            """
        )
        execute(
            """
            CREATE OR REPLACE TABLE multis AS
            WITH placed AS (
                SELECT row, pack_id, block, has_holes, coalesce(octet_length(path), 0) + octet_length(fixity)
                           + coalesce(octet_length(xattrs), 0) AS heap_bytes
                FROM located JOIN wanted USING (row) WHERE pack_id IS NOT NULL),
            crowded AS (
                SELECT pack_id, block, true AS is_crowded FROM placed
                GROUP BY pack_id, block HAVING sum(heap_bytes + $row_bytes) > $crowd)
            SELECT row, (row_number() OVER (ORDER BY row) - 1)::BIGINT AS multi, parts FROM (
                SELECT row, count(*) AS parts, count(DISTINCT (pack_id, block)) AS blocks,
                       bool_or(coalesce(is_crowded, false)) AS is_crowded, bool_or(has_holes) AS has_holes
                FROM placed LEFT JOIN crowded USING (pack_id, block) GROUP BY row
            ) WHERE parts > 1 AND (blocks > 1 OR is_crowded) OR has_holes
            """,
            {"row_bytes": PLAN_DTYPE.itemsize, "crowd": CROWDED_BYTES},
        )

    def _note_unnumbered(self, objects: str, parameters: list[Any]) -> None:
        """Note objects, by a query with their `nonsense`, that have no number, or that of another one."""
        self._catalog.execute(
            f"""
            INSERT INTO unnumbered
            SELECT (1::UBIGINT << 63) + (SELECT count(*) FROM unnumbered) + row_number() OVER (), {SHOWN_PATH}, nonsense
            FROM (SELECT DISTINCT row, path, nonsense FROM ({objects}))
            """,
            [self._run.bytes, *parameters],
        )

    def _part_doubles(self, condition: str, parameters: list[Any]) -> None:
        """Rows and paths tell objects apart from here on: leave one of equal ones, none of those that differ, and of
        those at one path the first."""
        execute = self._catalog.execute
        self._note_unnumbered(
            f"""
            SELECT row, path, '{CONTRADICTION}' AS nonsense FROM objects SEMI JOIN contradicted USING (run, row)
            WHERE nonsense IS NULL AND run = ? AND {condition}
            """,
            parameters,
        )
        execute("DELETE FROM wanted WHERE row IN (SELECT row FROM contradicted)")
        execute("DELETE FROM wanted WHERE rowid NOT IN (SELECT min(rowid) FROM wanted GROUP BY row)")
        execute(f"INSERT INTO senseless SELECT row, '{NAMESAKE}' FROM wanted SEMI JOIN namesakes USING (row)")
        execute("DELETE FROM wanted WHERE row IN (SELECT row FROM namesakes)")

    def _part_undigested(self) -> None:
        """Nothing else tells whether a content without a digest is put together as it was: so its extents must be those
        of its content id."""
        condition = f"content_kind = {fmt.CONTENT_EXTENTS} AND {HAS_BYTES} AND fixity = ''::BLOB"
        if not self._catalog.one(f"SELECT count(*) AS n FROM wanted WHERE {condition}")["n"]:
            return
        query = f"""
            SELECT DISTINCT w.row, w.size, w.content_id, e."offset", e.length, e.chunk_id
            FROM wanted w JOIN extents e ON e.content_id = w.content_id WHERE {condition} ORDER BY w.row, e."offset"
        """
        wrong = list(not_their_extents(self._catalog.tuples(query)))
        some, execute = "row IN (SELECT unnest(?::UBIGINT[]))", self._catalog.execute
        execute(f"INSERT INTO senseless SELECT row, '{NOT_ITS_EXTENTS}' FROM wanted WHERE {some}", [wrong])
        execute(f"DELETE FROM wanted WHERE {some}", [wrong])

    def _part_links(self) -> None:
        """Move all names but the first of each hardlinked object from `wanted` to `other_names`."""
        self._catalog.execute(
            f"""
            CREATE OR REPLACE TABLE links AS
            SELECT row, first FROM (
                SELECT row, min(row) OVER (PARTITION BY {ONE_OBJECT}) AS first FROM wanted WHERE linked)
            WHERE row <> first
            """
        )
        self._catalog.execute(
            """
            CREATE OR REPLACE TABLE other_names AS
            SELECT l.row, l.first::BIGINT AS "group", w.kind, w.size, w.mode, w.uid, w.gid, w.mtime_ns, w.path,
                   f.path AS target, w.xattrs, w.long
            FROM links l JOIN wanted w ON w.row = l.row JOIN wanted f ON f.row = l.first
            """
        )
        self._catalog.execute("DELETE FROM wanted WHERE row IN (SELECT row FROM links)")
        self._catalog.execute('UPDATE wanted SET "group" = row WHERE row IN (SELECT first FROM links)')

    def leave_out(self, folders: list[tuple[bytes, str]]) -> None:
        """Take directories (path, reason) that could not be made, and all below them, out of the plan: `missing` names
        them with the reason. Between `locate` and `blocks`."""
        for folder, reason in folders:
            condition, parameters = path_filter(folder)
            self._catalog.execute(
                f"CREATE OR REPLACE TABLE left_out AS SELECT row FROM objects WHERE run = ? AND {condition}",
                [self._run.bytes, *parameters],
            )
            for table in ("wanted", "other_names"):
                self._catalog.execute(
                    f"INSERT INTO senseless SELECT row, ? FROM {table} SEMI JOIN left_out USING (row)", [reason]
                )
                self._catalog.execute(f"DELETE FROM {table} WHERE row IN (SELECT row FROM left_out)")
        if folders:
            self._catalog.execute("DELETE FROM located WHERE row NOT IN (SELECT row FROM wanted)")

    def owners(self) -> Iterator[dict[str, Any]]:
        """The distinct owners of the wanted objects: what ('uid' or 'gid'), number and recorded name."""
        return self._catalog.rows(
            """
            SELECT 'uid' AS what, uid AS number, user_name::VARCHAR AS name FROM wanted GROUP BY ALL UNION ALL
            SELECT 'gid', gid, group_name::VARCHAR FROM wanted GROUP BY ALL
            """
        )

    def renumber(self, locals_: list[tuple[str, int, str, int]]) -> None:
        """Let what belongs to a number with a name belong to another number: (what, number, name, local number)."""
        self._catalog.execute(
            "CREATE OR REPLACE TABLE owner_map (what VARCHAR, number UINTEGER, name VARCHAR, local UINTEGER)"
        )
        for entry in locals_:
            self._catalog.execute("INSERT INTO owner_map VALUES (?, ?, ?, ?)", list(entry))
        for what, name in (("uid", "user_name"), ("gid", "group_name")):
            self._catalog.execute(
                f"""
                UPDATE wanted SET {what} = m.local FROM owner_map m
                WHERE m.what = '{what}' AND wanted.{what} = m.number AND wanted.{name}::VARCHAR = m.name
                """
            )

    def needs_root(self, uid: int, gid: int) -> int:
        """How many objects have another owner, or attributes that only root can set."""
        query = """
            SELECT uid <> ? OR gid <> ?, xattrs, long, count(*) FROM wanted
            WHERE uid <> ? OR gid <> ? OR xattrs IS NOT NULL OR long > 0 GROUP BY ALL
        """
        count = 0
        for another, xattrs, long, times in self._catalog.tuples(query, [uid, gid, uid, gid]):
            packed = self.long_fields.read(long).xattrs if long else xattrs or b""
            count += times * (another or b"security." in packed or b"trusted." in packed)
        return count

    def other_names(self) -> Iterator[Batch]:
        """ITEM_DTYPE batches of hardlinks, by row; `target` is the path of the name that was restored."""
        cases = " ".join(f"WHEN '{kind}' THEN {number}" for number, kind in enumerate(fmt.KINDS))
        query = f"""
            SELECT CASE kind {cases} END::UTINYINT AS kind, -1::BIGINT AS multi, * EXCLUDE (kind) FROM other_names
            ORDER BY row
        """
        for batch in self._catalog.batches(query):
            yield to_batch(batch, ITEM_DTYPE, _ITEM_VARIABLE)

    def paths(self, rows: list[int]) -> dict[int, bytes]:
        """Paths of some objects by row; of very long ones the first, as long as they are few."""
        unnumbered = "SELECT row, path FROM unnumbered WHERE row IN (SELECT unnest(?::UBIGINT[]))"
        found = dict(self._catalog.tuples(unnumbered, [rows]))
        return found | dict(named_paths(self._catalog, self._run, rows))

    def failures(self) -> Iterator[tuple[bytes, str]]:
        """(path, reason) of the objects that failed, by row; until the catalog is used for the next operation."""
        for lot in self.failed.lots():
            names = self.paths([row for row, _ in lot])
            yield from ((names.get(row, b"?"), reason) for row, reason in lot)

    def incomplete(self, most: int) -> tuple[int, list[tuple[bytes, str]]]:
        """How many objects were skipped or incomplete when they were archived; (path, reason) of the first `most`."""
        chosen = f"FROM objects WHERE {self._chosen} AND error IS NOT NULL AND nonsense IS NULL"
        count: int = self._catalog.one(f"SELECT count(*) AS n {chosen}", self._parameters)["n"]
        if not count:
            return 0, []
        query = f"SELECT {SHOWN_PATH} AS path, error {chosen} ORDER BY row LIMIT {most}"
        return count, [(row["path"], row["error"]) for row in self._catalog.rows(query, self._parameters)]

    def missing(self) -> Iterator[dict[str, Any]]:
        """Objects (row, reason) that nothing can give back: those of which the manifests make no sense, and those with
        extents that no manifest places soundly. Complete when `blocks` has ended."""
        return self._catalog.rows(
            f"""
            SELECT row, nonsense AS reason FROM senseless UNION ALL
            SELECT row, nonsense FROM unnumbered UNION ALL
            SELECT row, 'the manifests place some of its chunks nowhere' FROM wanted WHERE row IN (
                SELECT row FROM unsound UNION ALL
                SELECT row FROM located WHERE pack_id IS NULL UNION ALL
                SELECT row FROM wanted WHERE content_kind = {fmt.CONTENT_EXTENTS} AND {HAS_BYTES}
                    AND row NOT IN (SELECT row FROM pieces)
            ) ORDER BY row
            """
        )

    def totals(self) -> PlanTotals:
        row = self._catalog.one(
            f"""
            SELECT count(*) FILTER (content_kind <> {fmt.CONTENT_NONE}) AS files,
                   coalesce(sum(size) FILTER (content_kind <> {fmt.CONTENT_NONE}), 0)::UBIGINT AS bytes,
                   (SELECT count(*) FROM multis) AS multi,
                   (SELECT count(*) FROM located WHERE pack_id IS NULL) AS lost
            FROM wanted
            """
        )
        return PlanTotals(row["files"], row["bytes"], row["multi"], row["lost"])

    def part_counts(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """For each `multi` number, of how many planned chunks the object consists."""
        counts = np.zeros(self._catalog.one("SELECT count(*) AS n FROM multis")["n"], np.uint32)
        for batch in self._catalog.batches("SELECT multi, parts FROM multis"):
            counts[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
        return counts

    def blocks(self) -> Iterator[Batch]:
        """PLAN_DTYPE batches in order of pack and block, each of whole blocks."""
        held: Batch | None = None
        for batch in self._block_rows():
            whole = batch if held is None else join_batches(held, batch)
            last = whole.rows[-1]
            same = (whole.rows["block"] == last["block"]) & (whole.rows["pack_id"] == last["pack_id"]).all(axis=1)
            start = int(np.argmax(same))
            if start:
                yield cut_batch(whole, 0, start)
            held = cut_batch(whole, start, len(whole.rows))
        if held is not None:
            yield held

    def _block_rows(self) -> Iterator[Batch]:
        """Pack by pack, some at a time: sorting what a whole run holds, with its paths, would take memory without a
        bound."""
        for first, last in self._pack_groups():
            yield from self._rows_of_packs(first, last)

    def _pack_groups(self) -> Iterator[tuple[bytes, bytes]]:
        """Runs of packs of about GROUP_ROWS planned chunks, as first and last id. The first one is one pack, so that
        somebody has something to do."""
        query = "SELECT pack_id, count(*) AS n FROM located WHERE pack_id IS NOT NULL GROUP BY pack_id ORDER BY pack_id"
        first, count, last, most = None, 0, b"", 1
        for row in self._catalog.rows(query):
            first = first or row["pack_id"]
            last, count = row["pack_id"], count + row["n"]
            if count >= most:
                yield first, last
                first, count, most = None, 0, GROUP_ROWS
        if first is not None:
            yield first, last

    def _rows_of_packs(self, first: bytes, last: bytes) -> Iterator[Batch]:
        query = f"""
            WITH places AS (SELECT * FROM located WHERE pack_id BETWEEN ? AND ?)
            SELECT pl.pack_id, pk.k, pk.m, pk.payload, pk.shard_length, pl.block, b."offset" AS block_offset, b.stored,
                   b.raw, b.codec, pl.chunk_offset, pl.length, pl.chunk_id, pl.file_offset, pl.row,
                   coalesce(mu.multi, -1) AS multi, (w."group" >= 0)::UTINYINT AS leads,
                   w.size, w.mode, w.uid, w.gid, w.mtime_ns, w.path,
                   CASE WHEN mu.multi IS NULL THEN w.fixity ELSE ''::BLOB END AS fixity,
                   CASE WHEN mu.multi IS NULL THEN w.xattrs END AS xattrs, w.long,
                   {SOUND} AND pl.file_offset::HUGEINT + pl.length <= w.size
                       AND (w.content_kind <> {fmt.CONTENT_CHUNK} OR pl.length = w.size) AS sound
            FROM places pl JOIN wanted w USING (row) {BLOCK_AND_PACK}
            LEFT JOIN multis mu USING (row)
            ORDER BY pl.pack_id, pl.block, pl.chunk_offset, pl.row, pl.file_offset
        """
        for batch in self._catalog.batches(query, [first, last]):
            whole = sound_rows(batch)
            if whole.num_rows < batch.num_rows:
                self._note_unsound(batch)
            if whole.num_rows:
                yield to_batch(whole, PLAN_DTYPE, _PLAN_VARIABLE)

    def _note_unsound(self, batch: Any) -> None:
        self._catalog.append(
            "unsound", pa.table({"row": batch.column("row").filter(pa.array(~bools(batch.column("sound"))))})
        )

    def items(
        self, kinds: tuple[str, ...], with_content: bool | None = None, backwards: bool = False
    ) -> Iterator[Batch]:
        """ITEM_DTYPE batches of the wanted objects of these kinds, by row; `with_content` False leaves out those
        that blocks make."""
        condition = "" if with_content is None else f"AND content_kind {'<>' if with_content else '='} 0"
        names = ", ".join(f"'{kind}'" for kind in kinds)
        cases = " ".join(f"WHEN '{kind}' THEN {number}" for number, kind in enumerate(fmt.KINDS))
        query = f"""
            SELECT CASE kind {cases} END::UTINYINT AS kind, -1::BIGINT AS multi, {_ITEM_COLUMNS} FROM wanted
            WHERE kind IN ({names}) AND makeable {condition}
            ORDER BY row {"DESC" if backwards else ""}
        """
        for batch in self._catalog.batches(query):
            yield to_batch(batch, ITEM_DTYPE, _ITEM_VARIABLE)

    def finished(self, numbers: list[int]) -> Iterator[Batch]:
        """ITEM_DTYPE rows of the objects with these `multi` numbers."""
        kind = fmt.KINDS.index("file")
        query = f"""
            SELECT {kind}::UTINYINT AS kind, multi, {_ITEM_COLUMNS} FROM wanted JOIN multis USING (row)
            WHERE multi IN (SELECT unnest(?::BIGINT[])) ORDER BY row
        """
        for batch in self._catalog.batches(query, [numbers]):
            yield to_batch(batch, ITEM_DTYPE, _ITEM_VARIABLE)


def sound_rows(batch: Any) -> Any:
    """The rows of an Arrow record batch whose column `sound` is true, without that column."""
    sound = bools(batch.column("sound"))
    whole = batch if sound.all() else batch.filter(pa.array(sound))
    return whole.drop_columns(["sound"])
