"""What a store holds already, out of its manifests, for the dedupe indexes.

Two tables tell: `chunks` of chunks with their lengths, `extents` of contents. This is the one place that says what is
known; a chunk that must not be referred to is left out here, as one that is deleted, or lies in a pack that a
verification could not read. A manifest file that is lost on every backend costs what
it alone tells: `lost` gets the reason, and what nothing places any more is not known, so that ingesting again stores it
again.

pyarrow is imported when they are read: an ingest does so while its workers begin.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.errors import Unreadable
from manifests.index import Entries, known_rows
from manifests.log import ManifestFile, State
from manifests.replicas import Replicas
from manifests.schema import arrow_columns, misfit
from manifests.tombstones import Tombstones

BATCH_ROWS = 28 << 10
Ids = npt.NDArray[np.uint8]


def read_tombstones(
    state: State, replicas: Replicas, lost: list[str], names: Collection[str] | None = None
) -> Tombstones | None:
    """The copies of chunks that are deleted, or those of the files called `names`; None where a file that names some is
    lost: then nobody can tell."""
    files = [file for file in state.files("tombstones") if names is None or file.name in names]
    paths = readable_paths(files, replicas, lost)
    if len(paths) < len(files):
        return None
    dead = Tombstones()
    for batch in _batches(paths, ["chunk_id", "pack_id"]):
        dead.add(batch.column(0).to_pylist(), batch.column(1).to_pylist())
    return dead


def count_rows(state: State, table: str) -> int:
    return sum(file.rows for file in state.files(table))


def readable_paths(files: list[ManifestFile], replicas: Replicas, lost: list[str]) -> list[str]:
    """Checked local paths of the files that any copy, or a mixture of copies, gives back, and that have the columns of
    their table; `lost` gets why others are not."""
    paths = []
    for file in files:
        try:
            path = replicas.path(file)
            if not replicas.fits(path, file):
                _require_columns(path, file)
                replicas.note_fit(path, file)
            paths.append(path)
        except Unreadable as error:
            if str(error) not in lost:
                lost.append(str(error))
    replicas.save()
    return paths


def _require_columns(path: str, file: ManifestFile) -> None:
    """Raise Unreadable unless a file has the columns of its table."""
    import pyarrow as pa

    try:
        with open_parquet(path) as opened:
            reason = misfit(file.table, arrow_columns(opened.schema_arrow))
    except pa.ArrowException as error:
        raise Unreadable(f"{file.key}: it is no Parquet file: {error}") from error
    if reason:
        raise Unreadable(f"{file.key}: {reason}")


def fixed_bytes(column: Any, width: int) -> Ids:
    """A column of ids as rows × bytes; what stands for null, and for what is not so long, is anything. A view of the
    column where its type says how long ids are, as that of all honest files does."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width != width:
        values = [value if value is not None and len(value) == width else bytes(width) for value in column.to_pylist()]
        return np.frombuffer(b"".join(values), np.uint8).reshape(-1, width)
    flat = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return flat.reshape(-1, width)


