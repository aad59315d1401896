"""drystone digests"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from manifests.counts import counted
from pipeline.cli.choosing import choose, run_options
from pipeline.cli.command import Command
from pipeline.cli.options import open_store, store_option
from pipeline.printing import flush, shown, warn, write_bytes
from stages.checklist import format_line

if TYPE_CHECKING:
    from manifests.choice import RunFilter

#: Tool → the digest that it prints and checks.
TOOLS = {"b3sum": "blake3", "sha256sum": "sha256", "md5sum": "md5", "sha1sum": "sha1", "sha512sum": "sha512"}


@click.command("digests", cls=Command)
@click.argument("selection", default="latest", metavar="[RUN[:PATH]]")
@store_option
@run_options
@click.option(
    "--format",
    "tool",
    type=click.Choice(list(TOOLS)),
    default="b3sum",
    show_default=True,
    help="The tool that is to check the list.",
)
@click.pass_context
def digests_command(context: click.Context, selection: str, store: str | None, which: RunFilter, tool: str) -> int:
    """Print the digests of a run's files (of the latest, if none is named), as a list that b3sum or sha256sum checks.

    Paths are those of the archive, so the list is checked where the run was restored to. BLAKE3 is always there, the
    others where the run was made with ingest --digest. Files without the digest are named; exit 3.

    \b
    drystone -s /mnt/archive digests latest --format sha256sum > list
    drystone -s /mnt/archive restore latest --to /tmp/back
    cd /tmp/back && sha256sum --check --quiet /path/to/list

    Like `borg list --format "{blake2b} {path}"`; restic has no such list.
    """
    without = senseless = 0
    with open_store(context, store) as opened:
        chosen = choose(opened, selection, which)
        for path, digest in opened.digests(chosen, TOOLS[tool]):
            if digest is None:
                without += 1
                warn(f"no {TOOLS[tool]} was recorded: {shown(path)}")
            else:
                write_bytes(format_line(digest, path))
        for path, reason in opened.senseless(chosen):
            senseless += 1
            warn(f"not in the list: {shown(path)}: {reason}")
    flush()
    if without:
        verb = "is" if without == 1 else "are"
        warn(f"{counted(without, 'file')} {verb} not in the list; see: drystone ingest --digest")
    return 3 if without or senseless else 0
