"""Systems that lack something: no /proc, file systems that can't sync a directory, make unnamed files or keep modes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.access import unmeant_readers
from manifests.directory import OpenDirectory, sync_directory
from manifests.wholefile import TEMP_MARK
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.oddfs import odd_file_system
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.mark.parametrize("index", one_in(2, ["disk", "memory"]))
def test_all_works_without_proc(tmp_path: Path, index: str) -> None:
    """In a mount namespace where something else lies over /proc."""
    tree = make_tree(tmp_path / "tree", 6, 20)
    (tree / "a link").symlink_to("nowhere")
    os.mkfifo(tree / "a fifo")
    (tree / "words").write_bytes(b"some words")
    (tree / "quiet").mkdir()
    os.setxattr(tree / "quiet", "user.note", b"of a directory")
    for path in tree.rglob("*"):
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)
    drystone = f"{COMMAND} -s {tmp_path / 'store'}"
    script = f"""
        mount -t tmpfs none /proc || exit 77
        set -e
        {COMMAND} init {tmp_path / "store"} --index {index}
        {drystone} ingest {tree}
        {drystone} ingest {tree} --force
        {drystone} ingest {tree}
        {drystone} verify --data
        {drystone} status
        {drystone} ls -R
        {drystone} compare {tree} --data
        {drystone} index status
        {drystone} restore --to {tmp_path / "out"}
        chmod 0 {tmp_path / "out/tree/words"}
        {sys.executable} -c "import os; os.setxattr('{tmp_path / "out/tree/words"}', 'user.surplus', b'here')"
        {drystone} restore --to {tmp_path / "out"} --overwrite if-changed
        {drystone} compare {tmp_path / "out"}
        {drystone} backend add {tmp_path / "more"}
        {drystone} verify
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/proc" not in done.stderr, done.stderr
    assert_equal_trees(tree, tmp_path / "out" / "tree")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(TEMP_MARK)]


def test_a_path_without_proc_may_be_odd_or_is_refused_with_a_word(tmp_path: Path) -> None:
    """What DuckDB would misread can't be named without descriptors."""
    script = f"""
        mount -t tmpfs none /proc || exit 77
        {COMMAND} init '{tmp_path}/odd[1]' && {COMMAND} -s '{tmp_path}/odd[1]' status
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "mount /proc" in done.stderr, done.stderr


@pytest.fixture
def no_directory_syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In this process no directory can be synced, as on some network and FUSE file systems; the refusals."""
    refused: list[int] = []
    fsync = os.fsync

    def refuse(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            refused.append(fd)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    return refused


def test_a_store_on_a_file_system_that_can_not_sync_directories(tmp_path: Path, no_directory_syncs: list[int]) -> None:
    tree = make_tree(tmp_path / "tree", 6, 20)
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache", index="disk") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
        status = store.status()
        assert status.exit_code == 0
        (note,) = status.notes
        assert note.startswith("the file system of ") and note.count("backend-") == 6 and "power failure" in note
        assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")
    assert len(no_directory_syncs) > 10


@pytest.mark.parametrize(
    "lacks", one_in(2, [("nofsyncdir", "nomode", "nolink", "nosymlink"), ("nofsyncdir",)]), ids="-".join
)
def test_commands_on_a_file_system_that_can_not_sync_directories(tmp_path: Path, lacks: tuple[str, ...]) -> None:
    def drystone(*arguments: object) -> str:
        done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    tree = make_tree(tmp_path / "tree", 6, 20)
    with odd_file_system(tmp_path, *lacks) as odd:
        store = odd / "store"
        said = drystone("init", store, "--ec", "2+1")
        assert ("everybody can read" in said) == ("nomode" in lacks and unmeant_readers(str(odd))[0] != "")
        drystone("-s", store, "ingest", tree)
        notes = [line for line in drystone("-s", store, "status").splitlines() if "power failure" in line]
        assert len(notes) == 1 and notes[0].startswith(f"note: the file system of {store}/backend-0")
        drystone("-s", store, "verify", "--data")
        drystone("-s", store, "restore", "--to", tmp_path / "out")
        assert not [path for path in store.rglob("*") if path.name.startswith(TEMP_MARK)]
    assert_equal_trees(tree, tmp_path / "out" / "tree")


def test_a_file_system_that_can_sync_directories_is_not_noted(tmp_path: Path) -> None:
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.status().notes == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_is_not_taken_for_one_that_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    opened = OpenDirectory(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync_directory(opened.fd)


def test_a_store_on_a_file_system_without_modes_and_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FAT, whose mount says who may read."""
    tree = make_tree(tmp_path / "tree", 6, 20)
    refused, real = set(), os.open

    def no_modes(fd: int, mode: int) -> None:
        refused.add("mode")
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def no_unnamed(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refused.add("unnamed")
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr("manifests.directory.os.fchmod", no_modes)
        patch.setattr("manifests.directory.os.open", no_unnamed)
        with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
            assert store.ingest([str(tree)], options=INLINE).exit_code == 0
            assert store.verify(data=True, inline=True).exit_code == 0
    assert refused == {"mode", "unnamed"}
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")
