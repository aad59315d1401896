"""The pipeline: worker processes over shared memory, and the operations of a store made of them.

Nouns: a *station* is what a worker does, a generator (station.py); a *driver* runs it, in a process of its own
(worker.py) or inline (inline.py); the *supervisor* starts, watches and ends workers (supervisor.py); the *arena* is the
memory that they share (arena.py); the *topology* says which there are (topology.py). `home` is the supervisor's
process.

Public face: `pipeline.FileStore` for programs, `pipeline.cli` for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.filestore import FileStore as FileStore

__all__ = ["FileStore"]


def __getattr__(name: str) -> object:
    """FileStore brings DuckDB and pyarrow along, which workers and `--help` do without; so it is loaded when asked."""
    if name == "FileStore":
        from pipeline.filestore import FileStore

        return FileStore
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
