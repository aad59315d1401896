"""Looking objects up: lists of a run's objects, one object, where the bytes of a range lie."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from manifests import format as fmt
from manifests.catalog import Catalog, path_filter
from manifests.copies import best_places
from manifests.errors import NotFound, Unreadable, UsageError
from manifests.escapes import shown
from manifests.fixity import digest_column
from manifests.ids import short_id
from manifests.longcolumns import SHOWN_PATH, short_columns, with_long_columns
from manifests.places import ChunkPlace
from manifests.sense import NOT_ITS_EXTENTS, not_their_extents

_COLUMNS = (
    *("row", "path", "kind", "size", "mode", "uid", "gid", "user_name", "group_name", "mtime_ns", "target", "digest"),
    *("content_kind", "content_id", "error", "holes", "nonsense"),
)
#: What stands for null where objects of which the manifests make sense have none.
_INSTEAD = {
    **dict.fromkeys(("row", "size", "mode", "uid", "gid", "mtime_ns", "content_kind"), "0"),
    "path": "''::BLOB",
    "kind": "'unknown'",
}


def _columns(names: Sequence[str]) -> str:
    return ", ".join(f"coalesce({name}, {_INSTEAD[name]}) AS {name}" if name in _INSTEAD else name for name in names)


#: SQL for the fields of an ObjectInfo, of a row of table objects in the catalog.
OBJECT_COLUMNS = _columns(_COLUMNS)


#: Extents of a content that are looked through before a range of it is read: those of 8 GiB, in 0.1 s.
CHECKED_EXTENTS = 1 << 16
#: A content that is one chunk.
_ONE_PIECE = "SELECT 0::UBIGINT AS file_offset, ?::BLOB AS chunk_id, ?::UBIGINT AS length"


@dataclass(frozen=True)
class ObjectInfo:
    """An archived object. `size` in bytes, `mtime_ns` in ns since 1970; `error` says why it is incomplete, if it is;
    `nonsense`, why the manifests make no sense of it: then no other field can be relied on."""

    run: uuid.UUID
    row: int
    path: bytes
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    user_name: str | None
    group_name: str | None
    mtime_ns: int
    target: bytes | None
    digest: bytes | None
    content_kind: int
    content_id: bytes | None
    error: str | None
    holes: bytes | None = None
    nonsense: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why it does not come back whole, for people."""
        return self.nonsense or self.error


def list_objects(catalog: Catalog, run: uuid.UUID, path: bytes, recursive: bool) -> Iterator[ObjectInfo]:
    """The object `path` of a run and what lies in it (all below it when `recursive`), by row; the top-level objects
    when `path` is empty. Streams."""
    catalog.use("objects")
    condition, parameters = path_filter(path)
    if not recursive:
        depth = path.count(b"/") + (1 if path else 0)
        # As text, DuckDB escapes the bytes of a BLOB that are not printable; a '/' stays what it is.
        slashes = "length(path::VARCHAR) - length(replace(path::VARCHAR, '/', ''))"
        condition += f" AND coalesce({slashes}, 0) <= {depth}"
    names = ("path", "target", "holes")
    columns = _columns([name for name in _COLUMNS if name not in names])
    query = f"""
        SELECT {columns}, {short_columns(names)} FROM (SELECT * FROM objects WHERE run = ? AND {condition})
        ORDER BY row
    """
    for row in with_long_columns(catalog, run, catalog.rows(query, [run.bytes, *parameters]), names):
        yield ObjectInfo(run, **{**row, "path": row["path"] or b""})


def object_digests(catalog: Catalog, run: uuid.UUID, path: bytes, name: str) -> Iterator[tuple[bytes, bytes | None]]:
    """(path, digest `name`) of the files at and below `path` of a run, by row; None where it was not recorded. Those of
    which the manifests make no sense are left out, for `senseless`. Streams."""
    catalog.use("objects")
    condition, parameters = path_filter(path)
    query = f"""
        SELECT row, {digest_column(name)} AS digest, {short_columns(["path"])} FROM objects
        WHERE run = ? AND kind IN ('file', 'stream') AND nonsense IS NULL AND {condition} ORDER BY row
    """
    for row in with_long_columns(catalog, run, catalog.rows(query, [run.bytes, *parameters]), ["path"]):
        yield row["path"], row["digest"]


def senseless(catalog: Catalog, run: uuid.UUID, path: bytes) -> Iterator[tuple[bytes, str]]:
    """(path, reason) of the objects at and below `path` of a run of which the manifests make no sense. Streams."""
    catalog.use("objects")
    condition, parameters = path_filter(path)
    query = f"""
        SELECT {SHOWN_PATH}, nonsense FROM objects
        WHERE run = ? AND nonsense IS NOT NULL AND {condition} ORDER BY row
    """
    yield from catalog.tuples(query, [run.bytes, *parameters])


