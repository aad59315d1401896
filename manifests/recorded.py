"""The places that a run was archived from, as its log record tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from manifests.escapes import shown
from manifests.log import Run
from manifests.paths import take_out_dots


def log_text(path: bytes) -> str:
    """A path for the log's JSON, which must be readable by everybody: bytes that are not UTF-8 are escaped. The exact
    bytes are in the objects table."""
    return path.decode(errors="backslashreplace")


def path_in_run(run: Run, path: bytes) -> bytes:
    """The path in the archive that a user means by `path`. This is the rule: an absolute one is what was archived from
    there, by its name or, where nothing has that, by the name as it is printed; where nothing was, or it is relative,
    it counts from the top of the archive."""
    if path.startswith(b"/"):
        with suppress(OSError):
            path = take_out_dots(path)
        found = archived_path(run, path)
        if found is None and b"\\" in path:
            found = archived_path(run, path, printed=True)
        if found is not None:
            return found
    return path.strip(b"/")


def archived_path(run: Run, place: bytes, *, printed: bool = False) -> bytes | None:
    """The path in the archive of what lay at the absolute `place`; None where that lies below no source of the run. Of
    nested sources the innermost counts. `printed`: sources are named as they are printed."""
    names = {shown(source.rstrip("/")) if printed else source.rstrip("/"): name for source, name in _sources(run)}
    end = len(place) if place != b"/" else 0
    while True:
        source = place[:end]
        name = names.get(log_text(source))
        if name is not None:
            return _exact(name, source) + place[end:]
        if not end:
            return None
        end = place.rindex(b"/", 0, end)


def _sources(run: Run) -> Iterator[tuple[str, str]]:
    """Where each source was, and what it is called; streams have no place."""
    for source, name in zip(run.summary.get("sources", ()), run.summary.get("names", ()), strict=False):
        if isinstance(source, str) and isinstance(name, str) and source.startswith("/"):
            yield source, name


def _exact(name: str, source: bytes) -> bytes:
    """The bytes of a source's name, of which the log has the text: nearly always the last parts of its path."""
    own = b"/".join(source.split(b"/")[-1 - name.count("/") :])
    return own if log_text(own) == name else os.fsencode(name)
