"""Fields of records for programs: which a record has, and of which kind each is, the same in all formats.

JSON takes values as they are. CSV has text alone: true and false, RFC 3339, JSON for lists and mappings, nothing for
what is not known. Parquet has types. Records may come from a log that somebody else wrote: a value that is not of its
field's kind is not known.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]
_SURROGATE = re.compile("[\ud800-\udfff]")


class Kind(StrEnum):
    """What a field holds. PATH: text that may stand for bytes that are not UTF-8; TEXTS: a list of text; TIME: RFC 3339
    text, or ns since 1970; NESTED: lists and mappings of anything."""

    TEXT = "text"
    PATH = "path"
    TEXTS = "texts"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "flag"
    TIME = "time"
    NESTED = "nested"


#: Name → kind, in the order of columns.
Fields = Mapping[str, Kind]


def typed(row: Row, fields: Fields) -> dict[str, Any]:
    """The record with all its fields, and with None for each value that is not of its kind."""
    return reader_of(fields)(row)


def reader_of(fields: Fields) -> Callable[[Row], dict[str, Any]]:
    """`typed` for many rows: how a column is read is looked up once."""
    readers: list[tuple[str, Callable[[Any], Any]]] = [
        (name, _READERS.get(kind, _text)) for name, kind in fields.items()
    ]

    def read(row: Row) -> dict[str, Any]:
        return {name: reader(row.get(name)) for name, reader in readers}

    return read


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _flag(value: Any) -> bool | None:
    return value if type(value) is bool else None


def _time(value: Any) -> str | None:
    if type(value) is int:
        return rfc3339(value)
    return value if moment(value) is not None else None


def _texts(value: Any) -> list[str] | None:
    whole = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return list(value) if whole else None


def _nested(value: Any) -> Any:
    return value if isinstance(value, Mapping | list) else None


_READERS: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.FLAG: _flag,
    Kind.TIME: _time,
    Kind.TEXTS: _texts,
    Kind.NESTED: _nested,
}


@lru_cache(4096)
def rfc3339(ns: int) -> str:
    """Time in ns since 1970 as RFC 3339 in UTC: to the microsecond where it is no whole second."""
    seconds, rest = divmod(ns, 10**9)
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds, microseconds=rest // 1000)
    return f"{time.isoformat()}Z"


def moment(text: Any) -> datetime.datetime | None:
    """The moment that RFC 3339 text tells, of UTC where it names no zone; None where it tells none."""
    try:
        found = datetime.datetime.fromisoformat(text)
        return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def flat_fields(fields: Fields) -> dict[str, Kind]:
    """The columns of a table. What is nested is text. Behind all others, each path has one more, for its bytes where
    they are not UTF-8."""
    columns: dict[str, Kind] = {name: Kind.TEXT if kind is Kind.NESTED else kind for name, kind in fields.items()}
    return columns | {f"{name}_b64": Kind.TEXT for name, kind in fields.items() if kind is Kind.PATH}


def flattener_of(fields: Fields) -> Callable[[Row], dict[str, Any]]:
    """What makes of a record a row of a table with the columns of `flat_fields`; what is nested is JSON."""
    read, columns = reader_of(fields), list(flat_fields(fields))
    nested = [name for name, kind in fields.items() if kind is Kind.NESTED]

    def flat(row: Row) -> dict[str, Any]:
        values = decodable(read(row))
        for name in nested:
            if values[name] is not None:
                values[name] = json_text(values[name])
        return {name: values.get(name) for name in columns}

    return flat


def decodable(record: Row) -> dict[str, Any]:
    """The record with text that every reader of UTF-8 takes. Where a text stands for bytes that are not UTF-8, as paths
    may, `<name>_b64` beside it has the bytes."""
    result: dict[str, Any] = {}
    for name, value in record.items():
        name = name if name.isascii() else _replaced(name)
        if isinstance(value, Mapping):
            value = decodable(value)
        elif isinstance(value, str):
            if value.isascii() or not _SURROGATE.search(value):
                result[name] = value
                continue
            result[f"{name}_b64"] = _base64(value)
            value = _replaced(value)
        elif isinstance(value, list | tuple):
            value = [decodable(each) if isinstance(each, Mapping) else each for each in value]
            if any(isinstance(each, str) and _SURROGATE.search(each) for each in value):
                result[f"{name}_b64"] = [_base64(str(each)) for each in value]
                value = [_replaced(str(each)) for each in value]
        result[name] = value
    return result


def _bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # no bytes of a path, but what a record of JSON may hold
        return text.encode(errors="surrogatepass")


def _replaced(text: str) -> str:
    return _bytes(text).decode(errors="replace")


def _base64(text: str) -> str:
    return base64.b64encode(_bytes(text)).decode()


def json_text(value: Row | list[Any], indent: int | None = None) -> str:
    """A value as JSON in UTF-8, with escapes for all that a terminal would obey; json.dumps alone leaves DEL and what
    is above it as it is."""
    encode = _encoder(indent)
    text = encode(value)
    if not text.isascii() and _SURROGATE.search(text):
        text = encode(decodable({"": value})[""])
    return "\n".join(map(_escape_line, text.split("\n")))


@lru_cache
def _encoder(indent: int | None) -> Callable[[Any], str]:
    return json.JSONEncoder(ensure_ascii=False, default=str, indent=indent).encode


def _escape_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
