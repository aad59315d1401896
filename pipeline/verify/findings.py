"""What verification workers find, on its way home."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manifests.columns import Batch, HeapBuilder

CHECKED, BAD_CELLS, MISSING_SHARD, FLAWED_SHARD, LOST_CHUNK, LOST_DIRECTORY, LOST_PACK = range(7)
MISLISTED, WRONG_CONTENT, LOST_PLACE = 7, 8, 9
#: A finding on its way home. CHECKED: `count` bytes read; BAD_CELLS: `count` cells of `shard`; LOST_CHUNK: a chunk of
#: the pack's directory can't be read from its place (`block`, `offset`, `length`); LOST_PLACE: the same of a place that
#: the manifests tell; LOST_DIRECTORY: only the manifests tell what lies in the pack; LOST_PACK: the manifests make no
#: sense of it; MISLISTED: they tell of another content than its directory; WRONG_CONTENT: `chunk_id` is the content's
#: id, the reason says which digest.
FINDING_DTYPE = np.dtype(
    [
        ("kind", "u1"),
        ("pack_id", "u1", (16,)),
        ("shard", "u1"),
        ("count", "<u8"),
        ("chunk_id", "u1", (32,)),
        ("block", "<u4"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("reason_at", "<u4"),
        ("reason_len", "<u4"),
    ]
)
FINDINGS_AT_ONCE = 512
REASON_BYTES = 600


@dataclass
class Finding:
    kind: int
    shard: int = 0
    count: int = 0
    chunk_id: bytes = bytes(32)
    block: int = 0
    offset: int = 0
    length: int = 0
    reason: str = ""


@dataclass
class PackFindings:
    """What was found in one pack."""

    pack_id: bytes
    entries: list[Finding] = field(default_factory=list)

    def batches(self) -> Generator[Batch, Any, None]:
        for start in range(0, len(self.entries), FINDINGS_AT_ONCE):
            some = self.entries[start : start + FINDINGS_AT_ONCE]
            rows, heap = np.zeros(len(some), FINDING_DTYPE), HeapBuilder()
            rows["pack_id"] = np.frombuffer(self.pack_id, np.uint8)
            for name in ("kind", "shard", "count", "block", "offset", "length"):
                rows[name] = [getattr(entry, name) for entry in some]
            rows["chunk_id"] = np.frombuffer(b"".join(entry.chunk_id for entry in some), np.uint8).reshape(-1, 32)
            reasons = [entry.reason.encode()[:REASON_BYTES] for entry in some]
            rows["reason_at"], rows["reason_len"] = heap.add_all(reasons)
            yield Batch(rows, heap.getvalue())
