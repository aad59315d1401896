"""What a program may count on of any object and chunk store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

from pipeline.objects.refs import ObjectRef

if TYPE_CHECKING:
    from io import RawIOBase

    from manifests.config import CodecSpec
    from pipeline.filestore import FileStore
    from pipeline.objects.intake import BinaryReader


@runtime_checkable
class Store(Protocol):
    """Objects by key, chunks by id. FileStore is one; a program that asks for a Store can be tested with less.

    >>> def size_of(store: Store, key: str) -> int:
    ...     return store.get_object(key).size
    """

    def get_object(self, name: str, *, bucket: str = "") -> ObjectRef:
        """The object of an id or a key. Raises NotFound, ObjectDeleted."""

    def get_object_data(self, name: str, *, bucket: str = "") -> RawIOBase:
        """Its bytes, as a stream that the caller closes."""

    def put_object(
        self,
        key: str,
        reader: BinaryReader,
        *,
        bucket: str = "",
        compression: CodecSpec | str | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        ttl: float | None = None,
    ) -> ObjectRef:
        """Store what `reader` gives, durable on return, all or nothing. `ttl` in seconds."""

    def delete_object(self, name: str, *, bucket: str = "") -> ObjectRef:
        """Reading it raises ObjectDeleted from now on."""

    def get_chunk(self, chunk_id: bytes | str) -> BinaryIO:
        """A chunk as a stream. Raises NotFound."""

    def get_chunk_range(self, chunk_id: bytes | str, offset: int, length: int) -> BinaryIO:
        """A range of a chunk, in bytes, as a stream; past the end there is nothing."""

    def close(self) -> None:
        """Release what it holds. May be called twice."""


if TYPE_CHECKING:

    def _is_a_store(store: FileStore) -> Store:
        return store  # mypy compares them here
