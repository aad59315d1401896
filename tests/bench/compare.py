"""Has it become slower? The short form of the bench on two revisions of Drystone, in turn.

    make bench-compare REV=main [BENCH='--rounds 9']

The revision is checked out beside this tree, which is measured as it lies there, and removed again; both run by the
Python and the libraries of this tree's environment. Exit code 1 if the median of any work takes more than 5 % longer
here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from tests.bench.datasets import DATASETS, DataSet, Places
from tests.bench.measure import BenchError, warm_cache
from tests.bench.places import environment_for, require_room
from tests.bench.report import table
from tests.bench.results import WORKS, Results
from tests.bench.rounds import Plan, one_round
from tests.bench.tools import Drystone, Site

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".bench"
DATA = ("tar", "random", "versions")
#: Of the other revision's time, what may be lost.
LOSS = 0.05


class Revision(Drystone):
    """Drystone out of a checkout."""

    def __init__(self, name: str, checkout: Path) -> None:
        super().__init__(name, checkout)
        self.name = name  # type: ignore[misc]

    def bytes_read(self, site: Site, source: Path, first: int, last: int) -> None:
        """Not asked of a revision that is not in this process."""


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A worktree of the revision, removed in the end. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="bench-revision-") as folder:
        place = Path(folder) / "tree"
        done = subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", place, revision], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise BenchError(f"{revision} can't be checked out: {done.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


def compare(plan: Plan, data: Sequence[DataSet], results: Results) -> None:
    """All rounds, A B A B. Raises BenchError."""
    for each in data:
        require_room(plan.scratch, each)
        for number in range(plan.rounds):
            for tool in plan.tools:
                plan.say(f"{each.name}: round {number + 1}: {tool.name}")
                for path in (each.path, *each.versions):
                    warm_cache(path)
                one_round(plan, tool, each, results, 0.0)


def verdict(results: Results, before: str, now: str, loss: float = LOSS) -> tuple[str, list[str]]:
    """The table of ratios, and what was lost, in words."""
    rows, lost, ratios = [], list[str](), list[float]()
    for data in results.data():
        for work in WORKS:
            old, new = results.find(data, work, before), results.find(data, work, now)
            if old is None or new is None or not old.wall or not new.wall or not old.cpu or not new.cpu:
                continue
            ratio = new.wall / old.wall
            ratios.append(ratio)
            rows.append(
                [data, WORKS[work], f"{old.wall:.3f}", f"{new.wall:.3f}", f"{ratio:.3f}", f"{new.cpu / old.cpu:.3f}"]
            )
            if ratio > 1 + loss:
                lost.append(f"{data}, {WORKS[work]}: {ratio - 1:.1%} slower")
    if not rows:
        raise BenchError("the revisions have no work in common")
    rows.append(["all", "geometric mean", "", "", f"{statistics.geometric_mean(ratios):.3f}", ""])
    return table(["data", "work", f"{before} s", f"{now} s", "wall ratio", "CPU ratio"], rows, 2), lost


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("revision")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--data", "names", multiple=True, type=click.Choice(list(DATASETS)), default=DATA, show_default=True)
@click.option("--tree", "trees", multiple=True, type=click.Path(path_type=Path, exists=True), help="More data sets.")
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("/dev/shm"), help="Folder on tmpfs.")
@click.option("--kept", type=click.Path(path_type=Path), default=KEPT / "data", help="Where made data is kept.")
def main(
    revision: str, rounds: int, names: tuple[str, ...], trees: tuple[Path, ...], scratch: Path, kept: Path
) -> None:
    places = Places(kept.absolute(), short=True)
    data = [DATASETS[name](places) for name in (() if trees else names)]
    data += [DataSet.of(path.name, path.absolute()) for path in trees]
    results = Results()
    with checked_out(revision) as checkout, environment_for(scratch, None) as (own, _):
        tools = (Revision(revision, checkout), Revision("here", ROOT))
        works = frozenset(WORKS) - {"disk-ingest", "disk-restore"}
        plan = Plan(
            tools, works, rounds, own, None, len(os.sched_getaffinity(0)), with_limit=False, with_memory=False,
            say=lambda line: click.echo(line, err=True),
        )  # fmt: skip
        compare(plan, data, results)
    text, lost = verdict(results, revision, "here")
    click.echo(text)
    for line in lost:
        click.echo(line)
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
