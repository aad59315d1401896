"""The scanner: walks the sources and hands batches of entries to the readers in turn."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import messages
from pipeline.arena import Message
from pipeline.station import Acquire, Context, Station
from pipeline.topology import SCAN
from stages.scan import Source, scan


@dataclass(frozen=True)
class ScanOptions:
    sources: tuple[Source, ...]
    readers: int


def scan_station(context: Context, options: ScanOptions) -> Station:
    """Sends ENTRIES on entries/<reader>."""
    turn = 0
    context.clock.switch(SCAN)
    for batch in scan(list(options.sources)):
        pool = f"entries/{turn}"
        slot = yield Acquire(pool)
        with context.slot(pool, slot) as view:
            batch.store(view)
        context.seal(pool, slot)
        context.clock.count(SCAN, len(batch.rows), int(batch.rows["size"].sum()))
        context.send(pool, Message(messages.ENTRIES, slot))
        turn = (turn + 1) % options.readers
    for reader in range(options.readers):
        context.send(f"entries/{reader}", Message(messages.END))
