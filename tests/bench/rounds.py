"""The rounds: all works of all tools on one data set, the tools in turn.

A round takes each tool through its works in order, in a store of its own. After the rounds that are timed comes one in
which the memory of the process trees is sampled, and in which it is checked that what was restored is what was
archived.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import string
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import limit
from tests.bench.datasets import DataSet
from tests.bench.measure import SAMPLING, BenchError, Command, Usage, run, warm_cache, warm_memory
from tests.bench.results import LIMIT, Results
from tests.bench.tools import MIB, Drystone, Site, Tool

RANGE_LENGTH = MIB
#: Memory that is touched before each command, of the size of the data: a restored tree, and half of it for a store.
WARMED = 1.5


@dataclass(frozen=True)
class Plan:
    """What a run of the bench does. `scratch`: a folder on tmpfs, for stores and output; `disk`: one on a real disk, or
    None. `cores`: those that the limit is divided by."""

    tools: Sequence[Tool]
    works: Collection[str]
    rounds: int
    scratch: Path
    disk: Path | None
    cores: int
    with_limit: bool = True
    with_memory: bool = True
    say: Callable[[str], None] = lambda line: None


def measure(plan: Plan, data: DataSet, results: Results, disk: bool) -> list[str]:
    """All rounds on one data set; `disk`: also with stores on the disk. A tool that fails is left out of the rounds
    that follow; returns what failed. Raises BenchError where the limit can't be measured."""
    failed: dict[str, str] = {}
    for number in range(plan.rounds + plan.with_memory):
        sampled = number == plan.rounds
        for tool in plan.tools:
            if tool.name in failed:
                continue
            plan.say(f"{data.name}: {'memory' if sampled else f'round {number + 1}'}: {tool.name}")
            for path in (data.path, *data.versions):
                warm_cache(path)
            try:
                one_round(plan, tool, data, results, SAMPLING if sampled else 0.0)
                if disk and plan.disk is not None and tool.syncs and not sampled:
                    disk_round(plan, tool, data, results, plan.disk)
            except BenchError as error:
                failed[tool.name] = f"{data.name}: {tool.name}: {error}"
                plan.say(failed[tool.name])
        if plan.with_limit and not sampled:
            plan.say(f"{data.name}: round {number + 1}: limit")
            warm_memory(plan.scratch, int(data.bytes * WARMED))
            note_limit(plan, data, results)
    return list(failed.values())


@contextmanager
def fresh_site(store: Path, scratch: Path) -> Iterator[Site]:
    """Empty places to work in; all is removed at the end."""
    site = Site(store / "store", scratch / "back", scratch / "cache")
    site.cache.mkdir()
    try:
        yield site
    finally:
        for path in (site.store, site.back, site.cache):
            shutil.rmtree(path, ignore_errors=True)


class Turn:
    """One tool's turn: its commands, and where the figures go."""

    def __init__(self, plan: Plan, tool: Tool, data: DataSet, results: Results, sampling: float) -> None:
        self._plan, self._tool, self._data, self._results, self._sampling = plan, tool, data, results, sampling

    def measured(self, work: str, *commands: Command | None) -> None:
        """Run a work's commands, one after the other; nothing where the tool has none."""
        total: Usage | None = None
        for command in commands:
            if command is None:
                return
            warm_memory(self._plan.scratch, int(self._data.bytes * WARMED))
            usage = run(command, self._sampling)
            total = usage if total is None else total + usage
        if total is not None:
            self._results.note(self._data.name, work, self._tool.name, total)

    def note_stored(self, work: str, site: Site) -> None:
        self._results.at(self._data.name, work, self._tool.name).stored = self._tool.stored(site)


