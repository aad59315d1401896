"""What is true of an operation that ended by an error: a run that was committed is not undone because printing its
summary failed, and one that was not is said not to be. Errors tell what happened, and the operation what it means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standing(otherwise: str = "") -> Iterator[list[str]]:
    """Errors that leave this block carry, as notes, what was done before them and stands; the block appends that to the
    list. Where it is empty, and the error has no note yet, `otherwise` is true. The command line prints the notes, and
    tracebacks show them."""
    done: list[str] = []
    try:
        yield done
    except BaseException as error:
        noted = bool(getattr(error, "__notes__", ()))
        for text in done or [otherwise] * bool(otherwise and not noted):
            error.add_note(text)
        raise
