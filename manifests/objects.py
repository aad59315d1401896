"""Looking objects up: lists of a run's objects, one object, where the bytes of a range lie."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from manifests import format as fmt
from manifests.catalog import Catalog, path_filter
from manifests.errors import NotFound, Unreadable, UsageError
from manifests.escapes import shown
from manifests.fixity import digest_column
from manifests.ids import short_id
from manifests.longcolumns import short_columns, with_long_columns
from manifests.places import BLOCK_AND_PACK, CONTENT_KINDS, SOUND, places_of

OBJECT_COLUMNS = (
    "row, path, kind, size, mode, uid, gid, user_name, group_name, mtime_ns, target, digest, "
    "content_kind, content_id, error, holes"
)


#: A content that is one chunk.
_ONE_PIECE = "SELECT 0::UBIGINT AS file_offset, ?::BLOB AS chunk_id"


@dataclass(frozen=True)
class ObjectInfo:
    """An archived object. `size` in bytes, `mtime_ns` in ns since 1970; `error` says why it is incomplete, if it is."""

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


def list_objects(catalog: Catalog, run: uuid.UUID, path: bytes, recursive: bool) -> Iterator[ObjectInfo]:
    """The object `path` of a run and what lies in it (all below it when `recursive`), by row; the top-level objects
    when `path` is empty. Streams."""
    catalog.use("objects")
    condition, parameters = path_filter(path)
    if not recursive:
        depth = path.count(b"/") + (1 if path else 0)
        # As text, DuckDB escapes the bytes of a BLOB that are not printable; a '/' stays what it is.
        condition += f" AND length(path::VARCHAR) - length(replace(path::VARCHAR, '/', '')) <= {depth}"
    names = ("path", "target", "holes")
    columns = ", ".join(name for name in OBJECT_COLUMNS.split(", ") if name not in names)
    query = f"SELECT {columns}, {short_columns(names)} FROM objects WHERE run = ? AND {condition} ORDER BY row"
    for row in with_long_columns(catalog, run, catalog.rows(query, [run.bytes, *parameters]), names):
        yield ObjectInfo(run, **row)


def object_digests(catalog: Catalog, run: uuid.UUID, path: bytes, name: str) -> Iterator[tuple[bytes, bytes | None]]:
    """(path, digest `name`) of the files at and below `path` of a run, by row; None where it was not recorded.
    Streams."""
    catalog.use("objects")
    condition, parameters = path_filter(path)
    query = f"""
        SELECT row, {digest_column(name)} AS digest, {short_columns(["path"])} FROM objects
        WHERE run = ? AND kind IN ('file', 'stream') AND {condition} ORDER BY row
    """
    for row in with_long_columns(catalog, run, catalog.rows(query, [run.bytes, *parameters]), ["path"]):
        yield row["path"], row["digest"]


def find_object(catalog: Catalog, run: uuid.UUID, path: bytes) -> ObjectInfo:
    """The object called `path`. Raises NotFound."""
    catalog.use("objects", spare=True)
    for row in catalog.rows(
        f"SELECT {OBJECT_COLUMNS} FROM objects WHERE run = ? AND path = ? LIMIT 1", [run.bytes, path]
    ):
        return ObjectInfo(run, **row)
    if catalog.lost:
        raise Unreadable("; ".join(catalog.lost))
    raise no_such_object(run, path)


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


def no_such_object(run: uuid.UUID, path: bytes) -> NotFound:
    """The error for a path that a run does not hold."""
    short = short_id(run)
    return NotFound(f"run {short} holds no object '{shown(path)}'; see: drystone ls -R {short}")


def require_content(info: ObjectInfo) -> None:
    """Raise UsageError, NotFound or Unreadable unless bytes can be read from the object."""
    if info.kind not in ("file", "stream"):
        raise UsageError(f"'{shown(info.path)}' is a {info.kind}; only files have bytes to read")
    if info.content_kind == fmt.CONTENT_NONE and info.digest is None and info.error is not None:
        raise NotFound(f"'{shown(info.path)}' was not archived: {info.error}")
    if info.content_kind not in CONTENT_KINDS:
        raise Unreadable(
            f"the manifests give '{shown(info.path)}' the content_kind {info.content_kind}, which this version does "
            "not know"
        )


class ChunkPlace(NamedTuple):
    """Where a chunk lies: pack (its lengths in bytes), block, place in it; and where it belongs in its content."""

    pack_id: bytes
    k: int
    m: int
    payload: int
    shard_length: int
    block: int
    block_offset: int
    stored: int
    raw: int
    codec: int
    chunk_offset: int
    length: int
    chunk_id: bytes
    file_offset: int


def places_of_range(catalog: Catalog, info: ObjectInfo, offset: int, length: int) -> Iterator[ChunkPlace]:
    """The chunks that overlap a range of an object, by place in the object. Streams. Raises Unreadable."""
    catalog.use("extents", "chunks", "blocks", "packs", spare=True)
    pieces = _ONE_PIECE
    parameters: list[Any] = [info.content_id]
    if info.content_kind == fmt.CONTENT_EXTENTS:
        pieces = """
            SELECT DISTINCT "offset" AS file_offset, chunk_id FROM extents
            WHERE content_id = ? AND "offset" < ? AND "offset" + length > ?
        """
        parameters = [info.content_id, offset + length, offset]
    yield from _located(catalog, pieces, parameters)


def place_of_chunk(catalog: Catalog, chunk_id: bytes) -> ChunkPlace | None:
    """Where a chunk lies, or None where no manifest places it, or its copies are deleted. Raises Unreadable."""
    catalog.use("chunks", "blocks", "packs", spare=True)
    return next(_located(catalog, _ONE_PIECE, [chunk_id]), None)


def _located(catalog: Catalog, pieces: str, parameters: list[Any]) -> Iterator[ChunkPlace]:
    """The sound places of a query's chunks (file_offset, chunk_id)."""
    query = f"""
        WITH pieces AS MATERIALIZED ({pieces}),
        places AS ({places_of("pieces")})
        SELECT pl.pack_id, pk.k, pk.m, pk.payload, pk.shard_length, pl.block, b."offset" AS block_offset, b.stored,
               b.raw, b.codec, pl.chunk_offset, pl.length, pc.chunk_id, pc.file_offset, {SOUND} AS sound
        FROM pieces pc JOIN places pl USING (chunk_id) {BLOCK_AND_PACK}
        ORDER BY pc.file_offset
    """
    for *row, sound in catalog.tuples(query, parameters):
        if sound:
            place = ChunkPlace(*row)
            if (len(place.pack_id), len(place.chunk_id)) != (16, 32):
                raise Unreadable("the manifests hold an id of a wrong length; see: drystone verify --data")
            yield place
