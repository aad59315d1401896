"""Long contents in parts: they are cut and named as if they lay in one piece, and what fails is told once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.config import ChunkerSpec
from pipeline.ingest.chunktable import ChunkTable, OpenContent
from pipeline.ingest.lanes import Lanes, Part
from stages.chunk import Chunker, chunk_ids
from stages.digest import Digester
from stages.read import fill

SPEC = ChunkerSpec.parse("fastcdc:4KiB")
SIZE = 3 * SPEC.maximum


def new_part(content: OpenContent, start: int) -> Part:
    return Part(content, 0, memoryview(bytearray(SIZE)), ChunkTable(), start, SIZE)


def parts_of(lanes: Lanes, content: OpenContent, path: Path) -> Iterator[Part]:
    """All parts of a file, begun as a reader does: each when the one before is read."""
    with path.open("rb") as file:
        part = new_part(content, 0)
        length, ended = fill(file.fileno(), part.view)
        part.end = length
        lanes.begin_read(part, ended)
        before = part
        while not ended:
            part = new_part(content, SPEC.maximum)
            lanes.begin(part, before, lambda view: fill(file.fileno(), view))
            yield before
            before, ended = part, part.read.result()
        yield before


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 40 * SIZE + 7])
def test_parts_are_cut_as_the_whole(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    (tmp_path / "file").write_bytes(data)
    content = OpenContent(0, Digester(()))
    lengths, ids = list[int](), list[bytes]()
    with closing(Lanes(Chunker(SPEC, 7))) as lanes:
        for part in parts_of(lanes, content, tmp_path / "file"):
            ids += part.named.result()
            lengths += part.lengths
            assert part.view[part.start : part.behind] == data[sum(lengths) - sum(part.lengths) : sum(lengths)]
    whole = Chunker(SPEC, 7).cut(memoryview(data), True)
    assert (lengths, ids) == (whole, chunk_ids(memoryview(data), whole))
    assert content.hasher.digest() == blake3(data).digest()


def test_a_part_that_cannot_be_read_takes_nothing_of_the_one_before_with_it() -> None:
    def broken(view: memoryview) -> tuple[int, bool]:
        raise OSError(5, "Input/output error")

    content = OpenContent(0, Digester(()))
    first, second, third = new_part(content, 0), new_part(content, SPEC.maximum), new_part(content, SPEC.maximum)
    with closing(Lanes(Chunker(SPEC, 7))) as lanes:
        lanes.begin_read(first, False)
        lanes.begin(second, first, broken)
        lanes.begin(third, second, lambda view: (len(view), True))
    assert len(first.named.result()) == len(first.lengths) > 0
    for failed in (second, third):
        with pytest.raises(OSError, match="Input/output error"):
            failed.named.result()
