"""A batch: what one log record commits, puts or received chunks. All of it, or nothing.

It goes as a run does: marker, packs, manifest files, log record, each durable before the next begins. So what a process
that was killed had stored is adopted by the next run.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder
from manifests.config import CodecSpec, survives_another_loss
from manifests.errors import TooFewBackends, UsageError
from manifests.ids import new_id, object_id
from manifests.inflight import Inflight
from manifests.log import LogRecord, State, make_record, write_record
from manifests.membership import drop_removed
from manifests.runrows import RunRows
from manifests.store import Members
from manifests.tombstones import require_no_new_deletions
from pipeline.budget import DEFAULT_MEMORY
from pipeline.ingest.collect import pack_rows
from pipeline.metrics.figures import StoreFigures
from pipeline.metrics.meters import Count
from pipeline.objects.intake import BinaryReader, Content, Intake
from pipeline.objects.known import KnownIndexes
from pipeline.objects.refs import ObjectRef
from pipeline.packwriter import DurablePack, pack_options, require_still_safe, shards_left
from pipeline.topology import ingest_shape
from stages.scan import KIND
from stages.shard import file_size

#: Rows of objects that are kept before they go to the manifest.
ROWS_AT_ONCE = 1024
_ONLY_READER = 0


@dataclass
class Sums:
    """What a batch came to, in chunks, packs and bytes, as its record tells."""

    objects: int = 0
    bytes: int = 0
    new_chunks: int = 0
    new_bytes: int = 0
    stored: int = 0
    parity: int = 0
    packs: int = 0
    missing_shards: int = 0


@dataclass(frozen=True)
class Put:
    """What is told of an object besides its content; `expires_ns` in ns since 1970."""

    key: str
    bucket: str = ""
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl_ns: int | None = None


class WriteBatch:
    """A batch under way. For one thread at a time; `commit` or `abort` ends it."""

    def __init__(
        self,
        members: Members,
        state: State,
        known: KnownIndexes,
        kind: str,
        figures: StoreFigures,
        preferred: int | None = None,
    ):
        """`kind`: of its log record, `put` or `receive`; `preferred`: number of a backend that packs are to be on."""
        self._members, self._state, self._known, self._kind = members, state, known, kind
        self._figures = figures
        self._began = time.monotonic()
        self.run_id = new_id(state.newest)
        self.sums = Sums()
        self._row = self._most_missing = 0
        self._taking = self._over = False
        self._inflight = Inflight(members, self.run_id)
        self._rows = RunRows(self.run_id, members)
        self._waiting: list[tuple[ObjectRef, Put, Content, int]] = []
        shape = ingest_shape(members.config, 1, DEFAULT_MEMORY, 1)
        packs = pack_options(members, state, shape, members.config)
        self._intake = Intake(members.config, shape, packs, known.chunks, self._note_pack, figures)
        self._intake.writer.preferred = preferred
        self._inflight.begin()

    def put(self, reader: BinaryReader, put: Put, codec: CodecSpec | None, md5: bool) -> ObjectRef:
        """Take an object in; it counts once the batch is committed. What `reader` raises passes through, and the batch
        goes on without the object. Raises UsageError where it is in the middle of another one, or has ended."""
        if self._taking or self._over:
            reason = "a reader that is being put may not put anything itself" if self._taking else "the batch has ended"
            raise UsageError(f"putting {put.key!r}: {reason}")
        row = self._row
        self._row += 1
        self._taking = True
        try:
            content = self._intake.take(reader, row, self._take_extents, codec, md5)
        finally:
            self._taking = False
        created = time.time_ns()
        ref = ObjectRef(
            object_id(self.run_id, row),
            put.key,
            put.bucket,
            content.size,
            True,
            content.digest,
            content.md5,
            put.content_type,
            dict(put.metadata),
            created,
            None,
            None if put.ttl_ns is None else created + put.ttl_ns,
        )
        self._waiting.append((ref, put, content, row))
        self.sums.objects += 1
        self.sums.bytes += content.size
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._send_objects()
        return ref

    def receive(self, chunk_id: bytes, data: bytes | memoryview) -> None:
        """Take a chunk in whose id was checked."""
        self._intake.take_chunk(chunk_id, data)

    def _take_extents(self, extents: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        self._rows.add_extents(_ONLY_READER, extents)

    def _send_objects(self) -> None:
        if not self._waiting:
            return
        refs, puts, contents, numbers = zip(*self._waiting, strict=True)
        self._waiting = []
        rows, heap = np.zeros(len(refs), OBJECT_DTYPE), HeapBuilder()
        rows["row"], rows["kind"], rows["links"] = numbers, KIND["file"], 1
        rows["mode"], rows["uid"], rows["gid"] = stat.S_IFREG | 0o600, os.getuid(), os.getgid()
        rows["mtime_ns"] = rows["ctime_ns"] = [ref.created_ns for ref in refs]
        rows["size"] = [content.size for content in contents]
        rows["content_kind"] = [content.kind for content in contents]
        rows["content_id"] = _ids([content.content_id or bytes(32) for content in contents])
        rows["digest"], rows["has_digest"] = _ids([content.digest for content in contents]), 1
        rows["path_at"], rows["path_len"] = heap.add_all([ref.key.encode() for ref in refs])
        known, several = np.zeros(len(rows), bool), np.flatnonzero(rows["content_kind"] == fmt.CONTENT_EXTENTS)
        if len(several):
            ones = np.ones(len(several), np.uint32)
            known[several] = ~self._known.contents.put_batch(rows["content_id"][several], ones)
        more: dict[str, list[str | int | None]] = {
            "bucket": [ref.bucket for ref in refs],
            "etag": [ref.etag for ref in refs],
            "content_type": [ref.content_type for ref in refs],
            "metadata": [json.dumps(dict(put.metadata), sort_keys=True) if put.metadata else None for put in puts],
            "created_ns": [ref.created_ns for ref in refs],
            "expires_ns": [ref.expires_ns for ref in refs],
        }
        self._rows.add_objects(_ONLY_READER, Batch(rows, heap.getvalue()), known, more)

    def _note_pack(self, pack: DurablePack) -> None:
        row, shards = pack.row, pack.shards
        rows = pack_rows(row, shards, len(pack.blocks), self._members.config.scheme)
        self._rows.add_pack(*rows, pack.blocks, pack.chunks)
        self._inflight.note_pack(pack.pack_id)
        present, payload = int(shards["present"].sum()), int(row["payload"])
        self.sums.packs += 1
        self.sums.missing_shards += len(shards) - present
        self._most_missing = max(self._most_missing, len(shards) - present)
        self.sums.new_chunks += len(pack.chunks)
        self.sums.new_bytes += int(pack.chunks["length"].sum())
        self.sums.stored += payload
        self.sums.parity += present * file_size(int(row["shard_length"])) - payload

    def commit(self) -> LogRecord | None:
        """Make all of it durable and visible; None where there is nothing. Raises TooFewBackends, BackendFull,
        Superseded; then nothing was committed."""
        if self._over:
            raise UsageError("the batch was given up, so nothing of it is committed")
        try:
            self._intake.finish()
            self._send_objects()
            if not self.sums.objects and not self.sums.packs:
                self.abort()
                return None
            self._inflight.flush()
            files = self._rows.finish()
            require_no_new_deletions(self._members, self._state)
            require_still_safe(self._members, self._intake.writer.failed, self._most_missing)
            summary = {**vars(self.sums), "seconds": round(time.monotonic() - self._began, 3)}
            record = make_record(self.run_id, self._kind, {self._kind: summary}, files)
            write_record(self._members, record)
            self._require_members()
            # So its trouble is seen, and it is tried again with the next write.
            for number, reason in self._intake.writer.failed.items():
                self._members.drop(number, reason)
        except BaseException:
            self.abort()
            raise
        self._over = True
        self._inflight.end()
        self._figures.count_chunks(Count.CREATED if self._kind == "put" else Count.RECEIVED, self.sums.new_chunks)
        self._figures.count_chunks(Count.DEDUPLICATED, self._intake.deduplicated)
        return record

    def _require_members(self) -> None:
        """Raises TooFewBackends where so many backends were removed meanwhile that what was put is not safe."""
        drop_removed(self._members)
        if self._members.removed and not survives_another_loss(
            self._members.config.scheme,
            len(self._members.seats),
            shards_left(self._members, self._intake.writer.failed, self._most_missing),
        ):
            reasons = "; ".join(self._members.failed[number] for number in sorted(self._members.removed))
            raise TooFewBackends(f"what was put is recorded, and is not safe, so put it again: {reasons}")

    def abort(self) -> None:
        """Give all of it up. What was stored stays for the next run; what stored nothing leaves no trace."""
        self._over = True
        self._intake.close()
        self._rows.close()
        if self.sums.packs:
            self._inflight.give_up()
        else:
            self._inflight.end()


def _ids(values: list[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, 32)
