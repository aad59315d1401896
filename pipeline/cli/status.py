"""drystone status"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from manifests.counts import any_of, counted
from manifests.ids import short_id
from manifests.sizes import format_size
from pipeline.cli.backend import backend_record
from pipeline.cli.command import Command
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import format_options, open_store, store_option
from pipeline.cli.output import Column, emit, emit_summary, emit_table
from pipeline.printing import say

if TYPE_CHECKING:
    from manifests.inflight import Unfinished
    from manifests.log import Verification
    from manifests.presence import Pattern
    from pipeline.status import StoreStatus

#: Sets of backends that a line of `--risk` names.
NAMED_SETS = 20

_FIELDS = {
    "backends_that_may_be_lost": Kind.INTEGER,
    "domains_that_may_be_lost": Kind.INTEGER,
    "should_bear": Kind.INTEGER,
    "domains": Kind.INTEGER,
    "packs": Kind.INTEGER,
    "short_packs": Kind.INTEGER,
    "missing_shards": Kind.INTEGER,
    "lost_packs": Kind.INTEGER,
    "spare_packs": Kind.INTEGER,
    "known_loss": Kind.TEXT,
    "last_run": Kind.NESTED,
    "last_verification": Kind.NESTED,
    "last_data_verification": Kind.NESTED,
    "backends": Kind.NESTED,
    "unnamed_packs": Kind.INTEGER,
    "stranded_packs": Kind.INTEGER,
    "unfinished": Kind.NESTED,
    "troubles": Kind.TEXTS,
    "advice": Kind.TEXTS,
    "notes": Kind.TEXTS,
    "exit_code": Kind.INTEGER,
}
_RISK_FIELDS = {
    "pack": Kind.TEXT,
    "good_shards": Kind.INTEGER,
    "data_shards": Kind.INTEGER,
    "parity_shards": Kind.INTEGER,
    "backends_that_may_be_lost": Kind.INTEGER,
    "recoverable": Kind.FLAG,
    "stored_again": Kind.FLAG,
    "backends": Kind.TEXTS,
    "lost_with": Kind.NESTED,
    "lost_with_more": Kind.FLAG,
}


@click.command("status", cls=Command)
@store_option
@click.option("--risk", is_flag=True, help="Which packs would not survive losing which backends.")
@format_options
@click.option("-v", "--verbose", is_flag=True, help="Whole ids.")
@metrics_options
@click.pass_context
def status_command(context: click.Context, store: str | None, risk: bool, output: str, verbose: bool) -> int:
    """Say whether the store is safe: how many backends may be lost, what is amiss, what to do next. Reads no data; for
    that there is verify. Exit 4: something wants mending; exit 3: something can't be given back.

    \b
    drystone -s /mnt/archive status
    drystone -s /mnt/archive status --risk

    Like `restic check` and `borg check --repository-only`, but for seconds.
    """
    with open_store(context, store) as opened:
        found = opened.status()
        if risk:
            locations = {share.backend.number: share.backend.path for share in found.backends}
            if output == "table":
                _show_risk(found, locations)
            else:
                emit((_risk_record(each, locations) for each in found.presence.packs()), _RISK_FIELDS, output)
        elif output == "table":
            _show(found, verbose)
        else:
            emit_summary(_record(found), _FIELDS, output)
    return found.exit_code


def _show(found: StoreStatus, verbose: bool) -> None:
    say(f"safe: {_safety(found)}")
    lack = f"{found.short_packs:,} short of shards" if found.short_packs else "all shards there"
    if found.spare_packs:
        lack += f", {found.spare_packs:,} lost of which all was stored again"
    say(f"{counted(found.packs, 'pack')}, {lack}, by listing and the last verification")
    for line in _history(found, verbose):
        say(line)
    columns = [
        Column("failure_domain", "domain"),
        Column("state", "state"),
        Column("shards", "shards", lambda count: f"{count:,}", right=True),
        Column("shard_bytes", "bytes", format_size, right=True),
        Column("free_bytes", "free", format_size, right=True),
        Column("path", "backend"),
    ]
    emit_table(
        (
            {**backend_record(share.backend), "shards": share.shards, "shard_bytes": share.shard_bytes}
            for share in found.backends
        ),
        columns,
    )
    for trouble in found.troubles:
        say(f"amiss: {trouble}")
    for advice in found.advice:
        say(f"next: {advice}")
    for note in found.notes:
        say(f"note: {note}")


def _safety(found: StoreStatus) -> str:
    count = len(found.backends)
    if found.known_loss:
        return f"NO: {found.known_loss}, by the last verification of all data"
    if found.bears_backends < 0 and not found.lost_packs:
        return "NO: records or manifest files are on no backend that answers"
    if found.bears_backends < 0:
        packs = counted(found.packs, "pack")
        return f"NO: {found.lost_packs:,} of {packs} can't be given back by the backends that answer"
    bears = any_of(found.bears_backends, count, "backend", more=found.bears_backends < found.should_bear)
    text = f"{bears} may be lost, and all comes back" if found.bears_backends else f"for now, but {bears} may be lost"
    return f"{text}; {any_of(max(0, found.bears_domains), found.domains, 'failure domain')}"


def _history(found: StoreStatus, verbose: bool) -> Iterator[str]:
    run = found.last_run
    if run is None:
        yield "no run yet"
    else:
        yield f"last run {short_id(run.run_id, whole=verbose)} of {run.time}, {_ago(run.time)}"
    healed = found.bears_backends >= 0
    yield _verified("last verification", found.last_verification, healed)
    if found.last_data_verification is not found.last_verification:
        yield _verified("last verification of all data", found.last_data_verification, healed)
    for unfinished, packs in found.unfinished:
        run_id = short_id(unfinished.run_id, whole=verbose)
        yield f"unfinished run {run_id}: {_fate(unfinished)}{_left(unfinished, packs)}"
    if found.unnamed_packs:
        yield f"{counted(found.unnamed_packs, 'pack')} of these runs, which no manifest names yet"
    if found.stranded_packs:
        stranded = counted(found.stranded_packs, "pack")
        yield f"left by failed runs: {stranded} that no run can take over; gc of a later version will free the room"


def _left(run: Unfinished, packs: int) -> str:
    """What the next ingest can take over of a run that noted so many packs, as the end of a sentence."""
    if packs:
        return f"; it stored {counted(packs, 'pack')} that no other run has"
    return {"stopped": "; it stored no whole pack", "died": "; it noted no pack"}.get(run.state, "")


def _fate(run: Unfinished) -> str:
    process = run.process
    if process is None:
        return "stopped" if run.ended else "under way, or died; its marker can't be read"
    where = f"process {process.pid} on {process.host}"
    return {
        "stopped": f"stopped: {where}",
        "died": f"died: {where} is gone",
        "running": f"under way: {where}",
        "unknown": f"under way, or died: {where}, which can't be looked at from here; once it has surely ended, "
        f"remove inflight/{run.run_id} on every backend",
    }[run.state]


def _verified(name: str, last: Verification | None, healed: bool) -> str:
    """What a verification came to; `healed`: all that it found lost is there again."""
    if last is None:
        return f"{name}: never"
    outcomes = {0: "all there", 3: "LOST DATA", 4: "something is missing or damaged"}
    how = "shards looked for, bytes not read"
    if last.data:
        outcomes = {0: "whole", 3: "LOST DATA", 4: "damage, nothing lost"}
        how = "all data read"
    outcome = outcomes.get(last.exit_code, f"exit {last.exit_code}")
    if last.found_loss and healed:
        outcome = "data was lost, which is there again"
    return f"{name} of {last.time}, {_ago(last.time)}: {how}, {outcome}"


def _ago(time: str) -> str:
    from pipeline.status import age

    return f"{_rough(age(time))} ago"


def _rough(span: datetime.timedelta) -> str:
    """A span of time in its largest unit."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if span.total_seconds() >= 2 * seconds:
            return f"{int(span.total_seconds() // seconds)} {unit}"
    return f"{int(span.total_seconds())} s"


