"""Lists of paths: what they name goes in once, with the directories on the way; nothing is held in memory whole."""

from __future__ import annotations

import io
import os
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import DrystoneError, UsageError
from pipeline.filestore import FileStore
from pipeline.ingest import filelist
from pipeline.ingest.filelist import read_list, sort_list
from pipeline.ingest.run import IngestOptions, IngestResult
from pipeline.restore.run import RestoreRequest
from stages.scan import Source
from stages.select import CACHE_SIGNATURE, SelectOptions

MakeStore = Callable[..., FileStore]
HERE = Source(b"/home/me", b"me")
ROOT = Source(b"/", b"root")


def sorted_entries(text: bytes, *sources: Source, nul: bool = False) -> list[tuple[int, bytes]]:
    with sort_list(io.BytesIO(text), sources or (HERE,), nul=nul)[0] as file:
        return [tuple(entry) for entry in read_list(os.dup(file.fileno()))]


def test_entries_count_from_the_source_and_absolute_ones_are_found_below_it() -> None:
    text = b"b/x\n\n./a//c\n/home/me/b\n/home/meander/x\n/etc\n../you\nb/../b.d\n.\nb"
    inside = [(0, b""), (0, b"a/c"), (0, b"b"), (0, b"b"), (0, b"b/x"), (0, b"b.d")]
    assert sorted_entries(text) == [(-1, b"/etc"), (-1, b"/home/meander/x"), (-1, b"../you"), *inside]
    outside = [(1, b"etc"), (1, b"home/meander/x"), (1, b"home/you")]
    assert sorted_entries(text, HERE, ROOT) == [*inside, *outside]


def test_nul_and_newline_are_told_apart() -> None:
    assert sorted_entries(b"new\nline\0b\0\0", nul=True) == [(0, b"b"), (0, b"new\nline")]
    with pytest.raises(UsageError, match="-0"):
        sorted_entries(b"a\0b\0")
    with pytest.raises(UsageError, match="more than"):
        sorted_entries(b"a" * (3 << 20))


def test_a_list_that_cannot_be_read_is_named() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(DrystoneError, match="list of paths failed: Input/output error"):
        sort_list(Broken(), (HERE,), nul=False)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(
        st.lists(st.sampled_from([b"a", b"b", b"a.b", b"a!", b"\xff"]), min_size=1, max_size=4), min_size=1
    )
)
def test_sorting_in_pieces_is_sorting(entries: list[list[bytes]]) -> None:
    expected = [(0, b"/".join(parts)) for parts in sorted(entries)]
    text = b"\n".join(b"/".join(parts) for parts in entries)
    for piece in (1, 200, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filelist, "SORTED_BYTES", piece)
            patch.setattr(filelist, "PIECE_READ", 7)
            assert sorted_entries(text) == expected


@pytest.mark.parametrize(("text", "nul"), [(b"", False), (b"\n\n", False), (b"\0", True), (b"\xef\xbb\xbf", False)])
def test_a_list_that_names_nothing_is_refused(text: bytes, nul: bool) -> None:
    with pytest.raises(UsageError, match="standard input names nothing to archive"):
        sort_list(io.BytesIO(text), (HERE,), nul=nul, name="-")


def test_many_names_need_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelist, "SORTED_BYTES", 512 << 10)
    chance = random.Random(1)
    with open(tmp_path / "list", "wb") as file:
        for number in range(60_000):
            file.write(b"%012x/%012x/%012x\n" % (chance.randrange(99), number, number))
    tracemalloc.start()
    try:
        with open(tmp_path / "list", "rb") as file, sort_list(file, (HERE,), nul=False)[0] as listed:
            count = sum(1 for _ in read_list(os.dup(listed.fileno())))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 60_000
    assert peak < 4 << 20, "as objects the list would be 5 MB, and twice that with its keys"


@pytest.fixture
def ingest_list(make_store: MakeStore, tmp_path: Path) -> Callable[..., IngestResult]:
    """A function that archives, from `tmp_path`, what a list names."""
    store = make_store()

    def ingest(text: bytes, *paths: str, **more: object) -> IngestResult:
        (tmp_path / "list").write_bytes(text)
        options = IngestOptions(inline=True, workers=1, files_from=str(tmp_path / "list"))
        name = str(more.pop("name", ""))
        return store.ingest(paths, name=name, options=replace(options, **more))  # type: ignore[arg-type]

    ingest.store = store  # type: ignore[attr-defined]
    return ingest


