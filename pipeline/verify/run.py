"""One verification from beginning to end."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from manifests.catalog import Catalog
from manifests.columns import PLAN_DTYPE, Batch
from manifests.contents import COVERED_BLOCKS, wrong_runs
from manifests.copies import OtherPlaces
from manifests.counts import counted
from manifests.errors import BackendError, DrystoneError, KeyNotFound
from manifests.ids import NIL
from manifests.inspect import BadCopy, bad_copies, chunks_of_pack, packs
from manifests.log import Log, State
from manifests.lost import BadPlace, Losses, LostRange
from manifests.scrubs import ShardFinding
from manifests.senseless import senseless_objects
from manifests.store import Members
from pipeline import messages
from pipeline.arena import Message
from pipeline.budget import DEFAULT_MEMORY, DUCKDB_MEMORY, available_cores
from pipeline.fan import FanHome, fan_workers
from pipeline.handles import FdHandle
from pipeline.restore.run import backend_places
from pipeline.restore.work import BackendPlaces, pack_place
from pipeline.runner import run_stations
from pipeline.shardfiles import NOWHERE
from pipeline.signalwatch import QueryWatch, SignalWatch
from pipeline.standing import standing
from pipeline.station import Context, Station, Until
from pipeline.supervisor import WorkerSpec
from pipeline.topology import PLAN, RESTORE_STAGES, SMALL_SLOT, VerifyShape, fan_shape
from pipeline.verify.contents import ContentsHome
from pipeline.verify.findings import (
    BAD_CELLS,
    CHECKED,
    FINDING_DTYPE,
    FLAWED_SHARD,
    LOST_CHUNK,
    LOST_DIRECTORY,
    LOST_PACK,
    LOST_PLACE,
    MISLISTED,
    MISSING_SHARD,
    WRONG_CONTENT,
)
from pipeline.verify.hashing import HashOptions, hash_station
from pipeline.verify.work import PACK_TASK_DTYPE, VerifyOptions, verify_station
from stages.shard import data_offset, file_size, shard_key

VERIFY_WORKER_MEMORY = 32 << 20
NAMED_OBJECTS = 1000
_NO_BLOCKS = np.zeros(0, np.uint32)
#: What tells where a pack's shards lie, and how long they are.
_PLACE_DTYPE = np.dtype([(name, PACK_TASK_DTYPE[name]) for name in ("pack_id", "k", "m", "payload", "shard_length")])
#: Planned chunks in a task.
PLAN_ROWS = (SMALL_SLOT - 4 * COVERED_BLOCKS) // PLAN_DTYPE.itemsize - 1


@dataclass
class VerifyResult:
    """What a verification found. `flawed_shards`: shards with damage beside their cells; `lost_directories`: packs of
    which only the manifests tell what lies in them; `mislisted_packs`: packs of which they tell something else than the
    directory; `damaged_shards`: lines for people; `lost_objects`: (run, path), the first of them; `wrong_objects`
    likewise, those whose chunks are whole and whose content is not what was recorded of it, or of which the manifests
    make no sense, in the runs `wrong_runs`: `wrong_reasons` tells why;
    `checked_bytes` and `checked_packs` tell how much data was read; `lost_chunks`: those of which no other pack has a
    copy; `shard_findings` and `unreadable_packs` (ids, of packs that did not give back all their chunks): for the table
    `scrubs`; `troubles`: what ails backends of which reads failed; `unnoted`: why the store has no note of this
    verification."""

    seconds: float = 0.0
    checked_bytes: int = 0
    checked_packs: int = 0
    packs: int = 0
    bad_cells: int = 0
    missing_shards: int = 0
    flawed_shards: int = 0
    lost_directories: int = 0
    mislisted_packs: int = 0
    lost_chunks: int = 0
    lost_object_count: int = 0
    wrong_object_count: int = 0
    lost_manifests: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    absent_backends: list[str] = field(default_factory=list)
    bad_copies: list[BadCopy] = field(default_factory=list)
    damaged_shards: list[str] = field(default_factory=list)
    lost_objects: list[tuple[uuid.UUID, bytes]] = field(default_factory=list)
    wrong_objects: list[tuple[uuid.UUID, bytes]] = field(default_factory=list)
    wrong_reasons: dict[tuple[uuid.UUID, bytes], str] = field(default_factory=dict)
    wrong_runs: list[uuid.UUID] = field(default_factory=list)
    shard_findings: list[ShardFinding] = field(default_factory=list)
    unreadable_packs: set[bytes] = field(default_factory=set)
    unnoted: str = ""

    @property
    def repairable(self) -> bool:
        damaged = self.bad_cells or self.missing_shards or self.flawed_shards
        contradicted = self.lost_directories or self.mislisted_packs or self.unreadable_packs
        return bool(damaged or contradicted or self.bad_copies or self.absent_backends or self.troubles)

    @property
    def exit_code(self) -> int:
        """0 whole, 3 bytes are lost, 4 damage that repair can mend."""
        if self.lost_chunks or self.lost_object_count or self.wrong_object_count or self.lost_manifests:
            return 3
        return 4 if self.repairable else 0


class VerifyHome:
    """State of a verification of data in the supervisor."""

    def __init__(self, catalog: Catalog, shape: VerifyShape, result: VerifyResult, others: OtherPlaces) -> None:
        self._catalog = catalog
        self._fan = FanHome(shape.count, others=shape.hashers)
        self._result = result
        self._unlisted: list[bytes] = []
        self._senders = 2 + shape.hashers
        self._hashers = shape.hashers
        self.contents = ContentsHome(catalog, shape.hashers, others)
        self.losses = Losses(catalog)
        self.lost_packs: list[bytes] = []
        self.mislisted: list[bytes] = []

    def stations(self) -> dict[str, Callable[[Context], Station]]:
        """All of them, by name; those that send large contents come first."""
        large = {f"large-{hasher}": partial(self._large_station, hasher=hasher) for hasher in range(self._hashers)}
        return {**large, "packs": self._packs_station, "small": self._small_station, "reports": self._reports_station}

    def _large_station(self, context: Context, hasher: int) -> Station:
        """Sends PIECES for one hasher."""
        context.clock.switch(PLAN)
        yield from self.contents.send_large(context, self._fan, hasher)
        self._end(context)

    def _small_station(self, context: Context) -> Station:
        """Sends CONTENTS."""
        context.clock.switch(PLAN)
        yield from self.contents.send_small(context, self._fan)
        self._end(context)

    def troubles(self) -> list[str]:
        """What ails backends that were read."""
        return self._fan.troubles()

    def _packs_station(self, context: Context) -> Station:
        """Sends TASK, a pack each, then PLAN for those whose directory can't be read, or tells something else than the
        manifests, by which a restore goes."""
        context.clock.switch(PLAN)
        sent, plan = 0, self.contents.plan
        for batch in packs(self._catalog, PACK_TASK_DTYPE):
            listed = plan.covered([row.tobytes() for row in batch.rows["pack_id"]])
            for number in range(len(batch.rows)):
                row = batch.rows[number : number + 1]
                blocks = listed.get(row["pack_id"].tobytes(), _NO_BLOCKS).tobytes()
                yield Until(lambda: self._fan.least_load() < self.contents.ahead)
                yield from self._fan.send(context, messages.TASK, Batch(row, blocks))
                sent += 1
        yield Until(lambda: self._result.checked_packs == sent)
        for pack_id in self._unlisted:
            covered = plan.covered([pack_id]).get(pack_id, _NO_BLOCKS).tobytes()
            for batch in chunks_of_pack(self._catalog, pack_id):
                for start in range(0, len(batch.rows), PLAN_ROWS):
                    rows = batch.rows[start : start + PLAN_ROWS]
                    yield from self._fan.send(context, messages.PLAN, Batch(rows, covered))
        self._end(context)

    def _end(self, context: Context) -> None:
        """One of those that send tasks has no more."""
        self._senders -= 1
        if not self._senders:
            self._fan.end(context)

    def _reports_station(self, context: Context) -> Station:
        """Takes DONE from the workers."""
        return self._fan.reports(context, FINDING_DTYPE, self._note_all)

    def _note_all(self, report: Batch, message: Message, worker: int) -> None:
        for row in report.rows:
            if row["kind"] == WRONG_CONTENT:
                self.contents.note(row["chunk_id"].tobytes(), report.bytes_of(row, "reason"))
                continue
            self._note(row, report.bytes_of(row, "reason").decode(errors="replace"))

    def _note(self, row: np.void, reason: str) -> None:
        result, kind, pack_id = self._result, int(row["kind"]), row["pack_id"].tobytes()
        shard = shard_key(uuid.UUID(bytes=pack_id), int(row["shard"]))
        if kind == CHECKED:
            result.checked_bytes += int(row["count"])
            result.checked_packs += pack_id != NIL.bytes
        elif kind == BAD_CELLS:
            result.bad_cells += int(row["count"])
            result.shard_findings.append(ShardFinding(pack_id, int(row["shard"]), bad_cells=int(row["count"])))
            result.damaged_shards.append(f"{shard}: {counted(int(row['count']), 'bad cell')}: {reason}")
        elif kind == MISSING_SHARD:
            result.missing_shards += 1
            # One that can't be opened is listed all the same, so the note must name the backend that it is bad on.
            result.shard_findings.append(ShardFinding(pack_id, int(row["shard"]), missing=reason == NOWHERE))
            result.damaged_shards.append(f"{shard}: {reason}")
        elif kind == FLAWED_SHARD:
            result.flawed_shards += 1
            result.shard_findings.append(ShardFinding(pack_id, int(row["shard"])))
            result.damaged_shards.append(f"{shard}: {reason}")
        elif kind in (LOST_CHUNK, LOST_PLACE):
            block, offset, length = (int(row[name]) for name in ("block", "offset", "length"))
            chunk_id = row["chunk_id"].tobytes()
            self.losses.add(BadPlace(pack_id, chunk_id, block, offset, length, kind == LOST_PLACE))
        elif kind == LOST_DIRECTORY:
            result.lost_directories += 1
            result.damaged_shards.append(f"pack {uuid.UUID(bytes=pack_id)}: its directory is lost: {reason}")
            self._unlisted.append(pack_id)
        elif kind == MISLISTED:
            result.mislisted_packs += 1
            self.mislisted.append(pack_id)
            result.damaged_shards.append(
                f"pack {uuid.UUID(bytes=pack_id)}: the manifests place its chunks elsewhere than its own directory does"
            )
            self._unlisted.append(pack_id)
        elif kind == LOST_PACK:
            result.damaged_shards.append(reason)
            self.lost_packs.append(pack_id)


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
    with (
        standing("nothing of it is noted in the store"),
        SignalWatch() as signals,
        QueryWatch(signals, catalog.stop, catalog.go_on) as queries,
    ):
        result.bad_copies = list(bad_copies(members, log, state, signals.check))
        for copy in result.bad_copies:
            catalog.replicas.forget(copy.backend, copy.key)
        signals.check()
        if data:
            _verify_data(members, catalog, result, workers, memory, inline, signals, queries, on_tick)
        else:
            _verify_presence(members, catalog, result, signals)
    result.lost_manifests = [*catalog.lost, *(catalog.short_runs() if data else [])]
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
    queries: QueryWatch,
    on_tick: Callable[[npt.NDArray[np.uint64]], None] | None,
) -> None:
    cores = available_cores()
    shape = fan_shape(VerifyShape, "verify", len(RESTORE_STAGES), VERIFY_WORKER_MEMORY, cores, memory, workers)
    catalog.limit_memory(DUCKDB_MEMORY + memory - shape.memory)  # what is left of it
    with OtherPlaces() as others:
        home = VerifyHome(catalog, shape, result, others)
        run_stations(
            shape.layout().with_meters(members.numbers),
            _workers(shape, backend_places(members), FdHandle(others.fd)),
            home.stations(),
            inline=inline,
            signals=signals,
            cleanup=(partial(shutil.rmtree, catalog.temp_directory, ignore_errors=True),),
            on_tick=on_tick,
            queries=queries,
        )
    result.troubles = home.troubles()
    home.losses.add_packs(home.lost_packs)
    _name_lost(home.losses, home.mislisted, result, unplaced=True)
    catalog.note_unreadable(list(result.unreadable_packs), is_loss=result.lost_chunks > 0, anew=True)
    count, senseless = senseless_objects(catalog, NAMED_OBJECTS)
    wrong, rows = home.contents.objects(NAMED_OBJECTS)
    result.wrong_object_count = count + wrong
    result.wrong_runs = wrong_runs(catalog)
    result.wrong_reasons = {(each.run, each.path): each.reason for each in senseless}
    result.wrong_objects = [(each.run, each.path) for each in senseless]
    result.wrong_objects += [(uuid.UUID(bytes=row["run"]), row["path"]) for row in rows]
    del result.wrong_objects[NAMED_OBJECTS:]


def _workers(shape: VerifyShape, places: BackendPlaces, other_places: FdHandle) -> list[WorkerSpec]:
    readers = [
        replace(
            spec,
            rings=(*spec.rings, *(f"raw/{index}/{hasher}" for hasher in range(shape.hashers))),
            pools=(*spec.pools, f"raw/{index}"),
        )
        for index, spec in enumerate(
            fan_workers(shape, verify_station, lambda index: VerifyOptions(index, shape.hashers, places, other_places))
        )
    ]
    hashers = [
        WorkerSpec(
            name=f"hash-{hasher}",
            station=hash_station,
            options=HashOptions(hasher, shape.count),
            rings=(f"reports/{shape.count + hasher}", *(f"raw/{index}/{hasher}" for index in range(shape.count))),
            pools=(f"reports/{shape.count + hasher}", *(f"raw/{index}" for index in range(shape.count))),
        )
        for hasher in range(shape.hashers)
    ]
    return readers + hashers


def _ranges(pack: np.void, missing: set[int]) -> list[LostRange]:
    """What of a pack (PACK_TASK_DTYPE) is lost without the shards `missing`, too many to be decoded."""
    k, length, pack_id = int(pack["k"]), int(pack["shard_length"]), pack["pack_id"].tobytes()
    return [LostRange(pack_id, index * length, (index + 1) * length) for index in sorted(missing) if index < k]


def _name_lost(losses: Losses, mislisted: list[bytes], result: VerifyResult, *, unplaced: bool) -> None:
    """Put what is lost with the places that failed into the result."""
    result.lost_chunks = losses.judge(unplaced=unplaced)
    result.unreadable_packs |= losses.unreadable_packs(mislisted)
    count, rows = losses.objects(NAMED_OBJECTS)
    result.lost_object_count = count
    result.lost_objects = [(uuid.UUID(bytes=row["run"]), row["path"]) for row in rows]


def _verify_presence(members: Members, catalog: Catalog, result: VerifyResult, signals: SignalWatch) -> None:
    """Whether each shard is there, on any backend, with its right length; packs that lack too many are lost."""
    lost: list[LostRange] = []
    senseless: list[bytes] = []
    for batch in packs(catalog, _PLACE_DTYPE):
        for row in batch.rows:
            signals.check()
            try:
                place = pack_place(row)
            except DrystoneError as error:
                result.damaged_shards.append(str(error))
                senseless.append(row["pack_id"].tobytes())
                continue
            missing = set()
            for index in range(place.scheme.total_shards):
                key = shard_key(place.pack_id, index)
                is_there, reason = _look_at(members, key, place.shard_length)
                if reason:
                    result.damaged_shards.append(f"{key}: {reason}")
                    result.flawed_shards += is_there
                if not is_there:
                    missing.add(index)
            result.missing_shards += len(missing)
            if len(missing) > place.scheme.m:
                lost.extend(_ranges(row, missing))
                result.unreadable_packs.add(row["pack_id"].tobytes())
    if lost or senseless:
        losses = Losses(catalog)
        losses.add_noted(is_believed=False)
        losses.add_ranges(lost)
        losses.add_packs(senseless)
        _name_lost(losses, [], result, unplaced=False)
        catalog.note_unreadable(list(result.unreadable_packs), is_loss=result.lost_chunks > 0, anew=False)


def _look_at(members: Members, key: str, shard_length: int) -> tuple[bool, str]:
    """Whether a backend holds anything of the shard `key`, and what is wrong with it; nothing where one holds a file of
    the right length."""
    is_there, reasons = False, []
    for member in members.present.values():
        try:
            found = member.storage.size(key)
        except KeyNotFound:
            continue
        except BackendError as error:
            reasons.append(str(error))
            continue
        if found == file_size(shard_length):
            return True, ""
        is_there |= found > data_offset(shard_length)
        reasons.append(f"it has {found} bytes instead of {file_size(shard_length)}")
    return is_there, "; ".join(reasons) or "it is on no backend that answers"


def verification_facts(result: VerifyResult, data: bool) -> dict[str, int | bool | float | list[str]]:
    """What the log keeps of a verification."""
    return {
        "data": data,
        "packs": result.packs,
        "checked_bytes": result.checked_bytes,
        "bad_cells": result.bad_cells,
        "missing_shards": result.missing_shards,
        "flawed_shards": result.flawed_shards,
        "bad_copies": len(result.bad_copies),
        "lost_objects": result.lost_object_count,
        "wrong_objects": result.wrong_object_count,
        "wrong_runs": [str(run) for run in result.wrong_runs],
        "unreadable_packs": len(result.unreadable_packs),
        "exit_code": result.exit_code,
        "seconds": round(result.seconds, 3),
    }
