"""Backends join and leave a store: log records of kind `backend`.

A backend that joins gets all manifest files and records before the record that names it, so whoever counts it finds
there what it must hold. One that leaves is named by id in `removes`, for ever: a directory that comes back gets a new
id. Whether data would be lost with it is for the caller to know; here its records and manifests are seen to.

A change needs the backends that any write needs, so that it sees all settled records: but for the removal of backends
that do not answer, by the word of the user that they never will. What was recorded on these alone is lost with them; if
one comes back, opening the store names it (opening.py), and adding it takes its records in again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from manifests.access import PRIVATE, Access
from manifests.apart import is_same, is_seen_twice, require_apart
from manifests.armour import seal_json
from manifests.backends import BackendStorage, open_backend, parse_place
from manifests.config import text
from manifests.errors import BackendError, NotFound, StoreExists, TooFewBackends, Unreadable, UsageError
from manifests.finding import probe
from manifests.ids import NIL, new_id
from manifests.joined import backend_records
from manifests.log import FOLDER, Log, LogRecord, ManifestFile, State, make_record, write_record
from manifests.moving import is_where_recorded
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
        found = _infos_at(members, name) or found
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"{name!r} names {len(found)} backends; write more of the id (see: drystone backend list)")
    raise NotFound(f"the store has no backend {name!r}; see: drystone backend list")


def _infos_at(members: Members, name: str) -> list[BackendInfo]:
    """The backends at a place: those that are there, by whatever path, or else those that were there."""
    kind, place = parse_place(name)
    storage = open_backend(kind, place)
    here = [member.info for member in members.present.values() if is_same(storage, member.storage)]
    return here or [info for info in members.absent() if place in (info.location, os.path.realpath(info.location))]


def joining(
    members: Members,
    state: State,
    place: str | Path,
    *,
    backend_id: uuid.UUID | None = None,
    domain: str = "",
    read_only: bool = False,
    dry_run: bool = False,
) -> Joining:
    """What adding `place` comes to; nothing is written, but for a mark that is removed again, where a place may be one
    of the store's under another name, and not in a `dry_run`. Raises StoreExists where it holds something else,
    UsageError for an id that is not free, and for a place that is, or lies in, another one."""
    kind, location = parse_place(place)
    storage, found = open_backend(kind, location), probe(kind, location)
    if found is not None and found.store_id != members.config.store_id:
        raise StoreExists(f"{location} is a backend of another store, {found.store_id}")
    at_place = next((member for member in members.present.values() if is_same(storage, member.storage)), None)
    if at_place is not None:
        return _again(members, at_place, kind, backend_id, domain, read_only)
    if backend_id == NIL or backend_id in state.removed:
        reason = "stands for none" if backend_id == NIL else "was removed, and ids are not used again"
        raise UsageError(f"backend {backend_id} {reason}: give another id, or none")
    known = {info.backend_id: info for info in members.all}
    if found is not None and found.backend_id in known:
        info = known[found.backend_id]
        other = members.present.get(info.number)
        if other is not None:
            raise UsageError(_why_double(location, other.storage, found.storage, dry_run=dry_run))
        info = replace(info, type=kind, location=location, domain=domain or _domain_of(storage), read_only=read_only)
        return Joining(info, storage, True)
    require_apart(storage, [member.storage for member in members.readable])
    if found is None:
        storage.require_empty()
    if backend_id in known:
        raise UsageError(f"backend {backend_id} is there already, at {known[backend_id].location}")
    domain = domain or _domain_of(storage)
    info = BackendInfo(state.next_number, backend_id or new_id(state.newest), kind, location, domain, read_only)
    return Joining(info, storage, False)


def _again(
    members: Members, member: Member, kind: str, backend_id: uuid.UUID | None, domain: str, read_only: bool
) -> Joining:
    """What adding a member again comes to, by whatever path it was named."""
    location, info = member.storage.location, member.info
    if member.number in members.unsure:
        raise UsageError(f"{location} can't be told for sure: {members.unsure[member.number]}")
    if backend_id not in (None, info.backend_id):
        raise UsageError(f"{location} is backend {info.backend_id} already; an id never changes")
    if not is_where_recorded(member):
        info = replace(info, location=location)
    return Joining(replace(info, type=kind, domain=domain or info.domain, read_only=read_only), member.storage, True)


def _why_double(location: str, member: BackendStorage, place: BackendStorage, *, dry_run: bool) -> str:
    """Why a place with the id of a member that answers can't be added."""
    if not dry_run and is_seen_twice(member, place):
        return (
            f"{location} is the directory {member.location}, which is part of the store already, seen at another place"
        )
    return (
        f"{location} is a copy of {member.location}, which answers, and makes nothing safer; name a new or an empty "
        "directory"
    )


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
    """Make a backend a member: complete on it what each must hold, then write the record, unless that would tell
    nothing new. Raises TooFewBackends, and what reading manifests raises; until the record is settled, the store is
    what it was."""
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
        complete_onto(present[new.info.number], log, state, replicas)
    if new.info in members.all:
        return
    # More backends may bear more losses: then records must lie on more of them before anybody counts so.
    log.complete(grown)
    content = {"backends": [new.info.to_record()]}
    write_record(grown, make_record(new_id(state.newest), "backend", content, []))