def _record(found: StoreStatus) -> dict[str, Any]:
    run = found.last_run
    return {
        "backends_that_may_be_lost": None if found.bears_backends < 0 else found.bears_backends,
        "domains_that_may_be_lost": None if found.bears_domains < 0 else found.bears_domains,
        "should_bear": found.should_bear,
        "domains": found.domains,
        "packs": found.packs,
        "short_packs": found.short_packs,
        "missing_shards": found.missing_shards,
        "lost_packs": found.lost_packs,
        "spare_packs": found.spare_packs,
        "known_loss": found.known_loss or None,
        "last_run": None if run is None else {"run": str(run.run_id), "time": run.time, "age_seconds": _age(run.time)},
        "last_verification": _verification_record(found.last_verification),
        "last_data_verification": _verification_record(found.last_data_verification),
        "backends": [
            {
                **backend_record(share.backend),
                "shards": share.shards,
                "shard_bytes": share.shard_bytes,
                "lacking_files": share.lacking,
            }
            for share in found.backends
        ],
        "unnamed_packs": found.unnamed_packs,
        "stranded_packs": found.stranded_packs,
        "unfinished": [
            {
                "run": str(run.run_id),
                "state": run.state,
                "host": None if run.process is None else run.process.host,
                "pid": None if run.process is None else run.process.pid,
                "time": run.time or None,
                "packs": packs,
            }
            for run, packs in found.unfinished
        ],
        "troubles": found.troubles,
        "advice": found.advice,
        "notes": found.notes,
        "exit_code": found.exit_code,
    }


