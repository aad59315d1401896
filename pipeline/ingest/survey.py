"""What an ingest would archive: the scan alone, in this process. Only directories are read, nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import IO

from pipeline.ingest.collect import Tally
from pipeline.ingest.filelist import read_list
from stages.scan import Source, scan
from stages.select import REASONS, Identity, Selection, SelectOptions


@dataclass(frozen=True)
class Survey:
    """Sums over what would be archived; streams count as files of no bytes. `left_out`: reason → objects and bytes that
    would not."""

    tally: Tally = field(default_factory=Tally)
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What the ingest would end with, as far as a scan can tell."""
        return 3 if self.tally.errors else 0


def survey(
    sources: tuple[Source, ...],
    select: SelectOptions,
    listed: IO[bytes] | None = None,
    on_left_out: Callable[[bytes, str], None] | None = None,
    own: Collection[Identity] = (),
) -> Survey:
    """Scan `sources`, or what is `listed` below them. `on_left_out` hears of each path left out, and why; `own`:
    directories of the store. Raises UsageError."""
    selection = Selection(
        select, None if on_left_out is None else lambda path, reason: on_left_out(path, REASONS[reason]), own
    )
    found = Survey()
    for batch in scan(sources, selection, None if listed is None else read_list(os.dup(listed.fileno()))):
        found.tally.add_objects(batch)
    for reason, (objects, size) in zip(REASONS, selection.counts, strict=True):
        if objects:
            found.left_out[reason] = objects, size
    return found
