"""Reading objects and chunks for programs: a stream that seeks, ranges, chunks; from several threads at once.

All reading of a store shares a bounded cache of decoded blocks, and one of where chunks lie, window by window of a
content, so that small reads one after the other ask the manifests once.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from manifests import format as fmt
from manifests.catalog import Catalog
from manifests.copies import places_of_chunk
from manifests.errors import UsageError
from manifests.objects import ObjectInfo, places_of_range, require_content
from manifests.places import ChunkPlace
from pipeline.chunkreader import BlockCache, ChunkReader
from pipeline.metrics.codec import MeteredDecoder
from pipeline.metrics.healing import HealingCounter
from pipeline.metrics.meters import Meters
from pipeline.ranges import RangeReader
from pipeline.shardfiles import ShardSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Bytes of decoded blocks that an open store keeps.
CACHE_BYTES = 64 << 20
#: Chunks of a content, about, whose places are looked up at once; and how many such windows are kept.
WINDOW_CHUNKS, KEPT_WINDOWS = 1024, 16
#: What a stream reads at a time when it is to be read to its end.
PIECE = 4 << 20

Window = tuple[ChunkPlace, ...]


class Reading:
    """What reads from an open store share. For several threads at once."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        lock: threading.RLock,
        source: ShardSource,
        chunk_size: int,
        meters: Meters,
    ) -> None:
        """`catalog` gives the current one, which is used under `lock`; `chunk_size`: of the store's chunks, about;
        `meters` count blocks and what was healed."""
        self._catalog = catalog
        self._lock = lock
        self._window = WINDOW_CHUNKS * chunk_size
        self._windows: OrderedDict[tuple[int, bytes | None, int], Window] = OrderedDict()
        self._healing = HealingCounter(meters, source.figures)
        self._chunks = ChunkReader(source, self.places_of, BlockCache(CACHE_BYTES), partial(MeteredDecoder, meters))
        self._reader = RangeReader(self._places, self._chunks)

    def pieces(self, info: ObjectInfo, offset: int, length: int) -> Iterator[bytes]:
        """The bytes of an object from `offset`, up to `length`: what there is. Raises UsageError, NotFound,
        Unreadable."""
        if offset < 0 or length < 0:
            raise UsageError(f"a range of {length} bytes from {offset}: neither may be negative")
        try:
            yield from self._reader.read(info, offset, length)
        finally:
            self._healing.note()

    def range(self, info: ObjectInfo, offset: int, length: int) -> bytes:
        """The same as one piece."""
        return b"".join(self.pieces(info, offset, length))

    def place(self, chunk_id: bytes) -> ChunkPlace | None:
        """Where a chunk lies, or None where no manifest places it, or its copies are deleted. Raises Unreadable."""
        return next(iter(self.places_of(chunk_id)), None)

    def places_of(self, chunk_id: bytes) -> list[ChunkPlace]:
        """All sound places of a chunk, in the order in which they are tried."""
        with self._lock:
            return places_of_chunk(self._catalog(), chunk_id)

    def chunk(self, place: ChunkPlace) -> bytes:
        """The bytes of a chunk. Raises Unreadable."""
        try:
            return self._chunks.chunk(place)
        finally:
            self._healing.note()

    def forget_places(self) -> None:
        """Look places up again: some are others now."""
        with self._lock:
            self._windows.clear()

    def _places(self, info: ObjectInfo, offset: int, length: int) -> Iterator[ChunkPlace]:
        end, done = offset + length, -1
        for number in range(offset // self._window, (end - 1) // self._window + 1):
            for place in self._places_in(info, number):
                start = place.file_offset
                if start > done and start < end and start + place.length > offset:
                    done = start
                    yield place

    def _places_in(self, info: ObjectInfo, number: int) -> Window:
        if info.content_kind == fmt.CONTENT_CHUNK:
            number = 0
        key = (info.content_kind, info.content_id, number)
        with self._lock:
            window = self._windows.get(key)
            if window is None:
                start = number * self._window
                window = tuple(places_of_range(self._catalog(), info, start, self._window))
                self._windows[key] = window
                if len(self._windows) > KEPT_WINDOWS:
                    self._windows.popitem(last=False)
            else:
                self._windows.move_to_end(key)
            return window


class ObjectStream(io.RawIOBase):
    """The bytes of an object: readable and seekable. For several threads at once: `read` and `readinto` take turns at
    one position, `read_at` has none. Past the end there is nothing, as in a file. Raises Unreadable where bytes can't
    be given back."""

    def __init__(self, reading: Reading, info: ObjectInfo) -> None:
        super().__init__()
        require_content(info)
        self._reading, self._info = reading, info
        self._position = 0
        self._turn = threading.Lock()

    @property
    def size(self) -> int:
        """Length of the object in bytes."""
        return self._info.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._require_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._require_open()
        with self._turn:
            if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
                raise ValueError(f"whence {whence}: 0, 1 or 2")
            base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
            if base + offset < 0:
                raise ValueError(f"the position {base + offset} is negative")
            self._position = base + offset
            return self._position

    def read(self, size: int | None = -1, /) -> bytes | None:
        return super().read(-1 if size is None else size)  # as files take it

    def write(self, data: object, /) -> NoReturn:
        raise io.UnsupportedOperation("an object is read; put_object makes a new version of a key")

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._require_open()
        with self._turn, memoryview(buffer).cast("B") as view:
            done = 0
            for piece in self._reading.pieces(self._info, self._position, len(view)):
                view[done : done + len(piece)] = piece
                done += len(piece)
            self._position += done
            return done

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(PIECE) or b"", b""))

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; the position stays."""
        self._require_open()
        return self._reading.range(self._info, offset, length)

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("the stream is closed")
