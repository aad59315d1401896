"""A store is opened: its members, its log and the log's fold.

What lies in the place that was named comes first. Only then are backends looked for where the log says they are, which
is told; and never from a copy: what it lacks is not taken from its original.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.armour import mend_json, open_json
from manifests.backends import BACKEND_TYPES
from manifests.config import StoreConfig
from manifests.counts import counted
from manifests.errors import BackendError, CopiedStore, CorruptRecord, NotFound
from manifests.finding import (
    UNFINISHED,
    Assignment,
    Copy,
    Finding,
    FoundBackend,
    assign,
    find_again,
    find_backends,
    find_copies,
    hinted_places,
    probe,
    without_originals,
)
from manifests.log import FOLDER as LOG_FOLDER
from manifests.log import RECORD_KEY, Log, State, fold
from manifests.moving import find_moved
from manifests.store import STORE_KEY, BackendInfo, Members, family

if TYPE_CHECKING:
    import uuid


def open_store(location: str | Path) -> tuple[Members, Log, State]:
    """Find a store from a directory above its backends or any one of them: its members, its log and the log's fold.
    Raises NotFound, UsageError, UnsupportedFormat, CorruptRecord, CopiedStore where a copy has half of its own ids."""
    return _open(find_backends(location))


def reopen_store(location: str, members: Members) -> tuple[Members, Log, State]:
    """Find the backends of an open store anew: around `location`, which the user named, and where `members` were. What
    belongs to another store by now is passed over, and what was a copy stays one. Raises NotFound where no backend
    answers, and what `open_store` raises."""
    opened, log, state = _open(find_again(location, members))
    opened.copied = opened.copied or members.copied
    return opened, log, state


def _open(finding: Finding) -> tuple[Members, Log, State]:
    store_id = finding.store_id
    near = {each.storage.location for each in finding.places}
    tried = {(family(each.storage.type), each.storage.location) for each in finding.places}
    copies: list[Copy] | None = None
    removed = list[FoundBackend]()
    while True:
        log = Log.gather((number, backend.storage) for number, backend in enumerate(finding.places))
        state = fold(log.records.values())
        infos = state.backends
        if copies is None:
            copies = find_copies(infos, finding)
            if copies and finding.named is not None:
                # What lies beside a copy and is no copy is not taken for a part of it.
                finding.places = [finding.named, *without_originals(infos, finding.places[1:])]
                continue
        if any(each.backend_id in state.renamed for each in finding.places):
            raise CopiedStore(UNFINISHED.format(finding.place))
        returned = [each for each in finding.places if each.backend_id in state.removed]
        if 0 < len(returned) < len(finding.places):
            # What they alone tell counts no more: they were taken out, and may be old.
            removed += returned
            finding.places = [each for each in finding.places if each not in returned]
            continue
        assigned = assign(infos, finding.places)
        places = _hints(infos, assigned, forbidden=infos if copies else ()) - tried
        tried |= places
        fresh = [each for place in sorted(places) if (each := probe(*place)) and finding.holds(each)]
        if copies:
            fresh = without_originals(infos, fresh)
        if not fresh:
            break
        finding.places += fresh
    if returned:
        away = ", ".join(info.location for info in infos) or "none is known"
        raise NotFound(
            f"{returned[0].storage.location} was removed from its store, and none of the others answers; attach them: "
            f"{away}"
        )
    config, healed = _read_config(finding.places, store_id)
    if not infos:
        trouble = "; ".join([*log.lost.values(), *log.unlisted.values()]) or "there is none"
        raise CorruptRecord(f"{finding.place}: no log record names the store's backends: {trouble}")
    present, unsure = assigned.present, assigned.unsure
    log = Log.read((number, member.storage) for number, member in present.items())
    for number, reason in log.unlisted.items():
        unsure.setdefault(number, reason)
    count = healed + log.healed + len(unsure) + sum(backend.healed for backend in finding.places)
    members = Members(config, infos, present, unsure=unsure, healed=count)
    members.copied = _what_is_copied(copies)
    if copies:
        members.failed.update((info.number, "it is not part of this copy") for info in members.absent())
    state = fold(log.records.values())
    if not copies:
        find_moved(members, state, {used.number for _, used in assigned.spare})
        removed += [each for info in state.left if (each := _returned(info, tried, store_id))]
    members.notices = [*_notices(finding, members, assigned), *_notices_of_removed(finding, removed, log)]
    members.asides = list(_asides(finding, members, near))
    return members, log, state


def _returned(info: BackendInfo, tried: set[tuple[str, str]], store_id: uuid.UUID) -> FoundBackend | None:
    """A backend that was removed, and lies where it was."""
    if info.type not in BACKEND_TYPES or (info.family, info.location) in tried:
        return None
    found = probe(info.type, info.location)
    return found if found and (found.store_id, found.backend_id) == (store_id, info.backend_id) else None


def _notices_of_removed(finding: Finding, removed: Sequence[FoundBackend], log: Log) -> Iterator[str]:
    """What a place that left the store has that the store has not; a place that was named is told of in any case."""
    for each in removed:
        place = each.storage.location
        try:
            keys = {key for key in each.storage.list(LOG_FOLDER) if RECORD_KEY.fullmatch(key)} - log.holders.keys()
        except BackendError as error:
            yield f"{place} was removed from the store, and what only it holds can't be told: {error}"
            continue
        if keys:
            runs = sum(key.endswith(".ingest.json") for key in keys)
            records = f"{len(keys):,} record{'s' * (len(keys) != 1)}"
            of_runs = f", {runs:,} of them of runs," if runs else ""
            yield (
                f"{place} was removed from the store, and is not read; it holds {records}{of_runs} that no other "
                f"backend has; to take them in again: drystone backend add {place}"
            )
        elif each is finding.named:
            yield f"{place} was removed from the store, and is not read; the others are"


def _hints(
    infos: Sequence[BackendInfo], assigned: Assignment, forbidden: Sequence[BackendInfo]
) -> set[tuple[str, str]]:
    """Where backends that are missing, or not sure, may lie; but for where the log says that `forbidden` ones do."""
    here = [(member.info, member.storage.location) for member in assigned.present.values()]
    missing = [info for info in infos if info.number not in assigned.present or info.number in assigned.unsure]
    places = {
        (info.family, place) for info in missing if info.type in BACKEND_TYPES for place in hinted_places(info, here)
    }
    return places - {(info.family, info.location) for info in forbidden}


def _what_is_copied(copies: Sequence[Copy]) -> str:
    if not copies:
        return ""
    first = copies[0]
    original = first.original.storage.location
    above = {os.path.dirname(each.original.storage.location) for each in copies}
    named = above.pop() if len(copies) > 1 and len(above) == 1 else original
    return (
        f"{first.place.storage.location} is a copy of {original}, which answers, too, so nothing is written to it: to "
        f"use the original, give -s {named}; to make a store of its own of the copy, give --adopt-copy"
    )


def _notices(finding: Finding, members: Members, assigned: Assignment) -> Iterator[str]:
    """What the user should know of where the backends were found."""
    if members.copied:
        yield f"{finding.place} holds a copy of a store that answers elsewhere, too; it is read alone"
    for place, used in assigned.spare:
        yield (
            f"{place.storage.location} has the id of {used.storage.location}, which is used: it is a copy, and left "
            "alone"
        )


def _asides(finding: Finding, members: Members, near: set[str]) -> Iterator[str]:
    """What may be known besides: that a directory does not hold all backends, and the log led to the others."""
    places = [each.storage.location for each in members.present.values()]
    away = [place for place in places if place not in near]
    if away and finding.named is None and not members.copied:
        yield (
            f"{finding.place} holds {len(places) - len(away)} of {counted(members.count, 'backend')}; found where the "
            f"log says they are: {', '.join(away)}"
        )


def _read_config(found: Iterable[FoundBackend], store_id: uuid.UUID) -> tuple[StoreConfig, bool]:
    """The store's settings from the first store.json that is whole or heals, or out of all together; and whether one
    had to be passed over or healed."""
    copies: list[bytes] = []
    reasons: list[str] = []
    for backend in found:
        where = f"{backend.storage.location}/{STORE_KEY}"
        try:
            sealed = backend.storage.read(STORE_KEY)
            try:
                record, healed = open_json(sealed)
            except CorruptRecord:
                copies.append(sealed)
                raise
            config = StoreConfig.from_record(record, where)
            if config.store_id == store_id:
                return config, healed or bool(reasons)
            reasons.append(f"{where} is that of another store")
        except (BackendError, CorruptRecord) as error:
            reasons.append(f"{where}: {error}")
    try:
        config = StoreConfig.from_record(mend_json(copies), STORE_KEY)
        if config.store_id != store_id:
            raise CorruptRecord("what its copies make together is that of another store")
        return config, True
    except CorruptRecord as error:
        raise CorruptRecord(f"no backend that answers has a readable {STORE_KEY}: {'; '.join(reasons)}") from error
