"""Names for files that no library reads anything else out of.

DuckDB takes a path for more than a name: `*`, `?` and `[` make it a pattern, a folder called `key=value` a column of
that value, a backslash parts folders. It can't name a path that is not UTF-8 at all. So it never gets to see the name
of a folder: each folder is held open, and a file in it is named through the descriptor, `/proc/self/fd/7/NAME`.
"""

from __future__ import annotations

import os

from manifests.errors import BackendError
from manifests.paths import from_current_directory
from manifests.storage import storage_error

#: What DuckDB reads as something else than a name.
_SPECIAL = frozenset("*?[\\")


class OpenFolders:
    """Folders that are held open for naming what lies in them. Owned by a store; names are good until `close`, in this
    process."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, tuple[int, int]]] = {}
        self._stale: list[int] = []

    def name(self, path: str | os.PathLike[str]) -> str:
        """A name for a file in a folder that is there. The last part of `path` is taken as it is, so it must be a name
        that we chose. Raises BackendError."""
        text = os.fspath(path)
        folder, last = os.path.split(text)
        try:
            fd = self._descriptor(folder)
        except OSError as error:
            raise storage_error("opening", folder, error) from error
        named = f"/proc/self/fd/{fd}"
        return f"{named}/{last}" if _leads_to(named, fd) else _plain(text)

    def room(self, path: str | os.PathLike[str]) -> str:
        """A name for a folder that DuckDB makes when it needs room on disk. Where it can't be made, DuckDB says so
        then."""
        try:
            return self.name(path)
        except BackendError:
            return _as_text(path)

    def _descriptor(self, folder: str) -> int:
        found = os.stat(folder)
        identity = found.st_dev, found.st_ino
        if folder in self._open:
            fd, known = self._open[folder]
            if known == identity:
                return fd
            self._stale.append(fd)  # another folder is there now; names given out lead to the old one
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open[folder] = fd, identity
        return fd

    def close(self) -> None:
        """Let go of the folders. It may be called twice."""
        for fd in (*self._stale, *(fd for fd, _ in self._open.values())):
            os.close(fd)
        self._open, self._stale = {}, []


def _leads_to(named: str, fd: int) -> bool:
    """Whether /proc is there, and is that of this process."""
    try:
        return os.path.samestat(os.stat(named), os.fstat(fd))
    except OSError:
        return False


def _plain(path: str) -> str:
    """The path itself, absolute, where nothing in it can be misread. Raises BackendError."""
    path = os.fsdecode(from_current_directory(os.fsencode(path)))  # so that it does not begin like a URL
    if not _SPECIAL.isdisjoint(path) or _as_text(path) != path:
        raise BackendError(
            f"{_as_text(path)}: DuckDB misreads a path with one of *?[\\ or with bytes that are not UTF-8, and without "
            "/proc it can't be named by a descriptor; mount /proc, or rename the folder"
        )
    return path


def _as_text(path: str | os.PathLike[str]) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
