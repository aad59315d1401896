"""drystone verify"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from manifests.counts import counted
from manifests.ids import short_id
from manifests.sizes import format_size
from pipeline.cli.command import Command, stands
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import (
    format_options,
    open_store,
    quiet_option,
    resource_options,
    store_option,
    verbose_option,
)
from pipeline.cli.output import emit_json, emit_summary, path_fields
from pipeline.printing import say, shown, warn

if TYPE_CHECKING:
    from manifests.inspect import BadCopy
    from pipeline.verify.run import VerifyResult

NAMED_SHORT = 20
#: What a verification by presence says of the bytes.
UNREAD = "bytes not read (see --data)"
_FIELDS = {
    "data": Kind.FLAG,
    "packs": Kind.INTEGER,
    "checked_packs": Kind.INTEGER,
    "checked_bytes": Kind.INTEGER,
    "bad_cells": Kind.INTEGER,
    "missing_shards": Kind.INTEGER,
    "flawed_shards": Kind.INTEGER,
    "lost_directories": Kind.INTEGER,
    "mislisted_packs": Kind.INTEGER,
    "bad_copies": Kind.INTEGER,
    "absent_backends": Kind.TEXTS,
    "lost_chunks": Kind.INTEGER,
    "unreadable_packs": Kind.INTEGER,
    "lost_manifests": Kind.TEXTS,
    "troubles": Kind.TEXTS,
    "lost_objects": Kind.INTEGER,
    "wrong_objects": Kind.INTEGER,
    "seconds": Kind.NUMBER,
    "noted": Kind.FLAG,
    "exit_code": Kind.INTEGER,
}


@click.command("verify", cls=Command)
@store_option
@click.option("--data", is_flag=True, help="Read everything: every cell checksum, chunk id and digest.")
@resource_options
@format_options
@quiet_option
@verbose_option
@metrics_options
@click.pass_context
def verify_command(
    context: click.Context,
    store: str | None,
    data: bool,
    workers: int | None,
    memory: int,
    output: str,
    quiet: bool,
    verbose: bool,
) -> int:
    """Check manifests, records and the presence of shards; with --data, all bytes. Exit 4: something wants repair,
    nothing is lost; exit 3: bytes are lost.

    \b
    drystone -s /mnt/archive verify
    drystone -s /mnt/archive verify --data

    Like `restic check --read-data` and `borg check --verify-data`.
    """
    if data:
        from pipeline.forkserver import warm_up

        warm_up()
    from pipeline.cli.progress import Counters, Progress, Snapshot, bottleneck
    from pipeline.topology import DECOMPRESS, FETCH, RESTORE_STAGES, VERIFY

    def read(counters: Counters) -> Snapshot:
        done = counters[:, FETCH].sum(axis=0)
        return Snapshot(
            int(counters[:, VERIFY, 0].sum()),
            int(done[1]),
            0,
            bottleneck(counters, RESTORE_STAGES, (FETCH, DECOMPRESS, VERIFY)),
        )

    with (
        open_store(context, store) as opened,
        Progress.choose("verify", read, quiet=quiet, output=output) as progress,
    ):
        result = opened.verify(data=data, workers=workers, memory=memory, on_tick=progress.tick)
        stands(f"the verification is done, with exit code {result.exit_code}")
    lines = [f"absent: {location}" for location in result.absent_backends]
    lines += [f"ailing: {trouble}" for trouble in result.troubles]
    lines += map(_bad_copy, result.bad_copies)
    lines += result.damaged_shards
    lines += [f"lost: {reason}" for reason in result.lost_manifests]
    lost = [f"lost: {short_id(run, whole=verbose)}:{shown(path)}" for run, path in result.lost_objects]
    for run, path in result.wrong_objects:
        reason = result.wrong_reasons.get((run, path), "")
        lost.append(f"not what was recorded: {short_id(run, whole=verbose)}:{shown(path)}" + (reason and f": {reason}"))
    for line in [*(lines if verbose else lines[:NAMED_SHORT]), *lost]:
        warn(line)
    if len(lines) > NAMED_SHORT and not verbose:
        warn(f"… and {len(lines) - NAMED_SHORT:,} more; see: drystone verify -v")
    if result.unreadable_packs and result.exit_code == 3 and not result.unnoted:
        warn("what the sources still hold, the next ingest stores again")
    if result.unnoted:
        warn(f"this verification is not noted in the store: {result.unnoted}")
    if output != "table":
        for run, path in result.lost_objects if output == "jsonl" else ():
            emit_json("item", {"run": str(run), **path_fields(path), "error": "lost"})
        for run, path in result.wrong_objects if output == "jsonl" else ():
            reason = result.wrong_reasons.get((run, path), "not what was recorded")
            emit_json("item", {"run": str(run), **path_fields(path), "error": reason})
        emit_summary(
            {
                "data": data,
                "packs": result.packs,
                "checked_packs": result.checked_packs,
                "checked_bytes": result.checked_bytes,
                "bad_cells": result.bad_cells,
                "missing_shards": result.missing_shards,
                "flawed_shards": result.flawed_shards,
                "lost_directories": result.lost_directories,
                "mislisted_packs": result.mislisted_packs,
                "bad_copies": len(result.bad_copies),
                "absent_backends": result.absent_backends,
                "lost_chunks": result.lost_chunks,
                "unreadable_packs": len(result.unreadable_packs),
                "lost_manifests": result.lost_manifests,
                "troubles": result.troubles,
                "lost_objects": result.lost_object_count,
                "wrong_objects": result.wrong_object_count,
                "seconds": round(result.seconds, 3),
                "noted": not result.unnoted,
                "exit_code": result.exit_code,
            },
            _FIELDS,
            output,
        )
        return result.exit_code
    if not quiet:
        looked = f"their shards looked for, {UNREAD}"
        if data:
            checked = "chunk and digest" if result.troubles else "cell, chunk and digest"
            looked = f"{format_size(result.checked_bytes)} read, and every {checked} in it checked"
        say(f"{counted(result.packs, 'pack')}, {looked}, {result.seconds:.1f} s")
        say(_verdict(result, data))
    return result.exit_code


def _bad_copy(copy: BadCopy) -> str:
    """What is wrong with a copy, with its place once."""
    place = f"{copy.backend}/{copy.key}"
    return copy.reason if place in copy.reason else f"{place}: {copy.reason}"


def _verdict(result: VerifyResult, data: bool) -> str:
    if result.exit_code == 0:
        if not data:
            return "complete: all shards are there, and records and manifests are whole"
        return "whole: nothing is missing, nothing is damaged"
    damage = (
        f"{counted(result.bad_cells, 'bad cell')}, {counted(result.missing_shards, 'missing shard')}, "
        f"{counted(len(result.bad_copies), 'bad copy', 'bad copies')} of records and manifests"
    )
    if result.flawed_shards:
        damage += f", {counted(result.flawed_shards, 'shard')} with bad records or tables"
    if result.lost_directories:
        damage += f", {counted(result.lost_directories, 'pack')} without a directory"
    if result.mislisted_packs:
        damage += f", {counted(result.mislisted_packs, 'pack')} of which manifests and directory tell different things"
    if result.unreadable_packs:
        damage += f", {counted(len(result.unreadable_packs), 'pack')} that can't be read whole"
    if result.exit_code == 4:
        if not data:
            return f"damaged: {damage}; no pack lacks more shards than it may"
        return f"damaged, but nothing is lost: {damage}; everything can still be restored"
    if result.wrong_object_count and not result.lost_object_count:
        wrong = counted(result.wrong_object_count, "object")
        return f"WRONG: not what was recorded when it was archived: {wrong}; {damage}"
    if result.lost_manifests and not result.lost_object_count:
        return f"LOST: {counted(len(result.lost_manifests), 'manifest')}, and what is told there alone; {damage}"
    return f"LOST: {counted(result.lost_object_count, 'object')} can't be restored whole; {damage}"
