"""Runs that don't read what is unchanged since their parent."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import UsageError
from manifests.ids import short_id
from pipeline.filestore import FileStore
from pipeline.ingest.checksums import ChecksumFile
from pipeline.ingest.parent import ParentOptions
from pipeline.ingest.run import IngestOptions, IngestResult
from pipeline.restore.run import RestoreRequest
from stages.parent import Comparison
from stages.select import SelectOptions
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are quiet as soon as they are written, whatever their times, for tests that don't want to wait."""
    monkeypatch.setattr("pipeline.ingest.read.QUIET_NS", -4 * 10**18)


def run(store: FileStore, *sources: Path, **options: Any) -> IngestResult:
    result = store.ingest([str(source) for source in sources], options=IngestOptions(inline=True, **options))
    assert result.exit_code == 0
    return result


def files_below(tree: Path) -> int:
    return sum(path.is_file() and not path.is_symlink() for path in tree.rglob("*"))


def rows_of(store: FileStore, result: IngestResult) -> list[dict[str, Any]]:
    """All that the manifests hold of a run's objects, by row."""
    store.catalog.use("objects")
    query = "SELECT * EXCLUDE (run) FROM objects WHERE run = ? ORDER BY row"
    return list(store.catalog.rows(query, [result.run_id.bytes]))


def restored(store: FileStore, result: IngestResult, place: Path, exit_code: int = 0) -> Path:
    done = store.restore(str(result.run_id), place, request=RestoreRequest("", inline=True, workers=1))
    assert (done.exit_code, done.failures) == (exit_code, [])
    return place


def rich_tree(root: Path, seed: int = 0) -> Path:
    """A tree that holds what a tree may hold: also hardlinks, extended attributes and holes."""
    make_tree(root, seed)
    large = root / "large"
    large.write_bytes(random.Random(seed).randbytes(400_000))
    os.link(large, root / "large-too")
    os.setxattr(large, "user.colour", b"grey")
    with open(root / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"end")
    os.truncate(root / "sparse", 2 << 20)
    with open(root / "hollow", "wb") as file:
        file.truncate(1 << 20)
    return root


# --- what is passed over ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_nothing_is_read_where_nothing_changed(make_store: MakeStore, tmp_path: Path) -> None:
    tree, store = rich_tree(tmp_path / "tree"), make_store()
    first, second = run(store, tree), run(store, tree)
    assert (first.parent, first.tally.unchanged) == (None, 0)
    assert second.parent == first.run_id
    assert second.tally.unchanged == second.tally.files == files_below(tree)
    assert second.tally.unchanged_bytes == second.tally.bytes == first.tally.bytes
    reading = next(figures for figures in second.stages if figures.stage == "read")
    assert (reading.items, reading.bytes) == (0, 0)
    assert (second.tally.new_chunks, second.tally.packs) == (0, 0)
    assert rows_of(store, second) == rows_of(store, first)
    assert_equal_trees(tree, restored(store, second, tmp_path / "out") / "tree")


def test_files_touched_within_two_seconds_of_their_reading_are_read_again(
    make_store: MakeStore, tmp_path: Path
) -> None:
    tree, store = tmp_path / "tree", make_store()
    shutil.copytree(Path(__file__).parent, tree, ignore=shutil.ignore_patterns("golden"))
    run(store, tree)
    assert run(store, tree).tally.unchanged == 0
    time.sleep(2.1)
    run(store, tree)
    third = store.ingest([str(tree)], options=IngestOptions(workers=1))  # by processes, too
    assert third.tally.unchanged == third.tally.files == files_below(tree)


def change(tree: Path, chance: random.Random) -> None:
    """Change something of a few files, each in a way of its own."""
    ways: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(chance.randbytes(chance.randrange(50_000))),
        lambda path: path.unlink(),
        lambda path: os.chmod(path, 0o640),
        lambda path: os.utime(path, ns=(1, 12345)),
        lambda path: path.rename(path.with_name(f"{path.name}-renamed-{chance.random()}")),
        lambda path: os.setxattr(path, "user.new", b"value"),
        lambda path: os.link(path, path.with_name(f"{path.name}-linked-{chance.random()}")),
        lambda path: shutil.copy2(path, path.with_name(f"{path.name}-copied-{chance.random()}")),
        lambda path: (path.unlink(), path.mkdir(), (path / "inside").write_bytes(b"inside")),
        lambda path: os.truncate(path, 2 * path.stat().st_size),
    ]
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    for way, path in zip(ways, chance.sample(files, len(ways)), strict=True):
        way(path)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", one_in(2, range(4)))
