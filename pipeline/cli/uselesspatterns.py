"""Patterns that can match nothing: those who write them mean something else, most often a path of the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from manifests.errors import UsageError
from pipeline.ingest.sources import find_place

_WILD = re.compile(r"[*?\[\\]")


def useless(patterns: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """A line for each pattern (SelectOptions.patterns) that can match nothing in the sources `paths`, with what to
    write instead, if it can be told. Patterns count from each source, so a path of the machine seldom makes sense."""
    try:
        sources = [os.fsdecode(find_place(path).path).rstrip("/") for path in paths if path != "-"]
    except UsageError:
        return  # which the ingest itself raises
    for pattern in (written.removeprefix("!") for written in patterns if sources):
        why = _why(pattern, sources)
        if why:
            yield f"the pattern {pattern} can match nothing{why}"


def _why(pattern: str, sources: Sequence[str]) -> str:
    """Empty where the pattern may match."""
    first, *others = pattern.strip("/").split("/")
    if not {".", ".."}.isdisjoint([first, *others]):
        return ", for no path holds . or ..: write it from the top of the source"
    if not pattern.startswith("/") or not first or _WILD.search(first):
        return ""
    if any(os.path.lexists(f"{source}/{first}") for source in sources):
        return ""
    for source in sources:
        if source and pattern.rstrip("/") == source:
            return ": it is a source, and what is named goes in"
        if source and pattern.startswith(f"{source}/"):
            return f", for patterns count from the source: write {pattern[len(source) :]}"
    return ", for patterns count from the source, not from /" if os.path.lexists(f"/{first}") else ""
