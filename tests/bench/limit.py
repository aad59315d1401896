"""The limit: the same works by the bare kernels, in one process, one after the other.

Read, cut (CDC), BLAKE3, compress (zstd), parity, write, with Drystone's defaults, block sizes and formats, by its own
stage functions; no processes, queues, index, manifests or metadata. What counts is the CPU time of the kernels alone,
for what lies between them is for the pipeline to save. Their sum over the cores is the time that a perfect pipeline
would take.

    python -m tests.bench.limit SOURCE SCRATCH
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from manifests.config import ChunkerSpec, CodecSpec, ECScheme
from pipeline.worker import keep_memory
from stages.chunk import Chunker, chunk_id
from stages.compress import BlockShaper, Decoder, Encoder, split_blocks
from stages.erasure import ErasureCoder
from stages.pack import large_buffer
from stages.shard import cell_table
from tests.bench.measure import BenchError

ROOT = Path(__file__).parents[2]
SLOT = 4 << 20
#: A slot with less room than this, or as many files, is full.
ROOM, SLOT_FILES = 256 << 10, 4096
PACK = 32 << 20
SEED = 1
#: Seconds of CPU by kernel, by work.
Limits = dict[str, dict[str, float]]


class Clocks:
    """CPU seconds of this process by kernel, for one work at a time."""

    def __init__(self) -> None:
        self.works: dict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.work = ""

    @contextmanager
    def on(self, kernel: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.works[self.work][kernel] += time.process_time() - started


@dataclass
class Content:
    """One file. `pieces`: (chunk id, offset) of its chunks."""

    path: bytes
    hasher: Any
    pieces: list[tuple[bytes, int]] = field(default_factory=list)


@dataclass
class Segment:
    """Bytes of a content in the slot, from `start` to `end`; the first lies at `offset` of the content. A content that
    does not end here is cut up to its last sure boundary only, and `end` set to that."""

    content: Content
    start: int
    end: int
    offset: int
    ended: bool


@dataclass
class Block:
    """Where a block lies in its pack, and the ids and lengths of its chunks."""

    codec: int
    offset: int
    stored: int
    raw: int
    chunks: list[tuple[bytes, int]]


@dataclass
class Pack:
    folder: Path
    blocks: list[Block]
    shard_length: int


class Kernels:
    """All works on one source, in order: each makes what the next one needs. Use once."""

    def __init__(self, source: Path, scratch: Path) -> None:
        self._source, self._scratch = os.fsencode(source), scratch
        self._clocks = Clocks()
        self._on = self._clocks.on
        self._chunker = Chunker(ChunkerSpec(), SEED)
        self._scheme = ECScheme()
        self._coder = ErasureCoder(self._scheme)
        self._encoder, self._shaper, self._decoder = Encoder(CodecSpec()), BlockShaper(), Decoder()
        self._slot, self._gathered = memoryview(bytearray(SLOT)), memoryview(bytearray(SLOT))
        room = PACK + 2 * SLOT
        self._buffer, self._parity = memoryview(large_buffer(room)), memoryview(large_buffer(room))
        self._fill = 0
        self._blocks: list[Block] = []
        self._known: set[bytes] = set()
        self._contents: list[Content] = []
        self._packs: list[Pack] = []

    def run(self) -> Limits:
        """Seconds of CPU by kernel for each work."""
        self._clocks.work = "ingest"
        for segments in self._slots(self._list()):
            self._store(self._cut(segments))
        if self._fill:
            self._seal()
        first = self._contents
        self._clocks.work = "reread"
        for segments in self._slots(self._list()):
            self._cut(segments)
        self._clocks.work = "unchanged"
        self._list()
        self._contents = first
        self._clocks.work = "restore"
        self._restore()
        self._clocks.work = "verify"
        self._verify()
        return {work: dict(parts) for work, parts in self._clocks.works.items()}

    # --- ingest ------------------------------------------------------------------------------------------------------

    def _list(self) -> list[bytes]:
        """All regular files, directory by directory, by name, each looked at by stat."""
        if os.path.isfile(self._source):
            return [self._source]
        files, folders = list[bytes](), [self._source]
        with self._on("list"):
            while folders:
                with os.scandir(folders.pop()) as entries:
                    for entry in sorted(entries, key=lambda each: each.name):
                        entry.stat(follow_symlinks=False)
                        if entry.is_file(follow_symlinks=False):
                            files.append(entry.path)
                        elif entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
        return files

    def _slots(self, files: list[bytes]) -> Iterator[list[Segment]]:
        """The files read into the slot, as many as it holds. Who takes the segments cuts them before taking more: what
        is behind the last sure boundary of a file that goes on is carried to the head of the slot."""
        segments, fill = list[Segment](), 0
        self._contents = []
        for path in files:
            content = Content(path, blake3())
            self._contents.append(content)
            start, offset = fill, 0
            with self._on("read"):
                fd = os.open(path, os.O_RDONLY)
            while True:
                with self._on("read"):
                    while count := os.readv(fd, [self._slot[fill:]]) if fill < SLOT else 0:
                        fill += count
                segments.append(segment := Segment(content, start, fill, offset, fill < SLOT))
                if segment.ended:
                    break
                yield segments
                offset += segment.end - start
                tail = bytes(self._slot[segment.end : fill])
                segments, start, fill = [], 0, len(tail)
                self._slot[:fill] = tail
            with self._on("read"):
                os.close(fd)
            if SLOT - fill < ROOM or len(segments) >= SLOT_FILES:
                yield segments
                segments, fill = [], 0
        if segments:
            yield segments

    def _cut(self, segments: list[Segment]) -> list[tuple[bytes, int, int]]:
        """Chunks of the segments: (id, start in the slot, length). Contents of several chunks are hashed as a whole,
        too; that of others is their chunk's."""
        with self._on("cut"):
            cuts = [self._chunker.cut(self._slot[each.start : each.end], each.ended) for each in segments]
        chunks: list[tuple[bytes, int, int]] = []
        with self._on("blake3"):
            for segment, lengths in zip(segments, cuts, strict=True):
                at, content = segment.start, segment.content
                whole = len(lengths) > 1 or segment.offset or not segment.ended
                for length in lengths:
                    piece = self._slot[at : at + length]
                    chunks.append((chunk_id(piece), at, length))
                    content.pieces.append((chunks[-1][0], segment.offset + at - segment.start))
                    if whole:
                        content.hasher.update(piece)
                    at += length
                segment.end = at
        return chunks

    def _store(self, chunks: list[tuple[bytes, int, int]]) -> None:
        """Compress the new ones of the slot's chunks, in blocks, into the pack."""
        new = []
        for chunk in chunks:
            if chunk[0] not in self._known:
                self._known.add(chunk[0])
                new.append(chunk)
        for group in split_blocks(np.array([length for _, _, length in new], np.int64), self._shaper.target):
            raw = self._gather(new[group])
            with self._on("zstd"):
                codec, stored = self._encoder.encode(raw, self._buffer[self._fill :], self._shaper.ratio)
            self._shaper.note(len(raw), stored)
            names = [(name, length) for name, _, length in new[group]]
            self._blocks.append(Block(codec, self._fill, stored, len(raw), names))
            self._fill += stored
            if self._fill >= PACK:
                self._seal()

    def _gather(self, chunks: list[tuple[bytes, int, int]]) -> memoryview:
        """Chunks of the slot side by side."""
        first, total = chunks[0][1], sum(length for _, _, length in chunks)
        if chunks[-1][1] + chunks[-1][2] - first == total:
            return self._slot[first : first + total]
        at = 0
        for _, start, length in chunks:
            self._gathered[at : at + length] = self._slot[start : start + length]
            at += length
        return self._gathered[:total]

    def _seal(self) -> None:
        """Parity, checksums of cells, and the shards as files."""
        scheme, length = self._scheme, self._scheme.shard_length(self._fill)
        payload, parity = self._buffer[: scheme.k * length], self._parity[: scheme.m * length]
        with self._on("parity"):
            self._coder.parity(payload, length, parity)
        shards = [part[at : at + length] for part in (payload, parity) for at in range(0, len(part), length)]
        with self._on("blake3"):
            tables = [cell_table(shard) for shard in shards]
        folder = self._scratch / f"pack-{len(self._packs)}"
        folder.mkdir()
        with self._on("write"):
            for number, (shard, table) in enumerate(zip(shards, tables, strict=True)):
                fd = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                for piece in (table, shard, table):
                    os.write(fd, piece)
                os.fsync(fd)
                os.close(fd)
        self._packs.append(Pack(folder, self._blocks, length))
        self._blocks, self._fill = [], 0

    # --- restore and verify ------------------------------------------------------------------------------------------

    def _read_shards(self, pack: Pack, count: int) -> None:
        """The first `count` shards of a pack, their cells checked, one after the other in the buffer (data) and in that
        for parity."""
        length, k = pack.shard_length, self._scheme.k
        for number in range(count):
            part, at = (self._buffer, number) if number < k else (self._parity, number - k)
            target = part[at * length : (at + 1) * length]
            with self._on("read"):
                fd = os.open(pack.folder / str(number), os.O_RDONLY)
                size = os.fstat(fd).st_size
                table = os.pread(fd, (size - length) // 2, 0)
                done = os.preadv(fd, [target], len(table))
                os.close(fd)
            with self._on("blake3"):
                good = cell_table(target) == table
            if not good or done != length:
                raise BenchError(f"{pack.folder}/{number} is not what was written")

    def _chunks(self, pack: Pack) -> Iterator[list[tuple[bytes, memoryview]]]:
        """Block by block the ids and bytes of the chunks of a pack that was read, checked."""
        for block in pack.blocks:
            with self._on("zstd"):
                raw = self._decoder.decode(block.codec, self._buffer[block.offset :][: block.stored], block.raw)
            at, found = 0, []
            for name, length in block.chunks:
                found.append((name, raw[at : at + length]))
                at += length
            with self._on("blake3"):
                good = all(chunk_id(piece) == name for name, piece in found)
            if not good:
                raise BenchError(f"{pack.folder}: a chunk is not what was stored")
            yield found

    def _restore(self) -> None:
        places: defaultdict[bytes, list[tuple[Content, int]]] = defaultdict(list)
        for content in self._contents:
            for name, offset in content.pieces:
                places[name].append((content, offset))
        target = Target(os.fsencode(self._scratch / "back"), self._source)
        for pack in self._packs:
            self._read_shards(pack, self._scheme.k)
            for found in self._chunks(pack):
                with self._on("write"):
                    for name, piece in found:
                        for content, offset in places[name]:
                            target.write(content, offset, piece)
                with self._on("blake3"):
                    for name, piece in found:
                        for content, _ in places[name]:
                            if len(content.pieces) > 1:
                                content.hasher.update(piece)
        with self._on("write"):
            for content in self._contents:
                if not content.pieces:
                    target.write(content, 0, memoryview(b""))
            target.close()

    def _verify(self) -> None:
        for pack in self._packs:
            self._read_shards(pack, self._scheme.total_shards)
            for _ in self._chunks(pack):
                pass


class Target:
    """Where files are restored: made with their directories when they are first written to."""

    def __init__(self, root: bytes, source: bytes) -> None:
        self._root, self._source = root, source
        self._folders: set[bytes] = set()
        self._content: Content | None = None
        self._fd = -1

    def write(self, content: Content, offset: int, piece: memoryview) -> None:
        if content is not self._content:
            self.close()
            path = self._root + content.path[len(self._source) :]
            folder = os.path.dirname(path)
            if folder not in self._folders:
                os.makedirs(folder, exist_ok=True)
                self._folders.add(folder)
            self._fd, self._content = os.open(path, os.O_WRONLY | os.O_CREAT), content
        os.pwrite(self._fd, piece, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._content = -1, None


def in_a_process(source: Path, scratch: Path) -> Limits:
    """The limits of one source, by a process of its own; `scratch` on tmpfs. Raises BenchError."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.limit", source, scratch],
        cwd=ROOT, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the bare kernels failed on {source}: {done.stderr[-2000:]}")
    limits: Limits = json.loads(done.stdout)
    return limits


def main(source: str, scratch: str) -> None:
    keep_memory()
    with tempfile.TemporaryDirectory(prefix="limit-", dir=scratch) as folder:
        print(json.dumps(Kernels(Path(source), Path(folder)).run()))


if __name__ == "__main__":
    main(*sys.argv[1:])
