"""A fan of workers that all do the same: tasks go out to the one with the least to do, reports come in.

What a restore and a verification share, on both sides of the rings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from manifests.columns import Batch
from pipeline import messages
from pipeline.arena import Message
from pipeline.shardfiles import ReadFigures
from pipeline.station import Acquire, Context, Station, Steps, Take
from pipeline.supervisor import WorkerSpec
from pipeline.topology import FanShape


class FanHome:
    """The home side: who has how many tasks. Owned by the supervisor."""

    def __init__(self, workers: int) -> None:
        self._under_way = [0] * workers

    def idle(self) -> bool:
        """Whether every task was reported on."""
        return not any(self._under_way)

    def load(self, worker: int) -> int:
        """How many tasks a worker has that it has not reported on."""
        return self._under_way[worker]

    def idlest(self) -> int:
        """The worker with the least to do."""
        return min(range(len(self._under_way)), key=self.load)

    def least_load(self) -> int:
        return min(self._under_way)

    def send(self, context: Context, kind: int, task: Batch, worker: int | None = None) -> Steps:
        """Send a task, which must fit into a slot of the pool plan, to `worker`, or to the one with the least to do."""
        slot = yield Acquire("plan")
        with context.slot("plan", slot) as view:
            task.store(view)
        context.seal("plan", slot)
        if worker is None:
            worker = self.idlest()
        self._under_way[worker] += 1
        context.send(f"plan/{worker}", Message(kind, slot))

    def end(self, context: Context) -> None:
        """Tell the workers that no more tasks come."""
        for worker in range(len(self._under_way)):
            context.send(f"plan/{worker}", Message(messages.END))

    def reports(
        self, context: Context, dtype: np.dtype[np.void], note: Callable[[Batch, Message, int], None]
    ) -> Station:
        """Takes DONE from reports/<worker>, and gives each report, with its message and worker, to `note`."""
        rings = {f"reports/{worker}": worker for worker in range(len(self._under_way))}
        left = len(rings)
        while left:
            ring, message = yield Take(tuple(rings))
            if message.kind == messages.END:
                left -= 1
                continue
            with context.slot(ring, message.slot) as view:
                report = Batch.load(view, dtype).copy()
            context.release(ring, message.slot)
            self._under_way[rings[ring]] -= message.first
            note(report, message, rings[ring])


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
        for index, name in enumerate(shape.workers)
    ]


def fan_station(
    context: Context, index: int, work: Callable[[int, memoryview], Iterable[Batch]], figures: Callable[[], ReadFigures]
) -> Station:
    """The worker side: takes tasks on plan/<index> and answers each with DONE messages on reports/<index>; `first` is 1
    on the last of a task, `second` counts the cells healed so far, `amount` the records. `work` gets a task's kind and
    its slot's view, which it must copy from before it yields its first report."""
    ring, reports = f"plan/{index}", f"reports/{index}"
    while True:
        _, message = yield Take((ring,))
        if message.kind == messages.END:
            break
        with context.slot("plan", message.slot) as view:
            answers = work(message.kind, view)
        context.release("plan", message.slot)
        waiting = None
        for answer in answers:
            if waiting is not None:
                yield from _report(context, reports, waiting, 0, figures())
            waiting = answer
        if waiting is not None:
            yield from _report(context, reports, waiting, 1, figures())
    context.send(reports, Message(messages.END))


def _report(context: Context, pool: str, report: Batch, last: int, figures: ReadFigures) -> Steps:
    slot = yield Acquire(pool)
    with context.slot(pool, slot) as view:
        report.store(view)
    context.seal(pool, slot)
    amount = figures.healed_records
    context.send(pool, Message(messages.DONE, slot, amount=amount, first=last, second=figures.healed_cells))