def one_round(plan: Plan, tool: Tool, data: DataSet, results: Results, sampling: float) -> None:
    """All works of one tool on tmpfs. With `sampling` in seconds memory is measured, else time. Raises BenchError."""
    turn = Turn(plan, tool, data, results, sampling)
    labels = iter(string.ascii_lowercase)
    with fresh_site(plan.scratch, plan.scratch) as site:
        create(tool, site)
        label = next(labels)
        turn.measured("ingest", tool.ingest(site, data.path, label))
        turn.note_stored("ingest", site)
        if data.versions and "versions" in plan.works:
            named = [(version, next(labels)) for version in data.versions]
            turn.measured("versions", *(tool.ingest(site, version, each) for version, each in named))
            turn.note_stored("versions", site)
            label = named[-1][1]
        source = data.latest if data.versions and "versions" in plan.works else data.path
        if "reread" in plan.works:
            turn.measured("reread", tool.reread(site, source, next(labels)))
        if "unchanged" in plan.works:
            turn.measured("unchanged", tool.unchanged(site, source, next(labels)))
        if "restore" in plan.works:
            _restore(turn, "restore", tool, site, source, label, check=bool(sampling))
        if "verify" in plan.works:
            turn.measured("verify", tool.verify(site))
        if data.path.is_file() and not data.versions:
            _ranges(plan, turn, tool, site, data, label, results)


def disk_round(plan: Plan, tool: Tool, data: DataSet, results: Results, disk: Path) -> None:
    """Ingest and restore with the store on a disk. What others left to be written is written before. Raises
    BenchError."""
    turn = Turn(plan, tool, data, results, 0.0)
    with fresh_site(disk, plan.scratch) as site:
        create(tool, site)
        if "disk-ingest" in plan.works or "disk-restore" in plan.works:
            os.sync()
            turn.measured("disk-ingest", tool.ingest(site, data.path, "a"))
        if "disk-restore" in plan.works:
            os.sync()
            _restore(turn, "disk-restore", tool, site, data.path, "a", check=False)


def create(tool: Tool, site: Site) -> None:
    """An empty store, where the tool wants one made. Raises BenchError."""
    command = tool.create(site)
    if command is not None:
        run(command)


def _restore(turn: Turn, work: str, tool: Tool, site: Site, source: Path, label: str, check: bool) -> None:
    site.back.mkdir()
    turn.measured(work, tool.restore(site, source, label))
    if check:
        compare_trees(source, tool.restored(site, source), tool.name)
    shutil.rmtree(site.back)


def _ranges(plan: Plan, turn: Turn, tool: Tool, site: Site, data: DataSet, label: str, results: Results) -> None:
    length = min(RANGE_LENGTH, data.bytes)
    first = (data.bytes - length) * 5 // 8
    last = first + length - 1
    command = tool.byte_range(site, data.path, label, first, last)
    if "range" in plan.works and command is not None:
        turn.measured("range", command)
        results.at(data.name, "range", tool.name).bytes_read = tool.bytes_read(site, data.path, first, last)
    if "range-lost" in plan.works and isinstance(tool, Drystone):
        gone = tool.backends(site)[:2]
        for path in gone:
            path.rename(path.with_name(f"{path.name}.gone"))
        turn.measured("range-lost", command)
        record = results.at(data.name, "range-lost", tool.name)
        record.bytes_read = tool.bytes_read(site, data.path, first, last)
        for path in gone:
            path.with_name(f"{path.name}.gone").rename(path)


def compare_trees(source: Path, restored: Path, tool: str) -> None:
    """All regular files of `source` are in `restored`, with the same bytes. Raises BenchError."""
    if source.is_file():
        pairs: Iterator[tuple[str, str]] = iter([(str(source), str(restored))])
    else:
        pairs = (
            (path, os.path.join(restored, os.path.relpath(path, source)))
            for folder, _, names in os.walk(source)
            for path in (os.path.join(folder, name) for name in names)
            if os.path.isfile(path) and not os.path.islink(path)
        )
    for path, back in pairs:
        if not os.path.isfile(back) or not filecmp.cmp(path, back, shallow=False):
            raise BenchError(f"{tool} restored {path} wrongly, or not at all")


def note_limit(plan: Plan, data: DataSet, results: Results) -> None:
    """What the bare kernels take for the same works, spread evenly over the cores."""
    for work, parts in limit.in_a_process(data.path, plan.scratch).items():
        if work in plan.works or work == "ingest":
            cpu = sum(parts.values())
            record = results.note(data.name, work, LIMIT, Usage(cpu / plan.cores, cpu, None, b""))
            record.parts = parts
