"""Objects that failed while a run was worked on, by number, each with its first reason, however many they are: a lot is
held here, and the rest lies in a table of DuckDB, which moves it to its temporary files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from manifests.catalog import Catalog

#: Failures that are held here, and given back, at a time.
LOT = 2048
_TABLE = "failed_objects"
_SCHEMA = pa.schema([("row", pa.uint64()), ("number", pa.uint64()), ("reason", pa.binary())])


class FailedObjects:
    """The failed objects of one operation. Uses the catalog's connection."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._held: list[tuple[int, int, bytes]] = []
        self._noted = 0

    def note(self, row: int, reason: str) -> None:
        """Note that an object failed; also again, with another reason, which is passed over."""
        self._held.append((row, self._noted, os.fsencode(reason)))
        self._noted += 1
        if len(self._held) >= LOT:
            self._put_away()

    def _put_away(self) -> None:
        if self._noted == len(self._held):
            self._catalog.replace(_TABLE, _SCHEMA)
        columns = zip(*self._held, strict=True)
        self._catalog.append(_TABLE, pa.table(dict(zip(_SCHEMA.names, map(list, columns), strict=True)), _SCHEMA))
        self._held.clear()

    def count(self) -> int:
        """How many objects failed."""
        if self._noted == len(self._held):
            return len({row for row, _, _ in self._held})
        if self._held:
            self._put_away()
        number: int = self._catalog.one(f"SELECT count(DISTINCT row) AS n FROM {_TABLE}")["n"]
        return number

    def lots(self) -> Iterator[list[tuple[int, str]]]:
        """(row, reason) of each, by row, in lots; until the catalog is used for the next operation."""
        each = self._each()
        while lot := list(islice(each, LOT)):
            yield lot

    def _each(self) -> Iterator[tuple[int, str]]:
        last = -1
        for row, _, reason in self._sorted():
            if row != last:
                yield row, os.fsdecode(reason)
            last = row

    def _sorted(self) -> Iterator[tuple[int, int, bytes]]:
        if self._noted == len(self._held):
            yield from sorted(self._held)
            return
        if self._held:
            self._put_away()
        yield from self._catalog.tuples(f"SELECT row, number, reason FROM {_TABLE} ORDER BY row, number")
