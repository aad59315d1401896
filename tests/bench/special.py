"""What is measured of Drystone alone: memory and time as the input grows, and scaling with the cores.

Their records are series: the data set is the series' name, the work a number of bytes, files or cores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

from tests.bench.datasets import DataSet, many_files, text_command
from tests.bench.measure import SAMPLING, Command, run, warm_cache, warm_memory
from tests.bench.results import Results
from tests.bench.rounds import WARMED, Plan, create, fresh_site
from tests.bench.tools import Drystone

#: Names of the series.
MEMORY, STREAM, FILES, CORES = "memory by bytes of a stream", "time by bytes of a stream", "time by files", "cores"
GB = 10**9
#: For memory and growth; a sixteenth of it in the short form.
ENDS = (1 * GB, 16 * GB)
SIZES = (1 * GB, 2 * GB, 4 * GB, 8 * GB, 16 * GB)
COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
#: Bytes of a stream that the store takes with its parity, at most, as a part of it.
_SHRUNK = 0.5


def streams(plan: Plan, tool: Drystone, results: Results, sizes: Sequence[int], sampling: float) -> None:
    """Ingest compressible streams through a pipe: memory with `sampling`, else time. Raises BenchError."""
    series = MEMORY if sampling else STREAM
    for size in sizes:
        plan.say(f"{series}: {size / GB:g} GB")
        with fresh_site(plan.scratch, plan.scratch) as site:
            create(tool, site)
            warm_memory(plan.scratch, int(size * _SHRUNK))
            results.note(series, str(size), tool.name, run(tool.stream(site, text_command(size)), sampling))


def memory(plan: Plan, tool: Drystone, results: Results, sizes: Sequence[int]) -> None:
    """Peak memory of ingests of streams."""
    streams(plan, tool, results, sizes, SAMPLING)


def growth(plan: Plan, tool: Drystone, results: Results, sizes: Sequence[int], counts: Sequence[int]) -> None:
    """Time of ingests of longer and longer streams, and of more and more files. Raises BenchError."""
    streams(plan, tool, results, sizes, 0.0)
    for count in counts:
        plan.say(f"{FILES}: {count:,}")
        root = plan.scratch / "files"
        try:
            many_files(root, count)
            with fresh_site(plan.scratch, plan.scratch) as site:
                create(tool, site)
                warm_memory(plan.scratch, count * 4096)
                results.note(FILES, str(count), tool.name, run(tool.ingest(site, root, "a")))
        finally:
            shutil.rmtree(root, ignore_errors=True)


def scaling(plan: Plan, tool: Drystone, results: Results, data: DataSet) -> None:
    """Ingest on 1, 2, 4 … cores by taskset, with the busy seconds of each stage. Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0))
    count = 1
    while count <= len(cores):
        for _ in range(plan.rounds):
            plan.say(f"{data.name}: {count} cores")
            warm_cache(data.path)
            with fresh_site(plan.scratch, plan.scratch) as site:
                create(tool, site)
                warm_memory(plan.scratch, int(data.bytes * WARMED))
                command = tool.staged(site, data.path)
                allowed = ",".join(map(str, cores[:count]))
                used = run(Command(["taskset", "-c", allowed, *command.arguments], command.environment))
            stages = json.loads(used.output.splitlines()[-1])["stages"]
            record = results.note(CORES, str(count), tool.name, replace(used, output=b""))
            record.parts = {stage["stage"]: stage["busy"] for stage in stages}
            record.workers = {stage["stage"]: stage["workers"] for stage in stages}
        count *= 2
