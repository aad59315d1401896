"""What the log alone tells of a store's size."""

from __future__ import annotations

from typing import NamedTuple

from manifests.log import State


class ChunkTotals(NamedTuple):
    """Chunks of a store and the sum of their lengths in bytes. What two runs stored at the same time counts twice."""

    chunks: int
    bytes: int


def chunk_totals(state: State) -> ChunkTotals:
    """Out of the log, at no cost: no manifest is read."""
    sizes = (run.summary.get(name) for run in state.runs for name in ("new_bytes", "adopted_bytes"))
    more = (summary.get("new_bytes") for summary in state.batches)
    # A summary is for people, and nothing checks it.
    size = sum(each for each in (*sizes, *more) if isinstance(each, int)) - state.deleted_bytes
    chunks = sum(file.rows for file in state.files("chunks")) - sum(file.rows for file in state.files("tombstones"))
    return ChunkTotals(chunks, size)
