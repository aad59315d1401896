"""A path of a user is what the kernel makes of it: links before `..`, slashes at the end, names that sources share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.backends import parse_place
from manifests.errors import NotFound, UsageError
from manifests.paths import absolute_path
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions, IngestResult
from pipeline.ingest.sources import make_sources, tell_apart
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory in which `link` leads to `a/sub`, and `o` lies both beside the link and beside `a/sub`."""
    place = tmp_path / "here"
    (place / "a" / "sub").mkdir(parents=True)
    (place / "a" / "o").mkdir()
    (place / "a" / "o" / "right").write_text("beside what the link leads to")
    (place / "a" / "sub" / "inside").write_text("behind the link")
    (place / "o").mkdir()
    (place / "o" / "wrong").write_text("beside the link")
    (place / "link").symlink_to("a/sub")
    (place / "to-file").symlink_to("o/wrong")
    (place / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(place)
    return place


def ingest(store: FileStore, *sources: str, **options: str) -> IngestResult:
    return store.ingest(sources, options=IngestOptions(inline=True, **options))  # type: ignore[arg-type]


def paths(store: FileStore, selection: str = "") -> list[bytes]:
    return sorted(info.path for info in store.list(selection, recursive=True))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("link/../o", "a/o"),
        ("link/..", "a"),
        ("link/../../o", "o"),
        ("./link/./../sub/../o/", "a/o"),
        ("a/../o", "o"),
        ("a/sub/../../link", "link"),
        ("link/inside", "link/inside"),
        ("new/../r", "r"),
        (".", ""),
        ("..", ".."),
        ("link/.", "link"),
        (".//a///o", "a/o"),
    ],
)
def test_a_path_leads_where_the_kernel_would_go(here: Path, written: str, meant: str) -> None:
    expected = str(here.parent if meant == ".." else here / meant)
    assert absolute_path(written) == expected
    assert absolute_path(f"/{here}/{written}") == expected
    assert parse_place(written) == ("local", expected)
    if os.path.exists(written):
        assert os.path.samefile(written, expected)


@pytest.mark.parametrize("written", ["", "o/wrong/..", "to-file/../x", "dangling/../x"])
def test_a_path_that_cannot_be_followed_is_refused(here: Path, written: str) -> None:
    with pytest.raises(UsageError):
        absolute_path(written)


def test_the_root_is_one_slash() -> None:
    assert [absolute_path(path) for path in ("/", "//", "/..", "//usr", "/../usr/.")] == ["/", "/", "/", "/usr", "/usr"]


@pytest.mark.parametrize(
    ("written", "name", "recorded", "found"),
    one_in(
        2,
        [
            ("link/../o", b"o", "a/o", [b"o", b"o/right"]),
            ("link/../o/right", b"right", "a/o/right", [b"right"]),
            ("link", b"link", "link", [b"link"]),
            ("link/", b"link", "link/", [b"link", b"link/inside"]),
            ("link/.", b"link", "link/", [b"link", b"link/inside"]),
            ("link//", b"link", "link/", [b"link", b"link/inside"]),
            ("o/", b"o", "o", [b"o", b"o/wrong"]),
            ("./o", b"o", "o", [b"o", b"o/wrong"]),
            ("a/../o/.", b"o", "o", [b"o", b"o/wrong"]),
            ("link/..", b"a", "a", [b"a", b"a/o", b"a/o/right", b"a/sub", b"a/sub/inside"]),
            ("dangling", b"dangling", "dangling", [b"dangling"]),
        ],
        several=True,
    ),
)
def test_what_is_archived_is_what_the_source_leads_to(
    make_store: MakeStore, here: Path, written: str, name: bytes, recorded: str, found: list[bytes]
) -> None:
    store = make_store()
    result = ingest(store, written)
    assert result.exit_code == 0
    assert result.sources == [f"{here}/{recorded}"]
    assert paths(store) == found
    again = ingest(store, f"{here}/{written}")
    assert again.parent == result.run_id
    assert again.sources == result.sources