def test_passing_over_gives_what_reading_gives(make_store: MakeStore, tmp_path: Path, seed: int) -> None:
    tree, store = rich_tree(tmp_path / "tree", seed), make_store()
    run(store, tree, digests=("md5",))
    before = files_below(tree)
    for number in range(2):
        change(tree, random.Random(10 * seed + number))
        passing = run(store, tree, digests=("md5",))
        forced = run(store, tree, digests=("md5",), parent=ParentOptions(force=True))
        assert before - 12 < passing.tally.unchanged < passing.tally.files
        assert (forced.parent, forced.tally.unchanged, forced.tally.new_chunks) == (None, 0, 0)
        assert rows_of(store, passing) == rows_of(store, forced)
    store.catalog.use("extents")
    twice = 'SELECT content_id FROM extents GROUP BY content_id, "offset" HAVING count(*) > 1'
    assert list(store.catalog.rows(twice)) == []
    assert_equal_trees(tree, restored(store, passing, tmp_path / "out") / "tree")


@pytest.mark.usefixtures("at_once")
def test_the_order_of_neither_run_matters(make_store: MakeStore, tmp_path: Path) -> None:
    """Other sources before them, things left out, several readers, a list: paths are found all the same."""
    one, two = make_tree(tmp_path / "one", 1), make_tree(tmp_path / "two", 2)
    store = make_store()
    first = run(store, one, two)
    turned = run(store, two, one)
    assert (turned.parent, turned.tally.unchanged) == (first.run_id, turned.tally.files)
    some = run(store, one, two, select=SelectOptions(patterns=("dir*/",)))
    assert some.tally.unchanged == some.tally.files < first.tally.files
    alone = run(store, two, parent=ParentOptions(run=str(first.run_id)))
    assert alone.tally.unchanged == alone.tally.files == files_below(two)
    many = run(store, two, one, workers=16, memory=8 << 30, parent=ParentOptions(run=str(first.run_id)))
    assert many.tally.unchanged == many.tally.files == first.tally.files
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in sorted(one.rglob("file*"))))
    options = IngestOptions(inline=True, files_from=str(tmp_path / "list"), parent=ParentOptions(run=str(first.run_id)))
    listed = store.ingest([str(one)], options=options)
    assert listed.tally.unchanged == listed.tally.files > 0


