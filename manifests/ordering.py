"""Putting what is known into the order of its keys, on disk, to build an index of it.

Ids are hashes, so their first bits cut them into equal parts. Each part goes to an unnamed file; these are read one
after the other, and an index sorts what it is given at a time. Memory is a part's, 20 bytes an id. (DuckDB's sort of
50 M ids ran out of 96 MiB.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from manifests.index import ENTRY, KEY_BYTES, Entries

PARTS = 128
_SHIFT = 1  # the highest 7 bits of the first byte


def in_order(batches: Iterable[Entries], folder: Path) -> Iterator[Entries]:
    """All rows (KNOWN) of `batches` as ENTRY rows, in parts: no key of a part sorts before one of a part that came
    earlier. Takes 20 bytes a row of disk space in `folder`; raises OSError where there is not enough."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(PARTS)]
        for batch in batches:
            entries = np.empty(len(batch), ENTRY)
            entries["key"], entries["length"] = batch["id"][:, :KEY_BYTES], batch["length"]
            part = entries["key"][:, 0] >> _SHIFT
            entries = entries[np.argsort(part, kind="stable")]
            ends = np.cumsum(np.bincount(part, minlength=PARTS))
            for number, file in enumerate(files):
                file.write(entries[ends[number - 1] if number else 0 : ends[number]].tobytes())
        for file in files:
            file.seek(0)
            rows = np.frombuffer(file.read(), ENTRY)
            if len(rows):
                yield rows
            file.close()
