"""The dedupe index in memory: which ids are known.

Open addressing with linear probing over the first 16 bytes of each id (ids are BLAKE3, so the bytes are uniform). The
table is cut into sub-tables that grow singly, in place, within reserved address space of which untouched pages cost
nothing: at most 28 bytes an id beyond the first 4 MiB, also while growing. All operations take whole batches.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

SUB_TABLES = 256
KEY_BYTES = 16
FIRST_CAPACITY = 1024
FULL = 0.8  # a sub-table grows when it is this full …
GROWTH = 1.25  # … by this much, so it is never less than 64 % full once it has grown


class MemoryIndex:
    """A set of ids. Owned by one process."""

    def __init__(self, expected: int = 0) -> None:
        """`expected` ids are reserved for (address space, not memory)."""
        self._capacity = np.full(SUB_TABLES, FIRST_CAPACITY, np.uint64)
        self._count = np.zeros(SUB_TABLES, np.int64)
        self._stride = FIRST_CAPACITY
        while self._stride * SUB_TABLES * FULL < 2 * expected:
            self._stride *= 2
        self._reserve()

    def __len__(self) -> int:
        return int(self._count.sum())

    @property
    def touched_bytes(self) -> int:
        """Memory in use by the table."""
        return int(self._capacity.sum()) * KEY_BYTES

    def _reserve(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._space = mmap.mmap(-1, SUB_TABLES * self._stride * KEY_BYTES, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # huge pages would fill the gaps between the sub-tables
            self._space.madvise(mmap.MADV_NOHUGEPAGE)
        self._table = np.frombuffer(self._space, np.uint64).reshape(-1, 2)

    @staticmethod
    def _keys(ids: Ids) -> Keys:
        keys = np.array(ids[:, :KEY_BYTES], order="C").view(np.uint64)
        # All zero marks an empty place; an id that starts so (never seen) shares the key of one that ends in 1.
        keys[:, 1] |= (keys[:, 0] == 0) & (keys[:, 1] == 0)
        return keys

    def _home(self, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Sub-table and first place to look at, for each key."""
        sub = (keys[:, 0] & np.uint64(SUB_TABLES - 1)).astype(np.int64)
        start = ((keys[:, 0] >> np.uint64(32)) * self._capacity[sub]) >> np.uint64(32)
        return sub, start

    def _look(self, keys: Keys, at: npt.NDArray[np.int64]) -> tuple[Mask, Mask]:
        """Whether the places `at` hold these keys, and whether they are free."""
        low, high = self._table[at, 0], self._table[at, 1]
        return (low == keys[:, 0]) & (high == keys[:, 1]), (low | high) == 0

    def contains(self, ids: Ids) -> Mask:
        """Which of `ids` (n × 32 bytes) are known."""
        return self._known(self._keys(ids))

    def _known(self, keys: Keys) -> Mask:
        sub, place = self._home(keys)
        known = np.zeros(len(keys), bool)
        left = np.arange(len(keys))
        while len(left):
            hit, free = self._look(keys[left], sub[left] * self._stride + place[left].astype(np.int64))
            known[left[hit]] = True
            left = left[~(hit | free)]
            place[left] = (place[left] + np.uint64(1)) % self._capacity[sub[left]]
        return known

    def add(self, ids: Ids) -> Mask:
        """Make `ids` (n × 32 bytes) known. Returns which were new; of equal ones in the batch the first."""
        keys = self._keys(ids)
        self._make_room(keys)
        new = self._insert(keys)
        self._count += _by_sub_table(keys[new])
        return new

    def _insert(self, keys: Keys) -> Mask:
        sub, place = self._home(keys)
        new = np.zeros(len(keys), bool)
        left = np.arange(len(keys))
        while len(left):
            at = sub[left] * self._stride + place[left].astype(np.int64)
            hit, free = self._look(keys[left], at)
            takers = np.flatnonzero(free)
            if len(takers):
                # Several keys may want one free place: the first of the batch gets it, equal ones find it taken.
                _, first = np.unique(at[takers], return_index=True)
                winners = takers[first]
                self._table[at[winners]] = keys[left[winners]]
                new[left[winners]] = True
                hit[winners] = True
                hit |= self._look(keys[left], at)[0]
            left = left[~hit]
            place[left] = (place[left] + np.uint64(1)) % self._capacity[sub[left]]
        return new

    def _make_room(self, keys: Keys) -> None:
        coming = _by_sub_table(keys)
        if ((self._count + coming) > self._capacity * FULL).any():
            coming = _by_sub_table(keys[~self._known(keys)])  # what is known already needs no room
        for sub in np.flatnonzero((self._count + coming) > self._capacity * FULL):
            wanted = int((self._count[sub] + coming[sub]) / FULL) + 1
            self._grow(int(sub), max(wanted, int(int(self._capacity[sub]) * GROWTH)))

    def _grow(self, sub: int, capacity: int) -> None:
        if capacity > self._stride:
            self._widen(capacity)
        start, old = sub * self._stride, int(self._capacity[sub])
        keys = self._table[start : start + old]
        keys = keys[(keys[:, 0] | keys[:, 1]) != 0]
        self._table[start : start + old] = 0
        self._capacity[sub] = capacity
        # Linear probing of all keys at once: in order of their homes, each takes its home or the place behind the one
        # before it. The few that run over the end begin anew at the front.
        _, home = self._home(keys)
        order = np.argsort(home, kind="stable")
        steps = np.arange(len(keys))
        place = np.maximum.accumulate(home[order].astype(np.int64) - steps) + steps
        fits = place < capacity
        self._table[start + place[fits]] = keys[order[fits]]
        self._insert(keys[order[~fits]])

    def _widen(self, capacity: int) -> None:
        """Move to address space with room for `capacity` a sub-table, sub-table by sub-table, giving back what was
        moved, so that only one of them exists twice at a time."""
        space, table, old_stride = self._space, self._table, self._stride
        while self._stride < capacity:
            self._stride *= 2
        self._reserve()
        for sub in range(SUB_TABLES):
            used = int(self._capacity[sub])
            self._table[sub * self._stride : sub * self._stride + used] = table[
                sub * old_stride : sub * old_stride + used
            ]
            _give_back(space, sub * old_stride * KEY_BYTES, (sub + 1) * old_stride * KEY_BYTES)
        del table
        space.close()


def _by_sub_table(keys: Keys) -> npt.NDArray[np.int64]:
    """How many of `keys` belong to each sub-table."""
    return np.bincount((keys[:, 0] & np.uint64(SUB_TABLES - 1)).astype(np.int64), minlength=SUB_TABLES)


def _give_back(space: mmap.mmap, start: int, end: int) -> None:
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        space.madvise(mmap.MADV_DONTNEED, start, end - start)
