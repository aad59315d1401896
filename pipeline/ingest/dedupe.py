"""The dedupe station: sees ids only, in whole batches.

It learns from home what is known and not in an index on disk, then drops from each data slot what is known, gives the
slot to the compressor with the least to do, and lets rows pass on to home with a verdict about their contents.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, Batch
from manifests.index import KNOWN
from pipeline import messages
from pipeline.arena import FREE, Message
from pipeline.ingest.chunktable import CHUNK_REF
from pipeline.metrics.meters import Count
from pipeline.station import Acquire, Context, Station, Steps, Take
from pipeline.topology import DEDUPE
from stages.dedupe import MemoryIndex

if TYPE_CHECKING:
    from pipeline.ingest.overlay import OverlayIndex

#: What `first` of a KNOWN message says its rows (KNOWN) are of.
KNOWN_CHUNKS, KNOWN_CONTENTS = 0, 1


@dataclass(frozen=True)
class IndexOptions:
    """An index to be: of kind `disk` over the one in `below`, where there is one, or of kind `memory` with room for
    `expected` ids, about."""

    kind: str
    expected: int
    below: Path | None = None

    def open(self) -> MemoryIndex | OverlayIndex:
        if self.kind != "disk":
            return MemoryIndex(self.expected)
        from pipeline.ingest.overlay import OverlayIndex  # brings LMDB along

        return OverlayIndex(self.below)


@dataclass(frozen=True)
class DedupeOptions:
    readers: int
    compressors: int
    payload: int
    chunks: IndexOptions
    contents: IndexOptions


class Dispatch:
    """Which compressor has how many verdict slots, and so how much to do."""

    def __init__(self, context: Context, compressors: int) -> None:
        self._context = context
        self._held: list[list[int]] = [[] for _ in range(compressors)]

    def choose(self, slot: int) -> int:
        """The compressor with the fewest slots under way; `slot` is noted as its."""
        state = self._context.arena.state("verdict")
        for held in self._held:
            held[:] = [number for number in held if number != slot and state[number] != FREE]
        chosen = min(range(len(self._held)), key=lambda number: len(self._held[number]))
        self._held[chosen].append(slot)
        return chosen


def dedupe_station(context: Context, options: DedupeOptions) -> Station:
    """Takes known ids and answers which of others are among them; then takes DATA, EXTENTS and OBJECTS; sends FRESH on
    fresh/<compressor>, rows on `rows`."""
    context.clock.switch(DEDUPE)
    with closing(options.chunks.open()) as chunks, closing(options.contents.open()) as contents:
        yield from _dedupe(context, options, chunks, contents)


def _dedupe(
    context: Context, options: DedupeOptions, chunks: MemoryIndex | OverlayIndex, contents: MemoryIndex | OverlayIndex
) -> Steps:
    while True:
        _, message = yield Take(("known",))
        if message.kind == messages.END:
            break
        with context.slot("known", message.slot) as view:
            if message.kind == messages.WANTED:
                ids = np.frombuffer(view, np.uint8, message.amount * 32).reshape(-1, 32).copy()
            else:
                told = np.frombuffer(view, KNOWN, message.amount).copy()
        context.release("known", message.slot)
        if message.kind == messages.WANTED:
            verdict = yield Acquire("verdict")
            _write_verdict(context, verdict, chunks.get_batch(ids) > 0)
            context.send("rows", Message(messages.FOUND, aux=verdict, amount=len(ids)))
        else:
            (chunks if message.first == KNOWN_CHUNKS else contents).put_batch(told["id"], told["length"])
    dispatch = Dispatch(context, options.compressors)
    rings = tuple(f"data/{reader}" for reader in range(options.readers))
    left = len(rings)
    while left:
        _, message = yield Take(rings)
        if message.kind == messages.END:
            left -= 1
        elif message.kind == messages.DATA:
            pool = f"data/{message.first}"
            with context.slot(pool, message.slot) as view:
                refs = np.frombuffer(view, CHUNK_REF, message.amount, options.payload).copy()
            fresh = chunks.put_batch(refs["id"], refs["length"])
            created = int(fresh.sum())
            context.meters.add(Count.CREATED, created)
            context.meters.add(Count.DEDUPLICATED, message.amount - created)
            context.clock.count(DEDUPE, message.amount, int(refs["length"].sum()))
            if not created:
                context.release(pool, message.slot)
                continue
            verdict = yield Acquire("verdict")
            _write_verdict(context, verdict, fresh)
            target = f"fresh/{dispatch.choose(verdict)}"
            context.send(target, message._replace(kind=messages.FRESH, aux=verdict))
        elif message.kind == messages.OBJECTS:
            with context.slot(f"rows/{message.first}", message.slot) as view:
                rows = Batch.load(view, OBJECT_DTYPE).rows
                with_extents = np.flatnonzero(rows["content_kind"] == fmt.CONTENT_EXTENTS)
                ids = rows["content_id"][with_extents]
                del rows
            known = np.zeros(message.amount, bool)
            known[with_extents] = ~contents.put_batch(ids, np.ones(len(ids), np.uint32))
            verdict = yield Acquire("verdict")
            _write_verdict(context, verdict, known)
            context.send("rows", message._replace(aux=verdict))
        else:
            context.send("rows", message)
    for compressor in range(options.compressors):
        context.send(f"fresh/{compressor}", Message(messages.END))
    context.send("rows", Message(messages.END))


def _write_verdict(context: Context, slot: int, verdict: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    with context.slot("verdict", slot) as view:
        view[: len(verdict)] = verdict.tobytes()
    context.seal("verdict", slot)
