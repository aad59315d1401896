"""Objects and chunks as programs see them."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

_EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)


@dataclass(frozen=True)
class ObjectRef:
    """An object of a store. `id` is that of this version, `<run>-<row>`; `size` in bytes; `is_latest`: no newer version
    of the key was put into the bucket; `digest`: BLAKE3 of the content, None where a run could not read it whole;
    `etag`: MD5 in hexadecimal, or None; times in ns since 1970, None where there is none; an object that a run archived
    has no created time.

    >>> ref = ObjectRef("0-0", "a/b", size=5, created_ns=1_000_000_000, expires_ns=3_000_000_000)
    >>> ref.ttl, ref.is_expired(3_000_000_000), ref.version
    (2.0, True, '0-0')
    """

    id: str
    key: str
    bucket: str = ""
    size: int = 0
    is_latest: bool = True
    digest: bytes | None = None
    etag: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    created_ns: int | None = None
    deleted_ns: int | None = None
    expires_ns: int | None = None

    @property
    def version(self) -> str:
        """The same as `id`."""
        return self.id

    @property
    def created(self) -> datetime.datetime | None:
        """When it was put, in UTC."""
        return None if self.created_ns is None else _utc(self.created_ns)

    @property
    def deleted(self) -> datetime.datetime | None:
        """When it was deleted, in UTC."""
        return None if self.deleted_ns is None else _utc(self.deleted_ns)

    @property
    def expires(self) -> datetime.datetime | None:
        """When it is not found any more, in UTC."""
        return None if self.expires_ns is None else _utc(self.expires_ns)

    @property
    def ttl(self) -> float | None:
        """Seconds that it was given to live, None for ever."""
        if self.expires_ns is None or self.created_ns is None:
            return None
        return (self.expires_ns - self.created_ns) / 1e9

    def is_expired(self, now_ns: int) -> bool:
        """Whether it is not found any more at `now_ns`."""
        return self.expires_ns is not None and self.expires_ns <= now_ns


@dataclass(frozen=True)
class ChunkRef:
    """Where a chunk lies: `length` and `offset` (in its decompressed block) in bytes.

    >>> ChunkRef(bytes(32), 5, uuid.UUID(int=1), 0, 0).hex[:8]
    '00000000'
    """

    chunk_id: bytes
    length: int
    pack_id: uuid.UUID
    block: int
    offset: int

    @property
    def hex(self) -> str:
        """The id in hexadecimal."""
        return self.chunk_id.hex()


@dataclass(frozen=True)
class Chunk:
    """A chunk with its bytes, as `write_chunks` takes it.

    >>> len(Chunk(bytes(32), b"bytes").data)
    5
    """

    chunk_id: bytes
    data: bytes


@dataclass(frozen=True)
class IndexStats:
    """Chunks that are alive, and their bytes. What two runs that did not see each other stored twice counts twice.

    >>> IndexStats(2, 300).to_json()
    {'total_chunks': 2, 'total_bytes': 300}
    """

    total_chunks: int
    total_bytes: int

    def to_json(self) -> dict[str, int]:
        return {"total_chunks": self.total_chunks, "total_bytes": self.total_bytes}

    def plus(self, chunks: int, size: int) -> IndexStats:
        return IndexStats(self.total_chunks + chunks, self.total_bytes + size)


def _utc(ns: int) -> datetime.datetime:
    # In whole numbers: as a float, a time of our days is only good to 0.2 µs, and rounds to the next one.
    return _EPOCH + datetime.timedelta(microseconds=ns // 1000)