def rows(ingest: Callable[..., IngestResult]) -> list[tuple[str, str | None]]:
    store: FileStore = ingest.store  # type: ignore[attr-defined]
    return [(info.path.decode(), info.error) for info in store.list(recursive=True)]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, called `here`."""
    here = tmp_path / "here"
    for name in ("a/b/c", "a/b/d", "a/e", "f", "g/h"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(name.encode())
    (here / "link").symlink_to("a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"other")
    for folder in ("a/b", "a", "."):
        os.chmod(here / folder, 0o710)
        os.utime(here / folder, ns=(1, 10**18))
    monkeypatch.chdir(here)
    return here


def test_listed_objects_bring_their_directories_and_come_back(
    ingest_list: Callable[..., IngestResult], tree: Path, tmp_path: Path
) -> None:
    result = ingest_list(b"f\na/b/c\na/b/c\n\n./a/b/../e\n")
    assert result.exit_code == 0 and result.sources == [str(tree)]
    paths = ["here", "here/a", "here/a/b", "here/a/b/c", "here/a/e", "here/f"]
    assert rows(ingest_list) == [(path, None) for path in paths]
    store: FileStore = ingest_list.store  # type: ignore[attr-defined]
    assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    for path in paths:
        one, other = (tmp_path / path).stat(), (tmp_path / "out" / path).stat()
        assert (one.st_mode, one.st_mtime_ns) == (other.st_mode, other.st_mtime_ns), path
    assert (tmp_path / "out/here/a/b/c").read_bytes() == b"a/b/c"


def test_a_listed_directory_goes_in_whole_and_once(ingest_list: Callable[..., IngestResult], tree: Path) -> None:
    assert ingest_list(b"a/b/c\na/b\na\ng").exit_code == 0
    names = ["", "/a", "/a/e", "/a/b", "/a/b/c", "/a/b/d", "/g", "/g/h"]
    assert rows(ingest_list) == [(f"here{name}", None) for name in names]
    assert ingest_list(b".\na").exit_code == 0
    assert len(rows(ingest_list)) == 10


def test_what_is_missing_or_no_place_for_names_is_a_row(ingest_list: Callable[..., IngestResult], tree: Path) -> None:
    result = ingest_list(b"gone/x\ngone/y\nf/x\nlink/e\nlink\na/e\n")
    assert result.exit_code == 3
    assert dict(rows(ingest_list)) == {
        "here": None,
        "here/a": None,
        "here/a/e": None,
        "here/f/x": "a part of its path is no directory",
        "here/gone/x": "No such file or directory",
        "here/gone/y": "No such file or directory",
        "here/link": None,
        "here/link/e": "a part of its path is no directory",
    }


def test_paths_elsewhere(ingest_list: Callable[..., IngestResult], tree: Path, tmp_path: Path) -> None:
    text = os.fsencode(tmp_path / "other" / "file") + b"\n" + os.fsencode(tree / "f") + b"\n"
    result = ingest_list(text)
    assert result.exit_code == 0 and result.sources == [str(tree), "/"]
    found = dict(rows(ingest_list))
    assert f"root{tmp_path}/other/file" in found and "here/f" in found and "root/tmp/here" not in found
    assert ingest_list(text, ".").exit_code == 3
    assert dict(rows(ingest_list))[f"{tmp_path}/other/file"] == "it does not lie below the source that the list is for"
    assert ingest_list(text, "/", name="all").exit_code == 0
    assert {f"all{tmp_path}/other/file", f"all{tree}/f"} < dict(rows(ingest_list)).keys()


def test_lists_are_selected_from(ingest_list: Callable[..., IngestResult], tree: Path) -> None:
    (tree / "g" / "CACHEDIR.TAG").write_bytes(CACHE_SIGNATURE)
    (tree / "a" / "large").write_bytes(bytes(100))
    select = SelectOptions(("b", "/f"), caches=True, larger_than=50)
    result = ingest_list(b"a/b/c\na/b/d\na/e\na/large\nf\ng/h\n", select=select)
    assert [path for path, _ in rows(ingest_list)] == ["here", "here/a", "here/a/e", "here/g", "here/g/CACHEDIR.TAG"]
    assert {reason: objects for reason, (objects, _) in result.left_out.items()} == {
        "pattern": 2,
        "cache": 1,
        "size": 1,
    }


def test_workers_get_the_list_too(ingest_list: Callable[..., IngestResult], tree: Path) -> None:
    assert ingest_list(b"a/b\0f\0", inline=False, workers=2, nul=True).exit_code == 0
    paths = ["here", "here/a", "here/a/b", "here/a/b/c", "here/a/b/d", "here/f"]
    assert [path for path, _ in rows(ingest_list)] == paths
