"""The scanner: walks the sources and hands batches of entries to the readers in turn."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import messages
from pipeline.arena import Message
from pipeline.ingest.filelist import read_list
from pipeline.station import Acquire, Context, Station
from pipeline.topology import LEFT_OUT, SCAN
from pipeline.worker import FdHandle
from stages.scan import Source, scan
from stages.select import EVERYTHING, Identity, Selection, SelectOptions


@dataclass(frozen=True)
class ScanOptions:
    """`listed`: a sorted list of paths (filelist.py), where not everything below the sources is wanted; `own`:
    directories of the store."""

    sources: tuple[Source, ...]
    readers: int
    select: SelectOptions = EVERYTHING
    listed: FdHandle | None = None
    own: tuple[Identity, ...] = ()


def scan_station(context: Context, options: ScanOptions) -> Station:
    """Sends ENTRIES on entries/<reader>. What is left out is in the counters LEFT_OUT, by reason."""
    turn = 0
    context.clock.switch(SCAN)
    selection = Selection(options.select, own=options.own) if options.select or options.own else None
    listed = None if options.listed is None else read_list(options.listed.detach())
    for batch in scan(options.sources, selection, listed):
        pool = f"entries/{turn}"
        slot = yield Acquire(pool)
        with context.slot(pool, slot) as view:
            batch.store(view)
        context.seal(pool, slot)
        context.clock.count(SCAN, len(batch.rows), int(batch.rows["size"].sum()))
        context.send(pool, Message(messages.ENTRIES, slot))
        turn = (turn + 1) % options.readers
    if selection is not None:
        for reason, (objects, size) in enumerate(selection.counts):
            context.clock.count(LEFT_OUT + reason, objects, size)
    for reader in range(options.readers):
        context.send(f"entries/{reader}", Message(messages.END))
