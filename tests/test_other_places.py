"""Chunks that lie in several places: whoever reads tries them all, and nothing is called lost that any of them gives
back. Sequences of damage, healing, verifications and ingests are held against a simple model of what is readable."""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.config import ECScheme
from manifests.copies import OtherPlaces, read_places
from manifests.ids import new_id
from manifests.log import make_record, write_record
from manifests.schema import SCHEMAS
from manifests.tables import TableWriter, file_name
from pipeline.filestore import FileStore
from pipeline.ingest.parent import ParentOptions
from pipeline.ingest.run import IngestOptions
from pipeline.packreader import ReadFigures
from pipeline.restore.run import RestoreRequest, RestoreResult
from pipeline.verify.run import VerifyResult
from stages.shard import shard_key
from tests.sampling import one_in
from tests.test_hostile_input import lie
from tests.trees import assert_equal_trees

K, TOTAL = 4, 6
AGAIN = IngestOptions(inline=True, workers=1, parent=ParentOptions(force=True))
MakeStore = Callable[..., FileStore]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of one chunk, of several in one block, and of many."""
    chance = random.Random(3)
    (tmp_path / "tree").mkdir()
    for number in range(12):
        (tmp_path / "tree" / f"small-{number}").write_bytes(chance.randbytes(900))
    for number in range(4):
        (tmp_path / "tree" / f"middle-{number}").write_bytes(chance.randbytes(30_000))
    (tmp_path / "tree" / "large").write_bytes(chance.randbytes(400_000))
    return tmp_path / "tree"


@pytest.fixture(autouse=True)
def large_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that verifications read some contents in each of the two ways."""
    monkeypatch.setattr("manifests.contents.LARGE", 12)


