"""What an earlier run knows of files, in a file in which paths are looked up.

It is written once and read by batches. Rows lie in blocks, as they travel (manifests/columns.py); then come segments of
an index, each sorted by a hash of the path. So the order of neither side matters, whatever was selected or listed;
neighbours find theirs in one block or two; and nobody holds more than some blocks and a segment that is being sorted.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from manifests.columns import OBJECT_DTYPE, Array, Batch

#: Rows whose places are sorted at a time: 16 MiB.
SEGMENT_ROWS = 1 << 20
#: Blocks that a reader keeps.
KEPT_BLOCKS = 4
#: Bytes of the index that a reader leaves mapped from batch to batch.
KEPT_INDEX = 16 << 20
_ROW_BITS = 16
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """What of a file's stat must be equal for it to count as unchanged, besides its size and modification time."""

    inode: bool = True
    ctime: bool = True

    @property
    def ignored(self) -> tuple[str, ...]:
        return tuple(name for name in ("inode", "ctime") if not getattr(self, name))

    def holds(self, found: Array, recorded: Array) -> Mask:
        """For rows of OBJECT_DTYPE, as the scanner found them and as an earlier run has them. This is the rule."""
        equal: Mask = (found["size"] == recorded["size"]) & (found["mtime_ns"] == recorded["mtime_ns"])
        if self.inode:
            equal &= found["inode"] == recorded["inode"]
        if self.ctime:
            equal &= found["ctime_ns"] == recorded["ctime_ns"]
        return equal


