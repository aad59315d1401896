"""Reading packs: checked cell by cell, decoded row by row where cells are bad or gone."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from manifests import format as fmt
from manifests.config import ECScheme
from manifests.errors import BackendError, Unreadable
from pipeline.carefulreads import ReadFigures
from pipeline.shardfiles import PackPlace, ShardFile, ShardSource
from stages.shard import cell_count, data_offset

if TYPE_CHECKING:
    from stages.erasure import ErasureCoder

__all__ = ["PackPlace", "PackReader", "PackReaders", "ReadFigures", "ShardSource"]

#: Decoded cells that a reader keeps: a bad one at the border of two blocks, or in a row with another, is decoded once.
KEPT_CELLS = 64

#: Rows `first` to `last` (exclusive) with the pieces of them that were found, by shard.
Part = tuple[int, int, dict[int, bytes]]


class PackReader:
    """Reads one pack. Not for several threads at once."""

    def __init__(self, source: ShardSource, place: PackPlace, make_coder: Callable[[ECScheme], ErasureCoder]) -> None:
        self.source = source
        self.place = place
        self._make_coder = make_coder
        self._files: dict[int, list[ShardFile]] = {}
        self._more: dict[int, Iterator[ShardFile]] = {}
        self._last: dict[int, Iterator[ShardFile]] = {}
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    @cached_property
    def coder(self) -> ErasureCoder:
        return self._make_coder(self.place.scheme)

    def files(self, index: int, at_last: bool = False) -> Iterator[ShardFile]:
        """Files of shard `index`, each opened once, and only when it is asked for. `at_last`: also those on backends
        that were given up."""
        found = self._files.setdefault(index, [])
        number = 0
        while number < len(found) or self._open_next(index, at_last):
            yield found[number]
            number += 1

    def _open_next(self, index: int, at_last: bool) -> bool:
        if index not in self._more:
            self._more[index] = self.source.files(self.place, index)
        file = next(self._more[index], None)
        if file is None and at_last:
            if index not in self._last:
                self._last[index] = self.source.last_files(self.place, index)
            file = next(self._last[index], None)
        if file is not None:
            self._files[index].append(file)
        return file is not None

    def shard(self, index: int) -> ShardFile | None:
        """The first file of shard `index`, or None where no backend has one."""
        return next(self.files(index), None)

    @property
    def cells(self) -> int:
        """Cells of each shard."""
        return cell_count(self.place.shard_length)

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes of the payload from `offset`. Raises Unreadable when too few sure cells are left; then
        pipeline/trial.py may still find some."""
        pieces = [self._shard_bytes(*part) for part in self.parts(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_unchecked(self, offset: int, length: int) -> bytes | None:
        """The same bytes as they lie in the shard files, whole or rotten: for who knows what they must hold, and falls
        back to `read`. None where a file is missing or unknown or can't be read."""
        pieces = []
        for index, start, count in self.parts(offset, length):
            file = self.shard(index)
            if file is None or not file.proven:
                return None
            at = data_offset(self.place.shard_length) + start
            piece = self.source.read_straight(file.storage, file.key, at, count)
            if piece is None:
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Where a range of the payload lies: (shard, start, length). Raises Unreadable outside the payload."""
        if offset < 0 or length < 0 or offset + length > self.place.payload:
            raise Unreadable(f"pack {self.place.pack_id} has no bytes {offset} to {offset + length}")
        each = self.place.shard_length
        while length > 0:
            index, start = divmod(offset, each)
            count = min(length, each - start)
            yield index, start, count
            offset, length = offset + count, length - count

    def check(self, index: int, first: int, last: int) -> None:
        """Read the cells `first` to `last` (exclusive) of a shard only to note which are bad."""
        self._sure(self.shard(index), index, first, last)

    def cell_length(self, number: int) -> int:
        return min(fmt.CELL_SIZE, self.place.shard_length - number * fmt.CELL_SIZE)

    def _gave_up(self, file: ShardFile) -> bool:
        return self.source.figures.media.gave_up(file.storage.location, file.key)

    def raw_cells(self, file: ShardFile, first: int, last: int, at_last: bool = False) -> memoryview:
        """Cells `first` to `last` (exclusive) as they lie in a file, fewer where it ends; of one that was given up only
        `at_last`. Raises BackendError."""
        start, end = first * fmt.CELL_SIZE, min(last * fmt.CELL_SIZE, self.place.shard_length)
        at = data_offset(self.place.shard_length) + start
        return memoryview(self.source.read(file.storage, file.key, at, end - start, at_last=at_last))

    def _shard_bytes(self, index: int, start: int, length: int) -> bytes | memoryview:
        first, last = start // fmt.CELL_SIZE, -(-(start + length) // fmt.CELL_SIZE)
        data, bad = self._sure(self.shard(index), index, first, last)
        if bad:
            data = self._healed(index, first, last, data, bad)
        at = start - first * fmt.CELL_SIZE
        return data[at : at + length]

    def _sure(
        self, file: ShardFile | None, index: int, first: int, last: int, at_last: bool = False
    ) -> tuple[bytes | memoryview, list[int]]:
        """Cells of a shard as they lie in a file of it, and the numbers of those that are not sure. A file that was
        given up has none, unless it is read `at_last`."""
        if file is None or not file.proven:
            return b"", list(range(first, last))
        try:
            data = self.raw_cells(file, first, last, at_last)
        except BackendError as error:
            self.source.figures.flaws[self.place.pack_id, index] = str(error)
            if self._gave_up(file) and not at_last:
                return b"", list(range(first, last))  # which nobody has looked at, so they are not known to be bad
            data = memoryview(b"")
        if file.table.vouches(first, last, data):
            return data, []
        bad = [
            number
            for number in range(first, last)
            if file.trust(number, data[(number - first) * fmt.CELL_SIZE :][: fmt.CELL_SIZE], self.cell_length(number))
        ]
        noted = bad
        if bad and not at_last and self._gave_up(file):
            noted = [number for number in bad if self._is_known_bad(file, number)]  # the others were not looked at
        if noted:
            self.source.figures.bad_cells.setdefault((self.place.pack_id, index), set()).update(noted)
        return data, bad

    def _is_known_bad(self, file: ShardFile, number: int) -> bool:
        at = data_offset(self.place.shard_length) + number * fmt.CELL_SIZE
        media = self.source.figures.media
        return bool(media.known(file.storage.location, file.key, at, at + self.cell_length(number)))

    # --- decoding ----------------------------------------------------------------------------------------------------

    def _healed(self, index: int, first: int, last: int, data: bytes | memoryview, bad: list[int]) -> bytes:
        """`data` with its bad cells decoded from the other shards."""
        total = min(last * fmt.CELL_SIZE, self.place.shard_length) - first * fmt.CELL_SIZE
        whole = bytearray(total)
        whole[: len(data)] = data
        for row in [row for row in bad if (index, row) in self._kept]:
            at = (row - first) * fmt.CELL_SIZE
            whole[at : at + self.cell_length(row)] = self._kept[index, row]
            bad.remove(row)
        for start, end in _runs(bad):
            at = (start - first) * fmt.CELL_SIZE
            piece = self._decoded(index, start, end)
            whole[at : at + len(piece)] = piece
            self.source.figures.healed_cells += end - start
            for row in {start, end - 1}:
                self._keep(index, row, piece[(row - start) * fmt.CELL_SIZE :])
        return bytes(whole)

    def _decoded(self, index: int, first: int, last: int) -> bytes:
        """Cells `first` to `last` of data shard `index` from the sure cells of others: of each shard no more is read
        than the rows that are still short, in one request for each run of them; neighbouring rows that have the same
        pieces are decoded together."""
        short: list[Part] = [(first, last, {})]
        done: list[Part] = []
        for shard, file in self._sources(index):
            if not short:
                break
            rows = [row for start, end, _ in short for row in range(start, end)]
            found = {run: self._sure(file, shard, *run) for run in _runs(rows)}
            parts = [part for each in short for part in self._extended(each, shard, found)]
            short = [part for part in parts if not self._enough(part, index)]
            done += [part for part in parts if self._enough(part, index)]
        if short:
            short, more = self._decoded_at_last(short, index)
            done += more
        if short:
            start, end, pieces = min(short, key=lambda part: len(part[2]))
            raise Unreadable(
                f"pack {self.place.pack_id}: only {len(pieces)} good cells are left in rows {start} to {end - 1}, "
                f"{self.place.scheme.k} are needed"
            )
        done.sort(key=lambda part: part[0])
        return b"".join(self._decoded_part(part, index) for part in done)

    def _decoded_at_last(self, short: list[Part], index: int) -> tuple[list[Part], list[Part]]:
        """The same for rows that are `short` of pieces, from files that were given up: rows that still are, and those
        that are complete now."""
        done: list[Part] = []
        for shard in range(self.place.scheme.total_shards):
            for file in self.files(shard, at_last=True):
                if not short:
                    return short, done
                if not self._gave_up(file):
                    continue
                rows = [row for start, end, _ in short for row in range(start, end)]
                found = {run: self._sure(file, shard, *run, at_last=True) for run in _runs(rows)}
                parts = [part for each in short for part in self._extended(each, shard, found)]
                short = [part for part in parts if not self._enough(part, index)]
                done += [part for part in parts if self._enough(part, index)]
        return short, done

    def _decoded_part(self, part: Part, index: int) -> bytes:
        """Shard `index` of some rows; what else of them is known to be bad is kept, for it came out as well."""
        first, last, pieces = part
        if index in pieces:
            return pieces[index]
        data = self.coder.decode(pieces)
        for shard in range(self.place.scheme.k):
            bad = self.source.figures.bad_cells.get((self.place.pack_id, shard), ())
            if shard not in pieces and shard != index and bad:
                for row in range(first, last):
                    if row in bad:
                        self._keep(shard, row, data[shard][(row - first) * fmt.CELL_SIZE :])
        return data[index]

    def _keep(self, shard: int, row: int, data: bytes) -> None:
        """Keep the cell that `data` begins with."""
        self._kept[shard, row] = data[: self.cell_length(row)]
        while len(self._kept) > KEPT_CELLS:
            self._kept.popitem(last=False)

    def _sources(self, index: int) -> Iterator[tuple[int, ShardFile | None]]:
        """Files to decode shard `index` from: one of each other shard, those first that are open; then what other
        backends hold of any shard, its own too."""
        others = [shard for shard in range(self.place.scheme.total_shards) if shard != index]
        for shard in sorted(others, key=lambda shard: not self._files.get(shard)):
            yield shard, self.shard(shard)
        for shard in (index, *others):
            for number, file in enumerate(self.files(shard)):
                if number:
                    yield shard, file

    def _enough(self, part: Part, index: int) -> bool:
        return index in part[2] or len(part[2]) >= self.place.scheme.k

    def _extended(
        self, part: Part, shard: int, found: dict[tuple[int, int], tuple[bytes | memoryview, list[int]]]
    ) -> Iterator[Part]:
        """`part`, with what was `found` of a shard, cut where that begins or ceases to be sure."""
        first, last, pieces = part
        start, data, bad = next(
            (start, data, bad) for (start, end), (data, bad) in found.items() if start <= first and last <= end
        )
        spoilt = set(bad)
        borders = [first, *(row for row in range(first + 1, last) if (row in spoilt) != (row - 1 in spoilt)), last]
        for begin, end in pairwise(borders):
            cut = slice((begin - first) * fmt.CELL_SIZE, (end - first) * fmt.CELL_SIZE)
            those = {each: piece[cut] for each, piece in pieces.items()} if len(borders) > 2 else dict(pieces)
            if begin not in spoilt and shard not in those:
                those[shard] = bytes(data[(begin - start) * fmt.CELL_SIZE : (end - start) * fmt.CELL_SIZE])
            yield begin, end, those


class PackReaders:
    """The packs that were read last, opened once. Not for several threads at once."""

    def __init__(self, source: ShardSource, capacity: int = 8) -> None:
        self.source = source
        self._capacity = capacity
        self._open: OrderedDict[uuid.UUID, PackReader] = OrderedDict()
        self._coders: dict[ECScheme, ErasureCoder] = {}

    def get(self, place: PackPlace) -> PackReader:
        reader = self._open.pop(place.pack_id, None)
        if reader is None or reader.place != place:
            reader = PackReader(self.source, place, self._coder)
        self._open[place.pack_id] = reader
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)
        return reader

    def _coder(self, scheme: ECScheme) -> ErasureCoder:
        """The coder of a scheme; its library is loaded by who has something to decode."""
        if scheme not in self._coders:
            from stages.erasure import ErasureCoder

            self._coders[scheme] = ErasureCoder(scheme)
        return self._coders[scheme]


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbours in a sorted list, as (first, last + 1)."""
    if not numbers:
        return
    start = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield start, previous + 1
            start = number
        previous = number
    yield start, previous + 1
