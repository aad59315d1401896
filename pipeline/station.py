"""Stations: what a worker does, as a generator that says what it waits for.

A station yields `Take` (the next message of one of its rings), `Acquire` (a free slot) or `Until`, and gets what it
asked for; a driver satisfies it, in a process of its own (pipeline/worker.py) or inline, all stations in one process
(pipeline/inline.py). So the same code runs in both.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arena import FILLING, FREE, SEALED, Arena, Message
from pipeline.metrics.meters import Meters


@dataclass(frozen=True)
class Take:
    """Wait for a message on any of these rings; the answer is (ring, message)."""

    rings: tuple[str, ...]


@dataclass(frozen=True)
class Acquire:
    """Wait for a free slot of a pool; the answer is its number. The station fills and seals it."""

    pool: str


@dataclass(frozen=True)
class Until:
    """Wait until `met()` is true by the work of another station in the same process; the answer is True. For home
    stations only."""

    met: Callable[[], bool]


#: What a counter stops at.
_MOST = 2**64 - 1
Want = Take | Acquire | Until
Station = Generator[Want, Any, None]
Steps = Generator[Want, Any, None]


class StageClock:
    """Counters of one worker: items, bytes, busy and waiting time of each stage that it hosts."""

    def __init__(self, rows: npt.NDArray[np.uint64]) -> None:
        """`rows`: stages × 4, shared; only this worker writes them."""
        self._rows = rows
        self._stage: int | None = None  # until the station says what it does, its time counts nowhere
        self._mark = time.perf_counter_ns()

    def switch(self, stage: int) -> None:
        """What comes now is the work of `stage`."""
        now = time.perf_counter_ns()
        if self._stage is not None:
            self._rows[self._stage, 2] += np.uint64(now - self._mark)
        self._stage, self._mark = stage, now

    def count(self, stage: int, items: int, size: int) -> None:
        self._rows[stage, 0] += np.uint64(items)
        self._rows[stage, 1] = min(int(self._rows[stage, 1]) + size, _MOST)

    def begin_wait(self) -> None:
        if self._stage is not None:
            self.switch(self._stage)

    def end_wait(self) -> None:
        now = time.perf_counter_ns()
        if self._stage is not None:
            self._rows[self._stage, 3] += np.uint64(now - self._mark)
        self._mark = now


class Context(ABC):
    """What a station may do without waiting. Implemented by the drivers."""

    arena: Arena
    clock: StageClock
    index: int

    @cached_property
    def meters(self) -> Meters:
        """What the worker counts besides its stages, where the layout has room for it."""
        return self.arena.meters(self.index)

    def release_meters(self) -> None:
        """Let go of them at the end, whoever still holds them: else the arena would stay until somebody collects."""
        if "meters" in vars(self):
            self.meters.release()

    def at(self, item: str) -> None:
        """Note what the worker is at (a path, a pack), for the message should it fail or die."""
        self.arena.write_item(self.index, item)

    @abstractmethod
    def send(self, ring: str, message: Message) -> None:
        """Publish a message; the slots that it names change hands."""

    @abstractmethod
    def signal_free(self, pool: str) -> None:
        """Tell the pool's owner that a slot became free."""

    def slot(self, pool: str, number: int) -> memoryview:
        return self.arena.slot(pool, number)

    def seal(self, pool: str, number: int) -> None:
        """The slot is filled; from now on nobody writes to it."""
        self.arena.state(pool)[number] = SEALED

    def release(self, pool: str, number: int) -> None:
        """Give a slot back; only its owner may."""
        self.arena.state(pool)[number] = FREE
        self.signal_free(pool)

    def claim(self, pool: str) -> int:
        """Take a slot that the driver knows to be free."""
        state = self.arena.state(pool)
        number = bytes(state).index(FREE)
        state[number] = FILLING
        self.arena.touch(pool, number)
        return number
