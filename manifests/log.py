"""The log: immutable records, one file an operation; its fold is the store's state.

A record is written after everything that it names, to every backend that answers, and is settled on
`Members.settle_count` of them. Records found on fewer (their writer died) are completed before anything builds on them.
"""

from __future__ import annotations

import datetime
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from blake3 import blake3

from manifests import format as fmt
from manifests.armour import mend_json, open_json, seal_json
from manifests.backends import BackendStorage
from manifests.config import DEFAULT_INDEX, INDEX_KINDS, text, whole_number
from manifests.counts import counted
from manifests.errors import (
    BackendError,
    BackendFull,
    CorruptRecord,
    TooFewBackends,
    Unsettled,
    UnsupportedFormat,
)
from manifests.ids import NIL, new_id, short_id
from manifests.jsontext import as_text
from manifests.limits import LimitReached
from manifests.store import BackendInfo, Members, adding, location_of

FOLDER = "log"
#: Keys of records; other files in the folder are nobody's.
RECORD_KEY = re.compile(r"log/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[a-z]+\.json")
#: Names that stay in their folder.
_PLAIN = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z_.-]*")


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
        """The file of an entry. Raises KeyError, TypeError, ValueError on nonsense."""
        name, size, rows = text(record["name"]), whole_number(record["size"]), whole_number(record["rows"])
        digest, slices = bytes.fromhex(text(record["blake3"])), bytes.fromhex(record["slices"])
        if not (_PLAIN.fullmatch(table) and _PLAIN.fullmatch(name)):
            raise ValueError(f"a manifest file called {table}/{name}")
        if size < 0 or rows < 0 or len(digest) != 32 or len(slices) != -(-size // fmt.SLICE_SIZE) * fmt.SLICE_DIGEST:
            raise ValueError(f"the numbers of {table}/{name} do not add up")
        return cls(table, name, size, rows, digest, slices)


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
        return self._adds

    @cached_property
    def _adds(self) -> list[ManifestFile]:
        return [
            ManifestFile.from_record(table, entry)
            for table, entries in self.body.get("adds", {}).items()
            for entry in entries
        ]


def make_record(
    record_id: uuid.UUID, kind: str, content: dict[str, Any], adds: Iterable[ManifestFile], incompat: int = 0
) -> LogRecord:
    """A record ready to be written; `incompat`: flags of what a reader must know. `content` must be JSON. What is no
    text in it (bytes of names that are not UTF-8, as Python decodes them) is escaped, for no other program could read
    the record."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for file in adds:
        tables.setdefault(file.table, []).append(file.to_record())
    body = {
        "format": fmt.FORMAT_NAME,
        "type": "log",
        "kind": kind,
        "id": str(record_id),
        "flags": {"incompat": incompat, "ro_compat": 0, "compat": 0},
        "time": utc_now(),
        **as_text(content),
        "adds": tables,
    }
    return LogRecord(record_id, kind, body)


@dataclass(frozen=True)
class Run:
    """One committed ingest, as its log record tells. Somebody else may have written that: the properties have the types
    that they should, values of `summary` may not. Sizes in bytes."""

    run_id: uuid.UUID
    time: str
    summary: dict[str, Any]

    @property
    def short(self) -> str:
        """Its id as people see it."""
        return short_id(self.run_id)

    @property
    def host(self) -> str:
        host = self.summary.get("host")
        return host if isinstance(host, str) else ""

    @property
    def sources(self) -> list[str]:
        """Where each source was, as text; of streams what they came from."""
        return self._texts("sources")

    @property
    def names(self) -> list[str]:
        """What the sources are called in the archive."""
        return self._texts("names")

    @property
    def tags(self) -> dict[str, str]:
        tags = self.summary.get("tags")
        return {str(key): str(value) for key, value in tags.items()} if isinstance(tags, dict) else {}

    @property
    def about(self) -> str:
        """What the run is of, and when it was, for people."""
        streams = any(not source.startswith("/") for source in self.sources)
        of = " ".join(self.names if streams else self.sources)
        return f"{of} on {self.host}, {self.time}"

    def _texts(self, name: str) -> list[str]:
        values = self.summary.get(name)
        return list(map(str, values)) if isinstance(values, list) else []


@dataclass(frozen=True)
class Verification:
    """What a verification noted of itself. `data`: whether it read all bytes; `exit_code`: what it came to; `adds`: the
    manifest files with what it found; `unreadable`: packs of which it could not give back all chunks; `wrong`: objects
    that were not what was recorded of them, in the runs `wrong_runs`, which are none where it did not note them."""

    record_id: uuid.UUID
    time: str
    data: bool
    exit_code: int
    adds: tuple[ManifestFile, ...]
    unreadable: int = 0
    wrong: int = 0
    wrong_runs: frozenset[str] = frozenset()

    @property
    def found_loss(self) -> bool:
        return self.exit_code == 3


@dataclass
class State:
    """The fold of the log. `index`: the kind of dedupe index that ingests use; `next_number`: for the next backend that
    joins; numbers and ids of `removed` ones are not used again; `left`: backends that were members and are removed;
    `deleted`: id of a deleted object → when, RFC 3339; `deletions`: the records that deleted something;
    `deleted_bytes`: of the chunks that they deleted; `renamed`: of a copy, ids that its backends had → the record by
    which they got others; `batches`: what was put or received, as the records tell; `joined`: id of a backend → when
    the first record that names it was written, as it tells."""

    backends: list[BackendInfo] = field(default_factory=list)
    removed: set[uuid.UUID] = field(default_factory=set)
    left: list[BackendInfo] = field(default_factory=list)
    next_number: int = 0
    verifications: list[Verification] = field(default_factory=list)
    manifests: dict[str, dict[str, ManifestFile]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    newest: uuid.UUID = NIL
    index: str = DEFAULT_INDEX
    deleted: dict[str, str] = field(default_factory=dict)
    deletions: set[uuid.UUID] = field(default_factory=set)
    deleted_bytes: int = 0
    renamed: dict[uuid.UUID, uuid.UUID] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    joined: dict[uuid.UUID, str] = field(default_factory=dict)

    def files(self, table: str) -> list[ManifestFile]:
        return list(self.manifests.get(table, {}).values())

    def noted(self) -> list[Verification]:
        """The verifications whose notes of unreadable packs count: the last one that read all bytes, and the last one
        of all, which may have missed shards since. This is the rule."""
        last_data = next((each for each in reversed(self.verifications) if each.data), None)
        last = self.verifications[-1] if self.verifications else None
        noted = [last_data] if last is last_data else [last_data, last]
        return [each for each in noted if each is not None and each.unreadable]

    def unreadable_notes(self) -> list[ManifestFile]:
        """The files that name the packs which are known to be unreadable."""
        return [file for each in self.noted() for file in each.adds]

    def known_short(self) -> bool:
        """Whether the log knows of packs that lack shards: the last verification found damage, or some could not be
        written since the last one that found none. This is the rule."""
        last = self.verifications[-1] if self.verifications else None
        if last is not None and last.exit_code:
            return True
        since = [
            run.summary for run in self.runs if last is None or run.time > last.time or run.run_id > last.record_id
        ]
        return any(summary.get("missing_shards") for summary in [*since, *self.batches])


def fold(records: Iterable[LogRecord]) -> State:
    """State after `records`, in any order: manifest files are all adds minus all replaces; backends are all that were
    ever added, as the last record tells of them, minus those that were removed."""
    state, replaced = State(), set[str]()
    backends = dict[uuid.UUID, BackendInfo]()
    for record in sorted(records, key=lambda record: record.record_id.int):
        state.newest = max(state.newest, record.record_id, key=lambda identity: identity.int)
        for info in record.body.get("backends", ()):
            known = BackendInfo.from_record(info)
            _join(backends, known)
            state.joined.setdefault(known.backend_id, str(record.body.get("time")))
        for place in record.body.get("places", ()):
            _move(backends, place)
        for info in record.body.get("identities", ()):
            old = uuid.UUID(text(info["from"]))
            backends.pop(old, None)
            state.renamed[old] = record.record_id
            backends[uuid.UUID(text(info["id"]))] = BackendInfo.from_record(info)
        state.removed.update(uuid.UUID(text(identity)) for identity in record.body.get("removes", ()))
        for file in record.adds():
            state.manifests.setdefault(file.table, {})[file.key] = file
        replaced.update(map(text, record.body.get("replaces", ())))
        # A kind of a newer version is read as the default: what an index is made of concerns nobody else.
        kind = text(record.body.get("index", state.index))
        state.index = kind if kind in INDEX_KINDS else DEFAULT_INDEX
        if record.kind == "ingest":
            state.runs.append(Run(record.record_id, text(record.body["time"]), dict(record.body["run"])))
        if record.kind in ("put", "receive"):
            state.batches.append(dict(record.body[record.kind]))
        if record.kind == "delete":
            state.deletions.add(record.record_id)
            state.deleted_bytes += whole_number(record.body.get("bytes", 0))
            state.deleted.update(dict.fromkeys(map(text, record.body["objects"]), text(record.body["time"])))
        if record.kind == "scrub":
            state.verifications.append(_verification(record))
    state.next_number = 1 + max((info.number for info in backends.values()), default=-1)
    state.removed.update(state.renamed)
    infos = sorted(backends.values(), key=lambda info: info.number)
    state.backends = [info for info in infos if info.backend_id not in state.removed]
    state.left = [info for info in infos if info.backend_id in state.removed]
    for files in state.manifests.values():
        for key in replaced & files.keys():
            del files[key]
    return state


def _join(backends: dict[uuid.UUID, BackendInfo], info: BackendInfo) -> None:
    """Note what a record tells of a backend. Its number stays what it was; of two that joined at once and took the same
    number, the later one gets the next that is free."""
    known = backends.get(info.backend_id)
    taken = {each.number for each in backends.values()}
    if known is not None:
        info = replace(info, number=known.number)
    elif info.number in taken:
        info = replace(info, number=max(taken) + 1)
    backends[info.backend_id] = info


def _move(backends: dict[uuid.UUID, BackendInfo], place: dict[str, Any]) -> None:
    """Note where a record of kind `move` found a backend; one that is no member is of no account."""
    identity, location, domain = uuid.UUID(text(place["id"])), location_of(place), text(place["domain"])
    known = backends.get(identity)
    if known is not None:
        backends[identity] = replace(known, location=location, domain=domain)


def _verification(record: LogRecord) -> Verification:
    scrub = record.body["scrub"]
    data = scrub["data"]
    if not isinstance(data, bool):
        raise TypeError(f"data is {data!r}")
    return Verification(
        record.record_id,
        text(record.body["time"]),
        data,
        whole_number(scrub["exit_code"]),
        tuple(record.adds()),
        whole_number(scrub.get("unreadable_packs", 0)),
        whole_number(scrub.get("wrong_objects", 0)),
        frozenset(map(text, scrub.get("wrong_runs", []))),
    )


def _parse(key: str, body: dict[str, Any]) -> LogRecord:
    """The record of `key`, with all that the state is made of looked at. Raises CorruptRecord, UnsupportedFormat."""
    try:
        unknown = whole_number(body["flags"]["incompat"]) & ~fmt.INCOMPAT_KNOWN
        if unknown:
            raise UnsupportedFormat(f"{key}: uses a feature unknown to this version ({unknown:#x})")
        record = LogRecord(uuid.UUID(text(body["id"])), text(body["kind"]), body)
        if record.key != key:
            raise CorruptRecord(f"{key} holds another record: {record.key}")
        fold([record])
        return record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptRecord(f"{key}: the log record makes no sense: {error!r}") from error


@dataclass
class Log:
    """The records that were found, and on which backends each lies. `lost`: records that no backend holds whole, and
    why; `unread`: those of them of which no copy could be read at all, so that nothing says that they are damaged;
    `unlisted`: backends whose records could not be listed; `healed` counts records of which a copy was rotten."""

    records: dict[str, LogRecord]
    holders: dict[str, set[int]]
    lost: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    unlisted: dict[int, str] = field(default_factory=dict)
    healed: int = 0

    @classmethod
    def read(cls, members: Iterable[tuple[int, BackendStorage]]) -> Log:
        """All records on the backends given as (number, storage). Raises CorruptRecord naming a record that no
        backend holds whole: without it the state is unknown."""
        log = cls.gather(members)
        if log.lost:
            raise CorruptRecord(
                f"{counted(len(log.lost), 'log record')} {log.ailment()} on every backend that answers, so what the "
                f"store holds is not known: {'; '.join(log.lost.values())}. {log.advice()}"
            )
        return log

    def ailment(self) -> str:
        """What is the matter with the records that are lost."""
        damaged = "is damaged beyond healing" if len(self.lost) == 1 else "are damaged beyond healing"
        return "can't be read" if self.lost.keys() <= self.unread else damaged

    def advice(self) -> str:
        if self.lost.keys() <= self.unread:
            return f"Let this user (number {os.geteuid()}) read them, or attach the backends that are absent"
        return "Attach the backends that are absent, or put back a copy of the file"

    @classmethod
    def gather(cls, members: Iterable[tuple[int, BackendStorage]]) -> Log:
        """The records that can be read on the backends given as (number, storage)."""
        log, storages = cls({}, {}), dict(members)
        for number, storage in storages.items():
            try:
                keys = [key for key in storage.list(FOLDER) if RECORD_KEY.fullmatch(key)]
            except BackendError as error:
                log.unlisted[number] = str(error)
                continue
            for key in keys:
                log.holders.setdefault(key, set()).add(number)
        for key in sorted(log.holders):
            log._read_one(key, [storages[number] for number in sorted(log.holders[key])])
        return log

    def _read_one(self, key: str, storages: list[BackendStorage]) -> None:
        """Take a record from the first copy that is whole or heals, or out of all copies together."""
        copies: list[bytes] = []
        reasons: list[str] = []
        was_read = False
        for storage in storages:
            try:
                sealed = storage.read(key)
                was_read = True
                try:
                    body, healed = open_json(sealed)
                except CorruptRecord:
                    copies.append(sealed)
                    raise
                self.records[key] = _parse(key, body)
                self.healed += healed or bool(reasons)
                self.lost.pop(key, None)
                return
            except (CorruptRecord, BackendError) as error:
                reasons.append(f"{storage.location}/{key}: {error}" if was_read else str(error))
        if not was_read:
            self.lost[key] = "; ".join(reasons)
            self.unread.add(key)
            return
        try:
            self.records[key] = _parse(key, mend_json(copies))
            self.healed += 1
            self.lost.pop(key, None)
        except CorruptRecord as error:
            self.lost[key] = "; ".join([*reasons, str(error)])

    def follow(self, members: Members) -> list[LogRecord]:
        """Read the records that others wrote since this log was read. A backend that can't be listed is dropped. Raises
        CorruptRecord, as `read`."""
        seen = set(self.records)
        for number, keys in list_records(members).items():
            for key in keys:
                self.holders.setdefault(key, set()).add(number)
        for key in sorted(self.holders.keys() - seen):
            self._read_one(key, [m.storage for m in members.present.values() if m.number in self.holders[key]])
        if self.lost:
            raise CorruptRecord(
                f"{counted(len(self.lost), 'log record')} {self.ailment()} on every backend that answers: "
                f"{'; '.join(self.lost.values())}. {self.advice()}"
            )
        return [record for key, record in self.records.items() if key not in seen]

    def note(self, record: LogRecord, members: Members) -> None:
        """Add a record that this process has written to every member."""
        self.records[record.key] = record
        self.holders[record.key] = {member.number for member in members.writable}

    def behind(self, members: Members) -> list[str]:
        """Which backends lack records that others hold, as sentences: one was away when they were written, or is an old
        copy of itself. Then it lacks shards, too, of which no record tells."""
        found = []
        for member in members.writable:
            lacking = sum(member.number not in holders for holders in self.holders.values())
            if lacking:
                place = member.storage.location
                found.append(
                    f"{place} lacks {counted(lacking, 'record')} of the log: it was away, or is an old copy of itself; "
                    f"to give it what it lacks: {adding(place)}"
                )
        return found

    def complete(self, members: Members) -> int:
        """Copy records that lie on fewer than the settled number of backends to the others, manifests first.
        Returns how many were completed."""
        completed = 0
        for key, record in self.records.items():
            if len(self.holders[key]) >= members.settle_count:
                continue
            for file in record.adds():
                source = whole_copy(members, file)
                if source is None:
                    raise CorruptRecord(f"{file.key}: no whole copy is left to complete record {key} with")
                members.put_everywhere(file.key, [source])
            members.put_everywhere(key, [seal_json(record.body)])
            self.holders[key] = set(members.present)
            completed += 1
        return completed


def list_records(members: Members) -> dict[int, list[str]]:
    """The keys of the records on each backend that answers, by number; one that can't be listed is dropped."""
    found = {}
    for member in list(members.present.values()):
        try:
            found[member.number] = [key for key in member.storage.list(FOLDER) if RECORD_KEY.fullmatch(key)]
        except BackendError as error:
            members.drop(member.number, str(error))
    return found


def whole_copy(members: Members, file: ManifestFile) -> bytes | None:
    """The bytes of a manifest file as the log names it, or None where no backend that answers has them."""
    for member in members.present.values():
        try:
            data = member.storage.read(file.key)
        except BackendError:
            continue
        if blake3(data).digest() == file.blake3:
            return data
    return None


def write_record(members: Members, record: LogRecord) -> int:
    """Write `record` to every backend that answers; the operation is acknowledged when this returns. Returns the
    copies. Raises TooFewBackends or BackendFull where it is on no backend; Unsettled where it is, or may be, on too
    few, for a write that failed may have happened."""
    asked = members.writable
    try:
        return members.put_everywhere(record.key, [seal_json(record.body)])
    except (TooFewBackends, BackendFull) as error:
        there, unknown = [], []
        for member in asked:
            try:
                if member.storage.exists(record.key):
                    there.append(member.storage.location)
            except (BackendError, LimitReached):
                unknown.append(member.storage.location)
        if not there and not unknown:
            raise
        where = f"is on {', '.join(there)}" if there else f"may be on {', '.join(unknown)}"
        raise Unsettled(f"{error}; it {where}: the next command that writes and finds it there completes it") from error


def initialise(members: Members, index: str = DEFAULT_INDEX) -> None:
    """Write the store's first record: its backends, and the kind of its dedupe index."""
    content = {"backends": [info.to_record() for info in members.all], "index": index}
    write_record(members, make_record(new_id(), "init", content, []))


def choose_index(members: Members, state: State, kind: str) -> LogRecord:
    """Record that ingests use a dedupe index of `kind` from now on."""
    record = make_record(new_id(state.newest), "index", {"index": kind}, [])
    write_record(members, record)
    return record
