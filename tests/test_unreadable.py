"""Packs that a verification could not read: nothing builds on them, ingesting again heals, and they may come back."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.errors import NotFound
from manifests.indexcache import IndexCache
from manifests.known import known_chunks
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions, IngestResult
from pipeline.restore.run import RestoreRequest
from stages.shard import data_offset
from tests.corruptors import flip, shard_length
from tests.sampling import one_in
from tests.trees import assert_equal_trees

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of one chunk and of several, in several packs; as quiet as if they were old."""
    monkeypatch.setattr("pipeline.ingest.read.QUIET_NS", -4 * 10**18)
    chance = random.Random(11)
    (tmp_path / "tree").mkdir()
    for number in range(40):
        (tmp_path / "tree" / f"small-{number}").write_bytes(chance.randbytes(800))
    for number in range(4):
        (tmp_path / "tree" / f"large-{number}").write_bytes(chance.randbytes(90_000))
    return tmp_path / "tree"


def ingest(store: FileStore, tree: Path) -> IngestResult:
    return store.ingest([str(tree)], options=INLINE)


def take_shards(tmp_path: Path, count: int = 3) -> str:
    """Move `count` shards of the first pack away; the pack's name."""
    packs = sorted({path.name.partition(".")[0] for path in (tmp_path / "store").rglob("packs/*/*")})
    (tmp_path / "aside").mkdir(exist_ok=True)
    for index in range(count):
        [path] = (tmp_path / "store").rglob(f"packs/*/{packs[0]}.{index}")
        shutil.move(path, tmp_path / "aside" / f"{index}")
        (tmp_path / "aside" / f"{index}.from").write_text(str(path))
    return packs[0]


def bring_back(tmp_path: Path) -> None:
    for path in (tmp_path / "aside").glob("?"):
        shutil.move(path, path.with_name(f"{path.name}.from").read_text())


def restore_equals(store: FileStore, run: IngestResult, tree: Path, to: Path) -> None:
    restored = store.restore(f"{run.run_id}:", to, request=RestoreRequest(str(to), inline=True, workers=1))
    assert (restored.exit_code, restored.failures) == (0, [])
    assert_equal_trees(tree, to / "tree")


@pytest.mark.parametrize("kind", one_in(2, ["memory", "disk"]))
@pytest.mark.parametrize("data", [True, False], ids=["data", "presence"])
def test_ingesting_again_heals_what_a_verification_found_lost(
    make_store: MakeStore, tree: Path, tmp_path: Path, kind: str, data: bool
) -> None:
    store = make_store(index=kind)
    ingest(store, tree / "large-0")
    first = ingest(store, tree)
    assert ingest(store, tree).tally.unchanged == 44
    take_shards(tmp_path)
    found = store.verify(data=data, inline=True, workers=1)
    assert (found.exit_code, len(found.unreadable_packs), found.unnoted) == (3, 1, "")
    assert found.lost_object_count
    again = ingest(store, tree)
    assert again.tally.new_bytes == 90_000  # what the other pack holds is not stored twice
    assert again.tally.unchanged == 43
    restore_equals(store, again, tree, tmp_path / "new")
    restore_equals(store, first, tree, tmp_path / "old")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "other cache") as opened:
        restore_equals(opened, again, tree, tmp_path / "cold")
    found = store.verify(data=data, inline=True, workers=1)
    assert (found.exit_code, found.lost_chunks, found.lost_object_count) == (4, 0, 0)
    assert ingest(store, tree).tally.new_bytes == 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_pack_that_is_found_whole_is_known_again(
    make_store: MakeStore, tree: Path, tmp_path: Path, kind: str
) -> None:
    store = make_store(index=kind)
    first = ingest(store, tree)
    take_shards(tmp_path)
    assert store.verify(inline=True).exit_code == 3
    assert store.verify(data=True, inline=True, workers=1).exit_code == 3
    known = sum(map(len, known_chunks(store.state, store.replicas, [])))
    bring_back(tmp_path)
    assert store.verify(inline=True).exit_code == 0  # a look at lengths does not tell that it can be read
    assert sum(map(len, known_chunks(store.state, store.replicas, []))) == known
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    assert not store.state.unreadable_notes()
    again = ingest(store, tree)
    assert (again.tally.new_chunks, again.tally.unchanged) == (0, 44)
    restore_equals(store, first, tree, tmp_path / "back")


def test_a_pack_with_too_many_rotten_cells_is_unreadable_though_its_files_are_there(
    make_store: MakeStore, tree: Path, tmp_path: Path
) -> None:
    store = make_store()
    ingest(store, tree)
    pack = take_shards(tmp_path, 0)
    for index in range(3):
        [path] = (tmp_path / "store").rglob(f"packs/*/{pack}.{index}")
        flip(path, data_offset(shard_length(path)) + 100)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 3
    status = store.status()
    assert (status.exit_code, status.bears_backends, status.lost_packs) == (3, -1, 1)
    again = ingest(store, tree)
    restore_equals(store, again, tree, tmp_path / "new")
    assert store.verify(data=True, inline=True, workers=1).exit_code == 4
    status = store.status()
    assert (status.exit_code, status.bears_backends, status.lost_packs, status.spare_packs) == (4, 2, 0, 1)


