"""Faults of disks while writing: EIO and ENOSPC, on one backend, on all, at every step. A fault that was never hit
fails the test."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from manifests import backends
from manifests.backends import Buffer, LocalDirectory
from manifests.errors import DrystoneError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
MakeStore = Callable[..., FileStore]


class Script:
    """Which write fails: the `after`-th and all later ones to keys and places that hold `word`."""

    def __init__(self, word: str, after: int, number: int) -> None:
        self.word, self.after, self.number = word, after, number
        self.seen = self.hit = 0

    def check(self, where: str) -> None:
        if self.word in where:
            self.seen += 1
            if self.seen > self.after:
                self.hit += 1
                raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def break_disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Script]]:
    """A function that makes writes fail from now on; the script must be hit."""
    scripts: list[Script] = []

    class Breaking(LocalDirectory):
        def write(self, key: str, pieces: Sequence[Buffer]) -> None:
            try:
                for script in scripts:
                    script.check(f"{self.location}/{key}")
            except OSError as error:
                raise self._error("writing", key, error) from error
            super().write(key, pieces)

    monkeypatch.setitem(backends.BACKEND_TYPES, "local", Breaking)

    def arm(word: str, after: int = 0, number: int = errno.EIO) -> Script:
        scripts[:] = [Script(word, after, number)]
        return scripts[0]

    yield arm
    assert scripts and scripts[0].hit, "the fault was never hit"


def check_restores(location: Path, tree: Path, place: Path) -> None:
    with FileStore.open(location, cache=place / "cache2") as store:
        result = store.restore("latest", place / "out", request=RestoreRequest("", inline=True))
        assert result.exit_code == 0
    assert_equal_trees(tree, place / "out" / "tree")


@pytest.mark.parametrize("after", [0, 1, 3, 8])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_one_backend_fails_during_a_run(
    make_store: MakeStore, tmp_path: Path, break_disks: Callable[..., Script], after: int, number: int
) -> None:
    tree = make_tree(tmp_path / "tree", 4)
    make_store(pack_size=64 << 10).close()
    script = break_disks("backend-2/", after, number)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.ingest([str(tree)], options=INLINE)
    assert result.exit_code == 3
    assert any("backend-2" in reason for reason in result.lost_backends) or result.tally.missing_shards
    script.after = 10**9
    check_restores(tmp_path / "store", tree, tmp_path)


@pytest.mark.parametrize("word", ["packs/", "manifests/", "log/", "inflight/"])
@pytest.mark.parametrize("after", [0, 2])
def test_all_backends_fail_and_the_run_is_not_there(
    make_store: MakeStore, tmp_path: Path, break_disks: Callable[..., Script], word: str, after: int
) -> None:
    tree, later = make_tree(tmp_path / "tree", 4), make_tree(tmp_path / "later" / "tree", 5)
    store = make_store(pack_size=64 << 10)
    store.ingest([str(tree)], options=INLINE)
    store.close()
    script = break_disks(word, after)
    with (
        FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened,
        pytest.raises(DrystoneError),
    ):
        opened.ingest([str(later)], options=INLINE)
    script.after = 10**9
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        # A record that reached too few backends is not acknowledged; it may still be completed, whole.
        assert len(opened.runs()) == (2 if word == "log/" and after else 1)
        again = opened.ingest([str(later)], options=INLINE)
        assert again.exit_code == 0
    check_restores(tmp_path / "store", later, tmp_path)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a small file system of its own: the run fails with a clear line, and what was there stays whole."""
    (tmp_path / "small").write_bytes(os.urandom(100_000))
    (tmp_path / "large").write_bytes(os.urandom(40_000_000))
    command = Path(sys.executable).with_name("drystone")
    script = f"""
        set -u; mkdir {tmp_path}/disk; mount -t tmpfs -o size=16m none {tmp_path}/disk; cd {tmp_path}
        export DRYSTONE_STORE={tmp_path}/disk/store
        {command} init disk/store >&2 && {command} ingest -q small >&2 || exit 90
        {command} ingest large; code=$?
        {command} runs --json | grep -c '"run"'
        {command} verify --data -q || exit 91
        {command} restore -q --to out || exit 92
        {command} ingest -q small >&2 || exit 93
        exit $code
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr and "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split()[0] == "1"
    assert (tmp_path / "out" / "small").read_bytes() == (tmp_path / "small").read_bytes()
