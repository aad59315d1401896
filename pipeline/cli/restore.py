"""drystone restore and cat"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from manifests.counts import counted
from manifests.errors import UsageError
from manifests.ids import is_object_id
from manifests.sizes import format_size
from pipeline.cli.choosing import choose, run_options
from pipeline.cli.command import Command, stands
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import (
    Parsed,
    format_options,
    open_store,
    quiet_option,
    resource_options,
    store_option,
    verbose_option,
)
from pipeline.cli.output import emit_json, emit_summary, path_fields
from pipeline.printing import flush, say, shown, warn, write_bytes
from stages.assemble import ByteRange

if TYPE_CHECKING:
    from manifests.choice import RunFilter
    from manifests.objects import ObjectInfo
    from pipeline.filestore import FileStore
    from pipeline.outfile import OutputOptions
    from pipeline.packreader import ReadFigures
    from pipeline.restore.run import RestoreRequest, RestoreResult

RANGE = Parsed("A-B", ByteRange.parse)


def _parse_target(text: str) -> str:
    if text == "-":
        raise UsageError(
            "- would be a file or a directory of this name: to write to standard output use drystone cat RUN:PATH, or "
            "name ./- if you mean it"
        )
    return text


TARGET = Parsed("PLACE", _parse_target)

_FIELDS = {
    "run": Kind.TEXT,
    "files": Kind.INTEGER,
    "in_place": Kind.INTEGER,
    "in_place_bytes": Kind.INTEGER,
    "replaced": Kind.INTEGER,
    "bytes": Kind.INTEGER,
    "failed": Kind.INTEGER,
    "healed_cells": Kind.INTEGER,
    "healed_records": Kind.INTEGER,
    "chunks_elsewhere": Kind.INTEGER,
    "lost_manifests": Kind.TEXTS,
    "troubles": Kind.TEXTS,
    "left_to_root": Kind.INTEGER,
    "incomplete": Kind.INTEGER,
    "seconds": Kind.NUMBER,
    "exit_code": Kind.INTEGER,
}
_BYTES_FIELDS = {
    "run": Kind.TEXT,
    "bytes": Kind.INTEGER,
    "ranges": Kind.NESTED,
    "path": Kind.PATH,
    "healed_cells": Kind.INTEGER,
    "healed_records": Kind.INTEGER,
    "chunks_elsewhere": Kind.INTEGER,
    "troubles": Kind.TEXTS,
}


@click.command("restore", cls=Command)
@click.argument("selection", default="latest", metavar="[RUN[:PATH] | ID]")
@store_option
@run_options
@click.option(
    "--to",
    type=TARGET,
    required=True,
    metavar="DIR",
    help="Directory to restore into; with --range or an ID, the file to write.",
)
@click.option(
    "--overwrite",
    type=click.Choice(["never", "if-changed", "always"]),
    default="never",
    show_default=True,
    help="What is in the way is kept, replaced where it differs, or replaced.",
)
@click.option(
    "--range",
    "ranges",
    type=RANGE,
    multiple=True,
    help="Only these bytes of one object: 0-99, 100- or -500; several are written one behind the other.",
)
@click.option(
    "--numeric-ids", is_flag=True, help="Owners by number, though their names have other numbers on this machine."
)
@click.option(
    "--fsync/--no-fsync",
    default=None,
    help="Have all on disk before the end, or leave that to the system; unless told, where something is replaced.",
)
@resource_options
@format_options
@quiet_option
@verbose_option
@metrics_options
@click.pass_context
def restore_command(
    context: click.Context,
    selection: str,
    store: str | None,
    which: RunFilter,
    to: str,
    overwrite: str,
    ranges: tuple[ByteRange, ...],
    numeric_ids: bool,
    fsync: bool | None,
    workers: int | None,
    memory: int,
    output: str,
    quiet: bool,
    verbose: bool,
) -> int:
    """Restore a run (the latest, if none is named), or an object or directory of it.

    RUN alone makes DIR/<base>; RUN:<base>/x makes DIR/x. The ID of an object, as programs have it, makes a file of its
    bytes.

    \b
    drystone -s /mnt/archive restore --to /tmp/back
    drystone -s /mnt/archive restore latest:data/photos --to /tmp/back
    drystone -s /mnt/archive restore latest:data/disk.img --range 0-511 --to mbr.bin

    Like `restic restore` and `borg extract`.
    """
    if ranges or is_object_id(selection):
        from pipeline.outfile import OutputOptions
        from pipeline.owndirectories import backend_directories

        with open_store(context, store) as opened:
            selection = choose(opened, selection, which, quiet=quiet)
            options = OutputOptions(overwrite=overwrite, fsync=fsync, own=backend_directories(opened.members))
            return _restore_bytes(opened, selection, ranges, to, options, output)
    from pipeline.forkserver import warm_up

    warm_up()
    from pipeline.restore.run import RestoreRequest

    with open_store(context, store) as opened:
        selection = choose(opened, selection, which, quiet=quiet)
        request = RestoreRequest(to, overwrite, workers, memory, numeric_ids=numeric_ids, fsync=fsync)
        return _restore(opened, selection, request, output, quiet, verbose)


def _restore(
    opened: FileStore, selection: str, request: RestoreRequest, output: str, quiet: bool, verbose: bool
) -> int:
    from manifests.plan import PlanTotals
    from pipeline.cli.progress import Counters, Progress, Snapshot, bottleneck
    from pipeline.topology import ASSEMBLE, DECOMPRESS, FETCH, RESTORE_STAGES, VERIFY

    totals: list[PlanTotals] = []

    def read(counters: Counters) -> Snapshot:
        done = counters[:, ASSEMBLE].sum(axis=0)
        held_by = bottleneck(counters, RESTORE_STAGES, (FETCH, DECOMPRESS, VERIFY, ASSEMBLE))
        return Snapshot(int(done[0]), int(done[1]), totals[0].bytes if totals else 0, held_by)

    with Progress.choose("restore", read, quiet=quiet, output=output, verbose=verbose) as progress:
        result = opened.restore(selection, request.to, request=request, on_plan=totals.append, on_tick=progress.tick)
        stands(_what_stands(result, request.to))
    for name in result.leftovers.removed:
        warn(f"removed what a killed restore had left behind: {request.to}/{name}")
    for name, reason in result.leftovers.left:
        warn(f"perhaps left behind by an earlier restore, and not removed: {request.to}/{name}: {reason}")
    for name in result.leftovers.at_work:
        warn(f"another restore was at work in the same directory: {request.to}/{name}")
    if result.left_behind:
        warn(f"left behind, as it can't be removed: {result.left_behind}")
    for trouble in result.troubles:
        warn(f"ailing: {trouble}")
    for reason in result.lost_manifests:
        warn(f"lost: {reason}")
    for path, reason in result.every_failure() if verbose else result.failures:
        warn(f"not restored whole: {shown(path)}: {reason}")
    if result.failed > len(result.failures) and not verbose:
        more = result.failed - len(result.failures)
        warn(f"… and {more:,} more; drystone restore -v names all, and so does --format jsonl")
    for path, reason in result.named_incomplete:
        warn(f"incomplete in the archive: {shown(path)}: {reason}")
    if result.incomplete > len(result.named_incomplete):
        warn(f"… and {result.incomplete - len(result.named_incomplete):,} more are incomplete in the archive")
    if result.left_to_root:
        warn(f"owners were passed over: only root can give {counted(result.left_to_root, 'object')} what they had")
    warn_of_absent(opened, result.absent)
    if output != "table":
        for path, reason in result.every_failure() if output == "jsonl" else ():
            emit_json("item", {**path_fields(path), "error": reason})
        for path, reason in result.named_incomplete if output == "jsonl" else ():
            emit_json("item", {**path_fields(path), "incomplete": reason})
        emit_summary(
            {
                "run": selection[:36],
                "files": result.files,
                "in_place": result.in_place,
                "in_place_bytes": result.in_place_bytes,
                "replaced": result.replaced,
                "bytes": result.bytes,
                "failed": result.failed,
                "healed_cells": result.healed_cells,
                "healed_records": result.healed_records,
                "chunks_elsewhere": result.elsewhere,
                "lost_manifests": result.lost_manifests,
                "troubles": [*result.absent, *result.troubles],
                "left_to_root": result.left_to_root,
                "incomplete": result.incomplete,
                "seconds": round(result.seconds, 3),
                "exit_code": result.exit_code,
            },
            _FIELDS,
            output,
        )
        return result.exit_code
    if not quiet:
        for line in _result_lines(result, request.to):
            say(line)
    return result.exit_code


def _what_stands(result: RestoreResult, to: str) -> str:
    """What is true whatever becomes of the output."""
    if result.failed:
        return f"in {shown(to)} all is restored but {counted(result.failed, 'object')}"
    return f"all is restored into {shown(to)}"


def _result_lines(result: RestoreResult, to: str) -> Iterator[str]:
    """What a restore did, for people. What was in place was not read, so nothing is said of its bytes."""
    files, size = result.files - result.in_place, result.bytes - result.in_place_bytes
    rate = size / max(result.seconds, 1e-9)
    verified = ", every chunk verified" if size and not result.failed else ""
    yield (
        f"restored {counted(files, 'file')}, {format_size(size)} into {shown(to)} in {result.seconds:.1f} s, "
        f"{format_size(rate)}/s{verified}"
    )
    if result.in_place:
        yield (
            f"in place already, by size and time: {counted(result.in_place, 'file')}, "
            f"{format_size(result.in_place_bytes)}; their bytes were not compared"
        )
    if result.replaced:
        yield f"replaced what was in the way of {counted(result.replaced, 'object')}"
    yield from healed_lines(result.healed_cells, result.healed_records, result.elsewhere)
    if result.failed:
        yield f"NOT restored whole: {counted(result.failed, 'object')}, named above"


def warn_of_absent(opened: FileStore, absent: Sequence[str]) -> None:
    """Say once which backends do not answer, and what to do: so it is known what a failure is due to."""
    if absent:
        from manifests.finding import UNANSWERED
        from manifests.store import ATTACH_THEM

        places = ", ".join(each.removesuffix(f": {UNANSWERED}") for each in absent)
        verb = "does" if len(absent) == 1 else "do"
        warn(f"{len(absent)} of {counted(opened.members.count, 'backend')} {verb} not answer: {places}; {ATTACH_THEM}")


def _restore_bytes(
    opened: FileStore, selection: str, ranges: tuple[ByteRange, ...], to: str, options: OutputOptions, output: str
) -> int:
    """Write an object, or ranges of it, to the file `to`."""
    from pipeline.outfile import output_file
    from pipeline.packreader import ReadFigures

    figures, absent = ReadFigures(), opened.absent_backends()
    warn_of_absent(opened, absent)
    info, parts = _parts(opened, selection, ranges, figures)
    # Nobody shall read the copy who may not read the object.
    mode = 0o666 if info.kind == "stream" else 0o600 | info.mode & 0o666
    written = [0] * len(parts)
    with output_file(to, replace(options, mode=mode)) as out:
        for number, pieces in enumerate(parts):
            before = out.written
            for piece in pieces:
                out.write(piece)
            written[number] = out.written - before
    if not out.is_stdout:
        stands(f"{shown(to)} holds these bytes")
    if out.left_behind:
        warn(f"left behind, as it can't be removed: {out.left_behind}")
    for trouble in (troubles := list(figures.media.lines())):
        warn(f"ailing: {trouble}")
    report = warn if out.is_stdout else say
    if output == "table" or out.is_stdout:
        report(f"{to} holds these bytes already" if out.in_place else f"wrote {counted(out.written, 'byte')} to {to}")
        for line in healed_lines(
            figures.healed_cells, figures.healed_records + opened.healed_records, figures.elsewhere
        ):
            report(line)
    else:
        healed = {
            "healed_cells": figures.healed_cells,
            "healed_records": figures.healed_records + opened.healed_records,
            "chunks_elsewhere": figures.elsewhere,
        }
        each = [{"range": str(part), "bytes": count} for part, count in zip(ranges, written, strict=False)]
        record = {"run": selection[:36], "bytes": out.written, "ranges": each, "path": to, **healed}
        emit_summary({**record, "troubles": [*absent, *troubles]}, _BYTES_FIELDS, output)
    return 0


def _parts(
    opened: FileStore, selection: str, ranges: tuple[ByteRange, ...], figures: ReadFigures
) -> tuple[ObjectInfo, list[Iterator[bytes]]]:
    """An object, and the bytes of each range of it, in the order given, or of all of it. All are looked up before the
    first is read. Raises NotFound, UsageError."""
    info = opened.find(selection)
    return info, [opened.open_range(info, part, figures) for part in ranges or (None,)]


@click.command("cat", cls=Command)
@click.argument("selection", metavar="RUN:PATH | ID")
@store_option
@run_options
@click.option(
    "--range",
    "ranges",
    type=RANGE,
    multiple=True,
    help="Only these bytes: 0-99, 100- or -500; several are written one behind the other.",
)
@metrics_options
@click.pass_context
def cat_command(
    context: click.Context, selection: str, store: str | None, which: RunFilter, ranges: tuple[ByteRange, ...]
) -> None:
    """Write an object, or ranges of it, to standard output. Only the blocks that hold it are read.

    \b
    drystone -s /mnt/archive cat latest:data/table.csv | head
    drystone -s /mnt/archive cat latest:data/disk.img --range 1048576-2097151 >part

    Like `restic dump` and `borg extract --stdout`.
    """
    if ":" not in selection and not is_object_id(selection):
        raise UsageError("which object? write RUN:PATH, as in latest:data/table.csv, or its id")
    if sys.__stdout__ is None:
        raise UsageError("standard output is closed, and cat writes there: redirect it, or use restore --to FILE")
    from pipeline.packreader import ReadFigures

    with open_store(context, store) as opened:
        figures = ReadFigures()
        selection = choose(opened, selection, which)
        warn_of_absent(opened, opened.absent_backends())
        for pieces in _parts(opened, selection, ranges, figures)[1]:
            for piece in pieces:
                write_bytes(piece)
        flush()
        for trouble in figures.media.lines():
            warn(f"ailing: {trouble}")
        for line in healed_lines(
            figures.healed_cells, figures.healed_records + opened.healed_records, figures.elsewhere
        ):
            warn(line)


def healed_lines(cells: int, records: int, elsewhere: int) -> Iterator[str]:
    """What was healed on the way, for people; nothing where nothing was."""
    if cells:
        yield f"decoded {counted(cells, 'missing or damaged cell')} on the way; see: drystone verify --data"
    if records:
        healed = counted(records, "damaged record or manifest", "damaged records and manifests")
        yield f"healed {healed} on the way; see: drystone verify --data"
    if elsewhere:
        found = counted(elsewhere, "chunk")
        yield f"read {found} from another place, as the first did not give it back; see: drystone verify --data"
