"""Comparing a run with a directory: each kind of difference is seen, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import NotFound
from pipeline.compare import VERDICTS
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages.sourcefolders import SourceFolders
from tests.sampling import one_in
from tests.test_metadata import make_links
from tests.trees import make_tree

MakeStore = Callable[..., FileStore]
COMMAND = str(Path(sys.executable).with_name("drystone"))
#: 10**18 ns.
SECOND = "2001-09-09T01:46:40"
INLINE = IngestOptions(inline=True, workers=1)
ROOT = os.geteuid() == 0


@pytest.fixture
def archived(make_store: MakeStore, tmp_path: Path) -> tuple[FileStore, Path]:
    """A store and the tree that it holds."""
    tree = make_tree(tmp_path / "tree", 6, 30)
    (tree / "words").write_text("some words")
    os.utime(tree / "words", ns=(1, 10**18))
    os.utime(tree, ns=(1, 10**18))
    store = make_store()
    store.ingest([str(tree)], options=INLINE)
    return store, tree


def differences(
    store: FileStore, selection: str, directory: Path, *, data: bool = False
) -> dict[bytes, tuple[str, ...]]:
    """Path → verdict and what differs; the counts and the exit code agree with it."""
    comparison = store.compare(selection, directory, data=data)
    found = {each.path: (each.verdict, *each.what) for each in comparison}
    assert comparison.counts.total() == len(found)
    assert comparison.exit_code == (3 if found else 0)
    assert comparison.may_be_deleted == all(verdict == "missing" for verdict, *_ in found.values())
    return found


def test_whole_seconds_are_not_taken_for_others_where_times_are_kept_exactly(
    archived: tuple[FileStore, Path], tmp_path: Path
) -> None:
    store, tree = archived
    os.utime(tree / "words", ns=(1, 10**18 + 5))
    store.ingest([str(tree)], options=INLINE)
    for path in (tree, *tree.rglob("*")):
        os.utime(path, ns=(1, 10**18), follow_symlinks=False)
    assert differences(store, "", tree)[b"tree/words"] == (
        "changed", f"mtime {SECOND}.000000005Z → {SECOND}Z"
    )  # fmt: skip


@pytest.mark.parametrize("data", [False, True])
def test_a_tree_equals_its_archive_and_its_restore(
    archived: tuple[FileStore, Path], tmp_path: Path, data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: SourceFolders, source: int, below: bytes) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    store, tree = archived
    assert differences(store, "latest", tree, data=data) == {}
    assert differences(store, "latest:tree", tree, data=data) == {}
    store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True))
    assert differences(store, "", tmp_path / "out", data=data) == {}
    assert differences(store, "", tmp_path / "out" / "tree", data=data) == {}
    tree.rename(tmp_path / "moved")
    assert differences(store, "latest", tmp_path / "moved", data=data) == {}
    everything = store.compare("", tmp_path / "out", data=True).hashed_bytes
    assert everything > 100_000
    monkeypatch.setattr(SourceFolders, "open", refused)
    assert store.compare("", tmp_path / "out", data=True).hashed_bytes == 0


def _rewrite(path: Path) -> None:
    """Other bytes, with the length and the time that they had."""
    info = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(1, info.st_mtime_ns))


CHANGES: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("words", lambda path: path.unlink(), ("missing",)),
    ("words", lambda path: path.write_text("some more words"), ("changed", "size 10 → 15", "mtime")),
    (
        "words",
        lambda path: os.utime(path, ns=(1, 10**18 + 1)),
        ("changed", f"mtime {SECOND}Z → {SECOND}.000000001Z"),
    ),
    ("words", lambda path: path.chmod(0o4751), ("changed", "mode 0644 → 4751")),
    ("words", lambda path: (path.unlink(), path.mkdir()), ("changed", "kind file → directory")),
    ("dangling", lambda path: (path.unlink(), path.symlink_to("else")), ("changed", "mtime", "target")),
    ("pipe", lambda path: path.unlink(), ("missing",)),
    ("more", lambda path: path.write_text("more"), ("extra",)),
    ("empty/more", lambda path: path.write_text("more"), ("extra",)),
]


@pytest.mark.parametrize(("name", "change", "expected"), one_in(2, CHANGES, several=True))
def test_each_difference_is_seen(
    archived: tuple[FileStore, Path], name: str, change: Callable[[Path], object], expected: tuple[str, ...]
) -> None:
    store, tree = archived
    (tree / "words").chmod(0o644)
    store.ingest([str(tree)], options=INLINE)
    change(tree / name)
    found = differences(store, "latest", tree)
    verdict, *what = found.pop(b"tree/" + name.encode())
    assert verdict == expected[0]
    assert [each.startswith(begin) for each, begin in zip(what, expected[1:], strict=True)] == [True] * len(what)
    # Only the directory around it changed its time, too.
    assert {path: what[1][:5] for path, what in found.items()}.items() <= {
        b"tree": "mtime",
        b"tree/empty": "mtime",
    }.items()


def test_bytes_are_compared_with_data_only(archived: tuple[FileStore, Path]) -> None:
    store, tree = archived
    _rewrite(tree / "words")
    assert differences(store, "latest", tree) == {}
    assert differences(store, "latest", tree, data=True) == {b"tree/words": ("changed", "its bytes differ")}


@pytest.mark.skipif(not ROOT, reason="owners are compared as root only")
def test_owners_are_compared_as_root(archived: tuple[FileStore, Path]) -> None:
    store, tree = archived
    os.chown(tree / "words", 12, 34)
    assert differences(store, "", tree) == {b"tree/words": ("changed", "uid 0 → 12", "gid 0 → 34")}


def give_attributes(tree: Path) -> None:
    for name in ("file0", "empty", ".", "words"):
        os.setxattr(tree / name, "user.note", name.encode())
    if ROOT:
        for name in ("file0", "link", "pipe"):
            os.setxattr(tree / name, "trusted.note", b"root's", follow_symlinks=False)


@pytest.fixture
def rich(make_store: MakeStore, tmp_path: Path) -> tuple[FileStore, Path]:
    """A store and the tree that it holds: with attributes, hardlinks, holes, and owners and devices as root."""
    tree = make_tree(tmp_path / "tree", 6, 20)
    (tree / "words").write_text("some words")
    make_links(tree / "empty")
    with open(tree / "sparse", "wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    if ROOT:
        os.chown(tree / "words", 1234, 4321)
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    give_attributes(tree)
    store = make_store()
    assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    return store, tree


@pytest.mark.parametrize("data", [False, True])
def test_a_tree_with_everything_equals_its_archive_and_its_restore(
    rich: tuple[FileStore, Path], tmp_path: Path, data: bool
) -> None:
    store, tree = rich
    assert differences(store, "", tree, data=data) == {}
    assert store.restore("", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert differences(store, "", tmp_path / "out", data=data) == {}
    assert differences(store, ":tree/empty/b", tmp_path / "out" / "tree" / "empty" / "b", data=data) == {}


@pytest.mark.parametrize("name", one_in(2, ["file0", "empty", ".", "words"]))
def test_each_change_of_an_attribute_is_seen(rich: tuple[FileStore, Path], name: str) -> None:
    store, tree = rich
    path = os.path.normpath(f"tree/{name}").encode()
    for value, how in ((b"else", "differs"), (None, "is missing")):
        if value is None:
            os.removexattr(tree / name, "user.note")
        else:
            os.setxattr(tree / name, "user.note", value)
        assert differences(store, "", tree) == {path: ("changed", f"extended attribute user.note {how}")}
    os.setxattr(tree / name, "user.note", os.path.basename(name).encode())
    os.setxattr(tree / name, "user.more", b"")
    assert differences(store, "", tree) == {path: ("changed", "extended attribute user.more is extra")}


@pytest.mark.skipif(not ROOT, reason="only root may set these attributes")
@pytest.mark.parametrize("name", ["file0", "link", "pipe"])
def test_attributes_of_what_is_not_followed_or_opened(rich: tuple[FileStore, Path], name: str) -> None:
    store, tree = rich
    os.setxattr(tree / name, "trusted.note", b"else", follow_symlinks=False)
    expected = {f"tree/{name}".encode(): ("changed", "extended attribute trusted.note differs")}
    assert differences(store, "", tree) == expected


def same_time(path: Path, change: Callable[[], object]) -> None:
    """Let `change` happen in a directory without its time changing."""
    info = path.stat()
    change()
    os.utime(path, ns=(1, info.st_mtime_ns))


def test_names_that_are_no_longer_names_of_one_file(rich: tuple[FileStore, Path]) -> None:
    store, tree = rich
    third = tree / "empty" / "b" / "third"

    def part() -> None:
        shutil.copy2(third, third.with_name("copy"))
        third.with_name("copy").rename(third)

    same_time(third.parent, part)
    first = b"tree/empty/a/deep/second"
    assert differences(store, "", tree) == {b"tree/empty/b/third": ("changed", f"hardlinks {first!r} → none")}
    # A name that is not there is missing, and nothing else; the names of one part alone are equal to it.
    same_time(third.parent, third.unlink)
    assert differences(store, "", tree) == {b"tree/empty/b/third": ("missing",)}
    assert differences(store, ":tree/empty/a", tree / "empty" / "a") == {}


def test_names_that_became_names_of_one_file(rich: tuple[FileStore, Path]) -> None:
    store, tree = rich
    for name in ("one", "two"):
        (tree / name).write_text("twins")
        os.utime(tree / name, ns=(1, 10**18))
    store.ingest([str(tree)], options=INLINE)
    assert differences(store, "", tree) == {}
    same_time(tree, lambda: ((tree / "two").unlink(), os.link(tree / "one", tree / "two")))
    assert differences(store, "", tree) == {b"tree/two": ("changed", "hardlinks none → b'tree/one'")}


def as_somebody(place: Path, check: Callable[[], object]) -> None:
    """Let a process do `check` that has no rights of root's, having given them up where it must. It has all modules
    loaded already."""
    for path in (place, *place.parents, place / "store", *(place / "store").rglob("*")):
        if ROOT:
            path.chmod(path.stat().st_mode | 0o755)
    child = os.fork()
    if child == 0:
        try:
            if ROOT:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def opened_anew(store: FileStore, cache: Path) -> Callable[[], FileStore]:
    """For a process of its own: DuckDB's threads do not survive a fork."""
    store.close()
    cache.mkdir()
    cache.chmod(0o777)
    location = Path(next(iter(store.members.present.values())).storage.location).parent
    for path in (location, *location.rglob("*")):
        path.chmod(0o755)  # to be read by somebody else
    return lambda: FileStore.open(location, cache=cache)


