"""Which run a user means: by an id or a part of one, by `latest`, and by what it is of."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from manifests.errors import NotFound
from manifests.escapes import shown
from manifests.log import Run
from manifests.paths import absolute_path
from manifests.recorded import log_text

#: Candidates that an error names.
NAMED = 5
_PART_OF_AN_ID = re.compile(r"[0-9a-f-]*[0-9a-f][0-9a-f-]*")


@dataclass(frozen=True)
class RunFilter:
    """What a run is of; empty for any. `sources`: each the place of a source, or what one is called in the archive;
    `tags`: KEY=VALUE, or KEY for any value. A run has all of them."""

    host: str = ""
    sources: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.host or self.sources or self.tags)

    def __str__(self) -> str:
        parts = [f"host {self.host}"] * bool(self.host)
        parts += [f"source {source}" for source in self.sources]
        return ", ".join([*parts, *(f"tag {tag}" for tag in self.tags)])

    def of(self, runs: Sequence[Run]) -> list[Run]:
        """Those of `runs` that fit. Raises UsageError for a source that can't be a path."""
        for source in self.sources:
            runs = _of_source(runs, source)
        return [run for run in runs if self.host in ("", run.host) and all(_has(run, tag) for tag in self.tags)]


def _of_source(runs: Sequence[Run], source: str) -> list[Run]:
    """The runs with a source of this place or name; where there are none, those with one that is printed so."""
    spellings = _spellings(source)
    found = [run for run in runs if not spellings.isdisjoint({*_places(run), *run.names})]
    if found or "\\" not in source:
        return found
    return [run for run in runs if not spellings.isdisjoint(map(shown, [*_places(run), *run.names]))]


def _spellings(source: str) -> set[str]:
    """What the log may call a source: as it was written, and where that is from here."""
    return {source, log_text(os.fsencode(absolute_path(source)))}


def _places(run: Run) -> list[str]:
    return [source.rstrip("/") or source for source in run.sources]


def _has(run: Run, tag: str) -> bool:
    key, equals, value = tag.partition("=")
    return key in run.tags and (not equals or run.tags[key] == value)


#: The message about a store without runs.
NO_RUN = "the store holds no run yet; make one with: drystone ingest SOURCE"


def find_run(
    runs: Sequence[Run], name: str = "latest", which: RunFilter | None = None, path: bytes = b"", away: str = ""
) -> Run:
    """The one of `runs`, in order of time, that `which` fits and that is called `name`: `latest`, a short id, or the
    beginning or the end of an id. Of a `path`, the latest is that of the runs with a source that it lies in, if any.
    `away`: which backends are absent, as the end of a sentence. Raises NotFound, UsageError."""
    if not runs:
        what = "no backend that answers holds a run" if away else NO_RUN
        raise NotFound(what + away)
    if which and not (runs := which.of(runs)):
        raise NotFound(f"no run of {which}; see: drystone runs{away}")
    if name in ("", "latest"):
        return next((run for run in reversed(_may_hold(runs, path))), runs[-1])
    found = _called(runs, name)
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(f"{run.run_id} ({run.about})" for run in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise NotFound(f"{name!r} names {len(found)} runs: {named}{more}; write more of the id")
    raise NotFound(f"no run {name!r}; see: drystone runs (a path is written RUN:PATH, as in latest:{name}){away}")


def _may_hold(runs: Sequence[Run], path: bytes) -> list[Run]:
    """The runs with a source that a path, absolute or in the archive, lies in, or that lies in it, as far as the log
    tells; the empty path is in all. Where there are none, sources count as they are printed, too."""
    wanted = log_text(path).strip("/")
    if not wanted:
        return list(runs)
    spellings: list[Callable[[str], str]] = [str] if "\\" not in wanted else [str, shown]
    for spelt in spellings:
        found = [run for run in runs if _lies_in(wanted, map(spelt, _known(run, path)))]
        if found:
            return found
    return []


def _known(run: Run, path: bytes) -> list[str]:
    """What a path may begin with that lies in a run: its sources' names, and their places where it is absolute."""
    return run.names if not path.startswith(b"/") else [place.strip("/") for place in _places(run)] + run.names


def _lies_in(wanted: str, known: Iterable[str]) -> bool:
    return any(_within(wanted, name) or _within(name, wanted) for name in known)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _called(runs: Sequence[Run], name: str) -> list[Run]:
    if _PART_OF_AN_ID.fullmatch(name.lower()) is None:
        return []
    digits = name.lower().replace("-", "")
    return [run for run in runs if run.short == digits] or [
        run for run in runs if run.run_id.hex.startswith(digits) or run.run_id.hex.endswith(digits)
    ]


def short_ids(runs: Sequence[Run]) -> dict[uuid.UUID, str]:
    """How runs are told apart in a list of them: by their short ids; whole where two would be the same."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.short] = counts.get(run.short, 0) + 1
    return {run.run_id: run.short if counts[run.short] == 1 else str(run.run_id) for run in runs}


def kinds_of_runs(runs: Sequence[Run], path: bytes = b"") -> int:
    """How many different things `latest:PATH` may mean: runs that may hold `path` are of several hosts, sources and
    names."""
    return len({(run.host, *run.sources, *run.names) for run in _may_hold(runs, path)})
