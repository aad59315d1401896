"""drystone compare"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from manifests.sizes import format_size
from pipeline.cli.command import Command
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import format_options, open_store, quiet_option, store_option
from pipeline.cli.output import Column, emit, emit_json, emit_table, path_fields
from pipeline.printing import say, shown

if TYPE_CHECKING:
    from pipeline.compare import Comparison, Difference

_COLUMNS = [Column("verdict", ""), Column("path", ""), Column("what", "", "; ".join)]
_FIELDS = {"path": Kind.PATH, "verdict": Kind.TEXT, "what": Kind.TEXTS}


@click.command("compare", cls=Command)
@click.argument("arguments", nargs=-1, required=True, metavar="[RUN[:PATH]] DIR")
@store_option
@click.option("--data", is_flag=True, help="Read the files, and compare their bytes by BLAKE3.")
@format_options
@quiet_option
@metrics_options
@click.pass_context
def compare_command(
    context: click.Context, arguments: tuple[str, ...], store: str | None, data: bool, output: str, quiet: bool
) -> int:
    """Compare a run (the latest, if none is named), or a part of it, with a directory: may DIR be deleted?

    RUN:PATH compares the object PATH with DIR itself. RUN alone compares DIR with the run's only source where DIR is
    the place that it was archived from; else with what restore --to DIR would make, where DIR holds that; else with
    the run's only source. Without --data, files are taken for equal whose kind, length, time, mode, extended
    attributes, hardlinks and (as root) owner are.

    missing: not in DIR. extra: in DIR only. changed: differs. incomplete: not archived whole. unreadable: not to be
    read in DIR. Exit 3 where anything differs.

    \b
    drystone -s /mnt/archive compare ~/data --data && rm -r ~/data
    drystone -s /mnt/archive compare latest:data/photos /tmp/back/photos

    Like `restic diff`, but with a directory; borg has no such command.
    """
    if len(arguments) > 2:
        raise click.UsageError("give a run, or RUN:PATH, and one directory")
    selection, directory = ("latest", arguments[0]) if len(arguments) == 1 else arguments
    with open_store(context, store) as opened:
        comparison = opened.compare(selection, directory, data=data)
        if output != "table":
            emit(map(_record, comparison), _FIELDS, output)
            if output == "jsonl":
                emit_json("summary", _summary(comparison))
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
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(comparison.counts.items()))
    yield f"{comparison.objects:,} objects looked at, {how}" + (f": {counts}" if counts else "")
    if comparison.equal:
        yield f"equal: all that is in {directory} is in the archive; it may be deleted"
    elif comparison.may_be_deleted:
        yield f"all that is still in {directory} is in the archive; it may be deleted"
    else:
        yield f"do not delete {directory}: the archive has not all of it"
