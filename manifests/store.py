"""A store's members: which backends there are, which of them answer, how a store is made and found again.

Ids decide; paths in records are hints. A place is a backend only if its backend.json says so: an unmounted mount
point is absent, and never initialised anew.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from manifests import format as fmt
from manifests.armour import open_json, open_record, seal_json
from manifests.backends import BACKEND_TYPES, BackendStorage, Buffer, open_backend, parse_place
from manifests.config import StoreConfig, shards_per_backend, text, whole_number
from manifests.errors import (
    BackendError,
    BackendFull,
    CorruptRecord,
    NotFound,
    StoreExists,
    TooFewBackends,
    UsageError,
)
from manifests.ids import new_id
from manifests.jsontext import as_text, path_entries, recorded_path
from manifests.placement import Seat

STORE_KEY = "store.json"
BACKEND_KEY = "backend.json"
#: Shard files that are looked at to learn which store they belong to.
PROBED_SHARDS = 16


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
        number, location = whole_number(record["number"]), recorded_path(record, "location")
        if "\0" in location:
            raise ValueError("a location with a zero byte")
        identity = uuid.UUID(text(record["id"]))
        read_only = record.get("read_only", False)
        if not isinstance(read_only, bool):
            raise TypeError(f"read_only is {read_only!r}")
        return cls(number, identity, text(record["type"]), location, text(record["domain"]), read_only)


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
    opening, but that armour or another copy gave back; `dropped`: those that were present, and failed."""

    config: StoreConfig
    all: list[BackendInfo]
    present: dict[int, Member]
    failed: dict[int, str] = field(default_factory=dict)
    unsure: dict[int, str] = field(default_factory=dict)
    healed: int = 0
    dropped: dict[int, Member] = field(default_factory=dict)

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

    def require_writable(self) -> None:
        """Who writes must see all settled records: at least n − t backends. Those that are not surely what they are
        taken for are left out from now on. Raises TooFewBackends."""
        for number, reason in self.unsure.items():
            self.drop(number, reason)
        needed = self.count - self.tolerance
        if len(self.present) < needed:
            missing = ", ".join(info.location for info in self.absent())
            raise TooFewBackends(
                f"{len(self.present)} of {self.count} backends answer, writing needs {needed}; missing: {missing}"
            )

    @property
    def readable(self) -> list[Member]:
        """Backends to read from: also one that failed, as a full one does, may give what it holds."""
        return [*self.present.values(), *self.dropped.values()]

    def drop(self, number: int, reason: str) -> None:
        """Write to a backend no more until the store is looked at anew."""
        if number in self.present:
            self.dropped = {**self.dropped, number: self.present[number]}
        self.present = {other: member for other, member in self.present.items() if other != number}
        self.failed.setdefault(number, reason)

    def put_everywhere(self, key: str, pieces: Sequence[Buffer]) -> int:
        """Write `key` to every backend that answers and is not read-only, to all at once, for each waits for its own
        disk; a backend that fails is dropped. Returns the copies written; raises TooFewBackends when they are too few
        to count as settled."""
        from concurrent.futures import ThreadPoolExecutor  # who only reads does without

        members, written = self.writable, 0
        with ThreadPoolExecutor(min(8, max(1, len(members))), "put") as threads:
            writes = [threads.submit(member.storage.write, key, pieces) for member in members]
        for member, write in zip(members, writes, strict=True):
            try:
                write.result()
                written += 1
            except BackendError as error:
                self.drop(member.number, str(error))
        if written < self.settle_count:
            reasons = "; ".join(self.failed.values()) or "too few backends answer"
            kind = BackendFull if any("No space" in reason for reason in self.failed.values()) else TooFewBackends
            raise kind(f"{key} reached {written} backends and needs {self.settle_count}: {reasons}")
        return written


def create(config: StoreConfig, directories: Sequence[str | Path]) -> Members:
    """Make a store's backends: one directory (or place of another kind, `KIND:PLACE`) gets k+m backends as folders in
    it, several become the backends themselves. Raises StoreExists, UsageError. Nothing is written before all places
    were looked at."""
    if not directories:
        raise UsageError("name at least one directory")
    roots = [parse_place(directory) for directory in directories]
    if len({(family(kind), location) for kind, location in roots}) != len(roots):
        raise UsageError("a directory is named twice")
    for place in roots:
        _require_empty(open_backend(*place))
    if len(roots) == 1:
        kind, top = roots[0]
        width = len(str(config.scheme.total_shards - 1))
        roots = [(kind, f"{top}/backend-{number:0{width}}") for number in range(config.scheme.total_shards)]
    present: dict[int, Member] = {}
    for number, storage in enumerate(open_backend(*place) for place in roots):
        storage.make()
        info = BackendInfo(number, new_id(), storage.type, storage.location, storage.device())
        write_identity(config, info, storage)
        present[number] = Member(info, storage)
    return Members(config, [member.info for member in present.values()], present)


def _require_empty(storage: BackendStorage) -> None:
    if storage.exists(BACKEND_KEY):
        raise StoreExists(f"{storage.location} is a backend of a store already")
    storage.require_empty()


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


@dataclass(frozen=True)
class FoundBackend:
    """A place that holds files of a store. `backend_id` is None where backend.json can't tell: then the other files say
    to which store they belong, and the place is good for reading. `healed`: whether armour had to heal a record;
    `trouble`: what is wrong with backend.json."""

    store_id: uuid.UUID
    backend_id: uuid.UUID | None
    storage: BackendStorage
    healed: bool = False
    trouble: str = ""


