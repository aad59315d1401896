"""Meters: what a process counts besides its stages' items, bytes and times. A row of 64-bit words, all but one part of
which only ever grow.

    counters | depth of each queue | per direction and codec, of blocks | per backend and operation, of requests

Workers have theirs in the arena, behind the counters of their stages, and write them alone; so the supervisor sums them
up whenever it wants, and nobody waits. Histograms are a word a bucket. Backends come last, so that rows of different
numbers of them can be added.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.arena import Arena


class Count(IntEnum):
    """Plain counters, by their place. CREATED to RECEIVED are of chunks: stored for the first time, known already,
    deleted, taken from another store."""

    CREATED = 0
    DEDUPLICATED = 1
    DELETED = 2
    RECEIVED = 3
    REPAIRED_SHARDS = 4
    HEALED_CELLS = 5
    HEALED_RECORDS = 6


#: Pools of the arena, as they are called before the slash: messages that wait for a stage lie in their sealed slots.
INGEST_QUEUES = ("known", "entries", "data", "rows", "verdict", "blocks", "packs")
FAN_QUEUES = ("plan", "reports", "raw")
QUEUES = INGEST_QUEUES + FAN_QUEUES
#: By the numbers that the format gives codecs.
CODECS = ("none", "lz4", "zstd")
COMPRESS, DECOMPRESS = 0, 1
DIRECTIONS = ("compress", "decompress")
#: What is asked of a backend; `look` is for size, existence and room.
OPERATIONS = ("write", "read", "delete", "list", "look")

#: Upper bounds of the buckets, below the last one: seconds a block, its ratio of raw to stored, seconds a request.
BLOCK_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0)
REQUEST_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)

_QUEUES_AT = len(Count)
_BLOCKS_AT = _QUEUES_AT + len(QUEUES)
#: Bytes in, bytes out, skipped, ns, thousandths of ratios; then the buckets of both histograms.
_BLOCK_WORDS = 5 + (len(BLOCK_SECONDS) + 1) + (len(RATIOS) + 1)
_BACKENDS_AT = _BLOCKS_AT + len(DIRECTIONS) * len(CODECS) * _BLOCK_WORDS
#: Errors, bytes, ns; then the buckets.
_REQUEST_WORDS = 3 + (len(REQUEST_SECONDS) + 1)
_BACKEND_WORDS = len(OPERATIONS) * _REQUEST_WORDS


class CounterPlan(NamedTuple):
    """What the counters of an operation are (arena.py): the first rows are those of the `stages`, the row `meters_at`
    begins the meters, of which only `queues` have depths."""

    operation: str
    stages: tuple[str, ...]
    meters_at: int
    queues: tuple[str, ...]


def meter_words(backends: int) -> int:
    """Words of a row of meters for backends with numbers below `backends`."""
    return _BACKENDS_AT + backends * _BACKEND_WORDS


class Meters:
    """The meters of one process. May be used by all its threads."""

    def __init__(self, words: memoryview) -> None:
        """`words`: a row, of meter_words() or a few more, which this process alone writes."""
        self._words = words
        self._lock = threading.Lock()

    @classmethod
    def private(cls) -> Meters:
        """Meters that no other process sees, for no backend as yet."""
        return cls(memoryview(bytearray(8 * meter_words(0))).cast("Q"))

    def grow(self, backends: int) -> None:
        """Make room for backends with numbers below `backends`. For private ones only."""
        with self._lock:
            grown = memoryview(bytearray(8 * max(meter_words(backends), len(self._words)))).cast("Q")
            grown[: len(self._words)] = self._words
            self._words = grown

    def release(self) -> None:
        """Let go of the memory, for all who hold these meters; nothing is counted any more."""
        self._words.release()

    def words(self) -> list[int]:
        """All of them as they are now."""
        return self._words.tolist()

    def add(self, which: Count, amount: int) -> None:
        with self._lock:
            self._words[which] += amount

    def put(self, which: Count, amount: int) -> None:
        """Set a counter to what was counted elsewhere in this process."""
        self._words[which] = amount

    def note_block(self, direction: int, codec: int, raw: int, stored: int, ns: int, *, skipped: bool) -> None:
        """Count a block. `codec`: what was tried, or what it is stored by; `skipped`: stored as it was."""
        at = _BLOCKS_AT + (direction * len(CODECS) + codec) * _BLOCK_WORDS
        ratio = raw / stored
        bytes_in, bytes_out = (raw, stored) if direction == COMPRESS else (stored, raw)
        with self._lock:
            words = self._words
            words[at] += bytes_in
            words[at + 1] += bytes_out
            words[at + 2] += skipped
            words[at + 3] += ns
            words[at + 4] += int(ratio * 1000)
            words[at + 5 + bisect_left(BLOCK_SECONDS, ns / 1e9)] += 1
            words[at + 6 + len(BLOCK_SECONDS) + bisect_left(RATIOS, ratio)] += 1

    def note_request(self, backend: int, operation: int, ns: int, size: int, *, failed: bool) -> None:
        """Count what was asked of a backend; `size` in bytes."""
        at = _BACKENDS_AT + backend * _BACKEND_WORDS + operation * _REQUEST_WORDS
        with self._lock:
            words = self._words
            words[at] += failed
            words[at + 1] += size
            words[at + 2] += ns
            words[at + 3 + bisect_left(REQUEST_SECONDS, ns / 1e9)] += 1

    def note_queues(self, arena: Arena) -> None:
        """Note how many messages wait in each queue of an arena; the driver does so, in the row of home."""
        depths = dict.fromkeys(QUEUES, 0)
        for pool in arena.layout.pools:
            depths[pool.name.partition("/")[0]] += arena.sealed(pool.name)
        for number, depth in enumerate(depths.values(), _QUEUES_AT):
            self._words[number] = depth


# --- reading them ----------------------------------------------------------------------------------------------------


class Histogram(NamedTuple):
    """`buckets`: how many were up to each bound, and above the last; `total`: the sum of what was measured."""

    bounds: tuple[float, ...]
    buckets: list[int]
    total: float


class BlockMeters(NamedTuple):
    direction: str
    codec: str
    bytes_in: int
    bytes_out: int
    skipped: int
    seconds: Histogram
    ratios: Histogram


class RequestMeters(NamedTuple):
    backend: int
    operation: str
    errors: int
    bytes: int
    seconds: Histogram


def added(first: list[int], second: list[int]) -> list[int]:
    """The sum of two rows; one may know fewer backends."""
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    return [*map(int.__add__, longer, shorter), *longer[len(shorter) :]]


def queue_depths(words: list[int]) -> dict[str, int]:
    return dict(zip(QUEUES, words[_QUEUES_AT:_BLOCKS_AT], strict=True))


def without_queues(words: list[int]) -> list[int]:
    """A row whose operation has ended: nothing waits any more."""
    return [*words[:_QUEUES_AT], *([0] * len(QUEUES)), *words[_BLOCKS_AT:]]


def blocks_of(words: list[int]) -> Iterator[BlockMeters]:
    """What was compressed and decompressed, by direction and codec."""
    for number in range(len(DIRECTIONS) * len(CODECS)):
        direction, codec = divmod(number, len(CODECS))
        at = _BLOCKS_AT + number * _BLOCK_WORDS
        bytes_in, bytes_out, skipped, ns, ratio = words[at : at + 5]
        middle = at + 6 + len(BLOCK_SECONDS)
        seconds = Histogram(BLOCK_SECONDS, words[at + 5 : middle], ns / 1e9)
        ratios = Histogram(RATIOS, words[middle : at + _BLOCK_WORDS], ratio / 1000)
        yield BlockMeters(DIRECTIONS[direction], CODECS[codec], bytes_in, bytes_out, skipped, seconds, ratios)


def requests_of(words: list[int]) -> Iterator[RequestMeters]:
    """What backends were asked for, by number and operation."""
    for number in range((len(words) - _BACKENDS_AT) // _BACKEND_WORDS):
        for operation, name in enumerate(OPERATIONS):
            at = _BACKENDS_AT + number * _BACKEND_WORDS + operation * _REQUEST_WORDS
            errors, size, ns = words[at : at + 3]
            yield RequestMeters(
                number, name, errors, size, Histogram(REQUEST_SECONDS, words[at + 3 : at + _REQUEST_WORDS], ns / 1e9)
            )
