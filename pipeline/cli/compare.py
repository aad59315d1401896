"""drystone compare"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from manifests.counts import counted
from manifests.sizes import format_size
from pipeline.cli.choosing import choose, run_options, tell_which
from pipeline.cli.command import Command
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import format_options, memory_option, open_store, quiet_option, store_option
from pipeline.cli.output import Column, emit, emit_json, emit_table, path_fields
from pipeline.printing import say, shown

if TYPE_CHECKING:
    from manifests.choice import RunFilter
    from pipeline.compare import Comparison, Difference

_COLUMNS = [Column("verdict", ""), Column("path", ""), Column("what", "", "; ".join)]
_FIELDS = {"path": Kind.PATH, "verdict": Kind.TEXT, "what": Kind.TEXTS}


@click.command("compare", cls=Command)
@click.argument("arguments", nargs=-1, required=True, metavar="[RUN[:PATH]] DIR")
@store_option
@run_options
@click.option("--data", is_flag=True, help="Read the files, and compare their bytes by BLAKE3.")
@memory_option
@format_options
@quiet_option
@metrics_options
@click.pass_context
def compare_command(
    context: click.Context,
    arguments: tuple[str, ...],
    store: str | None,
    which: RunFilter,
    data: bool,
    memory: int,
    output: str,
    quiet: bool,
) -> int:
    """Compare a run, or a part of it, with a directory: may DIR be deleted?

    If no RUN is named, it is the latest that holds DIR; where none does, as none holds what was restored, the latest
    whose sources lie in DIR.

    RUN:PATH compares the object PATH with DIR itself. RUN alone compares DIR with the run's only source where DIR is
    the place that it was archived from; else with what restore --to DIR would make, where DIR holds that; else with
    the run's only source. Without --data, files are taken for equal whose kind, length, time, mode, extended
    attributes, hardlinks and (as root) owner are.

    missing: not in DIR. extra: in DIR only. changed: differs. incomplete: not archived whole, or lost since.
    unreadable: not to be read in DIR. Exit 3 where anything differs.

    \b
    drystone -s /mnt/archive compare ~/data --data && rm -r ~/data
    drystone -s /mnt/archive compare latest:data/photos /tmp/back/photos

    Like `restic diff`, but with a directory; borg has no such command.
    """
    if len(arguments) > 2:
        raise click.UsageError("give a run, or RUN:PATH, and one directory")
    *named, directory = arguments
    with open_store(context, store) as opened:
        if named:
            selection = choose(opened, named[0], which, quiet=quiet)
        else:
            found = opened.run_of(directory, which)
            selection = str(found)
            if not quiet and not found.path:
                tell_which(opened, opened.run(found.run), which, found.path)
        comparison = opened.compare(selection, directory, data=data, memory=memory)
        if output != "table":
            emit(map(_record, comparison), _FIELDS, output)
            if output == "jsonl":
                emit_json("summary", {"run": selection[:36], **_summary(comparison)})
        else:
            emit_table(({**vars(each), "path": shown(each.path)} for each in comparison), _COLUMNS)
            if not quiet:
                for line in _verdict(comparison, directory):
                    say(line)
    return comparison.exit_code


def _record(each: Difference) -> dict[str, Any]:
    return {**path_fields(each.path), "verdict": each.verdict, "what": list(each.what)}


def _summary(comparison: Comparison) -> dict[str, Any]:
    from pipeline.compare import VERDICTS

    return {
        **path_fields(comparison.place),
        "objects": comparison.objects,
        **{verdict: comparison.counts[verdict] for verdict in VERDICTS},
        "hashed_bytes": comparison.hashed_bytes if comparison.data else None,
        "may_be_deleted": comparison.may_be_deleted,
        "exit_code": comparison.exit_code,
    }


def _verdict(comparison: Comparison, directory: str) -> Iterator[str]:
    how = f"{format_size(comparison.hashed_bytes)} read" if comparison.data else "bytes not read; see --data"
    how += "; of the archive, shards were looked for"
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(comparison.counts.items()))
    yield f"{counted(comparison.objects, 'object')} looked at, {how}" + (f": {counts}" if counts else "")
    if comparison.may_be_deleted:
        by = "" if comparison.data else " by length, time and attributes"
        unless = "" if comparison.data else ", unless bytes changed behind their times"
        if comparison.equal:
            yield f"equal{by}: all that is in {directory} is in the archive; it may be deleted{unless}"
        else:
            yield f"all that is still in {directory} is in the archive{by}; it may be deleted{unless}"
    elif comparison.doubt:
        yield f"do not delete {directory}: {comparison.doubt}"
    else:
        yield f"do not delete {directory}: the archive has not all of it"
