"""A copy of a store gets ids of its own, so that it and its original never mix.

First a record with all the new ids is written to every backend of the copy, then each gets its new store.json and
backend.json. Where that is interrupted, the record on a backend still tells what it is to become. Shards are not
touched: they name the store that wrote them, and the copy's store.json says that these are its own, too.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifests import format as fmt
from manifests.apart import is_same, is_seen_twice
from manifests.armour import open_json, seal_json
from manifests.backends import parse_place
from manifests.changing import changing
from manifests.config import StoreConfig, text
from manifests.errors import BackendError, CorruptRecord, UsageError
from manifests.finding import ADOPT, FoundBackend, adoptions, hinted_places, look_around, probe
from manifests.ids import new_id
from manifests.log import FOLDER, make_record
from manifests.opening import open_store
from manifests.storage import Buffer
from manifests.store import STORE_KEY, BackendInfo, Members, write_identity


def adopt_copy(location: str | Path) -> None:
    """Make a store of its own of the copy at `location`, or finish that. Nothing is taken from its original, nor
    changed there. Raises UsageError where it is no copy (any more), or a backend of it can't be told for sure;
    StoreBusy where somebody else adopts it; BackendError."""
    own, near = look_around(*parse_place(location))
    around = [*([own] if own else []), *near]
    places = [place.storage for place in around if _family(place) & _family(around[0])]

    def write(key: str, pieces: Sequence[Buffer]) -> None:
        for storage in places:
            storage.write(key, pieces)

    with changing("adoption of this copy", places, write):
        _adopt(location)


def _family(place: FoundBackend) -> frozenset[uuid.UUID]:
    """The stores that a place is of, or was: a copy that was adopted in part belongs together all the same."""
    return place.origins | {place.store_id}


def _adopt(location: str | Path) -> None:
    """Nobody else adopts it meanwhile: two would each give it ids, and their records together name twice the backends
    that there are."""
    if _finish(location):
        return
    members, _, state = open_store(location)
    if members.unsure:
        raise UsageError(f"no copy can be adopted of which a backend is in doubt: {'; '.join(members.unsure.values())}")
    _require_copy(members)
    store_id = uuid.uuid4()
    infos = list(_own_infos(members))
    identities = [
        {"from": str(info.backend_id), **own.to_record(), "copied": info.number in members.present}
        for info, own in zip(members.all, infos, strict=True)
    ]
    content = {"store_id": str(store_id), "origin": str(members.config.store_id), "identities": identities}
    record = make_record(new_id(state.newest), ADOPT, content, [], fmt.INCOMPAT_ORIGINS)
    for member in members.present.values():
        member.storage.write(record.key, [seal_json(record.body)])
    for info, own in zip(members.all, infos, strict=True):
        if info.number in members.present:
            write_identity(members.config.copied_as(store_id), own, members.present[info.number].storage)


def _require_copy(members: Members) -> None:
    """Raise UsageError where one of the backends is the original itself, by its place or under another name."""
    for member in members.present.values():
        info, here = member.info, member.storage
        there = probe(info.type, info.location)
        if there is None or there.backend_id != info.backend_id:
            continue
        if is_same(there.storage, here):
            raise UsageError(
                f"{here.location} is no copy: it lies where the log says that it does; nothing was changed"
            )
        if is_seen_twice(here, there.storage):
            raise UsageError(
                f"{here.location} and {info.location} are the same directory at two places, and no copy; nothing was "
                "changed"
            )


def _own_infos(members: Members) -> Iterator[BackendInfo]:
    """What the backends are from now on: new ids and places, what was a device is the one that they lie on."""
    here = [(member.info, member.storage.location) for member in members.present.values()]
    for info in members.all:
        own, member = replace(info, backend_id=new_id()), members.present.get(info.number)
        if member is None:
            places = [place for place in hinted_places(info, here) if place != info.location]
            yield replace(own, location=places[0] if places else info.location)
        else:
            domain = member.storage.device() if info.domain.startswith("device:") else info.domain
            yield replace(own, location=member.storage.location, domain=domain)


def _finish(location: str | Path) -> bool:
    """Give their identity to the backends that have the record of it already, and to those that were to get it;
    whether there were any."""
    own, near = look_around(*parse_place(location))
    around = [*([own] if own else []), *near]
    waiting: dict[str, tuple[FoundBackend, dict[str, Any]]] = {}
    for record in (record for each in around for record in adoptions(each)):
        for entry in record["identities"]:
            info = BackendInfo.from_record(entry)
            there = probe(info.type, info.location) if entry["copied"] else None
            for place in [*around, *([there] if there else [])]:
                if str(place.backend_id) == entry["from"] and (place is there or record in adoptions(place)):
                    waiting[place.storage.location] = place, record
    for place, record in waiting.values():
        place.storage.write(f"{FOLDER}/{record['id']}.{ADOPT}.json", [seal_json(record)])
    for place, record in waiting.values():
        entry = next(entry for entry in record["identities"] if entry["from"] == str(place.backend_id))
        config = _config([place for place, _ in waiting.values()], record)
        write_identity(config, BackendInfo.from_record(entry), place.storage)
    return bool(waiting)


def _config(places: Sequence[FoundBackend], record: dict[str, Any]) -> StoreConfig:
    """The settings of the store that `record` makes of the one that `places` belong to."""
    origin, store_id = uuid.UUID(text(record["origin"])), uuid.UUID(text(record["store_id"]))
    for place in places:
        try:
            config = StoreConfig.from_record(open_json(place.storage.read(STORE_KEY))[0], place.storage.location)
        except (BackendError, CorruptRecord):
            continue  # another one has it, too
        if config.store_id in (origin, store_id):
            return config if config.store_id == store_id else config.copied_as(store_id)
    raise CorruptRecord(f"no backend of the copy has a readable {STORE_KEY} of store {origin}")
