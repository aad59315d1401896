"""Finding the places that hold a store's files, and telling which of them is which backend.

Ids decide. A place with the id of a backend that lies, and answers, where the log says it does, is a copy.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from manifests import format as fmt
from manifests.armour import open_json, open_record
from manifests.backends import BACKEND_TYPES, BackendStorage, open_backend, parse_place
from manifests.config import text, truth
from manifests.errors import BackendError, CopiedStore, CorruptRecord, KeyNotFound, NotFound, UsageError
from manifests.store import BACKEND_KEY, STORE_KEY, BackendInfo, Member, Members, family, read_ids

#: Shard files that are looked at to learn which store they belong to.
PROBED_SHARDS = 16
#: Bounds of a look for backends two levels below a place: folders of it that are looked into, entries of each that are
#: listed, and folders among these that are probed.
LOOKED_INTO, LISTED_BELOW, PROBED_BELOW = 256, 4096, 512
#: What is said of a backend that is not where it was.
UNANSWERED = "it does not answer"
REPLACED = "another backend is there now"
#: Kind of the log record by which a copy gets ids of its own.
ADOPT = "adopt"


@dataclass(frozen=True)
class FoundBackend:
    """A place that holds files of a store. `backend_id` is None where backend.json can't tell: then the other files say
    to which store they belong, and the place is good for reading. `healed`: whether armour had to heal a record;
    `trouble`: what is wrong with backend.json; `origins`: stores that this one is a copy of."""

    store_id: uuid.UUID
    backend_id: uuid.UUID | None
    storage: BackendStorage
    healed: bool = False
    trouble: str = ""
    origins: frozenset[uuid.UUID] = frozenset()

    def is_at(self, info: BackendInfo) -> bool:
        """Whether it lies where the log says that `info` does, by name."""
        return self.storage.location == info.location and family(self.storage.type) == info.family


@dataclass(frozen=True)
class Copy:
    """A place with the id of a backend that answers, elsewhere, where the log says it is: its `original`."""

    place: FoundBackend
    original: FoundBackend


def probe(kind: str, location: str, troubles: list[str] | None = None) -> FoundBackend | None:
    """The backend at `location`, or None where nothing says that there is one. `troubles` gets why a place could not be
    looked at."""
    storage = open_backend(kind, location)
    try:
        if not _may_be_backend(storage):
            return None
    except BackendError as error:
        if troubles is not None:
            troubles.append(str(error))
        return None
    store_id, origins = _settings(storage)
    stores = {store_id, *origins}
    try:
        own, healed = read_ids(storage, BACKEND_KEY, "store_id", "backend_id")
    except (BackendError, CorruptRecord) as error:
        belongs = store_id or _store_of_shards(storage)
        trouble = f"{location}/{BACKEND_KEY}: {error}"
        return FoundBackend(belongs, None, storage, trouble=trouble, origins=origins) if belongs else None
    if store_id is not None and own[0] not in stores and _store_of_shards(storage) in stores:
        trouble = f"{location}/{BACKEND_KEY} is that of another store"
        return FoundBackend(store_id, None, storage, trouble=trouble, origins=origins)
    return FoundBackend(own[0], own[1], storage, healed, origins=origins)


def why_absent(info: BackendInfo) -> str:
    """Why a backend that is not present does not answer where the log says it is, as the end of a sentence: a disk that
    fails or may not be read is not one that was taken away."""
    if info.type in BACKEND_TYPES:
        try:
            there, _ = read_ids(open_backend(info.type, info.location), BACKEND_KEY, "backend_id")
            if there != (info.backend_id,):
                return REPLACED
        except (KeyNotFound, CorruptRecord):
            pass
        except BackendError as error:
            return str(error)
    return UNANSWERED


def why_absent_by_number(members: Members) -> dict[int, str]:
    """`PLACE: REASON` of each backend of an open store that does not answer, or was dropped, by number."""
    found = {}
    for info in members.absent():
        reason = members.failed.get(info.number) or why_absent(info)
        found[info.number] = reason if info.location in reason else f"{info.location}: {reason}"
    return found


def _may_be_backend(storage: BackendStorage) -> bool:
    """Whether a place holds anything that a backend does. Raises BackendError where it can't be looked at."""
    if storage.exists(BACKEND_KEY) or storage.exists(STORE_KEY):
        return True
    return next(iter(storage.list("packs")), None) is not None


