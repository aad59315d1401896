"""Reading the blocks that pieces of contents lie in, in the order of the contents."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

import numpy as np

from manifests import format as fmt
from manifests.copies import read_places
from manifests.errors import DrystoneError, Unreadable
from pipeline.badmedia import BadMedia
from pipeline.chunkreader import BlockCache, ChunkReader
from pipeline.metrics.codec import MeteredDecoder
from pipeline.packreader import PackReaders
from pipeline.restore.work import BackendPlaces, pack_place
from pipeline.station import Context
from pipeline.topology import DECOMPRESS, FETCH
from pipeline.trial import block_judge, search
from stages.assemble import chunk_is_good

#: Pieces ahead of which the blocks are looked at, and how much is fetched in one go where they lie side by side.
FETCH_ROWS = 512
FETCH_BLOCKS, FETCH_BYTES = 16, 2 << 20
#: What was fetched and not used is kept up to this many bytes.
HELD_BYTES = 4 << 20
KEPT_BLOCKS = 4


class BlockWindow:
    """The blocks that the pieces of a task lie in, fetched ahead and decompressed one after the other. `checks`:
    whether what is fetched is checked cell by cell; else whoever takes a block looks at its chunks, and asks for `sure`
    bytes where they are wrong: the cells of every shard are checked elsewhere."""

    def __init__(
        self, context: Context, backends: BackendPlaces, checks: bool, media: BadMedia, other_places: int
    ) -> None:
        """`other_places`: descriptor of the file of OtherPlaces, which stays the caller's."""
        self._clock = context.clock
        self._checks = checks
        source, decoder = backends.source(context.meters, media), partial(MeteredDecoder, context.meters)
        self._readers, self._decoder = PackReaders(source), decoder()
        self._chunks = ChunkReader(source, partial(read_places, other_places), BlockCache(HELD_BYTES), decoder)
        self._stored: dict[tuple[bytes, int], memoryview] = {}
        self._held = 0
        self._raw: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    def chunk(self, rows: np.ndarray, at: int) -> memoryview:
        """The bytes of piece `at` of some PIECE_DTYPE rows. Raises DrystoneError."""
        row, key = rows[at], block_key(rows[at])
        raw = self._raw.get(key)
        if raw is None:
            raw = self._raw[key] = bytes(self.decoded(rows, at, self.stored(rows, at)))
            if len(self._raw) > KEPT_BLOCKS:
                self._raw.popitem(last=False)
        start = int(row["chunk_offset"])
        return memoryview(raw)[start : start + int(row["length"])]

    def elsewhere(self, row: np.void) -> bytes | None:
        """The bytes of a piece from another place than that of its row, checked; None where there is none."""
        self._clock.switch(FETCH)
        where = row["pack_id"].tobytes(), int(row["block"]), int(row["chunk_offset"]), int(row["length"])
        return self._chunks.elsewhere(row["chunk_id"].tobytes(), where)

    def decoded(
        self, rows: np.ndarray, at: int, stored: bytes | memoryview, target: memoryview | None = None
    ) -> memoryview:
        """The block of piece `at`, from its stored bytes; valid until the next call unless it is written to `target`,
        which has room for one byte more. Raises DamagedBlock."""
        codec, length = int(rows[at]["codec"]), int(rows[at]["raw"])
        self._clock.switch(DECOMPRESS)
        if target is None:
            raw = self._decoder.decode(codec, stored, length)
        else:
            self._decoder.decode_into(codec, stored, length, target)
            raw = target[:length]
        self._clock.count(DECOMPRESS, 1, length)
        return raw

    def stored(self, rows: np.ndarray, at: int) -> memoryview:
        """The stored bytes of the block of piece `at`. Raises DrystoneError."""
        key = block_key(rows[at])
        if key not in self._stored:
            _require_block(rows[at])
            self._fetch(rows, at)
        return self._stored.pop(key)

    def sure(self, rows: np.ndarray, at: int) -> bytes | memoryview:
        """The same bytes, checked, healed, and as a last resort as the chunks of the task judge. Raises
        DrystoneError."""
        self._clock.switch(FETCH)
        head = rows[at]
        _require_block(head)
        offset, length = int(head["block_offset"]), int(head["stored"])
        reader = self._readers.get(pack_place(head))
        try:
            return reader.read(offset, length)
        except Unreadable:
            pieces = rows[(rows["block"] == head["block"]) & (rows["pack_id"] == head["pack_id"]).all(axis=1)]
            columns = zip(*(pieces[name].tolist() for name in ("chunk_offset", "length")), strict=True)
            chunks = [(row.tobytes(), at, size) for row, (at, size) in zip(pieces["chunk_id"], columns, strict=True)]
            judge = block_judge(self._decoder, int(head["codec"]), int(head["raw"]), chunks)
            return search(reader, offset, length, judge)

    def _fetch(self, rows: np.ndarray, at: int) -> None:
        """Read the block of piece `at`, and with it those of the pieces behind it that lie side by side in the pack."""
        self._clock.switch(FETCH)
        if self._held > HELD_BYTES:
            self._stored.clear()
            self._held = 0
        head = rows[at]
        ahead = rows[at : at + FETCH_ROWS]
        ahead = ahead[(ahead["pack_id"] == head["pack_id"]).all(axis=1)]
        _, places = np.unique(ahead["block"], return_index=True)
        blocks = ahead[np.sort(places)[:FETCH_BLOCKS]]
        blocks = blocks[np.argsort(blocks["block_offset"])]
        starts, lengths = blocks["block_offset"].astype(np.int64), blocks["stored"].astype(np.int64)
        first = last = int(np.flatnonzero(blocks["block"] == head["block"])[0])
        while last + 1 < len(blocks) and starts[last + 1] == starts[last] + lengths[last]:
            last += 1
            if int(starts[last] + lengths[last] - starts[first]) > FETCH_BYTES:
                last -= 1
                break
        start, end = int(starts[first]), int(starts[last] + lengths[last])
        reader = self._readers.get(pack_place(head))
        found = None if self._checks else reader.read_unchecked(start, end - start)
        try:
            data = memoryview(reader.read(start, end - start) if found is None else found)
        except Unreadable:
            last = first
            data = memoryview(self.sure(rows, at))
        for number in range(first, last + 1):
            offset = int(starts[number]) - start
            key = (head["pack_id"].tobytes(), int(blocks[number]["block"]))
            self._stored[key] = data[offset : offset + int(lengths[number])]
        self._held += len(data)
        self._clock.count(FETCH, last + 1 - first, len(data))


