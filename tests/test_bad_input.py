"""Bad input: a clear line, the right exit code, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from manifests.armour import open_json, seal_json
from manifests.errors import UsageError
from pipeline.cli.app import _run, cli
from pipeline.cli.command import LAST_COUNTS, Command
from pipeline.cli.options import FORMATS
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))


def drystone(*arguments: object, code: int = 0, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code; no traceback ever shows."""
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, **more
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    if code:
        assert done.stderr.strip()
    return done


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command in this process, which is soon done, and checks its exit code; what it said."""

    def run(*arguments: object, code: int) -> str:
        assert _run(list(map(str, arguments))) == code
        said = capsys.readouterr().err
        assert said.strip() and "Traceback" not in said
        return said

    return run


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store of one run, and the file `data/words` that it archived."""
    place = tmp_path_factory.mktemp("filled")
    (place / "data").mkdir()
    (place / "data" / "words").write_bytes(b"a dry-stone wall stands without mortar\n" * 1000)
    drystone("init", place / "store")
    drystone("-s", place / "store", "ingest", place / "data")
    return place


def tree_state(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ingest", "nowhere"], 1, "no such source: nowhere"),
        (["ingest", "data", "./data"], 2, "--as"),
        (["ingest", "-"], 2, "--name"),
        (["ingest", "data", "--memory", "20MiB"], 2, "at least"),
        (["ingest", "data", "--memory", "lots"], 2, "not a size"),
        (["ingest", "data", "--compression", "zip"], 2, "zip"),
        (["ingest", "data", "--compression", "zstd:99"], 2, "1 to 22"),
        (["ingest", "data", "--tag", "nonsense"], 2, "KEY=VALUE"),
        (["ingest", "data", "--workers", "0"], 2, "0"),
        (["ls", "0000"], 1, "no run '0000'"),
        (["ls", "latest:data/absent"], 1, "no object 'data/absent'"),
        (["restore", "feed", "--to", "out"], 1, "no run 'feed'"),
        (["restore", "latest:data/absent", "--to", "out"], 1, "no object"),
        (["restore", "--to", "data/words"], 1, "words"),
        (["restore", "--to", "out", "--overwrite", "perhaps"], 2, "perhaps"),
        (["restore", "--to", "out", "--memory", "1MiB"], 2, "at least"),
        (["cat", "latest"], 2, "RUN:PATH"),
        (["cat", "latest:data"], 2, "is a directory"),
        (["cat", "latest:data/absent"], 1, "no object"),
        (["cat", "latest:data/words", "--range", "9-3"], 2, "before it begins"),
        (["cat", "latest:data/words", "--range", "far"], 2, "not a range"),
        (["cat", "latest:data/words", "--range", "39000-"], 2, "39000 bytes"),
        (["restore", "latest:data/words", "--range", "0-9", "--to", "data"], 2, "is a directory"),
        (["verify", "--memory", "1MiB", "--data"], 2, "at least"),
        (["frobnicate"], 2, "frobnicate"),
        (["runs", "--format", "xml"], 2, "xml"),
    ],
)
def test_a_request_that_makes_no_sense(
    filled: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    (filled / "other" / "data").mkdir(parents=True, exist_ok=True)
    before = tree_state(filled / "store")
    monkeypatch.chdir(filled)
    assert words in refused("-s", filled / "store", *arguments, code=code)
    assert tree_state(filled / "store") == before
    assert not list(filled.glob("out/.drystone*"))
    shutil.rmtree(filled / "out", ignore_errors=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ec", "0+2"], "0+2"),
        (["--ec", "4"], "data+parity"),
        (["--ec", "200+100"], "255"),
        (["--ec", "-1+2"], "data+parity"),
        (["--chunker", "fastcdc:1"], "takes"),
        (["--chunker", "fixed:64MiB"], "takes"),
        (["--chunker", "magic:4KiB"], "magic"),
        (["--chunker", "fixed:much"], "not a size"),
        (["--pack-size", "1"], "64 KiB to 1 GiB"),
        (["--pack-size", "2TiB"], "64 KiB to 1 GiB"),
        (["--compression", "lz4:3"], "lz4:3"),
    ],
)
def test_a_store_that_cannot_be(tmp_path: Path, refused: Callable[..., str], arguments: list[str], words: str) -> None:
    assert words in refused("init", tmp_path / "store", *arguments, code=2)
    assert not (tmp_path / "store").exists()