def _access_of(members: Members) -> Access:
    """Who may use a backend that joins: those that may use the others."""
    first = members.writable[0].storage.access() if members.writable else PRIVATE
    return first if first.mode & 0o077 else Access(first.mode | 0o700)


def lacking(storage: BackendStorage, log: Log, state: State) -> tuple[list[ManifestFile], list[LogRecord]]:
    """The manifest files and the records that a backend should hold and does not. Raises BackendError."""
    sizes = dict(storage.list_sizes("manifests"))
    records = set(storage.list(FOLDER))
    return (
        [file for table in state.manifests for file in state.files(table) if sizes.get(file.key) != file.size],
        [record for key, record in log.records.items() if key not in records],
    )


def complete_onto(member: Member, log: Log, state: State, replicas: Replicas) -> None:
    """Write what a backend must hold and lacks: manifest files, then records."""
    storage = member.storage
    files, records = lacking(storage, log, state)
    for file in files:
        storage.write(file.key, [Path(replicas.path(file)).read_bytes()])
    replicas.save()
    for record in records:
        storage.write(record.key, [seal_json(record.body)])
    for holders in log.holders.values():
        holders.add(member.number)


def without(members: Members, leaving: Sequence[BackendInfo]) -> Members:
    """The members as they are when some have left. Raises UsageError where there would be none, or none to write to."""
    gone = {info.number for info in leaving}
    present = {number: member for number, member in members.present.items() if number not in gone}
    left = Members(
        members.config, [info for info in members.all if info not in leaving], present, unsure=members.unsure
    )
    if not left.writable:
        raise UsageError(
            f"without {_places(leaving)} no backend that answers may be written to; add or attach another one first"
        )
    return left


def require_may_leave(members: Members, leaving: Sequence[BackendInfo], *, forced: bool) -> None:
    """Raises TooFewBackends where so few backends answer that nobody may write; but for those that do not answer
    themselves, and are `forced` to leave, where the others can settle the record of it. CopiedStore."""
    members.require_sure()
    if not forced or any(info.number in members.present for info in leaving):
        members.require_writable()
    left = without(members, leaving)
    if len(left.writable) < left.settle_count:
        away = [info for info in members.absent() if info not in leaving]
        raise TooFewBackends(
            f"{len(left.writable)} backends that may be written to answer, and the removal must be recorded on "
            f"{left.settle_count}; absent are also {_places(away)}: attach them, or, if they are gone for good, "
            "remove all of them in one command"
        )


def _places(infos: Sequence[BackendInfo]) -> str:
    return ", ".join(info.location for info in infos)


def leave(members: Members, log: Log, state: State, everywhere: Replicas, leaving: Sequence[BackendInfo]) -> None:
    """Take backends out of the store: what records and manifests only they hold is copied to the others first. Their
    files stay where they are. Where settled records may be out of sight, what is on no backend that answers is given
    up. `everywhere`: replicas of `members`. Raises TooFewBackends, Unreadable."""
    left, sees_all = without(members, leaving), members.sees_all
    log.complete(members if sees_all else left)
    rest = everywhere.over(left)
    for table in state.manifests:
        for file in state.files(table):
            try:
                _keep_manifest(left, file, everywhere, rest)
            except Unreadable:
                if sees_all:
                    raise
    everywhere.save()
    for key, record in log.records.items():
        if len(log.holders[key] & {member.number for member in left.writable}) < left.settle_count:
            left.put_everywhere(key, [seal_json(record.body)])
    removes = [str(info.backend_id) for info in leaving]
    record = make_record(new_id(state.newest), "backend", {"removes": removes}, [])
    write_record(left, record)
    for info in leaving:
        gone = members.present.get(info.number)
        if gone is not None and not info.read_only:
            try:
                gone.storage.write(record.key, [seal_json(record.body)])
            except BackendError as error:
                members.drop(info.number, str(error))  # it is out all the same: the record is settled without it


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
    removed = set[uuid.UUID]()
    for body in backend_records(members):
        with suppress(TypeError, ValueError):
            removed.update(uuid.UUID(text(each)) for each in body.get("removes", ()))
    for info in members.all:
        if info.backend_id in removed and info.number not in members.removed:
            members.failed.pop(info.number, None)
            members.drop(info.number, f"{info.location} was removed from the store meanwhile")
            members.vanished.add(info.number)
            members.removed.add(info.number)


__all__ = [
    "Joining", "TooFewBackends", "complete_onto", "drop_removed", "find_info", "join", "joining", "lacking", "leave",
    "require_may_leave", "without",
]  # fmt: skip
