"""How far large files are written without a gap, so that they are hashed while they are restored, and not only when
they are whole.

Parts come nearly in order. What comes early is remembered; of a file with much of that, something else is missing than
what is under way, and it is read back in the end.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

#: How far a file may be hashed: `end` bytes of the object `row`; 0 where what was hashed of it no longer counts.
HASH_DTYPE = np.dtype([("row", "<u8"), ("end", "<u8")])
#: Files of many blocks that are as long as this are hashed meanwhile; shorter ones are read back by all workers.
LARGE_FILE = 32 << 20
#: So much of a file is hashed at once: it is in the processor's cache yet, or has just left it.
HASH_STEP = 16 << 20
#: Files that are followed at a time, and early parts of one.
FOLLOWED = 1024
MOST_EARLY = 4096


@dataclass
class _Prefix:
    """`end`: bytes that are written without a gap; `sent`: how far they are being hashed, and by which worker; `early`:
    a heap of the offset and length of parts behind a gap; `given_up`: it is read back when it is whole."""

    end: int = 0
    sent: int = 0
    worker: int | None = None
    early: list[tuple[int, int]] = field(default_factory=list)
    given_up: bool = False


class Prefixes:
    """The files that are followed, by row. Owned by home."""

    def __init__(self) -> None:
        self._files: dict[int, _Prefix] = {}
        self._due: deque[int] = deque()

    def note(self, row: int, offset: int, length: int) -> None:
        """`length` bytes at `offset` are written."""
        if row not in self._files and len(self._files) < FOLLOWED:
            self._files[row] = _Prefix()
        file = self._files.get(row)
        if file is None or file.given_up:
            return
        heapq.heappush(file.early, (offset, length))
        while file.early and file.early[0][0] == file.end:
            file.end += heapq.heappop(file.early)[1]
        if len(file.early) > MOST_EARLY or (file.early and file.early[0][0] < file.end):
            # In quite another order; or twice in one place, so that what was hashed may be something else by now.
            file.given_up = True
            file.early.clear()
            file.end = 0
            self._due.append(row)
        elif file.end - file.sent >= HASH_STEP and row not in self._due:
            self._due.append(row)

    def due(self) -> tuple[int, int, int | None] | None:
        """A file that is to be hashed further: its row, how far (HASH_DTYPE), and by which worker, if one has begun."""
        while self._due:
            row = self._due.popleft()
            file = self._files.get(row)
            if file is not None and file.end != file.sent:
                file.sent = file.end
                return row, file.end, file.worker
        return None

    def hashed_by(self, row: int, worker: int) -> None:
        """Note who hashes a file from now on."""
        self._files[row].worker = worker

    def finish(self, row: int) -> int | None:
        """Follow a file no longer; who has hashed it so far."""
        file = self._files.pop(row, None)
        return file.worker if file is not None else None
