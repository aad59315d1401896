"""What programs ask for, checked; and rows of manifests as what programs get."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from manifests import format as fmt
from manifests.config import CodecSpec
from manifests.errors import Unreadable, UsageError, WrongChunk
from manifests.ids import object_id
from manifests.log import State
from manifests.objects import ObjectInfo
from manifests.places import ChunkPlace
from pipeline.objects.batch import Put
from pipeline.objects.refs import Chunk, ChunkRef, ObjectRef
from stages.assemble import chunk_is_good

#: Longest key, in bytes of UTF-8.
KEY_MAX = 64 << 10
#: Longest time to live, in seconds: 200 years, so that its end is a time of 64 bits of nanoseconds.
TTL_MAX = 200 * 366 * 86400
_INFO = tuple(name for name in ObjectInfo.__dataclass_fields__ if name != "run")


def now_ns() -> int:
    return time.time_ns()


def key_bytes(key: str) -> bytes:
    """A key as the column `path` has it. Raises UsageError."""
    if not isinstance(key, str):
        raise UsageError(f"the key {key!r} is no text; keys, prefixes and ids are")
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the key {key!r} is no text that UTF-8 can write: {error.reason}") from error


def make_put(key: str, bucket: str, content_type: str | None, metadata: Mapping[str, str], ttl: float | None) -> Put:
    """What is told of an object that is to be put. Raises UsageError."""
    if not 0 < len(key_bytes(key)) <= KEY_MAX:
        raise UsageError(f"a key of {len(key_bytes(key))} bytes: 1 to {KEY_MAX}")
    if not isinstance(metadata, Mapping):
        raise UsageError(f"the metadata {metadata!r} is no mapping of texts to texts")
    for text in (bucket, "" if content_type is None else content_type, *metadata.keys(), *metadata.values()):
        if not isinstance(text, str):
            raise UsageError(f"{text!r} is no text; buckets, content types and metadata are")
        key_bytes(text)
    return Put(key, bucket, content_type, dict(metadata), None if ttl is None else _ttl_ns(ttl))


def _ttl_ns(ttl: float) -> int:
    """Raises UsageError."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 <= ttl <= TTL_MAX:
        raise UsageError(f"a ttl of {ttl!r} s: a number from 0 to {TTL_MAX}; without one, an object lives for ever")
    return round(ttl * 1e9)


def codec_of(compression: CodecSpec | str | None) -> CodecSpec | None:
    """None for the store's. Raises UsageError."""
    if isinstance(compression, str):
        return CodecSpec.parse(compression)
    if compression is None or isinstance(compression, CodecSpec):
        return compression
    raise UsageError(f"{compression!r} is no compression; there are none, lz4 and zstd:LEVEL")


def chunk_bytes(chunk_id: bytes | str) -> bytes:
    """The 32 bytes of a chunk's id. Raises UsageError."""
    try:
        identity = bytes.fromhex(chunk_id) if isinstance(chunk_id, str) else bytes(memoryview(chunk_id))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{chunk_id!r} is no id of a chunk: {error}") from error
    if len(identity) != 32:
        raise UsageError(f"{chunk_id!r} is no id of a chunk: it has 32 bytes, or 64 hexadecimal digits")
    return identity


def make_chunk(chunk_id: bytes | str, data: bytes | memoryview) -> Chunk:
    """A chunk as `write_chunks` takes it. Raises UsageError."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UsageError(f"the data of chunk {chunk_bytes(chunk_id).hex()} is a {type(data).__name__}, and no bytes")
    return Chunk(chunk_bytes(chunk_id), bytes(data))


def require_chunk(chunk: Chunk) -> None:
    """Raise UsageError, WrongChunk unless a chunk may be stored."""
    identity = chunk_bytes(chunk.chunk_id)
    if not 0 < len(chunk.data) <= fmt.CHUNK_MAX:
        raise UsageError(f"chunk {identity.hex()}: {len(chunk.data)} bytes; a chunk has 1 to {fmt.CHUNK_MAX}")
    if not chunk_is_good(identity, chunk.data):
        raise WrongChunk(f"the {len(chunk.data)} bytes are not chunk {identity.hex()}: their BLAKE3 is another")


def run_of(row: Mapping[str, Any]) -> uuid.UUID:
    """The run of a row of table objects. Raises Unreadable."""
    try:
        return uuid.UUID(bytes=row["run"])
    except (ValueError, TypeError) as error:
        raise Unreadable(f"the manifests hold a run that is no id: {row['run']!r}") from error


def object_ref(row: Mapping[str, Any], state: State) -> ObjectRef:
    """A row of manifests/keys.py as programs see it. Raises Unreadable where it makes no sense."""
    name = object_id(run_of(row), row["row"])
    deleted = state.deleted.get(name)
    try:
        metadata = json.loads(row["metadata"] or "{}")
        when = None if deleted is None else datetime.datetime.fromisoformat(deleted)
    except ValueError as error:
        raise Unreadable(f"object {name}: what the manifests tell of it makes no sense: {error}") from error
    return ObjectRef(
        name,
        row["path"].decode(errors="surrogateescape"),
        row["bucket"] or "",
        row["size"],
        row["is_latest"],
        row["digest"],
        row["etag"],
        row["content_type"],
        metadata,
        row["created_ns"],
        None if when is None else round(when.timestamp() * 1e9),
        row["expires_ns"],
    )


def object_info(row: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(run_of(row), **{name: row[name] for name in _INFO})


def chunk_ref(place: ChunkPlace) -> ChunkRef:
    return ChunkRef(place.chunk_id, place.length, uuid.UUID(bytes=place.pack_id), place.block, place.chunk_offset)
