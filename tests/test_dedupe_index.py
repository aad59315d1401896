"""The dedupe index in memory, held against a Python set, and its promise about memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.index import Ids, Lengths, Mask
from stages.dedupe import FIRST_CAPACITY, SUB_TABLES, MemoryIndex

FIRST_BYTES = 5 << 20
BYTES_AN_ID = 30


def as_array(ids: list[bytes]) -> Ids:
    return np.frombuffer(bytearray(b"".join(ids)), np.uint8).reshape(-1, 32)


def named(number: int) -> bytes:
    """Id number 0 begins with the 16 zero bytes that mark an empty place; the others are spread as ids are."""
    return bytes(16) + b"x" * 16 if number == 0 else blake3(number.to_bytes(8, "little")).digest()


def clustered(number: int, sub: int = 7) -> bytes:
    """Ids that all want the last place of one sub-table, so that probing runs over its end to the front."""
    return bytes([sub, 0, 0, 0, 255, 255, 255, 255]) + number.to_bytes(24, "little")


def random_ids(count: int, seed: int) -> Ids:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def lengths_of(ids: Ids) -> Lengths:
    """A length for each id, which follows from it."""
    return ids[:, 16:20].copy().view("<u4").ravel() | np.uint32(1)


def add(index: MemoryIndex, ids: Ids) -> Mask:
    return index.put_batch(ids, lengths_of(ids))


def has(index: MemoryIndex, ids: Ids) -> Mask:
    """Which ids are known; those that are must have their lengths."""
    lengths = index.get_batch(ids)
    assert ((lengths == 0) | (lengths == lengths_of(ids))).all()
    return lengths > 0


def expected_of(known: set[bytes], ids: list[bytes]) -> list[bool]:
    """What `add` must answer: of equal ids in a batch the first is new, if it was not known."""
    answer = []
    for identity in ids:
        answer.append(identity not in known)
        known.add(identity)
    return answer


@settings(max_examples=120, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 60), max_size=50), max_size=12),
    maker=st.sampled_from([named, clustered]),
)
def test_the_index_is_a_set(batches: list[list[int]], maker: Callable[[int], bytes]) -> None:
    index, known = MemoryIndex(), set[bytes]()
    every = [maker(number) for number in range(61)]
    for batch in batches:
        ids = [maker(number) for number in batch]
        if ids:
            assert has(index, as_array(ids)).tolist() == [identity in known for identity in ids]
        assert add(index, as_array(ids)).tolist() == expected_of(known, ids)
        assert len(index) == len(known)
        assert has(index, as_array(every)).tolist() == [identity in known for identity in every]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_of_equal_ids_in_a_batch_only_the_first_is_new(count: int) -> None:
    index = MemoryIndex()
    assert add(index, as_array([named(5)] * count)).tolist() == [True, False, False, False, False][:count]
    assert len(index) == min(count, 1)
    assert add(index, as_array([named(5)] * 2)).tolist() == [count == 0, False]


def test_an_id_that_begins_with_zeros_is_kept_like_any_other() -> None:
    index = MemoryIndex()
    zero = as_array([named(0), named(1)])
    assert not has(index, zero).any()
    assert add(index, zero).all()
    assert has(index, zero).all()
    assert not add(index, zero).any()
    assert len(index) == 2


@pytest.mark.parametrize("ids", [[0], [3], [0, 0], [0, 3]], ids=str)
def test_a_batch_stays_the_callers(ids: list[int]) -> None:
    """A sealed slot is never written to, so batches come as read-only views, of any length."""
    raw = b"".join(named(number) for number in ids)
    batch = np.frombuffer(raw, np.uint8).reshape(-1, 32)
    assert not batch.flags.writeable
    index = MemoryIndex()
    add(index, batch)
    assert has(index, batch).all()


@pytest.mark.parametrize("ids", [[0], [0, 0]], ids=str)
def test_asking_does_not_change_the_ids_asked_for(ids: list[int]) -> None:
    batch = as_array([named(number) for number in ids])
    before = batch.copy()
    index = MemoryIndex()
    has(index, batch)
    add(index, batch)
    assert (batch == before).all()


def test_a_sub_table_whose_ids_all_collide_grows_and_wraps() -> None:
    index, known = MemoryIndex(), set[bytes]()
    for start in range(0, 1800, 600):
        ids = [clustered(number // 2) for number in range(start, start + 1200)]
        assert add(index, as_array(ids)).tolist() == expected_of(known, ids)
    assert len(index) == len(known)
    assert index.touched_bytes > SUB_TABLES * FIRST_CAPACITY * 20, "it never grew"
    assert has(index, as_array(sorted(known))).all()
    assert not has(index, as_array([clustered(number) for number in range(5000, 5100)])).any()


class Watched(MemoryIndex):
    """Counts how often the address space was widened."""

    widened = 0

    def _widen(self, capacity: int) -> None:
        super()._widen(capacity)
        self.widened += 1


def test_nothing_is_lost_or_found_twice_while_growing_through_many_sizes() -> None:
    index = Watched()
    ids = random_ids(700_000, 1)
    seen = 0
    for size in [1, 2, 700, 50_000, 250_000, 399_297]:
        batch = ids[seen : seen + size]
        assert not has(index, batch).any()
        assert add(index, batch).all()
        seen += size
        assert len(index) == seen
        assert has(index, ids[:seen]).all()
    assert seen > 690_000
    assert index.widened
    assert not add(index, ids[:seen]).any()
    assert not has(index, random_ids(10_000, 2)).any()


def test_what_was_expected_needs_hardly_any_growth() -> None:
    index = Watched(expected=300_000)
    room = index.touched_bytes
    assert room <= FIRST_BYTES + BYTES_AN_ID * 300_000
    assert add(index, random_ids(300_000, 3)).all()
    assert index.widened == 0 and index.touched_bytes <= 1.02 * room


@pytest.mark.parametrize("batch", [4096, 32 << 10, 1_000_000])
def test_memory_stays_within_its_bound_also_while_growing(batch: int) -> None:
    index = Watched()
    ids = random_ids(1_000_000, 4)
    for start in range(0, len(ids), batch):
        add(index, ids[start : start + batch])
        assert index.touched_bytes <= FIRST_BYTES + BYTES_AN_ID * len(index)
    assert len(index) == 1_000_000
    assert index.widened
    assert (index.touched_bytes - FIRST_BYTES) / len(index) <= BYTES_AN_ID


@pytest.mark.parametrize("batch", [4096, 32 << 10, 400_000])
def test_ids_that_are_known_already_cost_no_memory(batch: int) -> None:
    index = MemoryIndex()
    distinct = random_ids(200_000, 5)
    ids: Ids = np.concatenate([distinct, distinct])
    for _ in range(2):
        for start in range(0, len(ids), batch):
            new: Mask = add(index, ids[start : start + batch])
            assert len(new) == len(ids[start : start + batch])
    assert len(index) == len(distinct)
    assert index.touched_bytes <= FIRST_BYTES + BYTES_AN_ID * len(index)
