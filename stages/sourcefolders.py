"""The directories of sources, for whoever reads what lies in them: below a source no symlink is followed.

The path of a source may lead through links, as its user named it. From there on each directory is opened within the one
above. A directory that is no longer the one that the scan walked is said to be replaced: what lies in it now is
somebody else's, or has never been asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from manifests.xattrs import read_xattrs_of
from stages.waydown import FLAGS, WayDown

#: Device and inode of a directory.
Identity = tuple[int, int]
#: Instead of an identity: whatever directory is there.
ANY_FOLDER: Identity = (0, 0)
REPLACED = "its directory was replaced by something else while the source was read, so it was not read"


class Replaced(OSError):
    """The directory is not the one that was scanned."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, REPLACED)


class SourceFolders:
    """Opens files of sources. The directory of the last one stays open: neighbours are opened relative to it. Owned by
    one reader; `close` it."""

    def __init__(self, roots: Sequence[bytes]) -> None:
        """`roots`: the paths of the sources."""
        self._roots = roots
        self._source = self._top = -1
        self._way = WayDown(-1, _open_inner)
        self._path: bytes | None = None
        self._fd = -1
        self._identity = ANY_FOLDER

    def open(self, source: int, below: bytes, folder: Identity = ANY_FOLDER) -> int:
        """A descriptor of the file at the path `below` from the source of that number, empty for the source itself. It
        must not be a symlink; a FIFO does not block. Raises Replaced where its directory is not `folder`, OSError."""
        name = self._enter(source, below)
        if folder != self._identity and folder != ANY_FOLDER:
            raise Replaced
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)

    def is_in(self, folder: Identity) -> bool:
        """Whether the file that was opened last lies in this directory."""
        return folder in (self._identity, ANY_FOLDER)

    def xattrs(self, source: int, below: bytes, folder: Identity) -> bytes:
        """The packed extended attributes of an object, which is not opened. Raises Replaced, OSError."""
        name = self._enter(source, below)
        if not self.is_in(folder):
            raise Replaced
        root = self._roots[source]
        return read_xattrs_of(self._fd, name, root.rstrip(b"/") + b"/" + below if below else root)

    def _enter(self, source: int, below: bytes) -> bytes:
        """Open the directory of an object; returns its name there. Raises Replaced, OSError."""
        folder, _, name = below.rpartition(b"/")
        if not below:
            return self._enter_above(source)
        if folder != self._path or source != self._source:
            self._path = None
            if source != self._source:
                self._begin(self._roots[source])
                self._source = source
            try:
                self._fd = self._way.enter(folder.split(b"/") if folder else [])
            except NotADirectoryError:
                raise Replaced from None
            info = os.fstat(self._fd)
            self._path, self._identity = folder, (info.st_dev, info.st_ino)
        return name

    def _enter_above(self, source: int) -> bytes:
        """The directory that a source itself lies in: its user named it, so links on the way are followed."""
        folder, _, name = self._roots[source].rpartition(b"/")
        self._begin(folder + b"/")
        self._fd = self._top
        return name

    def _begin(self, path: bytes) -> None:
        self.close()
        try:
            self._top = os.open(path, FLAGS)
        except NotADirectoryError:
            raise Replaced from None
        self._way = WayDown(self._top, _open_inner)

    def close(self) -> None:
        self._way.close()
        if self._top >= 0:
            os.close(self._top)
        self._source, self._top, self._path, self._identity = -1, -1, None, ANY_FOLDER


def _open_inner(folder: int, name: bytes) -> int:
    return os.open(name, FLAGS, dir_fd=folder)
