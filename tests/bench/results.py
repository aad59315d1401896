"""What was measured: for each data set, work and tool the samples of all rounds, and their medians."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tests.bench.measure import Usage

#: By name, in the order of the tables: what is measured, for people.
WORKS = {
    "ingest": "first ingest",
    "versions": "ingest of what it becomes later",
    "reread": "second ingest, all re-read",
    "unchanged": "second ingest, unchanged skipped",
    "restore": "restore",
    "verify": "check all data",
    "range": "1 MiB of the object",
    "range-lost": "1 MiB, two backends gone",
    "disk-ingest": "first ingest, store on a disk",
    "disk-restore": "restore, store on a disk",
}
#: Stands among the tools for what the bare kernels take; see limit.py.
LIMIT = "limit"


@dataclass
class Record:
    """One work of one tool on one data set: seconds, a sample each round; bytes; `parts`: seconds by kernel or stage,
    of the last round, and the workers of a stage."""

    data: str
    work: str
    tool: str
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    pss: int | None = None
    stored: int | None = None
    bytes_read: int | None = None
    parts: dict[str, float] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)

    @property
    def wall(self) -> float | None:
        return statistics.median(self.walls) if self.walls else None

    @property
    def cpu(self) -> float | None:
        return statistics.median(self.cpus) if self.cpus else None


class Results:
    """All records of a run of the bench."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str, str], Record] = {}

    def at(self, data: str, work: str, tool: str) -> Record:
        """The record, an empty one where there is none yet."""
        return self._records.setdefault((data, work, tool), Record(data, work, tool))

    def note(self, data: str, work: str, tool: str, usage: Usage) -> Record:
        """Add a sample: memory of a command that was sampled, else times. Returns its record."""
        record = self.at(data, work, tool)
        if usage.pss is None:
            record.walls.append(usage.wall)
            record.cpus.append(usage.cpu)
        else:
            record.pss = max(record.pss or 0, usage.pss)
        return record

    def find(self, data: str, work: str, tool: str) -> Record | None:
        return self._records.get((data, work, tool))

    def of(self, data: str, work: str) -> list[Record]:
        """Records of all tools, in the order in which they were first noted."""
        return [record for key, record in self._records.items() if key[:2] == (data, work)]

    def of_series(self, name: str) -> list[Record]:
        """Records whose works are numbers; see special.py."""
        return [record for key, record in self._records.items() if key[0] == name]

    def all(self) -> list[Record]:
        return list(self._records.values())

    def data(self) -> list[str]:
        """Names of the data sets, without series."""
        return list(dict.fromkeys(data for data, work, _ in self._records if work in WORKS))

    def as_json(self) -> list[dict[str, Any]]:
        return [{**vars(record), "wall": record.wall, "cpu": record.cpu} for record in self._records.values()]
