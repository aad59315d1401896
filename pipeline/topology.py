"""The topology as data: which workers there are, what they host, and the memory they share.

    ingest:   scan ─entries→ read+chunk ─data, rows→ dedupe ─fresh→ compress ─blocks→ encode+write ─packs→ home
                                                     dedupe ─rows→ home            home ─known→ dedupe
                                                     dedupe ─found→ home            home ─parent→ read
    restore:  home ─plan→ restore ─reports→ home
    verify:   home ─plan→ verify ─reports→ home
                          verify ─raw→ hash ─reports→ home

`home` is the supervisor's own process. Each arrow from a worker to a worker is a ring of its own. A ring holds as many
messages as there are slots that its messages can carry, plus the end marks, so its producer never waits for room; it
waits for slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from manifests import format as fmt
from manifests.columns import RAW_DTYPE, ROW_EXTENT_DTYPE
from manifests.config import ChunkerSpec, StoreConfig
from manifests.errors import UsageError
from manifests.sizes import format_size
from pipeline.arena import Layout, PoolSpec, RingSpec
from pipeline.budget import DUCKDB_MEMORY
from pipeline.metrics.meters import FAN_QUEUES, INGEST_QUEUES, CounterPlan
from stages.compress import BLOCK_TARGET
from stages.select import REASONS

INGEST_STAGES = ("scan", "read", "chunk", "dedupe", "compress", "encode", "write", "record")
SCAN, READ, CHUNK, DEDUPE, COMPRESS, ENCODE, WRITE, RECORD = range(8)
#: Behind the stages' counters: for each reason (stages/select.py) objects and bytes that the scanner left out.
LEFT_OUT = len(INGEST_STAGES)
#: Behind these: objects and bytes that need not be read, because they are as an earlier run has them.
UNCHANGED = LEFT_OUT + len(REASONS)
#: Behind all of these lie the meters (pipeline/metrics/meters.py).
INGEST_COUNTERS = CounterPlan("ingest", INGEST_STAGES, UNCHANGED + 1, INGEST_QUEUES)
RESTORE_STAGES = ("plan", "fetch", "decompress", "verify", "assemble")
PLAN, FETCH, DECOMPRESS, VERIFY, ASSEMBLE = range(5)
RESTORE_COUNTERS = CounterPlan("restore", RESTORE_STAGES, len(RESTORE_STAGES), FAN_QUEUES)
VERIFY_COUNTERS = RESTORE_COUNTERS._replace(operation="verify")

#: Interpreter and pyarrow in the supervisor, and the fork server. DuckDB has DUCKDB_MEMORY besides, where it is used.
HOME_MEMORY = 164 << 20
#: A worker's own memory: interpreter, numpy, codecs.
WORKER_MEMORY = 16 << 20
#: Each is a process with descriptors of its own, and the largest machines have fewer cores.
MOST_WORKERS = 1024

SMALL_SLOT = 1 << 20
SLOT_FILES = 4096
#: Slots that a reader holds of a long content: one that is being read, and the two before.
LONG_SLOTS = 3
#: Batches that the scanner may be ahead of a reader: it begins first, and goes on while what an earlier run knows of
#: files is put together.
ENTRIES_AHEAD = 8
#: A batch of objects, with 512 KiB of extended attributes and holes, and one object more.
ROWS_SLOT = 2 << 20
PACK_BLOCKS = 16 << 10
PACK_CHUNKS = 512 << 10
CHUNK_REF_SIZE = 40


@dataclass(frozen=True)
class IngestShape:
    """Workers and slots of an ingest. `payload`: bytes of input in a data slot; `max_chunks`: chunks in one; `home`:
    bytes of the supervisor."""

    readers: int
    compressors: int
    writers: int
    payload: int
    max_chunks: int
    data_slots: int
    block_slots: int
    pack_size: int
    parity: float
    home: int = HOME_MEMORY

    @property
    def max_blocks(self) -> int:
        return 2 * self.payload // BLOCK_TARGET + 2

    @property
    def pack_capacity(self) -> int:
        """Bytes that a pack's buffer starts with: its blocks, one input slot more, its directory and padding."""
        return self.pack_size + self.payload + (2 << 20)

    @property
    def workers(self) -> tuple[str, ...]:
        names = ["scan", *(f"read-{i}" for i in range(self.readers)), "dedupe"]
        names += [f"compress-{i}" for i in range(self.compressors)]
        return (*names, *(f"write-{i}" for i in range(self.writers)))

    def layout(self) -> Layout:
        pools = [PoolSpec("known", 2, SMALL_SLOT), PoolSpec("verdict", self._verdicts, self.max_chunks)]
        rings = [RingSpec("known", 4), RingSpec("rows", max(self.readers * 5, self._verdicts) + 1)]
        for i in range(self.readers):
            pools += [
                PoolSpec(f"entries/{i}", ENTRIES_AHEAD, SMALL_SLOT),
                PoolSpec(f"data/{i}", self.data_slots, self.payload + self.max_chunks * CHUNK_REF_SIZE),
                PoolSpec(f"rows/{i}", 4, ROWS_SLOT),
            ]
            rings += [
                RingSpec(f"parent/{i}", 1),
                RingSpec(f"entries/{i}", ENTRIES_AHEAD + 1),
                RingSpec(f"data/{i}", self.data_slots + 5),
            ]
        block_slot = (
            self.payload + self.max_blocks * fmt.BLOCK_DTYPE.itemsize + self.max_chunks * fmt.CHUNK_DTYPE.itemsize
        )
        for i in range(self.compressors):
            pools.append(PoolSpec(f"blocks/{i}", self.block_slots, block_slot))
            rings.append(RingSpec(f"fresh/{i}", self.readers * self.data_slots + 1))
            rings += [RingSpec(f"blocks/{i}/{w}", self.block_slots + 1) for w in range(self.writers)]
        for i in range(self.writers):
            pools.append(PoolSpec(f"packs/{i}", 3, SMALL_SLOT + (64 << 10)))
            rings.append(RingSpec(f"packs/{i}", 4))
        return Layout(tuple(pools), tuple(rings), len(self.workers) + 1, INGEST_COUNTERS.meters_at)

    @property
    def _verdicts(self) -> int:
        return self.readers * (self.data_slots + 4) + 1

    @property
    def memory(self) -> int:
        """Bytes of all processes together, at most."""
        packs = self.writers * 2 * int(self.pack_capacity * (1 + self.parity))
        scratch = (self.readers + self.compressors) * self.payload
        return self.home + len(self.workers) * WORKER_MEMORY + self.layout().size + packs + scratch


