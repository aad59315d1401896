"""Restores into file systems that take two names for one, keep times coarsely, or lack links: what they can't hold is
named, nothing is mixed up, and the rest is there."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest, RestoreResult
from tests.oddfs import odd_file_system, unmounted
from tests.sampling import one_in
from tests.trees import link_groups

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)
#: Times that no file system of whole seconds keeps.
NOW = 1_600_000_001_123_456_789


def archive(place: Path, tree: Path) -> Path:
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, ns=(NOW, NOW), follow_symlinks=False)
    os.utime(tree, ns=(NOW, NOW))
    with FileStore.create([place / "store"], cache=place / "cache") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    return place / "store"


def restore(store: Path, to: Path, overwrite: str = "never", *, inline: bool = True) -> RestoreResult:
    with FileStore.open(store, cache=store.parent / "cache") as opened:
        request = RestoreRequest("", overwrite, inline=inline, workers=1 if inline else 2)
        return opened.restore("latest", to, request=request)


def content(place: Path) -> dict[str, bytes | str]:
    """Files and symlinks below `place` by path."""
    found: dict[str, bytes | str] = {}
    for path in place.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(place))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(place))] = path.read_bytes()
    return found


# --- names that are one ----------------------------------------------------------------------------------------------

PAIRS = {"case": ("R", "r"), "nfd": ("caf\u00e9", "cafe\u0301")}


@pytest.mark.parametrize("inline", one_in(2, [False, True]))
@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
@pytest.mark.parametrize("fold", ["case", "nfd"])
def test_two_names_that_are_one_are_never_one_silently(tmp_path: Path, fold: str, overwrite: str, inline: bool) -> None:
    tree, names = tmp_path / "tree", PAIRS[fold]
    tree.mkdir()
    archived = {name: os.fsencode(f"content of {len(name)} {name[-1:]}!") for name in names}
    archived = {name: data.ljust(40) for name, data in archived.items()}  # equal sizes and times
    for name, data in archived.items():
        (tree / name).write_bytes(data)
    (tree / "plain").write_bytes(b"plain")
    store = archive(tmp_path, tree)
    with odd_file_system(tmp_path, fold) as odd:
        for attempt in range(3):  # into an empty directory, and over what is there
            result = restore(store, odd / "out", overwrite, inline=inline)
            held = content(odd / "out" / "tree")
            assert held.pop("plain") == b"plain"
            assert len(held) == 1, held
            (there,) = held.values()
            failed = [os.fsdecode(path).removeprefix("tree/") for path, _ in result.failures]
            assert result.exit_code == 3, attempt
            assert set(failed) <= set(names) and failed
            # Whatever is not named is there, with its own bytes.
            assert all(archived[name] == there for name in names if name not in failed)
            assert "restore this one into another directory" in result.failures[0][1]


@pytest.mark.parametrize("overwrite", one_in(2, ["never", "always"]))
@pytest.mark.parametrize("fold", ["case", "nfd"])
def test_directories_that_are_one_are_not_mixed(tmp_path: Path, fold: str, overwrite: str) -> None:
    tree, names = tmp_path / "tree", PAIRS[fold]
    for name in names:
        (tree / name / "deep").mkdir(parents=True)
        (tree / name / "same").write_bytes(f"of {name!a}".encode())
        (tree / name / f"only {len(name)}{name[0].isupper()}").write_bytes(b"own")
        (tree / name / "deep" / "file").write_bytes(f"deep in {name!a}".encode())
    store = archive(tmp_path, tree)
    with odd_file_system(tmp_path, fold) as odd:
        for _ in range(2):
            result = restore(store, odd / "out", overwrite)
            assert result.exit_code == 3
            (there,) = os.listdir(odd / "out" / "tree")
            failed = {os.fsdecode(path) for path, _ in result.failures}
            lost = {name for name in names if f"tree/{name}" in failed}
            assert len(lost) == 1
            kept = next(name for name in names if name not in lost)
            assert content(odd / "out" / "tree" / there) == content(tree / kept)
            (other,) = lost
            below = {str(path.relative_to(tree.parent)) for path in (tree / other).rglob("*")}
            assert failed == {f"tree/{other}", *below}


def test_a_file_a_link_and_a_directory_of_one_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "Name").mkdir(parents=True)
    (tree / "Name" / "file").write_bytes(b"in the directory")
    (tree / "NAME").write_bytes(b"a file")
    (tree / "name").symlink_to("elsewhere")
    os.mkfifo(tree / "nAME")
    store = archive(tmp_path, tree)
    with odd_file_system(tmp_path, "case") as odd:
        result = restore(store, odd / "out")
        assert result.exit_code == 3
        assert {path for path, _ in result.failures} == {b"tree/NAME", b"tree/name", b"tree/nAME"}
        assert content(odd / "out" / "tree") == {"Name/file": b"in the directory"}


def test_hardlinks_among_names_that_are_one(tmp_path: Path) -> None:
    """Of the objects A and B each has a name that folds with one of the other; no name is linked to the other's bytes,
    though size and time are equal."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, others in (("X", ("a1", "A2")), ("x", ("b1", "a2"))):
        (tree / name).write_bytes(name.encode() * 10)
        for other in others:
            os.link(tree / name, tree / other)
    store = archive(tmp_path, tree)
    with odd_file_system(tmp_path, "case") as odd:
        result = restore(store, odd / "out")
        assert result.exit_code == 3 and result.failed == 2
        failed = {os.fsdecode(path).removeprefix("tree/") for path, _ in result.failures}
        held = content(odd / "out" / "tree")
        assert set(held) == {path.name for path in tree.iterdir()} - failed
        assert held == {name: data for name, data in content(tree).items() if name in held}
        assert {name: len(group) for group in link_groups(odd / "out" / "tree") for name in group}


