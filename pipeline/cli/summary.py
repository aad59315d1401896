"""The summary of an ingest: what ran, how long, what went in, what did not and why, what it cost, and is it safe. All
on standard output, so that a cron mail holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manifests.counts import counted
from manifests.ids import short_id
from manifests.sizes import format_size
from pipeline.cli.fields import Kind
from pipeline.cli.runfields import FOUND, STORED
from pipeline.printing import say

if TYPE_CHECKING:
    from pipeline.ingest.collect import Tally
    from pipeline.ingest.run import IngestResult
    from pipeline.ingest.survey import Survey

#: Reasons that a summary spells out; the record has more.
SHOWN_REASONS = 5
#: Why something is left out (stages/select.py), for people.
WORDS = {
    "pattern": "by pattern",
    "cache": "contents of caches",
    "size": "too large",
    "filesystem": "on other file systems",
    "store": "contents of this store's backends",
}
RESULT_FIELDS = {
    "run": Kind.TEXT,
    "sources": Kind.TEXTS,
    "host": Kind.TEXT,
    "began": Kind.TIME,
    **FOUND,
    "parent": Kind.TEXT,
    **STORED,
    "left_out": Kind.NESTED,
    "skipped": Kind.INTEGER,
    "skipped_reasons": Kind.NESTED,
    "checksums": Kind.NESTED,
    "missing_shards": Kind.INTEGER,
    "lost_manifests": Kind.TEXTS,
    "short_of_redundancy": Kind.TEXTS,
    "behind": Kind.TEXTS,
    "backends": Kind.INTEGER,
    "backends_that_may_be_lost": Kind.INTEGER,
    "packs_lack_shards": Kind.FLAG,
    "seconds": Kind.NUMBER,
    "compressors": Kind.INTEGER,
    "memory_wanted": Kind.INTEGER,
    "stages": Kind.NESTED,
    "exit_code": Kind.INTEGER,
}
SURVEY_FIELDS = {
    "dry_run": Kind.FLAG,
    **FOUND,
    "left_out": Kind.NESTED,
    "skipped": Kind.INTEGER,
    "skipped_reasons": Kind.NESTED,
    "exit_code": Kind.INTEGER,
}
_ENDINGS = {
    0: "done, nothing was skipped",
    3: "done, but items were skipped or redundancy is short; each is named above",
}


def _ratio(of: float, to: float) -> str:
    return f"{of / to:.2f}" if to else "-"


def _line(name: str, value: str, more: str = "") -> None:
    say(f"  {name:<13} {value:>12}  {more}".rstrip())


def show_result(result: IngestResult, *, quiet: bool, verbose: bool) -> None:
    """The summary for people, with whole ids where `verbose`; the run's id alone where `quiet`."""
    tally = result.tally
    say(f"run {short_id(result.run_id, whole=verbose)}")
    if quiet:
        return
    rate = tally.bytes / max(result.seconds, 1e-9)
    say(f"  of            {' '.join(result.sources)} on {result.host}")
    say(f"  began         {result.began}, took {result.seconds:.1f} s")
    _line("files", f"{tally.files:,}", _others(tally))
    _line("bytes", format_size(tally.bytes), f"{format_size(rate)}/s")
    if result.parent is not None:
        parent = short_id(result.parent, whole=verbose)
        more = f"not read, {format_size(tally.unchanged_bytes)}, as in run {parent}"
        _line("unchanged", f"{tally.unchanged:,}", more)
    _line("new bytes", format_size(tally.new_bytes), f"dedupe ratio {_ratio(tally.bytes, tally.new_bytes)}")
    _line("stored bytes", format_size(tally.stored), f"compression ratio {_ratio(tally.new_bytes, tally.stored)}")
    _line("parity bytes", format_size(tally.parity), f"in {counted(tally.packs, 'pack')}")
    if tally.adopted_packs:
        left_behind = f"left behind by a run that did not finish, {counted(tally.adopted_packs, 'pack')}"
        _line("adopted", format_size(tally.adopted_bytes), left_behind)
    _show_left_out(result.left_out)
    if (listed := result.checksums) is not None:
        differ = "differs" if listed.differing == 1 else "differ"
        more = f"of {listed.listed:,} listed; {listed.differing:,} {differ}, {listed.missing:,} not archived"
        _line("checked", f"{listed.checked:,}", more)
    _line("skipped", f"{tally.errors:,}", "every one is a row of the manifest" if tally.errors else "")
    _show_reasons(tally.reasons)
    stages = [figures for figures in result.stages if figures.workers]
    say("  stage      workers        MB/s   busy  waiting")
    for figures in stages:
        speed = figures.bytes / 1e6 / result.seconds
        whole = max(result.seconds * figures.workers, 1e-9)  # a stage that ended early was idle for the rest
        say(
            f"  {figures.stage:<10} {figures.workers:>7} {speed:>11,.0f} {figures.busy / whole:>6.0%} "
            f"{figures.waiting / whole:>8.0%}"
        )
    say(f"safe: {_safety(result)}")
    ending = _ENDINGS[result.exit_code]
    if result.short and not result.exit_code:
        ending = "done, but packs of earlier runs lack shards; see: drystone status"
    say(f"exit code {result.exit_code}: {ending}")


