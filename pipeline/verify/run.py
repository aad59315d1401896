"""One verification from beginning to end."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from manifests.catalog import Catalog
from manifests.columns import Batch
from manifests.inspect import BadCopy, LostRange, affected_objects, bad_copies, packs
from manifests.log import Log, State
from manifests.store import Members
from pipeline import messages
from pipeline.arena import Message
from pipeline.fan import FanHome, fan_workers
from pipeline.restore.run import backend_places
from pipeline.runner import run_stations
from pipeline.station import Context, Station
from pipeline.supervisor import SignalWatch
from pipeline.topology import DEFAULT_MEMORY, PLAN, RESTORE_STAGES, fan_shape
from pipeline.verify.contents import ContentsHome
from pipeline.verify.work import (
    BAD_CELLS,
    CHECKED,
    FINDING_DTYPE,
    LOST_CHUNK,
    LOST_PACK,
    MISSING_SHARD,
    PACK_TASK_DTYPE,
    WRONG_CONTENT,
    VerifyOptions,
    verify_station,
)
from stages.shard import file_size, shard_key

VERIFY_WORKER_MEMORY = 48 << 20
NAMED_OBJECTS = 1000
#: Ids of lost chunks that are kept to name objects by; beyond, the count goes on.
KEPT_LOST = 100_000


@dataclass
class VerifyResult:
    """What a verification found. `damaged_shards`: lines for people; `lost_objects`: (run, path), the first of them;
    `wrong_objects` likewise, those whose chunks are whole and whose content is not what was recorded of it;
    `checked_bytes` and `checked_packs` tell how much data was read."""

    seconds: float = 0.0
    checked_bytes: int = 0
    checked_packs: int = 0
    packs: int = 0
    bad_cells: int = 0
    missing_shards: int = 0
    lost_chunks: int = 0
    lost_object_count: int = 0
    wrong_object_count: int = 0
    absent_backends: list[str] = field(default_factory=list)
    bad_copies: list[BadCopy] = field(default_factory=list)
    damaged_shards: list[str] = field(default_factory=list)
    lost_objects: list[tuple[uuid.UUID, bytes]] = field(default_factory=list)
    wrong_objects: list[tuple[uuid.UUID, bytes]] = field(default_factory=list)

    @property
    def repairable(self) -> bool:
        return bool(self.bad_cells or self.missing_shards or self.bad_copies or self.absent_backends)

    @property
    def exit_code(self) -> int:
        """0 whole, 3 bytes are lost, 4 damage that repair can mend."""
        if self.lost_chunks or self.lost_object_count or self.wrong_object_count:
            return 3
        return 4 if self.repairable else 0


class VerifyHome:
    """State of a verification of data in the supervisor."""

    def __init__(self, catalog: Catalog, workers: int, result: VerifyResult) -> None:
        self._catalog = catalog
        self._fan = FanHome(workers)
        self._result = result
        self._missing: dict[bytes, set[int]] = {}
        self.contents = ContentsHome(catalog, workers)
        self.lost_chunks: list[bytes] = []
        self.lost_packs: list[bytes] = []

    def plan_station(self, context: Context) -> Station:
        """Sends TASK, a pack each, then CONTENTS."""
        context.clock.switch(PLAN)
        for batch in packs(self._catalog, PACK_TASK_DTYPE):
            for number in range(len(batch.rows)):
                yield from self._fan.send(context, messages.TASK, Batch(batch.rows[number : number + 1], b""))
        yield from self.contents.send_all(context, self._fan)
        self._fan.end(context)

    def reports_station(self, context: Context) -> Station:
        """Takes DONE from the workers."""
        return self._fan.reports(context, FINDING_DTYPE, self._note_all)

    def _note_all(self, report: Batch, message: Message, worker: int) -> None:
        self._result.checked_packs += message.first
        for row in report.rows:
            if row["kind"] == WRONG_CONTENT:
                self.contents.note(row["chunk_id"].tobytes(), report.bytes_of(row, "reason"))
                continue
            self._note(row, report.bytes_of(row, "reason").decode(errors="replace"))

    def _note(self, row: np.void, reason: str) -> None:
        result, kind = self._result, int(row["kind"])
        shard = shard_key(uuid.UUID(bytes=row["pack_id"].tobytes()), int(row["shard"]))
        if kind == CHECKED:
            result.checked_bytes += int(row["count"])
        elif kind == BAD_CELLS:
            result.bad_cells += int(row["count"])
            result.damaged_shards.append(f"{shard}: {int(row['count'])} bad cells")
        elif kind == MISSING_SHARD:
            result.missing_shards += 1
            self._missing.setdefault(row["pack_id"].tobytes(), set()).add(int(row["shard"]))
            result.damaged_shards.append(f"{shard}: {reason}")
        elif kind == LOST_CHUNK:
            result.lost_chunks += 1
            if len(self.lost_chunks) < KEPT_LOST:
                self.lost_chunks.append(row["chunk_id"].tobytes())
        elif kind == LOST_PACK:
            self.lost_packs.append(row["pack_id"].tobytes())

    def lost_ranges(self) -> list[LostRange]:
        """What is lost of the packs whose directory is: the shards that are missing, or everything when rot did it."""
        found = []
        for batch in packs(self._catalog, PACK_TASK_DTYPE) if self.lost_packs else ():
            for row in batch.rows:
                pack_id = row["pack_id"].tobytes()
                if pack_id in self.lost_packs:
                    found.extend(_ranges(row, self._missing.get(pack_id, set())))
        return found


def verify(
    members: Members,
    log: Log,
    state: State,
    catalog: Catalog,
    *,
    data: bool = False,
    workers: int | None = None,
    memory: int = DEFAULT_MEMORY,
    inline: bool = False,
    on_tick: Callable[[npt.NDArray[np.uint64]], None] | None = None,
) -> VerifyResult:
    """Check records, manifests and the presence of shards; with `data`, every cell and every chunk. Raises what keeps
    it from looking; what it finds is in the result."""
    started = time.monotonic()
    result = VerifyResult(packs=sum(file.rows for file in state.files("packs")))
    result.absent_backends = [info.location for info in members.absent()]
    with SignalWatch() as signals:
        result.bad_copies = list(bad_copies(members, log, state))
        signals.check()
        if data:
            _verify_data(members, catalog, result, workers, memory, inline, signals, on_tick)
        else:
            _verify_presence(members, catalog, result)
    result.seconds = time.monotonic() - started
    return result


def _verify_data(
    members: Members,
    catalog: Catalog,
    result: VerifyResult,
    workers: int | None,
    memory: int,
    inline: bool,
    signals: SignalWatch,
    on_tick: Callable[[npt.NDArray[np.uint64]], None] | None,
) -> None:
    shape = fan_shape("verify", len(RESTORE_STAGES), VERIFY_WORKER_MEMORY, os.cpu_count() or 1, memory, workers)
    home = VerifyHome(catalog, shape.count, result)
    places = backend_places(members)
    specs = fan_workers(shape, verify_station, lambda index: VerifyOptions(index, places))
    run_stations(
        shape.layout(),
        specs,
        {"plan": home.plan_station, "reports": home.reports_station},
        inline=inline,
        signals=signals,
        cleanup=(str(catalog.temp_directory),),
        on_tick=on_tick,
    )
    if home.lost_chunks or home.lost_packs:
        _name_lost(catalog, home.lost_chunks, home.lost_ranges(), result)
    result.wrong_object_count, rows = home.contents.objects(NAMED_OBJECTS)
    result.wrong_objects = [(uuid.UUID(bytes=row["run"]), row["path"]) for row in rows]


def _ranges(pack: np.void, missing: set[int]) -> list[LostRange]:
    """What of a pack (PACK_TASK_DTYPE) is lost without the shards `missing`; all when those alone don't explain it."""
    k, m, length = int(pack["k"]), int(pack["m"]), int(pack["shard_length"])
    pack_id = pack["pack_id"].tobytes()
    if len(missing) <= m:
        return [LostRange(pack_id, 0, int(pack["payload"]))]
    return [LostRange(pack_id, index * length, (index + 1) * length) for index in sorted(missing) if index < k]