def test_a_dot_is_the_directory_that_it_is_in(
    make_store: MakeStore, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    monkeypatch.chdir(here / "link")
    for written, name in ((".", b"sub"), ("../o", b"o"), ("..", b"a"), ("./", b"sub")):
        ingest(store, written)
        assert paths(store)[0] == name


@pytest.mark.parametrize("written", ["to-file/", "o/wrong/", "dangling/", "nowhere", "to-file/../x", "nowhere/../o"])
def test_what_the_kernel_does_not_find_is_no_source(make_store: MakeStore, here: Path, written: str) -> None:
    with pytest.raises(NotFound, match=f"no such source: {written}"):
        ingest(make_store(), written)


def test_a_list_counts_as_the_kernel_does(make_store: MakeStore, here: Path) -> None:
    (here / "list").write_text("link/../o/right\nto-file/../o\nlink/\no//wrong\n./o/./wrong\na/../o\n/etc/../etc\n")
    store = make_store()
    result = ingest(store, str(here), files_from="list")
    assert paths(store) == [
        b"/etc/../etc", b"here", b"here/a", b"here/a/o", b"here/a/o/right", b"here/a/sub", b"here/a/sub/inside",
        b"here/o", b"here/o/wrong", b"to-file/../o",
    ]  # fmt: skip
    assert dict(result.tally.named_errors) == {
        b"/etc/../etc": "it does not lie below the source that the list is for",
        b"to-file/../o": "a part of its path can't be followed",
    }


def test_a_list_is_for_the_directory_behind_a_link(make_store: MakeStore, here: Path) -> None:
    """Its entries may name the directory by the link or by where it lies."""
    (here / "list").write_text(f"inside\n{here}/link/inside\n{here}/a/sub/inside\n")
    store = make_store()
    assert ingest(store, "link/", files_from="list").exit_code == 0
    assert paths(store) == [b"link", b"link/inside"]
    with pytest.raises(UsageError, match="is no directory"):
        ingest(store, "link", files_from="list")


def test_a_restore_and_a_comparison_go_where_the_kernel_would(make_store: MakeStore, here: Path) -> None:
    store = make_store()
    ingest(store, "o")
    store.restore("", "link/../r", request=RestoreRequest("", inline=True))
    assert (here / "a" / "r" / "o" / "wrong").exists()
    assert not (here / "r").exists()
    assert not equal(store, "latest:o", "link/../o")
    assert equal(store, "latest:o", "a/../o/")
    ingest(store, "link/")
    assert equal(store, "latest:link", "link/")
    assert equal(store, "latest", "link/")
    assert not equal(store, "latest:link", "link")


def equal(store: FileStore, selection: str, directory: str | Path) -> bool:
    """Whether each difference that a comparison names is none."""
    return not list(store.compare(selection, directory, data=True))


def drystone(store: FileStore, *arguments: object) -> subprocess.CompletedProcess[str]:
    place = str(Path(store.members.all[0].location).parent)
    line = [COMMAND, *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=120, env={**os.environ, "DRYSTONE_STORE": place}
    )


@pytest.mark.parametrize(
    "line",
    one_in(
        2,
        [
            ("ingest", ""),
            ("ingest", "o", ""),
            ("ingest", "--dry-run", ""),
            ("ingest", "o", "--files-from", ""),
            ("ingest", "o", "--exclude-from", ""),
            ("ingest", "o", "--checksums", ""),
            ("ingest", "o", "--metrics-dir", ""),
            ("restore", "--to", ""),
            ("restore", "latest:o/wrong", "--range", "0-1", "--to", ""),
            ("compare", ""),
            ("compare", "latest", ""),
            ("-s", "", "runs"),
            ("runs", "-s", ""),
            ("init", ""),
            ("init", "new", ""),
            ("backend", "add", ""),
        ],
    ),
)
def test_an_empty_path_is_refused(make_store: MakeStore, here: Path, line: tuple[str, ...]) -> None:
    store = make_store()
    ingest(store, "o")
    before = sorted(here.rglob("*"))
    done = drystone(store, *line)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "Traceback" not in done.stderr
    assert sorted(here.rglob("*")) == before
    assert len(store.runs()) == 1


# --- several sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["/w/data"], ["data"]),
        (["/w/x1/data", "/w/x2/data"], ["x1/data", "x2/data"]),
        (["/w/x1/data/", "/w/x2/data"], ["x1/data", "x2/data"]),
        (["/w/x1/data", "/w/x2/data", "/w/other"], ["x1/data", "x2/data", "other"]),
        (["/a/x/data", "/b/x/data", "/c/y/data"], ["a/x/data", "b/x/data", "y/data"]),
        (["/data", "/x/data"], ["data", "x/data"]),
        (["/w/x1", "/w/x1/data", "/w/x2/data"], ["x1", "w/x1/data", "x2/data"]),
        (["/other/x1", "/x1/data", "/x2/data"], ["other/x1", "x1/data", "x2/data"]),
    ],
)
def test_sources_of_one_name_are_told_apart_by_the_directories_above(places: list[str], names: list[str]) -> None:
    found = tell_apart([os.fsencode(place) for place in places])
    assert [os.fsdecode(name) for name in found] == names
    backwards = tell_apart([os.fsencode(place) for place in reversed(places)])
    assert [os.fsdecode(name) for name in reversed(backwards)] == names


