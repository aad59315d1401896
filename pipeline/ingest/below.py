"""Which object of a run a path on this machine is: the source that it lies below, and the path from there.

A list writes paths in its own way: with `..` and links on the way, or by another name of the same directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from manifests.paths import asks_for_directory, take_out_dots
from stages.scan import OUTSIDE, Source


class Below:
    """Finds paths below `sources`."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._first = sources[0].path if sources else b"/"
        #: Number of the source, and a place that it has: as it is named, and where it really lies.
        self._roots: list[tuple[int, bytes]] = []
        for number, source in enumerate(sources):
            if not source.stream:
                names = [source.path.rstrip(b"/")]
                with suppress(OSError):
                    names.append(_real(source.path).rstrip(b"/"))
                self._roots += [(number, name) for name in dict.fromkeys(names)]

    def find(self, entry: bytes, folder: bytes | None = None) -> tuple[int, bytes]:
        """The number of the first source that `entry` lies below, and the path from it, empty for the source itself;
        OUTSIDE and the absolute path where there is none. `entry` counts from `folder`, or from the first source.
        Raises OSError where the path can't be followed."""
        if b"\0" in entry:
            return OUTSIDE, entry  # no file is called so
        path = take_out_dots(os.path.join(self._first if folder is None else folder, entry))
        if asks_for_directory(entry) and stat.S_ISLNK(_mode(path)):
            path = os.path.realpath(path, strict=True)
        for number, root in self._roots:
            if path == root or path.startswith(root + b"/"):
                return number, path[len(root) + 1 :]
        return OUTSIDE, path


def _real(path: bytes) -> bytes:
    """Where a source really lies. The link at its end is the source, unless a slash follows it."""
    if path.endswith(b"/"):
        return os.path.realpath(path, strict=True)
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder, strict=True), name)


def _mode(path: bytes) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0
