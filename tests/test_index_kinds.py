"""The suite that each kind of dedupe index passes: one interface, held against a dict."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manifests import diskindex
from manifests.config import INDEX_KINDS
from manifests.diskindex import DiskIndex
from manifests.errors import DamagedIndex
from manifests.index import ENTRY, KEY_BYTES, Entries, Ids, Index, Lengths, known_rows
from manifests.ordering import PARTS, in_order
from stages.dedupe import MemoryIndex

Make = Callable[[Path], Index]
MAKERS: dict[str, Make] = {"memory": lambda _: MemoryIndex(), "disk": lambda folder: DiskIndex(folder / "index")}


def test_every_kind_is_here() -> None:
    assert tuple(MAKERS) == INDEX_KINDS


@pytest.fixture(params=list(MAKERS))
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    made = MAKERS[request.param](tmp_path)
    yield made
    made.close()


def as_array(ids: list[bytes]) -> Ids:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)


def lengths(*values: int) -> Lengths:
    return np.array(values, np.uint32)


def named(number: int) -> bytes:
    """Id number 0 begins with zeros, number 1 with the highest bytes; the others are spread as ids are."""
    edges = [bytes(31) + b"\1", b"\xff" * 32]
    return edges[number] if number < len(edges) else blake3(number.to_bytes(8, "little")).digest()


def random_ids(count: int, seed: int = 1) -> Ids:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def held(index: Index) -> dict[bytes, int]:
    """All that `iterate` gives, each once."""
    found: dict[bytes, int] = {}
    for batch in index.iterate():
        assert batch.dtype == ENTRY and len(batch)
        for entry in batch:
            key = entry["key"].tobytes()
            assert key not in found, "given out twice"
            found[key] = int(entry["length"])
    return found


def test_a_new_index_is_empty(index: Index) -> None:
    assert len(index) == 0 and index.total_bytes == 0
    assert index.get_batch(random_ids(5)).tolist() == [0] * 5
    assert index.delete(random_ids(5)) == 0
    assert held(index) == {}


def test_empty_batches_are_batches(index: Index) -> None:
    nothing = random_ids(0)
    assert index.put_batch(nothing, lengths()).tolist() == []
    assert index.get_batch(nothing).tolist() == []
    assert index.delete(nothing) == 0


def test_of_equal_ids_the_first_is_new_and_keeps_its_length(index: Index) -> None:
    one, other = named(2), named(3)
    assert index.put_batch(as_array([one, other, one]), lengths(5, 7, 9)).tolist() == [True, True, False]
    assert index.put_batch(as_array([other, one]), lengths(1, 1)).tolist() == [False, False]
    assert index.get_batch(as_array([other, one, other])).tolist() == [7, 5, 7]
    assert (len(index), index.total_bytes) == (2, 12)


def test_the_longest_lengths_fit(index: Index) -> None:
    most = 2**32 - 1
    index.put_batch(as_array([named(number) for number in range(3)]), lengths(most, most, most))
    assert index.get_batch(as_array([named(1)])).tolist() == [most]
    assert index.total_bytes == 3 * most


def test_what_is_deleted_is_unknown_and_may_come_again(index: Index) -> None:
    ids = random_ids(3000)
    index.put_batch(ids, np.arange(1, 3001, dtype=np.uint32))
    gone = np.concatenate([ids[::3], ids[::3], random_ids(10, seed=2)])  # twice, and with strangers
    assert index.delete(gone) == 1000
    assert (index.get_batch(ids[::3]) == 0).all()
    kept = np.arange(3000) % 3 != 0
    assert (index.get_batch(ids[kept]) == np.arange(1, 3001)[kept]).all()
    assert len(index) == 2000 and index.total_bytes == int(np.arange(1, 3001)[kept].sum())
    assert index.put_batch(ids, np.full(3000, 8, np.uint32)).sum() == 1000
    assert index.get_batch(ids[:2]).tolist() == [8, 2]


def test_deleting_everything_leaves_an_empty_index(index: Index) -> None:
    ids = random_ids(500)
    index.put_batch(ids, np.ones(500, np.uint32))
    assert index.delete(ids) == 500
    assert len(index) == 0 and index.total_bytes == 0 and held(index) == {}


@pytest.mark.parametrize("how", ["sorted", "reversed", "mixed"])
def test_the_order_of_a_batch_does_not_matter(index: Index, how: str) -> None:
    ids = random_ids(20_000)
    order = np.lexsort(ids[:, ::-1].T)
    ids = ids[{"sorted": order, "reversed": order[::-1], "mixed": np.arange(len(ids))}[how]]
    sizes = ids[:, 20].astype(np.uint32) + 1
    for start in range(0, len(ids), 7000):
        assert index.put_batch(ids[start : start + 7000], sizes[start : start + 7000]).all()
    assert (index.get_batch(ids) == sizes).all()
    assert not index.put_batch(ids, sizes).any()
    assert held(index) == {row[:KEY_BYTES].tobytes(): int(size) for row, size in zip(ids, sizes, strict=True)}


def test_a_stream_holds_what_its_filter_accepts(index: Index) -> None:
    ids = random_ids(5000)
    index.put_batch(ids, np.arange(1, 5001, dtype=np.uint32))
    seen: list[int] = []

    def accept(entries: Entries) -> np.ndarray:
        seen.append(len(entries))
        return entries["length"] > 4990

    found = list(index.stream(accept))
    assert all(len(batch) for batch in found), "no empty batches"
    assert sorted(int(length) for batch in found for length in batch["length"]) == list(range(4991, 5001))
    assert sum(seen) == 5000


def test_batches_are_not_written_to(index: Index) -> None:
    ids = as_array([named(0), named(0), named(1)])
    assert not ids.flags.writeable
    index.put_batch(ids, lengths(1, 2, 3))
    assert index.get_batch(ids).tolist() == [1, 1, 3]
    assert index.delete(ids) == 2


def test_keys_that_were_given_out_are_taken_for_ids(index: Index) -> None:
    index.put_batch(random_ids(100), np.full(100, 9, np.uint32))
    (entries,) = [np.concatenate(list(index.iterate()))]
    assert (index.get_batch(entries["key"]) == 9).all()
    assert index.delete(entries["key"]) == 100


def test_sync_and_closing_twice_do_no_harm(index: Index) -> None:
    index.put_batch(random_ids(10), np.ones(10, np.uint32))
    index.sync()
    assert len(index) == 10
    index.close()
    index.close()


@pytest.mark.parametrize("kind", list(MAKERS))
def test_destroying_leaves_nothing_on_disk(kind: str, tmp_path: Path) -> None:
    index = MAKERS[kind](tmp_path)
    index.put_batch(random_ids(10), np.ones(10, np.uint32))
    index.destroy()
    index.destroy()
    assert list(tmp_path.iterdir()) == []


class Model(RuleBasedStateMachine):
    """An index does what a dict does."""

    kind: str
    numbers = st.lists(st.integers(0, 40), max_size=30)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.index = MAKERS[self.kind](self.folder)
        self.known: dict[bytes, int] = {}

    @rule(numbers=numbers, size=st.integers(1, 2**32 - 1))
    def put(self, numbers: list[int], size: int) -> None:
        sizes = [max(1, size - place) for place in range(len(numbers))]
        expected = []
        for number, each in zip(numbers, sizes, strict=True):
            expected.append(named(number)[:KEY_BYTES] not in self.known)
            self.known.setdefault(named(number)[:KEY_BYTES], each)
        ids = as_array([named(number) for number in numbers])
        assert self.index.put_batch(ids, np.array(sizes, np.uint32)).tolist() == expected

    @rule(numbers=numbers)
    def delete(self, numbers: list[int]) -> None:
        gone = [self.known.pop(named(number)[:KEY_BYTES], None) for number in numbers]
        deleted = self.index.delete(as_array([named(number) for number in numbers]))
        assert deleted == len(gone) - gone.count(None)

    @rule()
    def sync(self) -> None:
        self.index.sync()

    @invariant()
    def same(self) -> None:
        everything = as_array([named(number) for number in range(41)])
        expected = [self.known.get(named(number)[:KEY_BYTES], 0) for number in range(41)]
        assert self.index.get_batch(everything).tolist() == expected
        assert len(self.index) == len(self.known) and self.index.total_bytes == sum(self.known.values())

    def teardown(self) -> None:
        # Id 0 begins as the mark of an empty place does, and memory gives out the key that stands for it.
        found = {(bytes(KEY_BYTES) if not any(key[:8]) else key): size for key, size in held(self.index).items()}
        assert found == self.known
        self.index.close()
        shutil.rmtree(self.folder)


class MemoryModel(Model):
    kind = "memory"


class DiskModel(Model):
    kind = "disk"


for model in (MemoryModel, DiskModel):
    model.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestMemory = MemoryModel.TestCase
TestDisk = DiskModel.TestCase


# --- what only the kind on disk has ----------------------------------------------------------------------------------


def test_a_disk_index_is_found_again(tmp_path: Path) -> None:
    ids = random_ids(1000)
    index = DiskIndex(tmp_path / "index")
    index.put_batch(ids, np.full(1000, 3, np.uint32))
    index.note_files({"a", "b", "c"}, whole=False)
    index.note_files({"a", "b"}, whole=True)
    index.sync()
    index.close()
    again = DiskIndex(tmp_path / "index", read_only=True)
    assert (again.get_batch(ids) == 3).all() and again.total_bytes == 3000
    assert again.files() == {"a", "b"} and again.files(begun=True) == {"a", "b", "c"}
    again.close()


def test_many_transactions_make_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskindex, "TXN_KEYS", 7)
    monkeypatch.setattr(diskindex, "BATCH", 5)
    index = DiskIndex(tmp_path / "index")
    ids = random_ids(200)
    twice = np.concatenate([ids, ids])
    assert index.put_batch(twice, np.full(400, 2, np.uint32)).tolist() == [True] * 200 + [False] * 200
    assert len(held(index)) == 200 and (index.get_batch(twice) == 2).all()
    assert index.delete(ids[:50]) == 50 and len(index) == 150
    index.close()


def test_an_unnamed_index_has_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    index = DiskIndex.unnamed()
    ids = random_ids(100_000)
    assert index.put_batch(ids, np.ones(100_000, np.uint32)).all()
    assert list(tmp_path.iterdir()) == []
    assert (index.get_batch(ids) == 1).all()
    index.close()


def test_a_file_that_makes_no_sense_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "data.mdb").write_bytes(b"no such thing" * 1000)
    with pytest.raises(DamagedIndex, match=r"index can't be used"):
        DiskIndex(tmp_path / "index")
    with pytest.raises(DamagedIndex, match="nowhere can't be used"):
        DiskIndex(tmp_path / "nowhere", read_only=True)


def test_rows_come_in_order_of_their_keys_part_by_part(tmp_path: Path) -> None:
    ids = random_ids(30_000)
    ids[:50, 0], ids[50:100, 0] = 0, 255
    batches = [
        known_rows(ids[start : start + 7000], np.arange(start, start + len(ids[start : start + 7000])))
        for start in range(0, 30_000, 7000)
    ]
    parts = list(in_order(batches, tmp_path))
    assert len(parts) == PARTS and list(tmp_path.iterdir()) == []
    for part, following in pairwise(parts):
        assert part["key"][:, 0].max() < following["key"][:, 0].min()
    together = np.concatenate(parts)
    expected = {identity[:KEY_BYTES].tobytes(): length for length, identity in enumerate(ids)}
    assert len(together) == len(expected)
    assert {row["key"].tobytes(): int(row["length"]) for row in together} == expected
    assert list(in_order([], tmp_path)) == []
