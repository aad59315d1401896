"""The log: immutable records, one file an operation; its fold is the store's state.

A record is written after everything that it names, to every backend that answers, and is settled on
`Members.settle_count` of them. Records found on fewer (their writer died) are completed before anything builds on them.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from manifests.backends import BackendStorage
from manifests.config import StoreConfig
from manifests.errors import BackendError, CorruptRecord, KeyNotFound, NotFound, UnsupportedFormat
from manifests.ids import NIL, new_id
from manifests.store import (
    STORE_KEY,
    BackendInfo,
    FoundBackend,
    Member,
    Members,
    find_backends,
    hinted_places,
    probe,
)

FOLDER = "log"


def utc_now() -> str:
    """Wall time, RFC 3339 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class ManifestFile:
    """A Parquet file named by a log record. `blake3` covers the file, `slices` each MiB of it (16 bytes each), so
    that rotten copies mend one another."""

    table: str
    name: str
    size: int
    rows: int
    blake3: bytes
    slices: bytes

    @property
    def key(self) -> str:
        return f"manifests/{self.table}/{self.name}"

    def to_record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": self.size,
            "rows": self.rows,
            "blake3": self.blake3.hex(),
            "slices": self.slices.hex(),
        }

    @classmethod
    def from_record(cls, table: str, record: dict[str, Any]) -> ManifestFile:
        return cls(
            table,
            record["name"],
            int(record["size"]),
            int(record["rows"]),
            bytes.fromhex(record["blake3"]),
            bytes.fromhex(record["slices"]),
        )


@dataclass(frozen=True)
class LogRecord:
    """One operation: `kind` names it, `body` is all of its JSON."""

    record_id: uuid.UUID
    kind: str
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{FOLDER}/{self.record_id}.{self.kind}.json"

    def adds(self) -> list[ManifestFile]:
        return [
            ManifestFile.from_record(table, entry)
            for table, entries in self.body.get("adds", {}).items()
            for entry in entries
        ]


