"""drystone ingest"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from manifests.config import CodecSpec
from manifests.counts import counted
from manifests.errors import UsageError
from manifests.ids import short_id
from pipeline.cli.command import stands
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
from pipeline.cli.selecting import SelectingCommand, select_options, selecting_options
from pipeline.cli.summary import (
    RESULT_FIELDS,
    SURVEY_FIELDS,
    WORDS,
    result_record,
    show_result,
    show_survey,
    survey_record,
)
from pipeline.names import parse_name
from pipeline.printing import say, shown, warn
from stages.digest import join_digests, parse_digests

if TYPE_CHECKING:
    from pipeline.ingest.run import IngestOptions

NAMED_SHORT = 10


def _tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"{pair!r} is not a tag; write KEY=VALUE")
        if key in tags:
            raise UsageError(f"two tags are called {key!r}, and a run has one of each name: leave one out")
        tags[key] = value
    return tags


@click.command("ingest", cls=SelectingCommand)
@click.argument("sources", nargs=-1, metavar="SOURCE…")
@store_option
@click.option(
    "--compression", type=Parsed("CODEC", CodecSpec.parse), help="Instead of the store's: none, lz4, zstd:LEVEL."
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="K=V",
    help="Note something about the run; each K once.",
)
@click.option("--host", default="", help="Host name to record [default: this one's].")
@click.option(
    "--as",
    "--name",
    "name",
    type=Parsed("NAME", parse_name),
    default=None,
    metavar="NAME",
    help="What the source is called in the archive.",
)
@click.option("--command", "is_command", is_flag=True, help="Archive what the command behind -- writes; needs --name.")
@selecting_options
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be archived; -v names what is left out.")
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
@click.option(
    "--parent", default="", metavar="RUN", help="Don't read what is unchanged since RUN [default: see below]."
)
@click.option("--force", is_flag=True, help="Read everything, whatever did not change.")
@click.option("--ignore-inode", is_flag=True, help="A file may be unchanged though its inode is another.")
@click.option("--ignore-ctime", is_flag=True, help="A file may be unchanged though its change time is another.")
@resource_options
@format_options
@quiet_option
@verbose_option
@metrics_options
@click.pass_context
def ingest_command(
    context: click.Context,
    sources: tuple[str, ...],
    store: str | None,
    compression: CodecSpec | None,
    tags: tuple[str, ...],
    host: str,
    name: str | None,
    is_command: bool,
    exclude_caches: bool,
    exclude_larger_than: int | None,
    one_file_system: bool,
    files_from: str,
    nul: bool,
    dry_run: bool,
    digests: tuple[tuple[str, ...], ...],
    checksums: tuple[str, ...],
    parent: str,
    force: bool,
    ignore_inode: bool,
    ignore_ctime: bool,
    workers: int | None,
    memory: int,
    output: str,
    quiet: bool,
    verbose: bool,
) -> int:
    """Archive SOURCE… (files, directories, or - for standard input) as one run, committed whole or not at all.

    \b
    drystone -s /mnt/archive ingest ~/data /etc --tag project=x
    drystone -s /mnt/archive ingest ~/src --exclude node_modules --exclude '*.o' --include keep.o
    drystone -s /mnt/archive ingest --name shop.sql --command -- pg_dump shop
    find . -newer last -print0 | drystone -s /mnt/archive ingest --files-from - -0

    Patterns are those of gitignore, from each SOURCE: /build is the one at its top. The last that matches decides. A
    list of paths (--files-from) counts from SOURCE, or from the current directory.

    A file whose size, times and inode are those of the latest run of the same host and sources is not read again; what
    that run knows of it is taken over, as long as the store holds all of it.

    Like `restic backup` and `borg create`.
    """
    if not dry_run:
        from pipeline.forkserver import warm_up

        warm_up()
    from pipeline.cli.progress import Counters, Progress, Snapshot, bottleneck
    from pipeline.cli.uselesspatterns import useless
    from pipeline.ingest.checksums import ChecksumFile
    from pipeline.ingest.parent import ParentOptions
    from pipeline.ingest.run import IngestOptions, committed
    from pipeline.topology import CHUNK, COMPRESS, INGEST_STAGES, READ, SCAN, UNCHANGED, WRITE
    from stages.parent import Comparison

    def read(counters: Counters) -> Snapshot:
        done, found = counters[:, [READ, UNCHANGED]].sum(axis=(0, 1)), counters[:, SCAN].sum(axis=0)
        held_by = bottleneck(counters, INGEST_STAGES, (SCAN, READ, CHUNK, COMPRESS, WRITE))
        return Snapshot(int(done[0]), int(done[1]), int(found[1]), held_by)

    if is_command and not sources:
        raise UsageError("--command needs one: ingest --name shop.sql --command -- pg_dump shop")
    options = IngestOptions(
        codec=compression,
        tags=_tags(tags),
        host=host,
        workers=workers,
        memory=memory,
        select=select_options(context, exclude_caches, exclude_larger_than, one_file_system),
        files_from=files_from,
        nul=nul,
        command=sources if is_command else (),
        digests=join_digests(digests),
        checksums=tuple(map(ChecksumFile.parse, checksums)),
        parent=ParentOptions(parent, force, Comparison(inode=not ignore_inode, ctime=not ignore_ctime)),
    )
    paths = () if is_command else sources
    for line in useless(options.select.patterns, paths):
        warn(line)
    if dry_run:
        return _dry_run(context, store, paths, name or "", options, output, quiet, verbose)
    with (
        open_store(context, store) as opened,
        Progress.choose("ingest", read, quiet=quiet, output=output, verbose=verbose) as progress,
    ):
        result = opened.ingest(paths, name=name or "", options=options, on_tick=progress.tick)
        stands(committed(result.run_id))
    tally = result.tally
    named = tally.named_errors if verbose else tally.named_errors[:NAMED_SHORT]
    for path, reason in named:
        warn(f"skipped or incomplete: {shown(path)}: {reason}")
    if tally.errors > len(named):
        warn(f"… and {tally.errors - len(named):,} more; see: drystone ls -R {short_id(result.run_id)}")
    listed = result.checksums
    if listed is not None:
        for path in listed.named_missing if verbose else listed.named_missing[:NAMED_SHORT]:
            warn(f"listed, but not archived: {shown(path)}")
        if listed.missing > NAMED_SHORT and not verbose:
            warn(f"… and {listed.missing - NAMED_SHORT:,} more; see: drystone ingest -v")
    for reason in result.lost_manifests:
        warn(f"manifests lost: {reason}; what they alone placed was stored again, as far as it is here")
    for reason in result.lost_backends:
        warn(f"short of redundancy: {reason}")
    for reason in result.behind:
        warn(f"behind: {reason}")
    if result.memory_wanted:
        warn(
            f"--memory {memory >> 20}MiB was room for {counted(result.compressors, 'compressor')}; one for each core "
            f"takes --memory {-(-result.memory_wanted >> 20)}MiB"
        )
    if result.index_trouble:
        warn(f"done without the index on disk, out of the manifests: {result.index_trouble}")
    if output == "table":
        show_result(result, quiet=quiet, verbose=verbose)
    else:
        for path, reason in tally.named_errors if output == "jsonl" else ():
            emit_json("item", {**path_fields(path), "error": reason})
        for path in result.checksums.named_missing if result.checksums is not None and output == "jsonl" else ():
            emit_json("item", {**path_fields(path), "error": "it is listed, but not archived"})
        emit_summary(result_record(result), RESULT_FIELDS, output)
    return result.exit_code


def _dry_run(
    context: click.Context,
    store: str | None,
    paths: tuple[str, ...],
    name: str,
    options: IngestOptions,
    output: str,
    quiet: bool,
    verbose: bool,
) -> int:
    def on_left_out(path: bytes, reason: str) -> None:
        if output == "jsonl":
            emit_json("item", {**path_fields(path), "left_out": reason})
        elif output == "table" and verbose:
            say(f"left out, {WORDS[reason]}: {shown(path)}")

    with open_store(context, store) as opened:
        found = opened.survey(paths, name=name, options=options, on_left_out=on_left_out)
    for path, reason in found.tally.named_errors:
        warn(f"would be skipped or incomplete: {shown(path)}: {reason}")
    if output != "table":
        emit_summary(survey_record(found), SURVEY_FIELDS, output)
    elif not quiet:
        show_survey(found)
    return found.exit_code
