"""Faults of disks while writing: EIO and ENOSPC, on one backend, on all, at every step. A fault that was never hit
fails the test."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from manifests import backends
from manifests.backends import Buffer, LocalDirectory
from manifests.errors import DrystoneError, Unsettled
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in
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


@pytest.mark.parametrize("after", one_in(2, [0, 1, 3, 8]))
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
    (lost,) = result.lost_backends
    assert "backend-2" in lost and os.strerror(number) in lost
    missing = result.tally.missing_shards
    assert (f"it lacks {missing} shard" in lost) == (missing > 0)
    assert (result.may_lose, result.short) == (1, missing > 0)
    script.after = 10**9
    check_restores(tmp_path / "store", tree, tmp_path)


@pytest.mark.parametrize("word", one_in(2, ["packs/", "manifests/", "log/", "inflight/"]))
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
        pytest.raises(DrystoneError) as caught,
    ):
        opened.ingest([str(later)], options=INLINE)
    script.after = 10**9
    # What is said of it is true: the record is on two backends, and on three it would count.
    unsettled = word == "log/" and after == 2
    assert isinstance(caught.value, Unsettled) == unsettled
    (note,) = caught.value.__notes__
    if unsettled:
        assert "reached 2 backends of 6, and needs 3" in str(caught.value)
        assert re.search(r"it is on \S+backend-\d, \S+backend-\d: the next command that writes", str(caught.value))
        assert re.fullmatch(r"run [0-9a-f]{8} is not acknowledged, and is committed then", note)
    else:
        assert note == "nothing was committed"
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        # A record that reached too few backends is not acknowledged; it may still be completed, whole.
        assert len(opened.runs()) == (2 if word == "log/" and after else 1)
        again = opened.ingest([str(later)], options=INLINE)
        assert again.exit_code == 0
    check_restores(tmp_path / "store", later, tmp_path)


def test_a_run_that_fails_names_backends_that_are_absent_too(
    make_store: MakeStore, tmp_path: Path, break_disks: Callable[..., Script]
) -> None:
    make_store().close()
    tree, away = make_tree(tmp_path / "tree", 4), tmp_path / "store/backend-5"
    away.rename(tmp_path / "away")
    break_disks("backend-2/packs")
    with (
        FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened,
        pytest.raises(DrystoneError, match="too few to be safe") as caught,
    ):
        opened.ingest([str(tree)], options=INLINE)
    assert f"{away}: it does not answer" in str(caught.value)
    assert "backend-2/packs" in str(caught.value)


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


#: A store of six backends, of which one is on a small file system, and a tree that does not fit on it.
_SMALL_BACKEND = """
    set -u; cd {place}; export DRYSTONE_STORE={place}/b0
    mkdir b0 b1 b2 b3 b4 b5; mount -t tmpfs -o size=8m none b5
    {command} init b0 b1 b2 b3 b4 b5 --pack-size 4MiB >&2 && {command} ingest -q small >&2 || exit 90
"""


def _small_backend(place: Path, script: str) -> subprocess.CompletedProcess[str]:
    (place / "small").write_bytes(os.urandom(100_000))
    (place / "large").write_bytes(os.urandom(40_000_000))
    (place / "more").write_bytes(os.urandom(50_000))
    command = str(Path(sys.executable).with_name("drystone"))
    whole = (_SMALL_BACKEND + script).format(place=place, command=command)
    line = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", whole]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_a_full_backend_is_named_by_the_run_and_counted_by_the_next(tmp_path: Path) -> None:
    """Its small files still fit, so that the writers alone see what ails it."""
    done = _small_backend(
        tmp_path,
        """
        {command} ingest large; echo "=== $?"
        rm more; echo again > more
        {command} ingest more; echo "=== $?"
        {command} ingest small --force --json; echo "=== $?"
        """,
    )
    first, second, third, _ = done.stdout.split("=== ")
    assert (done.returncode, second[0], third[0]) == (0, "3", "0"), (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("short of redundancy")]
    assert "/b5" in lines[0] and "No space left" in lines[0] and "shards of this run" in lines[0]
    assert "safe: any 1 of 6 backends may be lost, and all comes back; packs lack shards" in first
    assert "safe: any 1 of 6 backends may be lost, and all comes back; packs lack shards" in second
    assert '"backends_that_may_be_lost": 1' in third


def test_a_backend_that_becomes_read_only_is_named(tmp_path: Path) -> None:
    done = _small_backend(
        tmp_path,
        """
        mount -o remount,ro b5
        {command} ingest large; echo "=== $?"
        mount -o remount,rw b5
        {command} ingest more; echo "=== $?"
        """,
    )
    first, second, third = done.stdout.split("=== ")
    assert (done.returncode, second[0], third[0]) == (0, "3", "0"), (done.stdout, done.stderr)
    assert "/b5" in done.stderr and "Read-only file system" in done.stderr and "shards of this run" in done.stderr
    assert "safe: any 1 of 6" in first and "safe: any 1 of 6" in second
    assert "exit code 0: done, but packs of earlier runs lack shards" in second


def test_an_old_copy_of_a_backend_is_named_and_counted(tmp_path: Path) -> None:
    """A disk that comes back as it was before a run lacks that run's shards; what is unchanged is not read again."""
    store, source = tmp_path / "store", tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(300_000))
    old = [tmp_path / f"old-{number}" for number in (1, 2)]
    with FileStore.create([store]) as opened:
        for number, copy in zip((1, 2), old, strict=True):
            shutil.copytree(store / f"backend-{number}", copy)
        assert not opened.ingest([str(source)], options=INLINE).behind
    for number, copy in zip((1, 2), old, strict=True):
        shutil.rmtree(store / f"backend-{number}")
        copy.rename(store / f"backend-{number}")
    for _ in range(2):
        done = subprocess.run(
            [Path(sys.executable).with_name("drystone"), "-s", store, "ingest", source],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr.count("lacks 1 record of the log: it was away, or is an old copy of itself") == 2
        assert "safe: for now, but none of 6 backends may be lost any more; packs lack shards" in done.stdout
