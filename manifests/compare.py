"""A run's objects beside what lies in a directory: both as tables of the catalog, joined by path.

DuckDB holds both sides, so memory is bounded however many there are. An object whose kind is not known is one that
could not be looked at. Which names are hardlinks of one object is kept beside, for those that have several.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import format as fmt
from manifests.catalog import Catalog, path_filter
from manifests.columns import Batch
from manifests.plan import LINKED, ONE_OBJECT

_COLUMNS = ("kind", "size", "mtime_ns", "mode", "uid", "gid", "target", "rdev", "xattrs")
_FOUND = pa.schema(
    [
        ("row", pa.uint64()),
        ("path", pa.binary()),
        ("kind", pa.string()),
        ("size", pa.uint64()),
        ("mtime_ns", pa.int64()),
        ("mode", pa.uint32()),
        ("uid", pa.uint32()),
        ("gid", pa.uint32()),
        ("target", pa.binary()),
        ("rdev", pa.uint64()),
        ("xattrs", pa.binary()),
        ("error", pa.string()),
    ]
)
_FOUND_LINKS = pa.schema([("path", pa.binary()), ("device", pa.uint64()), ("inode", pa.uint64())])
_WRONG = pa.schema([("path", pa.binary()), ("verdict", pa.string()), ("reason", pa.string())])
_DIRECTORY = fmt.KINDS.index("directory")


class SideBySide:
    """The objects of a run at and below `path`, and what was found. Uses the catalog alone while it lives."""

    def __init__(self, catalog: Catalog, run: uuid.UUID, path: bytes) -> None:
        self._catalog = catalog
        condition, parameters = path_filter(path)
        catalog.use("objects")
        # What was read from a pipe is a file when it is restored.
        catalog.execute(
            f"""
            CREATE OR REPLACE TABLE archived AS
            SELECT path, CASE kind WHEN 'stream' THEN 'file' ELSE kind END AS kind, size, mtime_ns, mode, uid, gid,
                   target, rdev, xattrs, digest, error
            FROM objects WHERE run = ? AND {condition}
            """,
            [run.bytes, *parameters],
        )
        catalog.execute(
            f"""
            CREATE OR REPLACE TABLE archived_links AS
            SELECT path, min(row) OVER (PARTITION BY {ONE_OBJECT}) AS object
            FROM objects WHERE run = ? AND {condition} AND {LINKED}
            """,
            [run.bytes, *parameters],
        )
        catalog.replace("found", _FOUND)
        catalog.replace("found_links", _FOUND_LINKS)
        catalog.replace("wrong", _WRONG)
        self.count: int = catalog.one("SELECT count(*) AS n FROM archived")["n"]

    def add_found(self, batch: Batch) -> None:
        """Objects (OBJECT_DTYPE) that lie in the directory, by the paths that they have in the archive."""
        rows, paths = batch.rows, batch.all_bytes("path")
        kinds = pa.DictionaryArray.from_arrays(pa.array(rows["kind"].astype("i1")), pa.array(fmt.KINDS))
        columns = {
            "kind": kinds.cast(pa.string()),
            "path": pa.array(paths, pa.binary()),
            **{
                name: pa.array([value or None for value in batch.all_bytes(name)], pa.binary())
                for name in ("target", "xattrs")
            },
            "error": pa.array([value.decode(errors="replace") or None for value in batch.all_bytes("error")]),
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

    def add_stray(self, path: bytes) -> None:
        """Something that lies where no object of the run would be."""
        rows = pa.Table.from_pylist([{"path": path, "kind": "stray"}], schema=_FOUND)
        self._catalog.append("found", rows)

    def add_wrong(self, entries: Sequence[tuple[bytes, str, str]]) -> None:
        """Files of which the bytes differ (verdict changed) or can't be read (unreadable): path, verdict, reason."""
        if entries:
            rows = [{"path": path, "verdict": verdict, "reason": reason} for path, verdict, reason in entries]
            self._catalog.append("wrong", pa.Table.from_pylist(rows, schema=_WRONG))

    def files(self) -> Iterator[list[tuple[bytes, int, bytes | None]]]:
        """(path, size, BLAKE3) of files of the same length on both sides, in the order in which they were found."""
        query = """
            SELECT path, a.size, digest FROM archived a JOIN found f USING (path)
            WHERE a.kind = 'file' AND f.kind = 'file' AND a.size = f.size ORDER BY row
        """
        for batch in self._catalog.batches(query):
            yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))

    def differences(self, owner: bool) -> Iterator[dict[str, Any]]:
        """Rows of what differs, by path. `verdict`: missing, extra, changed, incomplete (in the archive), unreadable
        (in the directory); `reason` where bytes differ or something could not be read; a column of the archive and one
        with `found_` in front for each attribute; `link` and `found_link`: the first other name of the same object,
        where they are not the same. `owner`: whether owners are compared."""
        self._compare_links()
        self._hide()
        unequal = [
            "a.kind <> f.kind",
            "a.mtime_ns <> f.mtime_ns",
            "a.kind = 'file' AND a.size <> f.size",
            "a.mode & 4095 <> f.mode & 4095",
            "a.target IS DISTINCT FROM f.target",
            "f.error IS NOT NULL",
            "a.xattrs IS DISTINCT FROM f.xattrs",
            "r.path IS NOT NULL",
            "a.kind IN ('chardev', 'blockdev') AND a.rdev <> f.rdev",
            *(["a.uid <> f.uid", "a.gid <> f.gid"] if owner else []),
        ]
        both = ", ".join(f"a.{name}, f.{name} AS found_{name}" for name in _COLUMNS)
        none = ", ".join(f"a.{name}, NULL AS found_{name}" for name in _COLUMNS) + ", NULL, NULL"
        query = f"""
            SELECT coalesce(a.path, f.path) AS path,
                   CASE WHEN f.path IS NULL THEN 'missing' WHEN a.path IS NULL THEN 'extra'
                        WHEN a.error IS NOT NULL THEN 'incomplete' WHEN a.kind <> f.kind THEN 'changed'
                        WHEN f.error IS NOT NULL THEN 'unreadable' ELSE coalesce(w.verdict, 'changed') END AS verdict,
                   concat_ws('; ', a.error, nullif(f.error, a.error), w.reason) AS reason, {both}, r.link, r.found_link
            FROM (SELECT * FROM archived WHERE kind <> 'unknown') a
            FULL JOIN (SELECT * FROM found WHERE kind <> 'unknown') f ON f.path = a.path
            LEFT JOIN wrong w ON w.path = a.path
            LEFT JOIN relinked r ON r.path = a.path
            WHERE (f.path IS NULL AND a.path NOT IN (SELECT path FROM hidden))
               OR (a.path IS NULL AND f.path NOT IN (SELECT path FROM archived WHERE kind = 'unknown'))
               OR (a.path IS NOT NULL AND f.path IS NOT NULL
                   AND (a.error IS NOT NULL OR w.path IS NOT NULL OR {" OR ".join(unequal)}))
            UNION ALL
            SELECT path, 'incomplete', error, {none} FROM archived a WHERE kind = 'unknown'
            UNION ALL
            SELECT path, 'unreadable', error, {none} FROM found a WHERE kind = 'unknown'
            ORDER BY path, verdict
        """
        return self._catalog.rows(query)

    def _hide(self) -> None:
        """Table `hidden`: what could not be looked at, and what lies in directories that could not be listed, so is not
        missing for all one knows."""
        execute = self._catalog.execute
        execute("CREATE OR REPLACE TABLE hidden AS SELECT path FROM found WHERE kind = 'unknown'")
        execute(
            """
            CREATE OR REPLACE TABLE closed AS SELECT path || '/'::BLOB AS first, path || '0'::BLOB AS last
            FROM found WHERE kind = 'directory' AND error IS NOT NULL
            """
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
