"""drystone ingest"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from manifests.config import CodecSpec
from manifests.errors import UsageError
from manifests.sizes import format_size
from pipeline.cli.options import (
    Parsed,
    format_options,
    open_store,
    quiet_option,
    resource_options,
    store_option,
    verbose_option,
)
from pipeline.cli.output import emit_json, path_fields, show_path
from stages.digest import join_digests, parse_digests

if TYPE_CHECKING:
    from pipeline.ingest.run import IngestResult

NAMED_SHORT = 10


def _tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"{pair!r} is not a tag; write KEY=VALUE")
        tags[key] = value
    return tags


@click.command("ingest")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@store_option
@click.option(
    "--compression", type=Parsed("CODEC", CodecSpec.parse), help="Instead of the store's: none, lz4, zstd:LEVEL."
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Note something about the run; may be repeated.")
@click.option("--host", default="", help="Host name to record [default: this one's].")
@click.option("--as", "--name", "name", default="", metavar="NAME", help="What the source is called in the archive.")
@click.option(
    "--digest",
    "digests",
    multiple=True,
    type=Parsed("NAMES", parse_digests),
    help="More whole-content digests besides BLAKE3: md5, sha1, sha256, sha512; with commas, or repeated.",
)
@click.option(
    "--checksums",
    multiple=True,
    metavar="[ALG:]FILE",
    help="Compare with a list as sha256sum or b3sum print it, or a BagIt manifest; may be repeated.",
)
@resource_options
@format_options
@quiet_option
@verbose_option
def ingest_command(
    sources: tuple[str, ...],
    store: str | None,
    compression: CodecSpec | None,
    tags: tuple[str, ...],
    host: str,
    name: str,
    digests: tuple[tuple[str, ...], ...],
    checksums: tuple[str, ...],
    workers: int | None,
    memory: int,
    output: str,
    quiet: bool,
    verbose: bool,
) -> int:
    """Archive SOURCE… (files, directories, or - for standard input) as one run, committed whole or not at all.

    \b
    drystone -s /mnt/archive ingest ~/data /etc --tag project=x
    pg_dump shop | drystone -s /mnt/archive ingest - --name shop.sql

    Like `restic backup` and `borg create`.
    """
    from pipeline.cli.progress import Counters, Progress, Snapshot, bottleneck
    from pipeline.ingest.checksums import ChecksumFile
    from pipeline.ingest.run import IngestOptions
    from pipeline.topology import CHUNK, COMPRESS, INGEST_STAGES, READ, SCAN, WRITE

    def read(counters: Counters) -> Snapshot:
        done, found = counters[:, READ].sum(axis=0), counters[:, SCAN].sum(axis=0)
        held_by = bottleneck(counters, INGEST_STAGES, (SCAN, READ, CHUNK, COMPRESS, WRITE))
        return Snapshot(int(done[0]), int(done[1]), int(found[1]), held_by)

    options = IngestOptions(
        codec=compression,
        tags=_tags(tags),
        host=host,
        workers=workers,
        memory=memory,
        digests=join_digests(digests),
        checksums=tuple(map(ChecksumFile.parse, checksums)),
    )
    with (
        open_store(click.get_current_context(), store, workers=True) as opened,
        Progress.choose("ingest", read, quiet=quiet, output=output) as progress,
    ):
        result = opened.ingest(sources, name=name, options=options, on_tick=progress.tick)
    tally = result.tally
    shown = tally.named_errors if verbose else tally.named_errors[:NAMED_SHORT]
    for path, reason in shown:
        click.echo(f"skipped or incomplete: {show_path(path)}: {reason}", err=True)
    if tally.errors > len(shown):
        click.echo(f"… and {tally.errors - len(shown)} more; see: drystone ls -R {result.run_id}", err=True)
    listed = result.checksums
    if listed is not None:
        for path in listed.named_missing if verbose else listed.named_missing[:NAMED_SHORT]:
            click.echo(f"listed, but not archived: {show_path(path)}", err=True)
        if listed.missing > NAMED_SHORT and not verbose:
            click.echo(f"… and {listed.missing - NAMED_SHORT:,} more; see: drystone ingest -v", err=True)
    for reason in result.lost_backends:
        click.echo(f"short of redundancy: {reason}", err=True)
    if output == "table":
        _show(result, quiet)
    else:
        for path, reason in tally.named_errors if output == "jsonl" else ():
            emit_json({"type": "item", **path_fields(path), "error": reason})
        for path in result.checksums.named_missing if result.checksums is not None and output == "jsonl" else ():
            emit_json({"type": "item", **path_fields(path), "error": "it is listed, but not archived"})
        emit_json(_record(result))
    return result.exit_code


def _ratio(of: float, to: float) -> str:
    return f"{of / to:.2f}" if to else "-"


def _show(result: IngestResult, quiet: bool) -> None:
    tally = result.tally
    click.echo(f"run {result.run_id}")
    if quiet:
        return
    rate = tally.bytes / max(result.seconds, 1e-9)
    left_behind = f"left behind by a run that did not finish, {tally.adopted_packs:,} packs"
    adopted = [("adopted", format_size(tally.adopted_bytes), left_behind)] if tally.adopted_packs else []
    rows = [
        ("files", f"{tally.files:,}", f"and {tally.directories:,} directories, {tally.others:,} others"),
        ("bytes", format_size(tally.bytes), f"in {result.seconds:.1f} s, {format_size(rate)}/s"),
        ("new bytes", format_size(tally.new_bytes), f"dedupe ratio {_ratio(tally.bytes, tally.new_bytes)}"),
        ("stored bytes", format_size(tally.stored), f"compression ratio {_ratio(tally.new_bytes, tally.stored)}"),
        ("parity bytes", format_size(tally.parity), f"in {tally.packs:,} packs"),
        *adopted,
        *_list_row(result),
        ("skipped", f"{tally.errors:,}", "every one is a row of the manifest" if tally.errors else ""),
    ]
    for name, value, more in rows:
        click.echo(f"  {name:<13} {value:>12}  {more}".rstrip())
    click.echo("  stage      workers        MB/s   busy  waiting")
    for figures in result.stages:
        if figures.workers:
            speed = figures.bytes / 1e6 / result.seconds
            whole = max(figures.busy + figures.waiting, 1e-9)
            click.echo(
                f"  {figures.stage:<10} {figures.workers:>7} {speed:>11,.0f} {figures.busy / whole:>6.0%} "
                f"{figures.waiting / whole:>8.0%}"
            )


def _list_row(result: IngestResult) -> list[tuple[str, str, str]]:
    if (listed := result.checksums) is None:
        return []
    more = f"of {listed.listed:,} listed; {listed.differing:,} differ, {listed.missing:,} not archived"
    return [("checked", f"{listed.checked:,}", more)]


def _record(result: IngestResult) -> dict[str, object]:
    tally = result.tally
    return {
        "type": "summary",
        "run": str(result.run_id),
        "files": tally.files,
        "directories": tally.directories,
        "others": tally.others,
        "bytes": tally.bytes,
        "new_chunks": tally.new_chunks,
        "new_bytes": tally.new_bytes,
        "stored_bytes": tally.stored,
        "parity_bytes": tally.parity,
        "packs": tally.packs,
        "adopted_packs": tally.adopted_packs,
        "adopted_bytes": tally.adopted_bytes,
        "skipped": tally.errors,
        "checksums": None if result.checksums is None else result.checksums.counts,
        "missing_shards": tally.missing_shards,
        "short_of_redundancy": result.lost_backends,
        "seconds": round(result.seconds, 3),
        "stages": [vars(figures) for figures in result.stages],
        "exit_code": result.exit_code,
    }