def test_what_can_not_be_read_is_said_and_never_missing(archived: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, tree = archived
    (tree / "closed").mkdir()
    (tree / "closed" / "inner").write_text("inner")
    for name in ("closed0", "words"):  # `closed0` sorts beside what lies in `closed`
        (tree / name).write_text("words")
    store.ingest([str(tree)], options=INLINE)
    (tree / "closed0").unlink()
    (tree / "words").chmod(0o000)
    (tree / "closed").chmod(0o000)
    reopened = opened_anew(store, tmp_path / "own-cache")

    def check() -> None:
        with reopened() as anew:
            found = differences(anew, "", tree, data=True)
            assert found[b"tree/closed"][:2] == ("unreadable", "listing it failed: Permission denied")
            assert found[b"tree/words"][:2] == ("unreadable", "reading it failed: Permission denied")
            assert found[b"tree/closed0"] == ("missing",)
            assert b"tree/closed/inner" not in found

    try:
        as_somebody(tmp_path, check)
    finally:
        (tree / "closed").chmod(0o755)


def test_owners_and_roots_attributes_are_compared_as_root_only(rich: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, tree = rich
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o555)
    store.ingest([str(tree)], options=INLINE)
    if ROOT:
        os.chown(tree / "words", 12, 34)
        os.setxattr(tree / "file0", "trusted.note", b"else")
        os.removexattr(tree / "link", "trusted.note", follow_symlinks=False)
    reopened = opened_anew(store, tmp_path / "own-cache")

    def check() -> None:
        with reopened() as anew:
            assert differences(anew, "", tree, data=True) == {}
            os.makedirs(tmp_path / "own-cache" / "out")
            result = anew.restore("", tmp_path / "own-cache" / "out", request=RestoreRequest("", inline=True))
            found = differences(anew, "", tmp_path / "own-cache" / "out", data=True)
            assert found.keys() == {path for path, _ in result.failures}, found

    as_somebody(tmp_path, check)


def test_what_is_not_archived_whole_differs(make_store: MakeStore, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))
        store = make_store()
        assert store.ingest([str(tree)], options=INLINE).exit_code == 3
        assert differences(store, "", tree) == {b"tree/socket": ("incomplete", "sockets are not archived")}


