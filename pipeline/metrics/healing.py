"""Counting what was healed on the way of reads in this process."""

from __future__ import annotations

import threading

from pipeline.carefulreads import ReadFigures
from pipeline.metrics.meters import Count, Meters


class HealingCounter:
    """Passes on what `read` has counted from now on, when `note` is called; by several threads, too."""

    def __init__(self, meters: Meters, read: ReadFigures) -> None:
        self._meters, self._read = meters, read
        self._lock = threading.Lock()
        self._noted = (read.healed_cells, read.healed_records)

    def note(self) -> None:
        with self._lock:
            now = (self._read.healed_cells, self._read.healed_records)
            for which, before, after in zip((Count.HEALED_CELLS, Count.HEALED_RECORDS), self._noted, now, strict=True):
                # Threads that read from one source may overwrite what another has just added.
                self._meters.add(which, max(0, after - before))
            self._noted = now
