"""Counting blocks as they are compressed and decompressed: 2 µs for 1 to 4 MiB."""

from __future__ import annotations

import time

from manifests import format as fmt
from pipeline.metrics.meters import CODECS, COMPRESS, DECOMPRESS, Meters
from stages.compress import Decoder


class BlockCounter:
    """Counts the blocks that a compressor makes by the codec `tried`."""

    def __init__(self, meters: Meters, tried: str) -> None:
        self._meters = meters
        self._tried = CODECS.index(tried)

    def note(self, raw: int, codec: int, stored: int, began_ns: int) -> None:
        """Count a block that was begun at `began_ns` of the performance counter."""
        took = time.perf_counter_ns() - began_ns
        self._meters.note_block(COMPRESS, self._tried, raw, stored, took, skipped=codec != self._tried)


class MeteredDecoder(Decoder):
    """A decoder that counts the blocks that came out whole."""

    def __init__(self, meters: Meters) -> None:
        super().__init__()
        self._meters = meters

    def decode(self, codec: int, stored: bytes | memoryview, raw_length: int) -> memoryview:
        began = time.perf_counter_ns()
        raw = super().decode(codec, stored, raw_length)
        self._note(codec, stored, raw_length, began)
        return raw

    def decode_into(self, codec: int, stored: bytes | memoryview, raw_length: int, target: memoryview) -> None:
        began = time.perf_counter_ns()
        super().decode_into(codec, stored, raw_length, target)
        if codec == fmt.CODEC_ZSTD:  # the others go by way of decode
            self._note(codec, stored, raw_length, began)

    def _note(self, codec: int, stored: bytes | memoryview, raw_length: int, began_ns: int) -> None:
        took = time.perf_counter_ns() - began_ns
        skipped = codec == fmt.CODEC_NONE
        self._meters.note_block(DECOMPRESS, codec, raw_length, len(stored), took, skipped=skipped)
