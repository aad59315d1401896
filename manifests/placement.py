"""Where the shards of a pack are put: on distinct backends, then in distinct failure domains, by free space.

Each backend gets one shard before any gets a second. Among those with the fewest shards of the pack, one in the failure
domain with the fewest goes first, and of these one is drawn, by the pack id, with chances as its free space. Backends
that can't take a shard now come last: where they can't be done without, their shards are missing, for repair to put.
The shards then go to the chosen ones in their order of joining, turned by the pack id so that parity spreads evenly; so
a store of no more backends than shards has the simple rule that it always had.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from blake3 import blake3

from manifests.config import ECScheme
from manifests.storage import Space


@dataclass(frozen=True)
class Seat:
    """A backend that shards may be put on, as the log knows it: one that is not read-only."""

    number: int
    domain: str


@dataclass(frozen=True)
class Room:
    """What a backend can take now. `weight`: its chance to be drawn, in proportion to that of others; `usable`: whether
    it answers and has space for a shard."""

    weight: float = 1.0
    usable: bool = True


def rooms(seats: Sequence[Seat], spaces: dict[int, Space], shard: int) -> dict[int, Room]:
    """What the backends can take, of their `spaces` by number: those that are absent from it do not answer. A backend
    is full when two shard files of `shard` bytes don't fit: then manifests and records of a run would not, either."""
    known = [space.free for space in spaces.values() if space.known]
    typical = sum(known) / len(known) if known else 1.0
    found = {}
    for seat in seats:
        space = spaces.get(seat.number)
        if space is None:
            found[seat.number] = Room(usable=False)
        else:
            weight = float(space.free) if space.known else typical
            found[seat.number] = Room(max(1.0, weight), not is_full(space, shard))
    return found


def kept_free(shard: int) -> int:
    """Bytes that stay free on a backend behind a shard file of `shard` bytes: room for manifests and records."""
    return shard


def is_full(space: Space, shard: int) -> bool:
    """Whether a backend has too little room for a shard file of `shard` bytes. This is the rule."""
    return space.known and space.free < shard + kept_free(shard)


def place(scheme: ECScheme, seats: Sequence[Seat], pack_id: uuid.UUID, rooms: dict[int, Room]) -> list[int]:
    """Backend numbers for the shards of a pack, of `seats` in their order of joining. This is the rule where a shard is
    put first; the `shards` table says where that was, listings say where it is."""
    order = {seat.number: position for position, seat in enumerate(seats)}
    draws = {seat.number: _draw(pack_id, seat.number, rooms[seat.number].weight) for seat in seats}
    held, in_domain = Counter[int](), Counter[str]()
    rounds: list[list[int]] = []
    for index in range(scheme.total_shards):
        if index % len(seats) == 0:
            rounds.append([])
        chosen = min(
            seats,
            key=lambda seat: (
                held[seat.number],
                not rooms[seat.number].usable,
                in_domain[seat.domain],
                draws[seat.number],
            ),
        )
        rounds[-1].append(chosen.number)
        held[chosen.number] += 1
        in_domain[chosen.domain] += 1
    places: list[int] = []
    for numbers in rounds:
        numbers.sort(key=order.__getitem__)
        turn = pack_id.int % len(numbers)
        places += numbers[turn:] + numbers[:turn]
    return places


def _draw(pack_id: uuid.UUID, number: int, weight: float) -> float:
    """Of backends with these, the smallest is drawn with a chance as its weight (an exponential race)."""
    digest = blake3(pack_id.bytes + number.to_bytes(2, "little")).digest(8)
    return -math.log((int.from_bytes(digest, "little") + 1) / (1 << 64)) / weight


@lru_cache(maxsize=64)
def likely_places(
    scheme: ECScheme, seats: tuple[Seat, ...], pack_id: uuid.UUID, weights: tuple[float, ...] = ()
) -> tuple[int, ...]:
    """Where a reader looks first: where the rule puts the shards when the backends have these `weights`, in the order
    of `seats`, or all have the same room."""
    each = {seat.number: Room(weight) for seat, weight in zip(seats, weights or (1.0,) * len(seats), strict=True)}
    return tuple(place(scheme, seats, pack_id, each)) if seats else ()


def shards_per_domain(scheme: ECScheme, seats: tuple[Seat, ...]) -> int:
    """The most shards of a pack that one failure domain gets, where all backends have the same room."""
    domains = {seat.number: seat.domain for seat in seats}
    held = Counter(domains[number] for number in likely_places(scheme, seats, uuid.UUID(int=0)))
    return max(held.values(), default=0)


__all__ = ["Room", "Seat", "is_full", "kept_free", "likely_places", "place", "rooms", "shards_per_domain"]
