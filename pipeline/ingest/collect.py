"""The home stations of an ingest, in the supervisor: known ids go out, rows and durable packs come in."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, ROW_EXTENT_DTYPE, Batch
from manifests.config import ECScheme
from manifests.fitting import total
from manifests.index import KNOWN, Entries, known_rows
from manifests.inflight import Inflight
from pipeline import messages
from pipeline.arena import Message
from pipeline.ingest.adopt import AdoptedPack
from pipeline.ingest.checksums import Checksums
from pipeline.ingest.dedupe import KNOWN_CHUNKS, KNOWN_CONTENTS
from pipeline.ingest.parent import ParentBuilder
from pipeline.outcome import NamedError
from pipeline.packwriter import PACK_ROW, SHARD_ROW
from pipeline.station import Acquire, Context, Station, Take
from pipeline.topology import RECORD, SMALL_SLOT
from stages.scan import KIND
from stages.shard import file_size

if TYPE_CHECKING:
    from manifests.runrows import RunRows

#: Rows in one message to the dedupe station: what fits into its slot.
KNOWN_BATCH = SMALL_SLOT // KNOWN.itemsize
#: Skipped items that a summary names; the manifest has all of them.
NAMED_ERRORS = 100
#: Distinct reasons that are counted each for itself.
REASON_KINDS = 50
OTHER_REASONS = "for other reasons"


@dataclass
class Tally:
    """Sums over a run, in objects and bytes. `new`: chunks stored for the first time; `stored`: payload of the packs;
    `parity`: what is in the shard files beyond the payload; `most_missing`: shards that the worst pack lacks;
    `adopted`: what unfinished runs left behind and this one needs not store again, with the shards that it lacks;
    `reasons`: of errors → objects; `unchanged`: files that were not read, being as an earlier run has them."""

    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0
    new_chunks: int = 0
    new_bytes: int = 0
    stored: int = 0
    parity: int = 0
    packs: int = 0
    errors: int = 0
    missing_shards: int = 0
    most_missing: int = 0
    adopted_packs: int = 0
    adopted_bytes: int = 0
    adopted_missing: int = 0
    unchanged: int = 0
    unchanged_bytes: int = 0
    named_errors: list[NamedError] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def add_objects(self, batch: Batch) -> None:
        kinds, sizes = batch.rows["kind"], batch.rows["size"]
        files = (kinds == KIND["file"]) | (kinds == KIND["stream"])
        self.files += int(files.sum())
        self.directories += int((kinds == KIND["directory"]).sum())
        self.others += int((~files & (kinds != KIND["directory"])).sum())
        self.bytes += total(sizes[files])
        unchanged = batch.rows["unchanged"] != 0
        self.unchanged += int(unchanged.sum())
        self.unchanged_bytes += total(sizes[unchanged])
        for row in np.flatnonzero(batch.rows["error_len"]):
            bad = batch.rows[row]
            self._add_error((batch.bytes_of(bad, "path"), batch.bytes_of(bad, "error").decode(errors="replace")))

    def _add_error(self, error: NamedError) -> None:
        self.errors += 1
        if len(self.named_errors) < NAMED_ERRORS:
            self.named_errors.append(error)
        reason = error[1]
        kind = reason if reason in self.reasons or len(self.reasons) < REASON_KINDS else OTHER_REASONS
        self.reasons[kind] = self.reasons.get(kind, 0) + 1


@dataclass
class Collector:
    """What comes home during a run."""

    make_rows: Callable[[], RunRows]
    inflight: Inflight
    scheme: ECScheme
    readers: int
    writers: int
    checksums: Checksums | None = None
    parent: ParentBuilder | None = None
    tally: Tally = field(default_factory=Tally)
    #: Of backends, by number: why the writers gave them up, and shards of this run that they lack.
    troubles: dict[int, str] = field(default_factory=dict)
    lacking: Counter[int] = field(default_factory=Counter)

    @cached_property
    def rows(self) -> RunRows:
        """The run's rows. They bring pyarrow along, so they are made while the workers begin."""
        return self.make_rows()

    def close(self) -> None:
        """Give up the rows of a run that failed."""
        if "rows" in self.__dict__:
            self.rows.close()

    def adopt(self, packs: Iterable[AdoptedPack]) -> Iterator[Entries]:
        """Make packs of unfinished runs this run's own; yields their chunks (KNOWN) in batches."""
        for pack in packs:
            self.rows.add_pack(pack.pack_row, pack.shard_rows, pack.blocks, pack.chunks)
            self.inflight.note_pack(pack.pack_id)
            self.tally.adopted_packs += 1
            self.tally.adopted_bytes += int(pack.chunks["length"].sum())
            missing = pack.record.scheme.total_shards - len(pack.backends)
            self.tally.adopted_missing += missing
            self._count_missing(missing)
            for start in range(0, len(pack.chunks), KNOWN_BATCH):
                part = pack.chunks[start : start + KNOWN_BATCH]
                yield known_rows(part["id"], part["length"])

    def known_station(self, context: Context, chunks: Iterator[Entries], contents: Iterator[Entries]) -> Station:
        """Streams what is known (KNOWN) to the dedupe station: batches of at most KNOWN_BATCH rows. Then asks it for
        the chunks of the parent run, and gives the readers what it vouches for."""
        context.clock.switch(RECORD)
        _ = self.rows
        for kind, batches in ((KNOWN_CHUNKS, chunks), (KNOWN_CONTENTS, contents)):
            for rows in batches:
                slot = yield Acquire("known")
                with context.slot("known", slot) as view:
                    view[: rows.nbytes] = rows.tobytes()
                context.seal("known", slot)
                context.send("known", Message(messages.KNOWN, slot, amount=len(rows), first=kind))
        if self.parent is not None:
            yield from self.parent.ask(context)
        context.send("known", Message(messages.END))
        if self.parent is not None:
            yield from self.parent.finish(context)

    def rows_station(self, context: Context) -> Station:
        """Takes FOUND, EXTENTS and OBJECTS from dedupe."""
        while True:
            _, message = yield Take(("rows",))
            if message.kind == messages.END:
                return
            context.clock.switch(RECORD)
            if message.kind == messages.FOUND:
                found = self._take_verdict(context, message)
                if self.parent is not None:
                    self.parent.answer(found)
                continue
            pool = f"rows/{message.first}"
            with context.slot(pool, message.slot) as view:
                if message.kind == messages.EXTENTS:
                    self.rows.add_extents(message.first, np.frombuffer(view, ROW_EXTENT_DTYPE, message.amount).copy())
                else:
                    batch = Batch.load(view, OBJECT_DTYPE).copy()
            context.release(pool, message.slot)
            if message.kind == messages.OBJECTS:
                known = self._take_verdict(context, message)
                if self.checksums is not None:
                    batch = self.checksums.mark(batch)
                self.tally.add_objects(batch)
                self.rows.add_objects(message.first, batch, known)
            context.clock.count(RECORD, message.amount, 0)

    @staticmethod
    def _take_verdict(context: Context, message: Message) -> npt.NDArray[np.bool_]:
        with context.slot("verdict", message.aux) as view:
            verdict = np.frombuffer(view, bool, message.amount).copy()
        context.release("verdict", message.aux)
        return verdict

    def packs_station(self, context: Context) -> Station:
        """Takes PACK_CHUNKS, PACK and TROUBLES from the writers."""
        rings = tuple(f"packs/{writer}" for writer in range(self.writers))
        left, parts = len(rings), dict[int, list[npt.NDArray[np.void]]]()
        while left:
            ring, message = yield Take(rings)
            if message.kind == messages.END:
                left -= 1
                continue
            context.clock.switch(RECORD)
            with context.slot(ring, message.slot) as view:
                if message.kind == messages.PACK_CHUNKS:
                    part = np.frombuffer(view, fmt.CHUNK_DTYPE, message.amount).copy()
                    parts.setdefault(message.first, []).append(part)
                elif message.kind == messages.TROUBLES:
                    for number, reason in json.loads(bytes(view[: message.amount])).items():
                        self.troubles.setdefault(int(number), reason)
                else:
                    row, shards, blocks = self._load_pack(view, message.amount)
            context.release(ring, message.slot)
            if message.kind == messages.PACK:
                self._add_pack(row, shards, blocks, np.concatenate(parts.pop(message.first)))

    def _load_pack(self, view: memoryview, blocks: int) -> tuple[Any, Any, Any]:
        row = np.frombuffer(view, PACK_ROW, 1).copy()
        shards = np.frombuffer(view, SHARD_ROW, self.scheme.total_shards, row.nbytes).copy()
        return row[0], shards, np.frombuffer(view, fmt.BLOCK_DTYPE, blocks, row.nbytes + shards.nbytes).copy()

    def _add_pack(self, row: Any, shards: Any, blocks: Any, chunks: Any) -> None:
        pack_id, size = row["pack_id"].tobytes(), file_size(int(row["shard_length"]))
        self.rows.add_pack(*pack_rows(row, shards, len(blocks), self.scheme), blocks, chunks)
        self.inflight.note_pack(uuid.UUID(bytes=pack_id))
        present = int(shards["present"].sum())
        self.lacking.update(shards["backend"][shards["present"] == 0].tolist())
        self.tally.packs += 1
        self._count_missing(len(shards) - present)
        self.tally.new_chunks += len(chunks)
        self.tally.new_bytes += int(chunks["length"].sum())
        self.tally.stored += int(row["payload"])
        self.tally.parity += present * size - int(row["payload"])

    def _count_missing(self, shards: int) -> None:
        self.tally.missing_shards += shards
        self.tally.most_missing = max(self.tally.most_missing, shards)


def pack_rows(row: Any, shards: Any, blocks: int, scheme: ECScheme) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rows of tables packs (but for the run) and shards, of a durable pack: PACK_ROW, SHARD_ROW, and how many
    blocks it has."""
    pack_id, size = row["pack_id"].tobytes(), file_size(int(row["shard_length"]))
    pack = {name: row[name].item() for name in PACK_ROW.names or () if name != "pack_id"}
    pack |= {"pack_id": pack_id, "kind": fmt.PACK_KIND_DATA, "k": scheme.k, "m": scheme.m, "blocks": blocks}
    return pack, [
        {
            "pack_id": pack_id,
            "shard": index,
            "backend": int(shard["backend"]),
            "size": size,
            "present": bool(shard["present"]),
        }
        for index, shard in enumerate(shards)
    ]
