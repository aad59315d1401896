"""Arrow record batches as structured rows and a heap (manifests/columns.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.columns import Batch
from manifests.errors import Unreadable


def to_batch(batch: Any, dtype: np.dtype[np.void], variable: dict[str, str]) -> Batch:
    """An Arrow record batch as structured rows and a heap; nulls become zeros and empty strings."""
    rows = np.zeros(batch.num_rows, dtype)
    heap = bytearray()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in variable:
            starts, lengths = _append_binary(column, heap)
            rows[f"{name}_at"], rows[f"{name}_len"] = starts, lengths
        elif dtype[name].shape:
            rows[name] = _fixed(column, dtype[name].shape[0])
        else:
            rows[name] = _numbers(column)
    return Batch(rows, bytes(heap))


def _offsets(column: Any) -> tuple[np.ndarray[Any, Any], Any]:
    """Where the values of a column of binary strings begin and end, and the buffer that they lie in. Usual types are
    read as they are: the first cast imports pyarrow.compute, which takes 0.03 s."""
    import pyarrow as pa

    kind, first, count = column.type, column.offset, len(column)
    if pa.types.is_fixed_size_binary(kind):
        return np.arange(first, first + count + 1, dtype=np.int64) * kind.byte_width, column.buffers()[1]
    if pa.types.is_binary(kind) and count:
        _, offsets, data = column.buffers()
        return np.frombuffer(offsets, np.int32, count + 1, first * 4).astype(np.int64), data
    wide = column.cast("large_binary")
    offsets = np.frombuffer(wide.buffers()[1], np.int64, len(wide) + 1, wide.offset * 8)
    return offsets, wide.buffers()[2]


def _numbers(column: Any) -> npt.NDArray[Any]:
    """A column of numbers or booleans, null as 0."""
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        return bools(column)
    if not column.null_count:
        return np.asarray(column.to_numpy())
    kind = np.dtype(column.type.to_pandas_dtype())
    values = np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)
    return np.where(valid(column), values, kind.type(0))


def valid(column: Any) -> npt.NDArray[np.bool_]:
    """Which values of a column are not null."""
    if column.null_count in (0, len(column)):
        return np.full(len(column), not column.null_count)
    return _bits(column, 0)


def bools(column: Any) -> npt.NDArray[np.bool_]:
    """A column of booleans, null as False."""
    if column.null_count == len(column):
        return np.zeros(len(column), bool)
    return _bits(column, 1) & valid(column)


def _bits(column: Any, buffer: int) -> npt.NDArray[np.bool_]:
    first, last = column.offset, column.offset + len(column)
    bits = np.frombuffer(column.buffers()[buffer], np.uint8)[first // 8 : -(-last // 8)]
    return np.unpackbits(bits, bitorder="little")[first % 8 :][: len(column)].view(np.bool_)


def _append_binary(column: Any, heap: bytearray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    offsets, data = _offsets(column)
    if not len(column):
        return offsets[:0], offsets[:0]
    first, last = int(offsets[0]), int(offsets[-1])
    start = len(heap)
    heap += memoryview(data)[first:last] if data is not None else b""
    return offsets[:-1] - first + start, np.diff(offsets)


def _fixed(column: Any, width: int) -> npt.NDArray[np.uint8]:
    if not len(column):
        return np.zeros((0, width), np.uint8)
    offsets, data = _offsets(column)
    first = int(offsets[0])
    if (np.diff(offsets) != width).any():
        raise Unreadable(f"the manifests hold an id that is not {width} bytes long; see: drystone verify --data")
    flat = np.frombuffer(data, np.uint8, len(column) * width, first)
    return flat.reshape(len(column), width)
