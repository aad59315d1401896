"""The rows of one run: arrays from the workers in, manifest files out.

Owned by the supervisor. Bounded: rows leave for a temporary file by row group, files are closed when they are full, and
the extents of an object whose content id is not known yet are spooled to disk.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests import format as fmt
from manifests.backends import Buffer
from manifests.columns import ROW_EXTENT_DTYPE, Array, Batch
from manifests.log import ManifestFile
from manifests.owners import group_name, user_name
from manifests.schema import SCHEMAS
from manifests.store import Members
from manifests.tables import FILE_ROWS, TableWriter, constant_id, file_name, fixed_column, plain_column

SPOOL_MEMORY = 4 << 20
SPOOL_PIECE = 32 << 10


_DEVICE_KINDS = [fmt.KINDS.index("chardev"), fmt.KINDS.index("blockdev")]


def _names(ids: npt.NDArray[np.uint32], lookup: Any) -> Any:
    unique, inverse = np.unique(ids, return_inverse=True)
    names = [lookup(int(identity)) for identity in unique]
    # Parquet takes null places, but no null in the dictionary itself.
    named = np.array([name is not None for name in names])[inverse]
    places = plain_column(inverse, pa.int32(), named)
    return pa.DictionaryArray.from_arrays(places, pa.array([name or "" for name in names], pa.string()))


def _binary_column(batch: Batch, name: str, kind: Any) -> Any:
    """Variable field `name`, null where it is empty; as text with replacements for what is not UTF-8."""
    starts, lengths = batch.rows[f"{name}_at"], batch.rows[f"{name}_len"]
    if not lengths.any():
        return pa.nulls(len(lengths), kind)
    if kind == pa.binary() and lengths.all() and (starts[1:] == starts[:-1] + lengths[:-1]).all():
        # They lie one after the other, so the heap is the column already.
        first, last = int(starts[0]), int(starts[-1] + lengths[-1])
        offsets = np.append(starts - starts[0], last - first).astype(np.int32)
        data = bytes(batch.heap[first:last])
        return pa.Array.from_buffers(kind, len(lengths), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)])
    values = [value or None for value in batch.all_bytes(name)]
    if kind == pa.binary():
        return pa.array(values, kind)
    return pa.array([value and value.decode(errors="replace") for value in values], kind)


def _digest_is_told(rows: Array) -> npt.NDArray[np.bool_]:
    """Which rows have a digest that their content id does not tell: that of a whole file of one chunk is the same."""
    told: npt.NDArray[np.bool_] = (rows["has_digest"] != 0) & (
        (rows["content_kind"] != fmt.CONTENT_CHUNK)
        | (rows["error_len"] != 0)
        | (rows["digest"] != rows["content_id"]).any(axis=1)
    )
    return told


def digest_columns(batch: Batch, names: Sequence[str]) -> dict[str, Any]:
    """Columns of the digests `names`, of which those objects that were read have all."""
    if not names:
        return {}
    starts, valid = batch.rows["digests_at"].astype(np.int64), batch.rows["digests_len"] != 0
    heap, columns, at = np.frombuffer(batch.heap, np.uint8), {}, 0
    for name in names:
        values = np.zeros((len(starts), fmt.DIGESTS[name]), np.uint8)
        values[valid] = heap[starts[valid, None] + np.arange(at, at + fmt.DIGESTS[name])]
        columns[name] = fixed_column(values, valid)
        at += fmt.DIGESTS[name]
    return columns


class ExtentSpool:
    """Extents of objects that have not ended yet, in order of row; one for each reader."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY)  # noqa: SIM115 - lives as long as the run

    def append(self, extents: Array) -> None:
        self._file.write(extents.tobytes())

    def drain(self) -> Iterator[Array]:
        """All spooled extents, piece by piece; empty after it."""
        self._file.seek(0)
        while piece := self._file.read(SPOOL_PIECE * ROW_EXTENT_DTYPE.itemsize):
            yield np.frombuffer(piece, ROW_EXTENT_DTYPE)
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        self._file.close()


