"""Tables for other programs: rows as a Parquet file."""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(rows: list[dict[str, Any]], out: BinaryIO) -> None:
    """Write rows with the same keys to `out` as one Parquet file."""
    pq.write_table(pa.Table.from_pylist(rows), pa.PythonFile(out, mode="w"), compression="zstd")
