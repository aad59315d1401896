"""Results on standard output: tables for people, JSON, CSV and Parquet for programs."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from textwrap import indent
from typing import Any

from pipeline.cli.fields import Fields, Kind, Row, flat_fields, flattener_of, json_text, moment, reader_of, typed
from pipeline.printing import binary_output, flush, say, shown, write_text

#: Rows of which the widths of a table's columns are taken; the rest is streamed.
MEASURED_ROWS = 1000


@dataclass(frozen=True)
class Column:
    """A column of a table: the row's key, its heading for people, and how people see a value; None is blank."""

    key: str
    heading: str
    show: Callable[[Any], str] = str
    right: bool = False


def path_fields(path: bytes) -> dict[str, str]:
    """`path`, which has `path_b64` beside it in the output where it is not UTF-8: see `decodable`."""
    return {"path": os.fsdecode(path)}


def emit_table(rows: Iterable[Row], columns: Sequence[Column]) -> None:
    """Write rows to standard output as people read them, streaming."""

    def cell(value: Any, column: Column) -> str:
        return "" if value is None else shown(column.show(value))

    lines = ([cell(row.get(column.key), column) for column in columns] for row in rows)
    first = list(islice(lines, MEASURED_ROWS))
    headings = [column.heading for column in columns]
    widths = [max(len(line[i]) for line in [headings, *first]) for i in range(len(columns))]

    def put(cells: Sequence[str]) -> None:
        padded = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        say("  ".join(padded).rstrip(), at_once=False)

    if any(headings):
        put(headings)
    for line in first:
        put(line)
    for line in lines:
        put(line)
    flush()


def emit(rows: Iterable[Row], fields: Fields, output: str) -> None:
    """Write rows to standard output in a format for programs, `output`, streaming where it allows."""
    remaining = iter(rows)
    first = list(islice(remaining, 1))  # what fails at once writes nothing
    _WRITERS[output](chain(first, remaining), fields)
    flush()


def emit_summary(record: Row, fields: Fields, output: str) -> None:
    """Write what a command came to in a format for programs: one line of JSON, or a table of one row. `record` has just
    the fields that are declared."""
    if record.keys() != fields.keys():
        raise KeyError(f"fields that only the record or only its declaration has: {record.keys() ^ fields.keys()}")
    if output in ("json", "jsonl"):
        emit_json("summary", typed(record, fields))
    else:
        emit([record], fields, output)


def emit_json(kind: str, record: Row) -> None:
    """One JSON line, whose `type` is `kind`."""
    write_text(json_text({"type": kind, **{name: value for name, value in record.items() if name != "type"}}) + "\n")


def _json(rows: Iterator[Row], fields: Fields) -> None:
    """As json.dumps with an indent of 2 writes a list of all rows, one row at a time."""
    between, read = "[\n", reader_of(fields)
    for row in rows:
        write_text(between + indent(json_text(read(row), indent=2), "  "))
        between = ",\n"
    write_text("[]\n" if between == "[\n" else "\n]\n")


def _jsonl(rows: Iterator[Row], fields: Fields) -> None:
    for record in map(reader_of(fields), rows):
        emit_json("item", record)


class _Lines:
    """Takes what csv.writer writes. Told that lines end with CR and LF, it quotes cells that hold either."""

    END = "\r\n"

    def write(self, row: str) -> None:
        write_text(row.removesuffix(self.END) + "\n")


def _csv(rows: Iterator[Row], fields: Fields) -> None:
    writer = csv.writer(_Lines(), lineterminator=_Lines.END)
    writer.writerow(flat_fields(fields))
    for row in map(flattener_of(fields), rows):
        writer.writerow(map(_csv_cell, row.values()))


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        return json_text(value)
    return str(value).lower() if isinstance(value, bool) else value


def _parquet(rows: Iterator[Row], fields: Fields) -> None:
    from manifests.export import write_parquet

    columns = flat_fields(fields)
    times = [name for name, kind in columns.items() if kind is Kind.TIME]

    def values() -> Iterator[Row]:
        for cells in map(flattener_of(fields), rows):
            yield {**cells, **{name: moment(cells[name]) for name in times}}

    with binary_output() as out:
        write_parquet(values(), {name: str(kind) for name, kind in columns.items()}, out)


_WRITERS: dict[str, Callable[[Iterator[Row], Fields], None]] = {
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