def block_keys(rows: np.ndarray) -> np.ndarray:
    """For each PIECE_DTYPE row 20 bytes that tell its block from others, as something that NumPy sorts."""
    keys = np.empty((len(rows), 20), np.uint8)
    keys[:, :16] = rows["pack_id"]
    keys[:, 16:] = np.ascontiguousarray(rows["block"]).view(np.uint8).reshape(-1, 4)
    return keys.view("V20")[:, 0]


def block_key(row: np.void) -> tuple[bytes, int]:
    """What tells the block of a PIECE_DTYPE row from others."""
    return row["pack_id"].tobytes(), int(row["block"])


def _require_block(row: np.void) -> None:
    if not row["k"]:
        raise Unreadable("the manifests place some of its chunks nowhere")
    if row["stored"] > fmt.BLOCK_MAX:
        raise Unreadable(f"the manifests tell of a block of {row['stored']} bytes, which is none")


class BlockPieces:
    """The pieces of a PIECE_DTYPE batch, out of their blocks. `sure`: each is checked by its id, and looked for in
    other places; else the digest of the whole content judges."""

    def __init__(self, window: BlockWindow, rows: np.ndarray, *, sure: bool = False) -> None:
        self._window = window
        self._rows = rows
        self._sure = sure

    def extents(self, first: int, end: int) -> np.ndarray:
        return extents_of(self._rows[first:end])

    def read(self, first: int, end: int) -> Iterator[tuple[int, memoryview]]:
        rows = self._rows
        for at in range(first, end):
            length = int(rows[at]["length"])
            if not length:
                continue  # no chunk at all: an empty content, or one hole
            yield int(rows[at]["file_offset"]), self._piece(at, length)

    def _piece(self, at: int, length: int) -> memoryview:
        row = self._rows[at]
        try:
            chunk = self._window.chunk(self._rows, at)
            if len(chunk) != length:
                raise Unreadable("a chunk is shorter than the manifests say")
            if self._sure and not chunk_is_good(row["chunk_id"].tobytes(), chunk):
                raise Unreadable("the bytes of a chunk do not match its id")
        except DrystoneError:
            found = self._window.elsewhere(row)
            if found is None:
                raise
            return memoryview(found)
        return chunk


def extents_of(rows: np.ndarray) -> np.ndarray:
    """Rows of PIECE_DTYPE or RAW_DTYPE as EXTENT_DTYPE."""
    extents = np.zeros(len(rows), fmt.EXTENT_DTYPE)
    for name, column in (("offset", "file_offset"), ("length", "length"), ("id", "chunk_id")):
        extents[name] = rows[column]
    return extents
