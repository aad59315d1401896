"""Reading a byte range of an archived object: only the blocks that hold it are fetched."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

from manifests import format as fmt
from manifests.errors import Unreadable
from manifests.objects import ObjectInfo, require_content
from manifests.places import ChunkPlace
from pipeline.chunkreader import ChunkReader

_ZEROS = bytes(1 << 20)


Places = Callable[[ObjectInfo, int, int], Iterable[ChunkPlace]]


class RangeReader:
    """Reads ranges of objects. For several threads at once, if `places` is."""

    def __init__(self, places: Places, chunks: ChunkReader) -> None:
        """`places`: the chunks that overlap a range of an object, by place in it, as `places_of_range` tells."""
        self._places = places
        self._chunks = chunks

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
            chunk = self._chunks.chunk(place)
            piece = chunk[offset - start : end - start]
            offset = start + len(chunk) if start + len(chunk) < end else end
            yield piece
        if offset < end:
            yield from _hole(info, offset, end)


def _hole(info: ObjectInfo, start: int, end: int) -> Iterator[bytes]:
    """The zeros of a hole. Raises Unreadable where there is none: then extents are lost."""
    holes = struct.iter_unpack("<QQ", info.holes or b"")
    if not any(offset <= start and offset + length >= end for offset, length in holes):
        raise Unreadable(f"{info.path!r}: the manifests place its bytes {start} to {end} nowhere")
    while start < end:
        piece = _ZEROS[: end - start]
        yield piece
        start += len(piece)
