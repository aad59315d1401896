"""Which run a directory is to be compared with, where the user names none."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from manifests.catalog import Catalog
from manifests.choice import RunFilter, find_run
from manifests.errors import NotFound
from manifests.log import Run
from manifests.objects import held_paths
from manifests.recorded import archived_path
from pipeline.ingest.sources import find_place


def run_of(catalog: Catalog, runs: Sequence[Run], directory: str, which: RunFilter | None = None) -> tuple[Run, bytes]:
    """The run that `directory` is to be compared with, and the path in it, empty for all of it. This is the rule: the
    latest run that holds the directory, that is, one that archived it or what it lies in. Where none does: the latest
    run that could have been restored into it; else the latest of what lay in a file system; else the latest. Of each,
    runs of this host come before others, and those of whole sources before those of a list of paths. Raises NotFound.
    """
    latest = find_run(runs, "latest", which, away=catalog.replicas.away)  # there is one
    place = find_place(directory)
    if place.trouble:
        raise NotFound(f"there is no directory {directory}: {place.trouble}")
    here = place.path.rstrip(b"/") or b"/"
    newest_first = list(which.of(runs) if which else runs)[::-1]
    by_preference = sorted(newest_first, key=_preference)
    below = [(run, path) for run in by_preference if (path := archived_path(run, here)) is not None]
    held = held_paths(catalog, [(run.run_id, path) for run, path in below])
    for run, path in below:
        if (run.run_id, path) in held:
            return run, path
    for run in by_preference:
        if run.names and all(os.path.lexists(os.path.join(here, os.fsencode(name))) for name in run.names):
            return run, b""
    return next((run for run in by_preference if _in_a_file_system(run)), latest), b""


def _preference(run: Run) -> tuple[bool, bool]:
    """Sorts the preferred first; sorting keeps the order of time among equals."""
    return run.host != socket.gethostname(), bool(run.summary.get("listed"))


def _in_a_file_system(run: Run) -> bool:
    return any(source.startswith("/") for source in run.sources)
