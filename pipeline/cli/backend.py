"""drystone backend list, add and remove"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from manifests.errors import UsageError
from manifests.sizes import format_size
from pipeline.cli.command import Command, stands
from pipeline.cli.fields import Kind
from pipeline.cli.metrics import metrics_options
from pipeline.cli.options import Parsed, format_options, open_store, store_option
from pipeline.cli.output import Column, emit, emit_summary, emit_table
from pipeline.printing import say

if TYPE_CHECKING:
    from pipeline.backend import Backend


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
    records = map(backend_record, backends)
    if output != "table":
        emit(records, BACKEND_FIELDS, output)
        return
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


_ADDED_FIELDS = {"dry_run": Kind.FLAG, "backends": Kind.INTEGER, **BACKEND_FIELDS}


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
    On a DIR that is a backend already, change its domain, and whether it is read-only.

    \b
    drystone -s /mnt/archive backend add /mnt/g/archive
    drystone -s /mnt/archive backend add /mnt/a/archive --read-only
    """
    with open_store(context, store) as opened:
        known = {each.id for each in opened.list_backends()}
        added = opened.add_backend(place, backend_id=backend_id, domain=domain, read_only=read_only, dry_run=dry_run)
        if not dry_run:
            stands(f"backend {added.id} is {'changed' if added.id in known else 'added'}")
        count = len({added.id, *(each.id for each in opened.list_backends())})
    if output != "table":
        emit_summary({"dry_run": dry_run, "backends": count, **backend_record(added)}, _ADDED_FIELDS, output)
        return
    verb = ("would change" if dry_run else "changed") if added.id in known else ("would add" if dry_run else "added")
    shut = ", read-only" if added.read_only else ""
    say(f"{verb} backend {added.id} at {added.path}, domain {added.failure_domain}{shut}")
    if added.id not in known:
        say(f"{count} backends; packs that are there already stay where they are")


_REMOVED_FIELDS = {
    "dry_run": Kind.FLAG,
    "backend_id": Kind.TEXT,
    "location": Kind.PATH,
    "packs": Kind.INTEGER,
    "lost_packs": Kind.INTEGER,
    "bears": Kind.INTEGER,
}


@backend_command.command("remove", cls=Command)
@click.argument("name", default="", metavar="BACKEND")
@store_option
@click.option("--id", "backend_id", metavar="ID", default="", help="The backend by its id, or the beginning of it.")
@click.option(
    "--force",
    is_flag=True,
    help="Also where packs are lost with it, or a run may be under way: for disks that will never come back.",
)
@click.option("--dry-run", is_flag=True, help="Say what would happen.")
@format_options
@metrics_options
@click.pass_context
def remove_command(
    context: click.Context, name: str, store: str | None, backend_id: str, force: bool, dry_run: bool, output: str
) -> None:
    """Take BACKEND, an id or a directory, out of the store: a disk that died, or one that is wanted elsewhere. Refused
    where the others could not give back all data, and while a run is under way. Its files are left where they are.

    \b
    drystone -s /mnt/archive backend remove /mnt/b/archive
    drystone -s /mnt/archive backend remove --id 0189c2 --dry-run
    """
    if bool(name) == bool(backend_id):
        raise UsageError("which backend? give its directory or its id")
    with open_store(context, store) as opened:
        removal = opened.remove_backend(name or backend_id, force=force, dry_run=dry_run)
        if not dry_run:
            stands(f"backend {removal.backend_id} is removed")
    if output != "table":
        record = {"dry_run": dry_run, **vars(removal), "backend_id": str(removal.backend_id)}
        emit_summary(record, _REMOVED_FIELDS, output)
        return
    for line in _removal_lines(removal.location, removal.packs, removal.lost_packs, removal.bears, dry_run):
        say(line)


def _removal_lines(location: str, packs: int, lost: int, bears: int, dry_run: bool) -> Iterator[str]:
    yield f"{'would remove' if dry_run else 'removed'} {location}; its files are left there"
    held = f"{packs:,} packs have" if packs != 1 else "1 pack has"
    more = f"any {bears} more {'backend' if bears == 1 else 'backends'}" if bears else "no more backends"
    if lost:
        yield f"LOST: {lost:,} packs can't be recovered without it"
    elif packs:
        yield f"{held} shards on it; without them {more} may be lost"
