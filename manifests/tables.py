"""Writing manifest tables: rows in, Parquet files on every backend out.

A file is built in an unnamed temporary file, so that nothing is left whatever dies, and read back in slices for its
digests while it is copied.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from manifests import format as fmt
from manifests.backends import Buffer
from manifests.log import ManifestFile
from manifests.schema import DICTIONARY_COLUMNS, SCHEMAS
from manifests.store import Members

ROW_GROUP = 64 << 10
#: Bytes of fields of variable length at which a row group ends: readers hold no more than a row group of them, however
#: long paths and extended attributes are.
ROW_GROUP_BYTES = 8 << 20
#: Likewise of a file, which is held whole while it is copied.
FILE_BYTES = 32 << 20
FILE_ROWS = 512 << 10


class TableWriter:
    """One manifest file in the making. Owned by one process; unusable after an error."""

    def __init__(self, table: str, sorted_by: str | None = None) -> None:
        self.table = table
        self.rows = 0
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by publish or close
        self._pending: list[Any] = []
        self._pending_rows = self._pending_bytes = self._bytes = 0
        sorting = None
        if sorted_by is not None:
            sorting = [pq.SortingColumn(SCHEMAS[table].get_field_index(sorted_by))]
        self._writer = pq.ParquetWriter(
            self._file,
            SCHEMAS[table],
            compression="zstd",
            compression_level=3,
            use_dictionary=DICTIONARY_COLUMNS[table],
            sorting_columns=sorting,
            write_statistics=True,
        )

    def append(self, columns: dict[str, Any]) -> None:
        """Add rows given as one Arrow array or NumPy array a column; columns not given are null."""
        length = len(next(iter(columns.values())))
        arrays = [
            _as_arrow(columns[field.name], field.type) if field.name in columns else pa.nulls(length, field.type)
            for field in SCHEMAS[self.table]
        ]
        self._pending.append(pa.record_batch(arrays, schema=SCHEMAS[self.table]))
        self._pending_rows += length
        self._pending_bytes += sum(array.nbytes for array in arrays if pa.types.is_binary(array.type))
        self.rows += length
        if self._pending_rows >= ROW_GROUP or self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    @property
    def is_full(self) -> bool:
        """Whether the file is large enough, and rows should go to another one."""
        return self.rows >= FILE_ROWS or self._bytes + self._pending_bytes >= FILE_BYTES

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending), row_group_size=ROW_GROUP)
            self._bytes += self._pending_bytes
            self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def publish(self, members: Members, name: str) -> ManifestFile:
        """Finish the file and put it on every backend as `name`. Raises TooFewBackends."""
        manifest, pieces = self.finish(name)
        members.put_everywhere(manifest.key, pieces)
        return manifest

    def finish(self, name: str) -> tuple[ManifestFile, list[Buffer]]:
        """The finished file, of this name, and its bytes. Other writers may finish in other threads meanwhile."""
        self._flush()
        self._writer.close()
        size = self._file.seek(0, os.SEEK_END)
        whole, slices = blake3(), bytearray()
        with self._file as file:
            file.seek(0)
            # A manifest file is bounded by its writer (rows of one flush, or objects of one run), so a map will do.
            pieces: list[Buffer] = []
            while piece := file.read(fmt.SLICE_SIZE):
                whole.update(piece)
                slices += blake3(piece).digest(fmt.SLICE_DIGEST)
                pieces.append(piece)
        return ManifestFile(self.table, name, size, self.rows, whole.digest(), bytes(slices)), pieces

    def close(self) -> None:
        """Give the file up; pyarrow's writer goes first, for it still writes its footer."""
        try:
            self._writer.close()
        finally:
            self._file.close()


def _as_arrow(values: Any, kind: Any) -> Any:
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    if pa.types.is_fixed_size_binary(kind):
        return fixed_column(np.ascontiguousarray(values).view(np.uint8).reshape(len(values), kind.byte_width))
    return plain_column(values, kind)


def fixed_column(values: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """Fixed-size binary column of rows × bytes that is null where `valid` is false."""
    data = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.shape[1]), len(values), [_bitmap(valid), data])


def plain_column(values: npt.NDArray[Any], kind: Any, valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """A column of numbers or booleans that is null where `valid` is false. It is made of its buffers, for pyarrow.array
    has NumPy import its masked arrays first, and a cast imports pyarrow.compute: 0.05 s together."""
    if pa.types.is_boolean(kind):
        data = np.packbits(values, bitorder="little")
    else:
        data = np.array(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [_bitmap(valid), pa.py_buffer(data)])


def _bitmap(valid: npt.NDArray[np.bool_] | None) -> Any:
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def file_name(owner: uuid.UUID, number: int) -> str:
    return f"{owner}-{number}.parquet"


def constant_id(value: uuid.UUID, length: int) -> Any:
    """A column of `length` times the same id."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), length, [None, pa.py_buffer(value.bytes * length)])
