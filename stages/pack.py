"""Packs: blocks one after the other, then the directory that says where each chunk lies.

Directory, before it is compressed as a block of its own: DIRECTORY_HEAD, BLOCK_DTYPE × blocks, CHUNK_DTYPE × chunks.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from manifests import format as fmt
from manifests.config import ECScheme
from stages.errors import DamagedPack

Rows = npt.NDArray[np.void]


#: What says how a pack is made up: fields of rows that tell of one.
PACK_LENGTHS = [
    ("payload", "<u8"),
    ("shard_length", "<u8"),
    ("directory_offset", "<u8"),
    ("directory_stored", "<u4"),
    ("directory_raw", "<u4"),
    ("directory_codec", "u1"),
    ("chunks", "<u4"),
]


def encode_directory(blocks: Rows, chunks: Rows) -> bytes:
    """The raw directory of a pack with these blocks (BLOCK_DTYPE) and chunks (CHUNK_DTYPE)."""
    head = fmt.DIRECTORY_HEAD.pack(fmt.DIRECTORY_MAGIC, 0, len(blocks), len(chunks))
    return head + blocks.tobytes() + chunks.tobytes()


def parse_directory(raw: bytes | memoryview) -> tuple[Rows, Rows]:
    """(blocks, chunks) of a raw directory, as views of it. Raises DamagedPack on anything that does not add up."""
    head = fmt.DIRECTORY_HEAD.size
    if len(raw) < head:
        raise DamagedPack(f"pack directory of {len(raw)} bytes is too short")
    magic, incompat, block_count, chunk_count = fmt.DIRECTORY_HEAD.unpack_from(raw)
    if magic != fmt.DIRECTORY_MAGIC or incompat & ~fmt.PACK_INCOMPAT_KNOWN:
        raise DamagedPack("not a pack directory that this version knows")
    expected = head + block_count * fmt.BLOCK_DTYPE.itemsize + chunk_count * fmt.CHUNK_DTYPE.itemsize
    if len(raw) != expected:
        raise DamagedPack(f"pack directory of {len(raw)} bytes; its head promises {expected}")
    blocks = np.frombuffer(raw, fmt.BLOCK_DTYPE, block_count, head)
    chunks = np.frombuffer(raw, fmt.CHUNK_DTYPE, chunk_count, head + blocks.nbytes)
    if chunk_count:
        if int(chunks["block"].max()) >= block_count:
            raise DamagedPack("a chunk of the pack directory lies in a block that is not there")
        ends = chunks["offset"].astype(np.uint64) + chunks["length"]
        if (ends > blocks["raw"][chunks["block"]]).any():
            raise DamagedPack("a chunk of the pack directory ends behind its block")
    return blocks, chunks


class BlockEncoder(Protocol):
    """What compresses the directory: stages/compress.py's Encoder."""

    def encode(self, raw: memoryview, target: memoryview) -> tuple[int, int]: ...


@dataclass(frozen=True)
class SealedPack:
    """A pack ready for erasure coding: `payload` is k × shard_length bytes, of which `length` count."""

    payload: memoryview
    length: int
    directory_offset: int
    directory_stored: int
    directory_raw: int
    directory_codec: int
    blocks: Rows
    chunks: Rows


def large_buffer(size: int) -> mmap.mmap:
    """Memory of its own for `size` bytes, on huge pages where there are any: first touching small ones costs more than
    filling them."""
    buffer = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a kernel without huge pages
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


class PackBuilder:
    """A pack in the making, in a buffer that is reused from pack to pack. Owned by one writer."""

    def __init__(self, capacity: int) -> None:
        """`capacity` bytes of payload, directory and padding included; the buffer grows where a pack needs more."""
        self._buffer = large_buffer(capacity)
        self._blocks: list[Rows] = []
        self._chunks: list[Rows] = []
        self._block_count = 0
        self.fill = 0

    def add(self, data: memoryview, blocks: Rows, chunks: Rows) -> None:
        """Append blocks that lie in `data` at the offsets of `blocks`; `chunks` count blocks from 0. Copies."""
        blocks, chunks = blocks.copy(), chunks.copy()
        end = int(blocks["offset"][-1]) + int(blocks["stored"][-1])
        self._reserve(self.fill + end)
        self._buffer[self.fill : self.fill + end] = data[:end]
        blocks["offset"] += self.fill
        chunks["block"] += self._block_count
        self._block_count += len(blocks)
        self.fill += end
        self._blocks.append(blocks)
        self._chunks.append(chunks)

    def _reserve(self, size: int) -> None:
        if size > len(self._buffer):
            grown = large_buffer(size + size // 4)
            grown[: self.fill] = self._buffer[: self.fill]
            self._buffer.close()
            self._buffer = grown

    def seal(self, encoder: BlockEncoder, scheme: ECScheme) -> SealedPack:
        """Append the directory, compressed by `encoder`, pad with zeros, and start anew. The payload stays valid until
        the next `add`."""
        blocks, chunks = np.concatenate(self._blocks), np.concatenate(self._chunks)
        raw = encode_directory(blocks, chunks)
        offset = self.fill
        self._reserve(offset + len(raw))
        with memoryview(self._buffer) as view:
            codec, stored = encoder.encode(memoryview(raw), view[offset : offset + len(raw)])
        length = offset + stored
        padded = scheme.k * scheme.shard_length(length)
        self._reserve(padded)
        self._buffer[length:padded] = bytes(padded - length)
        self._blocks, self._chunks, self._block_count, self.fill = [], [], 0, 0
        return SealedPack(memoryview(self._buffer)[:padded], length, offset, stored, len(raw), codec, blocks, chunks)
