"""Signals as something to look at, and an end to queries that the main thread waits for."""

from __future__ import annotations

import os
import select
import signal
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted

if TYPE_CHECKING:
    from pipeline.forkserver import WorkerProcess

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
#: How often queries are told to end that begin meanwhile.
_AGAIN_MS = 100


class SignalWatch:
    """SIGINT and SIGTERM as something to look at, instead of an exception anywhere. In threads other than the main one
    signals are somebody else's, and nothing is watched."""

    def __init__(self) -> None:
        self.number = 0
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.number = self.number or number
        os.eventfd_write(self.fd, 1)

    def check(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.number:
            raise Interrupted(self.number)

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        os.close(self.fd)


class QueryWatch:
    """A thread that ends queries when a signal comes, or a worker dies, while the thread that would see it waits for
    their results. An error that follows from that leaves as Interrupted."""

    def __init__(self, signals: SignalWatch | None, stop: Callable[[], None], go_on: Callable[[], None]) -> None:
        """`stop` ends all queries under way, and those that begin before `go_on` is called; for any thread. Without
        `signals`, Python's own handlers say what a signal means."""
        self._signals, self._stop, self._go_on = signals, stop, go_on
        self._workers: dict[int, WorkerProcess] = {}
        self._lock = threading.Lock()
        self._over = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._arrivals, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._others = -1
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> QueryWatch:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            # Python's own handlers wait until the main thread has a moment; the signal's number is written at once.
            self._others = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def add(self, process: WorkerProcess) -> None:
        """See the death of a worker, too."""
        with self._lock:
            self._workers[os.dup(process.sentinel)] = process
        os.eventfd_write(self._wake, 1)

    def _watch(self) -> None:
        stopping = False
        while not self._over:
            poller = select.poll()
            for fd in (self._wake, self._arrivals, *self._fds()):
                poller.register(fd, select.POLLIN)
            for fd, _ in poller.poll(_AGAIN_MS if stopping else None):
                if fd == self._wake:
                    os.eventfd_read(fd)
                elif fd == self._arrivals:
                    stopping |= self._signal_came(os.read(fd, 64))
                else:
                    stopping |= self._ended(fd)
            if stopping and not self._over:
                self._stop()

    def _fds(self) -> list[int]:
        with self._lock:
            return list(self._workers)

    def _signal_came(self, numbers: bytes) -> bool:
        if self._others >= 0:
            with suppress(OSError):  # as full as Python would have found it
                os.write(self._others, numbers)
        return any(number in _NUMBERS for number in numbers)

    def _ended(self, fd: int) -> bool:
        """Whether a worker that ended has died."""
        with self._lock:
            process = self._workers.pop(fd)
        os.close(fd)
        return process.code() != 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._over = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        if self._is_main:
            signal.set_wakeup_fd(self._others, warn_on_full_buffer=False)
        for fd in (self._wake, self._arrivals, self._writing, *self._workers):
            os.close(fd)
        self._go_on()
        number = 0 if self._signals is None else self._signals.number
        if number and error is not None and not isinstance(error, Interrupted):
            raise Interrupted(number) from error