def _settings(storage: BackendStorage) -> tuple[uuid.UUID | None, frozenset[uuid.UUID]]:
    """The store that store.json is of, and those that it is a copy of; none where it can't be read."""
    try:
        record, _ = open_json(storage.read(STORE_KEY))
        origins = frozenset(uuid.UUID(text(each)) for each in record.get("origins", ()))
        return uuid.UUID(text(record["store_id"])), origins
    except (BackendError, CorruptRecord, KeyError, ValueError, TypeError):
        return None, frozenset()


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


@dataclass
class Finding:
    """What lies in and beside a place that was named. `named`: the backend that it is, None where it is a directory of
    backends; `places`: backends of one store, the named one first."""

    place: str
    named: FoundBackend | None
    places: list[FoundBackend]

    @property
    def store_id(self) -> uuid.UUID:
        """As a place with an id of its own tells: one without may know the store only that it was copied from."""
        sure = (found for found in self.places if found.backend_id is not None)
        return next(sure, self.places[0]).store_id

    def holds(self, found: FoundBackend) -> bool:
        """Whether a place belongs to the store, as far as it can tell."""
        origins = frozenset[uuid.UUID]().union(*(each.origins for each in self.places))
        return found.store_id == self.store_id or (found.backend_id is None and found.store_id in origins)


def find_backends(location: str | Path) -> Finding:
    """Backends of one store at `location` (one backend, or a directory of them) and beside it. Raises NotFound,
    UsageError, CopiedStore where a copy has got only half of its own ids."""
    kind, place = parse_place(location)
    troubles: list[str] = []
    own, near = look_around(kind, place, troubles)
    stores = {own.store_id} if own else _stores(near)
    if not stores and troubles:
        raise NotFound(f"no store at {place} that can be read: {troubles[0]}")
    if not stores:
        raise NotFound(
            f"no store at {place}: no {BACKEND_KEY} in it, in its subdirectories or in theirs; is it mounted?"
        )
    if len(stores) > 1:
        stores = _stores([found for found in near if not _was_removed(found)]) or stores
    if len(stores) > 1 and any(map(_is_half_adopted, near)):
        raise CopiedStore(UNFINISHED.format(place))
    if len(stores) > 1:
        raise UsageError(f"{place} holds backends of {len(stores)} stores; name one of the backends")
    first = own or next(found for found in near if found.store_id in stores)
    finding = Finding(place, own, [first])
    finding.places = [first, *(found for found in near if found is not first and finding.holds(found))]
    return finding


def find_again(location: str, members: Members) -> Finding:
    """Backends of a store that is open, at and beside `location` and where they were. A place that belongs to another
    store by now is none of them. Raises NotFound where none is left."""
    kind, place = parse_place(location)
    own, near = None, list[FoundBackend]()
    with suppress(NotFound, BackendError):  # the other backends may be there all the same
        own, near = look_around(kind, place)
    known = (probe(member.storage.type, member.storage.location) for member in members.readable)
    stores, ours = members.config.shard_stores, dict[tuple[str, str], FoundBackend]()
    for found in (each for each in (own, *near, *known) if each is not None):
        if found.store_id == members.config.store_id or (found.backend_id is None and found.store_id in stores):
            ours.setdefault((family(found.storage.type), found.storage.location), found)
    if not ours:
        where = ", ".join(info.location for info in members.all)
        raise NotFound(
            f"no store at {place} any more: none of its backends answers; mount or attach them again: {where}"
        )
    places = list(ours.values())
    return Finding(place, own if own in places else None, places)


def _stores(places: Sequence[FoundBackend]) -> set[uuid.UUID]:
    """The stores that places belong to. One without an id may belong to a copy, whose shards name its origin."""
    sure = [found for found in places if found.backend_id is not None] or places
    return {found.store_id for found in sure}


