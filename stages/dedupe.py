"""The dedupe index in memory: which ids are known, and their lengths.

Open addressing with linear probing over the first 16 bytes of each id (ids are BLAKE3, so the bytes are uniform). The
table is cut into sub-tables that grow singly, in place, within reserved address space of which untouched pages cost
nothing: at most 30 bytes an id beyond the first 5 MiB, also while growing. All operations take whole batches.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.index import ENTRY, KEY_BYTES, Entries, Ids, Lengths, Mask, accepted, keys_of

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

SUB_TABLES = 256
LENGTH_BYTES = 4
FIRST_CAPACITY = 1024
EXPECTED_FULL = 0.75  # how full sub-tables are when all that was expected has come
FULL = 0.8  # a sub-table grows when it is this full …
GROWTH = 1.2  # … by this much, so it is never less than two thirds full once it has grown


class MemoryIndex:
    """An index (manifests/index.py) of kind `memory`. Owned by one process."""

    def __init__(self, expected: int = 0) -> None:
        """`expected` ids are made room for, so that no sub-table grows until they are there."""
        room = max(FIRST_CAPACITY, int(expected / SUB_TABLES / EXPECTED_FULL) + 1)
        self._capacity = np.full(SUB_TABLES, room, np.uint64)
        self._count = np.zeros(SUB_TABLES, np.int64)
        self._total_bytes = 0
        self._stride = FIRST_CAPACITY
        while self._stride < 2 * room:
            self._stride *= 2
        self._reserve()

    def __len__(self) -> int:
        return int(self._count.sum())

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    @property
    def touched_bytes(self) -> int:
        """Memory in use by the table, at most: pages that no id fell on are not there."""
        return int(self._capacity.sum()) * (KEY_BYTES + LENGTH_BYTES)

    def _reserve(self) -> None:
        places = SUB_TABLES * self._stride
        self._space, self._length_space = _address_space(places * KEY_BYTES), _address_space(places * LENGTH_BYTES)
        self._table = np.frombuffer(self._space, np.uint64).reshape(-1, 2)
        self._lengths = np.frombuffer(self._length_space, np.uint32)

    def _home(self, keys: Keys) -> tuple[Places, npt.NDArray[np.uint64]]:
        """Sub-table and first place to look at, for each key."""
        sub = (keys[:, 0] & np.uint64(SUB_TABLES - 1)).astype(np.int64)
        start = ((keys[:, 0] >> np.uint64(32)) * self._capacity[sub]) >> np.uint64(32)
        return sub, start

    def _look(self, keys: Keys, at: Places) -> tuple[Mask, Mask]:
        """Whether the places `at` hold these keys, and whether they are free."""
        low, high = self._table[at, 0], self._table[at, 1]
        return (low == keys[:, 0]) & (high == keys[:, 1]), (low | high) == 0

    def get_batch(self, ids: Ids) -> Lengths:
        places = self._find(keys_of(ids))
        lengths: Lengths = self._lengths[places]
        lengths[places < 0] = 0
        return lengths

    def _find(self, keys: Keys) -> Places:
        """The place of each key, −1 where it is not known."""
        sub, place = self._home(keys)
        found = np.full(len(keys), -1, np.int64)
        left = np.arange(len(keys))
        while len(left):
            at = sub[left] * self._stride + place[left].astype(np.int64)
            hit, free = self._look(keys[left], at)
            found[left[hit]] = at[hit]
            left = left[~(hit | free)]
            place[left] = (place[left] + np.uint64(1)) % self._capacity[sub[left]]
        return found

    def put_batch(self, ids: Ids, lengths: Lengths) -> Mask:
        keys = keys_of(ids)
        self._make_room(keys)
        new = self._insert(keys, lengths)
        self._count += _by_sub_table(keys[new])
        self._total_bytes += int(lengths[new].sum(dtype=np.uint64))
        return new

    def _insert(self, keys: Keys, lengths: Lengths) -> Mask:
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
                self._lengths[at[winners]] = lengths[left[winners]]
                new[left[winners]] = True
                hit[winners] = True
                hit |= self._look(keys[left], at)[0]
            left = left[~hit]
            place[left] = (place[left] + np.uint64(1)) % self._capacity[sub[left]]
        return new

    def _make_room(self, keys: Keys) -> None:
        coming = _by_sub_table(keys)
        if ((self._count + coming) > self._capacity * FULL).any():
            coming = _by_sub_table(keys[self._find(keys) < 0])  # what is known already needs no room
        for sub in np.flatnonzero((self._count + coming) > self._capacity * FULL):
            wanted = int((self._count[sub] + coming[sub]) / FULL) + 1
            self._grow(int(sub), max(wanted, int(int(self._capacity[sub]) * GROWTH)))

    def _grow(self, sub: int, capacity: int) -> None:
        if capacity > self._stride:
            self._widen(capacity)
        keys, lengths = self._take(sub)
        self._capacity[sub] = capacity
        self._fill(sub, keys, lengths)

    def _take(self, sub: int) -> tuple[Keys, Lengths]:
        """What a sub-table holds; it is empty after it."""
        part = slice(sub * self._stride, sub * self._stride + int(self._capacity[sub]))
        used = (self._table[part, 0] | self._table[part, 1]) != 0
        keys, lengths = self._table[part][used], self._lengths[part][used]
        self._table[part] = 0
        return keys, lengths

    def _fill(self, sub: int, keys: Keys, lengths: Lengths) -> None:
        """Put distinct keys into an empty sub-table, all at once: in order of their homes, each takes its home or the
        place behind the one before it. The few that run over the end begin anew at the front."""
        _, home = self._home(keys)
        order = np.argsort(home, kind="stable")
        steps = np.arange(len(keys))
        place = np.maximum.accumulate(home[order].astype(np.int64) - steps) + steps
        fits = place < int(self._capacity[sub])
        at = sub * self._stride + place[fits]
        self._table[at], self._lengths[at] = keys[order[fits]], lengths[order[fits]]
        self._insert(keys[order[~fits]], lengths[order[~fits]])

    def _widen(self, capacity: int) -> None:
        """Move to address space with room for `capacity` a sub-table, sub-table by sub-table, giving back what was
        moved, so that only one of them exists twice at a time."""
        spaces, table, lengths = (self._space, self._length_space), self._table, self._lengths
        old_stride = self._stride
        while self._stride < capacity:
            self._stride *= 2
        self._reserve()
        for sub in range(SUB_TABLES):
            used, start, old = int(self._capacity[sub]), sub * self._stride, sub * old_stride
            self._table[start : start + used] = table[old : old + used]
            self._lengths[start : start + used] = lengths[old : old + used]
            for space, size in zip(spaces, (KEY_BYTES, LENGTH_BYTES), strict=True):
                _give_back(space, old * size, (old + old_stride) * size)
        del table, lengths
        for space in spaces:
            space.close()

    def delete(self, ids: Ids) -> int:
        places = self._find(keys_of(ids))
        places = np.unique(places[places >= 0])
        self._total_bytes -= int(self._lengths[places].sum(dtype=np.uint64))
        # A hole would end the search for those behind it, so the sub-table is filled anew.
        self._table[places] = 0
        subs, counts = np.unique(places // self._stride, return_counts=True)
        self._count[subs] -= counts
        for sub in subs:
            self._fill(int(sub), *self._take(int(sub)))
        return len(places)

    def iterate(self) -> Iterator[Entries]:
        for sub in range(SUB_TABLES):
            part = slice(sub * self._stride, sub * self._stride + int(self._capacity[sub]))
            used = (self._table[part, 0] | self._table[part, 1]) != 0
            if used.any():
                entries = np.empty(int(used.sum()), ENTRY)
                entries["key"] = self._table[part][used].view(np.uint8)
                entries["length"] = self._lengths[part][used]
                yield entries

    def stream(self, accept: Callable[[Entries], Mask]) -> Iterator[Entries]:
        return accepted(self.iterate(), accept)

    def sync(self) -> None:
        """Nothing: what is in memory is never durable."""

    def destroy(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._space.closed:
            self._table, self._lengths = np.empty((0, 2), np.uint64), np.empty(0, np.uint32)
            self._space.close()
            self._length_space.close()


def _by_sub_table(keys: Keys) -> Places:
    """How many of `keys` belong to each sub-table."""
    return np.bincount((keys[:, 0] & np.uint64(SUB_TABLES - 1)).astype(np.int64), minlength=SUB_TABLES)


def _address_space(size: int) -> Any:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    space = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # huge pages would fill the gaps between the sub-tables
        space.madvise(mmap.MADV_NOHUGEPAGE)
    return space


def _give_back(space: mmap.mmap, start: int, end: int) -> None:
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        space.madvise(mmap.MADV_DONTNEED, start, end - start)