def find_object(catalog: Catalog, run: uuid.UUID, path: bytes) -> ObjectInfo:
    """The object called `path`. Raises NotFound."""
    catalog.use("objects", spare=True)
    for row in catalog.rows(
        f"SELECT {OBJECT_COLUMNS} FROM objects WHERE run = ? AND path = ? ORDER BY row LIMIT 1",
        [run.bytes, path],
    ):
        return ObjectInfo(run, **row)
    if catalog.lost:
        raise Unreadable("; ".join(catalog.lost))
    raise no_such_object(catalog, run, path)


def held_paths(catalog: Catalog, wanted: Sequence[tuple[uuid.UUID, bytes]]) -> set[tuple[uuid.UUID, bytes]]:
    """Which of some paths their runs hold."""
    if not wanted:
        return set()
    catalog.use("objects")
    query = """
        SELECT DISTINCT run, path FROM objects
        SEMI JOIN (SELECT unnest(?::BLOB[]) AS run, unnest(?::BLOB[]) AS path) USING (run, path)
    """
    lists = [[run.bytes for run, _ in wanted], [path for _, path in wanted]]
    return {(uuid.UUID(bytes=run), path) for run, path in catalog.tuples(query, lists)}


def no_such_object(catalog: Catalog, run: uuid.UUID, path: bytes) -> NotFound:
    """The error for a path that a run does not hold."""
    short = short_id(run)
    return NotFound(f"run {short} holds no object '{shown(path)}'; see: drystone ls -R {short}{catalog.replicas.away}")


def require_content(info: ObjectInfo) -> None:
    """Raise UsageError, NotFound or Unreadable unless bytes can be read from the object."""
    if info.nonsense:
        raise Unreadable(f"'{shown(info.path)}': {info.nonsense}")
    if info.kind not in ("file", "stream"):
        raise UsageError(f"'{shown(info.path)}' is a {info.kind}; only files have bytes to read")
    if info.content_kind == fmt.CONTENT_NONE and info.digest is None and info.error is not None:
        raise NotFound(f"'{shown(info.path)}' was not archived: {info.error}")


def places_of_range(catalog: Catalog, info: ObjectInfo, offset: int, length: int) -> Iterator[ChunkPlace]:
    """The chunks that overlap a range of an object, by place in the object. Streams. Raises Unreadable, also where they
    are not those of its content id."""
    catalog.use("extents", "chunks", "blocks", "packs", spare=True)
    pieces = _ONE_PIECE
    parameters: list[Any] = [info.content_id, info.size]
    if info.content_kind == fmt.CONTENT_EXTENTS:
        _require_its_extents(catalog, info)
        pieces = """
            SELECT "offset" AS file_offset, chunk_id, max(length) AS length FROM extents
            WHERE content_id = ? AND "offset" < ? AND "offset" + length > ? GROUP BY "offset", chunk_id
        """
        parameters = [info.content_id, offset + length, offset]
    for place in _located(catalog, pieces, parameters):
        if info.content_kind == fmt.CONTENT_CHUNK and place.length != info.size:
            raise Unreadable(f"'{shown(info.path)}': the manifests give its one chunk another length than its size")
        yield place


def _require_its_extents(catalog: Catalog, info: ObjectInfo) -> None:
    """Raise Unreadable unless a content has the extents that its id is the digest of, so that a range holds the right
    chunks: a digest of the whole can't tell. Of more than CHECKED_EXTENTS nobody waits for this."""
    query = f"""
        SELECT DISTINCT "offset", length, chunk_id FROM extents WHERE content_id = ? ORDER BY 1
        LIMIT {CHECKED_EXTENTS + 1}
    """
    extents = list(catalog.tuples(query, [info.content_id]))
    if len(extents) > CHECKED_EXTENTS:
        return
    rows = ((0, info.size, info.content_id or b"", *extent) for extent in extents)
    if not extents or any(True for _ in not_their_extents(rows)):
        if catalog.lost:
            raise Unreadable("; ".join(catalog.lost))
        raise Unreadable(f"'{shown(info.path)}': {NOT_ITS_EXTENTS}")


def _located(catalog: Catalog, pieces: str, parameters: list[Any]) -> Iterator[ChunkPlace]:
    """The sound places of a query's chunks (file_offset, chunk_id, length), of each chunk the best."""
    query = f"""
        WITH pieces AS MATERIALIZED ({pieces}),
        places AS MATERIALIZED (
            SELECT chunk_id, pack_id, block, "offset" AS chunk_offset, length FROM chunks
            WHERE chunk_id IN (SELECT chunk_id FROM pieces)),
        best AS ({best_places("pieces")})
        SELECT pack_id, k, m, payload, shard_length, block, block_offset, stored, raw, codec, chunk_offset, best.length,
               chunk_id, file_offset, sound
        FROM pieces JOIN best USING (chunk_id) ORDER BY file_offset
    """
    for *row, sound in catalog.tuples(query, parameters):
        if sound:
            place = ChunkPlace(*row)
            if (len(place.pack_id), len(place.chunk_id)) != (16, 32):
                raise Unreadable("the manifests hold an id of a wrong length; see: drystone verify --data")
            yield place
