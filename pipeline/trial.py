"""The last resort: cells that no checksum vouches for are tried, and the chunk ids judge.

Rot may take both copies of a cell's checksum, or both records of a shard. Such cells may be good all the same. For each
row there are a few ways to get the wanted cell: as it lies there, or decoded from some k cells. A value that several
ways lead to comes first. Then the same files are trusted in all rows, then anything is combined, up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations, islice, product

import numpy as np

from manifests import format as fmt
from manifests.errors import BackendError, DrystoneError, Unreadable
from pipeline.packreader import PackReader
from pipeline.shardfiles import ShardFile, Trust
from stages.assemble import chunk_is_good
from stages.compress import Decoder

#: Bounds of a search: ways to get a cell, ranges given to the judge, bytes of alternatives held at once.
WAYS = 64
TRIALS = 256
HELD_BYTES = 64 << 20

Judge = Callable[[bytes], bool]


@dataclass(frozen=True)
class Cell:
    shard: int
    file: ShardFile
    trust: Trust
    data: bytes


@dataclass
class Value:
    """What a cell may be, and the sets of cells that were believed to get there, each a way."""

    data: bytes
    ways: list[tuple[Cell, ...]] = field(default_factory=list)

    def leans_on(self, files: frozenset[str]) -> bool:
        return any(_files(way) == files for way in self.ways)


def block_judge(decoder: Decoder, codec: int, raw_length: int, chunks: list[tuple[bytes, int, int]]) -> Judge:
    """A judge of a block's stored bytes by the `chunks` (id, offset, length) in it. It uses up the decoder's view."""

    def judge(stored: bytes) -> bool:
        try:
            raw = decoder.decode(codec, stored, raw_length)
        except DrystoneError:
            return False
        return all(chunk_is_good(chunk_id, raw[offset : offset + length]) for chunk_id, offset, length in chunks)

    return judge


def search(reader: PackReader, offset: int, length: int, judge: Judge) -> bytes:
    """`length` bytes of a payload from `offset`, of which too few cells are sure, such that `judge` takes them. Raises
    Unreadable. Files whose cells proved right are known from then on."""
    rows: list[list[Value]] = []
    cuts: list[tuple[int, int]] = []
    limit = max(2, min(WAYS, HELD_BYTES // max(1, length)))
    for index, start, count in reader.parts(offset, length):
        first, last = start // fmt.CELL_SIZE, -(-(start + count) // fmt.CELL_SIZE)
        cells = _cells(reader, first, last)
        for row in range(first, last):
            rows.append(_values(reader, index, cells[row - first], limit))
            at = row * fmt.CELL_SIZE
            cuts.append((max(0, start - at), min(reader.cell_length(row), start + count - at)))
    if all(rows):
        for chosen in islice(_choices(rows), TRIALS):
            data = b"".join(value.data[a:b] for value, (a, b) in zip(chosen, cuts, strict=True))
            if judge(data):
                _believe(chosen)
                reader.source.figures.healed_cells += sum(value.ways != [()] for value in chosen)
                return data
    raise Unreadable(
        f"pack {reader.place.pack_id}: too few good cells are left for its bytes {offset} to {offset + length}, "
        "also with those that have no checksum any more"
    )


def _cells(reader: PackReader, first: int, last: int) -> list[list[Cell]]:
    """For each row all cells that are not known to be bad, the most trustworthy first."""
    files = [
        (shard, file) for shard in range(reader.place.scheme.total_shards) for file in reader.files(shard, at_last=True)
    ]
    scheme, there = reader.place.scheme, len({shard for shard, _ in files})
    if there < scheme.k:
        raise Unreadable(
            f"pack {reader.place.pack_id}: {there} of its {scheme.total_shards} shards are on backends that answer, "
            f"and {scheme.k} are needed"
        )
    if not any(file.doubtful for _, file in files):
        raise Unreadable(
            f"pack {reader.place.pack_id}: {there} of its {scheme.total_shards} shards were found, but in some rows "
            f"fewer than {scheme.k} cells are good"
        )
    found: list[list[Cell]] = [[] for _ in range(first, last)]
    for shard, file in files:
        try:
            data = reader.raw_cells(file, first, last, at_last=True)
        except BackendError:
            continue
        for row in range(first, last):
            at = (row - first) * fmt.CELL_SIZE
            cell = data[at : at + fmt.CELL_SIZE]
            trust = file.trust(row, cell, reader.cell_length(row))
            if trust is not Trust.BAD:
                found[row - first].append(Cell(shard, file, trust, bytes(cell)))
    return [sorted(cells, key=lambda cell: cell.trust) for cells in found]


def _values(reader: PackReader, index: int, cells: list[Cell], limit: int) -> list[Value]:
    """What cell `index` of a row may be, the likeliest first; empty where nothing leads to it."""
    sure = {cell.shard: cell for cell in cells if cell.trust is Trust.SURE}
    if index in sure:
        return [Value(sure[index].data, [()])]
    known = {shard: cell.data for shard, cell in sure.items()}
    wanted = reader.place.scheme.k - len(known)
    if wanted <= 0:
        return [Value(reader.coder.decode(known)[index], [()])]
    values: dict[bytes, Value] = {}
    unsure = [cell for cell in cells if cell.shard not in sure]
    direct = ((cell,) for cell in unsure if cell.shard == index)
    others = combinations([cell for cell in unsure if cell.shard != index], wanted)
    for way in islice(chain(direct, others), limit):
        if way[0].shard == index:
            data = way[0].data
        else:
            pieces = known | {cell.shard: cell.data for cell in way}
            if len(pieces) < reader.place.scheme.k:
                continue  # two files of one shard
            data = reader.coder.decode(pieces)[index]
        values.setdefault(data, Value(data)).ways.append(way)
    return sorted(values.values(), key=lambda value: (-len(value.ways), max(cell.trust for cell in value.ways[0])))


def _choices(rows: list[list[Value]]) -> Iterator[tuple[Value, ...]]:
    """A value for each row, in the order in which they are tried."""
    yield tuple(values[0] for values in rows)
    profiles = dict.fromkeys(_files(way) for values in rows for value in values for way in value.ways if way)
    for files in profiles:
        yield tuple(next((value for value in values if value.leans_on(files)), values[0]) for values in rows)
    yield from product(*rows)


def _files(way: tuple[Cell, ...]) -> frozenset[str]:
    """The files that a way believes."""
    return frozenset(f"{cell.file.storage.location}/{cell.file.key}" for cell in way)


def _believe(chosen: tuple[Value, ...]) -> None:
    """Files without a record whose cells, under their own checksums, proved right are what their names say. Cells of
    one byte repeated prove nothing: other shards have them, too."""
    for value in chosen:
        for cell in chain.from_iterable(value.ways):
            if cell.trust is Trust.LIKELY and np.ptp(np.frombuffer(cell.data, np.uint8)):
                cell.file.proven = True
