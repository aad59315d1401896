"""Inline mode: all stations in one process, in turn. For tests, small jobs and debugging."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipeline.arena import Arena, Layout, Message, free_slots
from pipeline.errors import PipelineError
from pipeline.station import Acquire, Context, StageClock, Station, Until, Want


class InlineContext(Context):
    """A context whose rings are queues in this process."""

    def __init__(self, arena: Arena, clock: StageClock, index: int, queues: dict[str, deque[Message]]) -> None:
        self.arena = arena
        self.index = index
        self.clock = clock
        self._queues = queues

    def send(self, ring: str, message: Message) -> None:
        self._queues[ring].append(message)

    def signal_free(self, pool: str) -> None:
        pass

    def try_satisfy(self, want: Want) -> Any:
        if isinstance(want, Acquire):
            return self.claim(want.pool) if free_slots(self.arena.state(want.pool)) else None
        if isinstance(want, Until):
            return True if want.met() else None
        for ring in want.rings:
            if self._queues[ring]:
                return ring, self._queues[ring].popleft()
        return None


def run_inline(
    layout: Layout,
    stations: Mapping[str, tuple[Callable[..., Station], Any]],
    on_tick: Callable[[np.ndarray[Any, np.dtype[np.uint64]]], None] | None = None,
) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Run stations (name → factory, options) to their end, in turn. Returns the counters; `on_tick` gets them once,
    at the end. Raises what a station raises, and PipelineError when all wait for one another."""
    fd = Arena.create_fd(layout)
    arena = Arena(layout, fd)
    os.close(fd)
    queues: dict[str, deque[Message]] = {ring.name: deque() for ring in layout.rings}
    counters = arena.counters()
    running: dict[str, tuple[Station, InlineContext, Any]] = {}
    contexts: list[InlineContext] = []
    try:
        for index, (name, (factory, options)) in enumerate(stations.items()):
            context = InlineContext(arena, StageClock(counters[index]), index, queues)
            contexts.append(context)
            station = factory(context, options)
            running[name] = (station, context, next(station, None))
        running = {name: entry for name, entry in running.items() if entry[2] is not None}
        while running:
            moved = False
            for name, (station, context, want) in list(running.items()):
                answer = context.try_satisfy(want)
                if answer is None:
                    continue
                moved = True
                context.clock.end_wait()
                try:
                    running[name] = (station, context, station.send(answer))
                except StopIteration:
                    del running[name]
                context.clock.begin_wait()
            if not moved:
                waits = ", ".join(f"{name} for {want}" for name, (_, _, want) in running.items())
                raise PipelineError(f"the stations wait for one another: {waits}")
        return counters.copy()
    finally:
        for station, _, _ in running.values():
            station.close()
        if on_tick is not None:
            on_tick(counters)
        for context in contexts:
            context.release_meters()
        del counters
        arena.close()
