"""Backends are directories apart from each other: none is given twice, and none lies in another one.

Directories are told by what they are, not by their paths: a symbolic link and a bind mount lead to the same one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from manifests.backends import BackendStorage
from manifests.errors import BackendError, UsageError
from manifests.finding import probe


def is_same(one: BackendStorage, other: BackendStorage) -> bool:
    """Whether two places are one, by the system's word. False where one of them is not there."""
    try:
        return one.identity() == other.identity()
    except BackendError:
        return False


def is_seen_twice(one: BackendStorage, other: BackendStorage) -> bool:
    """Whether what is written to a place shows up at another one. A directory of a file server, or one below an
    overlay, may be seen at two places with two identities. Raises BackendError where it can't be written."""
    mark = f"inflight/{uuid.uuid4()}/copy"
    one.write(mark, [])
    try:
        return other.exists(mark)
    finally:
        with suppress(BackendError):  # an empty folder of a run that never was, if it stays
            one.remove_folder(os.path.dirname(mark))


def require_apart(place: BackendStorage, others: Sequence[BackendStorage]) -> None:
    """Raises UsageError where a place that is to be a backend is one of `others`, lies in one of them, or holds one; or
    lies in a backend of another store."""
    names = place.way_up()
    for other in others:
        other_names = other.way_up()
        if names[0] == other_names[0]:
            alike = "is" if place.location == other.location else f"and {other.location} are the same directory,"
            raise UsageError(f"{place.location} {alike} named twice: name each directory once")
        if other_names[0] in names:
            raise _nested(place.location, other.location)
        if names[0] in other_names:
            raise _nested(other.location, place.location)
    for above in Path(os.path.realpath(place.location)).parents:
        if probe(place.type, str(above)):
            raise _nested(place.location, str(above))


def _nested(inner: str, outer: str) -> UsageError:
    return UsageError(f"{inner} lies in the backend {outer}: name a directory that is in no backend")


__all__ = ["is_same", "is_seen_twice", "require_apart"]
