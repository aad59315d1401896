"""The scanner: walks the sources and hands batches of entries to the readers in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from manifests.columns import Batch, cut_batch
from manifests.fitting import total
from pipeline import messages
from pipeline.arena import Message
from pipeline.handles import FdHandle
from pipeline.ingest.filelist import read_list
from pipeline.station import Acquire, Context, Station
from pipeline.topology import LEFT_OUT, SCAN
from stages.scan import Source, scan
from stages.select import EVERYTHING, Identity, Selection, SelectOptions

#: Bytes of files that one message hands to a reader, about, where these are large.
PORTION = 256 << 20


@dataclass(frozen=True)
class ScanOptions:
    """`listed`: a sorted list of paths (filelist.py), where not everything below the sources is wanted; `own`:
    directories of the store."""

    sources: tuple[Source, ...]
    readers: int
    select: SelectOptions = EVERYTHING
    listed: FdHandle | None = None
    own: tuple[Identity, ...] = ()


def portions(batch: Batch) -> Iterator[Batch]:
    """A batch in parts of about PORTION bytes of files, so that neighbours that are large go to several readers."""
    ends = np.cumsum(batch.rows["size"], dtype=np.float64)
    parts = (ends // PORTION).astype(np.int64)
    starts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist()] if ends[-1] > PORTION else [0]
    for start, end in pairwise([*starts, len(batch.rows)]):
        yield cut_batch(batch, start, end) if len(starts) > 1 else batch


def scan_station(context: Context, options: ScanOptions) -> Station:
    """Sends ENTRIES on entries/<reader>. What is left out is in the counters LEFT_OUT, by reason."""
    turn = 0
    context.clock.switch(SCAN)
    selection = Selection(options.select, own=options.own) if options.select or options.own else None
    listed = None if options.listed is None else read_list(options.listed.detach())
    for batch in chain.from_iterable(map(portions, scan(options.sources, selection, listed))):
        pool = f"entries/{turn}"
        slot = yield Acquire(pool)
        with context.slot(pool, slot) as view:
            batch.store(view)
        context.seal(pool, slot)
        context.clock.count(SCAN, len(batch.rows), total(batch.rows["size"]))
        context.send(pool, Message(messages.ENTRIES, slot))
        turn = (turn + 1) % options.readers
    if selection is not None:
        for reason, (objects, size) in enumerate(selection.counts):
            context.clock.count(LEFT_OUT + reason, objects, size)
    for reader in range(options.readers):
        context.send(f"entries/{reader}", Message(messages.END))
