"""Putting bytes together from copies of which none is whole: what most copies say is tried first, then other mixtures,
and a digest judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product

import numpy as np
import numpy.typing as npt

#: Mixtures that are tried; each costs a digest over all bytes.
TRIALS = 4096
#: Places where copies differ count as one when they lie this near each other: rot comes in sectors.
_NEAR = 512


def mend_by_vote(copies: Sequence[bytes], length: int, is_right: Callable[[bytes], bool]) -> bytes | None:
    """The `length` bytes that copies, any of them rotten or short, are copies of; None where `is_right` takes none of
    the mixtures. Two copies suffice where they are rotten at a dozen different places; with three and more, those that
    most have right are no question."""
    if not copies:
        return None
    rows = np.zeros((len(copies), length), np.uint8)
    for row, copy in zip(rows, copies, strict=True):
        row[: len(copy)] = np.frombuffer(copy[:length], np.uint8)
    differing = np.flatnonzero((rows != rows[0]).any(axis=0))
    result = rows[0].copy()
    for place in differing.tolist():
        result[place] = Counter(rows[:, place].tolist()).most_common(1)[0][0]
    voted: bytes = result.tobytes()
    if is_right(voted):
        return voted
    spans = list(_spans(differing))
    choices = [_by_votes(rows[:, first:last]) for first, last in spans]
    for mixture in islice(product(*choices), TRIALS):
        for (first, last), piece in zip(spans, mixture, strict=True):
            result[first:last] = np.frombuffer(piece, np.uint8)
        mixed: bytes = result.tobytes()
        if is_right(mixed):
            return mixed
    return None


def _spans(places: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of places that are near each other, as first and last + 1."""
    breaks = np.flatnonzero(np.diff(places) > _NEAR) + 1
    for run in np.split(places, breaks):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1


def _by_votes(rows: npt.NDArray[np.uint8]) -> list[bytes]:
    """What copies say of a span, what most say first."""
    return [piece for piece, _ in Counter(row.tobytes() for row in rows).most_common()]
