"""Reading single chunks wherever they lie: where one place does not give a chunk back, the next one is tried.

A command that reads a range is over in a moment, so what only rot makes necessary is imported when it is: trial.py, and
with it NumPy, and the erasure library.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable

from manifests.config import ECScheme
from manifests.errors import DrystoneError, Unreadable
from manifests.places import ChunkPlace
from pipeline.packreader import PackPlace, PackReaders, ShardSource
from stages.assemble import chunk_is_good
from stages.compress import Decoder

#: Bytes of decompressed blocks that are kept, so that neighbouring extents of one block cost one read.
KEPT_BYTES = 16 << 20


class BlockCache:
    """Decompressed blocks by (pack, block), those used last, up to `capacity` bytes or one block. For several threads
    at once; what it gives out is never changed."""

    def __init__(self, capacity: int = KEPT_BYTES) -> None:
        self._capacity = capacity
        self._size = 0
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    def get(self, key: tuple[bytes, int]) -> bytes | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: tuple[bytes, int], block: bytes) -> None:
        with self._lock:
            self._size += len(block) - len(self._blocks.pop(key, b""))
            self._blocks[key] = block
            while self._size > self._capacity and len(self._blocks) > 1:
                self._size -= len(self._blocks.popitem(last=False)[1])

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size


class _Tools(threading.local):
    """What each thread has for itself."""

    readers: PackReaders | None = None
    decoder: Decoder | None = None


class ChunkReader:
    """Reads chunks by their places. For several threads at once, if `places_of` is; blocks are kept in `cache`."""

    def __init__(
        self,
        source: ShardSource,
        places_of: Callable[[bytes], Iterable[ChunkPlace]],
        cache: BlockCache | None = None,
        make_decoder: Callable[[], Decoder] = Decoder,
    ) -> None:
        """`places_of`: all sound places of a chunk, those first that are tried first; it is asked where one failed.
        `make_decoder`: makes one for each thread."""
        self._source = source
        self._places_of = places_of
        self._cache = cache or BlockCache()
        self._make_decoder = make_decoder
        self._tools = _Tools()

    def chunk(self, place: ChunkPlace) -> bytes:
        """The bytes of a chunk, checked by its id, from `place` or any other one. Raises Unreadable, BackendError."""
        try:
            return self._at(place)
        except DrystoneError:
            found = self.elsewhere(place.chunk_id, _where(place))
            if found is None:
                raise
            return found

    def elsewhere(self, chunk_id: bytes, failed: tuple[bytes, int, int, int]) -> bytes | None:
        """The bytes of a chunk from any place but `failed` (pack id, block, offset in it, length), counted in the
        figures; None where no other place gives it back."""
        for place in self._places_of(chunk_id):
            if _where(place) == failed:
                continue
            try:
                found = self._at(place)
            except DrystoneError:
                continue
            self._source.figures.elsewhere += 1
            return found
        return None

    def _at(self, place: ChunkPlace) -> bytes:
        """The bytes of a chunk from this place. Raises Unreadable, BackendError."""
        key = (place.pack_id, place.block)
        block = self._cache.get(key)
        if block is None:
            block = self._block(place)
            self._cache.put(key, block)
        chunk = block[place.chunk_offset : place.chunk_offset + place.length]
        if len(chunk) != place.length or not chunk_is_good(place.chunk_id, chunk):
            raise Unreadable(f"a chunk in pack {uuid.UUID(bytes=place.pack_id)} does not match its id")
        return chunk

    def _block(self, place: ChunkPlace) -> bytes:
        """The decompressed block that holds a chunk; where too few of its cells are sure, the chunk judges."""
        pack = PackPlace(uuid.UUID(bytes=place.pack_id), ECScheme(place.k, place.m), place.payload, place.shard_length)
        if self._tools.readers is None or self._tools.decoder is None:
            self._tools.readers, self._tools.decoder = PackReaders(self._source), self._make_decoder()
        reader, decoder = self._tools.readers.get(pack), self._tools.decoder
        try:
            data = reader.read(place.block_offset, place.stored)
        except Unreadable:
            from pipeline.trial import block_judge, search

            chunk = (place.chunk_id, place.chunk_offset, place.length)
            judge = block_judge(decoder, place.codec, place.raw, [chunk])
            data = search(reader, place.block_offset, place.stored, judge)
        return bytes(decoder.decode(place.codec, data, place.raw))


def _where(place: ChunkPlace) -> tuple[bytes, int, int, int]:
    return place.pack_id, place.block, place.chunk_offset, place.length
