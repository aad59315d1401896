"""The index on disk in the cache: brought up to date, built anew when lost, stale or damaged, and never waited for.

One file, though long: the store with an index, and the ways to hurt it, serve every test here.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import indexcache
from manifests.diskindex import DATA_FILE, DiskIndex
from manifests.errors import DamagedIndex, DrystoneError, IndexBusy, UsageError
from manifests.index import KEY_BYTES
from manifests.indexcache import IndexCache
from manifests.log import LogRecord, fold, make_record
from manifests.opening import open_store
from pipeline.errors import PipelineError
from pipeline.filestore import FileStore
from pipeline.ingest import overlay
from pipeline.ingest.overlay import OverlayIndex
from pipeline.ingest.run import IngestOptions, IngestResult
from tests.sampling import one_in
from tests.test_index_kinds import as_array, held, named, random_ids
from tests.trees import make_tree

COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]
INLINE = IngestOptions(inline=True, workers=1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", files=25)


@pytest.fixture
def store(make_store: MakeStore) -> FileStore:
    return make_store(index="disk")


def ingest(store: FileStore, source: Path, options: IngestOptions = INLINE) -> IngestResult:
    return store.ingest([str(source)], options=options)


def cache_of(store: FileStore, table: str = "chunks") -> IndexCache:
    return IndexCache(store.replicas.cache, table)


def folder_of(store: FileStore, table: str = "chunks") -> Path:
    return store.replicas.cache / "index" / table


def pointer(store: FileStore) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder_of(store) / "current.json").read_bytes())
    return loaded


def data_file(store: FileStore) -> Path:
    return folder_of(store) / str(pointer(store)["generation"]) / DATA_FILE


def update(store: FileStore, check: Callable[[], None] = lambda: None, table: str = "chunks") -> Path | None:
    """Bring an index up to date; its directory."""
    usable = cache_of(store, table).bring_up_to_date(store.state, store.replicas, check)
    usable.close()
    assert not usable.trouble
    return usable.folder


def assert_whole(store: FileStore) -> None:
    """The indexes hold what the manifests say, all of it and nothing else."""
    status = store.index_status()
    assert status.chunks is not None and status.contents is not None
    assert (status.chunks.condition, status.contents.condition) == ("current", "current")
    store.catalog.use("chunks", "extents")
    for table, query in (
        ("chunks", "SELECT DISTINCT chunk_id AS id, length FROM chunks"),
        ("extents", "SELECT DISTINCT content_id AS id, 1 AS length FROM extents"),
    ):
        expected = {row["id"][:KEY_BYTES]: row["length"] for row in store.catalog.rows(query)}
        index = DiskIndex(
            folder_of(store, table) / json.loads((folder_of(store, table) / "current.json").read_bytes())["generation"]
        )
        try:
            assert held(index) == expected
            assert (len(index), index.total_bytes) == (len(expected), sum(expected.values()))
        finally:
            index.close()


# --- deduplication ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "workers"])
def test_both_kinds_find_the_same_chunks_new(make_store: MakeStore, tree: Path, tmp_path: Path, inline: bool) -> None:
    options = IngestOptions(inline=inline, workers=1)
    more = make_tree(tmp_path / "more", seed=3, files=20)
    found = []
    for kind in ("memory", "disk"):
        store = make_store(kind, index=kind, chunker="fixed:4KiB")  # chunks that no seed moves
        results = [ingest(store, source, options) for source in (tree, tree, more)]
        assert results[1].tally.new_chunks == 0 and results[1].tally.packs == 0
        store.catalog.use("extents")
        repeated = store.catalog.one('SELECT count(*) - count(DISTINCT (content_id, "offset")) AS n FROM extents')["n"]
        assert repeated == 0, "extents are stored once a content"
        found.append([(result.tally.new_chunks, result.tally.new_bytes) for result in results])
    assert found[0] == found[1] and all(found[0][0] + found[0][2])


def test_an_index_that_is_current_is_not_written_to(store: FileStore, tree: Path) -> None:
    ingest(store, tree)
    update(store)
    before, mark = pointer(store), data_file(store).stat().st_mtime_ns
    ingest(store, tree)
    assert pointer(store) == before and data_file(store).stat().st_mtime_ns == mark


@pytest.mark.parametrize("rows", [0, 1 << 30], ids=["sorted", "file-by-file"])
def test_runs_are_added_one_after_the_other(
    store: FileStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(indexcache, "UNSORTED_ROWS", rows)
    generations = set()
    for turn in range(3):
        ingest(store, make_tree(tmp_path / f"tree-{turn}", seed=turn, files=12))
        status = store.index_status().chunks
        assert status is not None and (status.condition, status.missing) == ("behind", 1)
        generations.add(update(store))
        update(store, table="extents")
    assert_whole(store)
    assert len(generations) == 1, "it was built anew"


# --- lost, stale, damaged --------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate(len(data))


def break_bytes(store: FileStore) -> None:
    rewrite(data_file(store), lambda data: data.__setitem__(slice(9000, 9004), b"XXXX"))


def break_bytes_with_old_times(store: FileStore) -> None:
    stat = data_file(store).stat()
    break_bytes(store)
    os.utime(data_file(store), ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncate(store: FileStore) -> None:
    os.truncate(data_file(store), 8192)


def empty_the_data(store: FileStore) -> None:
    os.truncate(data_file(store), 0)


def fill_with_noise(store: FileStore) -> None:
    data_file(store).write_bytes(os.urandom(50_000))


def lose_the_data(store: FileStore) -> None:
    data_file(store).unlink()


def lose_the_pointer(store: FileStore) -> None:
    (folder_of(store) / "current.json").unlink()


def garble_the_pointer(store: FileStore) -> None:
    (folder_of(store) / "current.json").write_bytes(b'{"layout": 1, "generation"')


def list_as_pointer(store: FileStore) -> None:
    (folder_of(store) / "current.json").write_bytes(b"[]")


def leave_it_half_changed(store: FileStore) -> None:
    record = {**pointer(store), "mark": None, "boot": "another"}
    (folder_of(store) / "current.json").write_text(json.dumps(record))


def lose_the_cache(store: FileStore) -> None:
    shutil.rmtree(store.replicas.cache)


def copy_another_file_over_it(store: FileStore) -> None:
    other = DiskIndex(folder_of(store) / "other")
    other.put_batch(random_ids(10), np.ones(10, np.uint32))
    other.close()
    shutil.copyfile(folder_of(store) / "other" / DATA_FILE, data_file(store))


@pytest.mark.parametrize(
    "damage",
    one_in(
        2,
        [
            break_bytes,
            break_bytes_with_old_times,
            truncate,
            empty_the_data,
            fill_with_noise,
            lose_the_data,
            lose_the_pointer,
            garble_the_pointer,
            list_as_pointer,
            leave_it_half_changed,
            lose_the_cache,
            copy_another_file_over_it,
        ],
    ),
)
def test_what_is_lost_or_damaged_is_built_anew(
    store: FileStore, tree: Path, damage: Callable[[FileStore], None]
) -> None:
    ingest(store, tree)
    before = update(store)
    damage(store)
    status = store.index_status().chunks
    assert status is not None and status.condition in ("damaged", "absent")
    result = ingest(store, tree)
    assert result.exit_code == 0 and result.index_trouble == ""
    assert result.tally.new_chunks == 0, "what the store holds is known again"
    after = update(store)
    assert after != before
    assert [path for path in folder_of(store).iterdir() if path.is_dir()] == [after], "old ones are removed"
    update(store, table="extents")
    assert_whole(store)


def test_chunks_of_manifest_files_that_are_gone_are_forgotten(store: FileStore, tree: Path, tmp_path: Path) -> None:
    ingest(store, tree)
    ingest(store, make_tree(tmp_path / "more", seed=5, files=15))
    before = update(store)
    first, *_ = store.state.files("chunks")
    gone = replace(store.state, manifests={**store.state.manifests})
    gone.manifests["chunks"] = {key: file for key, file in store.state.manifests["chunks"].items() if file != first}
    status = cache_of(store).status(gone)
    assert status.condition == "stale"
    usable = cache_of(store).bring_up_to_date(gone, store.replicas, lambda: None)
    usable.close()
    assert usable.folder not in (None, before) and first.name not in usable.files
    assert usable.folder is not None
    index = DiskIndex(usable.folder, read_only=True)
    store.catalog.use("chunks")
    total = store.catalog.one("SELECT count(DISTINCT chunk_id) AS n FROM chunks")["n"]
    assert 0 < len(index) < total
    index.close()


def test_files_newer_than_what_we_know_are_not_taken_for_gone(store: FileStore, tree: Path, tmp_path: Path) -> None:
    ingest(store, tree)
    before, old = update(store), store.state
    ingest(store, make_tree(tmp_path / "more", seed=5, files=15))
    update(store)
    usable = cache_of(store).bring_up_to_date(old, store.replicas, lambda: None)
    usable.close()
    assert usable.folder == before and usable.files > {file.name for file in old.files("chunks")}


def test_a_change_that_did_not_end_is_not_trusted(store: FileStore, tree: Path, tmp_path: Path) -> None:
    ingest(store, tree)
    before = update(store)
    ingest(store, make_tree(tmp_path / "more", seed=5, files=15))

    def stop() -> None:
        assert pointer(store)["mark"] is None, "it says that it is being changed"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(store, stop)
    assert update(store) != before

    def stop_at_once() -> None:
        raise KeyboardInterrupt

    break_bytes(store)
    with pytest.raises(KeyboardInterrupt):
        update(store, stop_at_once)
    assert not (folder_of(store) / "current.json").exists()
    built = update(store)
    assert [path for path in folder_of(store).iterdir() if path.is_dir()] == [built], "nothing half made is left"


def test_rot_that_a_file_does_not_show_costs_one_run(store: FileStore, tree: Path) -> None:
    """A page of zeros under a file that looks as it was left: the run that meets it fails, the next one is well."""
    ingest(store, tree)
    update(store)
    index = DiskIndex(data_file(store).parent, read_only=True)
    middle = np.concatenate(list(index.iterate()))["key"][len(index) // 2].tobytes()
    index.close()
    data = data_file(store).read_bytes()
    assert data.count(middle) >= 1
    at = data.rindex(middle) // 4096 * 4096
    rewrite(data_file(store), lambda data: data.__setitem__(slice(at, at + 4096), bytes(4096)))
    record = {**pointer(store), "mark": indexcache._mark(data_file(store).parent)}
    (folder_of(store) / "current.json").write_text(json.dumps(record))
    with pytest.raises((DamagedIndex, PipelineError)) as caught:
        ingest(store, tree, IngestOptions(workers=1))
    assert "dedupe" in str(caught.value)
    result = ingest(store, tree)
    assert result.exit_code == 0 and result.tally.new_chunks == 0


# --- several at once -------------------------------------------------------------------------------------------------


@contextmanager
def somebody_changes(store: FileStore) -> Iterator[None]:
    """Another one holds the locks, as while it brings the indexes up to date."""
    fds = []
    for table in ("chunks", "extents"):
        folder_of(store, table).mkdir(parents=True, exist_ok=True)
        fds.append(os.open(folder_of(store, table) / "lock", os.O_RDWR | os.O_CREAT))
        fcntl.flock(fds[-1], fcntl.LOCK_EX)
    yield
    for fd in fds:
        os.close(fd)


def test_an_index_that_somebody_changes_is_read_as_it_stands(store: FileStore, tree: Path, tmp_path: Path) -> None:
    ingest(store, tree)
    before, known = update(store), pointer(store)
    ingest(store, make_tree(tmp_path / "more", seed=5, files=15))
    with somebody_changes(store):
        usable = cache_of(store).bring_up_to_date(store.state, store.replicas, lambda: None)
        assert usable.folder == before and len(usable.files) == 1
        usable.close()
        for source in (tree, tmp_path / "more"):
            result = ingest(store, source)
            assert result.tally.new_chunks == 0, "what it lacks comes from the manifests"
        assert pointer(store) == known
        assert store.index_status().chunks == indexcache.CacheStatus("busy")
        with pytest.raises(IndexBusy, match="try again later"):
            store.rebuild_index()


@pytest.mark.parametrize("damage", [break_bytes, lose_the_pointer, leave_it_half_changed, lose_the_data])
def test_one_that_is_built_anew_by_somebody_is_done_without(
    store: FileStore, tree: Path, damage: Callable[[FileStore], None]
) -> None:
    ingest(store, tree)
    update(store)
    damage(store)
    with somebody_changes(store):
        usable = cache_of(store).bring_up_to_date(store.state, store.replicas, lambda: None)
        assert usable.folder is None and not usable.files and not usable.trouble
        assert ingest(store, tree).tally.new_chunks == 0


def test_what_a_process_left_that_died_while_changing_it(store: FileStore, tree: Path, tmp_path: Path) -> None:
    """Readers may use it as long as nothing of which it holds a part is gone; who may change it builds it anew."""
    ingest(store, tree)
    before = update(store)
    ingest(store, make_tree(tmp_path / "more", seed=5, files=15))

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(store, die)
    half = set(store.state.manifests["chunks"]) - {f"manifests/chunks/{name}" for name in files_of(before)}
    gone = replace(store.state, manifests={"chunks": dict(store.state.manifests["chunks"])})
    for key in half:
        del gone.manifests["chunks"][key]
    with somebody_changes(store):
        for state, folder in ((store.state, before), (gone, None)):
            usable = cache_of(store).bring_up_to_date(state, store.replicas, lambda: None)
            assert usable.folder == folder and len(usable.files) == (folder is not None)
            usable.close()
        assert ingest(store, tree).tally.new_chunks == 0
    assert update(store) != before


def files_of(folder: Path | None) -> set[str]:
    assert folder is not None
    index = DiskIndex(folder, read_only=True)
    files = index.files()
    index.close()
    return files


def test_a_generation_in_use_stays_until_it_is_released(store: FileStore, tree: Path) -> None:
    ingest(store, tree)
    usable = cache_of(store).bring_up_to_date(store.state, store.replicas, lambda: None)
    assert usable.folder is not None
    store.rebuild_index()
    assert (usable.folder / DATA_FILE).exists()
    usable.close()
    store.rebuild_index()
    assert not usable.folder.exists()


def test_two_ingests_at_once_go_their_ways(store: FileStore, tree: Path, tmp_path: Path) -> None:
    ingest(store, tree)
    store.close()
    environment = {**os.environ, "DRYSTONE_CACHE": str(tmp_path / "cache")}
    sources = [make_tree(tmp_path / f"tree-{turn}", seed=turn + 7, files=20) for turn in range(2)]
    lines = [[COMMAND, "-s", tmp_path / "store", "ingest", "-q", "--workers", "1", source] for source in sources]
    running = [subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL) for line in lines]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        assert len(opened.runs()) == 3
        for source in (tree, *sources):
            assert ingest(opened, source).tally.new_chunks == 0
        opened.rebuild_index()
        assert_whole(opened)


def test_a_cache_that_can_t_be_written_is_done_without_and_said(store: FileStore, tree: Path) -> None:
    ingest(store, tree)
    shutil.rmtree(store.replicas.cache / "index")
    (store.replicas.cache / "index").write_bytes(b"in the way")
    result = ingest(store, tree)
    assert "index" in result.index_trouble
    assert result.exit_code == 0 and result.tally.new_chunks == 0
    with pytest.raises(DrystoneError, match=r"building the dedupe index failed: .*/index.*: Not a directory$"):
        store.rebuild_index()


def test_a_cache_on_a_read_only_file_system_is_used_as_it_stands(store: FileStore, tree: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own, so that no other process sees it."""
    ingest(store, tree)
    IndexCache(store.replicas.cache, "chunks").bring_up_to_date(store.state, store.replicas, lambda: None).close()
    (tree / "more").write_bytes(b"something new" * 5000)
    drystone, cache = f"{COMMAND} -s {tmp_path / 'store'}", tmp_path / "cache"
    script = f"""
        mount --bind {cache} {cache} && mount -o remount,ro,bind {cache} || exit 77
        export DRYSTONE_CACHE={cache}
        {drystone} index status && {drystone} ingest {tree} -q && {drystone} index rebuild
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert re.search(r"^chunks +[1-9].*current", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert re.search(r"^run [0-9a-f]{8}$", done.stdout, re.MULTILINE) and "without the index" not in done.stderr
    assert done.returncode == 1 and "building the dedupe index" in done.stderr and "Read-only" in done.stderr


# --- the overlay -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    below=st.sets(st.integers(0, 30)),
    batches=st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=10),
    spill=st.sampled_from([1, 5, 1000]),
)
def test_an_overlay_is_a_set_over_another(below: set[int], batches: list[list[int]], spill: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch.setattr(overlay, "SPILL_IDS", spill)
        base = DiskIndex(folder / "below")
        if below:
            base.put_batch(as_array([named(number) for number in below]), np.ones(len(below), np.uint32))
        base.close()
        index, known = OverlayIndex(folder / "below"), set(below)
        for batch in batches:
            expected = []
            for number in batch:
                expected.append(number not in known)
                known.add(number)
            ids = as_array([named(number) for number in batch])
            assert index.put_batch(ids, np.ones(len(batch), np.uint32)).tolist() == expected
        index.close()
        base = DiskIndex(folder / "below", read_only=True)
        assert len(base) == len(below), "what lies below is not written to"
        base.close()


def test_a_run_that_spills_stores_nothing_twice(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay, "SPILL_IDS", 100)
    spilled: list[int] = []
    spill = OverlayIndex._spill
    monkeypatch.setattr(OverlayIndex, "_spill", lambda self: (spilled.append(len(self._recent)), spill(self))[1])
    (tmp_path / "source").mkdir()
    data = random.Random(1).randbytes(9 << 20)
    for name in ("one", "other"):
        (tmp_path / "source" / name).write_bytes(data)
    result = ingest(store, tmp_path / "source")
    assert len(spilled) >= 2, "later spills meet what earlier ones left"
    assert result.tally.new_bytes == len(data)
    store.catalog.use("chunks")
    assert store.catalog.one("SELECT count(*) - count(DISTINCT chunk_id) AS n FROM chunks")["n"] == 0


# --- the kind --------------------------------------------------------------------------------------------------------


def test_the_kind_is_chosen_at_init_and_switched_by_a_record(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    store = make_store()
    assert store.state.index == "memory" and store.index_status().chunks is None
    ingest(store, tree)
    assert not (store.replicas.cache / "index").exists()
    status = store.rebuild_index("disk")
    assert status.kind == "disk" and status.chunks is not None and status.chunks.condition == "current"
    assert_whole(store)
    records = len(store.log.records)
    store.rebuild_index("disk")
    store.rebuild_index()
    assert len(store.log.records) == records, "only a switch is recorded"
    assert open_store(tmp_path / "store" / "backend-3")[2].index == "disk"
    assert store.rebuild_index("memory").chunks is None
    assert not list((store.replicas.cache / "index").iterdir()), "nothing is left of it"
    assert open_store(tmp_path / "store")[2].index == "memory"
    assert ingest(store, tree).tally.new_chunks == 0


def test_a_kind_that_is_none_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no index of kind 'dsik'; there are memory and disk"):
        make_store(index="dsik")
    assert not (tmp_path / "store").exists()
    with pytest.raises(UsageError):
        make_store().rebuild_index("tape")


def test_the_latest_record_tells_the_kind_whatever_the_order(make_store: MakeStore) -> None:
    store = make_store(index="disk")
    first = next(iter(store.log.records.values()))
    older, newer = (
        make_record(type(first.record_id)(int=first.record_id.int + step), "index", {"index": kind}, [])
        for step, kind in ((1, "disk"), (2, "memory"))
    )
    assert fold([newer, first, older]).index == "memory"
    assert fold([older, first]).index == "disk"
    unknown = LogRecord(newer.record_id, "index", {**newer.body, "index": "tape"})
    assert fold([first, older, unknown]).index == "memory", "a kind of a newer version"


def drystone(*line: object, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRYSTONE_CACHE": str(cache)}
    return subprocess.run([COMMAND, *map(str, line)], env=environment, capture_output=True, text=True, timeout=60)


def test_the_commands_say_how_it_stands(store: FileStore, tree: Path, tmp_path: Path) -> None:
    ingest(store, tree)
    where, cache = ("-s", tmp_path / "store"), tmp_path / "cache"
    shown = json.loads(drystone(*where, "index", "status", "--json", cache=cache).stdout)
    assert shown["kind"] == "disk" and shown["chunks"]["condition"] == "behind" and shown["chunks"]["missing"] == 1
    dry = drystone("index", "rebuild", "--dry-run", "--kind", "memory", *where, cache=cache)
    assert dry.stdout.startswith("would record the kind memory instead of disk, and remove what lies in the cache")
    built = drystone(*where, "index", "rebuild", cache=cache)
    assert built.returncode == 0 and "current" in built.stdout
    (row,) = csv.DictReader(drystone(*where, "index", "status", "--format", "csv", cache=cache).stdout.splitlines())
    assert json.loads(row["chunks"])["condition"] == "current"
    assert drystone(*where, "index", "rebuild", "--kind", "memory", "-q", cache=cache).stdout == ""
    assert drystone(*where, "index", "status", cache=cache).stdout.splitlines()[0].split() == ["kind", "memory"]
    assert drystone(*where, "index", "rebuild", "--kind", "tape", cache=cache).returncode == 2
