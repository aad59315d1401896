"""What became of objects in a restore, on its way home."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from manifests.columns import Batch, HeapBuilder

#: What became of an object's planned chunks. Rows without a reason count parts of objects of many blocks; those with a
#: length tell which bytes of a large file were written. `in_place` and `replaced` count objects of the task;
#: `bytes` those of all files, `in_place_bytes` those of files that were in place.
OUTCOME_DTYPE = np.dtype(
    [
        ("row", "<u8"),
        ("multi", "<i8"),
        ("parts", "<u4"),
        ("files", "<u4"),
        ("in_place", "<u4"),
        ("replaced", "<u4"),
        ("bytes", "<u8"),
        ("in_place_bytes", "<u8"),
        ("elsewhere", "<u4"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("reason_at", "<u4"),
        ("reason_len", "<u4"),
    ]
)
_REASON = 500
_FILES = ("files", "in_place", "replaced", "bytes", "in_place_bytes", "elsewhere")
_NO_FILES = (0,) * len(_FILES)
_NUMBERS = ("row", "multi", "parts", *_FILES, "offset", "length")


class Outcomes:
    """What a task achieved. `bytes`: of files that are restored; `passed`: that were written, whatever became of the
    file; `elsewhere`: chunks that came from another place than the planned one."""

    def __init__(self) -> None:
        self.files = self.bytes = self.passed = self.in_place = self.in_place_bytes = self.replaced = 0
        self.elsewhere = 0
        self._parts: dict[tuple[int, int], int] = {}
        self._written: list[tuple[int, int, int]] = []
        self._reasons: dict[int, tuple[int, str]] = {}

    def parts(self, row: int, multi: int, count: int) -> None:
        self._parts[row, multi] = self._parts.get((row, multi), 0) + count

    def written(self, row: int, offset: int, length: int) -> None:
        """Note which bytes of a large file are there."""
        self._written.append((row, offset, length))

    def lost(self, row: int, reason: str) -> None:
        """Parts of an object that were taken for written are not."""
        for key in [key for key in self._parts if key[0] == row]:
            del self._parts[key]
            self.failed(row, key[1], reason)
        self._written = [each for each in self._written if each[0] != row]

    def failed(self, row: int, multi: int, reason: str) -> None:
        self._reasons.setdefault(row, (multi, reason))

    def is_failed(self, row: int) -> bool:
        return row in self._reasons

    def batches(self, size: int) -> Iterator[Batch]:
        """OUTCOME_DTYPE batches of at most `size` bytes; at least one."""
        files = (getattr(self, name) for name in _FILES)
        entries = [(0, -1, 0, *files, 0, 0, b"")]
        entries += [(row, multi, parts, *_NO_FILES, 0, 0, b"") for (row, multi), parts in self._parts.items()]
        entries += [(row, -1, 0, *_NO_FILES, offset, length, b"") for row, offset, length in self._written]
        entries += [
            (row, multi, 0, *_NO_FILES, 0, 0, os.fsencode(reason)[:_REASON])
            for row, (multi, reason) in self._reasons.items()
        ]
        step = size // (OUTCOME_DTYPE.itemsize + _REASON) - 1
        for start in range(0, len(entries), step):
            some = entries[start : start + step]
            rows, heap = np.zeros(len(some), OUTCOME_DTYPE), HeapBuilder()
            for column, name in enumerate(_NUMBERS):
                rows[name] = [entry[column] for entry in some]
            rows["reason_at"], rows["reason_len"] = heap.add_all([entry[-1] for entry in some])
            yield Batch(rows, heap.getvalue())
