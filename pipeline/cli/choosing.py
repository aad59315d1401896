"""How a command line names a run: RUN[:PATH], and `--host`, `--source` and `--tag`."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from manifests.errors import UsageError
from manifests.ids import is_object_id
from pipeline.cli.options import Decorated
from pipeline.printing import warn

if TYPE_CHECKING:
    from manifests.choice import RunFilter
    from manifests.log import Run
    from pipeline.filestore import FileStore


def run_options(command: Decorated) -> Decorated:
    """`--host`, `--source` and `--tag`, which the command gets together as `which`."""

    @wraps(command)
    def filtered(
        *arguments: Any, of_host: str | None, of_sources: tuple[str, ...], of_tags: tuple[str, ...], **options: Any
    ) -> Any:
        from manifests.choice import RunFilter

        return command(*arguments, which=RunFilter(of_host or "", of_sources, of_tags), **options)

    for option in (
        click.option(
            "--tag", "of_tags", multiple=True, metavar="K[=V]", help="Only runs with this tag; several: with all."
        ),
        click.option(
            "--source", "of_sources", multiple=True, metavar="PATH", help="Only runs of this source, or of this name."
        ),
        click.option("--host", "of_host", metavar="HOST", help="Only runs of this host."),
    ):
        filtered = option(filtered)
    return filtered


def choose(opened: FileStore, selection: str, which: RunFilter, *, quiet: bool = False) -> str:
    """RUN[:PATH] with the whole id of its run, or an object's id as it is. Where `latest` could mean runs of several
    hosts or sources, it is said which it takes, unless `quiet`. Raises NotFound, UsageError."""
    if is_object_id(selection):
        if which:
            raise UsageError("an id names one object, so --host, --source and --tag have no use with it")
        return selection
    from pipeline.filestore import Selection

    chosen = Selection.parse(selection)
    run = opened.run(chosen.run, which, path=chosen.path)
    if chosen.run == "latest" and not quiet:
        tell_which(opened, run, which, chosen.path)
    return str(Selection(str(run.run_id), chosen.path))


def tell_which(opened: FileStore, run: Run, which: RunFilter, path: bytes) -> None:
    """Say which run was taken, where others could be meant."""
    from manifests.choice import kinds_of_runs

    if kinds_of_runs(which.of(opened.runs()), path) > 1:
        warn(f"taking run {run.short}, the latest: {run.about}; for others see --host, --source and --tag")
