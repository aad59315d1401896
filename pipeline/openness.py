"""Backends that more can read than were meant to."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress

from manifests.access import unmeant_readers
from manifests.store import BACKEND_KEY, Members


def open_backends(members: Members) -> Iterator[str]:
    """Who can read which backends without having been chosen, and how to close them: a line each."""
    readers = dict[tuple[str, str], list[str]]()
    for member in members.present.values():
        if member.storage.local_path(BACKEND_KEY) is not None:
            with suppress(OSError):  # what can't be looked at has other troubles, which are named
                readers.setdefault(unmeant_readers(member.storage.location), []).append(member.storage.location)
    for (who, bits), places in readers.items():
        if who:
            yield f"{who} can read {', '.join(places)}; to close: chmod -R {bits} {' '.join(map(shlex.quote, places))}"
