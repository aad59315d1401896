"""Traces of a run under way: a marker, written before the index is read, and a journal of packs whose shards are
durable. They lie in inflight/<run>/ on every backend, and go when the run is committed, or when a later run has taken
over what it left.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from manifests.config import text
from manifests.errors import BackendError, CorruptRecord, DrystoneError
from manifests.log import utc_now
from manifests.processes import ProcessMark
from manifests.store import Members

FOLDER = "inflight"
#: Packs in one journal file: a file for each would cost as many fsyncs as the shards themselves. What a killed run did
#: not come to note is found by listing packs (pipeline/ingest/strays.py).
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

    def _put_journal(self, ended: bool) -> None:
        name = f"journal-{self._files:08}.json"
        self._put(name, {"packs": self._packs, "heartbeat": self._files, "ended": ended})
        self._files, self._packs = self._files + 1, []

    def begin(self) -> None:
        """Write the marker."""
        self._put("marker.json", {"run": str(self._run_id), "time": utc_now(), **ProcessMark.here().to_record()})

    def note_pack(self, pack_id: uuid.UUID) -> None:
        """Note a pack whose shards are durable."""
        self._packs.append(str(pack_id))
        if len(self._packs) >= JOURNAL_PACKS:
            self.flush()

    def flush(self) -> None:
        """Write the noted packs as the next journal file, with the heartbeat that it is."""
        if self._packs:
            self._put_journal(ended=False)

    def give_up(self) -> None:
        """Write what was noted and that the run is over, for the next run to take over. Best effort: where it fails, as
        on disks that are full, the next run finds the packs by listing them, once this process is gone."""
        with suppress(DrystoneError):
            self._put_journal(ended=True)

    def end(self) -> None:
        """Remove all traces: the run is committed, or wrote nothing."""
        remove_traces(self._members, self._run_id)


def remove_traces(members: Members, run_id: uuid.UUID) -> None:
    """Remove the traces of a run. Best effort: what stays is seen again."""
    for member in members.writable:
        with suppress(BackendError):
            member.storage.remove_folder(f"{FOLDER}/{run_id}")


@dataclass
class Unfinished:
    """A run with traces. `packs`: those that it journalled; `ended`: it noted that it gave up; `process`: the one that
    it belongs to, `time`: when it began, RFC 3339; None and empty where its marker can't be read."""

    run_id: uuid.UUID
    packs: list[uuid.UUID] = field(default_factory=list)
    ended: bool = False
    process: ProcessMark | None = None
    time: str = ""

    @cached_property
    def state(self) -> str:
        """What became of it: `stopped`, as it noted itself; `died`, or `running`, as its process, which is of this
        machine, tells; or `unknown`."""
        if self.ended:
            return "stopped"
        gone = None if self.process is None else self.process.is_gone()
        return "unknown" if gone is None else "died" if gone else "running"

    @property
    def over(self) -> bool:
        """Whether it surely writes nothing more."""
        return self.state in ("stopped", "died")


def unfinished(members: Members) -> tuple[list[Unfinished], dict[int, str]]:
    """Runs with traces on a backend, the oldest first, and backends that could not be looked at, and why. Damaged
    traces count as none: what they name is stored again."""
    runs: dict[uuid.UUID, Unfinished] = {}
    troubles: dict[int, str] = {}
    for member in members.present.values():
        try:
            for key in member.storage.list(FOLDER):
                with suppress(BackendError, CorruptRecord, ValueError, KeyError, IndexError, TypeError):
                    _, name, file = key.split("/")
                    run_id = uuid.UUID(name)
                    run = runs.setdefault(run_id, Unfinished(run_id))
                    if file.startswith("journal-"):
                        record, _ = open_json(member.storage.read(key))
                        packs = {uuid.UUID(text(pack)) for pack in record["packs"]} - set(run.packs)
                        run.packs.extend(packs)
                        run.ended = run.ended or record.get("ended") is True
                    elif file == "marker.json" and run.process is None:
                        record, _ = open_json(member.storage.read(key))
                        run.time, run.process = text(record["time"]), ProcessMark.from_record(record)
        except BackendError as error:
            troubles[member.number] = str(error)
    return sorted(runs.values(), key=lambda run: run.run_id.int), troubles
