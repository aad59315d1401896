"""drystone init"""

from __future__ import annotations

import signal
from typing import NoReturn

import click

from manifests.config import DEFAULT_INDEX, INDEX_KINDS, ChunkerSpec, CodecSpec, ECScheme
from manifests.counts import any_of, counted
from pipeline.cli.command import Command, stands
from pipeline.cli.fields import Kind
from pipeline.cli.options import SIZE, Parsed, cache_directory, format_options
from pipeline.cli.output import emit_summary
from pipeline.printing import say, warn

_FIELDS = {
    "store_id": Kind.TEXT,
    "backends": Kind.TEXTS,
    "may_be_lost": Kind.INTEGER,
    "devices": Kind.INTEGER,
    "survives_loss_of_a_device": Kind.FLAG,
}


@click.command("init", cls=Command)
@click.argument("directories", nargs=-1, required=True, metavar="DIR [DIR…]")
@click.option(
    "--ec",
    "scheme",
    type=Parsed("K+M", ECScheme.parse),
    default="4+2",
    show_default=True,
    help="Data and parity shards.",
)
@click.option(
    "--chunker",
    type=Parsed("CHUNKER", ChunkerSpec.parse),
    default="fastcdc:128KiB",
    show_default=True,
    help="fastcdc:AVERAGE or fixed:SIZE.",
)
@click.option(
    "--compression",
    type=Parsed("CODEC", CodecSpec.parse),
    default="zstd:3",
    show_default=True,
    help="none, lz4 or zstd:LEVEL.",
)
@click.option("--pack-size", type=SIZE, default="32MiB", show_default=True, metavar="SIZE", help="Payload of a pack.")
@click.option("--index", type=click.Choice(INDEX_KINDS), default=DEFAULT_INDEX, show_default=True, help="Dedupe index.")
@click.option(
    "--mode", metavar="MODE", default="", help="Who may use it, as a directory's mode, as in 0750 [default: 0700]."
)
@click.option(
    "--group", metavar="GROUP", default="", help="The group that it belongs to; may read it unless --mode says else."
)
@format_options
def init_command(
    directories: tuple[str, ...],
    scheme: ECScheme,
    chunker: ChunkerSpec,
    compression: CodecSpec,
    pack_size: int,
    index: str,
    mode: str,
    group: str,
    output: str,
) -> None:
    """Make a store in DIR. One directory gets a subdirectory for each of its backends; name several, on disks of their
    own, to survive the loss of disks.

    \b
    drystone init /mnt/archive
    drystone init /mnt/a /mnt/b /mnt/c /mnt/d /mnt/e /mnt/f --ec 4+2
    drystone init /mnt/archive --group backup --mode 0770

    Like `restic init` and `borg init`.
    """
    from manifests.access import PRIVATE, shared
    from manifests.placement import shards_per_domain
    from pipeline.filestore import FileStore
    from pipeline.openness import open_backends

    access = shared(mode, group)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    with FileStore.create(
        directories, scheme=scheme, chunker=chunker, codec=compression, pack_size=pack_size, index=index,
        access=access, cache=cache_directory(),
    ) as store:  # fmt: skip
        members = store.members
        stands(f"store {store.config.store_id} is made")
        devices = len({seat.domain for seat in members.seats})
        most = shards_per_domain(scheme, members.seats)
        safe_domains = most <= scheme.m
        if output != "table":
            emit_summary(
                {
                    "store_id": str(store.config.store_id),
                    "backends": [info.location for info in members.all],
                    "may_be_lost": members.tolerance,
                    "devices": devices,
                    "survives_loss_of_a_device": safe_domains,
                },
                _FIELDS,
                output,
            )
            return
        say(f"store {store.config.store_id}, {scheme}, {chunker.describe()}, {compression}")
        for info in members.all:
            say(f"  {info.location}")
        if access.mode & 0o077:
            say(
                f"shared: all that is made in it has mode {access.mode & 0o777:04o}, without x for files, and its group"
            )
        bears = any_of(members.tolerance, members.count, "backend")
        say(f"{bears} may be lost; they lie on {counted(devices, 'device')}")
        for line in open_backends(members) if access == PRIVATE else ():
            warn(f"warning: {line}")
        if not members.tolerance:
            warn("warning: no backend may be lost; give more directories, or a scheme with more parity")
        if not safe_domains and devices < members.count:
            loses = "everything" if devices == 1 else "data"
            warn(
                f"warning: one device holds {counted(most, 'shard')} of each pack and {scheme.m or 'none'} may be "
                f"lost: the loss of that device loses {loses}; put backends on disks of their own"
            )


def _stop(number: int, _: object) -> NoReturn:
    """End as by Ctrl-C, so that what was made is removed."""
    from pipeline.errors import Interrupted

    raise Interrupted(number)
