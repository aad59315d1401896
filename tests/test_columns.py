"""Batches: rows and heap through a buffer and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.columns import OBJECT_DTYPE, ROW_EXTENT_DTYPE, Array, Batch, HeapBuilder

names = st.binary(max_size=30)
objects = st.lists(st.tuples(names, names, names), max_size=20)
FIELDS = ("path", "target", "error")


def batch_of(values: list[tuple[bytes, bytes, bytes]], seed: int = 0) -> Batch:
    """Objects with these paths, targets and errors; all fixed fields are noise."""
    noise = np.random.default_rng(seed).bytes(len(values) * OBJECT_DTYPE.itemsize)
    rows: Array = np.frombuffer(noise, OBJECT_DTYPE).copy()
    heap = HeapBuilder()
    for number, field in enumerate(FIELDS):
        rows[f"{field}_at"], rows[f"{field}_len"] = heap.add_all([value[number] for value in values])
    return Batch(rows, heap.getvalue())


@settings(max_examples=100, deadline=None)
@given(values=objects, slack=st.integers(0, 50), seed=st.integers(0, 100))
def test_a_stored_batch_loads_as_it_was(values: list[tuple[bytes, bytes, bytes]], slack: int, seed: int) -> None:
    batch = batch_of(values, seed)
    target = bytearray(b"\xa5" * (batch.nbytes + slack))
    assert batch.store(memoryview(target)) == batch.nbytes
    assert target[batch.nbytes :] == b"\xa5" * slack
    for source in (target, bytes(target), memoryview(target)):
        loaded = Batch.load(source, OBJECT_DTYPE)
        assert loaded.rows.tobytes() == batch.rows.tobytes()
        assert bytes(loaded.heap) == batch.heap
        assert loaded.nbytes == batch.nbytes
        for number, field in enumerate(FIELDS):
            column = [value[number] for value in values]
            assert loaded.all_bytes(field) == column
            assert [loaded.bytes_of(row, field) for row in loaded.rows] == column
        del loaded


@settings(max_examples=30, deadline=None)
@given(values=objects, missing=st.integers(1, 10_000))
def test_a_target_that_is_too_small_is_refused_untouched(
    values: list[tuple[bytes, bytes, bytes]], missing: int
) -> None:
    batch = batch_of(values)
    target = bytearray(b"\xa5" * max(0, batch.nbytes - missing))
    with pytest.raises(ValueError, match="does not fit"):
        batch.store(memoryview(target))
    assert target == b"\xa5" * len(target)


def test_a_loaded_batch_is_a_view_of_its_buffer() -> None:
    target = bytearray(1000)
    batch_of([(b"a", b"", b"")]).store(memoryview(target))
    loaded = Batch.load(target, OBJECT_DTYPE)
    kept = loaded.rows.copy()
    target[8:16] = (77).to_bytes(8, "little")
    assert int(loaded.rows["row"][0]) == 77 != int(kept["row"][0])


def test_a_loaded_batch_stores_again_to_the_same_bytes() -> None:
    batch = batch_of([(b"a/b", b"", b"gone"), (b"c", b"a/b", b"")])
    first, second = bytearray(batch.nbytes), bytearray(batch.nbytes)
    batch.store(memoryview(first))
    Batch.load(first, OBJECT_DTYPE).store(memoryview(second))
    assert first == second


def test_rows_that_are_every_second_of_an_array_store_as_their_own() -> None:
    batch = batch_of([(bytes([i]), b"", b"") for i in range(10)])
    thinned = Batch(batch.rows[::2], batch.heap)
    target = bytearray(thinned.nbytes)
    thinned.store(memoryview(target))
    assert Batch.load(target, OBJECT_DTYPE).all_bytes("path") == [bytes([i]) for i in range(0, 10, 2)]


def test_a_batch_of_extents_needs_no_heap() -> None:
    rows: Array = np.zeros(3, ROW_EXTENT_DTYPE)
    rows["row"], rows["offset"], rows["length"] = [1, 1, 2], [0, 1 << 40, 5], [10, 0xFFFFFFFF, 30]
    rows["id"] = np.arange(96).reshape(3, 32)
    batch = Batch(rows, b"")
    target = bytearray(batch.nbytes)
    assert batch.store(memoryview(target)) == len(target)
    loaded = Batch.load(target, ROW_EXTENT_DTYPE)
    assert loaded.rows.tobytes() == rows.tobytes()
    assert bytes(loaded.heap) == b""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(names, st.lists(names, max_size=6)), max_size=10))
def test_the_heap_finds_each_value_again_whichever_way_it_was_added(values: list[bytes | list[bytes]]) -> None:
    heap = HeapBuilder()
    places: list[tuple[int, int, bytes]] = []
    for value in values:
        if isinstance(value, bytes):
            places.append((*heap.add(value), value))
        else:
            starts, lengths = heap.add_all(value)
            places += zip(starts.tolist(), lengths.tolist(), value, strict=True)
    whole = heap.getvalue()
    assert heap.size == len(whole)
    assert all(whole[at : at + length] == value for at, length, value in places)
