"""A run's own index: over one on disk that it only reads, what the run itself makes known.

What is new is in memory first and, when that has grown to SPILL_IDS ids, goes to a temporary LMDB, so memory is bounded
however much a run brings. The index below is changed by nobody but manifests/indexcache.py, from what was committed: so
runs never wait for one another, and a run that fails leaves no trace in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manifests.diskindex import DiskIndex
from manifests.index import Ids, Lengths, Mask
from stages.dedupe import MemoryIndex

SPILL_IDS = 256 << 10


class OverlayIndex:
    """What is known below or was put here. Owned by one process. Raises DamagedIndex."""

    def __init__(self, below: Path | None) -> None:
        """`below`: directory of a disk index, or None."""
        self._below = None if below is None else DiskIndex(below, read_only=True)
        self._recent = MemoryIndex()
        self._spilled: DiskIndex | None = None

    def get_batch(self, ids: Ids) -> Lengths:
        """The length of each id, 0 where it is not known."""
        lengths = self._recent.get_batch(ids)
        for index in (self._below, self._spilled):
            if index is not None:
                left = np.flatnonzero(lengths == 0)
                lengths[left] = index.get_batch(ids[left])
        return lengths

    def put_batch(self, ids: Ids, lengths: Lengths) -> Mask:
        """Make ids known; returns which were new, as an index does."""
        new = np.ones(len(ids), bool)
        for index in (self._below, self._spilled):
            if index is not None:
                left = np.flatnonzero(new)
                new[left] = index.get_batch(ids[left]) == 0
        left = np.flatnonzero(new)
        new[left] = self._recent.put_batch(ids[left], lengths[left])
        if len(self._recent) >= SPILL_IDS:
            self._spill()
        return new

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = DiskIndex.unnamed()
        entries = np.concatenate(list(self._recent.iterate()))
        self._spilled.put_batch(entries["key"], entries["length"])
        self._recent.close()
        self._recent = MemoryIndex()

    def close(self) -> None:
        for index in (self._below, self._spilled, self._recent):
            if index is not None:
                index.close()
