"""The writer: hosts the stages encode and write. Rows of durable packs go home, and so does why backends failed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from manifests import format as fmt
from pipeline import messages
from pipeline.arena import Message
from pipeline.packwriter import DurablePack, PackOptions, PackWriter
from pipeline.station import Acquire, Context, Station, Steps, Take
from pipeline.topology import ENCODE, SMALL_SLOT

CHUNKS_PER_SLOT = SMALL_SLOT // fmt.CHUNK_DTYPE.itemsize
#: Characters of a backend's trouble that travel: those of 255 backends fit into a slot, however they are escaped.
REASON_MOST = 600


@dataclass(frozen=True)
class WriteOptions:
    index: int
    compressors: int
    payload: int
    packs: PackOptions


def write_station(context: Context, options: WriteOptions) -> Station:
    """Takes BLOCKS on blocks/<compressor>/<index>, sends PACK_CHUNKS, PACK and TROUBLES on packs/<index>."""
    context.clock.switch(ENCODE)
    writer = PackWriter(options.packs, context.clock, context.at, context.meters)
    try:
        yield from _write(context, options, writer)
    finally:
        writer.close()
    context.send(f"packs/{options.index}", Message(messages.END))


def _write(context: Context, options: WriteOptions, writer: PackWriter) -> Steps:
    rings = tuple(f"blocks/{compressor}/{options.index}" for compressor in range(options.compressors))
    left, told = len(rings), 0
    while left:
        _, message = yield Take(rings)
        if message.kind == messages.END:
            left -= 1
            continue
        pool = f"blocks/{message.first}"
        with context.slot(pool, message.slot) as view:
            blocks = np.frombuffer(view, fmt.BLOCK_DTYPE, message.amount, options.payload).copy()
            at = options.payload + options.packs.max_blocks * fmt.BLOCK_DTYPE.itemsize
            chunks = np.frombuffer(view, fmt.CHUNK_DTYPE, message.second, at).copy()
            yield from _send_packs(context, options.index, writer.add(view, blocks, chunks))
        context.release(pool, message.slot)
        if len(writer.failed) > told:
            told = len(writer.failed)
            yield from _send_troubles(context, options.index, writer.failed)
    yield from _send_packs(context, options.index, writer.finish())
    if len(writer.failed) > told:
        yield from _send_troubles(context, options.index, writer.failed)


def _send_packs(context: Context, index: int, packs: Iterable[DurablePack]) -> Steps:
    for pack in packs:
        for start in range(0, len(pack.chunks), CHUNKS_PER_SLOT):
            part = pack.chunks[start : start + CHUNKS_PER_SLOT]
            yield from _send(context, index, messages.PACK_CHUNKS, len(part), part.tobytes())
        body = pack.row.tobytes() + pack.shards.tobytes() + pack.blocks.tobytes()
        yield from _send(context, index, messages.PACK, len(pack.blocks), body)


def _send_troubles(context: Context, index: int, failed: dict[int, str]) -> Steps:
    body = json.dumps({number: reason[:REASON_MOST] for number, reason in failed.items()}).encode()
    yield from _send(context, index, messages.TROUBLES, len(body), body)


def _send(context: Context, index: int, kind: int, count: int, body: bytes) -> Steps:
    pool = f"packs/{index}"
    slot = yield Acquire(pool)
    with context.slot(pool, slot) as view:
        view[: len(body)] = body
    context.seal(pool, slot)
    context.send(pool, Message(kind, slot, amount=count, first=index))