def test_a_lost_pack_is_spare_only_where_the_manifests_tell(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    store = make_store()
    ingest(store, tree)
    take_shards(tmp_path)
    for path in (tmp_path / "store").rglob("manifests/chunks/*"):
        path.unlink()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "other cache") as opened:
        status = opened.status()
        assert (status.exit_code, status.bears_backends, status.lost_packs, status.spare_packs) == (3, -1, 1, 0)


def test_a_copy_that_was_there_before_the_loss_is_as_good(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    """Two runs at once stored the same: what the verification finds lost in one pack, nobody lacks."""
    store = make_store()
    shutil.copytree(tmp_path / "store", tmp_path / "twin")
    first = ingest(store, tree)
    (tmp_path / "store").rename(tmp_path / "away")  # a copy whose original answers is not written to
    with FileStore.open(tmp_path / "twin", cache=tmp_path / "twin cache") as other:
        second = ingest(other, tree)
    (tmp_path / "away").rename(tmp_path / "store")
    assert first.tally.new_bytes == second.tally.new_bytes
    for part in ("packs", "manifests", "log"):
        for backend in (tmp_path / "twin").iterdir():
            shutil.copytree(backend / part, tmp_path / "store" / backend.name / part, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "twin")
    take_shards(tmp_path)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
        found = opened.verify(data=True, inline=True, workers=1)
        assert (len(found.unreadable_packs), found.lost_chunks, found.lost_object_count) == (1, 0, 0)
        restore_equals(opened, first, tree, tmp_path / "back")
        # The first look put contents together out of the pack that was lost; now they come from the other one.
        assert opened.verify(data=True, inline=True, workers=1).exit_code == 4
        assert ingest(opened, tree).tally.new_chunks == 0


def test_objects_and_chunks_of_programs_heal_likewise(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    content = random.Random(5).randbytes(90_000)
    before = store.put_object("key", io.BytesIO(content))
    take_shards(tmp_path)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 3
    after = store.put_object("key", io.BytesIO(content))
    for each in (before, after):
        with store.get_object_data(each.id) as stream:
            assert stream.read() == content
    assert store.verify(data=True, inline=True, workers=1).exit_code == 4


def test_a_chunk_that_is_deleted_stays_dead_when_its_lost_copy_comes_back(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store()
    data = random.Random(6).randbytes(3000)
    chunk = blake3(data).digest()
    store.write_chunk(chunk, data)
    take_shards(tmp_path)
    assert store.verify(data=True, inline=True, workers=1).unreadable_packs
    store.write_chunk(chunk, data)
    assert store.get_chunk_data(chunk) == data
    assert sum(batch.num_rows for batch in store.iterate_chunks()) == store.get_index_stats().total_chunks == 2
    store.delete_chunk(chunk)
    bring_back(tmp_path)
    store.verify(data=True, inline=True, workers=1)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened, pytest.raises(NotFound):
        opened.get_chunk_data(chunk)


def test_an_index_on_disk_is_built_anew_once(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    store = make_store(index="disk")
    ingest(store, tree)
    ingest(store, tree)
    cache = IndexCache(store.replicas.cache, "chunks")
    before = cache.status(store.state)
    take_shards(tmp_path)
    store.verify(data=True, inline=True, workers=1)
    assert (before.condition, cache.status(store.state).condition) == ("current", "stale")
    with cache.bring_up_to_date(store.state, store.replicas, lambda: None) as usable:
        folder = usable.folder
    after = cache.status(store.state)
    assert after.condition == "current" and after.entries < before.entries
    with cache.bring_up_to_date(store.state, store.replicas, lambda: None) as usable:
        assert usable.folder == folder


def test_where_the_note_is_lost_all_is_stored_again(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    store = make_store()
    first = ingest(store, tree)
    take_shards(tmp_path)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 3
    for path in (tmp_path / "store").rglob("manifests/scrubs/*"):
        path.unlink()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "other cache") as opened:
        again = ingest(opened, tree)
        assert again.tally.new_bytes == first.tally.new_bytes
        assert any("scrubs" in reason for reason in again.lost_manifests)


def test_the_command_line_heals(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(random.Random(3).randbytes(300_000))

    def drystone(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, "-s", str(tmp_path / "store"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    subprocess.run([COMMAND, "init", str(tmp_path / "store")], check=True, capture_output=True)
    assert drystone("ingest", str(tmp_path / "file"), "-q").returncode == 0
    take_shards(tmp_path)
    found = drystone("verify", "--data")
    assert found.returncode == 3 and "1 pack that can't be read whole" in found.stdout
    assert "the next ingest stores again" in found.stderr
    shown = drystone("status")
    assert shown.returncode == 3 and shown.stdout.startswith("safe: NO: 1 of 1 pack can't be given back")
    assert "drystone ingest" in shown.stdout
    assert drystone("ingest", str(tmp_path / "file"), "-q").returncode == 0
    restored = drystone("restore", "--to", str(tmp_path / "back"))
    assert restored.returncode == 0 and "decoded" not in restored.stderr
    assert (tmp_path / "back/file").read_bytes() == (tmp_path / "file").read_bytes()
    record = json.loads(drystone("verify", "--data", "--json").stdout)
    assert (record["exit_code"], record["unreadable_packs"], record["lost_chunks"]) == (4, 1, 0)
    status = json.loads(drystone("status", "--json").stdout)
    assert (status["exit_code"], status["lost_packs"], status["spare_packs"]) == (4, 0, 1)
