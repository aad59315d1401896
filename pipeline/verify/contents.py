"""Verifying whole contents: each is read in order, and compared with the digests that were recorded of it.

Home hands out the pieces of contents. Small contents are several to a task, for whichever worker has the least to do;
the tasks of a large one go to one and the same worker in their order, and several large ones are under way at a time,
one a worker. A worker keeps the state of the content that did not end in its last task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from manifests.catalog import Catalog
from manifests.columns import Batch, cut_batch
from manifests.contents import LARGE, ContentsPlan, WrongContent, objects_of
from pipeline import messages
from pipeline.fan import FanHome
from pipeline.station import Context, Steps, Until

#: A task: pieces of about this many bytes of content, and no more than this many of them.
TASK_BYTES, TASK_ROWS = 32 << 20, LARGE
#: Tasks that a worker has waiting, so that it never waits for home.
AHEAD = 2
#: Large contents under way at a time: each is a query of its own, and all share DuckDB's memory.
LANES = 8
#: Wrong digests that objects are named by; beyond, the count goes on.
KEPT_WRONG = 100_000


class ContentsHome:
    """The home side: tasks out, wrong digests in. Owned by the supervisor. `count`: wrong digests in all."""

    def __init__(self, catalog: Catalog, workers: int) -> None:
        self._catalog = catalog
        self._workers = workers
        self._wrong: list[WrongContent] = []
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
    """Tasks of parts of one content."""
    for batch in batches:
        for first in range(0, len(batch.rows), TASK_ROWS // 2):
            yield cut_batch(batch, first, first + TASK_ROWS // 2)