def test_a_run_of_several_sources_is_compared_with_what_restore_makes(make_store: MakeStore, tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_tree(tmp_path / "from" / name, 1, 5)
    store = make_store()
    store.ingest([str(tmp_path / "from" / "one"), str(tmp_path / "from" / "other")], options=INLINE)
    assert differences(store, "", tmp_path / "from") == {}
    (tmp_path / "from" / "stray").mkdir()
    (tmp_path / "from" / "stray" / "file").write_text("not archived")
    assert differences(store, "", tmp_path / "from") == {b"stray": ("extra",)}
    shutil.rmtree(tmp_path / "from" / "one")
    found = differences(store, "", tmp_path / "from")
    assert {verdict for verdict, *_ in found.values()} == {"missing", "extra"}
    assert found[b"one/empty"] == ("missing",)
    assert differences(store, ":other", tmp_path / "from" / "other") == {}


def test_the_directory_from_which_a_run_was_made_is_never_taken_for_its_parent(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """A source that holds an entry of its own name: what lies beside that entry is in the archive or not."""
    tree = tmp_path / "data"
    (tree / "data").mkdir(parents=True)
    store = make_store()
    store.ingest([str(tree)], options=INLINE)
    assert differences(store, "", tree) == {}
    (tree / "new").write_text("not archived")
    os.utime(tree, ns=(1, 10**18))
    assert differences(store, "", tree)[b"data/new"] == ("extra",)


def test_a_run_of_one_file_is_looked_for_in_the_directory(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("content")
    store = make_store()
    store.ingest([str(tmp_path / "from" / "file")], options=INLINE)
    assert differences(store, "", tmp_path / "from", data=True) == {}
    assert differences(store, "", tmp_path / "from" / "file", data=True) == {}
    (tmp_path / "from" / "file").rename(tmp_path / "from" / "other")
    assert differences(store, "", tmp_path / "from") == {b"file": ("missing",), b"other": ("extra",)}


def test_what_is_not_there_is_said(archived: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, tree = archived
    with pytest.raises(NotFound, match="no directory"):
        store.compare("", tmp_path / "nowhere")
    with pytest.raises(NotFound, match="no object"):
        store.compare(":tree/nowhere", tree)


def test_the_command_says_whether_the_directory_may_go(archived: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, tree = archived
    place = next(iter(store.members.present.values())).storage.location

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([COMMAND, "-s", place, "compare", *arguments], capture_output=True, text=True)

    done = run(str(tree), "--data")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("is in the archive; it may be deleted\n")
    (tree / "words").unlink()
    (tree / "more").write_text("more")
    done = run("latest", str(tree))
    lines = done.stdout.splitlines()
    assert done.returncode == 3
    assert lines[1:3] == ["extra    tree/more", "missing  tree/words"]
    assert lines[-1].startswith("do not delete")
    *items, summary = map(json.loads, run(":tree", str(tree), "--format", "jsonl").stdout.splitlines())
    assert {(item["verdict"], item["path"]) for item in items} >= {("extra", "tree/more"), ("missing", "tree/words")}
    assert {name: summary[name] for name in VERDICTS} == {
        "missing": 1,
        "extra": 1,
        "changed": 1,
        "incomplete": 0,
        "unreadable": 0,
    }
    assert not summary["may_be_deleted"]
    assert run("one", "two", "three").returncode == 2
