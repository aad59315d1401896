"""The bench: Drystone, what people use now, and what the cores could do, in one run.

make bench                        all of it: hours
make bench BENCH='--data linux --tool drystone --tool restic --rounds 3'
make bench-short                  small data, about two minutes
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tests.bench import special
from tests.bench.datasets import DATASETS, DataSet, Missing, Places
from tests.bench.measure import BenchError
from tests.bench.places import environment_for, file_system, require_room
from tests.bench.plot import plot_series, plot_works
from tests.bench.report import machine, whole, write_json
from tests.bench.results import WORKS, Results
from tests.bench.rounds import Plan, measure
from tests.bench.tools import TOOLS, Drystone, Tool

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".bench"
#: Of the short form, unless something else is asked for.
SHORT_DATA, SHORT_TOOLS, SHORT_ROUNDS = ("tar", "random", "versions"), ("drystone", "restic", "borg", "tar+zstd"), 1


def say(line: str) -> None:
    """Progress, on standard error."""
    click.echo(line, err=True)


def found_tools(names: tuple[str, ...]) -> tuple[list[Tool], list[str]]:
    """Those of the tools that are here, and how to get the others."""
    tools, missing = list[Tool](), list[str]()
    for name in names:
        try:
            tools.append(TOOLS[name].find())
        except Missing as error:
            missing.append(str(error))
    return tools, missing


def found_data(names: tuple[str, ...], places: Places) -> tuple[list[DataSet], list[str]]:
    """The same of data sets; what has to be made is made."""
    found, missing = list[DataSet](), list[str]()
    for name in names:
        try:
            found.append(DATASETS[name](places))
        except Missing as error:
            missing.append(f"{name}: {error}")
    return found, missing


def one_of(names: object) -> click.Choice[str]:
    return click.Choice(list(names))  # type: ignore[call-overload]


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--data", "data_names", multiple=True, type=one_of(DATASETS), help="Data sets [default: all].")
@click.option("--tool", "tool_names", multiple=True, type=one_of(TOOLS), help="Tools [default: all that there are].")
@click.option(
    "--work", "works", multiple=True, type=one_of(WORKS), help="Works beside the first ingest [default: all]."
)
@click.option("--rounds", type=click.IntRange(1), help="Timed rounds, of which the median counts [default: 5].")
@click.option("--short", is_flag=True, help="Small data, few tools, one round: two minutes.")
@click.option("--growth", is_flag=True, help="Also time by bytes and by files, up to 16 GB and a million files.")
@click.option("--scaling/--no-scaling", default=True, help="Ingest on 1, 2, 4 … cores.")
@click.option("--streams/--no-streams", default=True, help="Memory for streams of 1 and 16 GB.")
@click.option("--limit/--no-limit", default=True, help="What the bare kernels take.")
@click.option("--memory/--no-memory", default=True, help="One more round, for memory and for comparing what came back.")
@click.option("--linux", type=click.Path(path_type=Path, exists=True), help="The kernel's source, unpacked.")
@click.option("--tar", type=click.Path(path_type=Path, exists=True), help="One large file of binaries.")
@click.option("--tree", "trees", multiple=True, type=click.Path(path_type=Path, exists=True), help="More data sets.")
@click.option("--kept", type=click.Path(path_type=Path), default=KEPT / "data", help="Where made data is kept.")
@click.option("--out", type=click.Path(path_type=Path), default=KEPT / "results", help="Where results are written.")
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("/dev/shm"), help="Folder on tmpfs.")
@click.option("--disk", type=click.Path(path_type=Path), default=KEPT / "disk", help="Folder on a real disk.")
def main(
    data_names: tuple[str, ...],
    tool_names: tuple[str, ...],
    works: tuple[str, ...],
    rounds: int | None,
    short: bool,
    growth: bool,
    scaling: bool,
    streams: bool,
    limit: bool,
    memory: bool,
    linux: Path | None,
    tar: Path | None,
    trees: tuple[Path, ...],
    kept: Path,
    out: Path,
    scratch: Path,
    disk: Path,
) -> None:
    rounds = rounds or (SHORT_ROUNDS if short else 5)
    data_names = data_names or (() if trees else SHORT_DATA if short else tuple(DATASETS))
    tools, missing = found_tools(tool_names or (SHORT_TOOLS if short else tuple(TOOLS)))
    data, absent = found_data(data_names, Places(kept.absolute(), linux, tar, short))
    data += [DataSet.of(path.name, path.absolute()) for path in trees]
    missing += absent
    slow: Path | None = disk.absolute()
    disk.mkdir(parents=True, exist_ok=True)
    if file_system(disk) == "tmpfs":
        slow, missing = None, [*missing, f"a real disk: {disk} is on tmpfs; --disk DIR names another folder"]
    _say_what_there_is(tools, missing)
    if not tools or not data:
        raise BenchError("there is nothing to measure")
    results = Results()
    part = 16 if short else 1
    failed: list[str] = []
    with environment_for(scratch, slow) as (own, own_slow):
        plan = Plan(
            tools=tools,
            works=frozenset(works or WORKS),
            rounds=rounds,
            scratch=own,
            disk=own_slow,
            cores=len(os.sched_getaffinity(0)),
            with_limit=limit,
            with_memory=memory,
            say=say,
        )
        for each in data:
            try:
                require_room(own, each)
                failed += measure(plan, each, results, disk=each.name not in ("python", "usr", "versions"))
            except BenchError as error:
                failed.append(f"{each.name}: {error}")
                say(failed[-1])
        ours = next((tool for tool in tools if isinstance(tool, Drystone)), None)
        if ours is not None and streams:
            special.memory(plan, ours, results, [size // part for size in special.ENDS])
        if ours is not None and growth:
            sizes, counts = special.SIZES, special.COUNTS
            special.growth(plan, ours, results, [size // part for size in sizes], [each // part for each in counts])
        if ours is not None and scaling:
            special.scaling(plan, ours, results, next((each for each in data if each.name == "tar"), data[0]))
    _write(out, results, data, tools, missing, {"rounds": rounds, "short": short, "works": list(works or WORKS)})
    if failed:
        raise BenchError("some of it was not measured:\n" + "\n".join(failed))


def _say_what_there_is(tools: list[Tool], missing: list[str]) -> None:
    here = machine()
    click.echo(f"{here['cpu']}, {here['cores']} cores, {here['memory'] >> 30} GiB, Linux {here['kernel']}")
    for tool in tools:
        click.echo(f"{tool.name}: {tool.version()}")
    for line in missing:
        click.echo(f"missing: {line}")
    click.echo()


def _write(
    out: Path, results: Results, data: list[DataSet], tools: list[Tool], missing: list[str], options: dict[str, object]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = whole(results, data)
    if options["short"]:
        text += "\n\nThis was the short form; the goals are for data of full size, on a machine that does nothing else."
    click.echo(text)
    (out / "bench.txt").write_text(text + "\n")
    write_json(out / "bench.json", results, data, tools, missing, options)
    plot_works(results, out / "bench.png")
    written = ["bench.txt", "bench.json", "bench.png"]
    if plot_series(results, out / "growth.png"):
        written.append("growth.png")
    say(f"written to {out}: {', '.join(written)}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
