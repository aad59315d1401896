"""Backends join and leave: what is completed onto them, what is refused, and that all data stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manifests.errors import BackendError, CorruptRecord, DrystoneError, NotFound, StoreExists, UsageError, WouldLose
from manifests.localdirectory import LocalDirectory
from manifests.log import LogRecord, fold, make_record
from manifests.store import BackendInfo
from pipeline.backend import MediaType, StorageType
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
MakeStore = Callable[..., FileStore]


@pytest.fixture
def kept(make_store: MakeStore, tmp_path: Path) -> tuple[FileStore, Path]:
    """An open store with a run, and the tree that it holds."""
    tree = make_tree(tmp_path / "tree", 6, 20)
    store = make_store()
    store.ingest([str(tree)], options=INLINE)
    return store, tree


def check(location: Path, tree: Path, place: Path) -> None:
    with FileStore.open(location, cache=place / "cache2") as store:
        assert store.restore("latest", place / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(tree, place / "out" / "tree")
    shutil.rmtree(place / "out")


def names(root: Path, *folders: str) -> set[str]:
    return {str(path.relative_to(root)) for folder in folders for path in (root / folder).rglob("*") if path.is_file()}


def test_a_backend_that_joins_holds_all_records_and_manifests(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, tree = kept
    added = store.add_backend(tmp_path / "far" / "away", domain="shelf 2")
    assert (added.number, added.failure_domain, added.present) == (6, "shelf 2", True)
    assert names(tmp_path / "far/away", "log", "manifests") == names(tmp_path / "store/backend-0", "log", "manifests")
    assert store.ingest([str(make_tree(tmp_path / "more", 9, 40, 900_000))], options=INLINE).exit_code == 0
    assert names(tmp_path / "far/away", "packs")
    assert store.status().exit_code == 0
    for gone in ("backend-0", "backend-5"):
        shutil.rmtree(tmp_path / "store" / gone)
    with FileStore.open(tmp_path / "far" / "away", cache=tmp_path / "cache3") as opened:
        assert len(opened.members.all) == 7 and len(opened.members.absent()) == 2
        first = str(opened.runs()[0].run_id)
        assert opened.restore(first, tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")


def test_more_backends_bear_more_losses(tmp_path: Path) -> None:
    with FileStore.create([tmp_path / name for name in "abc"], cache=tmp_path / "cache") as store:
        assert store.members.tolerance == 1
        for name in "def":
            store.add_backend(tmp_path / name)
        assert store.members.tolerance == 2
        assert all(len(holders) == 6 for holders in store.log.holders.values())


def test_a_dry_run_writes_nothing(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, _ = kept
    before = names(tmp_path / "store", ".")
    assert store.add_backend(tmp_path / "new", dry_run=True).number == 6
    assert store.remove_backend(tmp_path / "store" / "backend-1", dry_run=True).bears == 1
    assert names(tmp_path / "store", ".") == before and not (tmp_path / "new").exists()


def test_what_holds_something_else_is_no_place_for_a_backend(
    kept: tuple[FileStore, Path], make_store: MakeStore, tmp_path: Path
) -> None:
    store, tree = kept
    make_store("other")
    with pytest.raises(StoreExists, match="not empty"):
        store.add_backend(tree)
    with pytest.raises(StoreExists, match="another store"):
        store.add_backend(tmp_path / "other" / "backend-0")
    shutil.copytree(tmp_path / "store" / "backend-0", tmp_path / "copy")
    with pytest.raises(UsageError, match="copy"):
        store.add_backend(tmp_path / "copy")
    with pytest.raises(UsageError, match="there already"):
        store.add_backend(tmp_path / "new", backend_id=store.members.all[2].backend_id)
    assert len(store.list_backends()) == 6


def test_adding_again_changes_domain_and_whether_it_is_written_to(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, _ = kept
    place = tmp_path / "store" / "backend-2"
    assert store.add_backend(place, read_only=True, domain="vault").read_only
    before = names(place, ".")
    assert store.ingest([str(make_tree(tmp_path / "more", 9, 20))], options=INLINE).tally.missing_shards == 0
    assert names(place, ".") == before
    assert store.verify().exit_code == 0
    back = store.add_backend(place)
    assert (back.read_only, back.failure_domain, back.number) == (False, "vault", 2)
    assert names(place, "log", "manifests") == names(tmp_path / "store/backend-0", "log", "manifests")


def test_a_disk_that_moved_far_away_is_found_again(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    assert len(kept[0].list_backends()) == 6
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "store" / "backend-4").rename(tmp_path / "deep" / "er" / "disk")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        assert [info.number for info in opened.members.absent()] == [4]
        assert opened.add_backend(tmp_path / "deep" / "er" / "disk").number == 4
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        assert not opened.members.absent()


def test_backends_leave_until_data_would_be_lost(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, tree = kept
    for number, bears in ((0, 1), (3, 0)):
        removal = store.remove_backend(tmp_path / "store" / f"backend-{number}")
        assert (removal.lost_packs, removal.bears) == (0, bears)
        check(tmp_path / "store" / "backend-1", tree, tmp_path)
    with pytest.raises(WouldLose, match="could not be recovered"):
        store.remove_backend(tmp_path / "store" / "backend-5")
    assert [backend.number for backend in store.list_backends()] == [1, 2, 4, 5]
    assert store.ingest([str(make_tree(tmp_path / "more", 9, 20))], options=INLINE).exit_code == 0


def test_a_dead_disk_is_removed_by_id_and_its_number_is_not_used_again(
    kept: tuple[FileStore, Path], tmp_path: Path
) -> None:
    store, tree = kept
    dead = store.get_backend(tmp_path.joinpath("store/backend-5").as_posix()).id
    shutil.rmtree(tmp_path / "store" / "backend-5")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        with pytest.raises(BackendError, match="does not answer"):
            opened.get_backend_storage(dead)
        opened.remove_backend(str(dead)[:20])
        assert opened.members.absent() == []
        assert opened.add_backend(tmp_path / "store" / "backend-5").number == 6
        with pytest.raises(NotFound):
            opened.get_backend(dead)
    check(tmp_path / "store", tree, tmp_path)


def test_a_removed_backend_that_comes_back_is_a_new_one(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, _ = kept
    place = tmp_path / "store" / "backend-1"
    old = store.get_backend(str(place)).id
    store.remove_backend(old)
    assert names(place, "packs")
    again = store.add_backend(place)
    assert again.id != old and again.number == 6
    assert store.status().bears_backends == 2  # its shards count again


def test_an_id_that_was_removed_is_refused_before_anything_is_written(
    kept: tuple[FileStore, Path], tmp_path: Path
) -> None:
    store, _ = kept
    old = store.get_backend(str(tmp_path / "store" / "backend-1")).id
    store.remove_backend(old)
    records = len(store.log.records)
    for identity, reason in ((old, "was removed"), (uuid.UUID(int=0), "stands for none")):
        with pytest.raises(UsageError, match=reason):
            store.add_backend(tmp_path / "new", backend_id=identity)
    assert not (tmp_path / "new").exists()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        assert len(opened.log.records) == records


def test_what_only_the_leaving_one_holds_is_copied_first(make_store: MakeStore, tmp_path: Path) -> None:
    """A record and a manifest that reached too few others."""
    store = make_store(scheme="1+1")
    (tmp_path / "file").write_bytes(b"stone")
    store.ingest([str(tmp_path / "file")], options=INLINE)
    for lost in [*(tmp_path / "store/backend-1/manifests").rglob("*.parquet")][:2]:
        lost.unlink()
    next((tmp_path / "store/backend-1/log").glob("*.ingest.json")).unlink()
    store.remove_backend(tmp_path / "store" / "backend-0")
    shutil.rmtree(tmp_path / "store" / "backend-0")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache2") as opened:
        assert b"".join(opened.open_range("latest:file")) == b"stone"


def test_the_last_backend_stays(tmp_path: Path) -> None:
    with FileStore.create([tmp_path / "a", tmp_path / "b"], cache=tmp_path / "cache") as store:
        store.remove_backend(tmp_path / "a")
        with pytest.raises(UsageError, match="no backend that answers may be written to"):
            store.remove_backend(tmp_path / "b")


def test_a_backend_tells_what_it_is(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    store, _ = kept
    backend = store.get_default_backend()
    assert backend == store.list_backends()[0] or backend.free_bytes != store.list_backends()[0].free_bytes
    assert (backend.type, backend.path) == (StorageType.LOCAL, str(tmp_path / "store" / "backend-0"))
    assert isinstance(backend.media_type, MediaType) and backend.trouble == ""
    assert backend.total_bytes == backend.used_bytes + backend.free_bytes
    assert 0 <= backend.usage_percent <= 100
    assert store.get_backend_storage(backend.id).exists("store.json")
    with pytest.raises(NotFound, match="names 6 backends"):
        store.get_backend("01")


def records(*contents: dict[str, object]) -> list[LogRecord]:
    return [make_record(uuid.UUID(int=number), "backend", content, []) for number, content in enumerate(contents)]


def test_the_fold_does_not_depend_on_the_order_and_removals_win() -> None:
    a, b = (BackendInfo(3, uuid.UUID(int=n), "local", f"/{n}", "d") for n in (1, 2))
    log = records({"backends": [a.to_record()]}, {"backends": [b.to_record()]}, {"removes": [str(a.backend_id)]})
    for order in (log, log[::-1]):
        state = fold(order)
        assert [(info.backend_id, info.number) for info in state.backends] == [(b.backend_id, 4)]
        assert state.next_number == 5
    again = [*log, *records({}, {}, {}, {"backends": [a.to_record()]})[3:]]
    assert len(fold(again).backends) == 1


@pytest.mark.parametrize("step", ["manifests", "log/", "backend.json"])
def test_a_joining_that_fails_leaves_the_store_as_it_was_and_can_be_repeated(
    kept: tuple[FileStore, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store, tree = kept
    write, hits = LocalDirectory.write, []

    def fail(self: LocalDirectory, key: str, pieces: object) -> None:
        if step in key and "new" in self.location:
            hits.append(key)
            raise BackendError(f"writing {key}: scripted")
        write(self, key, pieces)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LocalDirectory, "write", fail)
        with pytest.raises(DrystoneError, match="scripted"):
            store.add_backend(tmp_path / "new")
    assert hits
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        assert len(opened.list_backends()) == 6
        assert opened.add_backend(tmp_path / "new").number == 6
        assert opened.status().exit_code == 0
    check(tmp_path / "new", tree, tmp_path)


def test_the_commands_say_what_they_do(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    def drystone(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("drystone")), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    store = str(tmp_path / "store")
    added = drystone("backend", "add", str(tmp_path / "new"), "-s", store, "--domain", "attic", "--json")
    assert added.returncode == 0, added.stderr
    new = json.loads(added.stdout)
    assert (new["failure_domain"], new["backends"], new["state"]) == ("attic", 7, "ok")
    listed = json.loads(drystone("-s", store, "backend", "list", "--json").stdout)
    assert [row["number"] for row in listed] == list(range(7)) and listed[6]["id"] == new["id"]
    assert drystone("-s", store, "backend", "remove", "--id", new["id"], "--dry-run").stdout.startswith("would remove")
    assert drystone("-s", store, "backend", "remove", str(tmp_path / "new")).stdout.startswith("removed")
    refused = drystone("-s", store, "backend", "remove", str(tmp_path / "new"))
    assert refused.returncode == 1 and "no backend" in refused.stderr
    assert drystone("-s", store, "backend", "remove").returncode == 2


def test_backends_that_join_at_once_all_hold_everything(kept: tuple[FileStore, Path], tmp_path: Path) -> None:
    """One after the other; on a slow machine one may be told to try again."""
    command, store = str(Path(sys.executable).with_name("drystone")), tmp_path / "store"
    adding = [subprocess.Popen([command, "-s", store, "backend", "add", tmp_path / f"more-{n}"]) for n in range(3)]
    joined = [number for number, process in enumerate(adding) if process.wait(120) == 0]
    assert joined
    with FileStore.open(store, cache=tmp_path / "cache2") as opened:
        assert sorted(backend.number for backend in opened.list_backends()) == list(range(6 + len(joined)))
        found = opened.verify()
        assert (found.exit_code, found.bad_copies) == (0, [])
        assert opened.status().exit_code == 0
    wanted = names(tmp_path / "store/backend-0", "log", "manifests")
    for number in joined:
        assert names(tmp_path / f"more-{number}", "log", "manifests") == wanted


def test_an_open_store_sees_a_record_again_that_was_lost_meanwhile(
    kept: tuple[FileStore, Path], tmp_path: Path
) -> None:
    store, tree = kept
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache2") as other:
        run = other.ingest([str(tree)], options=INLINE).run_id
    copies = sorted((tmp_path / "store").glob(f"backend-*/log/{run}.*"))
    whole = copies[0].read_bytes()
    for copy in copies:
        copy.write_bytes(b"?" * len(whole))
    for _ in range(2):
        with pytest.raises(CorruptRecord, match=str(run)):
            store.refresh()
    copies[3].write_bytes(whole)
    store.refresh()
    assert store.log.lost == {} and store.runs()[-1].run_id == run
    assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    assert len(store.runs()) == 3


@pytest.mark.parametrize("trouble", ["loop", "file"])
def test_traces_that_can_not_be_looked_at_on_one_backend_keep_no_run_from_being_made(
    kept: tuple[FileStore, Path], tmp_path: Path, trouble: str
) -> None:
    store, tree = kept
    folder = tmp_path / "store" / "backend-3" / "inflight"
    shutil.rmtree(folder, ignore_errors=True)
    folder.symlink_to("inflight") if trouble == "loop" else folder.write_bytes(b"")  # type: ignore[func-returns-value]
    result = store.ingest([str(tree)], options=INLINE)
    assert result.exit_code == 3 and [line for line in result.lost_backends if "backend-3" in line]
    assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert any("backend-3" in line for line in store.status().troubles)


def test_traces_that_can_not_be_listed_on_one_backend_are_done_without(
    kept: tuple[FileStore, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another user made the folder, and only its owner may list it."""
    store, tree = kept
    list_, hits = LocalDirectory.list, []

    def refuse(self: LocalDirectory, prefix: str) -> Iterator[str]:
        if prefix.startswith("inflight") and self.location.endswith("backend-2"):
            hits.append(prefix)
            raise BackendError(f"listing {self.location}/{prefix}: Permission denied")
        return list_(self, prefix)

    monkeypatch.setattr(LocalDirectory, "list", refuse)
    assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    assert hits
    assert [line for line in store.status().troubles if "Permission denied" in line]
