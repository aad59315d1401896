"""The worker loop: drives one station in a process of its own.

It waits in one epoll over the eventfds of its rings and pools and over the parent's pipe, and knows nothing of what the
station does. A ring's publication is its counting eventfd: the consumer touches only as many entries as it has read
from it, and positions are private, so there is no shared head or tail to fence and no wake-up to lose. Free slots are
published by the pool's eventfd in the same way.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from manifests.errors import DrystoneError
from manifests.limits import denied
from pipeline.arena import Arena, Layout, Message
from pipeline.handles import FdHandle
from pipeline.printing import warn_of_fault
from pipeline.station import Acquire, Context, StageClock, Station, Until, Want

EXIT_FAILED = 70
EXIT_ORPHANED = 71

_PR_SET_NAME = 15
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


#: Characters of a failure that travel, of its message and of its traceback: for people, who read no megabytes.
MESSAGE_MOST, TRACE_MOST = 8 << 10, 64 << 10


class ParentGone(BaseException):
    """The supervisor closed its end of the pipe, or died: leave."""


@dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """All that a worker process is started with. `fds`: the arena, the parent's pipe, the file for its failure, and the
    eventfds by name; each is a handle that the process detaches. `cleanup`: called where the supervisor may be dead."""

    name: str
    index: int
    layout: Layout
    station: Callable[..., Station]
    options: Any
    fds: Mapping[str, FdHandle]
    cleanup: tuple[Callable[[], None], ...] = ()


@dataclass(frozen=True)
class Failure:
    """What went wrong in a worker, as it travels to the supervisor."""

    worker: str
    item: str
    kind: str
    message: str
    trace: str
    exit_code: int = 1

    @classmethod
    def of(cls, worker: str, item: str, error: BaseException) -> Failure:
        exit_code = error.exit_code if isinstance(error, DrystoneError) else 1
        reason = None if isinstance(error, DrystoneError) else denied(error)
        message, trace = (
            _cut(reason or str(error), MESSAGE_MOST),
            _cut("".join(traceback.format_exception(error)), TRACE_MOST),
        )
        return cls(worker, item, type(error).__name__, message, trace, exit_code)

    def write(self, fd: int) -> None:
        """Raises OSError."""
        data = memoryview(pickle.dumps(self))
        while data:
            data = data[os.write(fd, data) :]

    @classmethod
    def read(cls, fd: int) -> Failure | None:
        """What a worker that has ended wrote to a file; None where it did not come to write all of it."""
        try:
            failure = pickle.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        except (EOFError, pickle.UnpicklingError):
            return None
        return failure if isinstance(failure, Failure) else None


def _cut(text: str, most: int) -> str:
    """The text, of a long one its beginning and end, which tell most."""
    left_out = len(text) - most
    if left_out <= 0:
        return text
    return f"{text[: most // 2]} … ({left_out:,} characters are left out) … {text[-(most // 2) :]}"


@dataclass
class EventContext(Context):
    """A context over eventfds. `ring_fds` and `pool_fds` hold those that this process reads or writes."""

    arena: Arena
    clock: StageClock
    index: int
    ring_fds: dict[str, int]
    pool_fds: dict[str, int]
    _heads: dict[str, int] = field(default_factory=dict)
    _tails: dict[str, int] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)
    _turn: int = 0

    def __post_init__(self) -> None:
        self._capacity = {ring.name: ring.capacity for ring in self.arena.layout.rings}
        self.epoll = select.epoll()
        self._watched: set[int] = set()

    def send(self, ring: str, message: Message) -> None:
        position = self._tails.get(ring, 0)
        self.arena.write_descriptor(ring, position, message)
        self._tails[ring] = (position + 1) % self._capacity[ring]
        os.eventfd_write(self.ring_fds[ring], 1)

    def signal_free(self, pool: str) -> None:
        os.eventfd_write(self.pool_fds[pool], 1)

    def _spend(self, fd: int) -> bool:
        if fd not in self._watched:
            self._watched.add(fd)
            self.epoll.register(fd, select.EPOLLIN)
        if self._counts.get(fd, 0):
            self._counts[fd] -= 1
            return True
        return False

    def absorb(self, fd: int) -> bool:
        """Note what an eventfd published; False when `fd` is none of ours."""
        if fd not in self._watched:
            return False
        self._counts[fd] = self._counts.get(fd, 0) + os.eventfd_read(fd)
        return True

    def try_satisfy(self, want: Want) -> Any:
        """The answer to `want` if it is there already, else None."""
        if isinstance(want, Acquire):
            return self.claim(want.pool) if self._spend(self.pool_fds[want.pool]) else None
        if isinstance(want, Until):
            return True if want.met() else None
        # Start from another ring each time, so that none starves.
        self._turn += 1
        for step in range(len(want.rings)):
            ring = want.rings[(self._turn + step) % len(want.rings)]
            if self._spend(self.ring_fds[ring]):
                head = self._heads.get(ring, 0)
                self._heads[ring] = (head + 1) % self._capacity[ring]
                return ring, self.arena.read_descriptor(ring, head)
        return None

    def close(self) -> None:
        self.epoll.close()


def _drive(station: Station, context: EventContext, parent: int) -> None:
    context.epoll.register(parent, select.EPOLLIN | select.EPOLLHUP)
    answer: Any = None
    while True:
        try:
            want = station.send(answer)
        except StopIteration:
            return
        context.clock.begin_wait()
        answer = context.try_satisfy(want)
        # Look at the parent each time, also when there is enough to do: an orphan must not run on.
        while (events := context.epoll.poll(0 if answer is not None else None)) or answer is None:
            for fd, _ in events:
                if not context.absorb(fd):
                    raise ParentGone
            if answer is None:
                answer = context.try_satisfy(want)
        context.clock.end_wait()


def keep_memory() -> None:
    """Let glibc keep freed memory: fresh pages cost 3 to 5 times what reused ones do."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
    libc.mallopt(_M_TOP_PAD, 1 << 20)


def name_process(name: str) -> None:
    """Let `ps` and `top` show what the process is."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def worker_main(arguments: WorkerArguments) -> None:
    """Entry point of every worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_memory()
    name_process(f"dry-{arguments.name}")
    fds = {name: handle.detach() for name, handle in arguments.fds.items()}
    arena = Arena(arguments.layout, fds["arena"])
    clock = StageClock(arena.counters()[arguments.index])
    context = EventContext(
        arena,
        clock,
        arguments.index,
        {name[5:]: fd for name, fd in fds.items() if name.startswith("ring/")},
        {name[5:]: fd for name, fd in fds.items() if name.startswith("pool/")},
    )
    try:
        _drive(arguments.station(context, arguments.options), context, fds["parent"])
    except ParentGone:
        # The supervisor may be dead: what it would have removed is removed by whoever is left.
        for remove in arguments.cleanup:
            remove()
        os._exit(EXIT_ORPHANED)
    except BaseException as error:
        try:
            failure = Failure.of(arguments.name, arena.read_item(arguments.index), error)
            failure.write(fds["report"])
        except OSError:
            warn_of_fault(error)
        os._exit(EXIT_FAILED)
    # Nothing is left to do; skipping the interpreter's teardown spares unmapping order and time.
    os._exit(0)
