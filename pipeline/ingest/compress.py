"""The compressor station: gathers the new chunks of a data slot into blocks and compresses them from slot to slot."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manifests import format as fmt
from manifests.config import CodecSpec
from pipeline import messages
from pipeline.arena import Message
from pipeline.ingest.chunktable import CHUNK_REF
from pipeline.metrics.codec import BlockCounter
from pipeline.station import Acquire, Context, Station, Take
from pipeline.topology import COMPRESS
from stages.compress import BlockShaper, Encoder, split_blocks


@dataclass(frozen=True)
class CompressOptions:
    index: int
    writers: int
    payload: int
    max_blocks: int
    codec: CodecSpec


class Gather:
    """The new chunks of a block as one piece of memory: the slot itself where they lie side by side, else a copy."""

    def __init__(self, size: int) -> None:
        self._scratch = memoryview(bytearray(size))

    def view(self, payload: memoryview, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> memoryview:
        ends = offsets + lengths
        breaks = np.flatnonzero(offsets[1:] != ends[:-1]) + 1
        if not len(breaks):
            return payload[int(offsets[0]) : int(ends[-1])]
        at = 0
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(offsets)], strict=True):
            start, end = int(offsets[first]), int(ends[last - 1])
            self._scratch[at : at + end - start] = payload[start:end]
            at += end - start
        return self._scratch[:at]


def compress_station(context: Context, options: CompressOptions) -> Station:
    """Takes FRESH on fresh/<index>, sends BLOCKS on blocks/<index>/<writer>."""
    context.clock.switch(COMPRESS)
    encoder, shaper, gather = Encoder(options.codec), BlockShaper(), Gather(options.payload)
    counter = BlockCounter(context.meters, options.codec.name)
    own, ring = f"blocks/{options.index}", f"fresh/{options.index}"
    writer = options.index % options.writers
    while True:
        _, message = yield Take((ring,))
        if message.kind == messages.END:
            break
        out = yield Acquire(own)
        data_pool = f"data/{message.first}"
        with context.slot(data_pool, message.slot) as source, context.slot("verdict", message.aux) as verdict:
            fresh = np.frombuffer(verdict, bool, message.amount).copy()
            refs = np.frombuffer(source, CHUNK_REF, message.amount, options.payload)[fresh]
            with context.slot(own, out) as target:
                blocks, chunks = make_blocks(encoder, shaper, gather, source, refs, target, options.max_blocks, counter)
                at = options.payload
                target[at : at + blocks.nbytes] = blocks.tobytes()
                at += options.max_blocks * fmt.BLOCK_DTYPE.itemsize
                target[at : at + chunks.nbytes] = chunks.tobytes()
        context.release(data_pool, message.slot)
        context.release("verdict", message.aux)
        context.seal(own, out)
        context.clock.count(COMPRESS, len(blocks), int(refs["length"].sum()))
        context.send(
            f"{own}/{writer}",
            Message(messages.BLOCKS, out, amount=len(blocks), first=options.index, second=len(chunks)),
        )
        writer = (writer + 1) % options.writers
    for number in range(options.writers):
        context.send(f"{own}/{number}", Message(messages.END))


def make_blocks(
    encoder: Encoder,
    shaper: BlockShaper,
    gather: Gather,
    source: memoryview,
    refs: npt.NDArray[np.void],
    target: memoryview,
    max_blocks: int,
    counter: BlockCounter | None = None,
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Blocks of the chunks `refs` of `source`, written to the start of `target`; their BLOCK and CHUNK rows."""
    offsets, lengths = refs["offset"].astype(np.int64), refs["length"].astype(np.int64)
    blocks, chunks = np.zeros(max_blocks, fmt.BLOCK_DTYPE), np.zeros(len(refs), fmt.CHUNK_DTYPE)
    chunks["id"], chunks["length"] = refs["id"], refs["length"]
    groups = deque(split_blocks(lengths, shaper.target))
    fill = count = 0
    while groups:
        group = groups.popleft()
        raw = gather.view(source, offsets[group], lengths[group])
        began = time.perf_counter_ns()
        codec, stored = encoder.encode(raw, target[fill : fill + len(raw)], shaper.ratio)
        if shaper.note(len(raw), stored):
            parts = split_blocks(lengths[group], shaper.target)
            if len(parts) > 1 and count + len(groups) + len(parts) <= max_blocks:
                groups.extendleft(slice(group.start + part.start, group.start + part.stop) for part in reversed(parts))
                continue
        if counter is not None:
            counter.note(len(raw), codec, stored, began)
        blocks[count]["offset"], blocks[count]["stored"] = fill, stored
        blocks[count]["raw"], blocks[count]["codec"] = len(raw), codec
        chunks["block"][group] = count
        chunks["offset"][group] = np.cumsum(lengths[group]) - lengths[group]
        fill += stored
        count += 1
    return blocks[:count], chunks
