"""drystone backend list, add and remove"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from manifests.counts import counted
from manifests.errors import UsageError
from manifests.finding import REPLACED
from manifests.sizes import format_size
from pipeline.cli.command import Command, stands
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import Parsed, format_options, open_store, store_option
from pipeline.cli.output import Column, emit, emit_summary, emit_table
from pipeline.printing import say

if TYPE_CHECKING:
    from pipeline.backend import Backend
    from pipeline.removal import Removal


def _parse_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is no id; it looks like 01890000-0000-7000-8000-000000000001") from None


@click.group("backend")
def backend_command() -> None:
    """List, add and remove backends.

    \b
    drystone -s /mnt/archive backend list
    drystone -s /mnt/archive backend add /mnt/g/archive --domain shelf-2

    Neither restic nor borg has a command like it: their repositories lie in one place.
    """


@backend_command.command("list", cls=Command)
@store_option
@format_options
@click.pass_context
def list_command(context: click.Context, store: str | None, output: str) -> None:
    """List the backends: where they are, what fails together, and how much room they have.

    \b
    drystone -s /mnt/archive backend list
    drystone -s /mnt/archive backend list --json
    """
    with open_store(context, store) as opened:
        backends = opened.list_backends()
    records = list(map(backend_record, backends))
    if output != "table":
        emit(records, BACKEND_FIELDS, output)
        return
    for record, backend in zip(records, backends, strict=True):
        if backend.trouble == REPLACED:
            record["path"] = f"{backend.path} ({REPLACED})"
    columns = [
        Column("id", "id"),
        Column("failure_domain", "domain"),
        Column("state", "state"),
        Column("free_bytes", "free", format_size, right=True),
        Column("total_bytes", "of", format_size, right=True),
        Column("usage_percent", "used", lambda percent: f"{percent:.0f} %", right=True),
        Column("path", "location"),
    ]
    emit_table(records, columns)


BACKEND_FIELDS = {
    "id": Kind.TEXT,
    "number": Kind.INTEGER,
    "storage_type": Kind.TEXT,
    "media_type": Kind.TEXT,
    "path": Kind.PATH,
    "failure_domain": Kind.TEXT,
    "state": Kind.TEXT,
    "present": Kind.FLAG,
    "read_only": Kind.FLAG,
    "trouble": Kind.TEXT,
    "total_bytes": Kind.INTEGER,
    "free_bytes": Kind.INTEGER,
    "used_bytes": Kind.INTEGER,
    "usage_percent": Kind.NUMBER,
    "endpoint": Kind.TEXT,
    "bucket": Kind.TEXT,
    "region": Kind.TEXT,
    "credentials": Kind.TEXT,
}


def backend_record(backend: Backend) -> dict[str, Any]:
    """A backend for programs, with BACKEND_FIELDS."""
    return {
        **{name: value for name, value in vars(backend).items() if name in BACKEND_FIELDS},
        "id": str(backend.id),
        "storage_type": str(backend.type),
        "media_type": str(backend.media_type),
        "used_bytes": backend.used_bytes,
        "usage_percent": round(backend.usage_percent, 1),
        "state": state_word(backend),
    }


def state_word(backend: Backend) -> str:
    """What a backend is good for now, in a word or two."""
    if not backend.present:
        return "absent"
    if backend.trouble:
        return "in doubt"
    return "read-only" if backend.read_only else "ok"


_ADDED_FIELDS = {"dry_run": Kind.FLAG, "backends": Kind.INTEGER, "completed_files": Kind.INTEGER, **BACKEND_FIELDS}


@backend_command.command("add", cls=Command)
@click.argument("place", metavar="DIR")
@store_option
@click.option("--id", "backend_id", type=Parsed("ID", _parse_id), help="The id that it gets [default: a new one].")
@click.option("--domain", default="", metavar="NAME", help="What fails together with it [default: its device].")
@click.option("--read-only", is_flag=True, help="Put nothing on it from now on.")
@click.option("--dry-run", is_flag=True, help="Say what would happen.")
@format_options
@metrics_options
@click.pass_context
def add_command(
    context: click.Context,
    place: str,
    store: str | None,
    backend_id: uuid.UUID | None,
    domain: str,
    read_only: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Make the new or empty directory DIR a backend: it gets all manifests and records, and shards of packs to come.
    On a DIR that is a backend already, change its domain, and whether it is read-only, and give it the records and
    manifests that it lacks, as when it was away for some runs.

    \b
    drystone -s /mnt/archive backend add /mnt/g/archive
    drystone -s /mnt/archive backend add /mnt/a/archive --read-only
    """
    with open_store(context, store) as opened:
        before = {each.id: each for each in opened.list_backends()}
        lacked: list[int] = []
        added = opened.add_backend(
            place, backend_id=backend_id, domain=domain, read_only=read_only, dry_run=dry_run, on_lacking=lacked.append
        )
        if not dry_run:
            stands(f"backend {added.id} is {'changed' if added.id in before else 'added'}")
        count = len({added.id, *(each.id for each in opened.list_backends())})
        earlier = [each for each in before.values() if each.path == added.path and each.id != added.id]
    completed = sum(lacked)
    if output != "table":
        record = {"dry_run": dry_run, "backends": count, "completed_files": completed, **backend_record(added)}
        emit_summary(record, _ADDED_FIELDS, output)
        return
    say(_addition_line(before.get(added.id), added, dry_run))
    if completed:
        verb = "would get" if dry_run else "got"
        say(f"it {verb} {counted(completed, 'record or manifest file', 'records and manifest files')} that it lacked")
    if added.id not in before:
        say(f"{counted(count, 'backend')}; packs that are there already stay where they are")
    for each in earlier:
        say(
            f"backend {each.id}, which was there before, is still a member: if it is gone for good, drystone backend "
            f"remove {each.id}"
        )