def test_what_stood_there_under_another_spelling_is_not_replaced(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "readme").write_bytes(b"archived")
    store = archive(tmp_path, tree)
    with odd_file_system(tmp_path, "case") as odd:
        (odd / "out" / "tree").mkdir(parents=True)
        (odd / "out" / "tree" / "README").write_bytes(b"precious")
        result = restore(store, odd / "out", "always")
        assert result.exit_code == 3
        assert "takes its name for that of 'README'" in result.failures[0][1]
        assert content(odd / "out" / "tree") == {"README": b"precious"}


@pytest.mark.parametrize("overwrite", ["never", "always"])
def test_two_restores_at_once_never_mix(tmp_path: Path, overwrite: str) -> None:
    trees = {}
    for run in ("one", "two"):
        tree = tmp_path / run / "tree"
        for folder in range(12):
            (tree / f"dir{folder}").mkdir(parents=True)
            for number in range(40):
                (tree / f"dir{folder}" / f"file{number}").write_bytes(f"{run} {folder} {number} ".encode() * 500)
        trees[run] = tree
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        runs = {run: str(store.ingest([str(tree)], options=INLINE).run_id) for run, tree in trees.items()}
    out = tmp_path / "out"
    line = [COMMAND, "-s", tmp_path / "store", "restore", "--to", out, "--overwrite", overwrite, "--json"]
    processes = [
        subprocess.Popen([*line, runs[run]], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for run in ("one", "two")
    ]
    ended = [(process.communicate(timeout=100), process.returncode) for process in processes]
    assert {code for _, code in ended} <= {0, 3}, ended
    held, one, two = content(out / "tree"), content(trees["one"]), content(trees["two"])
    assert held.keys() == one.keys()
    assert all(data in (one[name], two[name]) for name, data in held.items())
    if overwrite == "never":  # what is not of a run was named by it
        for ((_, said), code), tree in zip(ended, (one, two), strict=True):
            missing = [name for name, data in held.items() if data != tree[name]]
            assert (code == 3) == bool(missing) or code == 3
            named = said.decode()
            assert all(f"tree/{name}:" in named for name in missing) or "more" in named
    assert os.listdir(out) == ["tree"]


# --- what file systems lack ------------------------------------------------------------------------------------------


def make_links(tree: Path) -> None:
    (tree / "folder").mkdir(parents=True)
    (tree / "first").write_bytes(b"content")
    (tree / "large").write_bytes(bytes(range(256)) * 20_000 + bytes(2 << 20))
    (tree / "empty").touch()
    os.symlink("first", tree / "link")
    for name in ("first", "large", "empty", "link"):
        os.link(tree / name, tree / "folder" / name, follow_symlinks=False)


@pytest.mark.parametrize("lacks", one_in(2, [("nolink",), ("nolink", "noflags"), ("nolink", "coarse", "case")]))
@pytest.mark.parametrize("inline", [True, False])
def test_where_no_hardlinks_can_be_made_all_names_are_copies(
    tmp_path: Path, lacks: tuple[str, ...], inline: bool
) -> None:
    make_links(tmp_path / "tree")
    store = archive(tmp_path, tmp_path / "tree")
    with odd_file_system(tmp_path, *lacks) as odd:
        result = restore(store, odd / "out", inline=inline)
        assert (result.exit_code, result.failures) == (0, [])
        assert content(odd / "out" / "tree") == content(tmp_path / "tree")
        assert os.listdir(odd / "out") == ["tree"]
        again = restore(store, odd / "out", inline=inline)
        assert (again.exit_code, again.failures, again.in_place) == (0, [], again.files)


def test_where_no_symlinks_can_be_made_each_is_named(tmp_path: Path) -> None:
    make_links(tmp_path / "tree")
    store = archive(tmp_path, tmp_path / "tree")
    with odd_file_system(tmp_path, "nolink", "nosymlink") as odd:
        result = restore(store, odd / "out")
        assert result.exit_code == 3
        assert {path for path, _ in result.failures} == {b"tree/link", b"tree/folder/link"}
        assert content(odd / "out" / "tree") == {
            name: data for name, data in content(tmp_path / "tree").items() if isinstance(data, bytes)
        }


def test_a_file_system_without_modes_gets_all_files_and_a_word_for_each(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"content")
    (tmp_path / "tree" / "file").chmod(0o640)
    store = archive(tmp_path, tmp_path / "tree")
    with odd_file_system(tmp_path, "nomode") as odd:
        result = restore(store, odd / "out")
        assert result.exit_code == 3
        assert (odd / "out" / "tree" / "file").read_bytes() == b"content"
        assert "its mode could not be set: Operation not permitted" in dict(result.failures)[b"tree/file"]


# --- coarse times ----------------------------------------------------------------------------------------------------


@contextmanager
def small_inodes(place: Path) -> Iterator[Path]:
    """An ext4 of 128-byte inodes, which keep whole seconds up to 2038."""
    image, point = place / "image", place / "ext4"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", image], capture_output=True, check=True)
    point.mkdir()
    try:
        if subprocess.run(["mount", "-o", "loop", image, point], capture_output=True).returncode:
            pytest.skip("no ext4 of small inodes can be mounted here")
        yield point
    finally:
        busy = unmounted(point)
    assert not busy, "descriptors of the target are still open"


def compared(store: Path, target: Path) -> list[tuple[bytes, tuple[str, ...]]]:
    with FileStore.open(store, cache=store.parent / "cache") as opened:
        return [(found.path, found.what) for found in opened.compare("latest", target)]


@pytest.mark.parametrize("kind", one_in(2, ["ext4", "coarse"]))
@pytest.mark.parametrize("when", [NOW, 20 * 10**17])
def test_times_are_equal_as_the_file_system_keeps_them(tmp_path: Path, kind: str, when: int) -> None:
    if kind == "ext4" and (os.geteuid() != 0 or shutil.which("mkfs.ext4") is None):
        pytest.skip("mounting an ext4 takes root and mkfs.ext4")
    tree = tmp_path / "tree"
    make_links(tree)
    store = archive(tmp_path, tree)
    for path in tree.rglob("*"):
        os.utime(path, ns=(when, when), follow_symlinks=False)
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        assert opened.ingest([str(tree)], options=INLINE).exit_code == 0
    with small_inodes(tmp_path) if kind == "ext4" else odd_file_system(tmp_path, "coarse") as mounted:
        result = restore(store, mounted / "out")
        assert (result.exit_code, result.failures, result.in_place) == (0, [], 0)
        assert link_groups(mounted / "out" / "tree") == link_groups(tree)
        for overwrite in ("never", "if-changed"):
            again = restore(store, mounted / "out", overwrite)
            assert (again.exit_code, again.failures) == (0, [])
            assert again.in_place == again.files == 6
        assert compared(store, mounted / "out") == []
        inode = (mounted / "out" / "tree" / "first").stat().st_ino
        os.utime(mounted / "out" / "tree" / "first", ns=(10**18, 10**18))
        assert [path for path, what in compared(store, mounted / "out") if "mtime" in what[0]] == [
            b"tree/first", b"tree/folder/first"
        ]  # fmt: skip
        kept = restore(store, mounted / "out")
        assert kept.exit_code == 3
        assert (mounted / "out" / "tree" / "first").stat().st_ino == inode


def test_times_that_the_file_system_clips_are_named(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("mounting an ext4 takes root and mkfs.ext4")
    tree, when = tmp_path / "tree", 9 * 10**18
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    store = archive(tmp_path, tree)
    os.utime(tree / "file", ns=(when, when))
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        assert opened.ingest([str(tree)], options=INLINE).exit_code == 0
    with small_inodes(tmp_path) as mounted:
        result = restore(store, mounted / "out")
        assert result.exit_code == 3
        assert "keeps no times so early or so late" in dict(result.failures)[b"tree/file"]
        file = mounted / "out" / "tree" / "file"
        clipped = file.stat().st_mtime_ns
        file.write_bytes(b"planted")
        os.utime(file, ns=(clipped, clipped))
        assert restore(store, mounted / "out").exit_code == 3
        assert restore(store, mounted / "out", "if-changed").exit_code == 3
        assert file.read_bytes() == b"content"


# --- hardlinks where something is in the way -------------------------------------------------------------------------


def test_a_first_name_that_is_kept_does_not_cost_the_others(tmp_path: Path) -> None:
    make_links(tmp_path / "tree")
    store = archive(tmp_path, tmp_path / "tree")
    out = tmp_path / "out" / "tree"
    (out / "folder").mkdir(parents=True)
    for name in ("first", "large", "empty", "link"):
        (out / name).write_bytes(b"in the way")
    result = restore(store, tmp_path / "out")
    failed = {path for path, _ in result.failures}
    first = {name for name in ("first", "large", "empty", "link") if f"tree/{name}".encode() in failed}
    assert first == {"first", "large", "empty", "link"} and len(failed) == 4
    for name in first:
        assert (out / name).read_bytes() == b"in the way"
        assert stat.S_IFMT((out / "folder" / name).lstat().st_mode) == stat.S_IFMT(
            (tmp_path / "tree" / name).lstat().st_mode
        )
    assert {k: v for k, v in content(out).items() if k.startswith("folder/")} == {
        k: v for k, v in content(tmp_path / "tree").items() if k.startswith("folder/")
    }
