"""Backends that leave or join while runs are under way, and while others leave or join: real processes at once."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from manifests.armour import open_json, seal_json
from manifests.errors import StoreBusy, TooFewBackends, WouldLose
from manifests.log import LogRecord, write_record
from manifests.processes import ProcessMark
from manifests.store import Members
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


def drystone(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def at_once(*commands: tuple[object, ...]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of commands that run at the same time."""
    started = [
        subprocess.Popen([COMMAND, *map(str, each)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in commands
    ]
    ended = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]


@pytest.fixture
def kept(make_store: MakeStore, tmp_path: Path) -> Path:
    """A store with a run of `tree`."""
    make_tree(tmp_path / "tree", 6, 20)
    store = make_store()
    store.ingest([str(tmp_path / "tree")], options=INLINE)
    return tmp_path / "store"


@contextmanager
def run_under_way(store: Path, *options: object) -> Iterator[subprocess.Popen[bytes]]:
    """An ingest of a stream that has journalled packs, and waits for more."""
    command = [COMMAND, "-s", str(store), "ingest", "-", "--name", "z", *map(str, options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdin is not None
        try:
            limit = time.monotonic() + 120
            while not list(store.glob("backend-0/inflight/*/journal-*")) and time.monotonic() < limit:
                run.stdin.write(os.urandom(1 << 20))
                run.stdin.flush()
            yield run
        finally:
            if run.poll() is None:
                run.kill()


def finish(run: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = run.communicate(b"x", timeout=120)
    return run.returncode, out.decode(), err.decode()


def test_no_backend_is_removed_while_a_run_is_under_way(kept: Path, tmp_path: Path) -> None:
    with run_under_way(kept) as run:
        for more in ((), ("--dry-run",)):
            refused = drystone("-s", kept, "backend", "remove", kept / "backend-1", *more)
            assert refused.returncode == 1, refused
            marker = next(kept.glob("backend-0/inflight/*/marker.json"))
            record, _ = open_json(marker.read_bytes())
            first, *_ = refused.stderr.splitlines()
            assert all(each in first for each in (record["host"], record["time"], "under way")), first
        code, out, err = finish(run)
        assert code == 0 and "any 2 of 6" in out, err
    assert drystone("-s", kept, "backend", "remove", kept / "backend-1").returncode == 0
    assert not list(kept.glob("backend-*/changing/*"))


def test_a_run_that_died_is_no_obstacle_and_its_packs_count(kept: Path, tmp_path: Path) -> None:
    with run_under_way(kept) as run:
        run.kill()
    for number in (1, 2):
        assert drystone("-s", kept, "backend", "remove", kept / f"backend-{number}").returncode == 0
    refused = drystone("-s", kept, "backend", "remove", kept / "backend-3")
    assert refused.returncode == 1 and "could not be recovered" in refused.stderr
    counted = json.loads(
        drystone("-s", kept, "backend", "remove", kept / "backend-3", "--dry-run", "--force", "--json").stdout
    )
    with FileStore.open(kept, cache=tmp_path / "cache") as store:
        named = store.status().packs
        assert counted["lost_packs"] > named
        with pytest.raises(WouldLose):
            store.remove_backend(str(kept / "backend-3"))


def test_backends_that_are_removed_at_once_leave_what_can_be_given_back(kept: Path, tmp_path: Path) -> None:
    ended = at_once(*(("-s", kept, "backend", "remove", kept / f"backend-{number}") for number in (1, 2, 3, 4)))
    assert sum(code == 0 for code, _, _ in ended) <= 2
    assert {code for code, _, _ in ended} <= {0, 1}
    for code, _, err in ended:
        assert code == 0 or "could not be recovered" in err or "under way" in err, err
    assert drystone("-s", kept, "restore", "--to", tmp_path / "out").returncode == 0
    assert_equal_trees(tmp_path / "tree", tmp_path / "out" / "tree")
    assert not list(kept.glob("backend-*/changing/*"))


def test_backends_that_are_added_at_once_are_all_members_or_refused(kept: Path, tmp_path: Path) -> None:
    ended = at_once(*(("-s", kept, "backend", "add", tmp_path / f"new-{number}") for number in range(3)))
    with FileStore.open(kept, cache=tmp_path / "cache") as store:
        assert len(store.members.all) == 6 + sum(code == 0 for code, _, _ in ended)
        assert len({info.number for info in store.members.all}) == len(store.members.all)
        assert all(len(holders) == len(store.members.all) for holders in store.log.holders.values())
    assert all(code == 0 or "under way" in err for code, _, err in ended), ended


def mark(store: Path, **changed: object) -> None:
    """Leave the mark of a change on a backend."""
    record = {"what": "backend add", "time": "2026-01-02T03:04:05.678Z", **ProcessMark.here().to_record(), **changed}
    place = store / "backend-4" / "changing" / "0b1c2d3e-0000-4000-8000-000000000000.json"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(seal_json(record))


def test_a_change_is_refused_while_another_is_under_way_and_not_by_a_dead_one(kept: Path, tmp_path: Path) -> None:
    for changed, words in (({}, "is under way"), ({"host": "elsewhere"}, "may be under way")):
        mark(kept, **changed)
        for command in (("remove", kept / "backend-1"), ("add", tmp_path / "new")):
            refused = drystone("-s", kept, "backend", *command, "--dry-run")
            assert refused.returncode == 1 and words in refused.stderr, refused.stderr
            assert "another backend add" in refused.stderr and "2026-01-02T03:04:05.678Z" in refused.stderr
    with FileStore.open(kept, cache=tmp_path / "cache") as store, pytest.raises(StoreBusy, match="another backend add"):
        store.add_backend(tmp_path / "new", dry_run=True)
    process = subprocess.Popen(["true"])
    process.wait()
    mark(kept, pid=process.pid)
    assert drystone("-s", kept, "backend", "remove", kept / "backend-1").returncode == 0
    assert not list(kept.glob("backend-*/changing/*"))


def test_a_run_counts_on_members_alone_when_it_commits(kept: Path) -> None:
    with run_under_way(kept) as run:
        assert drystone("-s", kept, "backend", "remove", "--force", kept / "backend-1").returncode == 0
        code, out, err = finish(run)
    assert code == 3 and "backend-1 was removed from the store meanwhile" in err, (out, err)
    assert "of 5 backends" in out and "any 2" not in out, out


def test_a_run_is_not_committed_that_members_could_not_give_back(kept: Path, tmp_path: Path) -> None:
    with run_under_way(kept) as run:
        for number in (1, 2, 3):
            removed = drystone("-s", kept, "backend", "remove", "--force", kept / f"backend-{number}")
            assert removed.returncode == 0, removed.stderr
        code, out, err = finish(run)
    assert code == 1 and "safe:" not in out, (out, err)
    assert "not committed" in err and "backend-2 was removed from the store meanwhile" in err, err
    with FileStore.open(kept, cache=tmp_path / "cache") as store:
        assert len(store.runs()) == 1


def write_and_remove(store: Path, cache: Path) -> Callable[[Members, LogRecord], int]:
    """Writes a record as ever, and right behind it three backends leave."""

    def write(members: Members, record: LogRecord) -> int:
        copies = write_record(members, record)
        remove(store, cache)
        return copies

    return write


def remove(store: Path, cache: Path) -> None:
    for number in (1, 2, 3):
        with FileStore.open(store, cache=cache) as other:
            other.remove_backend(str(store / f"backend-{number}"), force=True)


def test_backends_that_leave_at_the_commit_are_seen_behind_it(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.run.write_record", write_and_remove(kept, tmp_path / "cache2"))
    with FileStore.open(kept, cache=tmp_path / "cache") as store:
        result = store.ingest([str(make_tree(tmp_path / "more", 9, 20))], options=INLINE)
    assert (result.exit_code, result.may_lose, result.backends) == (3, -1, 3)
    assert any("backend-3 was removed" in reason for reason in result.lost_backends)


@pytest.mark.parametrize("behind", [False, True])
def test_puts_count_on_members_alone(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool) -> None:
    refused = pytest.raises(TooFewBackends, match=r"not.* safe.*was removed from the store meanwhile")
    with FileStore.open(kept, cache=tmp_path / "cache") as store, refused, store.batch():
        store.put_object("key", io.BytesIO(os.urandom(1 << 20)))
        if behind:
            changed = write_and_remove(kept, tmp_path / "cache2")
            monkeypatch.setattr("pipeline.objects.batch.write_record", changed)
        else:
            remove(kept, tmp_path / "cache2")