def probe(kind: str, location: str) -> FoundBackend | None:
    """The backend at `location`, or None where nothing says that there is one."""
    storage = open_backend(kind, location)
    if not _may_be_backend(storage):
        return None
    store_id, _, _ = _claims(storage, STORE_KEY, "store_id")
    own, healed, trouble = _claims(storage, BACKEND_KEY, "store_id", "backend_id")
    if own and store_id and own[0] != store_id[0] and _store_of_shards(storage) == store_id[0]:
        trouble = f"{location}/{BACKEND_KEY} is that of another store"
        return FoundBackend(store_id[0], None, storage, trouble=trouble)
    if own:
        return FoundBackend(own[0], own[1], storage, healed)
    belongs = store_id[0] if store_id else _store_of_shards(storage)
    return FoundBackend(belongs, None, storage, trouble=trouble) if belongs else None


def _may_be_backend(storage: BackendStorage) -> bool:
    """Whether a place holds anything that a backend does."""
    try:
        if storage.exists(BACKEND_KEY) or storage.exists(STORE_KEY):
            return True
        return next(iter(storage.list("packs")), None) is not None
    except BackendError:
        return False


def _claims(storage: BackendStorage, key: str, *names: str) -> tuple[tuple[uuid.UUID, ...], bool, str]:
    """The ids that a record of a backend names, whether it had to be healed, and what keeps it from being read."""
    try:
        record, healed = open_json(storage.read(key))
        return tuple(uuid.UUID(text(record[name])) for name in names), healed, ""
    except (BackendError, CorruptRecord, KeyError, ValueError, TypeError) as error:
        return (), False, f"{storage.location}/{key}: {error}"


def _store_of_shards(storage: BackendStorage) -> uuid.UUID | None:
    """The store that shard files on a backend name, the first that can be read."""
    try:
        for key in islice(storage.list("packs"), PROBED_SHARDS):
            for at in (0, max(0, storage.size(key) - fmt.RECORD_SIZE)):
                with suppress(CorruptRecord):
                    body, _ = open_record(storage.read_range(key, at, fmt.RECORD_SIZE))
                    magic, _, _, _, store_id, *_ = fmt.SHARD_RECORD.unpack_from(body)
                    if magic == fmt.SHARD_MAGIC:
                        return uuid.UUID(bytes=store_id)
    except BackendError:
        return None
    return None


def find_backends(location: str | Path) -> list[FoundBackend]:
    """Backends of one store at `location` (one backend, or a directory of them) and beside it. Raises NotFound,
    UsageError."""
    kind, place = parse_place(location)
    own = probe(kind, place)
    around = open_backend(kind, os.path.dirname(place) if own else place).folders()
    if not own and not around and not os.path.isdir(place):
        raise NotFound(f"no store at {place}: there is no such directory")
    near = [found for each in around if (found := probe(kind, each))]
    stores = {own.store_id} if own else {found.store_id for found in near}
    if not stores:
        raise NotFound(f"no store at {place}: no backend.json in it or in its subdirectories; is it mounted?")
    if len(stores) > 1:
        raise UsageError(f"{place} holds backends of {len(stores)} stores; name one of the backends")
    beside = [found for found in near if own is None or found.storage.location != own.storage.location]
    return ([own] if own else []) + [found for found in beside if found.store_id in stores]


def assign(infos: Sequence[BackendInfo], found: Sequence[FoundBackend]) -> tuple[dict[int, Member], dict[int, str]]:
    """Which place is which backend, by id, and which of them are good for reading only, and why. Of two places with one
    id the one where the log says it is has it. Places without an id stand in for backends that are missing."""
    present: dict[int, Member] = {}
    spare = [place for place in found if place.backend_id is None]
    for info in infos:
        claimants = [place for place in found if place.backend_id == info.backend_id]
        claimants.sort(key=lambda place: place.storage.location != info.location)
        if claimants:
            present[info.number] = _member(info, claimants[0].storage)
        spare += claimants[1:]
    here = [(member.info, member.storage.location) for member in present.values()]
    unsure: dict[int, str] = {}
    for exactly in (True, False):
        for info in infos:
            hints = set(hinted_places(info, here))
            # A second place with the id of another backend may as well be a copy that somebody made.
            fits = [
                place
                for place in spare
                if place.storage.location in hints or (not exactly and place.backend_id is None)
            ]
            if info.number not in present and fits:
                spare.remove(fits[0])
                present[info.number] = _member(info, fits[0].storage)
                trouble = fits[0].trouble or f"{fits[0].storage.location}/{BACKEND_KEY} is that of another backend"
                unsure[info.number] = f"{trouble}; the backend is read, and not written to"
    return dict(sorted(present.items())), unsure


def _member(info: BackendInfo, storage: BackendStorage) -> Member:
    """A backend that was found, opened as the kind that the log says it is."""
    if storage.type != info.type and info.type in BACKEND_TYPES and family(storage.type) == info.family:
        storage = open_backend(info.type, storage.location)
    return Member(info, storage)


def hinted_places(info: BackendInfo, others: Sequence[tuple[BackendInfo, str]]) -> Iterator[str]:
    """Where `info` may lie: its recorded location, and the same relative to where the others are now."""
    yield info.location
    for other, now in others:
        if other.family == info.family:
            yield os.path.normpath(os.path.join(now, os.path.relpath(info.location, other.location)))
