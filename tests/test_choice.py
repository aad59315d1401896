"""Which run is meant: short ids, parts of ids, latest, filters, and the run that a directory is to be compared with."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from manifests.choice import RunFilter, find_run, kinds_of_runs, short_ids
from manifests.errors import NotFound
from manifests.ids import new_id, short_id
from manifests.log import Run

COMMAND = str(Path(sys.executable).with_name("drystone"))
HERE = socket.gethostname()


def run(number: int, *sources: str, host: str = HERE, names: list[str] | None = None, **tags: str) -> Run:
    names = [os.path.basename(source) for source in sources] if names is None else names
    summary = {"host": host, "sources": list(sources), "names": names, "tags": tags}
    return Run(uuid.UUID(int=number), "2026-11-24T10:00:00.748Z", summary)


A = 0x0189_0000_0000_7000_8000_0000_1111_AAAA
B = 0x0189_0000_0001_7000_8000_0000_2222_BBBB
C = 0x0199_0000_0002_7000_8000_0189_3333_CCCC
RUNS = [
    run(A, "/home/me/data", kind="full"),
    run(B, "/etc", host="other", kind="part", x="y"),
    run(C, "-", names=["d.sql"]),
]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("latest", C), ("", C), ("1111aaaa", A), ("2222BBBB", B), ("0199", C), ("0189-0000-0000", A),
        ("01890000-0000-7000-8000-00001111aaaa", A), ("0000-2222-bbbb", B), ("aaaa", A), ("018900000001", B), ("cc", C),
    ],
)  # fmt: skip
def test_a_run_is_named_by_either_end_of_its_id(name: str, found: int) -> None:
    assert find_run(RUNS, name).run_id.int == found


@pytest.mark.parametrize(("name", "words"), [("-", "no run '-'"), ("feed", "no run 'feed'"), ("x" * 40, "no run")])
def test_what_is_no_part_of_an_id_names_no_run(name: str, words: str) -> None:
    with pytest.raises(NotFound, match=words):
        find_run(RUNS, name)


def test_an_ambiguous_part_names_the_candidates() -> None:
    with pytest.raises(NotFound) as caught:
        find_run(RUNS, "0189")
    said = str(caught.value)
    assert "names 2 runs" in said and "1111aaaa (/home/me/data on" in said and "2222bbbb (/etc on other" in said
    many = [run(A + (number << 64), "/data") for number in range(20)]
    with pytest.raises(NotFound, match=r"names 20 runs: .* and 15 more; write more"):
        find_run(many, "1111aaaa")


def test_a_short_id_is_one_though_others_begin_so() -> None:
    begins_so = run(0x1111_AAAA_0000_7000_8000_0000_0000_0001, "/x")
    assert find_run([RUNS[0], begins_so], "1111aaaa") is RUNS[0]


def test_ids_in_a_list_are_whole_where_short_ones_are_equal() -> None:
    twin = run(A + (1 << 80), "/x")
    assert short_ids([RUNS[0], RUNS[1], twin]) == {
        RUNS[0].run_id: str(RUNS[0].run_id), RUNS[1].run_id: "2222bbbb", twin.run_id: str(twin.run_id),
    }  # fmt: skip
    assert len({short_id(new_id()) for _ in range(100)}) == 100, "the end of an id is random, the beginning is the time"


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (RunFilter(), [A, B, C]), (RunFilter(host=HERE), [A, C]), (RunFilter(host="other"), [B]),
        (RunFilter(host="no"), []), (RunFilter(tags=("kind", "x=y")), [B]),
        (RunFilter(sources=("/home/me/data",)), [A]), (RunFilter(sources=("/home/me/data/",)), [A]),
        (RunFilter(sources=("/home/x/../me/data",)), [A]), (RunFilter(sources=("/home/me",)), []),
        (RunFilter(sources=("d.sql",)), [C]), (RunFilter(sources=("-",)), [C]), (RunFilter(sources=("data",)), [A]),
        (RunFilter(tags=("kind",)), [A, B]), (RunFilter(tags=("kind=full",)), [A]),
        (RunFilter(tags=("kind=",)), []), (RunFilter("other", ("/etc",), ("x",)), [B]),
    ],
)  # fmt: skip
def test_filters_fit_all_that_they_name(which: RunFilter, found: list[int]) -> None:
    assert [each.run_id.int for each in which.of(RUNS)] == found
    if found:
        assert find_run(RUNS, "latest", which).run_id.int == found[-1]
    else:
        with pytest.raises(NotFound, match=f"no run of {which}"):
            find_run(RUNS, "latest", which)


def test_the_latest_of_a_path_has_such_a_source() -> None:
    for path, found in (
        (b"data/x", A),
        (b"/home/me/data/x", A),
        (b"etc", B),
        (b"/etc/passwd", B),
        (b"d.sql", C),
        (b"no", C),
    ):
        assert find_run(RUNS, "latest", path=path).run_id.int == found
    assert [kinds_of_runs(RUNS, path) for path in (b"", b"data", b"/etc", b"no")] == [3, 1, 1, 0]
    assert kinds_of_runs([RUNS[0], run(9, "/srv/data"), run(8, "/home/me/data", host="far")], b"data/x") == 3
    assert kinds_of_runs([run(7, "/data"), run(8, "/data")]) == 1


def test_a_record_that_somebody_else_wrote_is_no_trouble() -> None:
    odd = Run(uuid.UUID(int=5), "", {"host": 7, "sources": "x", "names": [1, None], "tags": ["a"]})
    assert (odd.host, odd.sources, odd.names, odd.tags) == ("", [], ["1", "None"], {})
    assert RunFilter("h", ("s",), ("t",)).of([odd]) == [] and RunFilter().of([odd]) == [odd]


def drystone(place: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, "-s", str(place / "store"), *words],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with runs of two trees, of a part of one, of another host, and of a dump, which is the latest."""
    place = tmp_path_factory.mktemp("choice")
    for name in ("data", "etc"):
        (place / name / "sub").mkdir(parents=True)
        (place / name / "sub" / "file").write_text(name)
    subprocess.run([COMMAND, "init", str(place / "store")], check=True, capture_output=True)
    drystone(place, "ingest", "data", "-q", "--tag", "kind=full")
    drystone(place, "ingest", "etc", "-q", "--tag", "kind=full")
    drystone(place, "ingest", "data", "-q", "--host", "elsewhere")
    (place / "list").write_text("sub\n")
    drystone(place, "ingest", "data", "-q", "--files-from", "list")
    drystone(place, "ingest", "--name", "shop.sql", "--command", "-q", "--", "seq", "5")
    return place


