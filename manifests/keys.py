"""Objects by id and by key, also those that are deleted; and who refers to a chunk.

A key within a bucket stands for the object that was put last, by the order of ids; that one may be deleted or expired,
which is for the caller to judge. Objects that a run archived have an id and no key.
"""

from __future__ import annotations

import uuid
from typing import Any

from manifests.catalog import Catalog
from manifests.errors import Unreadable
from manifests.ids import object_id
from manifests.objects import OBJECT_COLUMNS
from manifests.sense import CONTRADICTION

#: Objects that are listed at a time.
PAGE = 4096
_COLUMNS = f"run, bucket, etag, content_type, metadata, created_ns, expires_ns, {OBJECT_COLUMNS}"
_NEWEST = "row_number() OVER (PARTITION BY bucket, path ORDER BY run DESC, row DESC) = 1"
Row = dict[str, Any]


def object_of_id(catalog: Catalog, run: uuid.UUID, row: int) -> Row | None:
    """The object of an id, with `is_latest`. Raises Unreadable where the manifests tell of several."""
    catalog.use("objects")
    query = f"SELECT DISTINCT {_COLUMNS} FROM stored_objects WHERE run = ? AND row = ? LIMIT 2"
    rows = list(catalog.rows(query, [run.bytes, row]))
    if not rows:
        return None
    found, *others = rows
    if others:
        raise Unreadable(f"object {object_id(run, row)}: {CONTRADICTION}")
    newest = None if found["created_ns"] is None else newest_of_key(catalog, found["bucket"], found["path"])
    return {**found, "is_latest": newest is None or (newest["run"], newest["row"]) == (found["run"], found["row"])}


def newest_of_key(catalog: Catalog, bucket: str, key: bytes) -> Row | None:
    """The object that a key stands for."""
    return next(iter(versions_of_key(catalog, bucket, key, limit=1)), None)


def versions_of_key(catalog: Catalog, bucket: str, key: bytes, limit: int | None = None) -> list[Row]:
    """All that was put under a key, the newest first, with `is_latest`."""
    catalog.use("objects")
    query = f"""
        SELECT {_COLUMNS}, {_NEWEST} AS is_latest FROM stored_objects
        WHERE path = ? AND bucket = ? AND created_ns IS NOT NULL
        ORDER BY run DESC, row DESC {"" if limit is None else f"LIMIT {limit}"}
    """
    return list(catalog.rows(query, [key, bucket]))


def page_of_keys(catalog: Catalog, prefix: bytes, bucket: str | None, after: tuple[bytes, str] | None) -> list[Row]:
    """Up to PAGE objects that keys with `prefix` stand for, in order of key and bucket, behind `after`; of all buckets
    where `bucket` is None."""
    catalog.use("objects")
    conditions, parameters = ["created_ns IS NOT NULL"], list[Any]()
    if prefix:
        conditions.append("path >= ?")
        parameters.append(prefix)
        if end := _behind(prefix):
            conditions.append("path < ?")
            parameters.append(end)
    if bucket is not None:
        conditions.append("bucket = ?")
        parameters.append(bucket)
    if after is not None:
        conditions.append("(path > ? OR (path = ? AND bucket > ?))")
        parameters += [after[0], after[0], after[1]]
    query = f"""
        SELECT {_COLUMNS}, true AS is_latest FROM stored_objects WHERE {" AND ".join(conditions)}
        QUALIFY {_NEWEST} ORDER BY path, bucket LIMIT {PAGE}
    """
    return list(catalog.rows(query, parameters))


def _behind(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix`; empty where there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b""


def copies_of_chunk(catalog: Catalog, chunk_id: bytes) -> list[tuple[bytes, bytes, int]]:
    """(chunk id, pack id, length) of the copies of a chunk that are alive."""
    catalog.use("chunks")
    query = "SELECT DISTINCT chunk_id, pack_id, length FROM chunks WHERE chunk_id = ?"
    return [(chunk, pack, length) for chunk, pack, length in catalog.tuples(query, [chunk_id])]


def object_of_chunk(catalog: Catalog, chunk_id: bytes) -> Row | None:
    """An object, not deleted, that consists of a chunk, among others or alone."""
    catalog.use("objects", "extents")
    query = """
        SELECT run, row, path FROM objects WHERE content_kind = 1 AND content_id = $chunk
        UNION ALL
        SELECT run, row, path FROM objects WHERE content_kind = 2 AND content_id IN (
            SELECT content_id FROM extents WHERE chunk_id = $chunk)
        LIMIT 1
    """
    for run, row, path in catalog.tuples(query, {"chunk": chunk_id}):
        return {"run": run, "row": row, "path": path}
    return None


def chunk_sums(catalog: Catalog) -> tuple[int, int]:
    """Chunks that are alive, and their bytes: sums over packs and tombstones, not over chunks."""
    catalog.use("packs", "tombstones")
    query = """
        SELECT coalesce(sum(chunks), 0)::UBIGINT, coalesce(sum(raw), 0)::UBIGINT,
               (SELECT count(*) FROM (SELECT DISTINCT chunk_id, pack_id FROM tombstones)),
               (SELECT coalesce(sum(length), 0)::UBIGINT
                FROM (SELECT DISTINCT chunk_id, pack_id, length FROM tombstones))
        FROM (SELECT DISTINCT ON (pack_id) pack_id, chunks, raw FROM packs)
    """
    chunks, size, dead, dead_size = next(catalog.tuples(query))
    return chunks - dead, size - dead_size
