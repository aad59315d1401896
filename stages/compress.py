"""Blocks: chunks of one input slot compressed together as one frame, and back.

Codecs: `none`, lz4 (block format, no length prefix) and zstd (one frame, content size in it, no checksum: chunk ids
judge). What does not shrink is stored as `none`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import lz4.block
import zstandard

from manifests import format as fmt
from manifests.config import CodecSpec
from stages.errors import DamagedBlock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: What a block is to have stored at most, about: it is what a byte range reads at least.
BLOCK_TARGET = 1 << 20
#: Raw bytes of a block where data hardly shrinks, so that nothing is to be gained from a larger one: 1 MiB may touch
#: three, and is not to read 3 MiB.
BLOCK_LEAST = 1 << 19
#: Raw bytes of a block at most, however well it shrinks: it is what a byte range decompresses at least.
BLOCK_LARGEST = 4 << 20
#: Where raw ÷ stored is below, there is hardly anything to find.
HOPELESS = 1.2
#: Stored bytes of a block beyond which it is cut, if it can be: 1 MiB may touch three.
_STORED_LARGEST = BLOCK_TARGET


class BlockShaper:
    """How the next block is to be made, from how the last one came out: large where data shrinks well, so that solid
    compression has more to find, while no more than about BLOCK_TARGET bytes are stored. Owned by one compressor."""

    def __init__(self) -> None:
        self.ratio = 2.0

    @property
    def target(self) -> int:
        """Raw bytes of the next block."""
        if self.ratio < HOPELESS:
            return BLOCK_LEAST
        return min(BLOCK_LARGEST, int(BLOCK_TARGET * self.ratio / 1.5))

    def note(self, raw: int, stored: int) -> bool:
        """Take note of a block. Returns whether it is too large, because it shrank less than was expected."""
        expected, self.ratio = self.ratio, raw / stored
        return stored > _STORED_LARGEST and self.ratio < expected


#: A byte of lz4 adds no more than this to the length of a match.
LZ4_MOST = 255


def split_blocks(lengths: npt.NDArray[np.int64], target: int = BLOCK_TARGET) -> list[slice]:
    """Which chunks go into which block: as many blocks as the sum of `lengths` (bytes) nears in units of `target`,
    evenly filled, in order."""
    import numpy as np  # who only decompresses does without

    if not len(lengths):
        return []
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    count = max(1, round(total / target))
    marks = np.searchsorted(ends - lengths // 2, np.arange(1, count) * (total / count))
    borders = [0, *sorted({int(mark) for mark in marks} - {0, len(lengths)}), len(lengths)]
    return [slice(a, b) for a, b in pairwise(borders)]


class Encoder:
    """Compresses blocks by one codec. Reusable, not for several threads at once."""

    def __init__(self, codec: CodecSpec) -> None:
        self._squeeze = _ENCODERS[codec.name](codec)

    def encode(self, raw: memoryview, target: memoryview, expected: float = 2.0) -> tuple[int, int]:
        """Write the block `raw` to the start of `target` (at least as long as `raw`). `expected`: to what fraction it
        will shrink, about (2.0 for half). Returns (codec, bytes)."""
        codec, length = self._squeeze(raw, target, expected)
        if codec != fmt.CODEC_NONE:
            return codec, length
        target[: len(raw)] = raw
        return fmt.CODEC_NONE, len(raw)


Squeeze = Callable[[memoryview, memoryview, float], tuple[int, int]]


def _none(codec: CodecSpec) -> Squeeze:
    return lambda raw, target, expected: (fmt.CODEC_NONE, len(raw))


def _lz4(codec: CodecSpec) -> Squeeze:
    def squeeze(raw: memoryview, target: memoryview, expected: float) -> tuple[int, int]:
        packed = lz4.block.compress(raw, store_size=False)
        if len(packed) >= len(raw):
            return fmt.CODEC_NONE, len(raw)
        target[: len(packed)] = packed
        return fmt.CODEC_LZ4, len(packed)

    return squeeze


def _zstd_compressor(level: int, **chosen: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, write_content_size=True, write_checksum=False, write_dict_id=False, **chosen
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _zstd(codec: CodecSpec) -> Squeeze:
    usual = hopeless = _zstd_compressor(codec.level)
    if codec.level == 3:
        # The default spends its time where bytes are to be gained: with tables that fit the processor's cache, and a
        # shorter search where there is nothing to find.
        usual = _zstd_compressor(3, hash_log=16, chain_log=15)
        hopeless = _zstd_compressor(2)

    def squeeze(raw: memoryview, target: memoryview, expected: float) -> tuple[int, int]:
        # One call and a copy of what comes out is faster than a stream into the slot, which copies what goes in.
        packed = (hopeless if expected < HOPELESS else usual).compress(raw)
        if expected < HOPELESS and len(packed) * 3 < len(raw) * 2:
            packed = usual.compress(raw)  # there was something to find, after all
        if len(packed) >= len(raw):
            return fmt.CODEC_NONE, len(raw)
        target[: len(packed)] = packed
        return fmt.CODEC_ZSTD, len(packed)

    return squeeze


_ENCODERS: dict[str, Callable[[CodecSpec], Squeeze]] = {"none": _none, "lz4": _lz4, "zstd": _zstd}


class Decoder:
    """Decompresses blocks, into one buffer that it reuses unless it is told where. Not for several threads at once."""

    def __init__(self) -> None:
        self._buffer = bytearray(2 * BLOCK_TARGET)
        self._zstd = zstandard.ZstdDecompressor(max_window_size=1 << 27)

    def decode(self, codec: int, stored: bytes | memoryview, raw_length: int) -> memoryview:
        """The `raw_length` bytes of a block. The view is the decoder's, valid until the next call. Raises
        DamagedBlock."""
        _require_size(raw_length)
        if codec == fmt.CODEC_NONE:
            if len(stored) != raw_length:
                raise DamagedBlock(f"a stored block has {len(stored)} bytes instead of {raw_length}")
            return memoryview(stored)
        if codec == fmt.CODEC_LZ4:
            return self._decode_lz4(stored, raw_length)
        if codec == fmt.CODEC_ZSTD:
            _require_frame(stored, raw_length)
            if len(self._buffer) <= raw_length:
                self._buffer = bytearray(raw_length + 1)
            return self._decode_zstd(stored, raw_length, memoryview(self._buffer))
        raise DamagedBlock(f"codec {codec} is not known")

    def decode_into(self, codec: int, stored: bytes | memoryview, raw_length: int, target: memoryview) -> None:
        """Write the bytes of a block to the start of `target`, which has room for one more. Raises DamagedBlock; then
        anything may stand there."""
        if codec == fmt.CODEC_ZSTD:
            _require_size(raw_length)
            _require_frame(stored, raw_length)
            self._decode_zstd(stored, raw_length, target)
        else:
            target[:raw_length] = self.decode(codec, stored, raw_length)

    def _decode_lz4(self, stored: bytes | memoryview, raw_length: int) -> memoryview:
        if raw_length > LZ4_MOST * len(stored):
            raise DamagedBlock(f"{len(stored)} bytes of lz4 never hold {raw_length}")
        try:
            raw = lz4.block.decompress(stored, uncompressed_size=raw_length)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise DamagedBlock(f"lz4: {error}") from error
        if len(raw) != raw_length:
            raise DamagedBlock(f"a block has {len(raw)} bytes instead of {raw_length}")
        return memoryview(raw)

    def _decode_zstd(self, stored: bytes | memoryview, raw_length: int, target: memoryview) -> memoryview:
        try:
            # One byte more than promised, so that a frame that holds more is seen.
            with self._zstd.stream_reader(stored) as reader:
                length = reader.readinto(target[: raw_length + 1])
        except zstandard.ZstdError as error:
            raise DamagedBlock(f"zstd: {error}") from error
        if length != raw_length:
            raise DamagedBlock(f"a block has {length} bytes or more instead of {raw_length}")
        return target[:raw_length]


def _require_size(raw_length: int) -> None:
    if not 0 < raw_length <= fmt.BLOCK_MAX:
        raise DamagedBlock(f"a block of {raw_length} bytes; the format allows 1 to {fmt.BLOCK_MAX}")


def _require_frame(stored: bytes | memoryview, raw_length: int) -> None:
    """Raise DamagedBlock where a zstd frame says that it holds another length: before memory is taken for it."""
    try:
        said = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise DamagedBlock(f"zstd: {error}") from error
    if said not in (raw_length, -1):
        raise DamagedBlock(f"a zstd frame says that it holds {said} bytes instead of {raw_length}")