def _age(time: str) -> int:
    from pipeline.status import age

    return int(age(time).total_seconds())


def _verification_record(last: Verification | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {"time": last.time, "age_seconds": _age(last.time), "data": last.data, "exit_code": last.exit_code}


def _show_risk(found: StoreStatus, locations: dict[int, str]) -> None:
    """A line for each set of backends whose loss would be too much, with the packs that would go with it."""
    packs = Counter[tuple[int, str, str]]()
    for pattern in found.presence.patterns():
        packs[max(0, pattern.bears({})), f"{pattern.good} of {pattern.k + pattern.m}", _lethal_text(pattern)] += (
            pattern.packs
        )
    columns = [
        Column("packs", "packs", lambda count: f"{count:,}", right=True),
        Column("good", "good", right=True),
        Column("bears", "may lose", right=True),
        Column("lost_with", "would not survive the loss of"),
    ]
    rows = ({"packs": packs[row], "bears": row[0], "good": row[1], "lost_with": row[2]} for row in sorted(packs))
    emit_table(rows, columns)
    for number, location in locations.items():
        say(f"{number}: {location}")


def _lethal_text(pattern: Pattern) -> str:
    if pattern.spare:
        return "lost already; all that lives in them was stored again"
    if not pattern.recoverable:
        return "lost already: " + ("a verification could not read them" if pattern.unreadable else "too few shards")
    if pattern.good < pattern.k:
        return "any of those with a damaged shard"
    numbers = sorted({backend for _, backend in pattern.placed})
    if len(numbers) == len(pattern.placed):
        return f"any {pattern.bears({}) + 1} of {' '.join(map(str, numbers))}"
    sets = pattern.lethal_sets(NAMED_SETS + 1)
    text = ", ".join(" and ".join(map(str, each)) for each in sets[:NAMED_SETS])
    return text + (", …" if len(sets) > NAMED_SETS else "")


def _risk_record(pattern: Pattern, locations: dict[int, str]) -> dict[str, Any]:
    sets = pattern.lethal_sets(NAMED_SETS + 1)
    return {
        "pack": str(pattern.pack_id),
        "good_shards": pattern.good,
        "data_shards": pattern.k,
        "parity_shards": pattern.m,
        "backends_that_may_be_lost": max(0, pattern.bears({})),
        "recoverable": pattern.recoverable,
        "stored_again": pattern.spare,
        "backends": sorted({locations[backend] for _, backend in pattern.placed}),
        "lost_with": [[locations[number] for number in each] for each in sets[:NAMED_SETS]],
        "lost_with_more": len(sets) > NAMED_SETS,
    }