@pytest.mark.parametrize(
    "places", [["/w/data", "/w/data"], ["/w/link", "/w/link/"], ["/w", "/"], ["/x1", "/x1/data", "/data"]]
)
def test_sources_that_cannot_be_told_apart_are_refused(places: list[str]) -> None:
    with pytest.raises(UsageError, match=r"two sources are called|no base name"):
        tell_apart([os.fsencode(place) for place in places])


@pytest.fixture
def twins(here: Path) -> Path:
    for number in (1, 2):
        (here / f"x{number}" / "data" / "deep").mkdir(parents=True)
        (here / f"x{number}" / "data" / "deep" / "f").write_text(f"file {number}")
        (here / f"x{number}" / "unasked").touch()
    os.chmod(here / "x2", 0o710)
    long_ago = 1_500_000_000
    for place in (here / "x1", here / "x2"):
        for path in [*place.rglob("*"), place]:
            os.utime(path, (long_ago, long_ago))
    return here


def test_sources_of_one_name_go_in_together(
    make_store: MakeStore, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.read.QUIET_NS", -4 * 10**18)
    store = make_store()
    first = ingest(store, "x1/data", "x2/data")
    assert first.exit_code == 0
    expected = [f"x{n}{below}".encode() for n in (1, 2) for below in ("", "/data", "/data/deep", "/data/deep/f")]
    assert paths(store) == expected
    assert [info.path for info in store.list()] == [b"x1", b"x2"]
    assert store.runs()[-1].summary["names"] == ["x1/data", "x2/data"]
    again = ingest(store, f"{twins}/x2/data/", "x1/./data")
    assert (again.parent, again.tally.unchanged, again.tally.files) == (first.run_id, 2, 2)
    assert sorted(paths(store)) == expected
    store.restore("", tmp_path / "back", request=RestoreRequest("", inline=True))
    assert (tmp_path / "back" / "x2" / "data" / "deep" / "f").read_text() == "file 2"
    assert (tmp_path / "back" / "x2").stat().st_mode & 0o777 == 0o710
    assert (tmp_path / "back" / "x1").stat().st_mtime == 1_500_000_000
    assert not (tmp_path / "back" / "x1" / "unasked").exists()
    assert equal(store, "latest", tmp_path / "back")
    assert equal(store, "latest:x1/data", "x1/data")


def test_patterns_count_from_each_of_the_sources(make_store: MakeStore, twins: Path) -> None:
    store = make_store()
    done = drystone(store, "ingest", "x1/data", "x2/data", "--exclude", "/deep", "--json")
    assert done.returncode == 0, done
    with FileStore.open(Path(store.members.all[0].location)) as other:
        assert paths(other) == [b"x1", b"x1/data", b"x2", b"x2/data"]


def test_one_missing_source_of_several_is_skipped_named_and_recorded(make_store: MakeStore, twins: Path) -> None:
    store = make_store()
    done = drystone(store, "ingest", "x1/data", "nothing/here", "o", "--json")
    assert done.returncode == 3, done
    assert "here: No such file or directory" in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["skipped"], summary["exit_code"]) == (1, 3)
    with FileStore.open(Path(store.members.all[0].location)) as other:
        found = {info.path: info.error for info in other.list(recursive=True)}
        assert found[b"here"] == "No such file or directory"
        assert found[b"o/wrong"] is None and found[b"data/deep/f"] is None
        assert other.runs()[-1].summary["sources"] == [f"{twins}/{name}" for name in ("x1/data", "nothing/here", "o")]
    assert drystone(store, "ingest", "x1/data", "nothing/here", "-n").returncode == 3
    nothing = drystone(store, "ingest", "nothing/here", "nor/here")
    assert nothing.returncode == 1
    assert "no such source: nothing/here, nor/here" in nothing.stderr
    (twins / "nothing").mkdir()
    (twins / "nothing" / "here").touch()
    assert ingest(store, "x1/data", "nothing/here", "o").parent is not None


