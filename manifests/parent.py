"""What an earlier run, the parent of a new one, recorded of files that may not need to be read again.

Candidates are whole files that were quiet when they were read and have all the digests that the new run is asked for.
Whether all their chunks are still known is for the dedupe index to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests import format as fmt
from manifests.arrowrows import bools, to_batch, valid
from manifests.columns import OBJECT_DTYPE, Batch
from manifests.known import BATCH_ROWS, fixed_bytes, open_parquet, readable_paths
from manifests.log import Run, State
from manifests.replicas import Replicas
from manifests.tables import ROW_GROUP_BYTES

#: Candidates in one batch, at most.
CANDIDATE_ROWS = 4096
#: Of a batch its variable fields, in bytes, beyond which it is cut: extended attributes and holes may be long.
_EXTRA_BYTES = 1 << 20
_PLAIN = ["size", "content_kind", "mtime_ns", "ctime_ns", "inode"]
_VARIABLE = ["path", "xattrs", "holes"]
_CONDITIONS = ["kind", "clean", "error"]
Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint8]


class ParentFiles:
    """The files of run `run`. `digests`: those that the new run computes besides BLAKE3; `lost` gets why manifest files
    could not be read: what they alone tell of is no candidate."""

    def __init__(self, state: State, replicas: Replicas, run: Run, digests: Sequence[str], lost: list[str]) -> None:
        self._run = run
        self._id = np.frombuffer(run.run_id.bytes, np.uint8)
        self._digests = list(digests)
        self._replicas, self._lost = replicas, lost
        # The newest first: the parent is nearly always the last run, and what is older need not be looked at then.
        self._objects = state.files("objects")[::-1]
        files = state.files("extents")
        extents = readable_paths(files, replicas, lost)
        #: Where a file of extents is lost, nobody can tell which contents are whole.
        self._extents = extents if len(extents) == len(files) else []
        names = ("files", "directories", "others")
        self._rows = sum(int(run.summary.get(name, 0)) for name in names)

    def _batches(self, columns: list[str], size: int) -> Iterator[tuple[Any, Mask]]:
        """Rows of files that hold some of the run, in these columns, and which of them are the run's."""
        left = self._rows
        paths = (path for file in self._objects for path in readable_paths([file], self._replicas, self._lost))
        for path in paths:
            with open_parquet(path) as file:
                groups = [
                    number
                    for number in range(file.metadata.num_row_groups)
                    if _may_hold(file.metadata.row_group(number), self._run.run_id.bytes)
                ]
                if not groups or not set(self._digests) <= set(file.schema_arrow.names):
                    continue
                for batch in _batches_of(file, groups, ["run", *columns], size):
                    mine = (fixed_bytes(batch.column("run"), 16) == self._id).all(axis=1)
                    left -= int(mine.sum())
                    if mine.any():
                        yield batch, mine
            if left <= 0:
                return

    def contents(self) -> Ids:
        """The contents (n × 32 bytes, sorted) of the run that have rows in the extents table, each once."""
        found = [np.zeros((0, 32), np.uint8)]
        for batch, mine in self._batches(["content_kind", "content_id"], BATCH_ROWS):
            wanted = mine & (batch.column("content_kind").to_numpy(zero_copy_only=False) == fmt.CONTENT_EXTENTS)
            found.append(fixed_bytes(batch.column("content_id"), 32)[wanted])
        # With counts: without, NumPy imports its masked arrays first, which takes 0.02 s.
        return np.unique(np.concatenate(found), axis=0, return_counts=True)[0]

    def extents(self, contents: ContentSet) -> Iterator[tuple[npt.NDArray[np.int64], Ids]]:
        """(number of a content in the set, id of a chunk of it), in batches."""
        for path in self._extents if len(contents) else []:
            with open_parquet(path) as file:
                for batch in file.iter_batches(CANDIDATE_ROWS, columns=["content_id", "chunk_id"]):
                    numbers = contents.find(fixed_bytes(batch.column(0), 32))
                    wanted = numbers >= 0
                    if wanted.any():
                        yield numbers[wanted], fixed_bytes(batch.column(1), 32)[wanted]

    def candidates(self) -> Iterator[Batch]:
        """OBJECT_DTYPE batches of the candidates, about in the order in which they were read. Of content and stat there
        is what a new row takes over or is compared by."""
        columns = [*_CONDITIONS, *_PLAIN, *_VARIABLE, "content_id", "digest", *self._digests]
        for batch, mine in self._batches(columns, CANDIDATE_ROWS):
            whole = mine & ~valid(batch.column("error"))
            whole &= bools(batch.column("clean")) & _are_files(batch.column("kind"))
            start = 0
            for part in _cut(batch):
                yield self._candidates(part, whole[start : start + part.num_rows])
                start += part.num_rows

    def _candidates(self, batch: Any, whole: Mask) -> Batch:
        found = to_batch(batch.select(_PLAIN + _VARIABLE), OBJECT_DTYPE, {name: name for name in _VARIABLE})
        rows = found.rows
        rows["content_id"] = fixed_bytes(batch.column("content_id"), 32)
        rows["content_id"][rows["content_kind"] == fmt.CONTENT_NONE] = 0
        digest = batch.column("digest")
        rows["digest"] = fixed_bytes(digest, 32)
        recorded = valid(digest)
        implied = ~recorded & (rows["content_kind"] == fmt.CONTENT_CHUNK)
        rows["digest"][implied] = rows["content_id"][implied]
        whole = whole & (recorded | implied)
        heap = bytes(found.heap)
        if self._digests:
            parts = [fixed_bytes(batch.column(name), fmt.DIGESTS[name]) for name in self._digests]
            for name in self._digests:
                whole &= valid(batch.column(name))
            joined = np.concatenate(parts, axis=1)
            width = joined.shape[1]
            rows["digests_at"] = len(heap) + width * np.arange(len(rows))
            rows["digests_len"] = width
            heap += joined.tobytes()
        rows["has_digest"] = 1
        return Batch(rows[whole], heap)


