"""Hashing large contents: takes their pieces out of the raw slots of all workers, in the order of the contents, and
compares the digests with those that were recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from manifests.columns import RAW_DTYPE, Batch
from manifests.errors import Unreadable
from pipeline import messages
from pipeline.arena import Message
from pipeline.fan import report
from pipeline.packreader import ReadFigures
from pipeline.station import Context, Station, Take
from pipeline.topology import ASSEMBLE, RAW_HEAD
from pipeline.verify.contentwork import ContentVerifier, wrong_contents
from pipeline.verify.window import extents_of


@dataclass(frozen=True)
class HashOptions:
    """`index`: number of the hasher; `workers`: how many workers read pieces."""

    index: int
    workers: int


class SlotPieces:
    """The pieces of a RAW_DTYPE batch, out of the slot that it lies in."""

    def __init__(self, rows: np.ndarray, data: memoryview) -> None:
        self._rows = rows
        self._data = data

    def extents(self, first: int, end: int) -> np.ndarray:
        rows = self._rows[first:end]
        return extents_of(rows[rows["continues"] == 0])

    def read(self, first: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Pieces that lie side by side in content and slot are one."""
        rows = self._rows[first:end]
        if rows["is_lost"].any():
            raise Unreadable("some of its chunks are lost")
        offsets, at, held = (rows[name].astype(np.int64) for name in ("file_offset", "at", "held"))
        apart = (offsets[1:] != offsets[:-1] + held[:-1]) | (at[1:] != at[:-1] + held[:-1])
        begin = 0
        for stop in [*(np.flatnonzero(apart) + 1).tolist(), len(rows)]:
            yield int(rows["file_offset"][begin]), self._data[at[begin] : at[stop - 1] + held[stop - 1]]
            begin = stop


def hash_station(context: Context, options: HashOptions) -> Station:
    """Takes RAW from raw/<worker>/<index>, in the order of the tasks, and reports contents that are not what was
    recorded of them."""
    context.clock.switch(ASSEMBLE)
    verifier = ContentVerifier(context, ASSEMBLE)
    rings = {f"raw/{worker}/{options.index}": f"raw/{worker}" for worker in range(options.workers)}
    reports = f"reports/{options.workers + options.index}"
    early: dict[int, deque[tuple[str, Message]]] = {}
    task, left = 0, len(rings)
    while left:
        ring, message = yield Take(tuple(rings))
        if message.kind == messages.END:
            left -= 1
            continue
        early.setdefault(message.first, deque()).append((rings[ring], message))
        while early.get(task):
            pool, message = early[task].popleft()
            with context.slot(pool, message.slot) as view:
                batch = Batch.load(view[:RAW_HEAD], RAW_DTYPE)
                wrong = verifier.check(batch, SlotPieces(batch.rows, view[RAW_HEAD:]))
            context.release(pool, message.slot)
            for found in wrong_contents(wrong):
                yield from report(context, reports, found, 0, ReadFigures())
            if message.second:
                del early[task]
                task += 1
    context.send(reports, Message(messages.END))
