"""What all processes of a command may use together, unless told: memory in bytes, and cores."""

from __future__ import annotations

import os

DEFAULT_MEMORY = 600 << 20
#: What DuckDB gets of it, and keeps to; beyond, it spills.
DUCKDB_MEMORY = 96 << 20


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
