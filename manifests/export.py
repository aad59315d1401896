"""Tables for other programs: rows as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

#: Rows that are held in memory, and make a row group.
GROUP_ROWS = 1 << 14
_TYPES = {
    "text": pa.string(),
    "path": pa.string(),
    "texts": pa.list_(pa.string()),
    "integer": pa.int64(),
    "number": pa.float64(),
    "flag": pa.bool_(),
    "time": pa.timestamp("us", "UTC"),
}


def write_parquet(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], out: BinaryIO) -> None:
    """Write rows to `out` as one Parquet file, streaming. `columns`: name → text, path, texts (a list), integer,
    number, flag or time (a datetime). A table without rows has them, too."""
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    sink = _Sink(out)
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        try:
            remaining = iter(rows)
            while group := list(islice(remaining, GROUP_ROWS)):
                writer.write_table(pa.Table.from_pylist(group, schema))
        except BaseException:
            sink.broken = True
            raise


class _Sink:
    """Passes on what is written, until it is `broken`: pyarrow ends each file, also one that a failure cut short, and a
    part would pass for the whole."""

    closed = False

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.broken = False

    def write(self, data: bytes) -> int:
        return len(data) if self.broken else self._out.write(data)

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        """The file stays its owner's."""
