"""Backends that joined while somebody else was about to write a record.

Whoever writes a record looks afterwards which backends have joined since the members were found, and gives it to them.
Whoever adds a backend looks for records after its own, and gives those to the new one. Each writes before it looks, so
of the two at least one sees the other.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from manifests.armour import open_json, seal_json
from manifests.backends import open_backend
from manifests.config import text
from manifests.errors import BackendError, CorruptRecord, UsageError
from manifests.log import LogRecord, list_records, whole_copy
from manifests.store import BACKEND_KEY, BackendInfo, Members, read_ids


def give_to_joined(members: Members, record: LogRecord) -> list[str]:
    """Write a settled record, and before it the manifest files that it names, to the backends that joined since the
    members were found. What could not be written, as sentences."""
    missed = []
    for info in _joined(members):
        try:
            storage = open_backend(info.type, info.location)
            if read_ids(storage, BACKEND_KEY, "store_id", "backend_id")[0] != (
                members.config.store_id,
                info.backend_id,
            ):
                raise BackendError("another backend is there")
            for file in record.adds():
                source = whole_copy(members, file)
                if source is None:
                    raise BackendError(f"no whole copy of {file.key} is left")
                storage.write(file.key, [source])
            storage.write(record.key, [seal_json(record.body)])
        except (BackendError, CorruptRecord, UsageError) as error:
            missed.append(
                f"{info.location} joined meanwhile, and lacks what was recorded: {error}; to give it what it lacks: "
                f"drystone backend add {info.location}"
            )
    return missed


def backend_records(members: Members) -> list[dict[str, Any]]:
    """What the log says now of backends that join and leave, as bodies of records. A copy that can't be read is passed
    over, for another may be whole."""
    bodies = dict[str, dict[str, Any]]()
    for number, keys in list_records(members).items():
        for key in keys:
            if key.endswith(".backend.json") and key not in bodies:
                with suppress(BackendError, CorruptRecord):
                    bodies[key] = open_json(members.present[number].storage.read(key))[0]
    return list(bodies.values())


def _joined(members: Members) -> list[BackendInfo]:
    """Backends that the members don't include, that may be written to, and that nobody removed again."""
    known, removed = {info.backend_id for info in members.all}, set[uuid.UUID]()
    found = dict[uuid.UUID, BackendInfo]()
    for body in sorted(backend_records(members), key=lambda body: str(body.get("id"))):
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # whoever opens the store names such a record
            removed.update(uuid.UUID(text(each)) for each in body.get("removes", ()))
            found.update((info.backend_id, info) for info in map(BackendInfo.from_record, body.get("backends", ())))
    return [info for identity, info in found.items() if identity not in known | removed and not info.read_only]


__all__ = ["backend_records", "give_to_joined"]
