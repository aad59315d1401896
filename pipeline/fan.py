"""A fan of workers that all do the same: tasks go out to the one with the least to do, reports come in.

What a restore and a verification share, on both sides of the rings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from manifests.columns import Batch
from pipeline import messages
from pipeline.arena import Message
from pipeline.badmedia import trouble_line
from pipeline.carefulreads import ReadFigures
from pipeline.metrics.meters import Count
from pipeline.station import Acquire, Context, Station, Steps, Take, Want
from pipeline.supervisor import WorkerSpec
from pipeline.topology import FanShape

#: Characters of a backend's trouble that travel.
REASON_MOST = 2000


class FanHome:
    """The home side: who has how many tasks. Owned by the supervisor. `others`: processes that report beside the
    workers, and get no tasks."""

    def __init__(self, workers: int, others: int = 0) -> None:
        self._under_way = [0] * workers
        #: Location of a backend → reads that failed in all workers, whether one gave it up, and why the first failed.
        self._ailing: dict[str, tuple[int, bool, str]] = {}
        self._reporters = workers + others

    def idle(self) -> bool:
        """Whether every task was reported on."""
        return not any(self._under_way)

    def idlest(self) -> int:
        """The worker with the least to do."""
        return self._under_way.index(self.least_load())

    def least_load(self) -> int:
        """How many tasks the worker has that has the fewest which it has not reported on."""
        return min(self._under_way)

    def send(
        self,
        context: Context,
        kind: int,
        task: Batch,
        *,
        worker: int | None = None,
        amount: int = 0,
        first: int = 0,
    ) -> Steps:
        """Send a task, which must fit into a slot of the pool plan, to `worker`, or to the one with the least to do."""
        slot = yield Acquire("plan")
        with context.slot("plan", slot) as view:
            task.store(view)
        context.seal("plan", slot)
        if worker is None:
            worker = self.idlest()
        self._under_way[worker] += 1
        context.send(f"plan/{worker}", Message(kind, slot, amount=amount, first=first))

    def end(self, context: Context) -> None:
        """Tell the workers that no more tasks come."""
        for worker in range(len(self._under_way)):
            context.send(f"plan/{worker}", Message(messages.END))

    def reports(
        self, context: Context, dtype: np.dtype[np.void], note: Callable[[Batch, Message, int], None]
    ) -> Station:
        """Takes DONE from reports/<worker>, and gives each report, with its message and worker, to `note`."""
        rings = {f"reports/{number}": number for number in range(self._reporters)}
        left = len(rings)
        while left:
            ring, message = yield Take(tuple(rings))
            if message.kind == messages.END:
                left -= 1
                continue
            if message.kind == messages.AILING:
                with context.slot(ring, message.slot) as view:
                    self._note_ailing(*json.loads(bytes(view[: message.amount])))
                context.release(ring, message.slot)
                continue
            with context.slot(ring, message.slot) as view:
                report = Batch.load(view, dtype).copy()
            context.release(ring, message.slot)
            if message.first:
                self._under_way[rings[ring]] -= 1
            note(report, message, rings[ring])

    def _note_ailing(self, location: str, failed: int, given_up: bool, reason: str) -> None:
        before = self._ailing.get(location, (0, False, reason))
        self._ailing[location] = before[0] + failed, before[1] or given_up, before[2]

    def troubles(self) -> list[str]:
        """What ails backends that the workers read, for people."""
        return [trouble_line(location, *ailing) for location, ailing in sorted(self._ailing.items())]


def fan_workers(shape: FanShape, station: Callable[..., Station], options: Callable[[int], object]) -> list[WorkerSpec]:
    """The workers of a fan; `options` makes those of each by its number."""
    return [
        WorkerSpec(
            name=name,
            station=station,
            options=options(index),
            rings=(f"plan/{index}", f"reports/{index}"),
            pools=("plan", f"reports/{index}"),
        )
        for index, name in enumerate(shape.workers[: shape.count])
    ]


#: What work on a task yields: its reports, at least one, and what it waits for on the way.
Work = Generator[Batch | Want, Any, None]


def fan_station(
    context: Context, index: int, work: Callable[[Message, memoryview], Work], figures: Callable[[], ReadFigures]
) -> Station:
    """The worker side: takes tasks on plan/<index> and answers each with DONE messages on reports/<index>; `first` is 1
    on the last of a task, `second` counts the cells healed so far, `amount` the records. `work` gets a task's message
    and its slot's view, which it must copy from before it returns."""
    ring, reports = f"plan/{index}", f"reports/{index}"
    while True:
        _, message = yield Take((ring,))
        if message.kind == messages.END:
            break
        with context.slot("plan", message.slot) as view:
            steps = work(message, view)
        context.release("plan", message.slot)
        waiting, got = None, None
        while (step := _next(steps, got)) is not None:
            got = None
            if not isinstance(step, Batch):
                got = yield step
                continue
            if waiting is not None:
                yield from report(context, reports, waiting, 0, figures())
            waiting = step
        if waiting is not None:
            yield from report(context, reports, waiting, 1, figures())
    for location, trouble in figures().media.troubles.items():
        slot = yield Acquire(reports)
        body = json.dumps([location, trouble.failed, trouble.given_up, trouble.reason[:REASON_MOST]]).encode()
        with context.slot(reports, slot) as view:
            view[: len(body)] = body
        context.seal(reports, slot)
        context.send(reports, Message(messages.AILING, slot, amount=len(body)))
    context.send(reports, Message(messages.END))


def _next(steps: Work, got: Any) -> Batch | Want | None:
    """The next step of some work, which gets what it waited for; None at its end."""
    try:
        return steps.send(got)
    except StopIteration:
        return None


def report(context: Context, pool: str, report: Batch, last: int, figures: ReadFigures) -> Steps:
    """Send a report of a task: `last` is 1 for the last one."""
    slot = yield Acquire(pool)
    with context.slot(pool, slot) as view:
        report.store(view)
    context.seal(pool, slot)
    amount = figures.healed_records
    context.meters.put(Count.HEALED_CELLS, figures.healed_cells)
    context.meters.put(Count.HEALED_RECORDS, figures.healed_records)
    context.send(pool, Message(messages.DONE, slot, amount=amount, first=last, second=figures.healed_cells))
