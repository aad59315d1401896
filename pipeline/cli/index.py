"""drystone index"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from manifests.config import INDEX_KINDS
from manifests.counts import counted
from manifests.sizes import format_size
from pipeline.cli.command import Command, stands
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import format_options, open_store, quiet_option, store_option
from pipeline.cli.output import emit_summary
from pipeline.printing import say

if TYPE_CHECKING:
    from manifests.indexcache import CacheStatus, IndexStatus


@click.group("index")
def index_command() -> None:
    """Show the dedupe index, or build it anew.

    \b
    drystone -s /mnt/archive index status
    drystone -s /mnt/archive index rebuild --kind disk

    It says which chunks the store holds. Of kind memory it is read from the manifests at each ingest; of kind disk it
    lies in the cache directory, and each ingest adds what is new. Nothing but ingest needs it, and where it is lost,
    stale or damaged, the next one builds it anew.
    """


_STATUS_FIELDS = {
    "kind": Kind.TEXT,
    "location": Kind.PATH,
    "rows": Kind.INTEGER,
    "memory_bytes": Kind.INTEGER,
    "chunks": Kind.NESTED,
    "contents": Kind.NESTED,
}


@index_command.command("status", cls=Command)
@store_option
@format_options
@click.pass_context
def status_command(context: click.Context, store: str | None, output: str) -> None:
    """Show the kind of the index, and how it stands.

    \b
    drystone -s /mnt/archive index status

    Like `restic cache` and `borg repo-info`.
    """
    with open_store(context, store) as opened:
        status = opened.index_status()
    if output == "table":
        _show(status)
    else:
        emit_summary(_record(status), _STATUS_FIELDS, output)


@index_command.command("rebuild", cls=Command)
@store_option
@click.option("--kind", type=click.Choice(INDEX_KINDS), help="Use this kind from now on [default: as it is].")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@format_options
@quiet_option
@metrics_options
@click.pass_context
def rebuild_command(
    context: click.Context, store: str | None, kind: str | None, dry_run: bool, output: str, quiet: bool
) -> None:
    """Build the index anew from the manifests; with --kind, record that all ingests use that kind from now on.

    \b
    drystone -s /mnt/archive index rebuild
    drystone -s /mnt/archive index rebuild --kind disk

    Like `restic repair index` and `borg check --repair`.
    """
    with open_store(context, store) as opened:
        before = opened.index_status()
        status = before if dry_run else opened.rebuild_index(kind)
        if not dry_run:
            stands("the index is built")
    wanted = kind or before.kind
    if output != "table":
        record = {"dry_run": dry_run, "wanted": wanted, **_record(status)}
        emit_summary(record, {"dry_run": Kind.FLAG, "wanted": Kind.TEXT, **_STATUS_FIELDS}, output)
    elif not quiet and dry_run:
        what = "build the index on disk anew" if wanted == "disk" else "remove what lies in the cache"
        switch = f"record the kind {wanted} instead of {before.kind}, and " if wanted != before.kind else ""
        say(f"would {switch}{what}; the manifests name {counted(before.rows, 'chunk')}")
    elif not quiet:
        _show(status)


def _record(status: IndexStatus) -> dict[str, Any]:
    """The index for programs, with _STATUS_FIELDS."""
    record = asdict(status)
    return {"memory_bytes": record.pop("memory"), **record}


def _show(status: IndexStatus) -> None:
    lines = [("kind", status.kind, "")]
    if status.chunks is None or status.contents is None:
        size = format_size(status.memory)
        lines.append(
            ("chunks", f"{status.rows:,}", f"read from the manifests at each ingest, at most {size} of memory")
        )
    else:
        lines.append(
            ("chunks", f"{status.chunks.entries:,}", f"{format_size(status.chunks.bytes)}, {_how(status.chunks)}")
        )
        lines.append(("contents", f"{status.contents.entries:,}", f"of several chunks, {_how(status.contents)}"))
        lines.append(("location", "", status.location))
    for name, value, more in lines:
        say(f"{name:<14} {value:>12}  {more}".rstrip(), at_once=False)


def _how(part: CacheStatus) -> str:
    """The condition in words."""
    words = {
        "current": "current",
        "behind": f"behind: the next ingest adds {counted(part.missing, 'manifest file')}",
        "stale": "stale: the next ingest builds it anew",
        "damaged": "damaged: the next ingest builds it anew",
        "absent": "absent: the next ingest builds it",
        "busy": "being changed by another process",
    }
    return words[part.condition] + (f", {format_size(part.size)} on disk" if part.size else "")
