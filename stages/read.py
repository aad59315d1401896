"""Reading files into buffers, and knowing whether they held still."""

from __future__ import annotations

import os
import stat

#: A file touched this shortly before its reading may change again within one tick of its clock.
QUIET_NS = 2_000_000_000
_PIECE = 4000


def open_below(path: bytes, folder: int | None = None, flags: int = os.O_RDONLY) -> int:
    """Open `path`, part by part where it is longer than the kernel takes at once. Raises OSError."""
    flags |= os.O_CLOEXEC
    if len(path) <= _PIECE:
        return os.open(path, flags, dir_fd=folder)
    cut = path.rindex(b"/", 0, _PIECE)
    inner = os.open(path[:cut], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return open_below(path[cut + 1 :].lstrip(b"/"), inner, flags)
    finally:
        os.close(inner)


class FolderCache:
    """The directory of the file that was opened last: neighbours are opened relative to it."""

    def __init__(self) -> None:
        self._path = b""
        self._fd = -1

    def open(self, path: bytes) -> int:
        """A descriptor of the file `path`, which must not be a symlink; a FIFO does not block. Raises OSError."""
        folder, _, name = path.rpartition(b"/")
        if folder != self._path or self._fd < 0:
            self.close()
            self._fd = open_below(folder or b"/", flags=os.O_PATH | os.O_DIRECTORY)
            self._path = folder
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def fill(fd: int, target: memoryview) -> tuple[int, bool]:
    """Read until `target` is full or the file ends: (bytes, ended). Raises OSError."""
    filled = 0
    while filled < len(target):
        count = os.readv(fd, [target[filled:]])
        if not count:
            return filled, True
        filled += count
    return filled, False


def changed(before: os.stat_result, after: os.stat_result, size: int) -> str:
    """Why what was read may be a mixture, or an empty string."""
    if not stat.S_ISREG(before.st_mode):
        return ""
    if before.st_size != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
        return "it changed while it was read"
    if size != after.st_size and after.st_size:
        return f"{size} bytes were read, but it has {after.st_size}"
    return ""
