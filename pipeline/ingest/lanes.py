"""Long contents: their parts, each in a slot of its own, are read, cut and named by two threads in turn.

While one thread reads a part, the other cuts and names the one before; all of it lets go of the interpreter, so a file
keeps two cores busy. What must go by order waits for the part before: cutting for its last boundary, and the digest of
the content. What lies behind that boundary is known late, so room for it, for the longest chunk, is left at the head of
a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.ingest.chunktable import ChunkTable, OpenContent
from stages.chunk import Chunker, chunk_ids


@dataclass
class Part:
    """A part of a long content, from `start` to `end` in the slot `slot`, whose chunks so far are in `table`. `read`:
    done when it is read, and whether the content ends in it; `cut`: when its chunks' `lengths` are known, and the bytes
    behind them; `named`: when all is done, and the chunks' ids. What fails has all that was not done yet fail."""

    content: OpenContent
    slot: int
    view: memoryview
    table: ChunkTable
    start: int
    end: int
    lengths: list[int] = field(default_factory=list)
    read: Future[bool] = field(default_factory=Future)
    cut: Future[bytes] = field(default_factory=Future)
    named: Future[list[bytes]] = field(default_factory=Future)

    @property
    def behind(self) -> int:
        """Where its chunks end in the slot."""
        return self.start + sum(self.lengths)


#: Reads to the end of a view, or until the content ends: (bytes, ended). Raises OSError.
Fill = Callable[[memoryview], tuple[int, bool]]


class Lanes:
    """The two threads of a reader. Parts are begun in the order of their content, each when the one before it is read:
    where both threads are busy, it waits for the one that is done first."""

    def __init__(self, chunker: Chunker) -> None:
        self._chunker = chunker
        self._threads = ThreadPoolExecutor(2, "lane")

    def begin_read(self, part: Part, ended: bool) -> None:
        """Cut and name a part that is read already."""
        part.read.set_result(ended)
        self._threads.submit(self._work, part, None, None)

    def begin(self, part: Part, before: Part, fill: Fill) -> None:
        """Read the part behind `before` from its `start`, to its `end` at most; cut and name it."""
        self._threads.submit(self._work, part, before, fill)

    def _work(self, part: Part, before: Part | None, fill: Fill | None) -> None:
        view = part.view
        try:
            if fill is not None:
                length, ended = fill(view[part.start : part.end])
                part.end = part.start + length
                part.read.set_result(ended)
            if before is not None:
                tail = before.cut.result()
                part.start -= len(tail)
                view[part.start : part.start + len(tail)] = tail
            part.lengths = self._chunker.cut(view[part.start : part.end], part.read.result())
            part.cut.set_result(bytes(view[part.behind : part.end]))
            data = view[part.start : part.behind]
            ids = chunk_ids(data, part.lengths)
            if before is not None:
                before.named.result()
            part.content.add_bytes(data)
            part.named.set_result(ids)
        except BaseException as error:
            for step in (part.read, part.cut, part.named):
                if not step.done():
                    step.set_exception(error)

    def close(self) -> None:
        self._threads.shutdown()
