"""What came from outside is printed so that it can't command a terminal, and nothing is printed in another way."""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.printing import shown
from tests.sampling import one_in

ROOT = Path(__file__).parent.parent
#: The module that prints, and the live line of progress, which rich draws from figures alone.
PRINTING, LIVE = "pipeline/printing.py", "pipeline/cli/progress.py"
#: ESC, CSI of C1, DEL, CR, LF, a mark that turns the direction, a line separator.
EVIL = "a\x1b[31m\x9b31m\x7f\r\n\u202eb\u2028"
ESCAPED = r"a\x1b[31m\x9b31m\x7f\r\n\u202eb\u2028"


def drystone(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


def assert_tame(output: bytes) -> None:
    text = output.decode()
    assert all(line.isprintable() for line in text.split("\n")), text


def prints(tree: ast.AST) -> Iterator[str]:
    """The places of a module that write to a standard stream by themselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        first = ast.unparse(node.args[0]) if node.args else ""
        if (
            called in ("print", "pprint", "input", "breakpoint")
            or called.startswith(("sys.stdout.", "sys.stderr.", "sys.__std", "warnings.", "logging."))
            or called.endswith(
                (".echo", ".secho", ".echo_via_pager", ".show", "print_exc", "print_exception", "Console")
            )
            or (called == "os.write" and first in ("1", "2"))
            or (called in ("open", "os.fdopen", "os.dup") and first in ("1", "2", "'/dev/stdout'", "'/dev/stderr'"))
        ):
            yield f"{called}({first}) in line {node.lineno}"
        if any(
            ast.unparse(each).startswith(("sys.stdout", "sys.stderr"))
            for each in [*node.args, *[k.value for k in node.keywords]]
        ):
            yield f"{called}({first}) in line {node.lineno}"


HARMLESS = ("column.show(", "sys.stdout.isatty()", "sys.stderr.isatty()", "sys.stdout.fileno()", "sys.stderr.flush()")


def test_nothing_prints_but_by_the_one_module() -> None:
    found = []
    for package in ("pipeline", "stages", "manifests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for place in prints(ast.parse(path.read_text())):
                if name == PRINTING or place.startswith(HARMLESS) or (name == LIVE and place.startswith("Console(")):
                    continue
                found.append(f"{name}: {place}")
    assert not found


def test_the_search_for_prints_finds_them() -> None:
    code = "print(1); click.echo(x); sys.stderr.write(x); os.write(2, x); json.dump(x, sys.stdout); e.show(); open(1)"
    assert len(list(prints(ast.parse(code)))) == 7


@pytest.mark.parametrize(
    ("outside", "seen"),
    [
        ("plain ünï €", "plain ünï €"),
        (EVIL, ESCAPED),
        (b"caf\xc3\xa9 \xff\x1b", r"café \xff\x1b"),
        ("surrogate \udcff, unpaired \ud800", r"surrogate \xff, unpaired \ud800"),
        ("right\u200fleft\u2066iso\u00ad\u00a0\ufeff", r"right\u200fleft\u2066iso\xad\xa0\ufeff"),
    ],
)
def test_what_is_shown_is_printable(outside: str | bytes, seen: str) -> None:
    assert shown(outside) == seen and shown(outside).isprintable()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store below an evil name with a run of an evil host, tag, source and name."""
    place = tmp_path_factory.mktemp("printing") / EVIL
    source = place / "source"
    (source / EVIL).mkdir(parents=True)
    (source / EVIL / EVIL).write_bytes(b"some")
    os.symlink(EVIL, source / "link")
    (source / "unreadable").symlink_to("loop")
    assert drystone("init", str(place / "store")).returncode == 0
    ingested = drystone(
        "-s", str(place / "store"), "ingest", str(source), "--host", EVIL, "--tag", f"{EVIL}={EVIL}"
    )  # fmt: skip
    assert ingested.returncode == 0, ingested.stderr
    assert ESCAPED.encode() in ingested.stdout
    assert_tame(ingested.stdout + ingested.stderr)
    return place


@pytest.mark.parametrize(
    "words",
    one_in(
        2,
        [
            ["runs"],
            ["ls", "-R"],
            ["ls", "-l", "latest:source"],
            ["stats"],
            ["status"],
            ["status", "--risk"],
            ["backend", "list"],
            ["index", "status"],
            ["verify"],
            ["verify", "--data", "-v"],
            ["digests", "--format", "sha256sum"],
            ["compare", EVIL],
            ["restore", "--to", "PLACE/back" + EVIL],
            ["restore", "--to", "PLACE/back" + EVIL],
            ["restore", f"latest:source/{EVIL}/{EVIL}", "--range", "0-0", "--to", "PLACE/part" + EVIL],
            ["backend", "add", "PLACE/new" + EVIL],
            ["backend", "remove", "nothing" + EVIL],
            ["init", "PLACE/store"],
            ["init", "PLACE/other" + EVIL],
            ["ingest", "PLACE/nothing" + EVIL],
            ["ingest", "PLACE/source", "--exclude-from", EVIL],
            ["ingest", "PLACE/source", "--exclude", EVIL, "--dry-run", "-v"],
            ["ingest", "--name", EVIL.replace("\n", ""), "--command", "--", EVIL],
            ["ingest", "PLACE/source", "--checksums", EVIL],
            ["cat", "latest:" + EVIL],
            ["ls", EVIL],
            [EVIL],
            ["ls", "--" + EVIL],
            ["ls", "a", "b", EVIL],
            ["restore", "--to", "x", "--range", EVIL],
            ["restore", "--to", "x", "--overwrite", EVIL],
            ["restore", "--to", "x", "--memory", EVIL],
            ["verify", "--metrics-dir", EVIL],
            ["verify", "--metrics-push", "http://" + EVIL],
            ["verify", "--metrics-port", EVIL],
        ],
    ),
    ids=lambda words: " ".join(words).replace(EVIL, "EVIL"),
)
def test_no_command_lets_an_escape_through(place: Path, words: list[str]) -> None:
    words = [word.replace("PLACE", str(place)) for word in words]
    ended = drystone("-s", str(place / "store"), *words, DRYSTONE_CACHE=str(place / "c"))
    assert ended.stdout or ended.stderr
    assert_tame(ended.stdout + ended.stderr)
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("output", ["json", "jsonl"])
@pytest.mark.parametrize("words", [["runs"], ["ls", "-R"], ["status"], ["backend", "list"]])
def test_json_escapes_and_comes_back(place: Path, words: list[str], output: str) -> None:
    ended = drystone("-s", str(place / "store"), *words, "--format", output)
    assert_tame(ended.stdout)
    rows = json.loads(ended.stdout) if output == "json" else [json.loads(line) for line in ended.stdout.splitlines()]
    assert any(EVIL in text for text in texts(rows))


def texts(value: object) -> Iterator[str]:
    """All strings within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def test_csv_quotes_each_kind_of_line_end(place: Path) -> None:
    ended = drystone("-s", str(place / "store"), "ls", "-R", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ended.stdout.decode(), newline="")))
    assert f"source/{EVIL}/{EVIL}" in [row["path"] for row in rows]


def test_bytes_that_are_not_utf8_have_their_base64(place: Path, tmp_path: Path) -> None:
    source = os.fsencode(tmp_path) + b"/s\xff"
    os.mkdir(source)
    os.symlink(b"to\xfe", source + b"/l\xfd")
    store = str(tmp_path / "store")
    assert drystone("init", store).returncode == 0
    assert drystone("-s", store, "ingest", source).returncode == 0
    link = json.loads(drystone("-s", store, "ls", "-R", "--format", "jsonl").stdout.splitlines()[-1])
    assert (link["path"], base64.b64decode(link["path_b64"])) == ("s\ufffd/l\ufffd", b"s\xff/l\xfd")
    assert (link["target"], base64.b64decode(link["target_b64"])) == ("to\ufffd", b"to\xfe")


def test_an_encoding_that_lacks_characters_fails_no_command(tmp_path: Path) -> None:
    source = tmp_path / "Grüße €"
    source.mkdir()
    store = str(tmp_path / "störe")
    for encoding in (
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C"},
    ):
        for words in (
            ["init", store], ["-s", store, "ingest", str(source)], ["-s", store, "runs"], ["-s", store, "ls"],
            ["-s", store, "status"], ["-s", store, "ls", "latest:ü"], ["--help"], ["ingest", "--help"],
        ):  # fmt: skip
            ended = drystone(*words, **encoding)
            assert b"Traceback" not in ended.stderr and b"Error" not in ended.stderr, ended.stderr
            if "latest:ü" not in words and words[0] != "init":
                assert ended.returncode == 0, (words, ended.stderr)
        listed = json.loads(drystone("-s", store, "ls", "--json", **encoding).stdout)
        assert listed[0]["path"] == "Grüße €"
        listed = drystone("-s", store, "ls", "--format", "csv", **encoding).stdout
        assert "Grüße €".encode() in listed