@dataclass(frozen=True)
class Mix:
    """Readers and writers for each compressor. The default is what source text and binaries need at zstd 3; what a
    run has seen says more (pipeline/ingest/mix.py)."""

    readers: float = 1 / 4
    writers: float = 1 / 16

    def of(self, compressors: int) -> tuple[int, int]:
        """(readers, writers) beside so many compressors: of each at least one, and no more than these. Two readers
        where there are two cores, for a run that stores little does nothing but read."""
        least, most = min(2, compressors), compressors
        return min(most, max(least, round(most * self.readers))), min(most, max(1, round(most * self.writers)))


def slot_payload(chunker: ChunkerSpec) -> int:
    """Bytes of input in a slot: at least two of the largest chunks. This is the rule."""
    return max(2 * chunker.maximum, min(4 << 20, 8192 * chunker.size))


def _require_workers(count: int, each: int, memory: int, wanted: int | None) -> None:
    """Raise UsageError for a number of workers that can't be, before anything is laid out for them: below 1, above
    MOST_WORKERS or, where they are `wanted`, with more memory than all processes may have, at `each` bytes a worker."""
    if not 1 <= count <= MOST_WORKERS:
        raise UsageError(f"{count:,} workers: at least 1, and at most {MOST_WORKERS:,}")
    if wanted is not None and count * each > memory:
        raise UsageError(
            f"--memory {format_size(memory)} is too little: {count:,} workers take at least {format_size(count * each)}"
        )


def ingest_shape(
    config: StoreConfig, cores: int, memory: int, workers: int | None, mix: Mix | None = None, home: int = HOME_MEMORY
) -> IngestShape:
    """Workers from the cores (`workers` compressors where the user said so) and from the `mix` that was observed, slots
    from the memory, of which the supervisor takes `home`. Raises UsageError with the minimum when `memory` (bytes, all
    processes) is too small."""
    mix = mix or Mix()
    payload = slot_payload(config.chunker)
    pieces = payload // max(1, config.chunker.minimum) + SLOT_FILES + 1
    compressors = workers if workers is not None else max(1, min(cores, MOST_WORKERS))
    _require_workers(compressors, WORKER_MEMORY, memory, workers)
    parity = config.scheme.m / config.scheme.k
    while True:
        for readers, writers in (mix.of(compressors), (1, 1)):
            for slack in (4, 3, 2, 1):
                shape = IngestShape(
                    readers, compressors, writers, payload, pieces, data_slots=max(LONG_SLOTS, compressors + slack),
                    block_slots=min(slack, 2), pack_size=config.pack_size, parity=parity, home=home,
                )  # fmt: skip
                if shape.memory <= memory:
                    return shape
        if workers is not None or compressors == 1:
            break
        compressors -= 1
    raise UsageError(
        f"--memory {format_size(memory)} is too little for this store's chunks and packs: "
        f"at least {format_size(shape.memory)}"
    )


