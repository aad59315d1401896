"""Blocks: compressed and back, and everything that a damaged or lying block can be."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manifests import format as fmt
from manifests.config import CodecSpec
from stages.compress import BLOCK_LARGEST, BLOCK_LEAST, BLOCK_TARGET, BlockShaper, Decoder, Encoder, split_blocks
from stages.errors import DamagedBlock

CODECS = {"none": fmt.CODEC_NONE, "lz4": fmt.CODEC_LZ4, "zstd:1": fmt.CODEC_ZSTD, "zstd:3": fmt.CODEC_ZSTD}
ENCODERS = {name: Encoder(CodecSpec.parse(name)) for name in CODECS}
DECODER = Decoder()
TEXT = b"".join(b"line %d of a text that shrinks\n" % number for number in range(3000))

codec_names = st.sampled_from(sorted(CODECS))
repeated = st.tuples(st.binary(min_size=1, max_size=200), st.integers(1, 300)).map(lambda pair: pair[0] * pair[1])
raws = st.one_of(st.binary(min_size=1, max_size=3000), repeated)


def noise(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def encode(name: str, raw: bytes) -> tuple[int, bytes]:
    """(codec, stored bytes) of `raw`; checks that nothing behind the block was written."""
    target = bytearray(b"\xa5" * (len(raw) + 64))
    codec, length = ENCODERS[name].encode(memoryview(raw), memoryview(target)[: len(raw)])
    assert target[len(raw) :] == b"\xa5" * 64
    return codec, bytes(target[:length])


def decode_or_refuse(codec: int, stored: bytes, raw_length: int) -> bytes | None:
    """What comes out of a block, None where it is refused. Afterwards the decoder must be as good as new."""
    try:
        out: bytes | None = bytes(DECODER.decode(codec, stored, raw_length))
    except DamagedBlock:
        out = None
    assert out is None or len(out) == raw_length
    good_codec, good = encode("zstd:3", TEXT)
    assert DECODER.decode(good_codec, good, len(TEXT)) == TEXT
    return out


@settings(max_examples=150, deadline=None)
@given(name=codec_names, raw=raws)
@example(name="zstd:3", raw=b"\0")
@example(name="lz4", raw=bytes(100_000))
def test_what_is_encoded_decodes_to_the_same(name: str, raw: bytes) -> None:
    codec, stored = encode(name, raw)
    assert codec in (fmt.CODEC_NONE, CODECS[name])
    assert len(stored) < len(raw) or codec == fmt.CODEC_NONE
    assert DECODER.decode(codec, stored, len(raw)) == raw
    assert DECODER.decode(codec, memoryview(stored), len(raw)) == raw


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("length", [BLOCK_TARGET - 1, 2 * BLOCK_TARGET, 2 * BLOCK_TARGET + 1, 5 * BLOCK_TARGET])
def test_large_blocks_round_trip(name: str, length: int) -> None:
    raw = (TEXT + noise(50_000))[:length] * (length // len(TEXT) + 1)
    raw = raw[:length]
    codec, stored = encode(name, raw)
    assert codec == CODECS[name]
    assert DECODER.decode(codec, stored, length) == raw


@pytest.mark.parametrize("name", sorted(CODECS))
def test_text_shrinks_and_the_block_says_by_which_codec(name: str) -> None:
    codec, stored = encode(name, TEXT)
    assert codec == CODECS[name]
    assert (len(stored) < len(TEXT) // 2) == (name != "none")


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("length", [1, 2, 17, 300, 100_000, BLOCK_TARGET])
def test_what_does_not_shrink_is_stored_as_it_is(name: str, length: int) -> None:
    raw = noise(length, length)
    assert encode(name, raw) == (fmt.CODEC_NONE, raw)


def test_the_codec_numbers_are_those_of_the_format() -> None:
    assert (fmt.CODEC_NONE, fmt.CODEC_LZ4, fmt.CODEC_ZSTD) == (0, 1, 2)
    _, stored = encode("zstd:3", TEXT)
    assert zstandard.frame_content_size(stored) == len(TEXT)
    assert not zstandard.get_frame_parameters(stored).has_checksum


# --- how chunks are gathered into blocks


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 5000), max_size=200), target=st.integers(1, 20_000))
def test_blocks_hold_all_chunks_in_order(lengths: list[int], target: int) -> None:
    blocks = split_blocks(np.array(lengths, np.int64), target)
    numbers = list(range(len(lengths)))
    assert [number for block in blocks for number in numbers[block]] == numbers
    assert all(numbers[block] for block in blocks), "an empty block"


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=300), target=st.integers(2000, 20_000))
def test_blocks_are_evenly_filled_near_the_target(lengths: list[int], target: int) -> None:
    blocks = split_blocks(np.array(lengths, np.int64), target)
    sizes = [sum(lengths[block]) for block in blocks]
    assert len(sizes) == max(1, round(sum(lengths) / target))
    mean = sum(lengths) / len(sizes)
    assert all(abs(size - mean) <= max(lengths) + 1 for size in sizes)
    assert all(size <= 1.5 * target + max(lengths) + 1 for size in sizes)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, fmt.CHUNK_MAX), min_size=1, max_size=40))
def test_no_block_is_larger_than_the_format_allows(lengths: list[int]) -> None:
    assert all(sum(lengths[block]) <= fmt.BLOCK_MAX for block in split_blocks(np.array(lengths, np.int64)))


def test_small_ints_do_not_overflow() -> None:
    lengths = np.full(600, 8 << 20, np.uint32)
    assert len(split_blocks(lengths.astype(np.int64))) == len(split_blocks(lengths)) == 600  # type: ignore[arg-type]


# --- blocks that are damaged or lie


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("raw_length", [0, -1, fmt.BLOCK_MAX + 1, 1 << 32, 1 << 63])
def test_lengths_outside_the_format_are_refused(name: str, raw_length: int) -> None:
    codec, stored = encode(name, TEXT)
    with pytest.raises(DamagedBlock):
        DECODER.decode(codec, stored, raw_length)


@pytest.mark.parametrize("codec", [3, 7, 255, -1])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    with pytest.raises(DamagedBlock, match="codec"):
        DECODER.decode(codec, TEXT, len(TEXT))


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("lie", [1, len(TEXT) // 2, len(TEXT) - 1, len(TEXT) + 1, 2 * len(TEXT), fmt.BLOCK_MAX])
def test_a_wrong_raw_length_is_refused(name: str, lie: int) -> None:
    codec, stored = encode(name, TEXT)
    with pytest.raises(DamagedBlock):
        DECODER.decode(codec, stored, lie)


@settings(max_examples=100, deadline=None)
@given(name=codec_names, raw=raws, lie=st.integers(-10, 200_000))
def test_a_block_never_decodes_to_a_length_that_it_has_not(name: str, raw: bytes, lie: int) -> None:
    codec, stored = encode(name, raw)
    out = decode_or_refuse(codec, stored, lie)
    assert out == (raw if lie == len(raw) else None)


@settings(max_examples=100, deadline=None)
@given(name=codec_names, raw=raws, kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_block_is_refused_or_whole(name: str, raw: bytes, kept: float) -> None:
    codec, stored = encode(name, raw)
    assert decode_or_refuse(codec, stored[: int(len(stored) * kept)], len(raw)) in (None, raw)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_truncated_text_is_refused(name: str) -> None:
    codec, stored = encode(name, TEXT)
    for end in (0, 1, 4, 9, len(stored) // 2, len(stored) - 1):
        with pytest.raises(DamagedBlock):
            DECODER.decode(codec, stored[:end], len(TEXT))


@settings(max_examples=250, deadline=None)
@given(name=codec_names, raw=raws, flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1))
def test_flipped_bytes_raise_nothing_but_damaged_block(name: str, raw: bytes, flips: list[tuple[int, int]]) -> None:
    codec, stored = encode(name, raw)
    rotten = bytearray(stored)
    for at, flip in flips:
        rotten[at % len(rotten)] ^= flip
    decode_or_refuse(codec, bytes(rotten), len(raw))


@settings(max_examples=250, deadline=None)
@given(
    codec=st.one_of(st.integers(0, 2), st.integers(-5, 300)),
    stored=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=60).map(lambda tail: b"\x28\xb5\x2f\xfd" + tail),  # a zstd frame's magic
        st.binary(max_size=60).map(lambda tail: b"\x50\x2a\x4d\x18" + tail),  # a skippable frame's
    ),
    raw_length=st.one_of(st.integers(-3, 5000), st.sampled_from([fmt.BLOCK_MAX + 1, 1 << 64])),
)
def test_noise_raises_nothing_but_damaged_block(codec: int, stored: bytes, raw_length: int) -> None:
    decode_or_refuse(codec, stored, raw_length)


@pytest.mark.parametrize("says_its_size", [True, False])
@pytest.mark.parametrize("promised", [1, 1000, BLOCK_TARGET, 2 * BLOCK_TARGET, (40 << 20) - 1])
def test_a_frame_that_holds_more_than_promised_is_refused(says_its_size: bool, promised: int) -> None:
    bomb = zstandard.ZstdCompressor(level=1, write_content_size=says_its_size).compress(bytes(40 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(DamagedBlock):
        Decoder().decode(fmt.CODEC_ZSTD, bomb, promised)  # a new one, whose buffer has not grown yet


def test_a_frame_that_wants_a_huge_window_is_refused() -> None:
    # Magic, frame header without single segment, window descriptor of 2 TiB, one raw last block of 1 byte.
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xf8" + b"\x09\x00\x00" + b"x"
    with pytest.raises(DamagedBlock):
        DECODER.decode(fmt.CODEC_ZSTD, frame, 1)


def test_blocks_grow_where_data_shrinks_and_stay_small_where_it_does_not() -> None:
    shaper = BlockShaper()
    assert BLOCK_TARGET < shaper.target < 2 * BLOCK_TARGET
    assert not shaper.note(BLOCK_TARGET, BLOCK_TARGET // 3)
    assert abs(shaper.target - 2 * BLOCK_TARGET) < 10
    assert not shaper.note(2 * BLOCK_TARGET, BLOCK_TARGET // 10)
    assert shaper.target == BLOCK_LARGEST
    assert shaper.note(BLOCK_LARGEST, BLOCK_LARGEST - 1), "it is to be cut, for a byte range would have to read it all"
    assert shaper.target == BLOCK_LEAST
    assert not shaper.note(BLOCK_TARGET, BLOCK_TARGET)


@pytest.mark.parametrize("expected", [1.0, 2.0, 10.0])
def test_whatever_was_expected_the_block_comes_back(expected: float) -> None:
    encoder = Encoder(CodecSpec())
    for raw in (TEXT, noise(100_000)):
        target = bytearray(len(raw))
        codec, length = encoder.encode(memoryview(raw), memoryview(target), expected)
        assert bytes(DECODER.decode(codec, bytes(target[:length]), len(raw))) == raw


def test_numbers_behind_noise_shrink_as_if_there_had_been_none() -> None:
    numbers = "".join(f"{number}\n" for number in range(100_000)).encode()
    encoder, target = Encoder(CodecSpec()), bytearray(len(numbers))
    hopeful = encoder.encode(memoryview(numbers), memoryview(target), 2.0)
    assert encoder.encode(memoryview(numbers), memoryview(target), 1.0) == hopeful
    assert hopeful[1] < len(numbers) // 8
