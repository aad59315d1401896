"""What FileStore does with objects and chunks: thin methods over the modules beside this one.

All of these may be called from several threads: `get_object…`, `get_chunk…`, `list_objects`, `list_versions`,
`iterate_chunks` and `get_index_stats` read, what else there is writes, in turns (turns.py).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from manifests.config import CodecSpec
from manifests.errors import ChunkInUse, NotFound, ObjectDeleted, UsageError
from pipeline.objects.refs import Chunk, ChunkRef, IndexStats, ObjectRef
from pipeline.objects.turns import WriteTurns

if TYPE_CHECKING:
    import uuid

    from manifests.catalog import Catalog
    from manifests.objects import ObjectInfo
    from manifests.places import ChunkPlace
    from pipeline.objects.intake import BinaryReader
    from pipeline.objects.reading import ObjectStream, Reading


class ObjectOperations(WriteTurns):
    """The part of FileStore that knows objects by key and chunks by id."""

    # --- objects -----------------------------------------------------------------------------------------------------

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
        etag: bool | None = None,
    ) -> ObjectRef:
        """Store what `reader` gives until it ends, as the newest version of `key` in `bucket`: durable on return, or,
        in a `batch`, when that ends. `compression`: none, lz4 or zstd:LEVEL, the store's unless told; `ttl`: seconds
        after which it is not found any more; `etag`: whether to compute its MD5, as the store is set unless told.
        `reader` stays the caller's; what it raises passes through, and nothing is stored. Raises UsageError,
        TooFewBackends, BackendFull, Superseded.

        >>> store.put_object("photos/dog", io.BytesIO(b"woof"), content_type="image/jpeg", ttl=3600).size
        4
        """
        from pipeline.objects.request import codec_of, make_put

        put = make_put(key, bucket, content_type, {} if metadata is None else metadata, ttl)
        codec, md5 = codec_of(compression), self.config.etags if etag is None else etag
        with self._turn:
            if self._batch is not None:
                return self._batch.put(reader, put, codec, md5)
            with self._writing("put") as batch:
                return batch.put(reader, put, codec, md5)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Puts within the `with`, by any thread, become visible and durable together when it ends, by one record; none
        of them when it is left by an exception. A put that fails by its reader leaves the others as they are. Waits for
        a batch of another thread; raises UsageError within one of the same thread.

        >>> with store.batch():
        ...     for number in range(3):
        ...         ref = store.put_object(f"photos/{number}", io.BytesIO(b"x" * number))
        >>> [ref.size for ref in store.list_objects("photos/")]
        [0, 1, 2, 4]
        """
        with self._alone():
            batch, self._batch_thread = self._begin("put"), threading.get_ident()
        try:
            yield
        except BaseException as error:
            with self._turn:
                self._give_up(batch, error)
            raise
        with self._turn:
            if self._batch is not batch:
                raise UsageError("the store was closed before the batch ended, so nothing of it was committed")
            self._commit(batch)

    def get_object(self, name: str, *, bucket: str = "") -> ObjectRef:
        """The object of an id, or the newest one of a key. Raises ObjectDeleted where that was deleted, NotFound where
        it is not, or not any more.

        >>> store.get_object("photos/cat").content_type
        'image/jpeg'
        """
        return self._find(name, bucket)[0]

    def get_object_data(self, name: str, *, bucket: str = "") -> ObjectStream:
        """The bytes of an object, as a stream that seeks; the caller closes it. Raises as `get_object`, and UsageError
        of what has no bytes.

        >>> store.get_object_data("photos/cat").read()
        b'meow'
        """
        from pipeline.objects.reading import ObjectStream

        return ObjectStream(self._readings(), self._find(name, bucket)[1])

    def get_object_range(self, name: str, offset: int, length: int, *, bucket: str = "") -> bytes:
        """Up to `length` bytes of an object from `offset`: what there is. Raises as `get_object_data`, Unreadable.

        >>> store.get_object_range("photos/cat", 1, 100)
        b'eow'
        """
        return self._readings().range(self._find(name, bucket)[1], offset, length)

    def delete_object(self, name: str, *, bucket: str = "") -> ObjectRef:
        """Delete the object of an id, or the newest one of a key: from now on reading it raises ObjectDeleted. Its data
        stays until gc. Raises as `get_object`, and UsageError of an object that a run archived.

        >>> store.delete_object("photos/cat").deleted_ns > 0
        True
        """
        from manifests.tombstones import write_deletion

        with self._turn:
            self._prepare_to_write()
            ref, _ = self._find(name, bucket, expired=True)
            if ref.created_ns is None:
                raise UsageError(f"object {ref.id} is one of a run, and goes with it; only what was put can be deleted")
            self._note(write_deletion(self.members, self.state, objects=[ref.id]))
            return self._ref_of_id(ref.id)

    def list_objects(self, prefix: str = "", *, bucket: str | None = None) -> Iterator[ObjectRef]:
        """What keys with `prefix` stand for, by key; those of all buckets unless told. Deleted and expired ones are
        left out. Streams, as things stand when each page is read.

        >>> [ref.key for ref in store.list_objects("photos/")]
        ['photos/cat']
        """
        from manifests.keys import PAGE, page_of_keys
        from pipeline.objects.request import key_bytes, now_ns, object_ref

        after: tuple[bytes, str] | None = None
        while True:
            with self._lock:
                rows, state = page_of_keys(self.catalog, key_bytes(prefix), bucket, after), self.state
            for row in rows:
                ref = object_ref(row, state)
                if ref.deleted_ns is None and not ref.is_expired(now_ns()):
                    yield ref
            if len(rows) < PAGE:
                return
            after = (rows[-1]["path"], rows[-1]["bucket"])

    def list_versions(self, key: str, *, bucket: str = "") -> list[ObjectRef]:
        """All that was put under a key, the newest first, also what is deleted (`deleted_ns`) or expired.

        >>> ref = store.put_object("photos/cat", io.BytesIO(b"purr"))
        >>> [ref.is_latest for ref in store.list_versions("photos/cat")]
        [True, False]
        """
        from manifests.keys import versions_of_key
        from pipeline.objects.request import key_bytes, object_ref

        with self._lock:
            return [object_ref(row, self.state) for row in versions_of_key(self.catalog, bucket, key_bytes(key))]

    # --- chunks ------------------------------------------------------------------------------------------------------

    def get_chunk(self, chunk_id: bytes | str) -> BinaryIO:
        """A chunk as a stream. `chunk_id`: 32 bytes, or in hexadecimal. Raises NotFound, Unreadable.

        >>> store.get_chunk(chunk_id).read(4)
        b'meow'
        """
        return io.BytesIO(self.get_chunk_data(chunk_id))

    def get_chunk_data(self, chunk_id: bytes | str) -> bytes:
        """The bytes of a chunk. Raises NotFound, Unreadable.

        >>> len(store.get_chunk_data(chunk_id))
        4
        """
        return self._readings().chunk(self._place(chunk_id))

    def get_chunk_range(self, chunk_id: bytes | str, offset: int, length: int) -> BinaryIO:
        """A range of a chunk as a stream, as `get_chunk_data_range` gives it.

        >>> store.get_chunk_range(chunk_id, 1, 2).read()
        b'eo'
        """
        return io.BytesIO(self.get_chunk_data_range(chunk_id, offset, length))

    def get_chunk_data_range(self, chunk_id: bytes | str, offset: int, length: int) -> bytes:
        """Up to `length` bytes of a chunk from `offset`: what there is. Raises UsageError, NotFound, Unreadable.

        >>> store.get_chunk_data_range(chunk_id, 1, 2)
        b'eo'
        """
        if offset < 0 or length < 0:
            raise UsageError(f"a range of {length} bytes from {offset}: neither may be negative")
        return self.get_chunk_data(chunk_id)[offset : offset + length]

    def get_chunk_info(self, chunk_id: bytes | str) -> ChunkRef:
        """Where a chunk lies. Raises NotFound.

        >>> store.get_chunk_info(chunk_id).length
        4
        """
        from pipeline.objects.request import chunk_ref

        return chunk_ref(self._place(chunk_id))

    def write_chunk(
        self, chunk_id: bytes | str, data: bytes | memoryview, backend_id: str | uuid.UUID | None = None
    ) -> bool:
        """Store a chunk that another store has cut, durable on return; whether it is new here. It is kept until it is
        deleted, whether an object refers to it or not. `backend_id`: where a shard of it should go, if placement lets
        it. Raises WrongChunk where `data` is not what the id says, UsageError, NotFound, TooFewBackends, BackendFull.

        >>> store.write_chunk(blake3(b"woof").digest(), b"woof"), store.write_chunk(chunk_id, b"meow")
        (True, False)
        """
        from pipeline.objects.request import make_chunk

        return self.write_chunks([make_chunk(chunk_id, data)], backend_id) == 1

    def write_chunks(self, chunks: Iterable[Chunk], backend_id: str | uuid.UUID | None = None) -> int:
        """Store many chunks at once, all or none of them; how many are new here. As `write_chunk`.

        >>> store.write_chunks(Chunk(blake3(data).digest(), data) for data in (b"woof", b"meow", b"moo"))
        2
        """
        from pipeline.objects.request import require_chunk

        preferred = None if backend_id is None else self._number_of(backend_id)
        with self._writing("receive", preferred) as batch:
            for chunk in chunks:
                require_chunk(chunk)
                batch.receive(chunk.chunk_id, chunk.data)
        return batch.sums.new_chunks

    def delete_chunk(self, chunk_id: bytes | str, *, force: bool = False) -> None:
        """Delete all copies of a chunk: nothing reads them any more, their bytes stay until gc. What is stored again is
        there again. Raises NotFound, and ChunkInUse while an object that is not deleted consists of it, unless `force`:
        then such objects are lost.

        >>> ref = store.delete_object("photos/cat")
        >>> store.delete_chunk(chunk_id)
        """
        from manifests.ids import object_id
        from manifests.keys import copies_of_chunk, object_of_chunk
        from manifests.tombstones import write_deletion
        from pipeline.metrics.meters import Count
        from pipeline.objects.request import chunk_bytes, run_of

        identity = chunk_bytes(chunk_id)
        with self._alone():
            self._prepare_to_write()
            with self._lock:
                copies = copies_of_chunk(self.catalog, identity)
                user = None if force else object_of_chunk(self.catalog, identity)
            if not copies:
                raise NotFound(f"the store holds no chunk {identity.hex()}{self.replicas.away}")
            if user is not None:
                name = object_id(run_of(user), user["row"])
                raise ChunkInUse(
                    f"object {name} ({user['path'].decode(errors='replace')!r}) consists of chunk {identity.hex()}; "
                    "delete the object first, or force it, and lose the object"
                )
            self._release_known()
            record = write_deletion(self.members, self.state, chunks=copies)
            self._note(record, IndexStats(-len(copies), -sum(length for _, _, length in copies)))
            self.figures.count_chunks(Count.DELETED, len(copies))

    def iterate_chunks(self) -> Iterator[Any]:
        """All copies of chunks that are alive, as Arrow record batches of chunk_id, pack_id, block, offset and length,
        in no order; streams. For reconciliation with another store.

        >>> sum(batch.num_rows for batch in store.iterate_chunks())
        2
        """
        with self._lock:
            catalog = self.catalog
            catalog.use("chunks")
        return catalog.batches('SELECT DISTINCT chunk_id, pack_id, block, "offset", length FROM chunks')

    def get_index_stats(self) -> IndexStats:
        """Chunks that are alive, and their bytes: summed once over packs, then kept up to date, so O(1).

        >>> store.get_index_stats().to_json()
        {'total_chunks': 2, 'total_bytes': 23}
        """
        from manifests.keys import chunk_sums

        with self._lock:
            self._require_open()
            if self._stats is None:
                self._stats = IndexStats(*chunk_sums(self.catalog))
            return self._stats

    # --- what they share ---------------------------------------------------------------------------------------------

    def _find(self, name: str, bucket: str, *, expired: bool = False) -> tuple[ObjectRef, ObjectInfo]:
        """An object by id or key; `expired`: also one that is."""
        from manifests.ids import is_object_id, split_object_id
        from manifests.keys import newest_of_key, object_of_id
        from pipeline.objects.request import key_bytes, now_ns, object_info, object_ref

        key = key_bytes(name)
        identity = split_object_id(name) if is_object_id(name) else None
        with self._lock:
            row = None if identity is None else object_of_id(self.catalog, *identity)
            if row is None:
                row = newest_of_key(self.catalog, bucket, key)
            state = self.state
        if row is None:
            where = f" in bucket {bucket!r}" if bucket else ""
            raise NotFound(f"the store holds no object {name!r}{where}; see list_objects{self.replicas.away}")
        ref = object_ref(row, state)
        if ref.deleted_ns is not None:
            raise ObjectDeleted(f"object {ref.id} ({ref.key!r}) was deleted on {state.deleted[ref.id]}")
        if not expired and ref.is_expired(now_ns()):
            raise NotFound(f"object {ref.id} ({ref.key!r}) has expired; its time to live was {ref.ttl} s")
        return ref, object_info(row)

    def _ref_of_id(self, name: str) -> ObjectRef:
        """The object of an id, deleted or not."""
        from manifests.ids import split_object_id
        from manifests.keys import object_of_id
        from pipeline.objects.request import object_ref

        with self._lock:
            row = object_of_id(self.catalog, *split_object_id(name))
            if row is None:
                raise NotFound(f"the store holds no object {name!r}{self.replicas.away}")
            return object_ref(row, self.state)

    def _place(self, chunk_id: bytes | str) -> ChunkPlace:
        from pipeline.objects.request import chunk_bytes

        identity = chunk_bytes(chunk_id)
        place = self._readings().place(identity)
        if place is None:
            raise NotFound(f"the store holds no chunk {identity.hex()}{self.replicas.away}")
        return place

    def _readings(self) -> Reading:
        with self._lock:
            self._require_open()
            if self._reading is None:
                from pipeline.objects.reading import Reading
                from pipeline.shardfiles import ShardSource

                storages = {member.number: member.storage for member in self.members.readable}
                source = ShardSource(self.config.shard_stores, storages, tuple(info.seat for info in self.members.all))
                current: Callable[[], Catalog] = lambda: self.catalog  # noqa: E731 - the catalog changes with each put
                meters = self.figures.meters
                self._reading = Reading(current, self._lock, source, self.config.chunker.size, meters)
            return self._reading

    def _number_of(self, backend_id: str | uuid.UUID) -> int:
        from manifests.membership import find_info

        return find_info(self.members, str(backend_id)).number