def look_around(
    kind: str, place: str, troubles: list[str] | None = None
) -> tuple[FoundBackend | None, list[FoundBackend]]:
    """The backend that a place is, or None, and those beside it or, where it is none, those in it and in its folders.
    `troubles` gets what could not be looked at, and why. Raises NotFound."""
    own = probe(kind, place, troubles)
    if own is not None:
        with suppress(BackendError):  # what can't be looked into holds no backend that could be used
            beside = open_backend(kind, os.path.dirname(place)).folders()
            return own, [found for each in beside if each != place and (found := probe(kind, each, troubles))]
        return own, []
    try:
        folders = open_backend(kind, place).folders()
    except KeyNotFound as error:
        what = "that is no directory" if os.path.lexists(place) else "there is no such directory"
        raise NotFound(f"no store at {place}: {what}; name the directory of a store, or one of its backends") from error
    except BackendError as error:
        raise NotFound(f"no store at {place} that can be read: {error}") from error
    found_in = {each: probe(kind, each, troubles) for each in folders}
    near = [found for found in found_in.values() if found]
    below = _look_below(kind, place, [each for each in folders if found_in[each] is None], troubles)
    if near:  # of other stores, and beside a backend that lies higher, what lies deeper is not what was named
        stores, ids = _stores(near), {found.backend_id for found in near}
        below = [found for found in below if found.store_id in stores and found.backend_id not in (None, *ids)]
    return None, near + below


def _look_below(kind: str, place: str, folders: Sequence[str], troubles: list[str] | None) -> list[FoundBackend]:
    """The backends in folders of a place: disks are mounted beside each other, and each holds its backend in a
    directory of its own. Each folder is looked into once, by whatever link it is reached."""
    seen, found = {open_backend(kind, place).identity()}, []
    for folder in folders[:LOOKED_INTO]:
        with suppress(BackendError):  # as above
            storage = open_backend(kind, folder)
            if storage.identity() in seen:
                continue
            seen.add(storage.identity())
            for each in storage.folders(LISTED_BELOW)[:PROBED_BELOW]:
                if backend := probe(kind, each, troubles):
                    found.append(backend)
    return found


#: Why a copy is not opened that has got only some of its own ids.
UNFINISHED = "{}: giving this copy ids of its own was interrupted; finish it by the same command with --adopt-copy"


def adoptions(found: FoundBackend) -> list[dict[str, Any]]:
    """The records on a place by which a copy gets ids of its own; one that makes no sense is none."""
    sound = []
    for record in _records(found, ADOPT):
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            for entry in record["identities"]:
                BackendInfo.from_record(entry)
                text(entry["from"]), truth(entry["copied"])
            sound.append(record)
    return sound


def _was_removed(found: FoundBackend) -> bool:
    """Whether a place has the record by which it left its store."""
    removals = [record.get("removes") for record in _records(found, "backend")]
    return any(str(found.backend_id) in ids for ids in removals if isinstance(ids, list))


def _records(found: FoundBackend, kind: str) -> list[dict[str, Any]]:
    """The log records of a kind on a place; those that can't be read are passed over, as each backend has them."""
    records = []
    with suppress(BackendError):
        for key in found.storage.list("log"):
            if key.endswith(f".{kind}.json"):
                with suppress(BackendError, CorruptRecord):
                    records.append(open_json(found.storage.read(key))[0])
    return records


def _is_half_adopted(found: FoundBackend) -> bool:
    """Whether a place has the record of its new identity, and not yet the identity."""
    return any(str(found.backend_id) == entry["from"] for record in adoptions(found) for entry in record["identities"])


def find_copies(infos: Sequence[BackendInfo], finding: Finding) -> list[Copy]:
    """The places that are copies. Beside a backend that lies where the log says it is, another one with its id is of no
    account; but a place that was named is what is meant."""
    copies = []
    for info in infos:
        claimants = [place for place in finding.places if place.backend_id == info.backend_id]
        if finding.named in claimants:
            claimants = claimants[:1]
        if claimants and not any(place.is_at(info) for place in claimants):
            original = _original(info, finding.store_id)
            if original is not None and all(not _is_same(place, original) for place in claimants):
                copies.append(Copy(claimants[0], original))
    return copies


