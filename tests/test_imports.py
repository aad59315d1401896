"""What is imported where: workers live without what only the supervisor needs."""

from __future__ import annotations

import subprocess
import sys


def test_workers_import_neither_duckdb_nor_pyarrow() -> None:
    code = "import pipeline.stations, sys; print(sorted({'duckdb', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
