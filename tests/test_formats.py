"""Every command × every format: what is read back has the same names, values and units."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import cli
from pipeline.cli.options import FORMATS
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
PROGRAMS = [output for output in FORMATS if output != "table"]
#: Values that differ from one call to the next: of the disk, and of summaries what each run does anew.
OF_THE_DISK = {"free_bytes", "used_bytes", "usage_percent"}
OF_THE_CALL = OF_THE_DISK | {
    "seconds", "run", "parent", "began", "store_id", "id", "stages", "backends", "path", "last_run", "packs",
    "last_verification", "last_data_verification", "checked_bytes", "checked_packs", "unchanged", "unchanged_bytes",
    "new_bytes", "new_chunks", "stored_bytes", "parity_bytes",
}  # fmt: skip
#: The words of each command that has --format, and whether it gives rows or one summary. OUT: a new name each time.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "init": (["init", "OUT"], "summary"),
    "ingest": (["-s", "STORE", "ingest", "tree", "--force", "--tag", "a=1"], "summary"),
    "ingest of what can't be read": (["-s", "STORE", "ingest", "odd"], "summary"),
    "ingest --dry-run": (["-s", "STORE", "ingest", "tree", "--dry-run", "--exclude", "*.log"], "summary"),
    "runs": (["-s", "STORE", "runs"], "rows"),
    "runs of none": (["-s", "EMPTY", "runs"], "none"),
    "ls": (["-s", "STORE", "ls", "-R", "FIRST"], "rows"),
    "ls of nothing": (["-s", "STORE", "ls", "FIRST:tree/void"], "rows"),
    "stats": (["-s", "STORE", "stats"], "summary"),
    "stats of nothing": (["-s", "EMPTY", "stats"], "summary"),
    "compare": (["-s", "STORE", "compare", "FIRST", "other"], "rows"),
    "compare of equals": (["-s", "STORE", "compare", "FIRST", "tree"], "none"),
    "restore": (["-s", "STORE", "restore", "FIRST", "--to", "OUT"], "summary"),
    "restore of a range": (
        ["-s", "STORE", "restore", "FIRST:tree/a,b", "--range", "0-1", "--range", "-1", "--to", "OUT"], "summary",
    ),
    "verify": (["-s", "STORE", "verify"], "summary"),
    "verify --data": (["-s", "STORE", "verify", "--data"], "summary"),
    "index status": (["-s", "STORE", "index", "status"], "summary"),
    "index rebuild": (["-s", "STORE", "index", "rebuild", "--kind", "disk"], "summary"),
    "index rebuild --dry-run": (["-s", "STORE", "index", "rebuild", "--dry-run"], "summary"),
    "status": (["-s", "STORE", "status"], "summary"),
    "status --risk": (["-s", "STORE", "status", "--risk"], "rows"),
    "status --risk of nothing": (["-s", "EMPTY", "status", "--risk"], "none"),
    "backend list": (["-s", "STORE", "backend", "list"], "rows"),
    "backend add": (["-s", "STORE", "backend", "add", "OUT", "--dry-run"], "summary"),
    "backend remove": (["-s", "STORE", "backend", "remove", "STORE/backend-1", "--force", "--dry-run"], "summary"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("formats")
    tree = place / "tree"
    (tree / "void").mkdir(parents=True)
    (tree / "a,b").write_text("a dry-stone wall")
    (tree / 'say "x"\r\n').write_text("quotes")
    (tree / "day.log").write_text("left out")
    (tree / os.fsdecode(b"caf\xe9")).symlink_to(os.fsdecode(b"to\xff"))
    os.utime(tree / "a,b", ns=(0, 1_715_000_000_123_456_789))
    os.mkdir(place / "odd")
    os.mkfifo(place / "odd" / "pipe")
    shutil.copytree(tree, place / "other", symlinks=True)
    (place / "other" / "a,b").write_text("a dry-stone hedge")
    (place / "other" / "day.log").unlink()
    run(place, "init", "store")
    run(place, "init", "empty")
    run(place, "-s", "store", "ingest", "tree", "--tag", "k=v;\u20ac")
    return place


def run(place: Path, *words: str) -> bytes:
    done = subprocess.run([COMMAND, *words], cwd=place, capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr and done.returncode in (0, 3, 4), done.stderr
    return done.stdout


def run_id(place: Path) -> str:
    """The first run of the store, which has all of the tree."""
    return run(place, "-s", "store", "runs", "--format", "csv").split(b"\n")[1].split(b",")[0].decode()


def outputs(place: Path, words: list[str]) -> dict[str, bytes]:
    names = {"STORE": "store", "EMPTY": "empty", "FIRST": run_id(place)}
    result = {}
    for output in FORMATS:
        out = place / f"out-{output}"
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
        given = [word.replace("OUT", str(out)) for word in words]
        for name, value in names.items():
            given = [word.replace(name, value) for word in given]
        result[output] = run(place, *given, "--format", output)
    return result


@pytest.mark.parametrize("name", one_in(3, COMMANDS))
def test_all_formats_tell_the_same(place: Path, name: str) -> None:
    words, gives = COMMANDS[name]
    found = outputs(place, words)
    assert found["table"] or gives == "none" or name == "compare of equals"

    lines = [json.loads(line) for line in found["jsonl"].decode().split("\n") if line]
    assert all(line["type"] in ("progress", "item", "summary") for line in lines), lines
    wanted = "summary" if gives == "summary" else "item"
    records = [line for line in lines if line["type"] == wanted]
    assert (len(records) == 1) if gives == "summary" else (not records if gives == "none" else len(records) > 0)
    document = json.loads(found["json"])
    if gives == "summary":
        assert document["type"] == "summary"
        document = [document]
    assert json.loads(json.dumps(document, ensure_ascii=True)) == document
    table = pq.read_table(pa.BufferReader(found["parquet"]))
    rows = table.to_pylist()
    cells = list(csv.DictReader(io.StringIO(found["csv"].decode(), newline="")))
    header = next(csv.reader(io.StringIO(found["csv"].decode(), newline="")))
    assert header == table.column_names and header
    assert len(records) == len(document) == len(rows) == len(cells)
    with duckdb.connect() as connection:
        (place / "read.parquet").write_bytes(found["parquet"])
        assert connection.sql(f"FROM '{place}/read.parquet'").columns == header
    for column in table.schema:
        assert not pa.types.is_null(column.type) and not pa.types.is_struct(column.type), column

    for one, listed, row, cell in zip(records, document, rows, cells, strict=True):
        names = [key for key in one if key != "type"]
        assert names == [key for key in listed if key != "type"]
        assert set(header) - {key for key in header if key.endswith("_b64")} <= set(names) <= set(header)
        for key in header:
            assert_fits(one.get(key), table.schema.field(key).type)
            assert "{'" not in cell[key] and "['" not in cell[key] and cell[key] not in ("True", "False", "None"), key
            if key not in (OF_THE_CALL if gives == "summary" else OF_THE_DISK):
                assert one.get(key) == listed.get(key), key
                assert_same(one.get(key), row[key], cell[key])


def assert_fits(value: Any, kind: pa.DataType) -> None:
    """A value of JSON and the type of its column are of one kind."""
    types = pa.types
    fits = {
        int: types.is_integer, float: types.is_floating, bool: types.is_boolean, dict: types.is_string,
        list: lambda kind: types.is_list(kind) or types.is_string(kind),
        str: lambda kind: types.is_string(kind) or types.is_timestamp(kind),
    }  # fmt: skip
    assert value is None or fits[type(value)](kind), (value, kind)


def assert_same(value: Any, from_parquet: Any, from_csv: str) -> None:
    """The value of JSON, that of Parquet, and the text of CSV are one."""
    if value is None:
        assert from_parquet is None and from_csv == ""
    elif isinstance(from_parquet, datetime.datetime):
        assert from_parquet == datetime.datetime.fromisoformat(value)
        assert from_csv == value
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        assert from_parquet in (value, text)
        assert from_csv == (str(value).lower() if isinstance(value, bool) else str(text))


def test_each_command_that_has_formats_is_tried() -> None:
    tried = {
        " ".join(word for word in words if word.islower() and not word.startswith("-"))
        for words, _ in COMMANDS.values()
    }

    def walk(group: click.Group, *names: str) -> None:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            if isinstance(command, click.Group):
                walk(command, *names, name)
            elif command is not None and any(param.name == "output" for param in command.params):
                assert any(each.startswith(" ".join([*names, name])) for each in tried), name

    assert isinstance(cli, click.Group)
    walk(cli)


def test_times_and_bytes_have_types(place: Path) -> None:
    listed = pq.read_table(
        pa.BufferReader(run(place, "-s", "store", "ls", "-R", run_id(place) + ":tree", "--format", "parquet"))
    )
    assert listed.schema.field("mtime").type == pa.timestamp("us", "UTC")
    runs = pq.read_table(pa.BufferReader(run(place, "-s", "store", "runs", "--format", "parquet")))
    assert runs.schema.field("time").type == runs.schema.field("began").type == pa.timestamp("us", "UTC")
    assert runs.schema.field("sources").type == pa.list_(pa.string())
    for name in ("bytes", "stored_bytes", "parity_bytes", "new_bytes"):
        assert runs.schema.field(name).type == pa.int64()


def test_a_record_that_somebody_else_wrote_fails_no_format(place: Path) -> None:
    """Values of other kinds, huge numbers, a field called type."""
    from manifests.armour import open_json, seal_json

    run(place, "init", "hostile")
    run(place, "-s", "hostile", "ingest", "tree")
    for log in (place / "hostile").glob("backend-*/log/*.ingest.json"):
        record, _ = open_json(log.read_bytes())
        record["run"] |= {
            "type": "summary", "files": "\x1b[2J", "bytes": 1 << 70, "stored": 1.5, "sources": [1, "\ud800"],
            "host": ["\x1b"], "tags": {"\x1b": {"type": "\x1b"}}, "began": "soon", "errors": None,
        }  # fmt: skip
        log.chmod(0o644)
        log.write_bytes(seal_json(record))
    for output in FORMATS:
        shown = run(place, "-s", "hostile", "runs", "--format", output)
        assert b"\x1b" not in shown or output in ("parquet", "csv")
        assert shown
    (line,) = [json.loads(line) for line in run(place, "-s", "hostile", "runs", "--format", "jsonl").splitlines()]
    assert line["type"] == "item" and line["files"] is None and line["tags"] == {"\x1b": {"type": "\x1b"}}


@pytest.mark.parametrize("output", PROGRAMS)
def test_what_is_skipped_is_in_the_summary_of_each_format(place: Path, output: str) -> None:
    assert b"skipped" in run(place, "-s", "store", "ingest", "odd", "--format", output)
