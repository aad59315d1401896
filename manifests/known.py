"""Ids that a store holds already, streamed from its manifests for the dedupe index.

pyarrow is imported when they are read: an ingest does so while its workers begin.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from manifests import format as fmt
from manifests.log import State
from manifests.replicas import Replicas

BATCH_ROWS = 32 << 10
Ids = npt.NDArray[np.uint8]


def count_rows(state: State, table: str) -> int:
    return sum(file.rows for file in state.files(table))


def chunk_ids(state: State, replicas: Replicas) -> Iterator[Ids]:
    """Ids (n × 32 bytes) of all chunks in the manifests."""
    import pyarrow.parquet as pq

    for path in replicas.paths(state.files("chunks")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["chunk_id"]):
                yield _ids(batch.column(0))


def content_ids(state: State, replicas: Replicas) -> Iterator[Ids]:
    """Ids (n × 32 bytes, some twice) of the contents that have rows in the extents table."""
    import pyarrow.parquet as pq

    for path in replicas.paths(state.files("objects")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["content_kind", "content_id"]):
                wanted = batch.column(0).to_numpy(zero_copy_only=False) == fmt.CONTENT_EXTENTS
                if wanted.any():
                    yield _ids(batch.column(1))[wanted]


def _ids(column: object) -> Ids:
    length, offset = len(column), column.offset  # type: ignore[arg-type, attr-defined]
    flat = np.frombuffer(column.buffers()[1], np.uint8, length * 32, offset * 32)  # type: ignore[attr-defined]
    return flat.reshape(-1, 32)


def pack_ids(state: State, replicas: Replicas, among: set[uuid.UUID]) -> set[uuid.UUID]:
    """Which of the packs `among` the manifests name."""
    import pyarrow.parquet as pq

    found: set[uuid.UUID] = set()
    for path in replicas.paths(state.files("packs")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["pack_id"]):
                found.update({uuid.UUID(bytes=value) for value in batch.column(0).to_pylist()} & among)
    return found