class Rows:
    """The rows of a store's manifests, read without it."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def __call__(self, table: str) -> list[dict[str, Any]]:
        paths = self._store.replicas.paths(self._store.state.files(table))
        return [row for path in paths for row in pq.read_table(path).to_pylist()]


def add_rows(store: FileStore, table: str, rows: list[dict[str, Any]]) -> None:
    """Let the store have more rows, by a record of its own."""
    run_id, writer = new_id(store.state.newest), TableWriter(table)
    columns = pa.Table.from_pylist(rows, schema=SCHEMAS[table])
    writer.append({name: columns.column(name).combine_chunks() for name in columns.column_names})
    manifest = writer.publish(store.members, file_name(run_id, 0))
    write_record(store.members, make_record(run_id, "ingest", {"run": {}}, [manifest]))
    store.refresh()


class Shards:
    """The shard files of a store: damaged and put back."""

    def __init__(self, place: Path, aside: Path) -> None:
        self.place, self.aside = place, aside
        aside.mkdir()
        self.bad: dict[tuple[str, int], Path] = {}

    def packs(self) -> list[str]:
        return sorted({path.stem for path in self.place.rglob("packs/*/*")} | {pack for pack, _ in self.bad})

    def spoil(self, pack: str, index: int, how: str) -> None:
        if (pack, index) in self.bad:
            return
        [path] = self.place.rglob(f"packs/*/{pack}.{index}")
        shutil.move(path, self.aside / path.name)
        self.bad[pack, index] = path
        if how == "noise":
            path.write_bytes(random.Random(index).randbytes((self.aside / path.name).stat().st_size))
        elif how == "zeros":
            path.write_bytes(bytes(3000))

    def put_back(self, pack: str) -> None:
        for each in [each for each in self.bad if each[0] == pack]:
            path = self.bad.pop(each)
            shutil.move(self.aside / path.name, path)


def readable(rows: Rows, shards: Shards) -> Iterator[bytes]:
    """The chunks that some place gives back: in packs with enough shards, or in a block all of which is there."""
    packs = {row["pack_id"]: row for row in rows("packs")}
    blocks = {(row["pack_id"], row["block"]): row for row in rows("blocks")}
    for row in rows("chunks"):
        pack, block = packs.get(row["pack_id"]), blocks.get((row["pack_id"], row["block"]))
        if pack is None or block is None or row["offset"] + row["length"] > block["raw"]:
            continue
        name = shard_key(uuid.UUID(bytes=row["pack_id"]), 0).rpartition("/")[2].partition(".")[0]
        bad = {index for pack_name, index in shards.bad if pack_name == name}
        first = block["offset"] // pack["shard_length"]
        last = (block["offset"] + block["stored"] - 1) // pack["shard_length"]
        if len(bad) <= TOTAL - K or not bad & set(range(first, last + 1)):
            yield row["chunk_id"]


def expected_lost(store: FileStore, shards: Shards) -> set[tuple[bytes, bytes]]:
    """(run, path) of the objects that nothing gives back, by the model."""
    rows = Rows(store)
    there = set(readable(rows, shards))
    extents: dict[bytes, set[bytes]] = {}
    for row in rows("extents"):
        extents.setdefault(row["content_id"], set()).add(row["chunk_id"])
    needed = {0: lambda row: set(), 1: lambda row: {row["content_id"]}, 2: lambda row: extents[row["content_id"]]}
    return {(row["run"], row["path"]) for row in rows("objects") if not needed[row["content_kind"]](row) <= there}


def restored(store: FileStore, run: str, to: Path, workers: int | None = None) -> RestoreResult:
    shutil.rmtree(to, ignore_errors=True)
    request = RestoreRequest(str(to), inline=workers is None, workers=workers or 1)
    return store.restore(f"{run}:", to, request=request)


def verified(store: FileStore) -> VerifyResult:
    return store.verify(data=True, inline=True, workers=1)


def check(store: FileStore, shards: Shards, tree: Path, to: Path, *, is_known: bool) -> None:
    """Restore and cat give back what the model has; where all damage `is_known`, the status agrees."""
    lost = expected_lost(store, shards)
    for run in store.runs():
        result = restored(store, str(run.run_id), to)
        assert {path for path, _ in result.failures} == {path for of, path in lost if of == run.run_id.bytes}
        for path in sorted(tree.iterdir()):
            name = f"tree/{path.name}"
            if (run.run_id.bytes, name.encode()) not in lost:
                assert (to / name).read_bytes() == path.read_bytes()
                assert b"".join(store.open_range(f"{run.run_id}:{name}")) == path.read_bytes()
    status = store.status()
    if is_known:
        assert (status.exit_code == 3, status.bears_backends < 0) == (bool(lost), bool(lost)), status


@pytest.mark.parametrize("seed", one_in(6, range(6)))
def test_sequences_against_a_model(make_store: MakeStore, tree: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = make_store(index=chance.choice(["memory", "disk"]))
    store.ingest([str(tree)], options=AGAIN)
    shards, is_known = Shards(tmp_path / "store", tmp_path / "aside"), True
    for step in range(10):
        action = chance.choice(["spoil", "spoil", "put back", "ingest", "verify", "verify"])
        pack = chance.choice(shards.packs())
        if action == "spoil":
            how = chance.choice(["noise", "zeros", "gone"])
            for index in chance.sample(range(TOTAL), chance.randint(1, 5)):
                shards.spoil(pack, index, how)
            is_known = False
        elif action == "put back":
            shards.put_back(pack)
            is_known = False
        elif action == "ingest":
            store.ingest([str(tree)], options=AGAIN)
        else:
            found, lost = verified(store), expected_lost(store, shards)
            assert {(run.bytes, path) for run, path in found.lost_objects} == lost, step
            assert (found.exit_code == 3, found.wrong_object_count) == (bool(lost), 0)
            is_known = True
        check(store, shards, tree, tmp_path / "to", is_known=is_known)


def stored_twice(store: FileStore, tree: Path, shards: Shards) -> str:
    """Two packs with the same chunks, of which no note tells; the name of the one that is tried first."""
    store.ingest([str(tree)], options=AGAIN)
    first = shards.packs()
    for pack in first:
        for index in range(3):
            shards.spoil(pack, index, "gone")
    verified(store)
    store.ingest([str(tree)], options=AGAIN)
    for pack in first:
        shards.put_back(pack)
    assert verified(store).exit_code == 0 and not store.state.unreadable_notes()
    return first[0]


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("how", one_in(3, ["noise", "zeros", "gone"]))
def test_a_place_that_fails_is_no_loss_while_there_is_another(
    make_store: MakeStore, tree: Path, tmp_path: Path, how: str, workers: int | None
) -> None:
    store, shards = make_store(), Shards(tmp_path / "store", tmp_path / "aside")
    pack = stored_twice(store, tree, shards)
    for index in range(4):
        shards.spoil(pack, index, how)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "other cache") as opened:
        result = restored(opened, "latest", tmp_path / "to", workers)
        assert (result.exit_code, result.failures) == (0, []) and result.elsewhere > 0
        assert_equal_trees(tree, tmp_path / "to/tree")
        figures = ReadFigures()
        large = b"".join(opened.open_range("latest:tree/large", figures=figures))
        assert large == (tree / "large").read_bytes() and figures.elsewhere > 0
        found = opened.verify(data=True, inline=workers is None, workers=workers or 1)
        assert (found.exit_code, found.lost_chunks, found.wrong_object_count) == (4, 0, 0)
        assert len(found.unreadable_packs) == 1
        result = restored(opened, "latest", tmp_path / "to", workers)
        assert (result.exit_code, result.elsewhere) == (0, 0), "what is noted is tried last"


def test_the_note_stays_as_long_as_the_place_is_unreadable(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    store, shards = make_store(), Shards(tmp_path / "store", tmp_path / "aside")
    store.ingest([str(tree)], options=AGAIN)
    packs = shards.packs()
    for pack in packs:
        for index in range(4):
            shards.spoil(pack, index, "noise")
    assert verified(store).exit_code == 3
    assert store.status().exit_code == 3
    store.ingest([str(tree)], options=AGAIN)
    status = store.status()
    assert (status.exit_code, status.bears_backends, status.known_loss) == (4, 2, "")
    for _ in range(3):
        found = verified(store)
        assert (found.exit_code, len(found.unreadable_packs), found.wrong_object_count) == (4, len(packs), 0)
        status = store.status()
        assert (status.exit_code, status.bears_backends, status.spare_packs) == (4, 2, len(packs))
        for run in store.runs():
            assert restored(store, str(run.run_id), tmp_path / "to").exit_code == 0
            assert_equal_trees(tree, tmp_path / "to/tree")
    for pack in packs:
        shards.put_back(pack)
    assert verified(store).exit_code == 0


@pytest.mark.parametrize(
    ("change", "verdict"),
    one_in(
        2,
        [
            ({"pack_id": bytes(16)}, 0),
            ({"block": 4000}, 4),
            ({"offset": 7}, 4),
            ({"length": 5}, 4),
        ],
        several=True,
    ),
    ids=["another pack", "another block", "another offset", "another length"],
)
def test_a_row_too_many_hides_no_true_one(
    make_store: MakeStore, tree: Path, tmp_path: Path, change: dict[str, Any], verdict: int
) -> None:
    """Each chunk is placed once more, where it is not."""
    store = make_store()
    store.ingest([str(tree)], options=AGAIN)
    add_rows(store, "chunks", [{**row, **change} for row in Rows(store)("chunks")])
    result = restored(store, f"{store.runs()[0].run_id}", tmp_path / "to")
    assert (result.exit_code, result.failures) == (0, [])
    assert_equal_trees(tree, tmp_path / "to/tree")
    for path in tree.iterdir():
        assert b"".join(store.open_range(f"{store.runs()[0].run_id}:tree/{path.name}")) == path.read_bytes()
    found = verified(store)
    assert (found.lost_chunks, found.lost_object_count, found.wrong_object_count) == (0, 0, 0)
    assert found.exit_code == verdict
    assert store.status().bears_backends == 2
    assert restored(store, f"{store.runs()[0].run_id}", tmp_path / "to").exit_code == 0


def test_a_chunk_that_is_placed_wrongly_alone_is_stored_again(
    make_store: MakeStore, tree: Path, tmp_path: Path
) -> None:
    """Manifests that place a chunk nowhere: the verification says so, and the next ingest heals."""
    store = make_store()
    store.ingest([str(tree)], options=AGAIN)
    lie(tmp_path / "store", "chunks", "pack_id", lambda old: b"\xff" * 16)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "other cache") as opened:
        assert verified(opened).exit_code == 3
        assert opened.status().exit_code == 3
        opened.ingest([str(tree)], options=AGAIN)
        assert restored(opened, "latest", tmp_path / "to").exit_code == 0
        assert_equal_trees(tree, tmp_path / "to/tree")
        assert (opened.status().exit_code, opened.status().known_loss) == (4, "")


def test_places_of_many_chunks_are_found() -> None:
    chance = random.Random(8)
    ids = sorted(chance.randbytes(32) for _ in range(300))
    rows = [
        (name, bytes([copy]) * 16, 4, 2, 100, 64, number, copy, 10, 20, 0, 0, 20)
        for number, name in enumerate(ids)
        for copy in range(number % 3)
    ]
    with OtherPlaces() as others:
        others.add_all(iter(rows))
        for number, name in enumerate(ids):
            found = [(place.pack_id[0], place.block) for place in read_places(others.fd, name)]
            assert found == [(copy, number) for copy in range(number % 3)]
        assert read_places(others.fd, bytes(32)) == read_places(others.fd, b"\xff" * 32) == []


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("case", one_in(2, ["absent", "noted", "no extents", "wide"]))
def test_what_the_archive_lost_is_not_to_be_deleted(
    make_store: MakeStore, tree: Path, tmp_path: Path, case: str, data: bool
) -> None:
    """A comparison names the objects that a restore does not give back."""
    if case == "wide":
        with FileStore.create(
            [tmp_path / "store" / f"{number}" for number in range(8)], scheme=ECScheme(4, 2), cache=tmp_path / "cache"
        ) as made:
            made.ingest([str(tree)], options=AGAIN)
    else:
        make_store().ingest([str(tree)], options=AGAIN)
    place = tmp_path / "store"
    shards = Shards(place, tmp_path / "aside")
    if case == "noted":
        for pack in shards.packs():
            for index in range(4):
                shards.spoil(pack, index, "noise")
        with FileStore.open(place, cache=tmp_path / "other cache") as opened:
            assert verified(opened).exit_code == 3
    elif case == "no extents":
        lie(place, "extents", "content_id", bytes(32))
    else:
        for backend in [each for each in sorted(place.iterdir()) if any(each.rglob("packs/*/*"))][:3]:
            shutil.move(backend, tmp_path / "aside" / backend.name)
    with FileStore.open(place, cache=tmp_path / "another cache") as opened:
        found = opened.compare("latest", tree, data=data)
        named = {each.path: each.verdict for each in found}
        failed = {path for path, _ in restored(opened, "latest", tmp_path / "to").failures}
        assert failed and failed <= named.keys() and set(named.values()) == {"incomplete"}
        assert (found.may_be_deleted, found.equal, found.exit_code) == (False, False, 3)
    if case in ("absent", "wide"):
        assert failed == named.keys()


def test_what_was_stored_again_may_be_deleted(make_store: MakeStore, tree: Path, tmp_path: Path) -> None:
    store, shards = make_store(), Shards(tmp_path / "store", tmp_path / "aside")
    store.ingest([str(tree)], options=AGAIN)
    for pack in shards.packs():
        for index in range(4):
            shards.spoil(pack, index, "noise")
    verified(store)
    store.ingest([str(tree)], options=AGAIN)
    for run in store.runs():
        found = store.compare(str(run.run_id), tree, data=True)
        assert (list(found), found.may_be_deleted, found.exit_code) == ([], True, 0)
