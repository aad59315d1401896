"""A backend in the memory of one process: for tests, and for trying things out inline.

Places are made by `make` and kept by location, so every instance of a location sees the same files. Another process
has none of them, a worker neither: there, everything fails aloud.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifests.access import PRIVATE, Access
from manifests.errors import BackendError, KeyNotFound, StoreExists
from manifests.storage import Buffer, Space, check_range, checked_key, storage_error


@dataclass
class MemoryPlace:
    """What one place holds. `capacity` in bytes; `fault`, asked with action and key before each operation, may raise
    OSError: a scripted fault."""

    capacity: int = 1 << 30
    files: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    fault: Callable[[str, str], None] = lambda action, key: None

    @property
    def used(self) -> int:
        return sum(map(len, self.files.values()))


#: Location → place. Owned by this process.
PLACES: dict[str, MemoryPlace] = {}


class MemoryBackend:
    """A place of PLACES as a backend."""

    def __init__(self, location: str, identity: str = "") -> None:
        """`identity`: what the place must be, which its location says already."""
        self._location = location

    @property
    def type(self) -> str:
        return "memory"

    @property
    def location(self) -> str:
        return self._location

    def _where(self, key: str) -> str:
        return f"{self._location}/{key}"

    def _place(self, action: str, key: str) -> MemoryPlace:
        """The place, for an `action` on a key, or on all of it where that is empty."""
        if key:
            checked_key(self._location, key)
        place = PLACES.get(self._location)
        if place is None:
            where = self._where(key)
            kind = BackendError if action in ("writing", "looking at the room of") else KeyNotFound
            raise kind(f"{action} {where}: this process has no such place; memory backends work inline only")
        try:
            place.fault(action, key)
        except OSError as error:
            raise storage_error(action, self._where(key), error) from error
        return place

    def _file(self, action: str, key: str) -> bytes:
        try:
            return self._place(action, checked_key(self._location, key)).files[key]
        except KeyError:
            raise KeyNotFound(f"{action} {self._where(key)}: {os.strerror(errno.ENOENT)}") from None

    def write(self, key: str, pieces: Sequence[Buffer]) -> None:
        place = self._place("writing", checked_key(self._location, key))
        try:
            data = b"".join(memoryview(piece).cast("B") for piece in pieces)
            with place.lock:
                if place.used - len(place.files.get(key, b"")) + len(data) > place.capacity:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                place.files[key] = data
        except OSError as error:
            raise storage_error("writing", self._where(key), error) from error

    def read(self, key: str) -> bytes:
        return self._file("reading", key)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_range(self._location, key, offset, length)
        return self._file("reading", key)[offset : offset + length]

    def delete(self, key: str) -> None:
        if self._location in PLACES:
            self._place("deleting", checked_key(self._location, key)).files.pop(key, None)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except KeyNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        return len(self._file("looking at", key))

    def list(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self.list_sizes(prefix))

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        if self._location not in PLACES:
            return
        place = self._place("listing", prefix)
        start = f"{prefix}/" if prefix else ""
        with place.lock:
            found = [(key, len(data)) for key, data in place.files.items() if key.startswith(start)]
        yield from found

    def remove_folder(self, prefix: str) -> None:
        for key in list(self.list(checked_key(self._location, prefix))):
            self.delete(key)

    def space(self) -> Space:
        place = self._place("looking at the room of", "")
        return Space(place.capacity, max(0, place.capacity - place.used))

    def device(self) -> str:
        return f"memory:{os.getpid()}"

    def local_path(self, key: str) -> Path | None:
        return None

    def require_empty(self) -> None:
        if self._location in PLACES and PLACES[self._location].files:
            raise StoreExists(f"{self._location} is not empty; a backend wants an empty or a new place")

    def identity(self) -> str:
        return self._location

    def require_in_place(self) -> None:
        self._place("opening", "")

    def make(self, access: Access = PRIVATE) -> None:
        PLACES.setdefault(self._location, MemoryPlace())

    def unmake(self) -> None:
        if self._location in PLACES:
            self.require_empty()
            del PLACES[self._location]

    def access(self) -> Access:
        return PRIVATE

    def shortcomings(self) -> Sequence[str]:
        return []

    def way_up(self) -> Sequence[str]:
        return [self._location]  # a place in memory lies in no other one

    def changed(self, key: str) -> float | None:
        self.size(key)
        return None

    def folders(self, limit: int | None = None) -> Sequence[str]:
        above = self._location.rstrip("/") + "/"
        names = {location.removeprefix(above).split("/")[0] for location in PLACES if location.startswith(above)}
        if not names:
            self._place("listing", "")
        return [above + name for name in sorted(names)]

    def close(self) -> None:
        """Nothing to release: the place outlives its instances."""
