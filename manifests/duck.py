"""DuckDB as it is opened and told what to read: this is the only place that does either.

What DuckDB could guess is said: that no folder in a path is a partition, which columns there are and of what type, that
all files of a list have the same ones. Files are named by OpenFolders. Extensions are never looked for, and what does
not fit into memory goes where it is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from manifests.schema import COLUMNS, duckdb_type

_NOTHING_GUESSED = (
    "hive_partitioning = false, union_by_name = false, filename = false, file_row_number = false, "
    "binary_as_string = false"
)


def connect(*, memory_limit: int, threads: int, temp_directory: str, in_order: bool) -> duckdb.DuckDBPyConnection:
    """A database of its own in memory, of `memory_limit` bytes; `temp_directory`: a name by OpenFolders.room. Results
    keep the order of their rows only where `in_order`, or where a query says so."""
    return duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{memory_limit // 1024}KiB",
            "threads": str(threads),
            "temp_directory": temp_directory,
            "preserve_insertion_order": str(in_order).lower(),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_persistent_secrets": "false",
        },
    )


def reading(table: str, names: Sequence[str], columns: Sequence[str] | None = None) -> str:
    """A query for all rows of manifest files of `table`, named by OpenFolders; of these columns, if not of all."""
    types = {name: kind for name, kind, _ in COLUMNS[table]}
    wanted = ", ".join(f'"{name}"::{duckdb_type(types[name])} AS "{name}"' for name in columns or types)
    listed = ", ".join(quoted(name) for name in names)
    return f"SELECT {wanted} FROM read_parquet([{listed}], {_NOTHING_GUESSED})"


def columns_of(names: Sequence[str]) -> str:
    """A query for the columns (file, column, type) of Parquet files, in their order."""
    listed = ", ".join(quoted(name) for name in names)
    return (
        "SELECT file_name, name, coalesce(duckdb_type, '') "
        f"FROM parquet_schema([{listed}]) WHERE type IS NOT NULL"  # the root has no type
    )


def quoted(text: str) -> str:
    """A string as SQL has it."""
    return "'" + text.replace("'", "''") + "'"
