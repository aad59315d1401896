"""The worker side of verifying whole contents: reads each in order, and compares it with the digests that were recorded
of it. It keeps the state of the content that did not end in its last task.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from manifests import format as fmt
from manifests.columns import Batch
from manifests.errors import DrystoneError, Unreadable
from pipeline.packreader import PackReaders
from pipeline.restore.work import BackendPlaces, pack_place
from pipeline.station import Context
from pipeline.topology import DECOMPRESS, FETCH, VERIFY
from pipeline.trial import block_judge, search
from stages.chunk import ContentHasher
from stages.compress import Decoder
from stages.digest import PIECE, FixityCheck

#: Pieces ahead of which the blocks are looked at, and how much is fetched in one go where they lie side by side.
FETCH_ROWS = 512
FETCH_BLOCKS, FETCH_BYTES = 16, 8 << 20
KEPT_BLOCKS = 4
_ZEROS = bytes(PIECE)


@dataclass(frozen=True)
class WrongDigest:
    """A digest that a content does not have; `name` is empty where the content could not be read or put together."""

    content_id: bytes
    content_kind: int
    size: int
    name: str
    digest: bytes

    @property
    def text(self) -> str:
        """For the way home."""
        return f"{self.content_kind} {self.size} {self.name} {self.digest.hex()}"


@dataclass
class _OpenContent:
    """The content that is being read."""

    number: int
    check: FixityCheck
    has_holes: bool
    extents: ContentHasher = field(default_factory=ContentHasher)
    offset: int = 0
    trouble: str = ""

    def skip_to(self, offset: int) -> None:
        """Gaps between extents are holes: zeros. Raises Unreadable where the content has none."""
        if offset > self.offset and not self.has_holes:
            raise Unreadable("its extents leave gaps")
        while self.offset < offset:
            count = min(offset - self.offset, len(_ZEROS))
            self.check.update(_ZEROS[:count])
            self.offset += count


class BlockWindow:
    """The blocks that the pieces of a task lie in, fetched ahead and decompressed one after the other."""

    def __init__(self, context: Context, backends: BackendPlaces) -> None:
        self._clock = context.clock
        self._readers = PackReaders(backends.source())
        self._decoder = Decoder()
        self._stored: dict[tuple[bytes, int], memoryview] = {}
        self._raw: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    def chunk(self, rows: np.ndarray, at: int) -> memoryview:
        """The bytes of piece `at` of some PIECE_DTYPE rows. Raises DrystoneError."""
        row = rows[at]
        key = (row["pack_id"].tobytes(), int(row["block"]))
        raw = self._raw.get(key)
        if raw is None:
            if not row["k"]:
                raise Unreadable("the manifests place some of its chunks nowhere")
            if key not in self._stored:
                self._fetch(rows, at)
            self._clock.switch(DECOMPRESS)
            raw = bytes(self._decoder.decode(int(row["codec"]), self._stored.pop(key), int(row["raw"])))
            self._clock.count(DECOMPRESS, 1, len(raw))
            self._raw[key] = raw
            if len(self._raw) > KEPT_BLOCKS:
                self._raw.popitem(last=False)
        start = int(row["chunk_offset"])
        return memoryview(raw)[start : start + int(row["length"])]

    def _fetch(self, rows: np.ndarray, at: int) -> None:
        """Read the block of piece `at`, and with it those of the pieces behind it that lie side by side in the pack."""
        self._clock.switch(FETCH)
        self._stored.clear()
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
        try:
            data = memoryview(self._readers.get(pack_place(head)).read(start, end - start))
        except Unreadable:
            last = first
            start, end = int(starts[first]), int(starts[first] + lengths[first])
            data = memoryview(self._searched(ahead[ahead["block"] == head["block"]], start, end - start))
        for number in range(first, last + 1):
            offset = int(starts[number]) - start
            key = (head["pack_id"].tobytes(), int(blocks[number]["block"]))
            self._stored[key] = data[offset : offset + int(lengths[number])]
        self._clock.count(FETCH, last + 1 - first, end - start)

    def _searched(self, pieces: np.ndarray, offset: int, length: int) -> bytes:
        """The stored bytes of the block of some pieces, of which too few cells are sure: its chunks judge."""
        head = pieces[0]
        columns = zip(*(pieces[name].tolist() for name in ("chunk_offset", "length")), strict=True)
        chunks = [(row.tobytes(), at, size) for row, (at, size) in zip(pieces["chunk_id"], columns, strict=True)]
        judge = block_judge(self._decoder, int(head["codec"]), int(head["raw"]), chunks)
        return search(self._readers.get(pack_place(head)), offset, length, judge)


class ContentVerifier:
    """Checks contents. Owned by one worker."""

    def __init__(self, context: Context, backends: BackendPlaces) -> None:
        self._context = context
        self._window = BlockWindow(context, backends)
        self._open: _OpenContent | None = None

    def check(self, batch: Batch) -> list[WrongDigest]:
        """Read the pieces of a PIECE_DTYPE batch; what is wrong with the contents that end in it."""
        rows, wrong, first = batch.rows, list[WrongDigest](), 0
        ends = (np.flatnonzero(rows["content"][1:] != rows["content"][:-1]) + 1).tolist()
        for end in [*ends, len(rows)]:
            wrong += self._pieces(batch, first, end)
            first = end
        return wrong

    def _pieces(self, batch: Batch, first: int, end: int) -> list[WrongDigest]:
        """Take pieces of one content; what is wrong with it, where they are the last."""
        rows, content = batch.rows, self._open
        number, last = int(rows[first]["content"]), rows[end - 1]
        if content is None or content.number != number:
            content = self._open = _OpenContent(
                number, FixityCheck(batch.bytes_of(last, "fixity")), bool(last["has_holes"])
            )
        try:
            if not content.trouble:
                self._read(content, rows, first, end)
                if last["is_last"]:
                    _require_end(content, last)
        except DrystoneError as error:
            content.trouble = str(error)
        if not last["is_last"]:
            return []
        self._open = None
        which = last["content_id"].tobytes(), int(last["content_kind"]), int(last["size"])
        if content.trouble:
            return [WrongDigest(*which, "", b"")]
        return [WrongDigest(*which, *wrong) for wrong in content.check.wrong()]

    def _read(self, content: _OpenContent, rows: np.ndarray, first: int, end: int) -> None:
        clock = self._context.clock
        extents = np.zeros(end - first, fmt.EXTENT_DTYPE)
        for name, column in (("offset", "file_offset"), ("length", "length"), ("id", "chunk_id")):
            extents[name] = rows[column][first:end]
        content.extents.add_extents(extents)
        for at, (offset, length) in enumerate(zip(*(extents[n].tolist() for n in ("offset", "length")), strict=True)):
            if not length:
                continue  # no chunk at all: an empty content, or one hole
            if offset < content.offset:
                raise Unreadable("its extents overlap")
            content.skip_to(offset)
            chunk = self._window.chunk(rows, first + at)
            if len(chunk) != length:
                raise Unreadable("a chunk is shorter than the manifests say")
            clock.switch(VERIFY)
            content.check.update(chunk)
            content.offset += length
        clock.count(VERIFY, end - first, 0)


def _require_end(content: _OpenContent, last: np.void) -> None:
    """Raise Unreadable unless the pieces of a content are those that its id and its size tell."""
    size, kind = int(last["size"]), int(last["content_kind"])
    if content.offset > size:
        raise Unreadable("its extents go beyond its end")
    content.skip_to(size)
    if kind == fmt.CONTENT_EXTENTS and content.extents.content_id(size) != last["content_id"].tobytes():
        raise Unreadable("its extents are not those of its content id")
