"""The figures of a store in one process: sums over what its workers counted and what it counted itself.

Owned by a FileStore. A thread that publishes may read them at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from manifests.store import BackendInfo, Members
from manifests.totals import ChunkTotals
from pipeline.metrics.backend import MeteredBackend
from pipeline.metrics.meters import Count, CounterPlan, Meters, added, meter_words, queue_depths, without_queues

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Counters = npt.NDArray[np.uint64]
    Tick = Callable[[Counters], None]


class StageSums(NamedTuple):
    """What a stage did, over all workers of all operations of its kind."""

    items: int = 0
    bytes: int = 0
    busy_ns: int = 0
    waiting_ns: int = 0


@dataclass(frozen=True)
class Sums:
    """`stages` by operation and stage; `words`: a row of meters; `queues` by operation and queue."""

    stages: dict[tuple[str, str], StageSums] = field(default_factory=dict)
    words: list[int] = field(default_factory=lambda: [0] * meter_words(0))
    queues: dict[tuple[str, str], int] = field(default_factory=dict)

    def plus(self, other: Sums) -> Sums:
        stages = dict(self.stages)
        for key, sums in other.stages.items():
            stages[key] = StageSums(*map(int.__add__, stages.get(key, StageSums()), sums))
        return Sums(stages, added(self.words, other.words), self.queues | other.queues)

    def ended(self) -> Sums:
        """The same when the operation is over: nothing waits."""
        return replace(self, words=without_queues(self.words), queues=dict.fromkeys(self.queues, 0))


class StoreFigures:
    """`held`: what the store held when it was opened, or after the last run, None before; `backends`: those that the
    figures tell of, by number."""

    def __init__(self) -> None:
        self.held: ChunkTotals | None = None
        self.backends: dict[int, BackendInfo] = {}
        self.meters = Meters.private()
        self._lock = threading.Lock()
        self._ended = Sums()
        self._under_way = Sums()

    def count_chunks(self, which: Count, amount: int) -> None:
        """Count chunks that this process created, deduplicated, deleted or received by itself; what an ingest does,
        its workers count."""
        self.meters.add(which, amount)

    def meter(self, members: Members) -> None:
        """From now on count what this process asks of the backends of an open store."""
        self.backends = {info.number: info for info in members.all}
        self.meters.grow(members.numbers)
        members.present = {
            number: replace(member, storage=MeteredBackend(member.storage, self.meters, number))
            for number, member in members.present.items()
        }

    def watch(self, plan: CounterPlan, then: Tick | None = None) -> Tick:
        """What an operation that begins is to call with its counters (arena.py), now and then and at its end; they go
        on to `then`."""
        with self._lock:
            self._ended = self._ended.plus(self._under_way.ended())
            self._under_way = Sums(  # zeros, so that a rate has where to begin
                {(plan.operation, stage): StageSums() for stage in plan.stages},
                queues={(plan.operation, queue): 0 for queue in plan.queues},
            )

        def tick(counters: Counters) -> None:
            rows = counters.sum(axis=0)
            words = rows[plan.meters_at :].reshape(-1).tolist()
            stages = {
                (plan.operation, stage): StageSums(*values)
                for stage, values in zip(plan.stages, rows[: len(plan.stages)].tolist(), strict=True)
            }
            depths = queue_depths(words)
            queues = {(plan.operation, queue): depths[queue] for queue in plan.queues}
            self._under_way = Sums(stages, words, queues)
            if then is not None:
                then(counters)

        return tick

    def end(self) -> None:
        """The operation under way is over, however it ended: nothing waits any more."""
        with self._lock:
            self._under_way = self._under_way.ended()

    def sums(self) -> Sums:
        """All that was counted so far."""
        with self._lock:
            workers = self._ended.plus(self._under_way)
        return replace(workers, words=added(workers.words, self.meters.words()))
