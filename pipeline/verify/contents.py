"""Verifying whole contents: each is read in order, and compared with the digests that were recorded of it.

Home hands out the pieces of contents, for whichever worker has the least to do. Small contents are several to a task,
and one worker reads each. The pieces of large ones are dealt to all workers, who hand their bytes to a hasher; they
check the ids of the chunks on the way, so that whoever checks the packs need not read these blocks once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from manifests.catalog import Catalog
from manifests.columns import Batch, cut_batch, join_batches
from manifests.contents import ContentsPlan, WrongContent, objects_of
from manifests.copies import OtherPlaces
from pipeline import messages
from pipeline.fan import FanHome
from pipeline.station import Context, Steps, Until
from pipeline.topology import RAW_ROWS
from pipeline.verify.window import block_keys

#: A task of small contents: pieces of about this many bytes, and no more than this many of them.
TASK_BYTES, TASK_ROWS = 32 << 20, 2048
#: A task of large contents has up to so many bytes: the blocks of two slots of input, which are never cut in two.
SLICE_BYTES = 9 << 20
#: Tasks that a worker has waiting, so that it never waits for home.
AHEAD = 2
#: Wrong digests that objects are named by; beyond, the count goes on.
KEPT_WRONG = 100_000


class ContentsHome:
    """The home side: tasks out, wrong digests in. Owned by the supervisor. `count`: wrong digests in all; `lanes`:
    hashers that still get large contents."""

    def __init__(self, catalog: Catalog, hashers: int, others: OtherPlaces) -> None:
        """`others` gets the places of chunks that have several."""
        self._catalog, self._others = catalog, others
        self._wrong: list[WrongContent] = []
        self.count = 0
        self.lanes = hashers

    @cached_property
    def plan(self) -> ContentsPlan:
        return ContentsPlan(self._catalog, self._others)

    @cached_property
    def _large(self) -> Iterator[Iterator[Batch]]:
        """What the hashers share among them."""
        return self.plan.large()

    def send_large(self, context: Context, fan: FanHome, hasher: int) -> Steps:
        """Sends PIECES of some of the large contents, one after the other, for one hasher."""
        number = 0
        for batches in self._large:
            for task in _slices(batches):
                yield Until(lambda: fan.least_load() < AHEAD)
                yield from fan.send(context, messages.PIECES, task, amount=hasher, first=number)
                number += 1
        self.lanes -= 1

    def send_small(self, context: Context, fan: FanHome) -> Steps:
        """Sends CONTENTS."""
        for task in _tasks(self.plan.small()):
            yield Until(lambda: fan.least_load() < self.ahead)
            yield from fan.send(context, messages.CONTENTS, task)

    @property
    def ahead(self) -> int:
        """How many tasks a worker may have before it gets one that is not of a large content: those come first, for a
        hasher waits for whoever has the next piece."""
        return 1 if self.lanes else AHEAD

    def note(self, content_id: bytes, text: bytes) -> None:
        """Note a finding, as WrongDigest.text makes it."""
        kind, size, name, digest = text.decode().split(" ")
        self.count += 1
        if len(self._wrong) < KEPT_WRONG:
            named = content_id if any(content_id) else None
            self._wrong.append(WrongContent(named, int(kind), int(size), name, bytes.fromhex(digest)))

    def objects(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many objects are not what was recorded of them, besides those that are lost, and the first of them."""
        return objects_of(self._catalog, self._wrong, limit)


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
    """Tasks of pieces in their order, cut between blocks as far as possible, so that each block is read for one."""
    held: Batch | None = None
    for batch in batches:
        whole = batch if held is None else join_batches(held, batch)
        first = 0
        for end in _cuts(whole.rows):
            yield cut_batch(whole, first, end)
            first = end
        held = cut_batch(whole, first, len(whole.rows))
    if held is not None:
        yield held


def _cuts(rows: np.ndarray) -> Iterator[int]:
    """Where rows are cut into tasks, each as late as so few blocks as possible are cut in two; no task ends where more
    could follow."""
    _, first, blocks = np.unique(block_keys(rows), return_index=True, return_inverse=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, blocks, np.arange(len(rows)))
    spans = np.zeros(len(rows) + 1, np.int64)
    np.add.at(spans, first + 1, 1)
    np.subtract.at(spans, last + 1, 1)
    parted = np.cumsum(spans)  # blocks with rows on both sides of a cut before each row
    taken = np.concatenate([[0], np.cumsum(rows["length"], dtype=np.int64)])
    start = 0
    while True:
        end = min(start + RAW_ROWS, int(np.searchsorted(taken, taken[start] + SLICE_BYTES, "right")) - 1)
        if end >= len(rows):
            return
        low = min(end, max(start + 1, int(np.searchsorted(taken, taken[start] + SLICE_BYTES // 2))))
        end = max(end, low)
        choices = parted[low : end + 1]
        start = end - int(np.argmin(choices[::-1]))
        yield start
