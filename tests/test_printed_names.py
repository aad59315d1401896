"""A name can be given back as it was printed, to every command that takes one; the literal name always wins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.choice import RunFilter
from manifests.errors import NotFound, UsageError
from manifests.escapes import shown
from manifests.printednames import _behind
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)
#: Names below the source, each with bytes of its own.
NAMES = [
    b"new\nline",
    b"bad\xff\xfe",
    b"tab\there/and\x1bthere",
    b"tab\there/c1\xc2\x85",
    b"right\xe2\x80\xaeleft",
    b"mixed \xc3\xa9\xff\\n\n",
    b"literal\\nwins",
    b"literal\nwins",
    b"plain",
    b"two\x80",
    b"two\xc2\x80",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("printed")
    source = os.fsencode(place) + b"/so\nurce"
    for name in NAMES:
        path = os.path.join(source, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"of " + name)
    with FileStore.create([place / "store"], cache=place / "cache") as store:
        assert store.ingest([os.fsdecode(source)], options=INLINE).exit_code == 0
        assert store.ingest([__file__], options=INLINE).exit_code == 0
    return place


def drystone(place: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "DRYSTONE_STORE": "store", "DRYSTONE_CACHE": str(place / "cache")}
    done = subprocess.run([COMMAND, *words], cwd=place, env=environment, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def printed(name: bytes) -> str:
    return r"so\nurce/" + shown(name)


UNIQUE = [name for name in NAMES if name not in (b"literal\nwins", b"two\x80", b"two\xc2\x80")]


@pytest.mark.parametrize("name", one_in(2, UNIQUE), ids=shown)
def test_what_ls_prints_names_the_object(place: Path, tmp_path: Path, name: bytes) -> None:
    with FileStore.open(place / "store", cache=place / "cache") as store:
        for selection in (f"latest:{printed(name)}", f"latest:{place}/{printed(name)}"):
            info = store.find(selection)
            assert info.path == b"so\nurce/" + name and b"".join(store.open_range(selection)) == b"of " + name
            assert [each.path for each in store.list(selection)] == [info.path]


@pytest.mark.parametrize("name", [b"new\nline", b"bad\xff\xfe", b"tab\there/and\x1bthere"], ids=shown)
def test_every_command_takes_it(place: Path, tmp_path: Path, name: bytes) -> None:
    selection = f"latest:{printed(name)}"
    assert drystone(place, "ls", selection).stdout.decode().strip() == printed(name)
    assert drystone(place, "cat", selection).stdout == b"of " + name
    assert drystone(place, "digests", selection).stdout.endswith(name.replace(b"\n", rb"\n") + b"\n")
    drystone(place, "restore", selection, "--to", str(tmp_path / "out"))
    with open(os.path.join(os.fsencode(tmp_path / "out"), os.path.basename(name)), "rb") as file:
        assert file.read() == b"of " + name
    drystone(place, "restore", selection, "--range", "0-1", "--to", str(tmp_path / "part"))
    assert (tmp_path / "part").read_bytes() == b"of"
    same = os.path.join(os.fsencode(place), b"so\nurce", name)
    assert b"equal: " in drystone(place, "compare", "--data", selection, os.fsdecode(same)).stdout


def test_directories_and_sources(place: Path, tmp_path: Path) -> None:
    listed = drystone(place, "ls", r"latest:so\nurce/tab\there").stdout.decode().splitlines()
    assert listed == [r"so\nurce/tab\there", r"so\nurce/tab\there/and\x1bthere", r"so\nurce/tab\there/c1\x85"]
    runs = drystone(place, "runs").stdout.decode().splitlines()
    source = next(line for line in runs if r"so\nurce" in line).split()[-1]
    assert source == rf"{place}/so\nurce"
    for name in (source, r"so\nurce"):
        rows = drystone(place, "runs", "--source", name, "--format", "csv").stdout.decode()
        assert rows.count("so") and "test_printed_names" not in rows
    with FileStore.open(place / "store", cache=place / "cache") as store, pytest.raises(NotFound, match="no run of"):
        store.run(which=RunFilter(sources=(r"so\turce",)))


def test_the_literal_name_wins_and_what_is_printed_alike_is_refused(place: Path) -> None:
    assert drystone(place, "cat", r"latest:so\nurce/literal\nwins").stdout == rb"of literal\nwins"
    assert drystone(place, "cat", "latest:so\nurce/literal\nwins").stdout == b"of literal\nwins"
    said = drystone(place, "cat", r"latest:so\nurce/two\x80", code=2).stderr.decode()
    assert r"2 objects of run" in said and r"are printed as so\nurce/two\x80" in said
    ids = said.rpartition("by its id: ")[2].strip().split(", ")
    assert {drystone(place, "cat", each).stdout for each in ids} == {b"of two\x80", b"of two\xc2\x80"}
    with FileStore.open(place / "store", cache=place / "cache") as store, pytest.raises(UsageError):
        store.find(r"latest:so\nurce/two\x80")


@pytest.mark.parametrize("name", [r"so\nurce/none\n", r"so\nurce/new\tline", r"so\nurce\nnew", r"\n", "\\"])
def test_an_escape_that_stands_for_nothing_is_not_found(place: Path, name: str) -> None:
    said = drystone(place, "cat", f"latest:{name}", code=1).stderr.decode()
    assert f"holds no object '{name}'" in said


def test_a_terminal_of_ascii_prints_other_escapes(place: Path) -> None:
    with FileStore.open(place / "store", cache=place / "cache") as store:
        text = printed(b"mixed \xc3\xa9\xff\\n\n").encode("ascii", "backslashreplace").decode()
        assert store.find(f"latest:{text}").path.endswith(b"\xc3\xa9\xff\\n\n")


@given(st.binary(max_size=4), st.binary(max_size=4))
@settings(max_examples=300, deadline=None)
def test_all_that_begins_with_bytes_lies_before_what_is_behind_them(start: bytes, rest: bytes) -> None:
    end = _behind(start)
    assert not end or start + rest < end
    assert end or not start.strip(b"\xff")