def runs(place: Path, *words: str) -> list[dict[str, Any]]:
    found = json.loads(drystone(place, "runs", "--json", *words).stdout)
    assert isinstance(found, list)
    return found


def test_runs_shows_short_ids_tags_and_names_of_streams_and_takes_filters(place: Path) -> None:
    table = drystone(place, "runs").stdout.splitlines()
    whole = [each["run"] for each in runs(place)]
    assert [line.split()[0] for line in table[1:]] == [each[-8:] for each in whole]
    assert "tags" in table[0] and "kind=full" in table[1] and table[-1].endswith("shop.sql (from seq)")
    assert [line.split()[0] for line in drystone(place, "runs", "-v").stdout.splitlines()[1:]] == whole
    assert [each["run"] for each in runs(place, "--tag", "kind=full", "--source", "etc")] == [whole[1]]
    assert [each["run"] for each in runs(place, "--host", "elsewhere")] == [whole[2]]
    assert runs(place, "--source", "nowhere") == []


def test_a_short_id_goes_wherever_a_run_goes(place: Path, tmp_path: Path) -> None:
    short = runs(place)[0]["run"][-8:]
    assert drystone(place, "ls", short).stdout == "data\n"
    assert drystone(place, "ls", f"{short}:data/sub").stdout == "data/sub\ndata/sub/file\n"
    assert drystone(place, "cat", f"{short}:data/sub/file").stdout == "data"
    assert "data/sub/file" in drystone(place, "digests", short).stdout
    assert "equal" in drystone(place, "compare", short, "data").stdout
    assert drystone(place, "restore", short, "--to", str(tmp_path / "r")).stderr == ""
    assert (tmp_path / "r" / "data" / "sub" / "file").read_text() == "data"
    done = drystone(place, "restore", f"{short}:data/sub/file", "--range", "0-0", "--to", str(tmp_path / "p"), "--json")
    assert json.loads(done.stdout)["run"] == runs(place)[0]["run"]
    ingested = drystone(place, "ingest", "data", "--parent", short, "--dry-run")
    assert ingested.stderr == ""
    done = drystone(place, "ls", "0", code=1)
    assert "names 5 runs" in done.stderr and short in done.stderr


