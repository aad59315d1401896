"""The pipeline: worker processes over shared memory, and the operations of a store made of them.

Nouns: a *station* is what a worker does, a generator (station.py); a *driver* runs it, in a process of its own
(worker.py) or inline (inline.py); the *supervisor* starts, watches and ends workers (supervisor.py); the *arena* is the
memory that they share (arena.py); the *topology* says which there are (topology.py). `home` is the supervisor's
process.

Public face: `pipeline.FileStore` and what its operations give and take, for programs; `pipeline.cli` for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manifests.config import ChunkerSpec as ChunkerSpec
    from manifests.config import CodecSpec as CodecSpec
    from manifests.config import ECScheme as ECScheme
    from manifests.config import StoreConfig as StoreConfig
    from pipeline.backend import Backend as Backend
    from pipeline.backend import MediaType as MediaType
    from pipeline.backend import StorageType as StorageType
    from pipeline.ecgroup import ECGroup as ECGroup
    from pipeline.ecgroup import ECShard as ECShard
    from pipeline.filestore import FileStore as FileStore
    from pipeline.objects.refs import Chunk as Chunk
    from pipeline.objects.refs import ChunkRef as ChunkRef
    from pipeline.objects.refs import IndexStats as IndexStats
    from pipeline.objects.refs import ObjectRef as ObjectRef
    from pipeline.protocol import Store as Store

_HOMES = {
    "manifests.config": ("ChunkerSpec", "CodecSpec", "ECScheme", "StoreConfig"),
    "pipeline.backend": ("Backend", "MediaType", "StorageType"),
    "pipeline.ecgroup": ("ECGroup", "ECShard"),
    "pipeline.filestore": ("FileStore",),
    "pipeline.objects.refs": ("Chunk", "ChunkRef", "IndexStats", "ObjectRef"),
    "pipeline.protocol": ("Store",),
}
__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> object:
    """They bring along much that workers and `--help` do without; so each is loaded when it is asked for."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(__import__(home, fromlist=[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
