"""Reading a byte range of an archived object: only the blocks that hold it are fetched."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from manifests import format as fmt
from manifests.catalog import Catalog
from manifests.errors import Unreadable
from manifests.objects import ObjectInfo, places_of_range, require_content
from pipeline.packreader import PackReaders, ShardSource
from pipeline.restore.work import pack_place
from pipeline.trial import block_judge, search
from stages.assemble import chunk_is_good
from stages.compress import Decoder

#: Decompressed blocks that a reader keeps, so that neighbouring extents of one block cost one read.
KEPT_BLOCKS = 4
_ZEROS = bytes(1 << 20)


class RangeReader:
    """Reads ranges of objects. Owned by one thread; keeps a few blocks, bounded by BLOCK_MAX each."""

    def __init__(self, catalog: Catalog, source: ShardSource) -> None:
        self._catalog = catalog
        self._readers = PackReaders(source)
        self._decoder = Decoder()
        self._blocks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    def read(self, info: ObjectInfo, offset: int, length: int) -> Iterator[bytes]:
        """The bytes of an object from `offset`, up to `length` of them, piece by piece. Raises
        UsageError, NotFound, and Unreadable where bytes can't be given back."""
        require_content(info)
        end = min(offset + length, info.size)
        if offset >= end:
            return
        has_chunks = info.content_kind != fmt.CONTENT_NONE
        for batch in places_of_range(self._catalog, info, offset, end - offset) if has_chunks else ():
            for row in batch.rows:
                start = int(row["file_offset"])
                if start > offset:
                    yield from _hole(info, offset, start)
                    offset = start
                chunk = self._chunk(row)
                piece = chunk[offset - start : end - start]
                offset = start + len(chunk) if start + len(chunk) < end else end
                yield piece
        if offset < end:
            yield from _hole(info, offset, end)

    def _chunk(self, row: np.void) -> bytes:
        key = (row["pack_id"].tobytes(), int(row["block"]))
        chunk_id, at, length = row["chunk_id"].tobytes(), int(row["chunk_offset"]), int(row["length"])
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = self._block(row)
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        chunk = block[at : at + length]
        if len(chunk) != length or not chunk_is_good(chunk_id, chunk):
            raise Unreadable(f"a chunk in pack {pack_place(row).pack_id} does not match its id")
        return chunk

    def _block(self, row: np.void) -> bytes:
        """The decompressed block that holds a chunk; where too few of its cells are sure, the chunk judges."""
        reader = self._readers.get(pack_place(row))
        offset, stored, codec, raw = (int(row[name]) for name in ("block_offset", "stored", "codec", "raw"))
        try:
            data = reader.read(offset, stored)
        except Unreadable:
            chunk = (row["chunk_id"].tobytes(), int(row["chunk_offset"]), int(row["length"]))
            data = search(reader, offset, stored, block_judge(self._decoder, codec, raw, [chunk]))
        return bytes(self._decoder.decode(codec, data, raw))


def _hole(info: ObjectInfo, start: int, end: int) -> Iterator[bytes]:
    """The zeros of a hole. Raises Unreadable where there is none: then extents are lost."""
    holes = np.frombuffer(info.holes or b"", "<u8").reshape(-1, 2)
    if not ((holes[:, 0] <= start) & (holes[:, 0] + holes[:, 1] >= end)).any():
        raise Unreadable(f"{info.path!r}: the manifests place its bytes {start} to {end} nowhere")
    while start < end:
        piece = _ZEROS[: end - start]
        yield piece
        start += len(piece)
