"""What stands though an error followed: a run that was committed is not undone because printing its summary failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standing() -> Iterator[list[str]]:
    """Errors that leave this block carry, as notes, what was done before them and stands; the block appends that to the
    list. The command line prints the notes, and tracebacks show them."""
    done: list[str] = []
    try:
        yield done
    except BaseException as error:
        for text in done:
            error.add_note(text)
        raise
