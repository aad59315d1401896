"""What Drystone wants to reach, as ratios within one run of the bench, and whether it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.results import LIMIT, Record, Results
from tests.bench.special import FILES, MEMORY, STREAM
from tests.bench.tools import MIB

OURS = "drystone"
#: Time for each byte, or each file, of the largest input may be this many times that of the smallest.
FLAT = 1.25
#: Memory for the largest stream may be this many times that for the smallest.
SAME = 1.1


@dataclass(frozen=True)
class Goal:
    """A figure that is to be at least, or at most (`least` false), `wanted`. `measured` gives None where the run has
    not what it takes."""

    text: str
    wanted: float
    measured: Callable[[Results], float | None]
    least: bool = True
    unit: str = "×"

    def judge(self, results: Results) -> tuple[float | None, str]:
        """(figure, verdict)."""
        figure = self.measured(results)
        if figure is None:
            return None, "not measured"
        good = figure >= self.wanted if self.least else figure <= self.wanted
        return figure, "reached" if good else "NOT REACHED"


def _faster(data: str, work: str, tool: str, theirs: str = "") -> Callable[[Results], float | None]:
    """How many times as long the tool takes (for its work `theirs`, where it is another)."""

    def measured(results: Results) -> float | None:
        ours, other = results.find(data, work, OURS), results.find(data, theirs or work, tool)
        if ours is None or other is None or not ours.wall or not other.wall:
            return None
        return other.wall / ours.wall

    return measured


def _part(data: str, work: str, tool: str, theirs: str = "") -> Callable[[Results], float | None]:
    inverse = _faster(data, work, tool, theirs)
    return lambda results: None if (times := inverse(results)) is None else 1 / times


def _stored(data: str, tool: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        ours, other = results.find(data, "ingest", OURS), results.find(data, "ingest", tool)
        if ours is None or other is None or not ours.stored or not other.stored:
            return None
        return ours.stored / other.stored

    return measured


def _read(data: str, work: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        record = results.find(data, work, OURS)
        return None if record is None or record.bytes_read is None else record.bytes_read / MIB

    return measured


def _most_memory(results: Results) -> float | None:
    seen = [record.pss for record in results.all() if record.tool == OURS and record.pss is not None]
    return max(seen) / MIB if seen else None


def _growth(data: str, figure: Callable[[Record], float | None]) -> Callable[[Results], float | None]:
    """How many times the figure of the smallest input that of the largest is; None with less than two."""

    def measured(results: Results) -> float | None:
        records = sorted(results.of_series(data), key=lambda record: int(record.work))
        if len(records) < 2:
            return None
        first, last = figure(records[0]), figure(records[-1])
        return last / first if first and last else None

    return measured


def _for_each(record: Record) -> float | None:
    return None if record.wall is None else record.wall / int(record.work)


GOALS = (
    Goal("ingest, small files (linux), against restic", 4.0, _faster("linux", "ingest", "restic")),
    Goal("ingest, small files (linux), against borg", 7.0, _faster("linux", "ingest", "borg")),
    Goal("ingest, small files (linux), against tar | zstd", 1.0, _faster("linux", "ingest", "tar+zstd")),
    Goal("ingest, one file of binaries (tar), against restic", 3.0, _faster("tar", "ingest", "restic")),
    Goal("ingest, one file of binaries (tar), against tar | zstd", 1.7, _faster("tar", "ingest", "tar+zstd")),
    Goal("ingest, incompressible (random), against restic", 3.0, _faster("random", "ingest", "restic")),
    Goal("second ingest, all re-read (linux), against restic", 3.0, _faster("linux", "reread", "restic")),
    Goal("second ingest, all re-read (tar), against restic", 3.0, _faster("tar", "reread", "restic")),
    Goal("second ingest, unchanged skipped (linux), against restic", 3.0, _faster("linux", "unchanged", "restic")),
    Goal("restore (linux), against restic", 3.5, _faster("linux", "restore", "restic")),
    Goal("restore (tar), against restic", 3.0, _faster("tar", "restore", "restic")),
    Goal("check all data (linux), against restic", 1.5, _faster("linux", "verify", "restic")),
    Goal("check all data (tar), against restic", 1.5, _faster("tar", "verify", "restic")),
    Goal("1 MiB of the object (tar), part of restic dump", 1 / 20, _part("tar", "range", "restic"), False),
    Goal("the same, bytes read of shards", 3.0, _read("tar", "range"), False, "MiB"),
    Goal("1 MiB, two backends gone, part of restic dump", 1 / 15, _part("tar", "range-lost", "restic", "range"), False),
    Goal("ingest, store on a disk (linux), against restic", 2.5, _faster("linux", "disk-ingest", "restic")),
    Goal("restore, store on a disk (linux), against restic", 2.5, _faster("linux", "disk-restore", "restic")),
    Goal("ingest, store on a disk (tar), against restic", 2.5, _faster("tar", "disk-ingest", "restic")),
    Goal("restore, store on a disk (tar), against restic", 2.5, _faster("tar", "disk-restore", "restic")),
    Goal("stored, small files (linux), part of restic", 0.8, _stored("linux", "restic"), False),
    Goal("stored, binaries (tar), part of restic", 0.95, _stored("tar", "restic"), False),
    Goal("ingest (tar), part of the limit's speed", 0.85, _faster("tar", "ingest", LIMIT)),
    Goal("peak memory, all works and data", 600.0, _most_memory, False, "MiB"),
    Goal("peak memory, longest stream against shortest", SAME, _growth(MEMORY, lambda record: record.pss), False),
    Goal("time for each byte, longest stream against shortest", FLAT, _growth(STREAM, _for_each), False),
    Goal("time for each file, most files against fewest", FLAT, _growth(FILES, _for_each), False),
)
