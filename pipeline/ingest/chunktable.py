"""What a reader knows of the slot that it fills, and of the content that it reads into several."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from manifests.columns import ROW_EXTENT_DTYPE
from stages.chunk import ContentHasher
from stages.digest import Digester

#: A chunk in a data slot: place, length, id.
CHUNK_REF = np.dtype([("offset", "<u4"), ("length", "<u4"), ("id", "u1", (32,))])
_ZEROS = memoryview(bytes(1 << 20))


class ChunkTable:
    """Chunks of the slot that is being filled."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.ids: list[bytes] = []

    def __len__(self) -> int:
        return len(self.ids)

    def add_run(self, offset: int, lengths: list[int], ids: list[bytes]) -> None:
        """Add chunks that lie one after the other from `offset`."""
        for length in lengths:
            self.offsets.append(offset)
            offset += length
        self.lengths += lengths
        self.ids += ids

    def add(self, offset: int, length: int, identity: bytes) -> None:
        self.offsets.append(offset)
        self.lengths.append(length)
        self.ids.append(identity)

    def cut(self, count: int) -> None:
        """Forget all chunks but the first `count`."""
        del self.offsets[count:], self.lengths[count:], self.ids[count:]

    def take(self) -> npt.NDArray[np.void]:
        """The table as CHUNK_REF rows; empty after it."""
        refs = np.empty(len(self.ids), CHUNK_REF)
        refs["offset"], refs["length"] = self.offsets, self.lengths
        refs["id"] = np.frombuffer(b"".join(self.ids), np.uint8).reshape(-1, 32)
        self.offsets, self.lengths, self.ids = [], [], []
        return refs


def extent_rows(row: int, offset: int, lengths: list[int], ids: list[bytes]) -> npt.NDArray[np.void]:
    """Extents (ROW_EXTENT_DTYPE) of object `row`: chunks one after the other from `offset` of its content."""
    extents = np.empty(len(lengths), ROW_EXTENT_DTYPE)
    extents["row"], extents["length"] = row, lengths
    extents["offset"] = offset + np.cumsum(extents["length"], dtype=np.uint64) - extents["length"]
    extents["id"] = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
    return extents


@dataclass
class OpenContent:
    """The content of row `number` that is being read into several slots; `offset`: where its next byte belongs."""

    number: int
    more: Digester
    hasher: ContentHasher = field(default_factory=ContentHasher)
    offset: int = 0
    chunks: int = 0
    first_id: bytes = b""

    def add_bytes(self, data: memoryview) -> None:
        """Add the content's next bytes to its digests."""
        self.hasher.add_bytes(data)
        self.more.update(data)

    def add_zeros(self, count: int) -> None:
        """A hole counts for the digests as the zeros that it is."""
        while count > 0:
            piece = _ZEROS[:count]
            self.add_bytes(piece)
            count -= len(piece)
