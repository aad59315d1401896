"""Reading a byte range of an archived object: only the blocks that hold it are fetched.

A command that reads a range is over in a moment, so what only rot makes necessary is imported when it is: trial.py, and
with it NumPy, and the erasure library.
"""

from __future__ import annotations

import struct
import uuid
from collections import OrderedDict
from collections.abc import Iterator

from manifests import format as fmt
from manifests.catalog import Catalog
from manifests.config import ECScheme
from manifests.errors import Unreadable
from manifests.objects import ChunkPlace, ObjectInfo, places_of_range, require_content
from pipeline.packreader import PackPlace, PackReaders, ShardSource
from stages.assemble import chunk_is_good
from stages.compress import Decoder

#: Decompressed blocks that a reader keeps, so that neighbouring extents of one block cost one read.
KEPT_BLOCKS = 4
_ZEROS = bytes(1 << 20)


class RangeReader:
    """Reads ranges of objects. Owned by one thread; keeps a few blocks, bounded by BLOCK_MAX each."""

    def __init__(self, catalog: Catalog, source: ShardSource, decoder: Decoder | None = None) -> None:
        self._catalog = catalog
        self._readers = PackReaders(source)
        self._decoder = decoder or Decoder()
        self._blocks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    def read(self, info: ObjectInfo, offset: int, length: int) -> Iterator[bytes]:
        """The bytes of an object from `offset`, up to `length` of them, piece by piece. Raises
        UsageError, NotFound, and Unreadable where bytes can't be given back."""
        require_content(info)
        end = min(offset + length, info.size)
        if offset >= end:
            return
        has_chunks = info.content_kind != fmt.CONTENT_NONE
        for place in places_of_range(self._catalog, info, offset, end - offset) if has_chunks else ():
            start = place.file_offset
            if start > offset:
                yield from _hole(info, offset, start)
                offset = start
            chunk = self._chunk(place)
            piece = chunk[offset - start : end - start]
            offset = start + len(chunk) if start + len(chunk) < end else end
            yield piece
        if offset < end:
            yield from _hole(info, offset, end)

    def _chunk(self, place: ChunkPlace) -> bytes:
        key = (place.pack_id, place.block)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = self._block(place)
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        chunk = block[place.chunk_offset : place.chunk_offset + place.length]
        if len(chunk) != place.length or not chunk_is_good(place.chunk_id, chunk):
            raise Unreadable(f"a chunk in pack {uuid.UUID(bytes=place.pack_id)} does not match its id")
        return chunk

    def _block(self, place: ChunkPlace) -> bytes:
        """The decompressed block that holds a chunk; where too few of its cells are sure, the chunk judges."""
        pack = PackPlace(uuid.UUID(bytes=place.pack_id), ECScheme(place.k, place.m), place.payload, place.shard_length)
        reader = self._readers.get(pack)
        try:
            data = reader.read(place.block_offset, place.stored)
        except Unreadable:
            from pipeline.trial import block_judge, search

            chunk = (place.chunk_id, place.chunk_offset, place.length)
            judge = block_judge(self._decoder, place.codec, place.raw, [chunk])
            data = search(reader, place.block_offset, place.stored, judge)
        return bytes(self._decoder.decode(place.codec, data, place.raw))


def _hole(info: ObjectInfo, start: int, end: int) -> Iterator[bytes]:
    """The zeros of a hole. Raises Unreadable where there is none: then extents are lost."""
    holes = struct.iter_unpack("<QQ", info.holes or b"")
    if not any(offset <= start and offset + length >= end for offset, length in holes):
        raise Unreadable(f"{info.path!r}: the manifests place its bytes {start} to {end} nowhere")
    while start < end:
        piece = _ZEROS[: end - start]
        yield piece
        start += len(piece)
