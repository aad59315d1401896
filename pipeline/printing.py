"""All that is printed goes through here, so that nothing from outside can command a terminal.

Names, paths, hosts, tags, records of a store that somebody else wrote, the environment, and errors that quote them are
from outside. `say` and `warn` escape whatever their line holds, so a caller can't forget it; `shown` escapes a part of
a line. `write_text` and `write_bytes` are for programs. tests/test_printing.py finds prints that pass this module by.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import AbstractContextManager
from typing import TextIO

from manifests.escapes import shown
from pipeline.streams import output


def say(line: str, *, at_once: bool = True) -> None:
    """Print one line for a person on standard output. Not `at_once`: it may wait in the buffer for others."""
    _put(line, sys.stdout)
    if at_once:
        flush()


def warn(line: str) -> None:
    """Print one line for a person on standard error."""
    _put(line, sys.stderr)
    sys.stderr.flush()


def _put(line: str, stream: TextIO) -> None:
    """What the encoding of `stream` lacks is escaped, too."""
    stream.buffer.write(shown(line).encode(stream.encoding, "backslashreplace") + b"\n")


def write_text(text: str) -> None:
    """Write text for a program to standard output, as UTF-8 whatever the locale says. Raises UnicodeEncodeError for
    lone surrogates. On a terminal it is escaped like all else, but for the ends of lines."""
    if sys.stdout.isatty():
        text = "\n".join(map(shown, text.split("\n")))
    write_bytes(text.encode())


def write_bytes(data: bytes | memoryview) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.buffer.write(data)


def flush() -> None:
    """Hand over to the system what was written to standard output."""
    sys.stdout.flush()


def binary_output() -> AbstractContextManager[io.FileIO]:
    """Standard output as a file that may be closed."""
    flush()
    return output(os.dup(sys.stdout.fileno()))


def drop_output() -> None:
    """Let what is still to be flushed go nowhere: nobody reads it, or it can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn_of_fault(error: BaseException) -> None:
    """Print the traceback of an error that is a fault of Drystone's own."""
    import traceback

    for part in traceback.format_exception(error):
        for line in part.rstrip("\n").split("\n"):
            warn(line)


__all__ = [
    "binary_output", "drop_output", "flush", "say", "shown", "warn", "warn_of_fault", "write_bytes", "write_text",
]  # fmt: skip
