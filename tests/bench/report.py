"""What the bench says: tables for people, JSON with everything, plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.datasets import DataSet
from tests.bench.goals import GOALS, OURS
from tests.bench.results import LIMIT, WORKS, Record, Results
from tests.bench.special import CORES, FILES, MEMORY, STREAM
from tests.bench.tools import MIB, Tool

#: For what the stages would need: so many cores.
PAPER = (16, 64)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Columns as wide as they must be, the first `left` flush left, all others right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown = []
    for line in lines:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[:left] = [cell.ljust(width) for cell, width in zip(line[:left], widths[:left], strict=True)]
        shown.append("  ".join(padded).rstrip())
    return "\n".join(shown)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / MIB:,.1f}"


def works_table(results: Results, data: DataSet) -> str:
    """All works of all tools on one data set. `ratio`: how many times Drystone's wall time; `of limit`: the limit's
    time as a part of Drystone's."""
    rows = []
    for work, title in WORKS.items():
        records = results.of(data.name, work)
        ours, limit = results.find(data.name, work, OURS), results.find(data.name, work, LIMIT)
        for number, record in enumerate(records):
            ratio = record.wall / ours.wall if ours and ours.wall and record.wall else None
            part = limit.wall / record.wall if record is ours and limit and limit.wall and record.wall else None
            rows.append(
                [
                    title if not number else "",
                    record.tool,
                    _number(record.wall, ".2f"),
                    _number(record.cpu, ".2f"),
                    _mebibytes(record.pss),
                    _mebibytes(record.stored),
                    _number(ratio, ".2f"),
                    _number(part, ".0%"),
                ]
            )
    head = ["work", "tool", "wall s", "CPU s", "peak MiB", "stored MiB", "ratio", "of limit"]
    return f"{data.name}: {data.files:,} files, {data.bytes / 1e6:,.0f} MB\n{table(head, rows, 2)}"


def limit_table(results: Results) -> str:
    """Where the limit comes from: CPU seconds of the bare kernels."""
    records = [record for record in results.all() if record.tool == LIMIT]
    kernels = list(dict.fromkeys(name for record in records for name in record.parts))
    rows = [
        [record.data, record.work, *(_number(record.parts.get(name), ".2f") for name in kernels)] for record in records
    ]
    return "CPU seconds of the bare kernels, last round\n" + table(["data", "work", *kernels], rows, 2)


def series_tables(results: Results) -> list[str]:
    """Memory and time as the input grows."""
    found = []
    for name, unit, scale in ((MEMORY, "GB", 1e9), (STREAM, "GB", 1e9), (FILES, "1000 files", 1e3)):
        rows = [
            [
                f"{int(record.work) / scale:g}",
                _number(record.wall, ".2f"),
                _number(_each(record.wall, record, scale), ".3f"),
                _number(_each(record.cpu, record, scale), ".3f"),
                _mebibytes(record.pss),
            ]
            for record in results.of_series(name)
        ]
        if rows:
            head = [unit, "wall s", f"wall s for 1 {unit}", f"CPU s for 1 {unit}", "peak MiB"]
            found.append(f"{name}\n{table(head, rows, 0)}")
    return found


def _each(value: float | None, record: Record, scale: float) -> float | None:
    return None if value is None else value / int(record.work) * scale


def scaling_table(results: Results) -> str:
    """Ingest by cores, with the busy seconds of each stage; on paper, how many workers of a stage it takes to keep that
    many cores busy: its part of all work, times the cores."""
    records = results.of_series(CORES)
    stages = list(dict.fromkeys(name for record in records for name in record.parts))
    rows = []
    for name in stages:
        last = records[-1]
        share = last.parts.get(name, 0.0) / max(sum(last.parts.values()), 1e-9)
        row = [name, *(f"{record.parts.get(name, 0.0):.2f} / {record.workers.get(name, 0)}" for record in records)]
        rows.append([*row, *(f"{share * cores:.1f}" for cores in PAPER)])
    walls = ["wall s", *(_number(record.wall, ".2f") for record in records), *("" for _ in PAPER)]
    speeds = [f"{records[0].wall / record.wall:.2f}" if record.wall and records[0].wall else "-" for record in records]
    rows += [walls, ["speed", *speeds, *("" for _ in PAPER)]]
    head = ["stage", *(f"{record.work} cores" for record in records), *(f"of {cores} cores" for cores in PAPER)]
    return "Ingest by cores: busy seconds of a stage / its workers\n" + table(head, rows, 1)


def goals_table(results: Results) -> str:
    """Each goal, what was measured, and whether it is reached."""
    rows = []
    for goal in GOALS:
        figure, verdict = goal.judge(results)
        sign = ">=" if goal.least else "<="
        rows.append([goal.text, f"{sign} {goal.wanted:.3g} {goal.unit}", _number(figure, ".3g"), verdict])
    return table(["goal", "wanted", "measured", "verdict"], rows, 2)


def whole(results: Results, data: Sequence[DataSet]) -> str:
    """All tables."""
    parts = [works_table(results, each) for each in data]
    if any(record.tool == LIMIT for record in results.all()):
        parts.append(limit_table(results))
    parts += series_tables(results)
    if results.of_series(CORES):
        parts.append(scaling_table(results))
    return "\n\n".join([*parts, goals_table(results)])


def machine() -> dict[str, Any]:
    """What it was measured on; neither host nor user are named."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) << 10
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write_json(
    path: Path, results: Results, data: Sequence[DataSet], tools: Sequence[Tool], missing: Sequence[str],
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Everything that is known, as one JSON object."""
    goals = []
    for goal in GOALS:
        figure, verdict = goal.judge(results)
        goals.append({"goal": goal.text, "wanted": goal.wanted, "measured": figure, "verdict": verdict})
    document = {
        "machine": machine(),
        "options": options,
        "tools": {tool.name: tool.version() for tool in tools},
        "missing": list(missing),
        "data": [{"name": each.name, "files": each.files, "bytes": each.bytes} for each in data],
        "records": results.as_json(),
        "goals": goals,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
