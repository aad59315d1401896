"""Rows as they travel between processes: a structured NumPy array and one heap of bytes.

A field of variable length is a pair of u32 columns in the array, `<name>_at` and `<name>_len`, pointing into the heap.
Nothing here is written to a store; only EXTENT, CHUNK and BLOCK arrays are (manifests/format.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.void]
Buffer = bytes | bytearray | memoryview

_HEAD = np.dtype([("rows", "<u4"), ("heap", "<u4")])

#: An object on its way from the scanner over the reader to the manifest. `content_kind` as in format.py; `digests` are
#: those that the run was asked for, one after the other; `xattrs` and `holes` as in the manifest; `unchanged`: it
#: was not read, its content is what an earlier run has of it; `misfit`: its error is that a number of its stat is
#: beyond the field (fitting.py), so its content goes in all the same; `folder_device` and `folder_inode`: the directory
#: that a file was found in, 0 where that makes no difference.
OBJECT_DTYPE = np.dtype(
    [
        ("row", "<u8"),
        ("kind", "u1"),
        ("content_kind", "u1"),
        ("clean", "u1"),
        ("has_digest", "u1"),
        ("unchanged", "u1"),
        ("misfit", "u1"),
        ("size", "<u8"),
        ("content_id", "u1", (32,)),
        ("digest", "u1", (32,)),
        ("mode", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("links", "<u4"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("device", "<u8"),
        ("inode", "<u8"),
        ("rdev", "<u8"),
        ("folder_device", "<u8"),
        ("folder_inode", "<u8"),
        ("source", "<u4"),
        ("path_at", "<u4"),
        ("path_len", "<u4"),
        ("target_at", "<u4"),
        ("target_len", "<u4"),
        ("error_at", "<u4"),
        ("error_len", "<u4"),
        ("digests_at", "<u4"),
        ("digests_len", "<u4"),
        ("xattrs_at", "<u4"),
        ("xattrs_len", "<u4"),
        ("holes_at", "<u4"),
        ("holes_len", "<u4"),
    ]
)

#: An extent on its way to the manifest: its content id is known only when its object ends.
ROW_EXTENT_DTYPE = np.dtype([("row", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("id", "u1", (32,))])

#: Where a chunk lies, and where it belongs in its content.
_PLACE: list[Any] = [
    ("pack_id", "u1", (16,)),
    ("k", "u1"),
    ("m", "u1"),
    ("payload", "<u8"),
    ("shard_length", "<u8"),
    ("block", "<u4"),
    ("block_offset", "<u8"),
    ("stored", "<u4"),
    ("raw", "<u4"),
    ("codec", "u1"),
    ("chunk_offset", "<u4"),
    ("length", "<u4"),
    ("chunk_id", "u1", (32,)),
    ("file_offset", "<u8"),
]

#: `multi` is −1 for an object that one task writes whole (one chunk, or all in one block that is not crowded), else the
#: number under which its parts are counted. `leads`: other names of the object are to be made. `long`: the place of its
#: fields of variable length where one is long, else 0 (manifests/longfields.py).
PLAN_DTYPE = np.dtype(
    [
        *_PLACE,
        ("row", "<u8"),
        ("multi", "<i8"),
        ("leads", "u1"),
        ("size", "<u8"),
        ("mode", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime_ns", "<i8"),
        ("long", "<u8"),
        ("path_at", "<u4"),
        ("path_len", "<u4"),
        ("fixity_at", "<u4"),
        ("fixity_len", "<u4"),
        ("xattrs_at", "<u4"),
        ("xattrs_len", "<u4"),
    ]
)

#: Objects that need no block, and finished objects of many blocks. `group`: of the names of one object, the row of the
#: first; −1 where no other name of it is to be made. `long` as in a plan.
ITEM_DTYPE = np.dtype(
    [
        ("kind", "u1"),
        ("row", "<u8"),
        ("multi", "<i8"),
        ("group", "<i8"),
        ("size", "<u8"),
        ("mode", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime_ns", "<i8"),
        ("rdev", "<u8"),
        ("long", "<u8"),
        ("path_at", "<u4"),
        ("path_len", "<u4"),
        ("target_at", "<u4"),
        ("target_len", "<u4"),
        ("fixity_at", "<u4"),
        ("fixity_len", "<u4"),
        ("xattrs_at", "<u4"),
        ("xattrs_len", "<u4"),
        ("holes_at", "<u4"),
        ("holes_len", "<u4"),
    ]
)

#: The content that a piece belongs to, with what it is to be compared with.
_CONTENT: list[Any] = [
    ("content", "<u8"),
    ("content_kind", "u1"),
    ("content_id", "u1", (32,)),
    ("size", "<u8"),
    ("is_last", "u1"),
    ("has_holes", "u1"),
    ("fixity_at", "<u4"),
    ("fixity_len", "<u4"),
]

#: A piece of a content. An empty content is one piece of length 0. `judges`: nobody else looks whether the chunk is
#: what its id says.
PIECE_DTYPE = np.dtype([*_CONTENT, *_PLACE, ("judges", "u1")])

#: A piece of a content whose bytes lie beside it: `held` bytes from `at`. Those of a long chunk may be parted: what
#: `continues` the piece before has no length. `is_lost`: there are no bytes.
RAW_DTYPE = np.dtype(
    [
        *_CONTENT,
        ("file_offset", "<u8"),
        ("length", "<u4"),
        ("chunk_id", "u1", (32,)),
        ("held", "<u4"),
        ("at", "<u4"),
        ("continues", "u1"),
        ("is_lost", "u1"),
    ]
)


@dataclass
class Batch:
    """Rows and the heap that their variable fields point into. Views into the buffer they were loaded from, and
    valid only as long as it."""

    rows: Array
    heap: Buffer

    def bytes_of(self, row: np.void, name: str) -> bytes:
        """Variable field `name` of one row."""
        at = int(row[f"{name}_at"])
        return bytes(self.heap[at : at + int(row[f"{name}_len"])])

    def all_bytes(self, name: str) -> list[bytes]:
        """Variable field `name` of all rows."""
        heap = bytes(self.heap)
        starts = self.rows[f"{name}_at"].tolist()
        lengths = self.rows[f"{name}_len"].tolist()
        return [heap[at : at + length] for at, length in zip(starts, lengths, strict=True)]

    def copy(self) -> Batch:
        """The same with memory of its own, which may be written to."""
        return Batch(self.rows.copy(), bytes(self.heap))

    @property
    def nbytes(self) -> int:
        return _HEAD.itemsize + self.rows.nbytes + len(self.heap)

    def store(self, target: memoryview) -> int:
        """Copy into `target`; returns the bytes used. Raises ValueError where it does not fit."""
        if self.nbytes > len(target):
            raise ValueError(f"a batch of {self.nbytes} bytes does not fit into {len(target)}")
        head = np.zeros(1, _HEAD)
        head["rows"], head["heap"] = len(self.rows), len(self.heap)
        at = _HEAD.itemsize
        target[:at] = head.tobytes()
        body = self.rows.tobytes()
        target[at : at + len(body)] = body
        at += len(body)
        target[at : at + len(self.heap)] = bytes(self.heap)
        return at + len(self.heap)

    @classmethod
    def load(cls, source: Buffer, dtype: np.dtype[np.void]) -> Batch:
        """A view of the batch in `source`; copy what outlives the buffer."""
        rows, heap = (int(value) for value in np.frombuffer(source, _HEAD, 1)[0])
        at = _HEAD.itemsize
        end = at + rows * dtype.itemsize
        return cls(np.frombuffer(source, dtype, rows, at), memoryview(source)[end : end + heap])


class HeapBuilder:
    """Collects the variable fields of a batch. Owned by whoever fills the batch."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def add(self, value: bytes) -> tuple[int, int]:
        """(at, length) of `value` in the heap."""
        at = self.size
        self._pieces.append(value)
        self.size += len(value)
        return at, len(value)

    def add_all(self, values: Sequence[bytes]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Columns `at` and `length` of `values` in the heap."""
        lengths = np.fromiter(map(len, values), np.uint32, len(values))
        starts = (self.size + np.cumsum(lengths, dtype=np.uint64) - lengths).astype(np.uint32)
        self._pieces.extend(values)
        self.size += int(lengths.sum())
        return starts, lengths

    def getvalue(self) -> bytes:
        return b"".join(self._pieces)


def with_fields(batch: Batch, fields: Mapping[str, Mapping[int, bytes]]) -> Batch:
    """The batch with other values of variable fields: field → row → value; all else stays."""
    rows, heap = batch.rows, HeapBuilder()
    heap.add(bytes(batch.heap))
    for name, values in fields.items():
        if values:
            column = batch.all_bytes(name)
            for number, value in values.items():
                column[number] = value
            rows[f"{name}_at"], rows[f"{name}_len"] = heap.add_all(column)
    return Batch(rows, heap.getvalue())


def cut_batch(batch: Batch, start: int, end: int) -> Batch:
    """Rows `start` to `end` with the part of the heap that they use (variable fields lie there in order of row)."""
    return _gathered([Batch(batch.rows[start:end], batch.heap)])


def join_batches(first: Batch, second: Batch) -> Batch:
    """Both batches' rows as one batch."""
    return _gathered([first, second])


def _gathered(batches: list[Batch]) -> Batch:
    """The rows of all batches, and a heap of what they use: each variable field for itself, in order of row."""
    rows = np.concatenate([batch.rows for batch in batches])
    heap = bytearray()
    for name in _variable(rows):
        row = 0
        for batch in batches:
            if count := len(batch.rows):
                at = batch.rows[f"{name}_at"]
                first, last = int(at[0]), int(at[-1]) + int(batch.rows[f"{name}_len"][-1])
                rows[f"{name}_at"][row : row + count] = at - first + len(heap)
                heap += batch.heap[first:last]
                row += count
    return Batch(rows, bytes(heap))


def _variable(rows: Array) -> list[str]:
    return [name.removesuffix("_at") for name in rows.dtype.names or () if name.endswith("_at")]
