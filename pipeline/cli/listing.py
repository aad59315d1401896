"""drystone runs, ls and stats"""

from __future__ import annotations

import os
import stat as filemode
from typing import TYPE_CHECKING, Any

import click

from manifests.counts import counted
from manifests.sizes import format_size
from pipeline.cli.choosing import choose, run_options
from pipeline.cli.command import Command
from pipeline.cli.fields import Kind, rfc3339, typed
from pipeline.cli.options import format_options, open_store, store_option
from pipeline.cli.output import Column, emit, emit_summary, emit_table, path_fields
from pipeline.cli.runfields import FOUND, STORED
from pipeline.printing import say, shown, warn

if TYPE_CHECKING:
    from manifests.choice import RunFilter
    from manifests.inspect import StoreStats
    from manifests.log import Run
    from manifests.objects import ObjectInfo

_RUN_FIELDS = {
    "run": Kind.TEXT,
    "time": Kind.TIME,
    "host": Kind.TEXT,
    "tags": Kind.NESTED,
    "sources": Kind.TEXTS,
    "names": Kind.TEXTS,
    "listed": Kind.FLAG,
    "parent": Kind.TEXT,
    "ignored": Kind.TEXTS,
    "began": Kind.TIME,
    "seconds": Kind.NUMBER,
    **FOUND,
    **STORED,
    "skipped": Kind.INTEGER,
    "left_out": Kind.NESTED,
    "missing_shards": Kind.INTEGER,
    "digests": Kind.TEXTS,
    "checksums": Kind.NESTED,
    "compression": Kind.TEXT,
    "busy": Kind.NESTED,
}
_OBJECT_FIELDS = {
    "path": Kind.PATH,
    "kind": Kind.TEXT,
    "size": Kind.INTEGER,
    "mode": Kind.INTEGER,
    "uid": Kind.INTEGER,
    "gid": Kind.INTEGER,
    "mtime": Kind.TIME,
    "digest": Kind.TEXT,
    "target": Kind.PATH,
    "error": Kind.TEXT,
}
_STATS_FIELDS = {
    "runs": Kind.INTEGER,
    "files": Kind.INTEGER,
    "objects": Kind.INTEGER,
    "logical_bytes": Kind.INTEGER,
    "chunks": Kind.INTEGER,
    "unique_bytes": Kind.INTEGER,
    "packs": Kind.INTEGER,
    "stored_bytes": Kind.INTEGER,
    "parity_bytes": Kind.INTEGER,
    "manifest_bytes": Kind.INTEGER,
    "dedupe_ratio": Kind.NUMBER,
    "compression_ratio": Kind.NUMBER,
}


@click.command("runs", cls=Command)
@store_option
@run_options
@format_options
@click.option("-v", "--verbose", is_flag=True, help="Whole ids.")
@click.pass_context
def runs_command(context: click.Context, store: str | None, which: RunFilter, output: str, verbose: bool) -> None:
    """List the runs, the oldest first. An id is shown by its last 8 digits.

    \b
    drystone -s /mnt/archive runs
    drystone -s /mnt/archive runs --source ~/data --tag project=x --json

    Like `restic snapshots` and `borg list`.
    """
    from manifests.choice import short_ids

    with open_store(context, store) as opened:
        every = opened.runs()
        if not opened.members.sees_all:
            away = opened.members.whereabouts()
            warn(f"so few backends answer that they may not know all runs{away}")
    runs = which.of(every)
    rows = [typed(_run_record(run), _RUN_FIELDS) for run in runs]
    if output != "table":
        emit(rows, _RUN_FIELDS, output)
        return
    ids = {} if verbose else {str(run_id): short for run_id, short in short_ids(every).items()}
    columns = [
        Column("run", "run", lambda run_id: ids.get(run_id, run_id)),
        Column("time", "time"),
        Column("host", "host"),
        Column("files", "files", lambda value: f"{value:,}", right=True),
        Column("bytes", "bytes", format_size, right=True),
        Column("stored_bytes", "stored", format_size, right=True),
        Column("skipped", "skipped", right=True),
        Column("tags", "tags", _tags_text),
        Column("shown", "sources"),
    ]
    if not any(run.tags for run in runs):
        columns = [column for column in columns if column.key != "tags"]
    emit_table(({**row, "shown": _sources_text(run)} for run, row in zip(runs, rows, strict=True)), columns)


def _tags_text(tags: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in tags.items())


def _sources_text(run: Run) -> str:
    """The sources of a run; of a stream, where it came from and what it is called."""
    sources = dict(zip(run.sources, run.names, strict=False)) if len(run.sources) == len(run.names) else {}
    return " ".join(
        source if source.startswith("/") or source not in sources else f"{sources[source]} (from {source})"
        for source in run.sources
    )


