"""Chunks: how bytes are cut, and how contents are named."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import format as fmt
from manifests.config import ChunkerSpec
from stages.chunk import Chunker, ContentHasher, chunk_id

SPECS = [
    ChunkerSpec("fastcdc", 256),
    ChunkerSpec("fastcdc", 1000),
    ChunkerSpec("fastcdc", 4096),
    ChunkerSpec("fastcdc", 128 << 10),
    ChunkerSpec("fixed", 64),
    ChunkerSpec("fixed", 5000),
    ChunkerSpec("fixed", 64 << 10),
]
FASTCDC = [spec for spec in SPECS if spec.algorithm == "fastcdc"]
SEEDS = [0, 1, 0x5EED_5EED_5EED]


def noise(length: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def texts(spec: ChunkerSpec) -> Iterator[bytes]:
    """Contents of all sorts: noise, zeros, repetition, their mixture, and lengths around the limits."""
    size = spec.maximum
    yield noise(7 * size + 13, 1)
    yield bytes(5 * size)
    yield (noise(spec.size // 3 + 1, 2) * 40)[: 9 * size]
    yield noise(2 * size, 3) + bytes(3 * size) + noise(2 * size, 4)
    for length in {0, 1, spec.minimum - 1, spec.minimum, spec.minimum + 1, size - 1, size, size + 1, 2 * size}:
        yield noise(length, length)


def cut_in_pieces(chunker: Chunker, data: bytes, choose: random.Random, end_known_late: bool) -> list[int]:
    """Cut `data` as a reader does that sees it through buffers of at least twice the largest chunk, carrying what lies
    behind the last sure boundary to the head of the next buffer."""
    lengths: list[int] = []
    start = 0
    while True:
        room = choose.randint(2 * chunker.spec.maximum, 4 * chunker.spec.maximum)
        piece = memoryview(data)[start : start + room]
        at_end = start + len(piece) == len(data)
        final = at_end and not end_known_late
        found = chunker.cut(piece, final)
        assert len(piece) - sum(found) <= chunker.spec.maximum, "more than a chunk is carried"
        assert found or final or at_end, "a full buffer gave no chunk"
        lengths += found
        start += sum(found)
        if at_end and not final:
            return lengths + chunker.cut(memoryview(data)[start:], True)
        if final:
            return lengths


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_chunks_cover_the_data_within_the_limits(spec: ChunkerSpec) -> None:
    chunker = Chunker(spec, 7)
    for data in texts(spec):
        lengths = chunker.cut(memoryview(data), True)
        assert sum(lengths) == len(data)
        assert all(0 < length <= spec.maximum for length in lengths)
        assert all(length >= spec.minimum for length in lengths[:-1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cutting_in_pieces_equals_cutting_at_once(spec: ChunkerSpec, seed: int) -> None:
    chunker = Chunker(spec, seed)
    choose = random.Random(seed)
    for data in texts(spec):
        whole = chunker.cut(memoryview(data), True)
        for end_known_late in (False, True):
            assert cut_in_pieces(chunker, data, choose, end_known_late) == whole


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 400)), max_size=8),
    seed=st.integers(0, 2**63 - 1),
    choose=st.randoms(use_true_random=False),
    late=st.booleans(),
)
def test_cutting_in_pieces_equals_cutting_at_once_on_any_text(
    text: list[tuple[bytes, int]], seed: int, choose: random.Random, late: bool
) -> None:
    data = b"".join(word * times for word, times in text)
    chunker = Chunker(ChunkerSpec("fastcdc", 256), seed)
    assert cut_in_pieces(chunker, data, choose, late) == chunker.cut(memoryview(data), True)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_file_up_to_the_minimum_is_one_chunk_and_an_empty_one_none(spec: ChunkerSpec) -> None:
    chunker = Chunker(spec, 0)
    assert chunker.cut(memoryview(b""), True) == []
    for length in {1, spec.minimum - 1, spec.minimum}:
        assert chunker.cut(memoryview(noise(length, 0)), True) == [length]


def test_fixed_pieces_are_of_the_length_asked_for() -> None:
    chunker = Chunker(ChunkerSpec("fixed", 100), 0)
    assert chunker.cut(memoryview(bytes(350)), True) == [100, 100, 100, 50]
    assert chunker.cut(memoryview(bytes(300)), True) == [100, 100, 100]
    assert sum(chunker.cut(memoryview(bytes(350)), False)) == 300


@pytest.mark.parametrize("spec", FASTCDC, ids=str)
def test_the_average_on_noise_is_near_the_one_asked_for(spec: ChunkerSpec) -> None:
    data = noise(min(300 * spec.size, 16 << 20), 5)
    mean = len(data) / len(Chunker(spec, 3).cut(memoryview(data), True))
    assert spec.size * 0.7 < mean < spec.size * 1.6


@pytest.mark.parametrize("spec", FASTCDC, ids=str)
def test_seeds_cut_differently_and_one_seed_always_alike(spec: ChunkerSpec) -> None:
    data = memoryview(noise(min(200 * spec.size, 8 << 20), 6))
    cuts = [Chunker(spec, seed).cut(data, True) for seed in SEEDS]
    ends = [set(np.cumsum(cut[:-1]).tolist()) for cut in cuts]
    for i, a in enumerate(ends):
        assert Chunker(spec, SEEDS[i]).cut(data, True) == cuts[i]
        for b in ends[:i]:
            assert len(a & b) < 0.2 * len(a)


@pytest.mark.parametrize("inserted", [1, 777, 20_000])
def test_an_insertion_at_the_front_leaves_most_chunks_as_they_were(inserted: int) -> None:
    chunker = Chunker(ChunkerSpec("fastcdc", 4096), 11)

    def ids(data: bytes) -> list[bytes]:
        ends = np.cumsum(chunker.cut(memoryview(data), True)).tolist()
        return [chunk_id(data[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    data = noise(1 << 20, 8)
    before, after = ids(data), set(ids(noise(inserted, 9) + data))
    assert sum(identity in after for identity in before) > 0.9 * len(before)
    assert before[-100:] == [identity for identity in before[-100:] if identity in after]


def test_a_chunk_is_named_by_the_blake3_of_its_bytes() -> None:
    data = noise(1000, 10)
    assert chunk_id(data) == chunk_id(memoryview(data)) == blake3(data).digest()
    assert chunk_id(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


extents_of = st.lists(st.tuples(st.integers(0, 1000), st.binary(min_size=1, max_size=300)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(parts=extents_of, tail=st.integers(0, 1 << 40), split=st.integers(0, 12))
def test_content_id_follows_the_formula(parts: list[tuple[int, bytes]], tail: int, split: int) -> None:
    """BLAKE3(domain tag ‖ per extent: offset u64, length u32, chunk id ‖ size u64), computed here without the code's
    dtypes; holes are the gaps, and how the extents come in batches makes no difference."""
    formula = blake3(b"drystone content v1\x00")
    rows = np.zeros(len(parts), fmt.EXTENT_DTYPE)
    at = 0
    for row, (hole, data) in zip(rows, parts, strict=True):
        at += hole
        identity = blake3(data).digest()
        formula.update(struct.pack("<QI32s", at, len(data), identity))
        row["offset"], row["length"], row["id"] = at, len(data), np.frombuffer(identity, np.uint8)
        at += len(data)
    size = at + tail
    formula.update(struct.pack("<Q", size))

    hasher = ContentHasher()
    for some, pieces in ((rows[:split], parts[:split]), (rows[split:], parts[split:])):
        hasher.add_extents(some)
        for _, data in pieces:
            hasher.add_bytes(memoryview(data))
    assert hasher.digest() == blake3(b"".join(data for _, data in parts)).digest()
    assert hasher.content_id(size) == formula.digest()


def test_content_id_tells_size_offset_and_chunk_apart() -> None:
    def content_id(offset: int, data: bytes, size: int) -> bytes:
        row = np.zeros(1, fmt.EXTENT_DTYPE)
        row["offset"], row["length"], row["id"] = offset, len(data), np.frombuffer(chunk_id(data), np.uint8)
        hasher = ContentHasher()
        hasher.add_extents(row)
        hasher.add_bytes(memoryview(data))
        return hasher.content_id(size)

    variants = [(0, b"a", 9), (1, b"a", 9), (0, b"b", 9), (0, b"a", 10), (0, b"aa", 9)]
    assert len({content_id(*variant) for variant in variants}) == len(variants)
