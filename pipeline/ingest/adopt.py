"""Adopting what unfinished runs made durable: their packs become packs of this run.

Adopting is sharing: the pack stays where it is, rows with equal keys do no harm, and whether the other run is dead or
only slow need not be known. A pack is adopted when enough of its shards are there to survive the loss of one more
backend.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from manifests import format as fmt
from manifests.config import survives_another_loss
from manifests.errors import BackendError, DrystoneError
from manifests.inflight import Unfinished, remove_traces, unfinished
from manifests.known import pack_ids
from manifests.log import State
from manifests.replicas import Replicas
from manifests.store import Members
from pipeline.ingest.strays import stray_packs
from pipeline.packreader import PackPlace, PackReaders, ShardSource
from stages.compress import Decoder
from stages.errors import DamagedShard
from stages.pack import parse_directory
from stages.shard import ShardRecord, file_size, shard_key


@dataclass(frozen=True)
class AdoptedPack:
    """A pack of an unfinished run, with its directory (BLOCK_DTYPE, CHUNK_DTYPE) and shard → backend number."""

    pack_id: uuid.UUID
    record: ShardRecord
    blocks: Any
    chunks: Any
    backends: dict[int, int]

    @property
    def pack_row(self) -> dict[str, Any]:
        """The pack's row, but for the run."""
        record = self.record
        return {
            "pack_id": self.pack_id.bytes,
            "kind": record.kind,
            "k": record.scheme.k,
            "m": record.scheme.m,
            "payload": record.payload,
            "shard_length": record.shard_length,
            "directory_offset": record.directory_offset,
            "directory_stored": record.directory_stored,
            "directory_raw": record.directory_raw,
            "directory_codec": record.directory_codec,
            "blocks": len(self.blocks),
            "chunks": len(self.chunks),
            "raw": int(self.blocks["raw"].sum()),
        }

    @property
    def shard_rows(self) -> list[dict[str, Any]]:
        """Its shards' rows; those that are nowhere are not present."""
        size = file_size(self.record.shard_length)
        return [
            {
                "pack_id": self.pack_id.bytes,
                "shard": index,
                "backend": self.backends.get(index, 0),
                "size": size,
                "present": index in self.backends,
            }
            for index in range(self.record.scheme.total_shards)
        ]


class Adoption:
    """What a run takes over. `over`: the runs that are surely over, once the packs were given."""

    def __init__(self, members: Members, state: State, replicas: Replicas, lost: list[str]) -> None:
        """`lost` gets why manifest files could not be read."""
        self._members, self._state, self._replicas, self._lost = members, state, replicas, lost
        self.over: list[Unfinished] = []
        self._waits = False  # whether a pack lacks shards that may lie on a backend that is absent

    def packs(self) -> Iterator[AdoptedPack]:
        """Packs of unfinished runs that no manifest names: those that they journalled, and of runs that are over what
        they had stored besides. What is damaged or short of shards is passed over: its chunks are stored again."""
        members = self._members
        runs, _ = unfinished(members)
        wanted = {pack_id for run in runs for pack_id in run.packs}
        self.over = [run for run in runs if run.over]
        if self.over:
            wanted |= stray_packs(members, self.over[0].run_id)
        if wanted:
            wanted -= pack_ids(self._state, self._replicas, wanted, self._lost)
        storages = {member.number: member.storage for member in members.present.values()}
        source = ShardSource(members.config.shard_stores, storages, tuple(info.seat for info in members.all))
        readers, decoder = PackReaders(source), Decoder()
        for pack_id in sorted(wanted):
            found = locate(members, pack_id)
            if found is None or not _is_safe(members, *found):
                self._waits = self._waits or bool(members.absent())
                continue
            record, backends = found
            place = PackPlace(pack_id, record.scheme, record.payload, record.shard_length)
            try:
                stored = readers.get(place).read(record.directory_offset, record.directory_stored)
                raw = bytes(decoder.decode(record.directory_codec, stored, record.directory_raw))
                blocks, chunks = parse_directory(raw)
            except DrystoneError:
                # If it was the disk, another run may be able to read it.
                self._waits |= next(source.figures.media.lines(), None) is not None
                continue
            yield AdoptedPack(pack_id, record, blocks.copy(), chunks.copy(), backends)

    def clear(self) -> None:
        """Remove the traces of runs that are over: this run is committed, and their packs are its own. They stay if a
        pack lacks shards and a backend is absent, which may hold them."""
        for run in () if self._waits else self.over:
            remove_traces(self._members, run.run_id)


def locate(members: Members, pack_id: uuid.UUID) -> tuple[ShardRecord, dict[int, int]] | None:
    """A shard's record and where each shard lies whole in length; None where there is none."""
    record: ShardRecord | None = None
    backends: dict[int, int] = {}
    for index in range(members.config.scheme.total_shards):
        for member in members.present.values():
            key = shard_key(pack_id, index)
            try:
                found, _ = ShardRecord.parse(member.storage.read_range(key, 0, fmt.RECORD_SIZE))
                if found.pack_id == pack_id and member.storage.size(key) == file_size(found.shard_length):
                    record, backends[index] = found, member.number
                    break
            except (BackendError, DamagedShard):
                continue
    return None if record is None else (record, backends)


def _is_safe(members: Members, record: ShardRecord, backends: dict[int, int]) -> bool:
    held = list(Counter(backends.values()).values())
    return survives_another_loss(record.scheme, len(members.seats), held)
