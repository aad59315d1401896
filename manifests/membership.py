"""Backends join and leave a store: log records of kind `backend`.

A backend that joins gets all manifest files and records before the record that names it, so whoever counts it finds
there what it must hold. One that leaves is named by id in `removes`, for ever: a directory that comes back gets a new
id. Whether data would be lost with it is for the caller to know; here its records and manifests are seen to.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from manifests.access import PRIVATE, Access
from manifests.armour import open_json, seal_json
from manifests.backends import BackendStorage, open_backend, parse_place
from manifests.config import text
from manifests.errors import BackendError, CorruptRecord, NotFound, StoreExists, TooFewBackends, Unreadable, UsageError
from manifests.finding import probe
from manifests.ids import NIL, new_id
from manifests.log import Log, ManifestFile, State, list_records, make_record, write_record
from manifests.paths import absolute_path
from manifests.replicas import Replicas
from manifests.store import BackendInfo, Member, Members, write_identity


@dataclass(frozen=True)
class Joining:
    """A backend that is about to join; `known`: one that is a member already, and whose entry is about to change."""

    info: BackendInfo
    storage: BackendStorage
    known: bool


def find_info(members: Members, name: str) -> BackendInfo:
    """The backend called by its id, a unique prefix of it, or its directory: that where it is, or, where it does not
    answer, that where it was. Raises NotFound."""
    found = [info for info in members.all if str(info.backend_id).startswith(name.lower())] if name else []
    if len(found) != 1 and name:
        place = absolute_path(name)
        here = {number: member.storage.location for number, member in members.present.items()}
        places = [(info, here.get(info.number, info.location)) for info in members.all]
        found = [info for info, location in places if place in (location, os.path.realpath(location))] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"{name!r} names {len(found)} backends; write more of the id (see: drystone backend list)")
    raise NotFound(f"the store has no backend {name!r}; see: drystone backend list")


def joining(
    members: Members,
    state: State,
    place: str | Path,
    *,
    backend_id: uuid.UUID | None = None,
    domain: str = "",
    read_only: bool = False,
) -> Joining:
    """What adding `place` comes to; nothing is written. Raises StoreExists where it holds something else, UsageError
    for an id that is not free."""
    kind, location = parse_place(place)
    storage, found = open_backend(kind, location), probe(kind, location)
    if found is not None and found.store_id != members.config.store_id:
        raise StoreExists(f"{location} is a backend of another store, {found.store_id}")
    at_place = next((m for m in members.present.values() if m.storage.location == location), None)
    if at_place is not None and at_place.number in members.unsure:
        raise UsageError(f"{location} can't be told for sure: {members.unsure[at_place.number]}")
    if at_place is not None:
        if backend_id not in (None, at_place.info.backend_id):
            raise UsageError(f"{location} is backend {at_place.info.backend_id} already; an id never changes")
        domain = domain or at_place.info.domain
        return Joining(replace(at_place.info, type=kind, domain=domain, read_only=read_only), storage, True)
    if backend_id == NIL or backend_id in state.removed:
        reason = "stands for none" if backend_id == NIL else "was removed, and ids are not used again"
        raise UsageError(f"backend {backend_id} {reason}: give another id, or none")
    known = {info.backend_id: info for info in members.all}
    if found is not None and found.backend_id in known:
        info = known[found.backend_id]
        other = members.present.get(info.number)
        if other is not None:
            raise UsageError(
                f"{location} has the id of {other.storage.location}: it is a copy of that backend; "
                "to make it one of its own, remove its backend.json first"
            )
        info = replace(info, type=kind, location=location, domain=domain or _domain_of(storage), read_only=read_only)
        return Joining(info, storage, True)
    if found is None:
        storage.require_empty()
    if backend_id in known:
        raise UsageError(f"backend {backend_id} is there already, at {known[backend_id].location}")
    domain = domain or _domain_of(storage)
    info = BackendInfo(state.next_number, backend_id or new_id(state.newest), kind, location, domain, read_only)
    return Joining(info, storage, False)


def _domain_of(storage: BackendStorage) -> str:
    """The device that a place lies on, also where it is still to be made."""
    location = storage.location
    while True:
        try:
            return open_backend(storage.type, location).device()
        except BackendError:
            if location == os.path.dirname(location):
                raise
            location = os.path.dirname(location)


def join(members: Members, log: Log, state: State, replicas: Replicas, new: Joining) -> None:
    """Make a backend a member: complete on it what each must hold, then write the record. Raises TooFewBackends, and
    what reading manifests raises; until the record is settled, the store is what it was."""
    members.require_writable()
    log.complete(members)
    others = [info for info in members.all if info.backend_id != new.info.backend_id]
    infos = sorted([*others, new.info], key=lambda info: info.number)
    present = {**members.present, new.info.number: Member(new.info, new.storage)}
    grown = Members(members.config, infos, dict(sorted(present.items())), failed=members.failed)
    if not new.known:
        new.storage.make(_access_of(members))
        write_identity(members.config, new.info, new.storage)
    if not (new.known and new.info.read_only):
        _complete_onto(present[new.info.number], log, state, replicas)
    # More backends may bear more losses: then records must lie on more of them before anybody counts so.
    log.complete(grown)
    content = {"backends": [new.info.to_record()]}
    write_record(grown, make_record(new_id(state.newest), "backend", content, []))


def _access_of(members: Members) -> Access:
    """Who may use a backend that joins: those that may use the others."""
    first = members.writable[0].storage.access() if members.writable else PRIVATE
    return first if first.mode & 0o077 else Access(first.mode | 0o700)


def _complete_onto(member: Member, log: Log, state: State, replicas: Replicas) -> None:
    """Write what a backend must hold and lacks: manifest files, then records."""
    storage = member.storage
    for table in state.manifests:
        for file in state.files(table):
            if not (storage.exists(file.key) and storage.size(file.key) == file.size):
                storage.write(file.key, [Path(replicas.path(file)).read_bytes()])
    replicas.save()
    for key, record in log.records.items():
        if member.number not in log.holders[key] or not storage.exists(key):
            storage.write(key, [seal_json(record.body)])
        log.holders[key].add(member.number)


def without(members: Members, leaving: BackendInfo) -> Members:
    """The members as they are when one has left. Raises UsageError where there would be none, or none to write to."""
    present = {number: member for number, member in members.present.items() if number != leaving.number}
    left = Members(members.config, [info for info in members.all if info != leaving], present, unsure=members.unsure)
    if not left.writable:
        raise UsageError(
            f"without {leaving.location} no backend that answers may be written to; add or attach another one first"
        )
    return left


def leave(members: Members, log: Log, state: State, cache: Path, leaving: BackendInfo) -> None:
    """Take a backend out of the store: what records and manifests only it holds is copied to the others first. Its
    files stay where they are. Raises TooFewBackends, Unreadable."""
    members.require_writable()
    log.complete(members)
    left = without(members, leaving)
    everywhere, rest = Replicas(members, cache), Replicas(left, cache)
    for table in state.manifests:
        for file in state.files(table):
            _keep_manifest(left, file, everywhere, rest)
    everywhere.save()
    for key, record in log.records.items():
        if len(log.holders[key] & {member.number for member in left.writable}) < left.settle_count:
            left.put_everywhere(key, [seal_json(record.body)])
    record = make_record(new_id(state.newest), "backend", {"removes": [str(leaving.backend_id)]}, [])
    write_record(left, record)
    gone = members.present.get(leaving.number)
    if gone is not None and not leaving.read_only:
        try:
            gone.storage.write(record.key, [seal_json(record.body)])
        except BackendError as error:
            members.drop(leaving.number, str(error))  # it is out all the same: the record is settled without it


def _keep_manifest(left: Members, file: ManifestFile, everywhere: Replicas, rest: Replicas) -> None:
    """See to it that a manifest file is whole among those that stay, and on as many as a settled record."""
    copies = 0
    for member in left.present.values():
        try:
            copies += member.storage.size(file.key) == file.size
        except BackendError:
            continue
    try:
        whole = rest.path(file) if copies >= left.settle_count else ""
    except Unreadable:
        whole = ""
    if not whole:
        left.put_everywhere(file.key, [Path(everywhere.path(file)).read_bytes()])


def drop_removed(members: Members) -> None:
    """Drop the backends that somebody has removed since the members were found: nothing on them counts any more."""
    removed, read = set[uuid.UUID](), set[str]()
    for number, keys in list_records(members).items():
        for key in keys:
            if key.endswith(".backend.json") and key not in read:
                # Another copy may be whole.
                with suppress(BackendError, CorruptRecord, KeyError, TypeError, ValueError):
                    body, _ = open_json(members.present[number].storage.read(key))
                    removed.update(uuid.UUID(text(each)) for each in body.get("removes", ()))
                    read.add(key)
    for info in members.all:
        if info.backend_id in removed and info.number not in members.removed:
            members.failed.pop(info.number, None)
            members.drop(info.number, f"{info.location} was removed from the store meanwhile")
            members.vanished.add(info.number)
            members.removed.add(info.number)


__all__ = ["Joining", "TooFewBackends", "drop_removed", "find_info", "join", "joining", "leave", "without"]
