"""The fork server as its client sees it: one process without threads, with all stations imported, that forks workers.

A command that needs workers starts it before it imports anything else, so that both import at the same time. The other
side is `forkloop.py`. Both speak over a socket pair that is the server's standard input:

    request    one message for at most FDS_PER_MESSAGE descriptors: how many are still to come with this one, in
               decimal. The first is a file with the pickled work, the second the write end of a pipe for the answers.
    answers    two 8-byte signed numbers: the process id at once, the exit code (minus the signal) at the end

Multiprocessing has such a server. It puts the current directory first on the import path of every process that it
starts, and needs a directory for its socket, and a second process to watch over resources that are not used here.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from pipeline import handles
from pipeline.errors import ForkServerLost
from pipeline.importpath import safe_path

#: Linux lets no message carry more than 253 descriptors.
FDS_PER_MESSAGE = 250
ANSWER = struct.Struct("=q")
#: Ctrl-C at a terminal reaches every process; only the supervisor decides what follows.
BLOCKED = (signal.SIGINT, signal.SIGTERM)

_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from pipeline.forkloop import serve; serve()"


class WorkerProcess:
    """A process that the server forked. `sentinel` becomes readable when it has ended, and not before."""

    def __init__(self, answers: int) -> None:
        """Takes over `answers`, and waits until the process exists. Raises ForkServerLost."""
        self.sentinel = answers
        pid = self._answer()
        if pid is None:
            os.close(answers)
            raise ForkServerLost(
                "no worker could be started, because the process that starts them ended; the reason is above, unless "
                "the system killed it for want of memory: run it again"
            )
        self._pid = pid
        self._codes: list[int | None] = []
        self._lock = threading.Lock()

    def _answer(self) -> int | None:
        data = os.read(self.sentinel, ANSWER.size)  # written at once, so it never comes in parts
        return int(ANSWER.unpack(data)[0]) if data else None

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def code(self) -> int | None:
        """Wait for its end and return its exit code, negative for a signal; None if the server ended first."""
        with self._lock:
            if not self._codes:
                self._codes.append(self._answer())
            return self._codes[0]

    @property
    def has_died(self) -> bool:
        """Whether somebody has seen already that it ended in another way than with 0."""
        return bool(self._codes) and self._codes[0] != 0

    def wait(self) -> int | None:
        """The same as `code`, and close the sentinel. To be called once."""
        code = self.code()
        os.close(self.sentinel)
        return code


class _Server:
    """The server of this process: started when it is first needed, and again if it was killed. It ends when nobody
    holds our end of the socket any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: tuple[int, int] | None = None
        self._asked = False

    def socket(self) -> int:
        """The descriptor of our end of the socket; the caller holds the lock."""
        if self._running is None:
            self._running = _spawn()
        return self._running[0]

    def warm_up(self) -> None:
        with self._lock:
            self.socket()

    def request(self, fds: list[int]) -> None:
        with self._lock:
            self._asked = True
            try:
                _send(self.socket(), fds)
            except (BrokenPipeError, ConnectionResetError):  # it was killed, perhaps long ago
                self._forget()
                _send(self.socket(), fds)

    def end(self) -> None:
        """Let the server go, and wait until it has: it would be left to a process that may never look after it."""
        with self._lock:
            if self._running is not None and not self._asked:
                os.kill(self._running[1], signal.SIGKILL)  # it has no workers, and may still be importing
            self._forget()

    def _forget(self) -> None:
        if self._running is not None:
            ours, pid = self._running
            self._running = None
            os.close(ours)
            with suppress(ChildProcessError):  # the program waits for all its children itself
                os.waitpid(pid, 0)


_server = _Server()


def _spawn() -> tuple[int, int]:
    """Start a server: the descriptor of our end of the socket, and the server's process id. It is a bare descriptor,
    for it stays open until the program ends, and Python warns of a socket that does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *_flags(), "-c", _BOOTSTRAP.format(path=safe_path())],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                # Output belongs to the command; what a library prints in a worker must not get into it.
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            setsigmask=BLOCKED,  # until it has learned to ignore them
        )
    return ours.detach(), pid


def _flags() -> list[str]:
    """How a server reads paths and writes bytecode is as in this process; -P keeps the current directory out."""
    flags = ["-P", f"-Xutf8={sys.flags.utf8_mode}"]
    if sys.flags.ignore_environment:
        flags.append("-E")
    if sys.dont_write_bytecode:
        flags.append("-B")
    return flags


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # One BLAS thread, so that the server has no threads when it forks.
    return {"OPENBLAS_NUM_THREADS": "1", **environment}


def _send(to: int, fds: list[int]) -> None:
    end = socket.socket(fileno=to)
    try:
        for start in range(0, len(fds), FDS_PER_MESSAGE):
            socket.send_fds(end, [b"%d" % (len(fds) - start)], fds[start : start + FDS_PER_MESSAGE])
    finally:
        end.detach()


def start(target: Callable[[Any], None], arguments: Any) -> WorkerProcess:
    """Call `target` with `arguments` in a new process, in this one's current directory. Raises ForkServerLost."""
    with ExitStack() as stack:
        folder: handles.FdHandle | None = None
        with suppress(OSError):  # a directory that this process may not enter again; the server is in it
            folder = handles.FdHandle(os.open(os.curdir, os.O_PATH))
            stack.callback(os.close, folder.fd)
        packed, fds = handles.pack((target, arguments, folder))
        # In a file, so that it may be of any length.
        work = stack.enter_context(open(os.memfd_create("drystone-work"), "wb", buffering=0))
        work.write(packed)
        answers, theirs = os.pipe()
        stack.callback(os.close, theirs)
        try:
            _server.request([work.fileno(), theirs, *fds])
        except BaseException:
            os.close(answers)
            raise
    return WorkerProcess(answers)


def warm_up() -> None:
    """Start the fork server, if it does not run yet, without waiting for it."""
    _server.warm_up()


def end() -> None:
    """The process is about to end. To be called when no worker runs any more."""
    _server.end()


def begin() -> None:
    """Best effort: the command that needs the server starts it again, and reports what fails."""
    with suppress(OSError):
        warm_up()