def _safety(result: IngestResult) -> str:
    """About the whole store: this run lives off packs of earlier ones, too."""
    of = f"of {counted(result.backends, 'backend')}"
    if result.may_lose < 0:
        return "NO: packs can't be given back, or it can't be told; see: drystone status"
    short = "; packs lack shards, see: drystone status" if result.short else ""
    if not result.may_lose:
        return f"for now, but none {of} may be lost any more{short}"
    unseen = ", if earlier packs are as recorded; to look: drystone status" if result.unseen else ""
    return f"any {result.may_lose} {of} may be lost, and all comes back{short}{unseen}"


def _others(tally: Tally) -> str:
    return f"and {counted(tally.directories, 'directory', 'directories')}, {counted(tally.others, 'other')}"


def _show_left_out(left_out: dict[str, tuple[int, int]]) -> None:
    for reason, (objects, size) in left_out.items():
        _line("left out", f"{objects:,}", WORDS[reason] + (f", {format_size(size)}" if size else ""))


def _show_reasons(reasons: dict[str, int]) -> None:
    by_count = sorted(reasons.items(), key=lambda item: -item[1])
    for reason, count in by_count[:SHOWN_REASONS]:
        _line("", f"{count:,}", reason)
    rest = sum(count for _, count in by_count[SHOWN_REASONS:])
    if rest:
        _line("", f"{rest:,}", "for other reasons")


def _left_out_record(left_out: dict[str, tuple[int, int]]) -> dict[str, object]:
    return {reason: {"objects": objects, "bytes": size} for reason, (objects, size) in left_out.items()}


def result_record(result: IngestResult) -> dict[str, object]:
    """The summary for programs, with RESULT_FIELDS."""
    tally = result.tally
    return {
        "run": str(result.run_id),
        "sources": result.sources,
        "host": result.host,
        "began": result.began,
        "files": tally.files,
        "directories": tally.directories,
        "others": tally.others,
        "bytes": tally.bytes,
        "parent": None if result.parent is None else str(result.parent),
        "unchanged": tally.unchanged,
        "unchanged_bytes": tally.unchanged_bytes,
        "new_chunks": tally.new_chunks,
        "new_bytes": tally.new_bytes,
        "stored_bytes": tally.stored,
        "parity_bytes": tally.parity,
        "packs": tally.packs,
        "adopted_packs": tally.adopted_packs,
        "adopted_bytes": tally.adopted_bytes,
        "left_out": _left_out_record(result.left_out),
        "skipped": tally.errors,
        "skipped_reasons": tally.reasons,
        "checksums": None if result.checksums is None else result.checksums.counts,
        "missing_shards": tally.missing_shards,
        "lost_manifests": list(result.lost_manifests),
        "short_of_redundancy": result.lost_backends,
        "behind": result.behind,
        "backends": result.backends,
        "backends_that_may_be_lost": None if result.may_lose < 0 else result.may_lose,
        "packs_lack_shards": result.short,
        "seconds": round(result.seconds, 3),
        "compressors": result.compressors,
        "memory_wanted": result.memory_wanted or None,
        "stages": [vars(figures) for figures in result.stages],
        "exit_code": result.exit_code,
    }


def show_survey(found: Survey) -> None:
    """What a dry run found, for people."""
    tally = found.tally
    say("would archive")
    _line("files", f"{tally.files:,}", _others(tally))
    _line("bytes", format_size(tally.bytes))
    _show_left_out(found.left_out)
    _line("skipped", f"{tally.errors:,}")
    _show_reasons(tally.reasons)


def survey_record(found: Survey) -> dict[str, object]:
    """What a dry run found, for programs, with SURVEY_FIELDS."""
    tally = found.tally
    return {
        "dry_run": True,
        "files": tally.files,
        "directories": tally.directories,
        "others": tally.others,
        "bytes": tally.bytes,
        "left_out": _left_out_record(found.left_out),
        "skipped": tally.errors,
        "skipped_reasons": tally.reasons,
        "exit_code": found.exit_code,
    }
