"""Reading a byte range of an archived object: only the blocks that hold it are fetched.

A command that reads a range is over in a moment, so what only rot makes necessary is imported when it is: trial.py, and
with it NumPy, and the erasure library.
"""

from __future__ import annotations

import struct
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

from manifests import format as fmt
from manifests.config import ECScheme
from manifests.errors import Unreadable
from manifests.objects import ChunkPlace, ObjectInfo, require_content
from pipeline.packreader import PackPlace, PackReaders, ShardSource
from stages.assemble import chunk_is_good
from stages.compress import Decoder

#: Bytes of decompressed blocks that are kept, so that neighbouring extents of one block cost one read.
KEPT_BYTES = 16 << 20
_ZEROS = bytes(1 << 20)


Places = Callable[[ObjectInfo, int, int], Iterable[ChunkPlace]]


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


class RangeReader:
    """Reads ranges of objects. For several threads at once, if `places` is; blocks are kept in `cache`."""

    def __init__(
        self,
        places: Places,
        source: ShardSource,
        cache: BlockCache | None = None,
        make_decoder: Callable[[], Decoder] = Decoder,
    ) -> None:
        """`places`: the chunks that overlap a range of an object, by place in it, as `places_of_range` tells;
        `make_decoder`: makes one for each thread."""
        self._places = places
        self._source = source
        self._cache = cache or BlockCache()
        self._make_decoder = make_decoder
        self._tools = _Tools()

    def read(self, info: ObjectInfo, offset: int, length: int) -> Iterator[bytes]:
        """The bytes of an object from `offset`, up to `length` of them, piece by piece. Raises
        UsageError, NotFound, and Unreadable where bytes can't be given back; at the end, too, where all of them are not
        what was recorded of the whole."""
        require_content(info)
        end = min(offset + length, info.size)
        if offset >= end and (offset or info.size):
            return
        pieces = self._pieces(info, offset, end)
        is_implied = info.content_kind == fmt.CONTENT_CHUNK and info.digest == info.content_id
        if offset or end < info.size or info.digest is None or is_implied:
            yield from pieces
            return
        hasher = blake3()
        for piece in pieces:
            hasher.update(piece)
            yield piece
        if hasher.digest() != info.digest:
            raise Unreadable(f"{info.path!r}: its bytes are not those that were archived: their BLAKE3 is another")

    def _pieces(self, info: ObjectInfo, offset: int, end: int) -> Iterator[bytes]:
        has_chunks = info.content_kind != fmt.CONTENT_NONE
        for place in self._places(info, offset, end - offset) if has_chunks else ():
            start = place.file_offset
            if start > offset:
                yield from _hole(info, offset, start)
                offset = start
            chunk = self.chunk(place)
            piece = chunk[offset - start : end - start]
            offset = start + len(chunk) if start + len(chunk) < end else end
            yield piece
        if offset < end:
            yield from _hole(info, offset, end)

    def chunk(self, place: ChunkPlace) -> bytes:
        """The bytes of a chunk, checked by its id. Raises Unreadable."""
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


def _hole(info: ObjectInfo, start: int, end: int) -> Iterator[bytes]:
    """The zeros of a hole. Raises Unreadable where there is none: then extents are lost."""
    holes = struct.iter_unpack("<QQ", info.holes or b"")
    if not any(offset <= start and offset + length >= end for offset, length in holes):
        raise Unreadable(f"{info.path!r}: the manifests place its bytes {start} to {end} nowhere")
    while start < end:
        piece = _ZEROS[: end - start]
        yield piece
        start += len(piece)
