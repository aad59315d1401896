"""Restores into file systems of which closing, syncing or deleting fails: nothing good is lost, and all is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oddfs import odd_file_system
from tests.test_odd_targets import archive

COMMAND = str(Path(sys.executable).with_name("drystone"))
BIG = 300_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a small file, one of three blocks, and a hole."""
    place = tmp_path_factory.mktemp("archive")
    (tree := place / "tree").mkdir()
    (tree / "small").write_bytes(b"small")
    (tree / "big").write_bytes(os.urandom(BIG))
    (tree / "large").write_bytes(os.urandom(9 << 20))
    return archive(place, tree)


def restore(store: Path, selection: str, to: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [COMMAND, "-s", store, "restore", selection, "--to", to, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


def test_files_that_can_not_be_closed_are_named(store: Path, tmp_path: Path) -> None:
    with odd_file_system(tmp_path, "flush") as odd:
        done = restore(store, "latest", odd / "to")
        assert done.returncode == 3
        for name in ("small", "big", "large"):
            assert f"not restored whole: tree/{name}: writing it failed: Input/output error" in done.stderr
        assert [path.name for path in (odd / "to").rglob("*")] == ["tree"]


def test_bytes_of_what_was_kept_are_not_counted(store: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_text("mine")
    done = restore(store, "latest:tree/large", tmp_path / "to", "--json")
    assert json.loads(done.stdout)["bytes"] == 9 << 20
    done = restore(store, "latest", tmp_path, "--json")
    assert done.returncode == 3
    figures = json.loads(done.stdout)
    assert (figures["files"], figures["bytes"]) == (2, BIG + 5)


@pytest.mark.parametrize("fault", ["full", "flush"])
def test_a_file_that_can_not_be_closed_replaces_nothing(store: Path, tmp_path: Path, fault: str) -> None:
    with odd_file_system(tmp_path, fault) as odd:
        part = odd / "part"
        selection = ("latest:tree/big", part, "--range", "0-")
        done = restore(store, *selection)
        assert done.returncode == 1 and f"writing {part} failed: " in done.stderr
        assert os.listdir(odd) == []
        os.mknod(part)
        before = part.stat().st_ino
        done = restore(store, *selection, "--overwrite", "always")
        assert done.returncode == 1 and f"writing {part} failed: " in done.stderr
        assert (part.stat().st_ino, os.listdir(odd)) == (before, ["part"])


def test_each_file_is_synced_where_a_sync_of_the_file_system_does_nothing(store: Path, tmp_path: Path) -> None:
    with odd_file_system(tmp_path, "nosync") as odd:
        (odd / "to" / "tree").mkdir(parents=True)
        for name in ("small", "large"):
            (odd / "to" / "tree" / name).write_text("mine")
        done = restore(store, "latest", odd / "to", "--overwrite", "always")
        assert done.returncode == 3
        for name in ("small", "large"):
            assert f"not restored whole: tree/{name}: writing it failed: Input/output error" in done.stderr
            assert (odd / "to" / "tree" / name).read_text() == "mine"
        assert restore(store, "latest", odd / "new").returncode == 0
        assert restore(store, "latest", odd / "durable", "--fsync").returncode == 3
        assert restore(store, "latest", odd / "to", "--overwrite", "always", "--no-fsync").returncode == 0
        assert (odd / "to" / "tree" / "small").read_bytes() == b"small"


@pytest.mark.parametrize("options", [(), ("--range", "0-")])
def test_nothing_stays_where_deleted_files_stay_until_they_are_closed(
    store: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with odd_file_system(tmp_path, "hides") as odd:
        done = restore(store, "latest:tree/big", odd / "to" if not options else odd / "part", *options)
        assert (done.returncode, done.stderr) == (0, "")
        place = odd if options else odd / "to"
        assert len(os.listdir(place)) == 1


def test_what_can_not_be_removed_is_named(store: Path, tmp_path: Path) -> None:
    (to := tmp_path / "to").mkdir()
    if subprocess.run(["chattr", "+a", to], capture_output=True).returncode:
        pytest.skip("this file system or user can't make a directory append-only")
    try:
        done = restore(store, "latest", to)
        (left,) = (path for path in to.iterdir() if path.name.startswith(".drystone-restore-"))
        assert f"left behind, as it can't be removed: {left}: Operation not permitted" in done.stderr
        assert done.returncode == 0
        part = restore(store, "latest:tree/small", to / "part", "--range", "0-")
        assert part.returncode == 0 and (to / "part").read_bytes() == b"small"
        assert "left behind, as it can't be removed: " in part.stderr
        again = restore(store, "latest", to)
        told = f"perhaps left behind by an earlier restore, and not removed: {left}: Operation not permitted"
        assert told in again.stderr
    finally:
        subprocess.run(["chattr", "-a", to], check=True)
