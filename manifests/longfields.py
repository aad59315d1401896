"""Fields that are too long for DuckDB's tables: paths, targets, extended attributes and holes of any length.

DuckDB works on vectors of 2,048 values, which it can't part: of 60 KB each they are more than all of its memory. So
tables, joins and sorts hold fields up to SHORT bytes alone. An object with a longer one has them all in a file without
a name, as a record, and its row has the place of that; whoever needs them reads one record after the other.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from manifests.catalog import Catalog
from manifests.errors import Unreadable

#: Longest field in a table, in bytes. Two thousand of them are 2 MiB.
SHORT = 1024
#: Long fields that are read out of the manifests at a time, in bytes.
LOT_BYTES = 8 << 20
_PLACES_AT_ONCE = 4096
NAMES = ("path", "target", "xattrs", "holes")
_LENGTHS = struct.Struct("<4Q")


class Fields(NamedTuple):
    """The fields of an object, empty where it has none."""

    path: bytes
    target: bytes
    xattrs: bytes
    holes: bytes


def _field_bytes(names: Sequence[str]) -> str:
    is_long = " OR ".join(f"octet_length({name}) > {SHORT}" for name in names)
    total = " + ".join(f"coalesce(octet_length({name}), 0)::UBIGINT" for name in names)
    return f"CASE WHEN {is_long} THEN {total} ELSE 0 END AS field_bytes, 0::UBIGINT AS long"


#: SQL for two columns of a table of objects: how long the fields of an object with a long one are together, else 0; and
#: the place of its record, which `place_long_fields` fills in.
FIELD_BYTES = _field_bytes(NAMES)


def short_columns(names: Sequence[str] = NAMES) -> str:
    """SQL for columns of the table objects, null where they are too long, and FIELD_BYTES."""
    shown = ", ".join(f"CASE WHEN octet_length({name}) <= {SHORT} THEN {name} END AS {name}" for name in names)
    return f"{shown}, {_field_bytes(names)}"


def short_form(value: bytes) -> bytes:
    """What stands for a field where it is joined or compared: itself, or its beginning and a digest, which no short one
    equals. They sort as fields do as far as the first SHORT bytes tell."""
    return value if len(value) <= SHORT else value[:SHORT] + hashlib.sha256(value).digest()


def short_form_of(name: str) -> str:
    """The same in SQL, of a column; null for null."""
    return f"""
        CASE WHEN octet_length({name}) <= {SHORT} THEN {name}
             WHEN octet_length({name}) > {SHORT} THEN unhex(left(hex({name}), {2 * SHORT})) || unhex(sha256({name})) END
    """


class LongFields:
    """Records in a file without a name. Owned by the process that makes it; workers read it by its descriptor."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="drystone-fields-")  # noqa: SIM115 - closed by close
        self._size = 0

    def __enter__(self) -> LongFields:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def add(self, fields: Sequence[bytes | None]) -> int:
        """The place of a new record, which is never 0; it can be read at once. Raises OSError."""
        values = [value or b"" for value in fields]
        place, data = self._size, memoryview(b"".join((_LENGTHS.pack(*map(len, values)), *values)))
        self._size += len(data)
        at = place
        while data:
            count = os.pwrite(self.fd, data, at)
            data, at = data[count:], at + count
        return place + 1

    def read(self, place: int) -> Fields:
        """The record of a place."""
        return read_fields(self.fd, place)

    def close(self) -> None:
        self._file.close()


def read_fields(fd: int, place: int) -> Fields:
    """The record of a place, by the descriptor of the file. Raises OSError, Unreadable."""
    lengths = _LENGTHS.unpack(_read(fd, place - 1, _LENGTHS.size))
    data, at = _read(fd, place - 1 + _LENGTHS.size, sum(lengths)), 0
    values = []
    for length in lengths:
        values.append(data[at : at + length])
        at += length
    return Fields(*values)


def _read(fd: int, at: int, length: int) -> bytes:
    data = os.pread(fd, length, at)
    while len(data) < length:
        piece = os.pread(fd, length - len(data), at + len(data))
        if not piece:
            raise Unreadable("the temporary file of long paths and attributes is cut short; is its disk full?")
        data += piece
    return data


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
        if size >= LOT_BYTES or len(held) >= _PLACES_AT_ONCE:
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
        if len(rows) == _PLACES_AT_ONCE:
            catalog.append("long_places", pa.table([rows, places], schema=schema))
            rows, places = [], []
    catalog.append("long_places", pa.table([rows, places], schema=schema))
    catalog.execute(f"UPDATE {table} SET long = place FROM long_places p WHERE p.row = {table}.row")
