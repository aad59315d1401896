"""What a backend can do: the interface, and the errors that every kind gives alike."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from manifests.access import PRIVATE, Access
from manifests.errors import BackendError, BackendFull, KeyNotFound
from manifests.limits import LimitReached, denied

Buffer = bytes | bytearray | memoryview


class Space(NamedTuple):
    """Room on a backend in bytes. `total` is 0 where the backend can't tell; then `free` means nothing."""

    total: int
    free: int

    @property
    def known(self) -> bool:
        return self.total > 0


class BackendStorage(Protocol):
    """One place that holds files by key. A key is a relative path with '/' between its parts, none of them empty, '.'
    or '..'. Methods raise BackendError, naming the backend and the key, also for what is no key and no range.

    One instance serves the threads of one process. A put is one write of a whole buffer, poisoned by any error: there
    is no append, no rename and no lock, so that an object store can do the same. Any kind must pass
    tests/test_backends.py.

    >>> from manifests.backends import open_backend
    >>> storage = open_backend("memory", "/doc")
    >>> storage.make()
    >>> storage.write("log/a", [b"dry", b"stone"])
    >>> storage.read_range("log/a", 3, 100), list(storage.list("log"))
    (b'stone', ['log/a'])
    """

    @property
    def type(self) -> str:
        """Its name in the table of kinds."""

    @property
    def location(self) -> str:
        """Where it is: a normal absolute path within what its kind can reach. Also for messages."""

    def write(self, key: str, pieces: Sequence[Buffer]) -> None:
        """Store the concatenation of `pieces` under `key`: durable on return, whole or absent, replacing what was
        there. The buffers stay the caller's."""

    def read(self, key: str) -> bytes:
        """All bytes of `key`. Raises KeyNotFound."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`: fewer at the end, none past it. Raises KeyNotFound."""

    def delete(self, key: str) -> None:
        """Remove `key`; an absent key is fine."""

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int:
        """Length of `key` in bytes. Raises KeyNotFound."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys in the folder `prefix` and below, in no order, without temporary files."""

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """The same with the length of each in bytes."""

    def remove_folder(self, prefix: str) -> None:
        """Remove all below `prefix`, temporary files too: for folders of one owner only. An absent one is fine."""

    def space(self) -> Space:
        """Room as it is now."""

    def device(self) -> str:
        """Failure domain that the backend lies in unless it was told another."""

    def local_path(self, key: str) -> Path | None:
        """Where a file system of this machine has `key`, for libraries that read files; None where none has, or the
        location leads elsewhere by now."""

    def identity(self) -> str:
        """What tells this place from all others for as long as it is open, under whatever names it is reached. Raises
        KeyNotFound where there is no such place."""

    def require_in_place(self) -> None:
        """Raises BackendError where the location leads elsewhere than when it was first used: unmounted, replaced, or
        something else is mounted over it. Every write looks for itself."""

    def way_up(self) -> Sequence[str]:
        """Names of the place, first, and of the places that it lies in, whether they are there already or not: equal
        for the same directory, by whatever path it is reached."""

    def changed(self, key: str) -> float | None:
        """When a file was put here, in seconds since 1970: a copy, and whatever else touched the file since, shows a
        later time. None where the place can't tell. Raises KeyNotFound."""

    def require_empty(self) -> None:
        """Raises StoreExists, naming it, where the place holds anything but what file systems put there by themselves;
        one that is not there yet is fine."""

    def make(self, access: Access = PRIVATE) -> None:
        """Make the place itself, with those above it, for those that `access` names. Writing never does: it may be an
        empty mount point."""

    def unmake(self) -> None:
        """Undo `make`, once all that was written is deleted. Raises BackendError where something lies in it."""

    def access(self) -> Access:
        """Who may use it."""

    def shortcomings(self) -> Sequence[str]:
        """What its file system can't do and the store would like it to, each as the end of a sentence."""

    def folders(self, limit: int | None = None) -> Sequence[str]:
        """Locations of the folders in it, which may be backends, sorted, those behind links last; with a `limit`, those
        among so many entries. Raises KeyNotFound where there is no such place, BackendError where it can't be looked
        into."""

    def close(self) -> None:
        """Release what it holds; it may be called twice, and nothing may be called after it."""


def checked_key(location: str, key: str) -> str:
    """`key`, if it is one: so nothing outside of a backend is ever read, written or removed. Raises BackendError."""
    if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise BackendError(f"{location}: {key!r} is no key: that is a relative path without '.' and '..'")
    return key


def check_range(location: str, key: str, offset: int, length: int) -> None:
    """Raises BackendError for what is no range."""
    if offset < 0 or length < 0:
        raise BackendError(f"{location}/{key}: {length} bytes from {offset} are no range")


def storage_error(action: str, where: str, error: OSError) -> BackendError | LimitReached:
    """The error that a failed `action` (writing, reading, …) at `where` is raised as: a BackendError, unless it is this
    process that may not do more."""
    limit = denied(error)
    if limit is not None:
        return LimitReached(f"{action} {where}: {limit}")
    text = f"{action} {where}: {error.strerror or error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) and action != "writing":
        return KeyNotFound(text)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BackendFull(f"{text}; free some space or remove the backend")
    return BackendError(text)
