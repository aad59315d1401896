"""Numbers of the outside world in columns of fixed width.

A file system may say anything: a time in the year 2300, an owner of −1. A value that its column holds is kept. For any
other, the nearest that the column holds is recorded, and the row gets an error that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_TIMES = "is clipped to the years 1677 to 2262"
_NUMBERS = "is clipped to what a manifest holds"
#: Field of OBJECT_DTYPE → what an error says of it. Each row of a full batch may have one of MISFIT_MOST bytes.
MISFITS = {
    "mtime_ns": f"its modification time {_TIMES}",
    "ctime_ns": f"its change time {_TIMES}",
    "size": f"its size {_NUMBERS}",
    "mode": f"its mode {_NUMBERS}",
    "uid": f"the id of its owner {_NUMBERS}",
    "gid": f"the id of its group {_NUMBERS}",
    "links": f"its number of names {_NUMBERS}",
    "device": f"its device {_NUMBERS}",
    "inode": f"its inode {_NUMBERS}",
    "rdev": f"its device number {_NUMBERS}",
}
#: Numbers that are names: Python gives the greatest of some as −1, and others as negative above the half.
_IDENTITIES = {"uid", "gid", "device", "inode", "rdev"}

MISFIT_MOST = 64


def put(rows: npt.NDArray[Any], name: str, numbers: Sequence[int], values: Sequence[int]) -> dict[int, str]:
    """Set the field `name` of the rows `numbers`. Returns, by number, what is wrong with those whose value the field
    can't hold; they have the nearest that it can."""
    try:
        rows[name][numbers] = values
    except OverflowError:
        return _put_one_by_one(rows[name], name, numbers, values)
    return {}


def _put_one_by_one(
    column: npt.NDArray[Any], name: str, numbers: Sequence[int], values: Sequence[int]
) -> dict[int, str]:
    holds, misfits = np.iinfo(column.dtype), dict[int, str]()
    least, most = int(holds.min), int(holds.max)
    for number, value in zip(numbers, values, strict=True):
        if name in _IDENTITIES and -(most + 1) // 2 <= value < 0:
            value += most + 1
        fitting = min(max(value, least), most)
        column[number] = fitting
        if fitting != value:
            misfits[number] = MISFITS[name]
    return misfits


def total(sizes: npt.NDArray[np.uint64]) -> int:
    """The exact sum. NumPy's own wraps around at 16 EiB, which three sparse files reach."""
    return (int((sizes >> np.uint64(32)).sum()) << 32) + int((sizes & np.uint64(0xFFFFFFFF)).sum())