def make_record(record_id: uuid.UUID, kind: str, content: dict[str, Any], adds: Iterable[ManifestFile]) -> LogRecord:
    """A record ready to be written; `content` must be JSON."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for file in adds:
        tables.setdefault(file.table, []).append(file.to_record())
    body = {
        "format": fmt.FORMAT_NAME,
        "type": "log",
        "kind": kind,
        "id": str(record_id),
        "flags": {"incompat": 0, "ro_compat": 0, "compat": 0},
        "time": utc_now(),
        **content,
        "adds": tables,
    }
    return LogRecord(record_id, kind, body)


@dataclass(frozen=True)
class Run:
    """One committed ingest, as its log record tells. Sizes in bytes."""

    run_id: uuid.UUID
    time: str
    summary: dict[str, Any]

    @property
    def short(self) -> str:
        return str(self.run_id)


@dataclass
class State:
    """The fold of the log."""

    backends: list[BackendInfo] = field(default_factory=list)
    manifests: dict[str, dict[str, ManifestFile]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    newest: uuid.UUID = NIL

    def files(self, table: str) -> list[ManifestFile]:
        return list(self.manifests.get(table, {}).values())

    def find_run(self, name: str) -> Run:
        """The run called by its id, a unique prefix of it, or `latest`. Raises NotFound."""
        if not self.runs:
            raise NotFound("the store holds no run yet; make one with: drystone ingest SOURCE")
        if name in ("", "latest"):
            return self.runs[-1]
        found = [run for run in self.runs if str(run.run_id).startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFound(f"{name!r} names {len(found)} runs; write more of the id (see: drystone runs)")
        raise NotFound(f"no run {name!r}; see: drystone runs (a path is written RUN:PATH, as in latest:{name})")


def fold(records: Iterable[LogRecord]) -> State:
    """State after `records`, in any order: manifest files are all adds minus all replaces."""
    state, replaced = State(), set[str]()
    for record in sorted(records, key=lambda record: record.record_id.int):
        state.newest = max(state.newest, record.record_id, key=lambda identity: identity.int)
        for info in record.body.get("backends", ()):
            state.backends.append(BackendInfo.from_record(info))
        for file in record.adds():
            state.manifests.setdefault(file.table, {})[file.key] = file
        replaced.update(record.body.get("replaces", ()))
        if record.kind == "ingest":
            state.runs.append(Run(record.record_id, record.body["time"], record.body["run"]))
    for files in state.manifests.values():
        for key in replaced & files.keys():
            del files[key]
    return state


def _parse(key: str, data: bytes) -> LogRecord:
    body, _ = open_json(data)
    try:
        unknown = int(body["flags"]["incompat"]) & ~fmt.INCOMPAT_KNOWN
        if unknown:
            raise UnsupportedFormat(f"{key}: uses a feature unknown to this version ({unknown:#x})")
        return LogRecord(uuid.UUID(body["id"]), str(body["kind"]), body)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptRecord(f"{key}: the log record makes no sense: {error!r}") from error


@dataclass
class Log:
    """The records that were found, and on which backends each lies."""

    records: dict[str, LogRecord]
    holders: dict[str, set[int]]

    @classmethod
    def read(cls, members: Iterable[tuple[int, BackendStorage]]) -> Log:
        """All records on the backends given as (number, storage). Raises CorruptRecord naming a record that no
        backend holds whole: without it the state is unknown."""
        holders: dict[str, set[int]] = {}
        storages = dict(members)
        for number, storage in storages.items():
            for key in storage.list(FOLDER):
                if key.endswith(".json"):
                    holders.setdefault(key, set()).add(number)
        records = {}
        for key in sorted(holders):
            trouble: Exception | None = None
            for number in sorted(holders[key]):
                try:
                    records[key] = _parse(key, storages[number].read(key))
                    break
                except (CorruptRecord, BackendError) as error:
                    trouble = error
            else:
                raise CorruptRecord(f"no readable copy of {key}: {trouble}") from trouble
        return cls(records, holders)

    def complete(self, members: Members) -> int:
        """Copy records that lie on fewer than the settled number of backends to the others, manifests first.
        Returns how many were completed."""
        completed = 0
        for key, record in self.records.items():
            if len(self.holders[key]) >= members.settle_count:
                continue
            for file in record.adds():
                source = next(
                    (
                        data
                        for member in members.present.values()
                        if member.storage.exists(file.key)
                        and len(data := member.storage.read(file.key)) == file.size
                        and blake3(data).digest() == file.blake3
                    ),
                    None,
                )
                if source is None:
                    raise CorruptRecord(f"{file.key}: no whole copy is left to complete record {key} with")
                members.put_everywhere(file.key, [source])
            members.put_everywhere(key, [seal_json(record.body)])
            self.holders[key] = set(members.present)
            completed += 1
        return completed


def write_record(members: Members, record: LogRecord) -> int:
    """Write `record` to every backend that answers; the operation is acknowledged when this returns. Returns the
    copies; raises TooFewBackends when it could not be settled."""
    return members.put_everywhere(record.key, [seal_json(record.body)])


def initialise(members: Members) -> None:
    """Write the store's first record: its backends."""
    record = make_record(new_id(), "init", {"backends": [info.to_record() for info in members.all]}, [])
    write_record(members, record)


def _read_config(found: dict[uuid.UUID, FoundBackend]) -> StoreConfig:
    trouble: Exception | None = None
    for backend in found.values():
        where = f"{backend.storage.location}/{STORE_KEY}"
        try:
            return StoreConfig.from_record(open_json(backend.storage.read(STORE_KEY))[0], where)
        except (BackendError, CorruptRecord) as error:
            trouble = error
    raise CorruptRecord(f"no readable {STORE_KEY}: {trouble}") from trouble


def open_store(location: str | Path) -> tuple[Members, Log, State]:
    """Find a store from its parent directory or any one backend: its members, its log and the log's fold.
    Raises NotFound, UsageError, UnsupportedFormat, CorruptRecord."""
    found = find_backends(location)
    config = _read_config(found)
    tried: set[Path] = set()
    while True:
        numbered = dict(enumerate(backend.storage for backend in found.values()))
        state = fold(Log.read(numbered.items()).records.values())
        if not state.backends:
            raise KeyNotFound(f"{location}: no log record names the store's backends")
        known = {info.backend_id: info for info in state.backends}
        here = [(known[key], Path(backend.storage.location)) for key, backend in found.items() if key in known]
        missing = [info for info in state.backends if info.backend_id not in found]
        places = {place for info in missing for place in hinted_places(info, here)} - tried
        tried |= places
        fresh = [backend for place in sorted(places) if (backend := probe(place)) and backend.backend_id in known]
        if not fresh:
            break
        found.update((backend.backend_id, backend) for backend in fresh if backend.store_id == config.store_id)
    present = {
        info.number: Member(info, found[info.backend_id].storage) for info in state.backends if info.backend_id in found
    }
    log = Log.read((number, member.storage) for number, member in present.items())
    return Members(config, state.backends, present), log, fold(log.records.values())
