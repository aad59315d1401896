"""The worker side of the pass over large contents: their pieces are read by all workers, checked against the ids of
their chunks, and handed in slots to the process that hashes the content.

Blocks are decompressed straight into the slot, and each piece tells where in it its bytes lie. Of a block of which the
task needs less than half, and of one that is longer than a slot, the pieces are copied.

Why it can't deadlock: a worker does its tasks in the order in which home sent them, and takes slots from a pool of its
own. Of all tasks that are not hashed to their end, look at the one that was sent first. Whatever its worker was sent
before it is hashed, and so is what came before it in its content; so all slots of that worker are free, or hold parts
of this very task, which the hasher takes at once; and the worker gets there, for it waits for nothing but slots and
reports.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np

from manifests.columns import RAW_DTYPE, Batch
from manifests.errors import DrystoneError
from manifests.ids import NIL
from pipeline import messages
from pipeline.arena import Message
from pipeline.fan import Work
from pipeline.station import Acquire, Context
from pipeline.topology import RAW_BYTES, RAW_HEAD, VERIFY
from pipeline.verify.findings import CHECKED, LOST_PLACE, Finding, PackFindings
from pipeline.verify.window import BlockWindow, block_keys
from stages.assemble import chunk_is_good

_KEPT = [name for name in RAW_DTYPE.names or () if name not in ("held", "at", "continues", "is_lost")]


class _Filling:
    """A slot of raw pieces that is being filled. `placed`: where blocks of the task begin in it, by number."""

    def __init__(self, number: int, view: memoryview) -> None:
        self.number = number
        self.view = view
        self.bytes = view[RAW_HEAD:]
        self.used = 0
        self.placed: dict[int, int] = {}
        self._entries: list[tuple[int, int, int, int, int, bool, bool]] = []

    @property
    def room(self) -> int:
        return RAW_BYTES - self.used

    def add_all(self, first: int, at: np.ndarray, held: np.ndarray, lost: Container[int]) -> None:
        """Note pieces that lie in a block that is here: rows of the task from `first` on."""
        for row, start, length in zip(count(first), at.tolist(), held.tolist()):
            is_lost = row in lost
            self._entries.append((row, 0 if is_lost else start, 0 if is_lost else length, 0, False, False, is_lost))

    def add(self, row: int, at: int, held: int, done: int = 0, parted: bool = False, is_lost: bool = False) -> None:
        """Note a piece: row of the task, its bytes in the slot; `done`: its bytes in slots before; `parted`: more of it
        comes in the next."""
        self._entries.append((row, at, held, done, done > 0, parted, is_lost))

    def store(self, batch: Batch) -> None:
        """Write the rows of all pieces to the head of the slot."""
        numbers, at, held, done, continues, parted, is_lost = map(np.array, zip(*self._entries, strict=True))
        rows = np.zeros(len(numbers), RAW_DTYPE)
        for name in _KEPT:
            rows[name] = batch.rows[name][numbers]
        rows["at"], rows["held"], rows["continues"], rows["is_lost"] = at, held, continues, is_lost
        rows["file_offset"] += done.astype(np.uint64)
        rows["length"][continues] = 0
        rows["is_last"][parted] = 0
        Batch(rows, batch.heap).store(self.view[:RAW_HEAD])


class PieceReader:
    """Reads the pieces of large contents. Owned by one worker."""

    def __init__(self, context: Context, index: int, window: BlockWindow) -> None:
        self._context = context
        self._index = index
        self._pool = f"raw/{index}"
        self._window = window

    def work(self, message: Message, batch: Batch) -> Work:
        """Hand the pieces of a PIECE_DTYPE batch to their hasher (`amount`), and report what of them is lost."""
        rows, lost = batch.rows, dict[int, str]()
        blocks, raw_lengths, needed = _blocks_of(rows)
        slot = yield from self._next_slot()
        first = 0
        for end in [*(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), len(rows)]:
            block = int(blocks[first])
            length = int(raw_lengths[block])
            if block not in slot.placed and length <= 2 * needed[block] and length < RAW_BYTES:
                if length >= slot.room:
                    self._hand_over(message, batch, slot, is_last=False)
                    slot = yield from self._next_slot()
                behind = first + np.flatnonzero(blocks[first:] == block)
                lost |= self._load(rows, behind, slot.bytes[slot.used :])[1]
                slot.placed[block] = slot.used
                slot.used += length
            if block in slot.placed:
                at = slot.placed[block]
                found = self._elsewhere(rows, range(first, end), lost)
                if found:
                    slot = yield from self._copy_mixed(message, batch, slot, range(first, end), at, lost, found)
                else:
                    starts = at + rows["chunk_offset"][first:end].astype(np.int64)
                    slot.add_all(first, starts, rows["length"][first:end], lost)
            else:
                raw, bad = self._load(rows, np.arange(first, end), None)
                lost |= bad
                found = self._elsewhere(rows, bad, bad)
                for row in range(first, end):
                    start = int(rows[row]["chunk_offset"])
                    piece = found.get(row, b"") if row in bad else raw[start:][: rows[row]["length"]]
                    slot = yield from self._copy(message, batch, slot, row, piece)
            first = end
        self._hand_over(message, batch, slot, is_last=True)
        for findings in _findings(rows, lost):
            yield from findings.batches()

    def _elsewhere(self, rows: np.ndarray, some: Iterable[int], lost: Container[int]) -> dict[int, bytes]:
        """Those of some pieces that are `lost` where they were looked for, from other places that they have."""
        found = {row: self._window.elsewhere(rows[row]) for row in some if row in lost}
        return {row: piece for row, piece in found.items() if piece is not None}

    def _copy_mixed(
        self,
        message: Message,
        batch: Batch,
        slot: _Filling,
        some: range,
        at: int,
        lost: Container[int],
        found: dict[int, bytes],
    ) -> Generator[Acquire, Any, _Filling]:
        """Write pieces of a block that is in the slot, from `at` on, of which some were `found` elsewhere. Returns the
        slot that is being filled then."""
        spans = zip(
            *(batch.rows[name][some.start : some.stop].tolist() for name in ("chunk_offset", "length")), strict=True
        )
        pieces = [
            found.get(row, b"") if row in lost else bytes(slot.bytes[at + start : at + start + length])
            for row, (start, length) in zip(some, spans, strict=True)
        ]
        for row, piece in zip(some, pieces, strict=True):
            slot = yield from self._copy(message, batch, slot, row, piece)
        return slot

    def _next_slot(self) -> Generator[Acquire, Any, _Filling]:
        number = yield Acquire(self._pool)
        return _Filling(number, self._context.slot(self._pool, number))

    def _hand_over(self, message: Message, batch: Batch, slot: _Filling, *, is_last: bool) -> None:
        slot.store(batch)
        self._context.seal(self._pool, slot.number)
        ring = f"raw/{self._index}/{message.amount}"
        self._context.send(ring, Message(messages.RAW, slot.number, first=message.first, second=is_last))

    def _copy(
        self, message: Message, batch: Batch, slot: _Filling, row: int, piece: bytes | memoryview
    ) -> Generator[Acquire, Any, _Filling]:
        """Write a piece behind what the slot holds, and what has no room to the next ones; an empty one is lost.
        Returns the slot that is being filled then."""
        done = 0
        while True:
            if piece and not slot.room:
                self._hand_over(message, batch, slot, is_last=False)
                slot = yield from self._next_slot()
            held = min(len(piece) - done, slot.room)
            parted = done + held < len(piece)
            slot.bytes[slot.used : slot.used + held] = piece[done : done + held]
            slot.add(row, slot.used, held, done, parted, not piece)
            slot.used += held
            done += held
            if not parted:
                return slot

    def _load(
        self, rows: np.ndarray, pieces: np.ndarray, target: memoryview | None
    ) -> tuple[bytes | memoryview, dict[int, str]]:
        """The block that some pieces lie in, to `target` or in the decoder's buffer; and of those pieces that are not
        what their ids say, why. Whole they are as a rule, so their cells are looked at only where they are not. Where
        too few of these are good, who checks the pack says so: the reason is empty."""
        at = int(pieces[0])
        try:
            raw = self._window.decoded(rows, at, self._window.stored(rows, at), target)
            if not self._bad(raw, rows, pieces):
                return raw, {}
        except DrystoneError:
            pass  # the sure bytes say what is wrong, if anything
        try:
            stored = self._window.sure(rows, at)
        except DrystoneError:
            return b"", dict.fromkeys(pieces.tolist(), "")
        try:
            raw = self._window.decoded(rows, at, stored, target)
        except DrystoneError as error:
            return b"", dict.fromkeys(pieces.tolist(), str(error))
        return raw, dict.fromkeys(self._bad(raw, rows, pieces), "its bytes do not match its id")

    def _bad(self, raw: memoryview, rows: np.ndarray, pieces: np.ndarray) -> list[int]:
        """Those of some pieces that are not what their ids say."""
        some = rows[pieces]
        self._context.clock.switch(VERIFY)
        ids = some["chunk_id"].tobytes()
        offsets, lengths = some["chunk_offset"].tolist(), some["length"].tolist()
        bad = []
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            piece = raw[offset : offset + length]
            if len(piece) != length or not chunk_is_good(ids[number * 32 : number * 32 + 32], piece):
                bad.append(int(pieces[number]))
        self._context.clock.count(VERIFY, len(pieces), sum(lengths))
        return bad


def _blocks_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A number for each row's block; for each number the length of the block, and how much of it the rows need."""
    keys, first, blocks = np.unique(block_keys(rows), return_index=True, return_inverse=True)
    return blocks, rows["raw"][first], np.bincount(blocks, rows["length"], len(keys))


def _findings(rows: np.ndarray, lost: dict[int, str]) -> Iterator[PackFindings]:
    """Pack by pack what is lost, where nobody else looks at it; at least one."""
    packs = {NIL.bytes: PackFindings(NIL.bytes, [Finding(CHECKED)])}
    for row, reason in sorted(lost.items()):
        if rows[row]["judges"] and reason:
            pack_id = rows[row]["pack_id"].tobytes()
            block, offset, length = (int(rows[row][name]) for name in ("block", "chunk_offset", "length"))
            finding = Finding(LOST_PLACE, 0, 0, rows[row]["chunk_id"].tobytes(), block, offset, length, reason)
            packs.setdefault(pack_id, PackFindings(pack_id)).entries.append(finding)
    yield from packs.values()