def test_the_latest_of_several_sources_says_which_it_is(place: Path, tmp_path: Path) -> None:
    done = drystone(place, "restore", "--to", str(tmp_path / "r"))
    short = runs(place)[-1]["run"][-8:]
    assert (
        done.stderr.startswith(f"taking run {short}, the latest: shop.sql on ") and "others see --host" in done.stderr
    )
    assert drystone(place, "restore", "--to", str(tmp_path / "q"), "-q").stderr == ""
    assert drystone(place, "ls").stdout == "shop.sql\n"
    assert drystone(place, "ls", "latest:data").stderr.startswith("taking run ")  # of two hosts, and of a list
    assert drystone(place, "ls", "latest:etc").stderr == "", "there is but one such source"
    assert drystone(place, "ls", "latest:shop.sql").stderr == ""


def test_filters_go_wherever_a_run_goes(place: Path, tmp_path: Path) -> None:
    etc = ("--source", str(place / "etc"))
    assert drystone(place, "ls", *etc).stdout == "etc\n"
    assert drystone(place, "ls", "latest", "--source", "etc", "--tag", "kind=full", "--host", HERE).stdout == "etc\n"
    assert drystone(place, "cat", "latest:etc/sub/file", *etc).stdout == "etc"
    assert "etc/sub/file" in drystone(place, "digests", *etc).stdout
    assert drystone(place, "restore", "--to", str(tmp_path / "r"), *etc).stderr == ""
    assert os.listdir(tmp_path / "r") == ["etc"]
    assert "equal" in drystone(place, "compare", str(tmp_path / "r"), *etc).stdout
    for command in (["ls"], ["digests"], ["restore", "--to", "x"], ["compare", "data"], ["cat", "latest:etc/sub/file"]):
        done = drystone(place, *command, "--host", "nobody", code=1)
        assert "no run of host nobody" in done.stderr
    short = runs(place)[0]["run"][-8:]
    assert "no run" in drystone(place, "ls", short, *etc, code=1).stderr, "an id among those that fit"
    drystone(place, "ls", f"{runs(place)[0]['run']}-0", *etc, code=2)


def test_a_directory_is_compared_with_the_latest_run_that_holds_it(place: Path, tmp_path: Path) -> None:
    """Not with the dump, nor with another host's, nor with a part of it; a directory within it, too."""
    every = [each["run"] for each in runs(place)]
    for directory, number in (("data", 0), ("etc", 1), ("data/sub", 0), ("data/../etc/sub", 1)):
        done = drystone(place, "compare", directory, "--format", "jsonl")
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (summary["run"], summary["may_be_deleted"]) == (every[number], True)
        assert done.stderr == ""
    # What no run holds is compared with the latest run that could have been restored there.
    shutil.copytree(place / "etc", tmp_path / "back" / "etc", symlinks=True)
    done = drystone(place, "compare", str(tmp_path / "back"), "--format", "jsonl")
    assert json.loads(done.stdout.splitlines()[-1])["run"] == every[1]
    assert f"taking run {every[1][-8:]}, the latest: " in done.stderr, "which of several is said"
    # A directory that came later is in no run: what lies around it is not it.
    (place / "data" / "new").mkdir()
    try:
        drystone(place, "compare", "data/new", code=3)
    finally:
        (place / "data" / "new").rmdir()


def test_whole_ids_are_shown_on_request(place: Path) -> None:
    last = runs(place)[-1]["run"]
    assert f"last run {last[-8:]} of" in drystone(place, "status").stdout
    assert f"last run {last} of" in drystone(place, "status", "-v").stdout
    assert json.loads(drystone(place, "status", "--json").stdout)["last_run"]["run"] == last
    source = place / "more"
    source.mkdir()
    done = drystone(place, "ingest", str(source), "-q", "-v")
    assert done.stdout == f"run {runs(place)[-1]['run']}\n"
