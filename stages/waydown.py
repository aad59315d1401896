"""The directories on the way down to one, opened one within another, so that nobody is led elsewhere by what changes
on the way meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

#: Directories that are kept open: the first ones, and below them one of as many.
_KEPT_OPEN = 64
#: How to open a directory on the way, which must be no symlink.
FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class WayDown:
    """Owns the descriptors of the directories that it opened; `close` it."""

    def __init__(self, top: int, open_inner: Callable[[int, bytes], int]) -> None:
        """`top`: descriptor of the directory where it begins, which stays the caller's; `open_inner(folder, name)`:
        gives a descriptor of a directory in another one."""
        self._top = top
        self._open_inner = open_inner
        self._open: list[tuple[Sequence[bytes], int]] = []

    def enter(self, parts: Sequence[bytes]) -> int:
        """Descriptor of the directory `parts`, until the next call; what it shares with the last one is open already.
        Raises OSError, and what `open_inner` raises."""
        deeper = range(_KEPT_OPEN, len(parts), _KEPT_OPEN)
        steps = [[part] for part in parts[:_KEPT_OPEN]] + [parts[at : at + _KEPT_OPEN] for at in deeper]
        shared = 0
        for (step, _), wanted in zip(self._open, steps, strict=False):
            if step != wanted:
                break
            shared += 1
        self._leave(shared)
        for step in steps[shared:]:
            self._open.append((step, self._descend(step)))
        return self._open[-1][1] if self._open else self._top

    def _descend(self, step: Sequence[bytes]) -> int:
        folder = above = self._open[-1][1] if self._open else self._top
        for part in step:
            try:
                inner = self._open_inner(folder, part)
            finally:
                if folder != above:
                    os.close(folder)
            folder = inner
        return folder

    def _leave(self, depth: int) -> None:
        """Close the open directories below the first `depth`."""
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def close(self) -> None:
        self._leave(0)
