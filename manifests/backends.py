"""Backends: the places that hold a store's files. Which kinds there are, and how one is named.

The interface is in storage.py, each kind in a file of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from manifests.directdirectory import DirectDirectory
from manifests.errors import UsageError
from manifests.localdirectory import LocalDirectory
from manifests.memory import MemoryBackend
from manifests.paths import absolute_path
from manifests.storage import BackendStorage, Buffer, Space

#: Kind → what makes a backend of a location. `local-direct` is a directory past the page cache; `memory` lives in one
#: process, for tests.
BACKEND_TYPES: dict[str, Callable[[str, str], BackendStorage]] = {
    "local": LocalDirectory,
    "local-direct": DirectDirectory,
    "memory": MemoryBackend,
}


class Place(NamedTuple):
    """A backend that was opened, for another process to open: it must have the same identity there."""

    kind: str
    location: str
    identity: str

    def open(self) -> BackendStorage:
        """The backend; what is there instead of it raises BackendError when it is first used."""
        return open_backend(*self)


def place_of(storage: BackendStorage) -> Place:
    """Where an open backend is. Raises BackendError."""
    return Place(storage.type, storage.location, storage.identity())


def open_backend(kind: str, location: str, identity: str = "") -> BackendStorage:
    """The backend of type `kind` at `location`, which must have an `identity` where one is given; nothing is touched
    yet."""
    try:
        factory = BACKEND_TYPES[kind]
    except KeyError:
        raise UsageError(f"no backend type {kind!r}; there are {', '.join(BACKEND_TYPES)}") from None
    return factory(location, identity)


def parse_place(text: str | os.PathLike[str]) -> tuple[str, str]:
    """Kind and location of a place as a user writes it: `DIR`, or `KIND:PLACE` (a directory whose name begins so is
    written `./KIND:…`).

    >>> parse_place("memory:/a/../b")
    ('memory', '/b')
    """
    kind, colon, place = os.fspath(text).partition(":")
    if not colon or kind not in BACKEND_TYPES:
        kind, place = "local", os.fspath(text)
    if not place:
        raise UsageError(f"{os.fspath(text)!r} names no place")
    # A place in memory is a name; in no other way does it lead anywhere.
    return kind, os.path.abspath(place) if kind == "memory" else absolute_path(place)


__all__ = [
    "BACKEND_TYPES", "BackendStorage", "Buffer", "DirectDirectory", "LocalDirectory", "MemoryBackend", "Place",
    "Space", "open_backend", "parse_place", "place_of",
]  # fmt: skip