def _addition_line(before: Backend | None, added: Backend, dry_run: bool) -> str:
    """What became of a backend; `before`: what it was, if it was a member."""
    what = f"backend {added.id} at {added.path}, domain {added.failure_domain}{', read-only' * added.read_only}"
    if before is None:
        return f"{'would add' if dry_run else 'added'} {what}"
    if (before.failure_domain, before.read_only, before.type) != (added.failure_domain, added.read_only, added.type):
        return f"{'would change' if dry_run else 'changed'} {what}"
    return f"part of the store already: {what}"


_REMOVED_FIELDS = {
    "dry_run": Kind.FLAG,
    "backend_id": Kind.TEXT,
    "location": Kind.PATH,
    "backends": Kind.NESTED,
    "packs": Kind.INTEGER,
    "lost_packs": Kind.INTEGER,
    "bears": Kind.INTEGER,
    "records_may_be_lost": Kind.FLAG,
    "unknown": Kind.TEXT,
}


@backend_command.command("remove", cls=Command)
@click.argument("names", nargs=-1, metavar="BACKEND...")
@store_option
@click.option("--id", "ids", metavar="ID", multiple=True, help="A backend by its id, or the beginning of it.")
@click.option(
    "--force",
    is_flag=True,
    help="Also where packs are lost with it, a run may be under way, or so few backends answer that records may be "
    "lost, too: for disks that will never come back.",
)
@click.option("--dry-run", is_flag=True, help="Say what would happen.")
@format_options
@metrics_options
@click.pass_context
def remove_command(
    context: click.Context,
    names: tuple[str, ...],
    store: str | None,
    ids: tuple[str, ...],
    force: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Take each BACKEND, an id or a directory, out of the store: a disk that died, or one that is wanted elsewhere.
    Refused where the others could not give back all data, and while a run is under way. Its files are left where they
    are.

    \b
    drystone -s /mnt/archive backend remove /mnt/b/archive
    drystone -s /mnt/archive backend remove --id 0189c2 --dry-run
    drystone -s /mnt/archive backend remove /mnt/b/archive /mnt/d/archive --force
    """
    if bool(names) == bool(ids):
        raise UsageError("which backend? give its directory or its id")
    if "" in (*names, *ids):
        raise UsageError("BACKEND is empty: give its directory or its id")
    with open_store(context, store) as opened:
        removal = opened.remove_backend(*names, *ids, force=force, dry_run=dry_run)
        if not dry_run:
            removed = ", ".join(str(info.backend_id) for info in removal.backends)
            stands(f"backend {removed} is removed" if len(removal.backends) == 1 else f"backends {removed} are removed")
    if output != "table":
        record = {
            "dry_run": dry_run,
            "backend_id": str(removal.backend_id),
            "location": removal.location,
            "backends": [{"backend_id": str(info.backend_id), "location": info.location} for info in removal.backends],
            "packs": removal.packs,
            "lost_packs": removal.lost_packs,
            "bears": removal.bears,
            "records_may_be_lost": removal.unseen,
            "unknown": removal.unknown or None,
        }
        emit_summary(record, _REMOVED_FIELDS, output)
        return
    for line in _removal_lines(removal, dry_run):
        say(line)


def _removal_lines(removal: Removal, dry_run: bool) -> Iterator[str]:
    for info in removal.backends:
        yield f"{'would remove' if dry_run else 'removed'} {info.location}; its files are left there"
    it, packs, bears = "it" if len(removal.backends) == 1 else "them", removal.packs, removal.bears
    can, have = "would be" if dry_run else "are", "has" if packs == 1 else "have"
    if removal.unknown:
        yield f"LOST: {removal.unknown}; so it is not known which packs can't be recovered"
    elif removal.lost_packs:
        yield f"LOST: {counted(removal.lost_packs, 'pack')} can't be recovered without {it}"
    elif packs:
        more = f"only {counted(bears, 'more backend')} may be lost" if bears else "no more backend may be lost"
        yield f"{counted(packs, 'pack')} {have} shards on {it}, which {can} missing from now on: {more}"
    if removal.unnoted:
        yield f"ingests take for stored what is lost, until drystone verify notes it, which failed: {removal.unnoted}"
    if removal.unseen:
        yield (
            "so few backends answer that there may be records on the removed ones alone: a run that was recorded "
            "there, and nowhere else, is lost, unless one of them comes back: add it then with drystone backend add DIR"
        )
