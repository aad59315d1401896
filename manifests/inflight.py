"""Traces of a run under way: a marker, written before the index is read, and a journal of packs whose shards are
durable. They lie in inflight/<run>/ on every backend, and go when the run is committed.
"""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import suppress
from typing import Any

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from manifests.errors import BackendError, CorruptRecord
from manifests.log import utc_now
from manifests.store import Members

FOLDER = "inflight"
#: Packs in one journal file: a file for each would cost as many fsyncs as the shards themselves.
JOURNAL_PACKS = 8


class Inflight:
    """The traces of one run. Owned by its supervisor."""

    def __init__(self, members: Members, run_id: uuid.UUID) -> None:
        self._members = members
        self._run_id = run_id
        self._folder = f"{FOLDER}/{run_id}"
        self._packs: list[str] = []
        self._files = 0

    def _put(self, name: str, content: dict[str, Any]) -> None:
        record = {"format": fmt.FORMAT_NAME, "type": name.partition("-")[0].partition(".")[0], **content}
        self._members.put_everywhere(f"{self._folder}/{name}", [seal_json(record)])

    def begin(self) -> None:
        """Write the marker."""
        self._put(
            "marker.json",
            {"run": str(self._run_id), "time": utc_now(), "host": socket.gethostname(), "pid": os.getpid()},
        )

    def note_pack(self, pack_id: uuid.UUID) -> None:
        """Note a pack whose shards are durable."""
        self._packs.append(str(pack_id))
        if len(self._packs) >= JOURNAL_PACKS:
            self.flush()

    def flush(self) -> None:
        """Write the noted packs as the next journal file, with the heartbeat that it is."""
        if self._packs:
            self._put(f"journal-{self._files:08}.json", {"packs": self._packs, "heartbeat": self._files})
            self._files, self._packs = self._files + 1, []

    def end(self) -> None:
        """Remove all traces: the run is committed, or wrote nothing."""
        for member in self._members.writable:
            with suppress(BackendError):
                member.storage.remove_folder(self._folder)


def unfinished(members: Members) -> dict[uuid.UUID, list[uuid.UUID]]:
    """Runs with traces on a backend, and the packs that they journalled. Damaged traces count as none: what they name
    is stored again."""
    runs: dict[uuid.UUID, list[uuid.UUID]] = {}
    for member in members.present.values():
        for key in member.storage.list(FOLDER):
            parts = key.split("/")
            try:
                packs = runs.setdefault(uuid.UUID(parts[1]), [])
                if parts[2].startswith("journal-"):
                    record, _ = open_json(member.storage.read(key))
                    packs.extend({uuid.UUID(pack) for pack in record["packs"]} - set(packs))
            except (BackendError, CorruptRecord, ValueError, KeyError, IndexError):
                continue
    return runs
