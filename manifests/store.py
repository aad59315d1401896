"""A store's members: which backends there are, and which of them answer.

Ids decide; paths in records are hints. A place is a backend only if its backend.json says so: an unmounted mount
point is absent, and never initialised anew.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from manifests.backends import BACKEND_TYPES, BackendStorage, Buffer, open_backend
from manifests.config import StoreConfig, shards_per_backend, text, whole_number
from manifests.counts import counted
from manifests.errors import BackendError, BackendFull, CopiedStore, CorruptRecord, TooFewBackends
from manifests.jsontext import as_text, path_entries, recorded_path
from manifests.limits import LimitReached
from manifests.placement import Seat
from manifests.troubles import together

#: What to do about backends that do not answer.
ATTACH_THEM = "attach them, or, if they are mounted elsewhere now, name a directory above all backends with -s"
STORE_KEY = "store.json"
BACKEND_KEY = "backend.json"


@dataclass(frozen=True)
class BackendInfo:
    """A backend as the log knows it. `number` is its place in the order of joining, which no other ever has;
    `location` is a hint; nothing is put on a backend that is `read_only`."""

    number: int
    backend_id: uuid.UUID
    type: str
    location: str
    domain: str
    read_only: bool = False

    def to_record(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "id": str(self.backend_id),
            "type": self.type,
            **path_entries("location", self.location),
            "domain": self.domain,
            "read_only": self.read_only,
        }

    @property
    def seat(self) -> Seat:
        return Seat(self.number, self.domain)

    @property
    def family(self) -> str:
        """What its location is a path in: kinds of one family reach the same places."""
        return family(self.type)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> BackendInfo:
        number, location = whole_number(record["number"]), location_of(record)
        identity = uuid.UUID(text(record["id"]))
        read_only = record.get("read_only", False)
        if not isinstance(read_only, bool):
            raise TypeError(f"read_only is {read_only!r}")
        return cls(number, identity, text(record["type"]), location, text(record["domain"]), read_only)


def location_of(record: dict[str, Any]) -> str:
    """The location that an entry of a record tells. Raises KeyError, TypeError, ValueError on nonsense."""
    location = recorded_path(record, "location")
    if "\0" in location:
        raise ValueError("a location with a zero byte")
    return location


def adding(place: str) -> str:
    """The command that makes a directory a backend, or gives one that is a backend what it lacks."""
    return f"drystone backend add {shlex.quote(place)}"


def family(kind: str) -> str:
    """`local` of `local` and `local-direct`."""
    return kind.partition("-")[0]


@dataclass(frozen=True)
class Member:
    """A backend that answers."""

    info: BackendInfo
    storage: BackendStorage

    @property
    def number(self) -> int:
        return self.info.number


@dataclass
class Members:
    """All backends of an open store. Owned by one process; `present` shrinks when a backend fails during a run.
    `unsure`: those present that are good for reading only, and why; `healed`: records that were not whole on
    opening, but that armour or another copy gave back; `dropped`: those that were present, and failed; `vanished`:
    those of them that are not in their place any more; `removed`: those of them that somebody took out of the store;
    `copied`: why nothing is written to a copy of a store, empty where it is none; `notices`: what the user should know
    of where the backends were found, `asides`: what is harmless of that, and not said with --quiet; `moved`: what the
    log should say of those that lie elsewhere than it says; `unrecorded`: where others do so that may be copies."""

    config: StoreConfig
    all: list[BackendInfo]
    present: dict[int, Member]
    failed: dict[int, str] = field(default_factory=dict)
    unsure: dict[int, str] = field(default_factory=dict)
    healed: int = 0
    dropped: dict[int, Member] = field(default_factory=dict)
    vanished: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    copied: str = ""
    notices: list[str] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)
    moved: list[BackendInfo] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.all)

    @property
    def numbers(self) -> int:
        """One more than the largest number of a backend."""
        return 1 + max((info.number for info in self.all), default=-1)

    @property
    def seats(self) -> tuple[Seat, ...]:
        """Backends that shards may be put on, whether they answer or not, in their order of joining."""
        return tuple(info.seat for info in self.all if not info.read_only)

    @property
    def writable(self) -> list[Member]:
        """Backends that answer and may be written to."""
        return [member for member in self.present.values() if not member.info.read_only]

    @property
    def tolerance(self) -> int:
        """Backends that may be lost with nothing lost: m, or fewer when shards share backends. This is the rule."""
        scheme = self.config.scheme
        return min(scheme.m // shards_per_backend(scheme, max(1, len(self.seats))), self.count - 1)

    @property
    def settle_count(self) -> int:
        """Copies after which a record is settled."""
        return min(self.count, self.tolerance + 1)

    def absent(self) -> list[BackendInfo]:
        return [info for info in self.all if info.number not in self.present]

    @property
    def sees_all(self) -> bool:
        """Whether so many backends answer, surely, that each settled record is on one of them: n − t. This is the
        rule."""
        return len(self.present.keys() - self.unsure.keys()) >= self.count - self.tolerance

    def require_writable(self) -> None:
        """Who writes must see all settled records. Backends that are not surely what they are taken for are left out
        from now on. Raises TooFewBackends, CopiedStore."""
        self.require_sure()
        if not self.sees_all:
            raise TooFewBackends(
                f"{len(self.present)} of {counted(self.count, 'backend')} answer, writing needs "
                f"{self.count - self.tolerance}{self.whereabouts()}; if all that are absent are gone for good: "
                "drystone backend remove BACKEND… --force"
            )

    def require_sure(self) -> None:
        """Leave out backends that are not surely what they are taken for. Raises CopiedStore."""
        self._require_original()
        for number, reason in self.unsure.items():
            self.drop(number, reason)

    def whereabouts(self) -> str:
        """Which backends are absent, and what to do, as the end of a sentence."""
        failed = {number for number in self.failed if number not in self.vanished}
        absent = [info.location for info in self.absent() if info.number not in failed]
        return f"; absent: {', '.join(absent)}: {ATTACH_THEM}" if absent else ""

    def _require_original(self) -> None:
        if self.copied:
            raise CopiedStore(self.copied)

    def have_changed(self) -> bool:
        """Whether a backend is not where it was, or one that did not answer is there again."""
        if any(not _is_in_place(member) for member in self.present.values()):
            return True
        return not self.copied and any(_is_back(self.config, info) for info in self.absent())

    @property
    def readable(self) -> list[Member]:
        """Backends to read from: also one that failed, as a full one does, may give what it holds."""
        return [*self.present.values(), *self.dropped.values()]

    def close(self) -> None:
        """Let go of the backends. Nothing can be asked of them any more."""
        for member in self.readable:
            member.storage.close()

    def drop(self, number: int, reason: str) -> None:
        """Write to a backend no more until the store is looked at anew."""
        if number in self.present:
            self.dropped = {**self.dropped, number: self.present[number]}
        self.present = {other: member for other, member in self.present.items() if other != number}
        self.failed.setdefault(number, reason)

    def put_everywhere(self, key: str, pieces: Sequence[Buffer], needed: int | None = None) -> int:
        """Write `key` to every backend that answers and is not read-only, to all at once, for each waits for its own
        disk; a backend that fails is dropped, and so is one that is not in its place behind the write. Returns the
        copies written; raises TooFewBackends when they are fewer than `needed`, unless told as many as make a record
        settled; CopiedStore."""
        self._require_original()
        needed = self.settle_count if needed is None else needed
        from concurrent.futures import ThreadPoolExecutor  # who only reads does without

        members, written = self.writable, 0
        with ThreadPoolExecutor(min(8, max(1, len(members))), "put") as threads:
            writes = [threads.submit(self._put, member, key, pieces) for member in members]
        again = list[Member]()
        for member, write in zip(members, writes, strict=True):
            try:
                write.result()
                written += 1
            except LimitReached:
                again.append(member)
            except BackendError as error:
                self._give_up(member, error)
        for member in again:  # one at a time needs less
            try:
                self._put(member, key, pieces)
                written += 1
            except (BackendError, LimitReached) as error:
                self._give_up(member, error)
        if written < needed:
            reasons = together(self.failed.values()) or "too few backends answer"
            kind = BackendFull if any("No space" in reason for reason in self.failed.values()) else TooFewBackends
            raise kind(
                f"{key} reached {counted(written, 'backend')} of {self.count}, and needs {needed}: {reasons}"
                f"{self.whereabouts()}"
            )
        return written

    def confirm(self) -> None:
        """Look whether the backends that answer are still those that they were. The others are dropped."""
        for member in list(self.present.values()):
            try:
                require_identity(self.config, member)
            except BackendError as error:
                self._give_up(member, error)

    def _give_up(self, member: Member, error: BackendError | LimitReached) -> None:
        """Drop a backend that failed, and note whether it is not in its place any more."""
        self.drop(member.number, str(error))
        if not _is_in_place(member):
            self.vanished.add(member.number)

    def _put(self, member: Member, key: str, pieces: Sequence[Buffer]) -> None:
        """Write to one backend; it counts if it is still that backend then."""
        member.storage.write(key, pieces)
        require_identity(self.config, member)


def _is_in_place(member: Member) -> bool:
    try:
        member.storage.require_in_place()
    except BackendError:
        return False
    except LimitReached:
        pass  # it could not be looked at
    return True


def _is_back(config: StoreConfig, info: BackendInfo) -> bool:
    """Whether a backend that did not answer lies where the log says it is."""
    if info.type not in BACKEND_TYPES:
        return False
    storage = open_backend(info.type, info.location)
    try:
        return read_ids(storage, BACKEND_KEY, "store_id", "backend_id")[0] == (config.store_id, info.backend_id)
    except (BackendError, CorruptRecord):
        return False


def require_identity(config: StoreConfig, member: Member) -> None:
    """Raise BackendError where a backend is not the one any more that was opened: by the directory that its location
    leads to, and by its backend.json."""
    member.storage.require_in_place()
    try:
        found, _ = read_ids(member.storage, BACKEND_KEY, "store_id", "backend_id")
    except CorruptRecord as error:
        raise BackendError(f"{member.storage.location}/{BACKEND_KEY}: {error}") from error
    if found != (config.store_id, member.info.backend_id):
        raise BackendError(f"{member.storage.location} is another backend now, {found[1]} of store {found[0]}")


def read_ids(storage: BackendStorage, key: str, *names: str) -> tuple[tuple[uuid.UUID, ...], bool]:
    """The ids that a record of a backend names, and whether it had to be healed. Raises BackendError, CorruptRecord."""
    record, healed = open_json(storage.read(key))
    try:
        return tuple(uuid.UUID(text(record[name])) for name in names), healed
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptRecord(f"the record makes no sense: {error!r}") from error


def write_identity(config: StoreConfig, info: BackendInfo, storage: BackendStorage) -> None:
    """Make a place a backend: its store.json and, at last, its backend.json."""
    identity = {
        "format": fmt.FORMAT_NAME,
        "type": "backend",
        "store_id": str(config.store_id),
        "backend_id": str(info.backend_id),
        "number": info.number,
        "domain": as_text(info.domain),
    }
    storage.write(STORE_KEY, [seal_json(config.to_record())])
    storage.write(BACKEND_KEY, [seal_json(identity)])