def without_originals(infos: Sequence[BackendInfo], places: Sequence[FoundBackend]) -> list[FoundBackend]:
    """The places but those that lie where the log says that they are."""
    by_id = {info.backend_id: info for info in infos}

    def is_original(place: FoundBackend) -> bool:
        info = by_id.get(place.backend_id) if place.backend_id else None
        if info is None:
            return False
        original = None if place.is_at(info) else _original(info, place.store_id)
        return place.is_at(info) or (original is not None and _is_same(place, original))

    return [place for place in places if not is_original(place)]


def _original(info: BackendInfo, store_id: uuid.UUID) -> FoundBackend | None:
    """The backend at the place where the log says it is."""
    found = probe(info.type, info.location) if info.type in BACKEND_TYPES else None
    return found if found and (found.store_id, found.backend_id) == (store_id, info.backend_id) else None


def _is_same(one: FoundBackend, other: FoundBackend) -> bool:
    return one.storage.identity() == other.storage.identity()


@dataclass
class Assignment:
    """Which place is which backend, by number. `unsure`: those that are good for reading only, and why; `spare`: places
    with the id of a backend that lies elsewhere, and which is used instead."""

    present: dict[int, Member] = field(default_factory=dict)
    unsure: dict[int, str] = field(default_factory=dict)
    spare: list[tuple[FoundBackend, Member]] = field(default_factory=list)


def assign(infos: Sequence[BackendInfo], found: Sequence[FoundBackend]) -> Assignment:
    """Which place is which backend, by id. Of several places with one id, that has it where the log says it is, or that
    lies to the others as the log says. Places without an id stand in for backends that are missing."""
    done = Assignment()
    spare = [place for place in found if place.backend_id is None]
    claims = {info.number: [place for place in found if place.backend_id == info.backend_id] for info in infos}
    single = [(info, claims[info.number][0].storage.location) for info in infos if len(claims[info.number]) == 1]
    for info in infos:
        remoteness = partial(_remoteness, info, set(hinted_places(info, single)))
        claimants = sorted(claims[info.number], key=remoteness)
        if not claimants:
            continue
        done.present[info.number] = member = _member(info, claimants[0].storage)
        others = [place for place in claimants[1:] if not _is_same(place, claimants[0])]
        if others and remoteness(others[0]) == remoteness(claimants[0]):
            done.unsure[info.number] = (
                f"{claimants[0].storage.location} and {others[0].storage.location} have the same id, and nothing tells "
                "which of them is the copy; remove one of them"
            )
        done.spare += [(place, member) for place in others]
        spare += others
    here = [(member.info, member.storage.location) for member in done.present.values()]
    for exactly in (True, False):
        for info in infos:
            hints = set(hinted_places(info, here))
            # A second place with the id of another backend may as well be a copy that somebody made.
            fits = [
                place
                for place in spare
                if place.storage.location in hints or (not exactly and place.backend_id is None)
            ]
            if info.number not in done.present and fits:
                spare.remove(fits[0])
                done.present[info.number] = _member(info, fits[0].storage)
                trouble = fits[0].trouble or f"{fits[0].storage.location}/{BACKEND_KEY} is that of another backend"
                done.unsure[info.number] = f"{trouble}; the backend is read, and not written to"
    done.present = dict(sorted(done.present.items()))
    done.spare = [(place, used) for place, used in done.spare if place in spare]
    return done


def _remoteness(info: BackendInfo, hints: set[str], place: FoundBackend) -> int:
    """How far a place with the id of `info` is from being where it is looked for."""
    return 0 if place.is_at(info) else 1 if place.storage.location in hints else 2


def _member(info: BackendInfo, storage: BackendStorage) -> Member:
    """A backend that was found, opened as the kind that the log says it is."""
    if storage.type != info.type and info.type in BACKEND_TYPES and family(storage.type) == info.family:
        storage = open_backend(info.type, storage.location, storage.identity())
    return Member(info, storage)


def hinted_places(info: BackendInfo, others: Sequence[tuple[BackendInfo, str]]) -> Iterator[str]:
    """Where `info` may lie: its recorded location, and the same relative to where the others are now."""
    yield info.location
    for other, now in others:
        if other.family == info.family:
            yield os.path.normpath(os.path.join(now, os.path.relpath(info.location, other.location)))
