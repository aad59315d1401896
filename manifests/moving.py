"""Backends that were found elsewhere than where the log says, and how the log learns of it.

A directory above the backends leads to them wherever they are mounted now. The next command that writes notes the new
places in a record of kind `move`, so that each backend leads to the others, too. The place of a copy is never noted.
While its original is away, a copy looks like a disk that was mounted elsewhere; only the times of its files tell. A
file system sets the change time of a file, and no copying program can set it back. So a backend is surely no copy if
its backend.json has not changed since the first record that names the backend was written.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import replace

from manifests.backends import BACKEND_TYPES, open_backend
from manifests.errors import BackendError
from manifests.ids import new_id
from manifests.jsontext import path_entries
from manifests.log import LogRecord, State, make_record, write_record
from manifests.store import BACKEND_KEY, BackendInfo, Member, Members

#: How much later than the record a backend.json may seem to be, in seconds: clocks of file systems are coarse.
_SLACK = 0.05


def find_moved(members: Members, state: State, doubtful: Collection[int] = ()) -> None:
    """Note in `members` which of them lie elsewhere than where the log says: in `moved` what the log should say of
    those that surely are no copies, in `unrecorded` the others and those that are `doubtful`. One that is reached by
    another path to the same directory lies where it did."""
    for member in members.present.values():
        if member.number in members.unsure or is_where_recorded(member):
            continue
        if member.number not in doubtful and _is_first(member, state):
            members.moved.append(_info_here(member))
        else:
            members.unrecorded.append(member.storage.location)


def is_where_recorded(member: Member) -> bool:
    """Whether the place that the log names leads to the directory of a backend."""
    info, storage = member.info, member.storage
    if storage.location == info.location or info.type not in BACKEND_TYPES:
        return True
    try:
        return open_backend(info.type, info.location).identity() == storage.identity()
    except BackendError:
        return False


def _info_here(member: Member) -> BackendInfo:
    """What the log should say of a backend: where it is, and which device that is, where the device is its domain."""
    info, storage = member.info, member.storage
    try:
        domain = storage.device() if info.domain.startswith("device:") else info.domain
    except BackendError:
        domain = info.domain
    return replace(info, location=storage.location, domain=domain)


def _is_first(member: Member, state: State) -> bool:
    """Whether the files of a backend are those that were written when it joined, and no copy of them."""
    try:
        joined = datetime.datetime.fromisoformat(state.joined[member.info.backend_id]).timestamp()
        changed = member.storage.changed(BACKEND_KEY)
    except (BackendError, KeyError, ValueError):
        return False
    return changed is not None and changed <= joined + _SLACK


def note_moves(members: Members, state: State) -> LogRecord | None:
    """Write down where the members are that surely moved; None where the log knows it. Raises TooFewBackends."""
    if not members.moved:
        return None
    record = make_record(new_id(state.newest), "move", {"places": list(map(_entry, members.moved))}, [])
    write_record(members, record)
    here = {info.number: info for info in members.moved}
    members.all = [here.get(info.number, info) for info in members.all]
    members.present = {
        number: replace(member, info=here.get(number, member.info)) for number, member in members.present.items()
    }
    members.moved = []
    return record


def _entry(info: BackendInfo) -> dict[str, str]:
    return {"id": str(info.backend_id), **path_entries("location", info.location), "domain": info.domain}


__all__ = ["find_moved", "is_where_recorded", "note_moves"]