def test_init_refuses_a_store_a_full_directory_and_a_file(filled: Path, tmp_path: Path) -> None:
    assert "is not empty" in drystone("init", filled / "store", code=1).stderr
    assert "already" in drystone("init", filled / "store" / "backend-0", code=1).stderr
    assert "is not empty" in drystone("init", filled / "data", code=1).stderr
    assert "is not a directory" in drystone("init", filled / "data" / "words", code=1).stderr
    assert "twice" in drystone("init", tmp_path / "a", tmp_path / "a", code=2).stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("command", ["runs", "ls", "stats", "verify"])
def test_there_is_no_store(tmp_path: Path, refused: Callable[..., str], command: str) -> None:
    assert "no store at" in refused("-s", tmp_path / "nowhere", command, code=1)
    assert "is it mounted" in refused("-s", tmp_path, command, code=1)
    assert "which store" in refused(command, code=2)


def test_a_store_without_runs(tmp_path: Path) -> None:
    drystone("init", tmp_path / "store")
    assert drystone("-s", tmp_path / "store", "runs", "--json").stdout.strip() == "[]"
    assert "no run yet" in drystone("-s", tmp_path / "store", "ls", code=1).stderr
    assert drystone("-s", tmp_path / "store", "verify", "--data").returncode == 0


def set_flag(store: Path, word: str, value: int) -> None:
    for path in store.glob("*/store.json"):
        record, _ = open_json(path.read_bytes())
        record["flags"][word] = value
        path.write_bytes(seal_json(record))


def test_flags_of_a_newer_version(filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled / "store", tmp_path / "store")
    set_flag(store, "compat", 8)
    assert drystone("-s", store, "ls").returncode == 0
    set_flag(store, "ro_compat", 4)
    assert "data" in drystone("-s", store, "ls").stdout
    assert "newer version" in drystone("-s", store, "ingest", filled / "data", code=1).stderr
    set_flag(store, "incompat", 2)
    assert "0x2" in drystone("-s", store, "ls", code=1).stderr


def move_away(filled: Path, tmp_path: Path) -> Path:
    """A copy of the store, whose recorded places are out of the way."""
    shutil.copytree(filled / "store", tmp_path / "store")
    filled.joinpath("store").rename(filled / "aside")
    return tmp_path / "store"


def test_an_empty_mount_point_is_an_absent_backend(filled: Path, tmp_path: Path) -> None:
    store = move_away(filled, tmp_path)
    try:
        for number in (1, 3):
            shutil.rmtree(store / f"backend-{number}")
            (store / f"backend-{number}").mkdir()
        done = drystone("-s", store, "ingest", filled / "data", "--as", "again", code=3)
        assert "backend-1" in done.stderr
        assert not list((store / "backend-1").iterdir()), "an unmounted mount point was written to"
        assert drystone("-s", store, "restore", "--to", tmp_path / "out").returncode == 0
        assert (tmp_path / "out/again/words").read_bytes() == (filled / "data/words").read_bytes()
        shutil.rmtree(store / "backend-4")
        done = drystone("-s", store, "ingest", filled / "data", code=1)
        assert "3 of 6 backends answer, writing needs 4" in done.stderr
    finally:
        (filled / "aside").rename(filled / "store")


def test_a_name_in_the_way_of_a_restore_is_kept(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "words").write_bytes(b"mine")
    done = drystone("-s", filled / "store", "restore", "--to", tmp_path, code=3)
    assert "data/words" in done.stderr and "--overwrite" in done.stderr
    assert (tmp_path / "data" / "words").read_bytes() == b"mine"
    drystone("-s", filled / "store", "restore", "--to", tmp_path, "--overwrite", "if-changed")
    assert (tmp_path / "data" / "words").read_bytes() == (filled / "data" / "words").read_bytes()
    inode = (tmp_path / "data" / "words").stat().st_ino
    drystone("-s", filled / "store", "restore", "--to", tmp_path, "--overwrite", "if-changed")
    assert (tmp_path / "data" / "words").stat().st_ino == inode, "an equal file was written again"
    drystone("-s", filled / "store", "restore", "--to", tmp_path, "--overwrite", "always")
    assert (tmp_path / "data" / "words").stat().st_ino != inode


