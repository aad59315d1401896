"""Lists of digests: those printed are checked by the tools, and those of the tools are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from stages.checklist import Listed, format_line, parse_line

COMMAND = str(Path(sys.executable).with_name("drystone"))
NAMES = [
    b"plain",
    b"two  spaces",
    b"new\nline",
    b"back\\slash",
    b"return\r",
    b"not-utf8-\xff",
    b"*star",
    b"#hash",
    b" lead",
]


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tree of awkward names in `data`, archived with SHA-256 and MD5 and restored to `back`."""
    place = tmp_path_factory.mktemp("archived")
    folder = place / "data" / "below"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (Path(folder) / name.decode(errors="surrogateescape")).write_bytes(bytes([number]) * number * 40_000)
    (folder / "link").symlink_to("plain")
    for command in (["init", "store"], ["ingest", "data", "--digest", "sha256,md5"], ["restore", "--to", "back"]):
        store = [] if command[0] == "init" else ["-s", "store"]
        done = subprocess.run([COMMAND, *store, *command], cwd=place, capture_output=True)
        assert done.returncode == 0, done.stderr
    return place


def digests(place: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([COMMAND, "-s", "store", "digests", *arguments], cwd=place, capture_output=True)


@pytest.mark.parametrize("tool", ["sha256sum", "md5sum"])
def test_the_tools_check_what_is_printed(archived: Path, tool: str) -> None:
    printed = digests(archived, "latest", "--format", tool)
    assert printed.returncode == 0, printed.stderr
    made = subprocess.run([tool, *sorted((archived / "back").rglob("*"))], cwd=archived / "back", capture_output=True)
    assert made.stdout.count(b"\n") >= len(NAMES)
    assert printed.stdout.count(b"\n") == len(NAMES)
    check = [tool, "--check", "--strict", "--quiet", "-"]
    checked = subprocess.run(check, cwd=archived / "back", input=printed.stdout, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, b"")
    # The list is worth something: a flipped bit is found.
    victim = archived / "back" / "data" / "below" / "two  spaces"
    kept = victim.read_bytes()
    victim.write_bytes(b"x" + kept[1:])
    try:
        checked = subprocess.run(check, cwd=archived / "back", input=printed.stdout, capture_output=True)
    finally:
        victim.write_bytes(kept)
    assert (checked.returncode, checked.stdout) == (1, b"data/below/two  spaces: FAILED\n")


def test_lines_are_those_that_the_tool_prints(archived: Path) -> None:
    paths = [b"data/below/" + name for name in sorted(NAMES)]
    made = subprocess.run(["sha256sum", "--", *paths], cwd=archived / "back", capture_output=True, check=True).stdout
    assert digests(archived, "--format", "sha256sum").stdout == made


def test_blake3_is_that_of_b3sum(archived: Path) -> None:
    printed = digests(archived, "latest:data/below/plain")
    content = (archived / "data" / "below" / "plain").read_bytes()
    assert printed.stdout == blake3(content).hexdigest().encode() + b"  data/below/plain\n"


def test_files_without_the_digest_are_named(archived: Path) -> None:
    printed = digests(archived, "--format", "sha512sum")
    assert (printed.returncode, printed.stdout) == (3, b"")
    assert b"no sha512 was recorded: data/below/plain\n" in printed.stderr
    assert b"9 files are not in the list" in printed.stderr
    assert digests(archived, "latest:data/nothing").returncode == 1


def test_a_reader_that_has_enough_ends_it_quietly(archived: Path) -> None:
    line = f"{COMMAND} -s {archived}/store digests | head -c 10"
    done = subprocess.run(["bash", "-c", line], capture_output=True)
    assert (len(done.stdout), done.stderr) == (10, b"")


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=1).filter(lambda path: path[0] not in b" *\t"))
def test_a_line_is_read_as_it_was_written(digest: bytes, path: bytes) -> None:
    line = format_line(digest, path)
    assert line.count(b"\n") == 1
    assert parse_line(line) == Listed("", digest, path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"00ff  a b\n", Listed("", b"\0\xff", b"a b")),
        (b"00FF *a\r\n", Listed("", b"\0\xff", b"a")),
        (b"00ff a\n", Listed("", b"\0\xff", b"a")),
        (b"00ff\t a\n", Listed("", b"\0\xff", b"a")),
        (b"00ff   a", Listed("", b"\0\xff", b" a")),
        (b"MD5 (a (b)) = " + b"ab" * 16, Listed("md5", b"\xab" * 16, b"a (b)")),
        (b"\\MD5 (a\\nb) = " + b"ab" * 16, Listed("md5", b"\xab" * 16, b"a\nb")),
        (b"MD5 (a) = abcd", None),
        (b"CRC (a) = abcd", None),
        (b"00f  a", None),
        (b"00ff", None),
        (b"hello world", None),
        (b"\\00ff  a\\tb", None),
    ],
)
def test_lines_of_all_tools_are_read(line: bytes, expected: Listed | None) -> None:
    assert parse_line(line) == expected
