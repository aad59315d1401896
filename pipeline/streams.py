"""The standard streams of a command: open, and clear about their own failures.

An error of standard output is told apart from all other errors of the system, whoever prints. Messages on standard
error are best effort: work is not given up because nobody can be told of it, and the exit code tells, too.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO

from pipeline.errors import OutputFailed


def occupy() -> None:
    """Open /dev/null in place of standard streams that are closed. To be called before any file is opened: it would get
    their numbers, and be read as input, or written over by messages. `sys.__stdin__` and `sys.__stdout__` stay None."""
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest number that is free
            os.set_inheritable(opened, True)  # for commands that are archived


def install() -> None:
    """Make sys.stdout raise OutputFailed, and sys.stderr do without what can't be written. Both escape characters that
    their encoding lacks, and exist even if they were closed."""
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.__stdout__)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.__stderr__)


def output(fd: int) -> io.FileIO:
    """An unbuffered file that owns `fd`, of which every failure is one of the output."""
    return _Output(fd, "w")


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # another process made the pipe non-blocking
                wait_for_room(self.fileno())
        except OSError as error:
            raise OutputFailed(error) from error
        return written


class _Messages(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:
                wait_for_room(self.fileno())
        except OSError:
            return len(data)  # there is nowhere left to say so
        return written


def wait_for_room(fd: int) -> None:
    """Wait until something can be written to a pipe or terminal that does not block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def _text(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    """A text stream on `raw` that is as Python had set up the one before."""
    terminal = raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if before is None else before.encoding,
        errors="backslashreplace",
        line_buffering=terminal or raw.fileno() == 2,
        write_through=isinstance(before, io.TextIOWrapper) and before.write_through,
    )
