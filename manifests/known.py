"""What a store holds already, out of its manifests, for the dedupe indexes.

Two tables tell: `chunks` of chunks with their lengths, `objects` of contents that have rows in the extents table. This
is the one place that says what is known; a chunk that must not be referred to is left out here.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests import format as fmt
from manifests.index import Entries, known_rows
from manifests.log import State
from manifests.replicas import Replicas

BATCH_ROWS = 28 << 10


def count_rows(state: State, table: str) -> int:
    return sum(file.rows for file in state.files(table))


def known_chunks(state: State, replicas: Replicas, but: Collection[str] = ()) -> Iterator[Entries]:
    """All chunks (KNOWN) of the manifests, but for those of the files called `but`, in batches of up to BATCH_ROWS."""
    for path in replicas.paths([file for file in state.files("chunks") if file.name not in but]):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["chunk_id", "length"]):
                yield known_rows(_ids(batch.column(0)), batch.column(1).to_numpy())


def known_contents(state: State, replicas: Replicas, but: Collection[str] = ()) -> Iterator[Entries]:
    """The contents (KNOWN, some twice) that have rows in the extents table, as `known_chunks`; their length is 1."""
    for path in replicas.paths([file for file in state.files("objects") if file.name not in but]):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["content_kind", "content_id"]):
                ids = batch.column(1).filter(pc.equal(batch.column(0), fmt.CONTENT_EXTENTS))
                if len(ids):
                    yield known_rows(_ids(ids), 1)


#: Table → all that it makes known.
KNOWN_OF = {"chunks": known_chunks, "objects": known_contents}


def _ids(column: Any) -> Any:
    return np.frombuffer(column.buffers()[1], np.uint8, len(column) * 32, column.offset * 32).reshape(-1, 32)


def pack_ids(state: State, replicas: Replicas, among: set[uuid.UUID]) -> set[uuid.UUID]:
    """Which of the packs `among` the manifests name."""
    found: set[uuid.UUID] = set()
    for path in replicas.paths(state.files("packs")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["pack_id"]):
                found.update({uuid.UUID(bytes=value) for value in batch.column(0).to_pylist()} & among)
    return found