def _name_lost(catalog: Catalog, chunks: list[bytes], ranges: list[LostRange], result: VerifyResult) -> None:
    count, rows = affected_objects(catalog, chunks, ranges, NAMED_OBJECTS)
    result.lost_object_count = count
    result.lost_objects = [(uuid.UUID(bytes=row["run"]), row["path"]) for row in rows]


def _verify_presence(members: Members, catalog: Catalog, result: VerifyResult) -> None:
    """Whether each shard is there, on any backend, with its right length; packs that lack too many are lost."""
    lost: list[LostRange] = []
    for pack, missing in _missing_shards(members, catalog):
        pack_id = uuid.UUID(bytes=pack["pack_id"].tobytes())
        result.missing_shards += len(missing)
        result.damaged_shards.extend(f"{shard_key(pack_id, index)}: {reason}" for index, reason in missing.items())
        if len(missing) > int(pack["m"]):
            lost.extend(_ranges(pack, set(missing)))
    if lost:
        _name_lost(catalog, [], lost, result)


def _missing_shards(members: Members, catalog: Catalog) -> Iterator[tuple[np.void, dict[int, str]]]:
    """Packs (PACK_TASK_DTYPE) that lack shards, and why: shard → reason."""
    for batch in packs(catalog, PACK_TASK_DTYPE):
        for row in batch.rows:
            pack_id = uuid.UUID(bytes=row["pack_id"].tobytes())
            size = file_size(int(row["shard_length"]))
            missing = {}
            for index in range(int(row["k"]) + int(row["m"])):
                sizes = [
                    member.storage.size(key)
                    for member in members.present.values()
                    if member.storage.exists(key := shard_key(pack_id, index))
                ]
                if not sizes:
                    missing[index] = "it is on no backend that answers"
                elif size not in sizes:
                    missing[index] = f"it has {sizes[0]} bytes instead of {size}"
            if missing:
                yield row, missing
