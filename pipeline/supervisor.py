"""The supervisor: makes the arena, starts workers from a fork server, watches them, and ends them.

Endings, each a method: `_drained` (all stations done), `_abort` (a worker failed or died, the user or the home stations
asked for an end). Death is seen by sentinels; the first unclean one stops everything, and no shared lock is touched.
Workers leave when the pipe closes whose write end the supervisor alone holds, so they also go when it is killed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np

from pipeline import forkserver
from pipeline.arena import Arena, Layout
from pipeline.errors import RemoteTraceback, StageFailed, WorkerDied
from pipeline.forkserver import WorkerProcess
from pipeline.handles import FdHandle
from pipeline.signalwatch import QueryWatch, SignalWatch
from pipeline.station import Context, StageClock, Station, Want
from pipeline.worker import EventContext, Failure, WorkerArguments, worker_main

TICK_SECONDS = 0.2
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """A worker to be started. `rings` and `pools` that it touches; `station` must be importable."""

    name: str
    station: Callable[..., Station]
    options: Any
    rings: tuple[str, ...]
    pools: tuple[str, ...]


class Supervisor:
    """One run of workers over one arena. Use once."""

    def __init__(
        self,
        layout: Layout,
        workers: list[WorkerSpec],
        *,
        signals: SignalWatch,
        cleanup: tuple[Callable[[], None], ...] = (),
        on_tick: Callable[[np.ndarray[Any, np.dtype[np.uint64]]], None] | None = None,
        queries: QueryWatch | None = None,
    ) -> None:
        """`cleanup`: what orphaned workers call to remove what would be left. `on_tick` gets the counters a few times a
        second, and once at the end. `queries`: those that home stations wait for, which end when a worker dies."""
        self._layout = layout
        self._specs = workers
        self._signals = signals
        self._cleanup = cleanup
        self._on_tick = on_tick
        self._queries = queries
        #: By sentinel, each with the file in memory that its failure is written to: it takes any length.
        self._processes: dict[int, tuple[WorkerProcess, WorkerSpec, int]] = {}
        self._fds: dict[str, int] = {}
        self._lifeline = -1

    def run(self, home: Mapping[str, Callable[[Context], Station]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Start the workers and drive the `home` stations in this process until all are done. Returns the counters.
        Raises StageFailed, WorkerDied, Interrupted and what a home station raises; then no worker is left."""
        self._fds["arena"] = Arena.create_fd(self._layout)
        for ring in self._layout.rings:
            self._fds[f"ring/{ring.name}"] = os.eventfd(0, os.EFD_CLOEXEC)
        for pool in self._layout.pools:
            self._fds[f"pool/{pool.name}"] = os.eventfd(pool.slots, os.EFD_CLOEXEC)
        parent, self._lifeline = os.pipe()
        arena: Arena | None = None
        context: EventContext | None = None
        try:
            self._start(parent)
            os.close(parent)
            parent = -1
            arena = Arena(self._layout, self._fds["arena"])
            counters = arena.counters()
            context = EventContext(
                arena,
                StageClock(counters[len(self._specs)]),
                len(self._specs),
                {name[5:]: fd for name, fd in self._fds.items() if name.startswith("ring/")},
                {name[5:]: fd for name, fd in self._fds.items() if name.startswith("pool/")},
            )
            self._drained(context, {name: make(context) for name, make in home.items()}, counters)
            result = counters.copy()
            del counters
            return result
        finally:
            self._abort()
            if parent >= 0:
                os.close(parent)
            if context is not None:
                context.close()
            if arena is not None:
                arena.close()
            for fd in self._fds.values():
                os.close(fd)

    def _start(self, parent: int) -> None:
        for index, spec in enumerate(self._specs):
            report = os.memfd_create("drystone-report", os.MFD_CLOEXEC)
            try:
                names = [f"ring/{ring}" for ring in spec.rings] + [f"pool/{pool}" for pool in spec.pools]
                handles = {name: FdHandle(self._fds[name]) for name in ["arena", *names]}
                handles["parent"], handles["report"] = FdHandle(parent), FdHandle(report)
                arguments = WorkerArguments(
                    name=spec.name,
                    index=index,
                    layout=self._layout,
                    station=spec.station,
                    options=spec.options,
                    fds=handles,
                    cleanup=self._cleanup,
                )
                process = forkserver.start(worker_main, arguments)
            except BaseException:
                os.close(report)
                raise
            self._processes[process.sentinel] = (process, spec, report)
            if self._queries is not None:
                self._queries.add(process)

    def _drained(
        self, context: EventContext, stations: dict[str, Station], counters: np.ndarray[Any, np.dtype[np.uint64]]
    ) -> None:
        """Drive everything to its natural end."""
        epoll = context.epoll
        epoll.register(self._signals.fd, select.EPOLLIN)
        for sentinel in self._processes:
            epoll.register(sentinel, select.EPOLLIN)
        wants: dict[str, Want] = {}
        try:
            for name, station in stations.items():
                self._advance(name, station, None, wants, context.arena)
            next_tick = 0.0
            while wants or self._processes:
                self._signals.check()
                moved = False
                for name, want in list(wants.items()):
                    answer = context.try_satisfy(want)
                    if answer is not None:
                        moved = True
                        self._advance(name, stations[name], answer, wants, context.arena)
                now = time.monotonic()
                if self._on_tick is not None and now >= next_tick:
                    next_tick = now + TICK_SECONDS
                    self._tick(context, counters)
                context.clock.begin_wait()
                events = epoll.poll(0 if moved else TICK_SECONDS)
                context.clock.end_wait()
                for fd, _ in events:
                    if fd in self._processes:
                        epoll.unregister(fd)
                        self._ended(fd, context.arena)
                    elif fd != self._signals.fd:
                        context.absorb(fd)
        finally:
            for station in stations.values():
                station.close()
            self._tick(context, counters)

    def _tick(self, context: EventContext, counters: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        if self._on_tick is None:
            return
        if self._layout.meters:
            context.meters.note_queues(context.arena)
        self._on_tick(counters)

    def _advance(self, name: str, station: Station, answer: Any, wants: dict[str, Want], arena: Arena) -> None:
        try:
            wants[name] = station.send(answer)
        except StopIteration:
            wants.pop(name, None)
        except Exception:
            # Its query may have been ended, by a signal or for a worker's death, and then that is what went wrong.
            self._signals.check()
            for sentinel, (process, _, _) in list(self._processes.items()):
                if process.has_died:
                    self._ended(sentinel, arena)
            raise

    def _ended(self, sentinel: int, arena: Arena) -> None:
        """A worker is gone: fine when it exited with 0, else raise what it reported or how it died."""
        process, spec, report = self._processes.pop(sentinel)
        try:
            code = process.wait()
            failure = Failure.read(report)
        finally:
            os.close(report)
        if failure is not None:
            where = f" at {failure.item}" if failure.item else ""
            text = f"{spec.name}{where}: {failure.message or failure.kind}"
            raised = StageFailed(text)
            raised.worker = spec.name
            raise raised from RemoteTraceback(failure.trace)
        if code == 0:
            return
        self._signals.check()
        index = next(number for number, other in enumerate(self._specs) if other is spec)
        if code is None:
            how = "ended, and so did the process that started it"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        item = arena.read_item(index)
        doing = f" while at {item}" if item else ""
        died = WorkerDied(f"worker {spec.name} {how}{doing}: run it again")
        died.worker = spec.name
        raise died

    def _abort(self) -> None:
        """End all workers that are left: they leave when the pipe closes; who doesn't in time is killed."""
        os.close(self._lifeline)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._processes:
            ended = connection.wait(list(self._processes), max(0.0, deadline - time.monotonic()))
            for sentinel in ended or list(self._processes):
                process, _, report = self._processes.pop(int(sentinel))  # type: ignore[arg-type]
                if not ended:
                    process.kill()
                process.wait()
                os.close(report)
