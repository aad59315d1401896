"""Deleted chunks: which copies are alive, over Arrow batches, and how a deletion is recorded.

A row of table `tombstones` kills one copy, that of one pack; a copy in a pack that is written later is alive.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.armour import open_json
from manifests.errors import BackendError, CorruptRecord, Superseded
from manifests.ids import NIL, new_id
from manifests.log import FOLDER, LogRecord, State, list_records, make_record, write_record
from manifests.store import Members

if TYPE_CHECKING:
    from collections.abc import Sequence


class Tombstones:
    """The rule of places.py, ALIVE, over Arrow batches. Grows with the deleted chunks."""

    def __init__(self) -> None:
        self._packs: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._packs)

    def add(self, chunks: Sequence[bytes], packs: Sequence[bytes]) -> None:
        for chunk_id, pack_id in zip(chunks, packs, strict=True):
            self._packs.setdefault(chunk_id, set()).add(pack_id)

    def ids(self) -> npt.NDArray[np.uint8]:
        """All chunks of which a copy is deleted, n × 32 bytes."""
        return np.frombuffer(b"".join(self._packs), np.uint8).reshape(-1, 32)

    def alive(self, batch: Any) -> npt.NDArray[np.bool_]:
        """Which rows of an Arrow batch with the columns chunk_id and pack_id are alive."""
        import pyarrow as pa
        import pyarrow.compute as pc

        chunks, packs = batch.column("chunk_id"), batch.column("pack_id")
        listed = pc.is_in(chunks, value_set=pa.array(list(self._packs), pa.binary(32)))
        alive: npt.NDArray[np.bool_] = np.ones(batch.num_rows, bool)
        for row in np.flatnonzero(listed.to_numpy(zero_copy_only=False)).tolist():
            alive[row] = packs[row].as_py() not in self._packs[chunks[row].as_py()]
        return alive


def write_deletion(
    members: Members, state: State, *, objects: Sequence[str] = (), chunks: Sequence[tuple[bytes, bytes, int]] = ()
) -> LogRecord:
    """Record that objects (ids) and copies of chunks (chunk id, pack id, length in bytes) are deleted; durable on
    return."""
    record_id, files = new_id(state.newest), []
    if chunks:
        files = [_write_tombstones(members, record_id, chunks)]
    content = {"objects": list(objects), "bytes": sum(length for _, _, length in chunks)}
    record = make_record(record_id, "delete", content, files)
    write_record(members, record)
    return record


def _write_tombstones(members: Members, record_id: uuid.UUID, chunks: Sequence[tuple[bytes, bytes, int]]) -> Any:

    import pyarrow as pa

    from manifests.tables import TableWriter, file_name

    ids, packs, lengths = zip(*chunks, strict=True)
    writer = TableWriter("tombstones")
    try:
        writer.append(
            {
                "chunk_id": pa.array(ids, pa.binary(32)),
                "pack_id": pa.array(packs, pa.binary(16)),
                "length": pa.array(lengths, pa.uint32()),
                "time": pa.array([time.time_ns()] * len(chunks), pa.int64()),
            }
        )
        return writer.publish(members, file_name(record_id, 0))
    except BaseException:
        writer.close()
        raise


def require_no_new_deletions(members: Members, state: State) -> None:
    """Whoever found chunks to be known by `state` asks before its own record is written. Raises Superseded where
    somebody has deleted chunks since: then a chunk that is relied on may be dead; TooFewBackends where too few can be
    asked."""
    asked = len(members.present)
    for number, keys in list_records(members).items():
        for key in keys:
            if not key.endswith(".delete.json") or _id_of(key) in state.deletions:
                continue
            member = members.present[number]
            try:
                buries = "tombstones" in open_json(member.storage.read(key))[0]["adds"]
            except (BackendError, CorruptRecord) as error:
                members.drop(number, str(error))
                break
            if buries:
                raise Superseded(
                    f"{member.storage.location}/{key}: somebody deleted chunks meanwhile, so this was not "
                    "committed; do it again"
                )
    if len(members.present) < asked:
        members.require_writable()


def _id_of(key: str) -> uuid.UUID:
    try:
        return uuid.UUID(key.removeprefix(f"{FOLDER}/").partition(".")[0])
    except ValueError:
        return NIL
