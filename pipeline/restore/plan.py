"""The home stations of a restore: tasks go out in pack order, outcomes come in, large objects are counted to their
end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from manifests.columns import Batch, cut_batch
from manifests.plan import RestorePlan
from pipeline import messages
from pipeline.arena import Message
from pipeline.fan import FanHome
from pipeline.restore.outcomes import OUTCOME_DTYPE
from pipeline.restore.prefixes import HASH_DTYPE, LARGE_FILE, Prefixes
from pipeline.station import Context, Station, Steps, Until
from pipeline.topology import PLAN, SMALL_SLOT

#: A task: whole blocks of about this many bytes, described in no more than this many. A single block may need more, but
#: then it is crowded, and what would have to be whole in one task is counted in parts.
TASK_RAW = 8 << 20
TASK_BYTES = 900_000
ITEM_ROWS = 2048
#: Finished large objects are named in lots of this many, for each lot is a query.
FINISH_LOT = 4096


@dataclass
class RestoreTally:
    """Sums over a restore. `elsewhere`: chunks that came from another place than the planned one."""

    files: int = 0
    in_place: int = 0
    in_place_bytes: int = 0
    replaced: int = 0
    bytes: int = 0
    elsewhere: int = 0
    healed_cells: dict[int, int] = field(default_factory=dict)
    healed_records: dict[int, int] = field(default_factory=dict)


class RestoreHome:
    """State of a restore in the supervisor: four bytes for each object in many blocks, and the numbers of those that
    are whole and not yet named."""

    def __init__(self, workers: int, make_plan: Callable[[], tuple[RestorePlan, list[tuple[int, str]]]]) -> None:
        """`make_plan` gives the plan, and (row, reason) of objects that failed while it was made; it is called while
        the workers start."""
        self._fan = FanHome(workers)
        self._make_plan = make_plan
        self._ready: list[int] = []
        self._prefixes = Prefixes()
        self.tally = RestoreTally()

    # --- tasks -------------------------------------------------------------------------------------------------------

    def plan_station(self, context: Context) -> Station:
        """Sends ITEMS, PLAN and HASH, then LINKS, on plan/<worker>, to the worker with the least to do; what a large
        file needs to be hashed, to one and the same."""
        context.clock.switch(PLAN)
        self.plan, problems = self._make_plan()
        for row, reason in problems:
            self.plan.failed.note(row, reason)
        self._left: npt.NDArray[np.uint32] = self.plan.part_counts()
        self._spoilt = np.zeros(len(self._left), bool)
        for batch in self.plan.items(("symlink", "fifo", "chardev", "blockdev")):
            yield from self._send_all(context, messages.ITEMS, batch)
        for batch in self.plan.items(("file", "stream"), with_content=False):
            yield from self._send_all(context, messages.ITEMS, batch)
        for batch in self.plan.blocks():
            for task in _tasks(batch):
                yield from self._send(context, messages.PLAN, task)
                yield from self._hash_due(context)
            if len(self._ready) >= FINISH_LOT:
                yield from self._finish_ready(context)
        yield Until(self._fan.idle)
        while self._ready:
            yield from self._finish_ready(context)
        yield Until(self._fan.idle)
        for batch in self.plan.other_names():
            yield from self._send_all(context, messages.LINKS, batch)
        self._fan.end(context)

    def _finish_ready(self, context: Context) -> Steps:
        lot, self._ready = self._ready[:FINISH_LOT], self._ready[FINISH_LOT:]
        for batch in self.plan.finished(lot):
            first = 0
            for number in np.flatnonzero(batch.rows["size"] >= LARGE_FILE).tolist():
                yield from self._send_all(context, messages.ITEMS, cut_batch(batch, first, number))
                worker = self._prefixes.finish(int(batch.rows["row"][number]))
                first = number + 1
                yield from self._send(context, messages.ITEMS, cut_batch(batch, number, first), worker)
            yield from self._send_all(context, messages.ITEMS, cut_batch(batch, first, len(batch.rows)))

    def _hash_due(self, context: Context) -> Steps:
        while (due := self._prefixes.due()) is not None:
            row, end, worker = due
            if worker is None:
                worker = self._fan.idlest()
                self._prefixes.hashed_by(row, worker)
            task = Batch(np.array([(row, end)], HASH_DTYPE), b"")
            yield from self._send(context, messages.HASH, task, worker)

    def _send_all(self, context: Context, kind: int, batch: Batch) -> Steps:
        for start in range(0, len(batch.rows), ITEM_ROWS):
            yield from self._send(context, kind, cut_batch(batch, start, start + ITEM_ROWS))

    def _send(self, context: Context, kind: int, task: Batch, worker: int | None = None) -> Steps:
        if task.nbytes > SMALL_SLOT:
            half = len(task.rows) // 2
            yield from self._send(context, kind, cut_batch(task, 0, half), worker)
            yield from self._send(context, kind, cut_batch(task, half, len(task.rows)), worker)
            return
        yield from self._fan.send(context, kind, task, worker=worker)

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def reports_station(self, context: Context) -> Station:
        """Takes DONE from the workers."""
        return self._fan.reports(context, OUTCOME_DTYPE, self._note)

    def troubles(self) -> list[str]:
        """What ails backends that were read."""
        return self._fan.troubles()

    def _note(self, report: Batch, message: Message, worker: int) -> None:
        self.tally.healed_cells[worker] = message.second
        self.tally.healed_records[worker] = message.amount
        rows = report.rows
        self.tally.files += int(rows["files"].sum())
        self.tally.in_place += int(rows["in_place"].sum())
        self.tally.in_place_bytes += int(rows["in_place_bytes"].sum())
        self.tally.replaced += int(rows["replaced"].sum())
        self.tally.bytes += int(rows["bytes"].sum())
        self.tally.elsewhere += int(rows["elsewhere"].sum())
        written = rows[rows["length"] > 0]
        for number, offset, length in zip(
            *(written[name].tolist() for name in ("row", "offset", "length")), strict=True
        ):
            self._prefixes.note(number, offset, length)
        for row in rows[rows["reason_len"] > 0]:
            self.plan.failed.note(int(row["row"]), os.fsdecode(report.bytes_of(row, "reason")))
            if row["multi"] >= 0:
                self._spoilt[row["multi"]] = True
        parts = rows[(rows["parts"] > 0) & (rows["multi"] >= 0)]
        numbers = parts["multi"]
        self._left[numbers] -= parts["parts"]  # an object stands once in a report
        done = numbers[(self._left[numbers] == 0) & ~self._spoilt[numbers]]
        self._ready.extend(done.tolist())


def _tasks(batch: Batch) -> Iterator[Batch]:
    """Tasks of a PLAN_DTYPE batch, of whole blocks each."""
    rows = batch.rows
    new = np.ones(len(rows), bool)
    new[1:] = (rows["block"][1:] != rows["block"][:-1]) | (rows["pack_id"][1:] != rows["pack_id"][:-1]).any(axis=1)
    starts = np.flatnonzero(new).tolist()
    ends = [*starts[1:], len(rows)]
    raw = np.cumsum(rows["raw"][starts].astype(np.int64)).tolist()
    size = np.cumsum(rows["path_len"] + rows["fixity_len"] + rows["xattrs_len"] + rows.dtype.itemsize).tolist()
    first = taken = used = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if start > first and (raw[number] - taken > TASK_RAW or size[end - 1] - used > TASK_BYTES):
            yield cut_batch(batch, first, start)
            first, taken, used = start, raw[number - 1], size[start - 1]
    yield cut_batch(batch, first, len(rows))