def test_items_that_cannot_be_read_are_named_and_the_rest_goes_in(filled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "good").write_bytes(b"good")
    os.mkfifo(source / "pipe")
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "sock"))
        store = tmp_path / "store"
        drystone("init", store)
        done = drystone("-s", store, "ingest", source, "--format", "jsonl", code=3)
    assert "sock" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines if line["type"] == "item"] == ["source/sock"]
    assert lines[-1]["type"] == "summary" and lines[-1]["skipped"] == 1
    drystone("-s", store, "restore", "--to", tmp_path / "out")
    assert (tmp_path / "out/source/good").read_bytes() == b"good"


@pytest.mark.parametrize(
    "arguments",
    one_in(2, [
        ["--help"], ["cat", "--help"], ["--version"], ["runs"], ["ls", "-R"], ["ls", "--format", "parquet"],
        ["ls", "--json"], ["stats"], ["digests"], ["cat", "latest:data/words"], ["status"], ["index", "status"],
        ["backend", "list"], ["compare", "latest:data", "data"], ["ingest", "data", "--dry-run"],
    ]),
    ids=" ".join,
)  # fmt: skip
def test_output_that_nobody_reads_ends_a_command_quietly(filled: Path, arguments: list[str]) -> None:
    assert unread(filled, arguments) == ""


@pytest.mark.parametrize(
    ("arguments", "stands"),
    one_in(
        2,
        [
            (["verify"], "the verification is done, with exit code 0"),
            (["verify", "--json"], "the verification is done, with exit code 0"),
            (["restore", "--to", "unread", "--overwrite", "always"], "all is restored into unread"),
            (["ingest", "data"], "run [0-9a-f]{8} is committed"),
        ],
        several=True,
    ),
)
def test_a_command_that_has_done_something_says_so_even_if_nobody_reads(
    filled: Path, arguments: list[str], stands: str
) -> None:
    assert re.fullmatch(f"drystone: nobody reads the output any more; {stands}\n", unread(filled, arguments))


def unread(filled: Path, arguments: list[str]) -> str:
    """Messages of a command whose output nobody reads. It ends as a tool that SIGPIPE killed."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [COMMAND, "-s", filled / "store", *arguments],
            cwd=filled, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.returncode == 141
    return done.stderr


@pytest.mark.parametrize("output", FORMATS)
def test_output_to_a_full_disk_is_no_success(filled: Path, output: str) -> None:
    with open("/dev/full", "w") as full:
        line = [COMMAND, "-s", filled / "store", "ls", "-R", "--format", output]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "drystone: writing the output failed: No space left on device\n")


def test_output_is_written_until_its_reader_has_enough(filled: Path) -> None:
    line = f"{COMMAND} -s {filled}/store cat latest:data/words | head -c 10"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=30)
    assert done.stdout == b"a dry-ston" and done.stderr == b""


def test_the_path_for_temporary_files_may_be_long(filled: Path, tmp_path: Path) -> None:
    """No socket lies there."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    drystone("-s", filled / "store", "ingest", filled / "data", env={**os.environ, "TMPDIR": str(folder)})


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


def single_options() -> Iterator[Any]:
    """Each option of each command that takes one value, and a value that it takes."""
    for names, command in commands(cli):
        for param in command.params:
            if not isinstance(param, click.Option) or param.is_flag or param.multiple:
                continue
            values = {
                "SIZE": "1GiB",
                "K+M": "4+2",
                "CHUNKER": "fixed:1MiB",
                "CODEC": "lz4",
                "[ADDR:]PORT": "1",
                "ID": "01890000-0000-7000-8000-000000000001",
            }
            value = values.get(param.type.name, "1" if isinstance(param.type, click.types.IntParamType) else "x")
            if isinstance(param.type, click.Choice):
                value = param.type.choices[0]
            yield pytest.param(names, param, value, id=" ".join([*names, param.opts[-1]]))


@pytest.mark.parametrize(("names", "option", "value"), list(single_options()))
def test_an_option_is_given_once_or_the_last_is_known_to_count(
    names: tuple[str, ...], option: click.Option, value: str
) -> None:
    command = dict(commands(cli))[names]

    def complaint(*words: str) -> str:
        try:
            command.make_context(names[-1], list(words))
        except (UsageError, click.UsageError) as error:
            return str(error)
        return ""

    twice = complaint(f"{option.opts[0]}={value}", f"{option.opts[-1]}={value}")
    assert ("is given twice" in twice) == (option.name not in LAST_COUNTS), twice
    assert "is given twice" not in complaint(f"{option.opts[0]}={value}")
    assert complaint(f"{option.opts[-1]}=").startswith(f"{'/'.join(option.opts)} is empty")