class ChunkSorter:
    """Chunk rows until they fill a file, which is then sorted by chunk id."""

    def __init__(self) -> None:
        self._parts: list[tuple[uuid.UUID, Array]] = []
        self.rows = 0

    def append(self, pack_id: uuid.UUID, chunks: Array) -> None:
        self._parts.append((pack_id, chunks))
        self.rows += len(chunks)

    def drain(self) -> Iterator[dict[str, Any]]:
        if not self.rows:
            return
        chunks = np.concatenate([part for _, part in self._parts])
        packs = np.repeat(
            np.frombuffer(b"".join(pack.bytes for pack, _ in self._parts), "V16"),
            [len(part) for _, part in self._parts],
        )
        self._parts, self.rows = [], 0
        order = _id_order(chunks["id"])
        for start in range(0, len(order), 64 << 10):
            some = order[start : start + (64 << 10)]
            part = chunks[some]
            yield {
                "chunk_id": part["id"],
                "pack_id": packs[some],
                "block": part["block"],
                "offset": part["offset"],
                "length": part["length"],
            }


def _id_order(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The order that sorts ids (n × 32 bytes). Their first 8 bytes nearly always decide; the rest is looked at only
    where two have them in common."""
    words = np.ascontiguousarray(ids).view(">u8").astype(np.uint64)
    order = np.argsort(words[:, 0])
    first = words[order, 0]
    if (first[1:] == first[:-1]).any():
        order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    return order


class RunRows:
    """Rows of run `run_id`, written to `members` as they fill files. `digests`: what objects carry besides BLAKE3."""

    def __init__(self, run_id: uuid.UUID, members: Members, digests: Sequence[str] = ()) -> None:
        self._run_id = run_id
        self._members = members
        self._digests = digests
        self._writers: dict[str, TableWriter] = {}
        self._numbers: dict[str, int] = {}
        self._spools: dict[int, ExtentSpool] = {}
        self._chunks = ChunkSorter()
        self.files: list[ManifestFile] = []

    def _append(self, table: str, columns: dict[str, Any], sorted_by: str | None = None) -> None:
        writer = self._writers.get(table)
        if writer is None:
            writer = self._writers[table] = TableWriter(table, sorted_by)
        writer.append(columns)
        if writer.is_full:
            self._publish(table)

    def _publish(self, table: str) -> None:
        self.files.append(self._writers.pop(table).publish(self._members, self._next_name(table)))

    def _next_name(self, table: str) -> str:
        number = self._numbers.get(table, 0)
        self._numbers[table] = number + 1
        return file_name(self._run_id, number)

    def add_extents(self, reader: int, extents: Array) -> None:
        """Extents (ROW_EXTENT_DTYPE) of objects that `reader` is reading; kept until their objects are added."""
        if reader not in self._spools:
            self._spools[reader] = ExtentSpool()
        self._spools[reader].append(extents)

    def add_objects(
        self,
        reader: int,
        batch: Batch,
        known: npt.NDArray[np.bool_],
        more: Mapping[str, Sequence[str | int | None]] | None = None,
    ) -> None:
        """Objects (OBJECT_DTYPE) in order of row. `known`: the content's extents are in the store already; `more`:
        columns that only objects have that were put."""
        rows = batch.rows
        self._resolve_extents(reader, rows, known)
        count = len(rows)
        present = rows["content_kind"] != fmt.CONTENT_NONE
        kinds = pa.DictionaryArray.from_arrays(plain_column(rows["kind"], pa.int8()), pa.array(fmt.KINDS))
        columns: dict[str, Any] = {
            "run": constant_id(self._run_id, count),
            "kind": kinds,
            "path": _binary_column(batch, "path", pa.binary()),
            "content_id": fixed_column(rows["content_id"], present),
            "digest": fixed_column(rows["digest"], _digest_is_told(rows)),
            **digest_columns(batch, self._digests),
            **{name: _binary_column(batch, name, pa.binary()) for name in ("target", "xattrs", "holes")},
            "error": _binary_column(batch, "error", pa.string()),
            "user_name": _names(rows["uid"], user_name),
            "group_name": _names(rows["gid"], group_name),
            "clean": plain_column(rows["clean"] != 0, pa.bool_()),
            "rdev": plain_column(rows["rdev"], pa.uint64(), np.isin(rows["kind"], _DEVICE_KINDS)),
        }
        plain = (
            "row",
            "size",
            "content_kind",
            "mode",
            "uid",
            "gid",
            "mtime_ns",
            "ctime_ns",
            "device",
            "inode",
            "links",
        )
        columns.update((name, rows[name]) for name in plain)
        for name, values in (more or {}).items():
            columns[name] = pa.array(values, SCHEMAS["objects"].field(name).type)
        self._append("objects", columns)

    def _resolve_extents(self, reader: int, rows: Array, known: npt.NDArray[np.bool_]) -> None:
        spool = self._spools.get(reader)
        if spool is None:
            return
        wanted = (rows["content_kind"] == fmt.CONTENT_EXTENTS) & ~known
        numbers = rows["row"]
        for extents in spool.drain():
            place = np.searchsorted(numbers, extents["row"])
            keep = wanted[np.minimum(place, len(rows) - 1)] & (
                numbers[np.minimum(place, len(rows) - 1)] == extents["row"]
            )
            if keep.any():
                kept = extents[keep]
                self._append(
                    "extents",
                    {
                        "content_id": rows["content_id"][place[keep]],
                        "offset": kept["offset"],
                        "length": kept["length"],
                        "chunk_id": kept["id"],
                    },
                )

    def add_pack(self, pack: dict[str, Any], shards: list[dict[str, Any]], blocks: Array, chunks: Array) -> None:
        """A pack whose shards are durable: its row, its shards' rows, its directory (BLOCK_DTYPE, CHUNK_DTYPE)."""
        pack_id = uuid.UUID(bytes=pack["pack_id"])
        self._append(
            "packs",
            {name: _column("packs", name, [value]) for name, value in {**pack, "run": self._run_id.bytes}.items()},
        )
        names = shards[0].keys()
        self._append(
            "shards",
            {name: _column("shards", name, [shard[name] for shard in shards]) for name in names},
        )
        self._append(
            "blocks",
            {
                "pack_id": constant_id(pack_id, len(blocks)),
                "block": np.arange(len(blocks), dtype=np.uint32),
                **{name: blocks[name] for name in ("offset", "stored", "raw", "codec")},
            },
        )
        self._chunks.append(pack_id, chunks)
        if self._chunks.rows >= FILE_ROWS:
            self._take_chunks()
            self._publish("chunks")

    def _take_chunks(self) -> None:
        """Make the table of the chunks so far."""
        writer = self._writers["chunks"] = TableWriter("chunks", "chunk_id")
        for columns in self._chunks.drain():
            writer.append(columns)

    def _finished(self, table: str) -> tuple[ManifestFile, list[Buffer]]:
        return self._writers[table].finish(self._next_name(table))

    def finish(self) -> list[ManifestFile]:
        """Publish what is left; all manifest files of the run."""
        if self._chunks.rows:
            self._take_chunks()
        # Tables are encoded beside one another: nothing else is left to do by then.
        with ThreadPoolExecutor(2, "table") as threads:
            for manifest, pieces in threads.map(self._finished, list(self._writers)):
                self._members.put_everywhere(manifest.key, pieces)
                self.files.append(manifest)
        self._writers.clear()
        self.close()
        return self.files

    def close(self) -> None:
        """Release temporary files; published files stay for the gc of a run that was not committed."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()


def _column(table: str, name: str, values: list[Any]) -> Any:
    return pa.array(values, SCHEMAS[table].field(name).type)