def open_parquet(path: str) -> Any:
    """A Parquet file, open, by its path and nothing else: pyarrow takes a string for a URL where it looks like one, and
    can't take a path that is not UTF-8. pyarrow is imported when the first one is opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.OSFile(os.fsencode(path)))


def _batches(paths: list[str], columns: list[str]) -> Iterator[Any]:
    for path in paths:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                if batch.num_rows:
                    yield batch


def known_chunks(state: State, replicas: Replicas, lost: list[str], but: Collection[str] = ()) -> Iterator[Entries]:
    """Chunks (KNOWN) that the manifests place, but for those of the files called `but`, in batches of up to BATCH_ROWS.
    This is the rule: only they need not be stored again."""
    placed = _placed_packs(state, replicas, lost)
    dead, unreadable = read_tombstones(state, replicas, lost), _unreadable_packs(state, replicas, lost)
    if dead is None or unreadable is None:  # nobody can tell which chunks are alive, and whole
        return
    columns = ["chunk_id", "length", *(["pack_id"] if placed is not None or len(dead) or len(unreadable) else [])]
    files = [file for file in state.files("chunks") if file.name not in but]
    for batch in _batches(readable_paths(files, replicas, lost), columns):
        rows = known_rows(fixed_bytes(batch.column(0), 32), batch.column(1).to_numpy())
        keep = np.ones(len(rows), bool)
        if placed is not None:
            import pyarrow.compute as pc

            keep &= pc.is_in(batch.column(2), value_set=placed).to_numpy(zero_copy_only=False)
        if len(unreadable):
            import pyarrow.compute as pc

            keep &= ~pc.is_in(batch.column(2), value_set=unreadable).to_numpy(zero_copy_only=False)
        if len(dead):
            keep &= dead.alive(batch)
        rows = rows[keep]
        if len(rows):
            yield rows


def _placed_packs(state: State, replicas: Replicas, lost: list[str]) -> Any:
    """The packs that are rows of `packs` and `blocks`, as an Arrow array; None for all, where neither lost a file."""
    paths = {table: readable_paths(state.files(table), replicas, lost) for table in ("packs", "blocks")}
    if all(len(paths[table]) == len(state.files(table)) for table in paths):
        return None
    import pyarrow as pa
    import pyarrow.compute as pc

    found = [
        {value for batch in _batches(paths[table], ["pack_id"]) for value in pc.unique(batch.column(0)).to_pylist()}
        for table in paths
    ]
    return pa.array(sorted(set.intersection(*found)), pa.binary(16))


def _unreadable_packs(state: State, replicas: Replicas, lost: list[str]) -> Any:
    """The packs that are known to be unreadable, as an Arrow array; None where a note of them is lost: then nobody can
    tell."""
    notes = state.unreadable_notes()
    if not notes:
        return ()
    paths = readable_paths(notes, replicas, lost)
    if len(paths) < len(notes):
        return None
    import pyarrow as pa

    whole = (batch.filter(batch.column("shard").is_null()) for batch in _batches(paths, ["pack_id", "shard"]))
    return pa.chunked_array([batch.column("pack_id") for batch in whole], pa.binary(16)).unique()


def known_contents(state: State, replicas: Replicas, lost: list[str], but: Collection[str] = ()) -> Iterator[Entries]:
    """Contents (KNOWN, some twice) that have all their rows in the extents table, as `known_chunks`; their length is 1.
    Where a file of that table is lost nobody can tell which have, so none is known."""
    files = state.files("extents")
    paths = readable_paths(files, replicas, lost)
    if len(paths) < len(files):
        return
    wanted = [path for file, path in zip(files, paths, strict=True) if file.name not in but]
    for batch in _batches(wanted, ["content_id"]):
        ids = fixed_bytes(batch.column(0), 32)
        # Those of one content lie side by side.
        yield known_rows(ids[np.concatenate(([True], (ids[1:] != ids[:-1]).any(axis=1)))], 1)


#: Table → all that it makes known.
KNOWN_OF: dict[str, Callable[..., Iterator[Entries]]] = {"chunks": known_chunks, "extents": known_contents}


def lost_tables(state: State, replicas: Replicas) -> list[str]:
    """Why manifest files can't be read that tell what is known."""
    lost: list[str] = []
    for table in ("chunks", "extents", "packs", "blocks", "tombstones"):
        readable_paths(state.files(table), replicas, lost)
    readable_paths(state.unreadable_notes(), replicas, lost)
    return lost


def pack_ids(state: State, replicas: Replicas, among: set[uuid.UUID], lost: list[str]) -> set[uuid.UUID]:
    """Which of the packs `among` the manifests name."""
    found: set[uuid.UUID] = set()
    for batch in _batches(readable_paths(state.files("packs"), replicas, lost), ["pack_id"]):
        found.update({uuid.UUID(bytes=value) for value in batch.column(0).to_pylist()} & among)
    return found
