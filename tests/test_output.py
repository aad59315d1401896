"""Rows on standard output: streamed, of the kinds that their fields have, whatever the values are."""

from __future__ import annotations

import csv
import datetime
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest

from manifests import export
from pipeline.cli.fields import Kind, decodable, flattener_of, json_text, moment, rfc3339, typed
from pipeline.cli.output import emit, emit_json, emit_summary

ANY = {"n": Kind.INTEGER, "a": Kind.NESTED, "b": Kind.NESTED}


@pytest.mark.parametrize(
    "rows", [[], [{}], [{"a": [1], "b": ["x\ny", None]}, {"a": {"é": []}}], [{"n": n} for n in range(5)]]
)
def test_json_is_one_list_written_row_by_row(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    written = ""

    def watched() -> Iterator[dict[str, Any]]:
        nonlocal written
        for number, row in enumerate(rows):
            written += capsys.readouterr().out
            assert (written != "") == (number > 0), "rows wait for others"
            yield row

    emit(watched(), ANY, "json")
    written += capsys.readouterr().out
    whole = [{**dict.fromkeys(ANY), **row} for row in rows]
    assert written == json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def test_parquet_is_written_in_groups_of_rows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "GROUP_ROWS", 3)
    with open(tmp_path / "t", "wb") as out:
        export.write_parquet(({"n": n} for n in range(7)), {"n": "integer"}, out)
    with pq.ParquetFile(tmp_path / "t") as file:
        assert file.num_row_groups == 3 and file.read()["n"].to_pylist() == list(range(7))


@pytest.mark.parametrize("output", ["json", "csv", "parquet"])
def test_what_fails_at_once_writes_nothing_and_later_no_whole_table(output: str) -> None:
    """In a process of its own: Parquet goes past the capture of standard output."""
    for good in (0, 1):
        code = f"""
from pipeline.cli.fields import Kind
from pipeline.cli.output import emit
def rows():
    yield from [{{"n": 1}}] * {good}
    raise OSError
try:
    emit(rows(), {{"n": Kind.INTEGER}}, {output!r})
except OSError:
    pass
"""
        written = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        assert bool(written) == bool(good)
        assert written[-4:] != b"PAR1" or len(written) == 4
        assert not written.rstrip().endswith(b"]")


@pytest.mark.parametrize(
    ("value", "kind", "known"),
    [
        (7, Kind.INTEGER, 7), (True, Kind.INTEGER, None), ("7", Kind.INTEGER, None), (1 << 63, Kind.INTEGER, None),
        (7, Kind.NUMBER, 7.0), ("x", Kind.NUMBER, None), (1, Kind.FLAG, None), (False, Kind.FLAG, False),
        ("2024-05-06T07:08:09.123Z", Kind.TIME, "2024-05-06T07:08:09.123Z"), ("yesterday", Kind.TIME, None),
        (1, Kind.TIME, "1970-01-01T00:00:00Z"), (-1, Kind.TIME, "1969-12-31T23:59:59.999999Z"),
        (-(1 << 63), Kind.TIME, "1677-09-21T00:12:43.145224Z"),
        ((1 << 63) - 1, Kind.TIME, "2262-04-11T23:47:16.854775Z"),
        (["a"], Kind.TEXTS, ["a"]), (["a", 1], Kind.TEXTS, None), ("ab", Kind.TEXTS, None),
        ({"a": 1}, Kind.NESTED, {"a": 1}), ("a", Kind.NESTED, None), (b"a", Kind.TEXT, None),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_not_known(value: Any, kind: Kind, known: Any) -> None:
    assert typed({"it": value}, {"it": kind}) == {"it": known}


def test_times_are_the_same_moment_as_text_and_as_numbers() -> None:
    for ns in (0, 1_715_000_000_123_456_000, -62_000_000_000_000_000 // 1000 * 1000):
        at = moment(rfc3339(ns))
        assert at is not None
        assert (at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) / datetime.timedelta(
            microseconds=1
        ) == ns // 1000
    assert moment("2024-05-06T09:08:09+02:00") == moment("2024-05-06T07:08:09") == moment("2024-05-06T07:08:09Z")


def test_text_that_is_not_utf8_has_its_bytes_beside_it() -> None:
    assert decodable({"a": "x\udcff", "l": ["é", "\udcfe"], "n": {"k\udcff": "\ud800"}, "plain": "é"}) == {
        "a": "x\ufffd", "a_b64": "eP8=", "l": ["é", "\ufffd"], "l_b64": ["w6k=", "/g=="],
        "n": {"k\ufffd": "\ufffd\ufffd\ufffd", "k\ufffd_b64": "7aCA"}, "plain": "é",
    }  # fmt: skip
    flat = flattener_of({"p": Kind.PATH, "t": Kind.TEXT, "n": Kind.NESTED})
    row = flat({"p": "x\udcff", "t": "y\udcff", "n": ["\udcff"]})
    assert row == {"p": "x\ufffd", "p_b64": "eP8=", "t": "y\ufffd", "n": '["\ufffd"]'}


def test_json_escapes_what_a_terminal_would_obey() -> None:
    value = {"a": "\x1b\x7f\x9b\u202e\u2028\U000e0001é€😀"}
    text = json_text(value)
    assert text.isprintable() and "é€😀" in text and json.loads(text) == value
    assert json.loads(json_text(value, indent=2)) == value


def test_the_type_of_a_line_is_never_a_field_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json("item", {"type": "local", "a": 1})
    assert json.loads(capsys.readouterr().out) == {"type": "item", "a": 1}


def test_a_summary_has_just_the_fields_that_are_declared() -> None:
    for record in ({"a": 1, "b": 2}, {}):
        with pytest.raises(KeyError):
            emit_summary(record, {"a": Kind.INTEGER}, "json")


def test_csv_has_no_spelling_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"f": True, "l": ["a", "b"], "n": {"x": None}, "no": None, "cr": "a\rb", "q": 'say "x", y', "t": 0}
    fields = {
        "f": Kind.FLAG, "l": Kind.TEXTS, "n": Kind.NESTED, "no": Kind.INTEGER, "cr": Kind.TEXT, "q": Kind.TEXT,
        "t": Kind.TIME,
    }  # fmt: skip
    emit([row], fields, "csv")
    written = capsys.readouterr().out
    assert '"a\rb"' in written and written.count("\n") == 2
    (read,) = csv.DictReader(io.StringIO(written, newline=""))
    assert read == {
        "f": "true", "l": '["a", "b"]', "n": '{"x": null}', "no": "", "cr": "a\rb", "q": 'say "x", y',
        "t": "1970-01-01T00:00:00Z",
    }  # fmt: skip