def _run_record(run: Run) -> dict[str, Any]:
    """A run for programs, with the names that its ingest's summary has."""
    names = {"stored": "stored_bytes", "parity": "parity_bytes", "errors": "skipped"}
    summary = {names.get(name, name): value for name, value in run.summary.items()}
    return {**summary, "run": str(run.run_id), "time": run.time}


@click.command("ls", cls=Command)
@click.argument("selection", default="latest", metavar="[RUN[:PATH] | ID]")
@store_option
@run_options
@click.option("-l", "--long", is_flag=True, help="Mode, owner, size and time, too.")
@click.option("-R", "--recursive", is_flag=True, help="All below.")
@format_options
@click.pass_context
def ls_command(
    context: click.Context,
    selection: str,
    store: str | None,
    which: RunFilter,
    long: bool,
    recursive: bool,
    output: str,
) -> None:
    """List the objects of a run (of the latest, if none is named), or the object of an id.

    \b
    drystone -s /mnt/archive ls
    drystone -s /mnt/archive ls latest:data/photos -l

    Like `restic ls` and `borg list`.
    """
    with open_store(context, store) as opened:
        columns = [
            Column("mode", "", lambda mode: filemode.filemode(mode)),
            Column("owner", ""),
            Column("size", "", right=True),
            Column("mtime", "", lambda ns: rfc3339(ns // 10**9 * 10**9)),
            Column("shown", ""),
        ]
        objects = opened.list(choose(opened, selection, which), recursive=recursive)
        if output == "table":
            emit_table(map(_object_for_people, objects), columns if long else columns[-1:])
        else:
            emit(map(_object_record, objects), _OBJECT_FIELDS, output)


def _object_record(info: ObjectInfo) -> dict[str, Any]:
    return {
        **path_fields(info.path),
        "kind": info.kind,
        "size": info.size,
        "mode": info.mode,
        "uid": info.uid,
        "gid": info.gid,
        "mtime": info.mtime_ns,
        "digest": info.digest.hex() if info.digest else None,
        "target": os.fsdecode(info.target) if info.target else None,
        "error": info.trouble,
    }


def _object_for_people(info: ObjectInfo) -> dict[str, Any]:
    arrow = f" -> {shown(info.target)}" if info.target else ""
    trouble = f"  [{info.trouble}]" if info.trouble else ""
    return {
        "mode": info.mode,
        "owner": f"{info.user_name or info.uid}:{info.group_name or info.gid}",
        "size": info.size,
        "mtime": info.mtime_ns,
        "shown": shown(info.path) + arrow + trouble,
    }


@click.command("stats", cls=Command)
@store_option
@format_options
@click.pass_context
def stats_command(context: click.Context, store: str | None, output: str) -> None:
    """Show what the store holds and what it costs.

    \b
    drystone -s /mnt/archive stats

    Like `restic stats` and `borg info`.
    """
    with open_store(context, store) as opened:
        stats = opened.stats()
    if output != "table":
        emit_summary(_stats_record(stats), _STATS_FIELDS, output)
        return
    for name, value, more in (
        ("runs", f"{stats.runs:,}", ""),
        ("files", f"{stats.files:,}", f"of {counted(stats.objects, 'object')}"),
        ("logical bytes", format_size(stats.logical), "what the runs hold, each for itself"),
        (
            "unique bytes",
            format_size(stats.unique),
            f"{counted(stats.chunks, 'chunk')}, dedupe ratio {stats.dedupe_ratio:.2f}",
        ),
        (
            "stored bytes",
            format_size(stats.stored),
            f"{counted(stats.packs, 'pack')}, compression ratio {stats.compression_ratio:.2f}",
        ),
        ("parity bytes", format_size(stats.parity), "parity, checksums, padding"),
        ("manifests", format_size(stats.manifests), "on each backend"),
    ):
        say(f"{name:<14} {value:>12}  {more}".rstrip())


def _stats_record(stats: StoreStats) -> dict[str, Any]:
    return {
        "runs": stats.runs,
        "files": stats.files,
        "objects": stats.objects,
        "logical_bytes": stats.logical,
        "chunks": stats.chunks,
        "unique_bytes": stats.unique,
        "packs": stats.packs,
        "stored_bytes": stats.stored,
        "parity_bytes": stats.parity,
        "manifest_bytes": stats.manifests,
        "dedupe_ratio": stats.dedupe_ratio,
        "compression_ratio": stats.compression_ratio,
    }