@pytest.mark.parametrize(
    "words",
    [
        ("-s", "nonsense", "-s", "{store}", "runs"),
        ("-s", "nonsense", "runs", "-s", "{store}"),
        ("-s", "{store}", "runs", "--store=nonsense"),
        ("runs", "-s", "{store}", "-s", "nonsense"),
        ("backend", "list", "--store", "nonsense", "-s{store}"),
    ],
)
def test_two_different_stores_are_refused(filled: Path, words: tuple[str, ...]) -> None:
    store = str(filled / "store")
    done = drystone(*(word.format(store=store) for word in words), code=2)
    assert not done.stdout and "nonsense" in done.stderr and store in done.stderr and "two stores" in done.stderr


def test_one_store_named_twice_is_one(filled: Path) -> None:
    store = str(filled / "store")
    for words in (("-s", store, "-s", store + "/", "runs"), ("-s", store, "runs", "-s", store)):
        assert drystone(*words, env={**os.environ, "DRYSTONE_STORE": "nonsense"}).stdout
    assert drystone("runs", env={**os.environ, "DRYSTONE_STORE": store}).stdout
    drystone("runs", env={**os.environ, "DRYSTONE_STORE": "nonsense"}, code=1)


@pytest.mark.parametrize("words", [(), ("backend",), ("index",), ("-s", "somewhere", "index")])
def test_a_command_alone_shows_its_help_as_it_is(words: tuple[str, ...]) -> None:
    done = drystone(*words, code=2)
    names = [word for word in words if word in ("backend", "index")]
    assert not done.stdout and done.stderr == drystone(*names, "--help").stdout
    assert len(done.stderr.splitlines()) > 10
    for closed in ("2>&-", "2>/dev/full", ">&-"):
        line = f"exec {COMMAND} {' '.join(words)} {closed}"
        assert subprocess.run(["bash", "-c", line], capture_output=True, timeout=30).returncode == 2


def test_all_commands_look_at_what_they_are_given() -> None:
    assert all(isinstance(command, Command) for _, command in commands(cli))
    known = {param.name for _, command in commands(cli) for param in command.params}
    assert known >= LAST_COUNTS


@pytest.mark.parametrize(
    "words", [["ls", ""], ["restore", "", "--to", "x"], ["digests", ""], ["backend", "remove", ""]]
)
def test_an_argument_that_came_out_empty_is_not_the_default(refused: Callable[..., str], words: list[str]) -> None:
    assert "is empty" in refused(*words, code=2)


def test_a_tag_has_one_value(refused: Callable[..., str]) -> None:
    for second in ("a=2", "a=1"):
        said = refused("-s", "nowhere", "ingest", "data", "--tag", "a=1", "--tag", second, "--dry-run", code=2)
        assert "two tags are called 'a'" in said


def test_several_ranges_are_written_one_behind_the_other(filled: Path, tmp_path: Path) -> None:
    words = (filled / "data" / "words").read_bytes()
    ranges = ["--range", "2-4", "--range=-3", "--range", "0-0", "--range", "3-5"]
    expected = words[2:5] + words[-3:] + words[:1] + words[3:6]
    store = ("-s", filled / "store")
    assert drystone(*store, "cat", "latest:data/words", *ranges).stdout.encode() == expected
    done = drystone(*store, "restore", "latest:data/words", *ranges, "--to", tmp_path / "parts", "--json")
    assert (tmp_path / "parts").read_bytes() == expected
    summary = json.loads(done.stdout)
    assert summary["bytes"] == 10
    assert summary["ranges"] == [
        {"range": text, "bytes": count} for text, count in (("2-4", 3), ("-3", 3), ("0-0", 1), ("3-5", 3))
    ]
    # One that makes no sense is found before anything is written.
    ranges += ["--range", "99999-"]
    bad = drystone(*store, "restore", "latest:data/words", *ranges, "--to", tmp_path / "no", code=2)
    assert "39000 bytes" in bad.stderr and not (tmp_path / "no").exists()
    assert not drystone(*store, "cat", "latest:data/words", *ranges, code=2).stdout
