"""Dedupe indexes: which chunks a store holds, and how long they are.

An *index* maps the first 16 bytes of an id (ids are BLAKE3, so these are as good as all 32) to a length. Two kinds
implement one interface: `memory` (stages/dedupe.py) and `disk` (manifests/diskindex.py). Both are caches of the
manifests and may be lost at any time. tests/test_index_kinds.py is the suite that each kind must pass.

The same serves the ids of contents that have extents rows; their length is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
#: What a chunk costs in an index of kind `memory`, at most, also while that grows.
MEMORY_BYTES = 30
#: Ids, n × 32 bytes; the first KEY_BYTES of each count, so keys will do where they are given back.
Ids = npt.NDArray[np.uint8]
#: Lengths in bytes, at least 1: 0 says that an id is not known.
Lengths = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
#: What an index holds, as it is given out.
ENTRY = np.dtype([("key", "u1", (KEY_BYTES,)), ("length", "<u4")])
Entries = npt.NDArray[np.void]
#: What is told to an index: whole ids, as manifests and pack directories have them.
KNOWN = np.dtype([("id", "u1", (32,)), ("length", "<u4")])


class Index(Protocol):
    """An index of one kind. Owned by one thread. Batches stay the caller's and are not written to. A disk index raises
    DamagedIndex where its file makes no sense."""

    def __len__(self) -> int:
        """How many ids are known."""

    @property
    def total_bytes(self) -> int:
        """Sum of the lengths of all that is known."""

    def get_batch(self, ids: Ids) -> Lengths:
        """The length of each id, 0 where it is not known."""

    def put_batch(self, ids: Ids, lengths: Lengths) -> Mask:
        """Make ids known. Returns which were new; of equal ones in the batch the first. What is known already keeps
        its length."""

    def delete(self, ids: Ids) -> int:
        """Make ids unknown. Returns how many were known."""

    def iterate(self) -> Iterator[Entries]:
        """All that is known (ENTRY), in batches, in no order; the index must not change meanwhile."""

    def stream(self, accept: Callable[[Entries], Mask]) -> Iterator[Entries]:
        """What `accept` chooses of each batch of `iterate`; no empty batches."""

    def sync(self) -> None:
        """What was put and deleted is durable when this returns, as far as the kind can be."""

    def destroy(self) -> None:
        """Close, and remove what the index keeps on disk."""

    def close(self) -> None:
        """Release what the index holds; it can't be used any more. May be called twice."""


def keys_of(ids: Ids) -> npt.NDArray[np.uint64]:
    """The keys of ids, n × 2 words in the order of their bytes. All zeros mark an empty place in memory, so an id that
    begins so (never seen) shares the key of one that ends in 1; this is the rule for all kinds."""
    keys = np.array(ids[:, :KEY_BYTES], order="C").view(np.uint64)
    keys[:, 1] |= (keys[:, 0] == 0) & (keys[:, 1] == 0)
    return keys


def accepted(batches: Iterable[Entries], accept: Callable[[Entries], Mask]) -> Iterator[Entries]:
    """What `accept` chooses of each batch, without empty ones: what `stream` of each kind is."""
    for batch in batches:
        chosen = batch[accept(batch)]
        if len(chosen):
            yield chosen


def known_rows(ids: Any, lengths: Any) -> Entries:
    """KNOWN rows of ids (n × 32 bytes) and their lengths (an array, or one for all)."""
    rows = np.empty(len(ids), KNOWN)
    rows["id"], rows["length"] = ids, lengths
    return rows
