"""What a verification leaves behind: a log record of kind `scrub`, and rows of the table `scrubs` for what it found.

Of each pack that it could not read there is a row without a shard. The last note counts (`State.unreadable_notes`): an
ingest stores again what lies in these packs, and who reads takes another copy first.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.errors import BackendError
from manifests.ids import new_id
from manifests.log import Log, LogRecord, ManifestFile, State, make_record, write_record
from manifests.store import Members
from manifests.tables import TableWriter, file_name

_ROWS_AT_ONCE = 64 << 10


@dataclass(frozen=True)
class ShardFinding:
    """A shard that is not what it should be: `bad_cells` of it, or all of it where it is `missing`; neither where its
    records or tables are damaged."""

    pack_id: bytes
    shard: int
    bad_cells: int = 0
    missing: bool = False


def note_verification(
    members: Members,
    log: Log,
    state: State,
    facts: dict[str, Any],
    findings: Sequence[ShardFinding],
    key_of: Callable[[ShardFinding], str],
    unreadable: Sequence[bytes] = (),
) -> LogRecord:
    """Write what a verification came to; `facts`: the record's `scrub`, as FORMAT.md has it; `key_of`: key of the shard
    of a finding; `unreadable`: ids of packs of which it could not give back all chunks. Raises DrystoneError where the
    store can't be written to; `members` stay what they were. Returns the record."""
    members = replace(members, present=dict(members.present), failed=dict(members.failed))
    members.require_writable()
    log.complete(members)
    record_id = new_id(state.newest)
    files: list[ManifestFile] = []
    if findings or unreadable:
        files.append(_write_findings(members, record_id, findings, key_of, unreadable))
    record = make_record(record_id, "scrub", {"scrub": facts}, files)
    write_record(members, record)
    return record


def _write_findings(
    members: Members,
    record_id: uuid.UUID,
    findings: Sequence[ShardFinding],
    key_of: Callable[[ShardFinding], str],
    unreadable: Sequence[bytes],
) -> ManifestFile:
    now, writer = time.time_ns(), TableWriter("scrubs")
    try:
        for start in range(0, len(findings), _ROWS_AT_ONCE):
            found = findings[start : start + _ROWS_AT_ONCE]
            numbers = [None if each.missing else _found_on(members, key_of(each)) for each in found]
            writer.append(
                {
                    "time": np.full(len(found), now, np.int64),
                    "pack_id": pa.array([each.pack_id for each in found], pa.binary(16)),
                    "shard": np.array([each.shard for each in found], np.uint8),
                    "backend": pa.array(numbers, pa.uint16()),
                    "bad_cells": np.array([each.bad_cells for each in found], np.uint32),
                    "missing": np.array([each.missing for each in found], np.bool_),
                }
            )
        for start in range(0, len(unreadable), _ROWS_AT_ONCE):
            packs = pa.array(unreadable[start : start + _ROWS_AT_ONCE], pa.binary(16))
            writer.append({"time": np.full(len(packs), now, np.int64), "pack_id": packs})
        return writer.publish(members, file_name(record_id, 0))
    except BaseException:
        writer.close()
        raise


def _found_on(members: Members, key: str) -> int | None:
    """The first backend that holds a file of this key."""
    for member in members.present.values():
        try:
            if member.storage.exists(key):
                return member.number
        except BackendError:
            continue
    return None
