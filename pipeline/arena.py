"""The arena: one piece of shared memory, cut into pools of slots, rings of descriptors and counters.

The supervisor makes and destroys it; workers map it. It is a memfd, which the kernel frees whatever happens.
Slot: free → filling → sealed → free. One process takes slots from a pool; whoever owns a sealed slot gives it back.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.metrics.meters import Meters, meter_words

FREE, FILLING, SEALED = 0, 1, 2
_ALIGN = 64
_DESCRIPTOR = struct.Struct("<IIIIQQ")
_MADV_POPULATE_WRITE = 23
_ITEM = 256


class Message(NamedTuple):
    """A descriptor between stages. `slot` and `aux` are slots that change hands; the rest is for the two stages."""

    kind: int
    slot: int = 0
    aux: int = 0
    amount: int = 0
    first: int = 0
    second: int = 0


@dataclass(frozen=True)
class PoolSpec:
    """`slots` pieces of `size` bytes, taken by one process alone."""

    name: str
    slots: int
    size: int


@dataclass(frozen=True)
class RingSpec:
    """A single-producer single-consumer ring. `capacity` must hold every message that can be under way: one for each
    slot that a message may carry, plus the end mark; then the producer never waits for room."""

    name: str
    capacity: int


def _round(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the arena. `workers` × `stages` rows of counters, and behind a worker's as many rows of
    `meters` (pipeline/metrics/meters.py)."""

    pools: tuple[PoolSpec, ...]
    rings: tuple[RingSpec, ...]
    workers: int
    stages: int
    meters: int = 0

    def places(self) -> tuple[dict[str, int], int]:
        """Offset of each pool, pool state, ring and the counters, and the size of it all, in bytes."""
        offsets: dict[str, int] = {}
        at = 0
        sizes = [("counters", self.workers * (self.stages + self.meters) * 4 * 8)]
        sizes += [("items", self.workers * _ITEM)]
        sizes += [(f"state/{pool.name}", pool.slots) for pool in self.pools]
        sizes += [(f"ring/{ring.name}", ring.capacity * _DESCRIPTOR.size) for ring in self.rings]
        for name, size in sizes:
            offsets[name] = at
            at += _round(size, _ALIGN)
        for pool in self.pools:
            at = _round(at, mmap.PAGESIZE)
            offsets[f"pool/{pool.name}"] = at
            at += pool.slots * _round(pool.size, mmap.PAGESIZE)
        return offsets, _round(at, mmap.PAGESIZE)

    @property
    def size(self) -> int:
        return self.places()[1]

    def with_meters(self, backends: int) -> Layout:
        """The same with room for the meters of backends with numbers below `backends`."""
        return replace(self, meters=-(-meter_words(backends) // 4))

    def pool(self, name: str) -> PoolSpec:
        return next(pool for pool in self.pools if pool.name == name)


class Arena:
    """A mapping of the arena in one process."""

    def __init__(self, layout: Layout, fd: int) -> None:
        """Map the memfd `fd`, which stays the caller's."""
        self.layout = layout
        self._places, size = layout.places()
        self._map = mmap.mmap(fd, size)
        self._touched: set[tuple[str, int]] = set()
        self._view = memoryview(self._map)
        self._pools = {pool.name: pool for pool in layout.pools}
        self._stride = {pool.name: _round(pool.size, mmap.PAGESIZE) for pool in layout.pools}

    @staticmethod
    def create_fd(layout: Layout) -> int:
        """A memfd of the right size; the caller closes it."""
        fd = os.memfd_create("drystone-arena", os.MFD_CLOEXEC)
        os.ftruncate(fd, layout.size)
        return fd

    def touch(self, pool: str, number: int) -> None:
        """Have all memory of a slot there, the first time that it is taken: page by page that costs more. A slot that
        nobody takes costs nothing."""
        if (pool, number) not in self._touched:
            self._touched.add((pool, number))
            stride = self._stride[pool]
            # Before Linux 5.14 pages come one by one, as they are used.
            with suppress(OSError):
                self._map.madvise(_MADV_POPULATE_WRITE, self._places[f"pool/{pool}"] + number * stride, stride)

    def slot(self, pool: str, number: int) -> memoryview:
        """The bytes of a slot; release the view before the arena closes."""
        start = self._places[f"pool/{pool}"] + number * self._stride[pool]
        return self._view[start : start + self._pools[pool].size]

    def state(self, pool: str) -> memoryview:
        """One byte a slot: FREE, FILLING or SEALED."""
        start = self._places[f"state/{pool}"]
        return self._view[start : start + self._pools[pool].slots]

    def write_descriptor(self, ring: str, position: int, message: Message) -> None:
        _DESCRIPTOR.pack_into(self._view, self._places[f"ring/{ring}"] + position * _DESCRIPTOR.size, *message)

    def read_descriptor(self, ring: str, position: int) -> Message:
        at = self._places[f"ring/{ring}"] + position * _DESCRIPTOR.size
        return Message(*_DESCRIPTOR.unpack_from(self._view, at))

    def counters(self) -> npt.NDArray[np.uint64]:
        """workers × stages × (items, bytes, busy ns, waiting ns), and meters; each worker writes its own rows."""
        rows = self.layout.stages + self.layout.meters
        flat = np.frombuffer(self._view, np.uint64, self.layout.workers * rows * 4, self._places["counters"])
        return flat.reshape(self.layout.workers, rows, 4)

    def meters(self, worker: int) -> Meters:
        """The meters of a worker; only that one writes them."""
        return Meters(self.counters()[worker, self.layout.stages :].reshape(-1).data)

    def sealed(self, pool: str) -> int:
        """How many slots of a pool are sealed: full, and not yet done with."""
        return bytes(self.state(pool)).count(SEALED)

    def write_item(self, worker: int, item: str) -> None:
        """Note what a worker is at; only that worker may."""
        text = item.encode(errors="replace")[: _ITEM - 1]
        at = self._places["items"] + worker * _ITEM
        self._view[at : at + len(text) + 1] = text + b"\0"

    def read_item(self, worker: int) -> str:
        """What a worker noted last; may be torn, so it is for messages only."""
        at = self._places["items"] + worker * _ITEM
        return bytes(self._view[at : at + _ITEM]).partition(b"\0")[0].decode(errors="replace")

    def close(self) -> None:
        """Unmap. A view that somebody still holds keeps the memory until it goes; the process's end frees all."""
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            return


def free_slots(state: Sequence[int] | memoryview) -> int:
    """How many slots of a pool are free."""
    return bytes(state).count(FREE)