class ContentSet:
    """Contents by number, in the order of `ids` (n × 32 bytes, sorted)."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._first = ids[:, :8].copy().view(">u8").ravel().astype(np.uint64)

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, ids: Ids) -> npt.NDArray[np.int64]:
        """The numbers of contents (n × 32 bytes), −1 for what is not in the set. Of two whose first 8 bytes are equal,
        which nobody has seen, the second is not found."""
        if not len(self._ids):
            return np.full(len(ids), -1, np.int64)
        first = ids[:, :8].copy().view(">u8").ravel().astype(np.uint64)
        place = np.minimum(np.searchsorted(self._first, first), len(self._ids) - 1)
        return np.where((self._ids[place] == ids).all(axis=1), place, -1)


def _may_hold(group: Any, run: bytes) -> bool:
    """Whether a row group of table objects may hold rows of a run, by its statistics."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "run":
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max:
                return True
            return bool(statistics.min <= run <= statistics.max)
    return True


def _batches_of(file: Any, groups: list[int], columns: list[str], size: int) -> Iterator[Any]:
    """Batches of up to `size` rows, of row groups of long fields fewer: what one takes in memory is about that of a row
    group as it is written now, also where an earlier version made larger ones."""
    for number in groups:
        group = file.metadata.row_group(number)
        chunks = (group.column(column) for column in range(group.num_columns))
        held = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
        most = max(1, ROW_GROUP_BYTES * group.num_rows // max(1, held))
        yield from file.iter_batches(min(size, most), row_groups=[number], columns=columns)


def _are_files(kinds: Any) -> Mask:
    """Which objects are files, by a column of their kinds."""
    import pyarrow as pa

    if pa.types.is_dictionary(kinds.type) and not kinds.null_count:
        files: Mask = np.array([name == "file" for name in kinds.dictionary.to_pylist()], bool)
        found: Mask = files[kinds.indices.to_numpy()]
        return found
    return np.array([name == "file" for name in kinds.to_pylist()], bool)


def _cut(batch: Any) -> Iterator[Any]:
    """A batch in parts with bounded variable fields."""
    extra = sum(batch.column(name).nbytes for name in _VARIABLE)
    if extra <= _EXTRA_BYTES or batch.num_rows == 1:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _cut(batch.slice(0, half))
    yield from _cut(batch.slice(half))
