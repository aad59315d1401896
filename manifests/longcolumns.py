"""Tables of objects without their long fields (longfields.py): SQL for what stands there, and reading the fields later,
some MiB at a time.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from manifests.catalog import Catalog
from manifests.longfields import NAMES, SHORT, LongFields

#: Long fields that are read out of the manifests at a time, in bytes.
LOT_BYTES = 8 << 20
_ROWS_AT_ONCE = 4096


def _field_bytes(names: Sequence[str]) -> str:
    is_long = " OR ".join(f"octet_length({name}) > {SHORT}" for name in names)
    total = " + ".join(f"coalesce(octet_length({name}), 0)::UBIGINT" for name in names)
    return f"CASE WHEN row IS NOT NULL AND ({is_long}) THEN {total} ELSE 0 END AS field_bytes, 0::UBIGINT AS long"


#: SQL for two columns of a table of objects: how long the fields of an object with a long one are together, else 0; and
#: the place of its record, which `place_long_fields` fills in.
FIELD_BYTES = _field_bytes(NAMES)


#: SQL for a path as people are told of it: of a very long one the beginning, and empty where there is none.
SHOWN_PATH = f"""
    CASE WHEN octet_length(path) > {SHORT} THEN unhex(left(hex(path), {2 * SHORT})) ELSE coalesce(path, ''::BLOB) END
"""


def short_columns(names: Sequence[str] = NAMES) -> str:
    """SQL for columns of the table objects, null where they are too long, and FIELD_BYTES."""
    shown = ", ".join(f"CASE WHEN octet_length({name}) <= {SHORT} THEN {name} END AS {name}" for name in names)
    return f"{shown}, {_field_bytes(names)}"


def short_form_of(name: str) -> str:
    """SQL for the short form of a column (longfields.py); null for null."""
    return f"""
        CASE WHEN octet_length({name}) <= {SHORT} THEN {name}
             WHEN octet_length({name}) > {SHORT} THEN unhex(left(hex({name}), {2 * SHORT})) || unhex(sha256({name})) END
    """


def late_rows(
    catalog: Catalog, run: uuid.UUID, sized: Iterable[tuple[int, int]], columns: str
) -> Iterator[tuple[Any, ...]]:
    """The columns of objects of a run, as (row, `columns`), in no order. `sized`: (row, bytes of long fields) of each,
    of which a lot is read at a time."""
    lot, size = list[int](), 0
    query = f"SELECT row, {columns} FROM objects WHERE run = ? AND row IN (SELECT unnest(?::UBIGINT[]))"
    for row, length in sized:
        if lot and size + length > LOT_BYTES:
            yield from _between(catalog, query, run, lot)
            lot, size = [], 0
        lot.append(row)
        size += length
    if lot:
        yield from _between(catalog, query, run, lot)


def _between(catalog: Catalog, query: str, run: uuid.UUID, rows: list[int]) -> Iterator[tuple[Any, ...]]:
    """The bounds let DuckDB pass over the row groups that hold none of the rows."""
    bounds = f"{query} AND row BETWEEN {min(rows)} AND {max(rows)}"
    return catalog.tuples(bounds, [run.bytes, rows])


def named_paths(catalog: Catalog, run: uuid.UUID, rows: Sequence[int]) -> list[tuple[int, bytes]]:
    """(row, path) of some objects of a run, to tell people of them: no more than some MiB of paths."""
    query = "FROM objects WHERE run = ? AND row IN (SELECT unnest(?::UBIGINT[]))"
    left, named = LOT_BYTES, list[int]()
    for row, size in catalog.tuples(f"SELECT row, octet_length(path) {query}", [run.bytes, list(rows)]):
        left -= size
        if left >= 0:
            named.append(row)
    return list(catalog.tuples(f"SELECT row, path {query}", [run.bytes, named]))


def name_objects(catalog: Catalog, table: str, limit: int) -> tuple[int, list[dict[str, Any]]]:
    """How many objects are in a table of (run, row), and the first `limit` of them as run and path."""
    count = catalog.one(f"SELECT count(*) AS n FROM objects SEMI JOIN {table} USING (run, row)")["n"]
    numbers: dict[bytes, list[int]] = {}
    for run, row in catalog.tuples(f"SELECT DISTINCT run, row FROM {table} ORDER BY run, row LIMIT {limit}"):
        numbers.setdefault(run, []).append(row)
    found = []
    for run, rows in numbers.items():
        paths = sorted(path for _, path in named_paths(catalog, uuid.UUID(bytes=run), rows))
        found += [{"run": run, "path": path} for path in paths]
    return count, found


def with_long_columns(
    catalog: Catalog, run: uuid.UUID, rows: Iterable[dict[str, Any]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Rows of objects of a run, with their `row`, that have `short_columns` of `names`: with the long ones, too, and
    without what is told beside them. Streams."""
    held, size = list[dict[str, Any]](), 0
    for row in rows:
        if not held and not row["field_bytes"]:
            del row["field_bytes"], row["long"]
            yield row
            continue
        size += row["field_bytes"]
        held.append(row)
        if size >= LOT_BYTES or len(held) >= _ROWS_AT_ONCE:
            yield from _completed(catalog, run, held, names)
            held, size = [], 0
    yield from _completed(catalog, run, held, names)


def _completed(
    catalog: Catalog, run: uuid.UUID, rows: list[dict[str, Any]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    sized = [(row["row"], row["field_bytes"]) for row in rows if row["field_bytes"]]
    late = {number: fields for number, *fields in late_rows(catalog, run, sized, ", ".join(names))}
    for row in rows:
        del row["field_bytes"], row["long"]
        if fields := late.get(row["row"]):
            row.update(zip(names, fields, strict=True))
        yield row


def place_long_fields(catalog: Catalog, run: uuid.UUID, table: str, long_fields: LongFields) -> None:
    """Fill in `long` of a table of objects that has FIELD_BYTES."""
    import pyarrow as pa

    if not catalog.one(f"SELECT count(*) AS n FROM {table} WHERE field_bytes > 0")["n"]:
        return
    schema = pa.schema([("row", pa.uint64()), ("place", pa.uint64())])
    catalog.replace("long_places", schema)
    sized = catalog.tuples(f"SELECT row, field_bytes FROM {table} WHERE field_bytes > 0 ORDER BY row")
    rows, places = list[int](), list[int]()
    for row, *fields in late_rows(catalog, run, sized, ", ".join(NAMES)):
        rows.append(row)
        places.append(long_fields.add(fields))
        if len(rows) == _ROWS_AT_ONCE:
            catalog.append("long_places", pa.table([rows, places], schema=schema))
            rows, places = [], []
    catalog.append("long_places", pa.table([rows, places], schema=schema))
    catalog.execute(f"UPDATE {table} SET long = place FROM long_places p WHERE p.row = {table}.row")
