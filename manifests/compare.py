"""A run's objects beside what lies in a directory: both as tables of the catalog, joined by path.

DuckDB holds both sides, so memory is bounded however many there are. Long paths and attributes stand there in a short
form, and are read when a difference is told (manifests/longfields.py). An object whose kind is not known is one that
could not be looked at. Which names are hardlinks of one object is kept beside, for those that have several.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from manifests import format as fmt
from manifests.catalog import BATCH_ROWS, Catalog, path_filter
from manifests.columns import Batch
from manifests.longcolumns import FIELD_BYTES, LOT_BYTES, place_long_fields, short_form_of
from manifests.longfields import SHORT, LongFields, short_form
from manifests.lost import NEEDS_LOST
from manifests.places import HAS_BYTES
from manifests.plan import LINKED, ONE_OBJECT, TARGET_ID

_COLUMNS = ("kind", "size", "mtime_ns", "mode", "uid", "gid", "target", "rdev", "xattrs")
_FOUND = pa.schema(
    [
        ("row", pa.uint64()),
        ("path", pa.binary()),
        ("kind", pa.string()),
        ("size", pa.uint64()),
        ("mtime_ns", pa.int64()),
        ("grain_ns", pa.int64()),
        ("mode", pa.uint32()),
        ("uid", pa.uint32()),
        ("gid", pa.uint32()),
        ("target", pa.binary()),
        ("rdev", pa.uint64()),
        ("xattrs", pa.binary()),
        ("error", pa.string()),
        ("long", pa.uint64()),
    ]
)
_FOUND_LINKS = pa.schema([("path", pa.binary()), ("device", pa.uint64()), ("inode", pa.uint64())])
_WRONG = pa.schema([("path", pa.binary()), ("verdict", pa.string()), ("reason", pa.string())])
#: Whether the times of objects `a` and `f` are equal, as exactly as the file system of `f` keeps them: it cuts off what
#: it does not keep.
_SAME_TIME = "(a.mtime_ns = f.mtime_ns OR a.mtime_ns - f.mtime_ns BETWEEN 0 AND f.grain_ns - 1)"
_SECOND = 10**9
NOT_GIVEN_BACK = "the backends that answer do not give all of it back, see: drystone status"
NOT_PLACED = "the manifests place some of its bytes nowhere"
_DIRECTORY = fmt.KINDS.index("directory")


class SideBySide:
    """The objects of a run at and below `path`, and what was found. Uses the catalog alone while it lives."""

    def __init__(self, catalog: Catalog, run: uuid.UUID, path: bytes, long_fields: LongFields) -> None:
        """`long_fields`: gets the fields of objects with long ones; it stays the caller's."""
        self._catalog, self._long_fields = catalog, long_fields
        self._closed = set[bytes]()
        condition, parameters = path_filter(path)
        catalog.use("objects")
        compared = ", ".join(f"{short_form_of(name)} AS {name}" for name in ("target", "xattrs"))
        compared += f", coalesce({short_form_of('path')}, ''::BLOB) AS path"
        # What was read from a pipe is a file when it is restored.
        catalog.execute(
            f"""
            CREATE OR REPLACE TABLE archived AS
            SELECT row, CASE kind WHEN 'stream' THEN 'file' ELSE kind END AS kind, size, mtime_ns, mode, uid, gid,
                   {compared}, rdev, digest, coalesce(nonsense, error) AS error,
                   nonsense IS NOT NULL AS senseless, {FIELD_BYTES}
            FROM objects WHERE run = ? AND {condition}
            """,
            [run.bytes, *parameters],
        )
        place_long_fields(catalog, run, "archived", long_fields)
        catalog.execute(
            f"""
            CREATE OR REPLACE TABLE archived_links AS
            SELECT path, min(row) OVER (PARTITION BY {ONE_OBJECT}) AS object FROM (
                SELECT {short_form_of("path")} AS path, * EXCLUDE (path), {TARGET_ID} FROM objects
                WHERE run = ? AND {condition} AND nonsense IS NULL AND {LINKED})
            """,
            [run.bytes, *parameters],
        )
        self._of_run = (f"run = ? AND {condition}", [run.bytes, *parameters])
        catalog.replace("found", _FOUND)
        catalog.replace("found_links", _FOUND_LINKS)
        catalog.replace("wrong", _WRONG)
        self.count: int = catalog.one("SELECT count(*) AS n FROM archived")["n"]

    def mark_lost(self) -> None:
        """Let objects be incomplete that the archive does not give back: those that need one of the `lost_chunks`
        (lost.py), and contents whose extents the manifests lack, in whole or in part."""
        condition, parameters = self._of_run
        self._catalog.use("extents")
        self._catalog.execute(
            f"""
            CREATE OR REPLACE TABLE not_given_back AS
            WITH o AS (
                SELECT row, content_kind, content_id, size, holes FROM objects
                WHERE {condition} AND {HAS_BYTES} AND nonsense IS NULL AND error IS NULL),
            lengths AS (
                SELECT content_id, sum(length) AS placed FROM (
                    SELECT DISTINCT content_id, "offset", length FROM extents
                    WHERE content_id IN (SELECT content_id FROM o WHERE content_kind = {fmt.CONTENT_EXTENTS}))
                GROUP BY content_id)
            SELECT row, '{NOT_GIVEN_BACK}' AS reason FROM o WHERE {NEEDS_LOST}
            UNION ALL
            SELECT row, '{NOT_PLACED}' FROM o LEFT JOIN lengths USING (content_id)
            WHERE content_kind = {fmt.CONTENT_EXTENTS}
              AND (placed IS NULL OR placed > size OR holes IS NULL AND placed < size)
            """,
            parameters,
        )
        self._catalog.execute(
            """
            UPDATE archived SET error = lost.reason FROM (
                SELECT row, min(reason) AS reason FROM not_given_back GROUP BY row) lost
            WHERE archived.row = lost.row
            """
        )

    def add_found(self, batch: Batch) -> None:
        """Objects (OBJECT_DTYPE) that lie in the directory, by the paths that they have in the archive."""
        rows = batch.rows
        fields = {name: batch.all_bytes(name) for name in ("path", "target", "xattrs")}
        places = np.zeros(len(rows), np.uint64)
        if max(int(rows[f"{name}_len"].max(initial=0)) for name in fields) > SHORT:
            self._put_away(batch, fields, places)
        paths = fields["path"]
        kinds = pa.DictionaryArray.from_arrays(pa.array(rows["kind"].astype("i1")), pa.array(fmt.KINDS))
        columns = {
            "kind": kinds.cast(pa.string()),
            "path": pa.array(paths, pa.binary()),
            **{name: pa.array([value or None for value in fields[name]], pa.binary()) for name in ("target", "xattrs")},
            "error": pa.array([value.decode(errors="replace") or None for value in batch.all_bytes("error")]),
            "long": pa.array(places),
            "grain_ns": pa.array(_grains(rows)),
        }
        arrays = [
            columns[field.name] if field.name in columns else pa.array(rows[field.name]).cast(field.type)
            for field in _FOUND
        ]
        self._catalog.append("found", pa.table(arrays, schema=_FOUND))
        linked = np.flatnonzero((rows["links"] > 1) & (rows["kind"] != _DIRECTORY))
        if len(linked):
            names = [paths[number] for number in linked.tolist()]
            links = [pa.array(names, pa.binary()), *(pa.array(rows[name][linked]) for name in ("device", "inode"))]
            self._catalog.append("found_links", pa.table(links, schema=_FOUND_LINKS))

    def _put_away(self, batch: Batch, fields: dict[str, list[bytes]], places: npt.NDArray[np.uint64]) -> None:
        """Keep the fields of objects with a long one as records, and put short forms in their place."""
        closed = (batch.rows["kind"] == _DIRECTORY) & (batch.rows["error_len"] > 0)
        for number, values in enumerate(zip(*fields.values(), strict=True)):
            if max(map(len, values)) > SHORT:
                places[number] = self._long_fields.add([*values, b""])
                for name, value in zip(fields, values, strict=True):
                    fields[name][number] = short_form(value)
            if closed[number] and len(values[0]) >= SHORT:
                self._closed.add(_digest(values[0]))

    def add_stray(self, path: bytes) -> None:
        """Something that lies where no object of the run would be."""
        rows = pa.Table.from_pylist([{"path": path, "kind": "stray"}], schema=_FOUND)
        self._catalog.append("found", rows)

    def add_wrong(self, entries: Sequence[tuple[bytes, str, str]]) -> None:
        """Files of which the bytes differ (verdict changed) or can't be read (unreadable): path, verdict, reason."""
        if entries:
            rows = [
                {"path": short_form(path), "verdict": verdict, "reason": reason} for path, verdict, reason in entries
            ]
            self._catalog.append("wrong", pa.Table.from_pylist(rows, schema=_WRONG))

    def files(self) -> Iterator[list[tuple[bytes, int, bytes | None]]]:
        """(path, size, BLAKE3) of files of the same length on both sides, in the order in which they were found."""
        query = """
            SELECT path, a.size, digest, f.long FROM archived a JOIN found f USING (path)
            WHERE a.kind = 'file' AND f.kind = 'file' AND a.size = f.size ORDER BY f.row
        """
        lot, held = list[tuple[bytes, int, bytes | None]](), 0
        for path, size, digest, long in self._catalog.tuples(query):
            path = self._long_fields.read(long).path if long else path
            lot.append((path, size, digest))
            held += len(path)
            if len(lot) == BATCH_ROWS or held >= LOT_BYTES:
                yield lot
                lot, held = [], 0
        if lot:
            yield lot

    def differences(self, owner: bool) -> Iterator[dict[str, Any]]:
        """Rows of what differs, by path as far as short forms tell. `verdict`: missing, extra, changed, incomplete (in
        the archive), unreadable (in the directory); `reason` where bytes differ or something could not be read; a
        column of the archive and one with `found_` in front for each attribute; `link` and `found_link`: the first
        other name of the same object, where they are not the same; `senseless`: the archive's columns are not to be
        relied on. `owner`: whether owners are compared."""
        self._compare_links()
        self._hide()
        unequal = [
            "a.kind <> f.kind",
            f"NOT {_SAME_TIME}",
            "a.kind = 'file' AND a.size <> f.size",
            "a.mode & 4095 <> f.mode & 4095",
            "a.target IS DISTINCT FROM f.target",
            "f.error IS NOT NULL",
            "a.xattrs IS DISTINCT FROM f.xattrs",
            "r.path IS NOT NULL",
            "a.kind IN ('chardev', 'blockdev') AND a.rdev <> f.rdev",
            *(["a.uid <> f.uid", "a.gid <> f.gid"] if owner else []),
        ]
        found = {name: f"f.{name}" for name in _COLUMNS}
        found["mtime_ns"] = f"CASE WHEN {_SAME_TIME} THEN a.mtime_ns ELSE f.mtime_ns END"
        both = ", ".join(f"a.{name}, {found[name]} AS found_{name}" for name in _COLUMNS)
        none = ", ".join(f"a.{name}, NULL AS found_{name}" for name in _COLUMNS) + ", NULL, NULL"
        longs = "coalesce(a.long, 0) AS long, coalesce(f.long, 0) AS found_long"
        query = f"""
            SELECT coalesce(a.path, f.path) AS path,
                   CASE WHEN f.path IS NULL THEN 'missing' WHEN a.path IS NULL THEN 'extra'
                        WHEN a.error IS NOT NULL THEN 'incomplete' WHEN a.kind <> f.kind THEN 'changed'
                        WHEN f.error IS NOT NULL THEN 'unreadable' ELSE coalesce(w.verdict, 'changed') END AS verdict,
                   concat_ws('; ', a.error, nullif(f.error, a.error), w.reason) AS reason, {both}, r.link, r.found_link,
                   coalesce(a.senseless, false) AS senseless, {longs}
            FROM (SELECT * FROM archived WHERE kind <> 'unknown') a
            FULL JOIN (SELECT * FROM found WHERE kind <> 'unknown') f ON f.path = a.path
            LEFT JOIN wrong w ON w.path = a.path
            LEFT JOIN relinked r ON r.path = a.path
            WHERE (f.path IS NULL AND a.path NOT IN (SELECT path FROM hidden))
               OR (a.path IS NULL AND f.path NOT IN (SELECT path FROM archived WHERE kind = 'unknown'))
               OR (a.path IS NOT NULL AND f.path IS NOT NULL
                   AND (a.error IS NOT NULL OR w.path IS NOT NULL OR {" OR ".join(unequal)}))
            UNION ALL
            SELECT path, 'incomplete', error, {none}, senseless, long, 0 FROM archived a WHERE kind = 'unknown'
            UNION ALL
            SELECT path, 'unreadable', error, {none}, false, 0, long FROM found a WHERE kind = 'unknown'
            ORDER BY path, verdict
        """
        for row in self._catalog.rows(query):
            for prefix, place in (("", row.pop("long")), ("found_", row.pop("found_long"))):
                if place:
                    row["path"], target, xattrs, _ = self._long_fields.read(place)
                    row[f"{prefix}target"], row[f"{prefix}xattrs"] = target or None, xattrs or None
            if not (self._closed and row["verdict"] == "missing" and self._is_hidden(row["path"])):
                yield row

    def _is_hidden(self, path: bytes) -> bool:
        """Whether a path lies below a directory of a long path that could not be listed."""
        at = path.find(b"/", SHORT)
        while at >= 0:
            if _digest(path[:at]) in self._closed:
                return True
            at = path.find(b"/", at + 1)
        return False

    def _hide(self) -> None:
        """Table `hidden`: what could not be looked at, and what lies in directories that could not be listed, so is not
        missing for all one knows."""
        execute = self._catalog.execute
        execute("CREATE OR REPLACE TABLE hidden AS SELECT path FROM found WHERE kind = 'unknown'")
        execute(
            """
            CREATE OR REPLACE TABLE closed AS SELECT path || '/'::BLOB AS first, path || '0'::BLOB AS last
            FROM found WHERE kind = 'directory' AND error IS NOT NULL AND octet_length(path) < $short
            """,
            {"short": SHORT},
        )
        if self._catalog.one("SELECT count(*) AS n FROM closed")["n"]:
            execute(
                """
                INSERT INTO hidden
                SELECT a.path FROM archived a JOIN closed c ON a.path > c.first AND a.path < c.last
                """
            )

    def _compare_links(self) -> None:
        """Table `relinked`: names that lie on both sides, with the first name of the object there and here, null for
        the name itself, where these differ. Both sides group the same names alike where there are none."""
        self._catalog.execute(
            """
            CREATE OR REPLACE TABLE relinked AS
            WITH several AS (
                SELECT path, object, device, inode FROM archived_links FULL JOIN found_links USING (path)),
            common AS (
                SELECT s.* FROM several s JOIN archived a USING (path) JOIN found f USING (path)
                WHERE a.kind = f.kind AND a.error IS NULL),
            firsts AS (
                SELECT path,
                       CASE WHEN object IS NULL THEN path ELSE min(path) OVER (PARTITION BY object) END AS link,
                       CASE WHEN inode IS NULL THEN path ELSE min(path) OVER (PARTITION BY device, inode) END
                           AS found_link
                FROM common)
            SELECT path, nullif(link, path) AS link, nullif(found_link, path) AS found_link
            FROM firsts WHERE link <> found_link
            """
        )


def _grains(rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """How exactly the file systems of objects keep times, in nanoseconds. Times of last changes tell it, which nobody
    can choose: that they are all whole seconds, or even ones as on FAT, is no chance."""
    grains = np.ones(len(rows), np.int64)
    for device in np.unique(rows["device"]):
        here = rows["device"] == device
        for grain in (_SECOND, 2 * _SECOND):
            if not (rows["ctime_ns"][here] % grain).any() and not (rows["mtime_ns"][here] % grain).any():
                grains[here] = grain
    return grains


def _digest(path: bytes) -> bytes:
    digest: bytes = blake3(path).digest()
    return digest