def path_hashes(batch: Batch) -> Hashes:
    """A hash of each row's path, over all of a batch at once. Equal hashes of different paths cost a reading, no more:
    paths are compared."""
    starts, lengths = batch.rows["path_at"].astype(np.int64), batch.rows["path_len"].astype(np.int64)
    hashes = lengths.astype(np.uint64) * _FACTOR
    if not len(hashes):
        return hashes
    heap = np.frombuffer(bytes(batch.heap) + bytes(8), np.uint8)
    # Words of 8 bytes: each is multiplied by a power of an odd number, so that its place counts.
    words = -(-lengths // 8)
    first = np.cumsum(words) - words
    step = np.arange(int(words.sum())) - np.repeat(first, words)
    at = np.repeat(starts, words) + 8 * step
    values = heap[at[:, None] + np.arange(8)].view(np.uint64).ravel()
    over = 8 * (step + 1) - np.repeat(lengths, words)
    keep = np.maximum(over, 0).astype(np.uint64) * np.uint64(8)
    values = (values << keep) >> keep  # bytes beyond the path's end don't count
    powers = np.cumprod(np.full(int(words.max(initial=0)) + 1, _FACTOR))
    mixed = (values ^ (values >> np.uint64(29))) * powers[step]
    mixed ^= mixed >> np.uint64(32)
    filled = words > 0
    hashes[filled] ^= np.add.reduceat(mixed * _FACTOR, first[filled])
    return hashes


class ParentWriter:
    """Writes the file. Owned by one process; `finish` once."""

    def __init__(self, file: BinaryIO) -> None:
        """`file` is the caller's, and empty."""
        self._file = file
        self._size = 0
        self._blocks: list[tuple[int, int]] = []
        self._segments: list[tuple[int, int]] = []
        self._hashes: list[Hashes] = []
        self._places: list[Hashes] = []
        self._pending = 0

    def add(self, batch: Batch) -> None:
        """A block of rows, less than 64 Ki."""
        count = len(batch.rows)
        if not count:
            return
        self._hashes.append(path_hashes(batch))
        self._places.append(np.arange(count, dtype=np.uint64) + np.uint64(len(self._blocks) << _ROW_BITS))
        block = bytearray(batch.nbytes)
        batch.store(memoryview(block))
        self._blocks.append((self._write(block), len(block)))
        self._pending += count
        if self._pending >= SEGMENT_ROWS:
            self._end_segment()

    def finish(self) -> None:
        """The file can be read from now on."""
        if self._pending:
            self._end_segment()
        tables = np.array([*self._blocks, *self._segments], np.uint64).tobytes()
        self._write(tables + np.array([len(self._blocks), len(self._segments)], np.uint64).tobytes())
        self._file.flush()

    def _end_segment(self) -> None:
        hashes, places = np.concatenate(self._hashes), np.concatenate(self._places)
        self._hashes, self._places, self._pending = [], [], 0
        order = np.argsort(hashes)
        start = self._write(hashes[order].tobytes())
        self._write(places[order].tobytes())
        self._segments.append((start, len(order)))

    def _write(self, data: bytes | bytearray) -> int:
        """Write at a multiple of 8, for arrays are mapped; returns where that is."""
        start = self._size + -self._size % 8
        self._file.write(bytes(start - self._size))
        self._file.write(data)
        self._size = start + len(data)
        return start


class ParentTable:
    """Reads what a ParentWriter wrote. Owned by one process; `close` it."""

    def __init__(self, fd: int, comparison: Comparison) -> None:
        """`fd` is this object's from now on."""
        self._fd = fd
        self._comparison = comparison
        self._kept: OrderedDict[int, Batch] = OrderedDict()
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        blocks, segments = np.frombuffer(self._map, np.uint64, 2, size - 16).tolist()
        at = size - 16 - 16 * (blocks + segments)
        self._blocks = np.frombuffer(self._map, np.uint64, 2 * blocks, at).reshape(-1, 2).tolist()
        found = np.frombuffer(self._map, np.uint64, 2 * segments, at + 16 * blocks).reshape(-1, 2).tolist()
        self._segments = [
            (
                np.frombuffer(self._map, np.uint64, count, start),
                np.frombuffer(self._map, np.uint64, count, start + 8 * count),
            )
            for start, count in found
        ]
        self._index_bytes = sum(16 * count for _, count in found)

    def close(self) -> None:
        self._segments = []
        self._map.close()
        os.close(self._fd)

    def unchanged(self, batch: Batch, numbers: Numbers, paths: Sequence[bytes]) -> Iterator[tuple[Numbers, Batch]]:
        """Of the rows `numbers` of an OBJECT_DTYPE batch, whose paths are `paths`, those that the earlier run has with
        an equal stat: their numbers, and what that run has of them, row by row."""
        if not len(numbers):
            return
        hashes = path_hashes(Batch(batch.rows[numbers], batch.heap))
        for index, places in self._segments:
            place = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
            hit = index[place] == hashes
            yield from self._compare(batch, numbers[hit], paths, places[place[hit]])
        if self._index_bytes > KEPT_INDEX:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _compare(
        self, batch: Batch, numbers: Numbers, paths: Sequence[bytes], places: Hashes
    ) -> Iterator[tuple[Numbers, Batch]]:
        blocks = (places >> np.uint64(_ROW_BITS)).astype(np.int64)
        for block in sorted(set(blocks.tolist())):
            mine = blocks == block
            some, at = numbers[mine], (places[mine] & np.uint64((1 << _ROW_BITS) - 1)).astype(np.int64)
            known = self._block(block)
            recorded = known.rows[at]
            equal = self._comparison.holds(batch.rows[some], recorded)
            equal &= batch.rows["path_len"][some] == recorded["path_len"]
            some, recorded = some[equal], Batch(recorded[equal], known.heap)
            same = np.array(
                [paths[number] == path for number, path in zip(some.tolist(), recorded.all_bytes("path"), strict=True)],
                bool,
            )
            if same.any():
                yield some[same], Batch(recorded.rows[same], known.heap)

    def _block(self, number: int) -> Batch:
        kept = self._kept.pop(number, None)
        if kept is None:
            start, length = self._blocks[number]
            kept = Batch.load(os.pread(self._fd, length, start), OBJECT_DTYPE)
            if len(self._kept) >= KEPT_BLOCKS:
                self._kept.popitem(last=False)
        self._kept[number] = kept
        return kept