@pytest.mark.usefixtures("at_once")
def test_the_parent_is_the_latest_run_of_the_same_host_and_sources(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_tree(tmp_path / "one", 1, files=5), make_tree(tmp_path / "two", 2, files=5)
    store = make_store()
    first = run(store, one)
    run(store, two)
    assert run(store, one, host="elsewhere").parent is None
    later = run(store, one)
    assert later.parent == first.run_id
    assert run(store, one).parent == later.run_id
    assert store.run().summary["parent"] == str(later.run_id)
    assert store.run().summary["unchanged"] == later.tally.files


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_another_file_of_the_same_size_and_times(make_store: MakeStore, tmp_path: Path) -> None:
    tree, store = tmp_path / "tree", make_store()
    tree.mkdir()
    path = tree / "file"
    path.write_bytes(b"before")
    run(store, tree)
    info = path.stat()
    (tree / "other").write_bytes(b"behind")
    os.utime(tree / "other", ns=(info.st_atime_ns, info.st_mtime_ns))
    os.replace(tree / "other", path)
    result = run(store, tree)
    assert result.tally.unchanged == 0
    assert b"".join(store.open_range("latest:tree/file")) == b"behind"


@pytest.mark.usefixtures("at_once")
def test_what_is_ignored_decides(make_store: MakeStore, tmp_path: Path) -> None:
    """A file rewritten in place whose modification time was set back is told by its change time alone; a copy with all
    its times by its inode alone, where the change time is ignored."""
    tree, store = tmp_path / "tree", make_store()
    tree.mkdir()
    path = tree / "file"
    path.write_bytes(b"before")
    first = run(store, tree)
    info = path.stat()
    with open(path, "r+b") as file:
        file.write(b"behind")
    os.setxattr(path, "user.new", b"value")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    ignoring = run(store, tree, parent=ParentOptions(comparison=Comparison(ctime=False)))
    assert ignoring.tally.unchanged == 1
    assert b"".join(store.open_range("latest:tree/file")) == b"before"
    (row,) = [row for row in rows_of(store, ignoring) if row["kind"] == "file"]
    assert b"user.new" in row["xattrs"]  # the change time would have vouched for them
    assert row["ctime_ns"] == path.stat().st_ctime_ns

    careful = run(store, tree)  # what vouches for less is no parent
    assert (careful.parent, careful.tally.unchanged) == (first.run_id, 0)
    assert b"".join(store.open_range("latest:tree/file")) == b"behind"
    with pytest.raises(UsageError, match="--ignore-ctime"):
        run(store, tree, parent=ParentOptions(run=str(ignoring.run_id)))

    shutil.copy2(path, tree / "copy")
    os.replace(tree / "copy", path)
    assert run(store, tree, parent=ParentOptions(comparison=Comparison(ctime=False))).tally.unchanged == 0
    both = ParentOptions(run=str(careful.run_id), comparison=Comparison(inode=False, ctime=False))
    assert run(store, tree, parent=both).tally.unchanged == 1


@pytest.mark.usefixtures("at_once")
def test_more_digests_than_the_parent_has_are_computed(make_store: MakeStore, tmp_path: Path) -> None:
    tree, store = make_tree(tmp_path / "tree", files=10), make_store()
    run(store, tree, digests=("sha1",))
    more = run(store, tree, digests=("sha1", "sha256"))
    assert more.tally.unchanged == 0
    fewer = run(store, tree, digests=("sha256",))
    assert fewer.tally.unchanged == fewer.tally.files
    found, read = rows_of(store, fewer), rows_of(store, more)
    assert [row["sha256"] for row in found] == [row["sha256"] for row in read]
    assert {row["sha1"] for row in found} == {None}


@pytest.mark.usefixtures("at_once")
def test_what_had_an_error_is_read_again(make_store: MakeStore, tmp_path: Path) -> None:
    tree, store = make_tree(tmp_path / "tree", files=10), make_store()
    (tmp_path / "list").write_text(f"{'0' * 64}  tree/file1\n")
    options = IngestOptions(inline=True, checksums=(ChecksumFile.parse(f"blake3:{tmp_path / 'list'}"),))
    assert store.ingest([str(tree)], options=options).checksums.differing == 1  # type: ignore[union-attr]
    again = run(store, tree)
    assert again.tally.unchanged == again.tally.files - 1


@pytest.mark.usefixtures("at_once")
def test_a_stream_has_no_parent(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    (tmp_path / "input").write_bytes(b"from a pipe")
    for _ in range(2):
        with open(tmp_path / "input", "rb") as file:
            options = IngestOptions(inline=True, stream=file.fileno())
            result = store.ingest(["-"], name="stream", options=options)
        assert (result.parent, result.tally.unchanged) == (None, 0)
    assert b"".join(store.open_range("latest:stream")) == b"from a pipe"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("table", one_in(2, ["objects", "extents", "chunks", "blocks", "packs"]))
def test_what_the_store_lost_is_stored_again(make_store: MakeStore, tmp_path: Path, table: str) -> None:
    """A manifest file that is gone from all backends: the next ingest reads and stores what only it told of."""
    tree, store = rich_tree(tmp_path / "tree"), make_store()
    first = run(store, tree)
    for file in store.state.files(table):
        for member in store.members.present.values():
            os.unlink(os.path.join(member.storage.location, file.key))
    again = store.ingest([str(tree)], options=IngestOptions(inline=True))
    assert len(again.lost_manifests) == 1
    assert table in again.lost_manifests[0]
    assert again.parent == first.run_id
    if table in ("chunks", "blocks", "packs"):
        assert again.tally.new_chunks == first.tally.new_chunks
        assert again.tally.unchanged < 20  # the empty ones, and those that are a hole
    elif table == "objects":
        assert (again.tally.unchanged, again.tally.new_chunks) == (0, 0)
    else:
        assert 0 < again.tally.unchanged < again.tally.files
    # All comes back; the exit code says that there are manifests which nobody can read.
    assert_equal_trees(tree, restored(store, again, tmp_path / "out", exit_code=3) / "tree")


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_the_command_says_what_was_not_read(make_store: MakeStore, tmp_path: Path) -> None:
    tree, store = make_tree(tmp_path / "tree", files=10), make_store()
    first = run(store, tree)
    files = files_below(tree)

    def ingest(*more: str) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, "-s", str(tmp_path / "store"), "ingest", str(tree), "--workers", "1", *more]
        return subprocess.run(command, capture_output=True, text=True)

    shown = ingest()
    assert shown.returncode == 0, shown.stderr
    assert f"unchanged     {files:>12}  not read" in shown.stdout
    assert f"as in run {short_id(first.run_id)}" in shown.stdout
    told = json.loads(ingest("--json", "--parent", str(first.run_id)).stdout)
    assert (told["parent"], told["unchanged"], told["unchanged_bytes"]) == (str(first.run_id), files, told["bytes"])
    told = json.loads(ingest("--json", "--force").stdout)
    assert (told["parent"], told["unchanged"]) == (None, 0)
    assert ingest("--force", "--parent", "latest").returncode == 2