@dataclass(frozen=True)
class FanShape:
    """Workers that all do the same to tasks from home: a restore, a verification."""

    kind: str
    count: int
    stages: int
    worker_memory: int
    task_slot: int = SMALL_SLOT
    report_slot: int = 256 << 10

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(f"{self.kind}-{i}" for i in range(self.count))

    @property
    def memory(self) -> int:
        """Bytes of all processes together, of which DuckDB has DUCKDB_MEMORY."""
        return HOME_MEMORY + DUCKDB_MEMORY + self.count * (WORKER_MEMORY + self.worker_memory) + self.layout().size

    def layout(self) -> Layout:
        slots = 2 * self.count + 2
        pools = [PoolSpec("plan", slots, self.task_slot)]
        pools += [PoolSpec(f"reports/{i}", 2, self.report_slot) for i in range(self.count)]
        rings = [RingSpec(f"plan/{i}", slots + 1) for i in range(self.count)]
        rings += [RingSpec(f"reports/{i}", 4) for i in range(self.count)]
        return Layout(tuple(pools), tuple(rings), self.count + 1, self.stages)


#: A slot of raw pieces has this much room for their rows, and for their bytes: for two blocks of usual size, which one
#: slot of input gave.
RAW_ROWS, RAW_BYTES = 1024, 5 << 20
RAW_SLOTS = 2
_RAW_ROW = RAW_DTYPE.itemsize + sum(1 + length for length in fmt.DIGESTS.values())
#: Where the bytes begin in such a slot, behind the rows.
RAW_HEAD = -(-(RAW_ROWS + 1) * _RAW_ROW // 4096) * 4096


@dataclass(frozen=True)
class VerifyShape(FanShape):
    """A fan whose workers hand the bytes of large contents to processes that hash them, one content after the other."""

    @property
    def hashers(self) -> int:
        """One hashes about what four workers decompress."""
        return max(1, self.count // 4)

    @property
    def workers(self) -> tuple[str, ...]:
        return (*super().workers, *(f"hash-{i}" for i in range(self.hashers)))

    @property
    def memory(self) -> int:
        return super().memory + self.hashers * WORKER_MEMORY

    def layout(self) -> Layout:
        base, reporters = super().layout(), range(self.count, self.count + self.hashers)
        pools = [*base.pools, *(PoolSpec(f"raw/{i}", RAW_SLOTS, RAW_HEAD + RAW_BYTES) for i in range(self.count))]
        pools += [PoolSpec(f"reports/{i}", 2, self.report_slot) for i in reporters]
        rings = [*base.rings, *(RingSpec(f"reports/{i}", 4) for i in reporters)]
        rings += [
            RingSpec(f"raw/{i}/{hasher}", RAW_SLOTS + 1) for i in range(self.count) for hasher in range(self.hashers)
        ]
        return replace(base, pools=tuple(pools), rings=tuple(rings), workers=len(self.workers) + 1)


Shape = TypeVar("Shape", bound=FanShape)


def fan_shape(
    make: type[Shape], kind: str, stages: int, worker_memory: int, cores: int, memory: int, workers: int | None
) -> Shape:
    """One worker a core, or `workers`, of `worker_memory` bytes each. Raises UsageError with the minimum."""
    count = workers if workers is not None else max(1, min(cores, MOST_WORKERS))
    _require_workers(count, worker_memory, memory, workers)
    while True:
        shape = make(kind, count, stages, worker_memory)
        if shape.memory <= memory:
            return shape
        if workers is not None or count == 1:
            raise UsageError(f"--memory {format_size(memory)} is too little: at least {format_size(shape.memory)}")
        count -= 1


EXTENTS_PER_SLOT = SMALL_SLOT // ROW_EXTENT_DTYPE.itemsize - 1
