"""The objects of a whole store that no restore makes, because the manifests make no sense of them (sense.py), or of
their extended attributes: what a verification names.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa

from manifests.catalog import Catalog
from manifests.errors import CorruptRecord
from manifests.ids import NIL
from manifests.longcolumns import SHOWN_PATH, late_rows
from manifests.longfields import SHORT
from manifests.sense import CONTRADICTION, NAMESAKE, SENSIBLE, find_doubles
from manifests.xattrs import unpack_xattrs

_REASONS = pa.schema([("xattrs", pa.binary()), ("reason", pa.string())])
_ROWS = pa.schema([("run", pa.binary()), ("row", pa.uint64()), ("reason", pa.string())])
_AT_ONCE = 4096


class Senseless(NamedTuple):
    """An object of which the manifests make no sense, and why. A run that is none is NIL."""

    run: uuid.UUID
    path: bytes
    reason: str


def senseless_objects(catalog: Catalog, limit: int) -> tuple[int, list[Senseless]]:
    """How many there are, and the first `limit` of them. Makes the table `senseless_objects` (run, row, path, reason)
    of them all."""
    catalog.use("objects", spare=True)
    find_doubles(catalog, SENSIBLE)
    catalog.execute(
        f"""
        CREATE OR REPLACE TABLE senseless_objects AS
        SELECT DISTINCT run, row, {SHOWN_PATH} AS path, nonsense AS reason FROM objects WHERE nonsense IS NOT NULL
        UNION ALL
        SELECT DISTINCT run, row, {SHOWN_PATH}, '{CONTRADICTION}' FROM objects SEMI JOIN contradicted USING (run, row)
        WHERE nonsense IS NULL
        UNION ALL
        SELECT DISTINCT run, row, {SHOWN_PATH}, '{NAMESAKE}' FROM objects SEMI JOIN namesakes USING (run, row)
        WHERE nonsense IS NULL
        """
    )
    _add_bad_attributes(catalog)
    count: int = catalog.one("SELECT count(*) AS n FROM senseless_objects")["n"]
    query = f"""
        SELECT CASE WHEN octet_length(run) = 16 THEN run ELSE unhex('{NIL.hex}') END, path, reason
        FROM senseless_objects ORDER BY run, row, path LIMIT {limit}
    """
    return count, [Senseless(uuid.UUID(bytes=run), path, reason) for run, path, reason in catalog.tuples(query)]


def _add_bad_attributes(catalog: Catalog) -> None:
    """Add objects whose extended attributes can't be told apart. Most objects share theirs, so each value is looked at
    once; long ones are read some MiB at a time."""
    catalog.replace("bad_attributes", _REASONS)
    catalog.replace("bad_attribute_rows", _ROWS)
    values = f"SELECT DISTINCT xattrs FROM objects WHERE nonsense IS NULL AND octet_length(xattrs) <= {SHORT}"
    _append_bad(catalog, "bad_attributes", _REASONS, ((packed, packed) for (packed,) in catalog.tuples(values)))
    _append_bad(catalog, "bad_attribute_rows", _ROWS, _long_attributes(catalog))
    for bad, key in (("bad_attributes", "xattrs"), ("bad_attribute_rows", "run, row")):
        if catalog.one(f"SELECT count(*) AS n FROM {bad}")["n"]:
            catalog.execute(
                f"""
                INSERT INTO senseless_objects
                SELECT DISTINCT run, row, {SHOWN_PATH}, reason
                FROM (SELECT * FROM objects WHERE nonsense IS NULL) JOIN {bad} USING ({key})
                ANTI JOIN (SELECT run, row FROM senseless_objects) USING (run, row)
                """
            )


def _long_attributes(catalog: Catalog) -> Iterator[tuple[Any, ...]]:
    """(run, row, packed attributes) of objects whose attributes are long."""
    query = f"""
        SELECT run, row, octet_length(xattrs)::UBIGINT FROM objects
        WHERE nonsense IS NULL AND octet_length(xattrs) > {SHORT} ORDER BY run, row
    """
    for run, objects in groupby(catalog.tuples(query), itemgetter(0)):
        sized = ((row, size) for _, row, size in objects)
        for row, packed in late_rows(catalog, uuid.UUID(bytes=run), sized, "xattrs"):
            yield run, row, packed


def _append_bad(catalog: Catalog, table: str, schema: Any, entries: Iterator[tuple[Any, ...]]) -> None:
    """Add those of some entries, of which the last field is packed attributes, that make no sense, with the reason in
    place of these."""
    found = list[tuple[Any, ...]]()
    for *fields, packed in entries:
        try:
            unpack_xattrs(packed)
        except CorruptRecord as error:
            found.append((*fields, str(error)))
        if len(found) == _AT_ONCE:
            catalog.append(table, _table(found, schema))
            found = []
    catalog.append(table, _table(found, schema))


def _table(rows: list[tuple[Any, ...]], schema: Any) -> Any:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
