"""drystone runs, ls and stats"""

from __future__ import annotations

import os
import stat as filemode
from collections.abc import Iterator
from typing import Any

import click

from manifests.sizes import format_size
from pipeline.cli.command import Command
from pipeline.cli.options import format_options, open_store, store_option
from pipeline.cli.output import Column, emit, emit_json, path_fields, rfc3339
from pipeline.printing import say, shown


@click.command("runs", cls=Command)
@store_option
@format_options
@click.pass_context
def runs_command(context: click.Context, store: str | None, output: str) -> None:
    """List the runs, the oldest first.

    \b
    drystone -s /mnt/archive runs
    drystone -s /mnt/archive runs --json

    Like `restic snapshots` and `borg list`.
    """
    with open_store(context, store) as opened:
        rows = [{"run": str(run.run_id), "time": run.time, **run.summary} for run in opened.runs()]
    columns = [
        Column("run", "run"),
        Column("time", "time"),
        Column("host", "host"),
        Column("files", "files", lambda value: f"{value:,}", right=True),
        Column("bytes", "bytes", format_size, right=True),
        Column("stored", "stored", format_size, right=True),
        Column("errors", "skipped", right=True),
        Column("sources", "sources", lambda value: " ".join(value)),
    ]
    emit(rows, columns, output)


@click.command("ls", cls=Command)
@click.argument("selection", default="", metavar="[RUN[:PATH] | ID]")
@store_option
@click.option("-l", "--long", is_flag=True, help="Mode, owner, size and time, too.")
@click.option("-R", "--recursive", is_flag=True, help="All below.")
@format_options
@click.pass_context
def ls_command(
    context: click.Context, selection: str, store: str | None, long: bool, recursive: bool, output: str
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
            Column("mtime", ""),
            Column("shown", ""),
        ]
        rows = _rows(opened.list(selection, recursive=recursive), output == "table")
        emit(rows, columns if long else columns[-1:], output)


def _rows(objects: Iterator[Any], for_people: bool) -> Iterator[dict[str, Any]]:
    for info in objects:
        row = {
            "kind": info.kind,
            "size": info.size,
            "mode": info.mode,
            "uid": info.uid,
            "gid": info.gid,
            "mtime": rfc3339(info.mtime_ns),
            "digest": info.digest.hex() if info.digest else None,
            "target": os.fsdecode(info.target) if info.target else None,
            "error": info.error,
        }
        if for_people:
            arrow = f" -> {shown(info.target)}" if info.target else ""
            trouble = f"  [{info.error}]" if info.error else ""
            row["shown"] = shown(info.path) + arrow + trouble
            row["owner"] = f"{info.user_name or info.uid}:{info.group_name or info.gid}"
        yield {**path_fields(info.path), **row}


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
        record = {**vars(stats), "dedupe_ratio": stats.dedupe_ratio, "compression_ratio": stats.compression_ratio}
        if output in ("json", "jsonl"):
            emit_json({"type": "summary", **record})
        else:
            emit([record], [], output)
        return
    for name, value, more in (
        ("runs", f"{stats.runs:,}", ""),
        ("files", f"{stats.files:,}", f"of {stats.objects:,} objects"),
        ("logical bytes", format_size(stats.logical), "what the runs hold, each for itself"),
        ("unique bytes", format_size(stats.unique), f"{stats.chunks:,} chunks, dedupe ratio {stats.dedupe_ratio:.2f}"),
        (
            "stored bytes",
            format_size(stats.stored),
            f"{stats.packs:,} packs, compression ratio {stats.compression_ratio:.2f}",
        ),
        ("parity bytes", format_size(stats.parity), "parity, checksums, padding"),
        ("manifests", format_size(stats.manifests), "on each backend"),
    ):
        say(f"{name:<14} {value:>12}  {more}".rstrip())
