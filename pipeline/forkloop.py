"""The fork server's own side: its loop, and the start of the processes that it forks. The protocol is in forkserver.py.

It imports all stations once, so that a worker starts with everything loaded. It has no threads.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

import pipeline.stations  # noqa: F401 - what workers run
from pipeline.forkserver import ANSWER, BLOCKED, FDS_PER_MESSAGE
from pipeline.handles import unpack
from pipeline.printing import warn_of_fault
from pipeline.worker import name_process

_REQUESTS = 0


def serve() -> NoReturn:
    """Fork workers until the client closes its end of the socket."""
    for number in BLOCKED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    name_process("drystone-fork")
    requests = socket.socket(fileno=_REQUESTS)
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    workers: dict[int, tuple[int, int]] = {}  # pidfd → process id, and the pipe that its exit code goes to
    while True:
        for fd, _ in waiting.poll():
            if fd != _REQUESTS:
                waiting.unregister(fd)
                _ended(fd, *workers.pop(fd))
                continue
            received = _receive(requests)
            if not received:
                os._exit(0)
            work, answers, *others = received
            pid = os.fork()
            if pid == 0:
                _become(work, others, not_ours=[each for fd, (_, pipe) in workers.items() for each in (fd, pipe)])
            _answer(answers, pid)
            pidfd = os.pidfd_open(pid)
            waiting.register(pidfd, select.POLLIN)
            workers[pidfd] = pid, answers
            for each in (work, *others):
                os.close(each)


def _receive(requests: socket.socket) -> list[int]:
    """The descriptors of the next request; none once the client is gone."""
    received: list[int] = []
    missing = 1
    while missing:
        text, fds, _, _ = socket.recv_fds(requests, 32, FDS_PER_MESSAGE, socket.MSG_CMSG_CLOEXEC)
        if not text:
            return []
        if len(fds) < min(int(text), FDS_PER_MESSAGE):
            raise OSError(errno.EMFILE, f"a worker needs more than {len(received) + len(fds)} descriptors (ulimit -n)")
        received += fds
        missing = int(text) - len(fds)
    return received


def _become(work: int, fds: list[int], *, not_ours: Iterable[int]) -> NoReturn:
    """Do the work, as the new process. It keeps the pipe for the answers, so that the client is not told of an end
    that has not come, should the server be killed."""
    try:
        for each in not_ours:
            os.close(each)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, _REQUESTS)
        os.close(nothing)
        with open(work, "rb") as file:
            file.seek(0)
            target, arguments, folder = unpack(file.read(), fds)
        if folder is not None:
            os.fchdir(folder.fd)
            os.close(folder.detach())
        target(arguments)
        os._exit(0)
    except BaseException as error:
        warn_of_fault(error)
        os._exit(1)


def _ended(pidfd: int, pid: int, answers: int) -> None:
    """Pass on how a worker ended."""
    os.close(pidfd)
    _answer(answers, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os.close(answers)


def _answer(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the client no longer asks
        os.write(pipe, ANSWER.pack(number))
