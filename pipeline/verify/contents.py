"""Verifying whole contents: each is read in order, and compared with the digests that were recorded of it.

Home hands out the pieces of contents. Small contents are several to a task, for whichever worker has the least to do;
the tasks of a large one go to one and the same worker in their order, and several large ones are under way at a time,
one a worker. A worker keeps the state of the content that did not end in its last task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manifests import format as fmt
from manifests.catalog import Catalog
from manifests.columns import Batch
from manifests.contents import LARGE, ContentsPlan, objects_of
from manifests.errors import DrystoneError, Unreadable
from manifests.plan import cut_batch
from pipeline import messages
from pipeline.fan import FanHome
from pipeline.packreader import PackReaders
from pipeline.restore.work import BackendPlaces, pack_place
from pipeline.station import Context, Steps, Until
from pipeline.topology import DECOMPRESS, FETCH, VERIFY
from stages.chunk import ContentHasher
from stages.compress import Decoder
from stages.digest import PIECE, FixityCheck

#: A task: pieces of about this many bytes of content, and no more than this many of them.
TASK_BYTES, TASK_ROWS = 32 << 20, LARGE
#: Tasks that a worker has waiting, so that it never waits for home.
AHEAD = 2
#: Large contents under way at a time: each is a query of its own, and all share DuckDB's memory.
LANES = 8
#: Blocks ahead that are fetched in one go where they lie side by side.
FETCH_BLOCKS, FETCH_BYTES = 16, 8 << 20
KEPT_BLOCKS = 4
#: Wrong digests that objects are named by; beyond, the count goes on.
KEPT_WRONG = 100_000
_ZEROS = bytes(PIECE)


@dataclass(frozen=True)
class WrongDigest:
    """A digest that a content does not have; `name` is empty where the content could not be read or put together."""

    content_id: bytes
    name: str
    digest: bytes

    @property
    def text(self) -> str:
        """For the way home."""
        return f"{self.name} {self.digest.hex()}"


# --- home ------------------------------------------------------------------------------------------------------------


class ContentsHome:
    """The home side: tasks out, wrong digests in. Owned by the supervisor. `count`: wrong digests in all."""

    def __init__(self, catalog: Catalog, workers: int) -> None:
        self._catalog = catalog
        self._workers = workers
        self._wrong: list[tuple[bytes | None, str, bytes]] = []
        self.count = 0

    def send_all(self, context: Context, fan: FanHome) -> Steps:
        """Sends CONTENTS on plan/<worker>."""
        plan = ContentsPlan(self._catalog)
        small, large = _tasks(plan.small()), plan.large()
        lanes: dict[int, Iterator[Batch]] = {}
        more = True
        while more or lanes:
            choices = list(range(self._workers) if more else lanes)
            worker = min(choices, key=fan.load)
            if fan.load(worker) >= AHEAD:
                yield Until(lambda among=choices: min(map(fan.load, among)) < AHEAD)  # type: ignore[misc]
                continue
            if worker not in lanes and len(lanes) < LANES and (batches := next(large, None)) is not None:
                lanes[worker] = _slices(batches)
            task = next(lanes.get(worker, small), None)
            if task is not None:
                yield from fan.send(context, messages.CONTENTS, task, worker)
            elif worker in lanes:
                del lanes[worker]
            else:
                more = False

    def note(self, content_id: bytes, text: bytes) -> None:
        """Note a finding, as WrongDigest.text makes it."""
        name, _, digest = text.partition(b" ")
        self.count += 1
        if len(self._wrong) < KEPT_WRONG:
            self._wrong.append((content_id if any(content_id) else None, name.decode(), bytes.fromhex(digest.decode())))

    def objects(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many objects are not what was recorded of them, besides those that are lost, and the first of them."""
        return objects_of(self._catalog, self._wrong, limit) if self._wrong else (0, [])


def _tasks(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Tasks of whole contents."""
    for batch in batches:
        rows = batch.rows
        ends = (np.flatnonzero(rows["is_last"]) + 1).tolist()
        taken = np.cumsum(rows["length"], dtype=np.int64)
        first = 0
        for number, end in enumerate(ends):
            following = ends[number + 1] if number + 1 < len(ends) else len(rows) + TASK_ROWS
            before = int(taken[first - 1]) if first else 0
            if following - first > TASK_ROWS or int(taken[following - 1]) - before > TASK_BYTES:
                yield cut_batch(batch, first, end)
                first = end


def _slices(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Tasks of parts of one content."""
    for batch in batches:
        for first in range(0, len(batch.rows), TASK_ROWS // 2):
            yield cut_batch(batch, first, first + TASK_ROWS // 2)


# --- worker ----------------------------------------------------------------------------------------------------------


@dataclass
class _OpenContent:
    """The content that is being read."""

    number: int
    check: FixityCheck
    extents: ContentHasher = field(default_factory=ContentHasher)
    offset: int = 0
    trouble: str = ""

    def skip_to(self, offset: int) -> None:
        """Gaps between extents are holes: zeros."""
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
        ahead = rows[at : at + TASK_ROWS // 4]
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
        data = memoryview(self._readers.get(pack_place(head)).read(start, end - start))
        for number in range(first, last + 1):
            offset = int(starts[number]) - start
            key = (head["pack_id"].tobytes(), int(blocks[number]["block"]))
            self._stored[key] = data[offset : offset + int(lengths[number])]
        self._clock.count(FETCH, last + 1 - first, end - start)


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
            content = self._open = _OpenContent(number, FixityCheck(batch.bytes_of(last, "fixity")))
        try:
            if not content.trouble:
                self._read(content, rows, first, end)
                if last["is_last"]:
                    _require_end(content, last)
        except DrystoneError as error:
            content.trouble = str(error)
        if not last["is_last"]:
            return []
        self._open, content_id = None, last["content_id"].tobytes()
        if content.trouble:
            return [WrongDigest(content_id, "", b"")]
        return [WrongDigest(content_id, *wrong) for wrong in content.check.wrong()]

    def _read(self, content: _OpenContent, rows: np.ndarray, first: int, end: int) -> None:
        clock = self._context.clock
        extents = np.zeros(end - first, fmt.EXTENT_DTYPE)
        for name, column in (("offset", "file_offset"), ("length", "length"), ("id", "chunk_id")):
            extents[name] = rows[column][first:end]
        content.extents.update(extents, ())
        for at, (offset, length) in enumerate(zip(*(extents[n].tolist() for n in ("offset", "length")), strict=True)):
            if not length and not offset and not rows[first + at]["size"]:
                continue  # an empty content
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