# --- places in a run ------------------------------------------------------------------------------------------------


def test_an_absolute_path_is_what_was_archived_from_there(make_store: MakeStore, twins: Path, tmp_path: Path) -> None:
    store = make_store()
    ingest(store, "x1/data", "x2/data", "o")
    assert [info.path for info in store.list(f"latest:{twins}/x2/data/deep")] == [b"x2/data/deep", b"x2/data/deep/f"]
    assert [info.path for info in store.list(f"latest:/{twins}//o/")] == [b"o", b"o/wrong"]
    assert b"".join(store.open_range(f"latest:{twins}/x1/data/deep/f")) == b"file 1"
    assert [path for path, _ in store.digests(f"latest:{twins}/x1/data")] == [b"x1/data/deep/f"]
    store.restore(f"latest:{twins}/x2/data/deep", tmp_path / "back", request=RestoreRequest("", inline=True))
    assert (tmp_path / "back" / "deep" / "f").read_text() == "file 2"
    assert equal(store, f"latest:{twins}/x2/data", "x2/data")
    assert [info.path for info in store.list("latest:/o/wrong")] == [b"o/wrong"]  # as from the archive's own top
    for nowhere in (f"{twins}/x1/unasked", f"{twins}/x", str(twins)):
        with pytest.raises(NotFound, match="holds no object"):
            list(store.list(f"latest:{nowhere}"))


def test_an_absolute_path_is_found_whatever_a_source_is_called(make_store: MakeStore, here: Path) -> None:
    odd = os.fsdecode(b"\xff\\d")
    (here / odd).mkdir()
    (here / odd / "f").write_text("odd")
    store = make_store()
    ingest(store, odd)
    assert b"".join(store.open_range(f"latest:{here}/{odd}/f")) == b"odd"
    store.ingest(["o"], name="called", options=IngestOptions(inline=True))
    assert b"".join(store.open_range(f":{here}/o/wrong")) == b"beside the link"
    (here / "list").write_text("o/wrong\n/etc/hostname\n")
    store.ingest([], options=IngestOptions(inline=True, files_from="list"))
    assert [info.path for info in store.list(f":{here}/o")] == [b"here/o", b"here/o/wrong"]
    assert [info.path for info in store.list(":/etc/hostname")] == [b"root/etc/hostname"]
    ingest(store, "link/")
    assert b"".join(store.open_range(f":{here}/link/inside")) == b"behind the link"


@pytest.mark.parametrize("name", ["<(echo 1)", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_descriptor_is_no_source_and_the_message_says_what_to_do(tmp_path: Path, name: str) -> None:
    """It would be archived as a link into /proc, which leads nowhere."""
    command = Path(sys.executable).with_name("drystone")
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache"):
        pass
    script = f"echo 1 | {command} -s {tmp_path / 'store'} ingest {name}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "is an open descriptor" in line and "ingest - --name NAME <" in line


def test_sources_that_are_named_twice_are_named_by_their_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"two sources are called '{tmp_path}'"):
        make_sources([str(tmp_path), str(tmp_path)])
