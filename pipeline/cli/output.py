"""Results on standard output: tables for people, JSON, CSV and Parquet for programs."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import indent
from typing import Any

Row = Mapping[str, Any]
#: Rows of which the widths of a table's columns are taken; the rest is streamed.
MEASURED_ROWS = 1000


@dataclass(frozen=True)
class Column:
    """A column of a table: the row's key, its heading for people, and how people see a value."""

    key: str
    heading: str
    show: Callable[[Any], str] = str
    right: bool = False


def path_fields(path: bytes) -> dict[str, str]:
    """`path`, and `path_b64` where it is not UTF-8."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_b64": base64.b64encode(path).decode()}


def show_path(path: bytes) -> str:
    """A path for a terminal: bytes that are not UTF-8 and control characters are escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in path.decode(errors="backslashreplace")
    )


def rfc3339(ns: int) -> str:
    """Time in ns since 1970 as RFC 3339 in UTC."""
    return datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def emit(rows: Iterable[Row], columns: Sequence[Column], output: str, kind: str = "item") -> None:
    """Write rows to standard output in the format `output`, streaming where the format allows."""
    _WRITERS[output](iter(rows), columns, kind)


def emit_json(record: Row) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _table(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    first = [[column.show(row.get(column.key, "")) for column in columns] for row in islice(rows, MEASURED_ROWS)]
    headings = [column.heading for column in columns]
    widths = [max(len(line[i]) for line in [headings, *first]) for i in range(len(columns))]

    def put(cells: Sequence[str]) -> None:
        padded = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")

    if any(headings):
        put(headings)
    for line in first:
        put(line)
    for row in rows:
        put([column.show(row.get(column.key, "")) for column in columns])


def _json(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    """As json.dumps with an indent of 2 writes a list of all rows, one row at a time."""
    between = "[\n"
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, default=str, indent=2)
        sys.stdout.write(between + indent(text, "  "))
        between = ",\n"
    sys.stdout.write("[]\n" if between == "[\n" else "\n]\n")


def _jsonl(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    for row in rows:
        emit_json({"type": kind, **row})


def _csv(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    head = next(rows, None)
    names = list(head) if head is not None else [column.key for column in columns]
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    if head is not None:
        writer.writerow(head)
    writer.writerows(rows)


def _parquet(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    from manifests.export import write_parquet

    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        write_parquet([dict(row) for row in rows], out)


_WRITERS: dict[str, Callable[[Iterator[Row], Sequence[Column], str], None]] = {
    "table": _table,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
