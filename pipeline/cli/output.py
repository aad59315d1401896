"""Results on standard output: tables for people, JSON, CSV and Parquet for programs."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import indent
from typing import Any

from pipeline.printing import binary_output, flush, say, shown, write_text

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


_SURROGATE = re.compile("[\ud800-\udfff]")


def path_fields(path: bytes) -> dict[str, str]:
    """`path`, which has `path_b64` beside it in the output where it is not UTF-8: see `decodable`."""
    return {"path": os.fsdecode(path)}


def decodable(record: Row) -> dict[str, Any]:
    """The record with text that every reader of UTF-8 takes. Where a text stands for bytes that are not UTF-8, as paths
    may, `<name>_b64` beside it has the bytes."""
    result: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            value = decodable(value)
        elif isinstance(value, str):
            if _SURROGATE.search(value):
                result[name], result[f"{name}_b64"] = _replaced(value), _base64(value)
                continue
        elif isinstance(value, list | tuple):
            value = [decodable(each) if isinstance(each, Mapping) else each for each in value]
            if any(isinstance(each, str) and _SURROGATE.search(each) for each in value):
                result[f"{name}_b64"] = [_base64(each) for each in value]
                value = [_replaced(each) for each in value]
        result[name] = value
    return result


def _replaced(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode(errors="surrogateescape")).decode()


def rfc3339(ns: int) -> str:
    """Time in ns since 1970 as RFC 3339 in UTC."""
    return datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def emit(rows: Iterable[Row], columns: Sequence[Column], output: str, kind: str = "item") -> None:
    """Write rows to standard output in the format `output`, streaming where the format allows."""
    _WRITERS[output](iter(rows), columns, kind)
    flush()


def emit_json(record: Row) -> None:
    """One JSON line."""
    write_text(_json_text(record) + "\n")


def _json_text(record: Row, indent: int | None = None) -> str:
    text = json.dumps(record, ensure_ascii=False, default=str, indent=indent)
    if _SURROGATE.search(text):
        text = json.dumps(decodable(record), ensure_ascii=False, default=str, indent=indent)
    return "\n".join(map(_escape_line, text.split("\n")))


def _escape_line(text: str) -> str:
    """JSON in which what a terminal would obey is written as `\\u`; json.dumps does so below 0x20 only."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _table(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    def cells(row: Row) -> list[str]:
        return [shown(column.show(row.get(column.key, ""))) for column in columns]

    first = list(map(cells, islice(rows, MEASURED_ROWS)))
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
    for row in rows:
        put(cells(row))


def _json(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    """As json.dumps with an indent of 2 writes a list of all rows, one row at a time."""
    between = "[\n"
    for row in rows:
        write_text(between + indent(_json_text(row, indent=2), "  "))
        between = ",\n"
    write_text("[]\n" if between == "[\n" else "\n]\n")


def _jsonl(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    for row in rows:
        emit_json({"type": kind, **row})


class _Lines:
    """Takes what csv.writer writes. Given an end of line of CR and LF, it quotes cells that hold either."""

    END = "\r\n"

    def write(self, row: str) -> None:
        write_text(row.removesuffix(self.END) + "\n")


def _csv(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    head = next(rows, None)
    names = list(head) if head is not None else [column.key for column in columns]
    writer = csv.DictWriter(_Lines(), names, lineterminator=_Lines.END, extrasaction="ignore")
    writer.writeheader()
    if head is not None:
        writer.writerow(decodable(head))
    for row in rows:
        writer.writerow(decodable(row))


def _parquet(rows: Iterator[Row], columns: Sequence[Column], kind: str) -> None:
    from manifests.export import write_parquet

    with binary_output() as out:
        write_parquet([decodable(row) for row in rows], out)


_WRITERS: dict[str, Callable[[Iterator[Row], Sequence[Column], str], None]] = {
    "table": _table,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
