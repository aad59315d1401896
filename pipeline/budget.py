"""What all processes of a command may use together, unless told. In bytes."""

from __future__ import annotations

DEFAULT_MEMORY = 600 << 20
#: What DuckDB gets of it, and keeps to; beyond, it spills.
DUCKDB_MEMORY = 96 << 20
