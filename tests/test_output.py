"""Rows on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.cli.output import emit


@pytest.mark.parametrize(
    "rows", [[], [{}], [{"a": 1, "b": ["x\ny", None]}, {"a": {"é": []}}], [{"n": n} for n in range(5)]]
)
def test_json_is_one_list_written_row_by_row(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    written = ""

    def watched() -> Iterator[dict[str, Any]]:
        nonlocal written
        for number, row in enumerate(rows):
            written += capsys.readouterr().out
            assert (written != "") == (number > 0), "rows wait for others"
            yield row

    emit(watched(), [], "json")
    written += capsys.readouterr().out
    assert written == json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
