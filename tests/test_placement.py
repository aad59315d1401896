"""Where shards are put: backends, then failure domains, then free space; full and read-only ones are left out."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from pathlib import Path

import pytest

from manifests.config import ECScheme
from manifests.ids import new_id
from manifests.memory import PLACES
from manifests.placement import Room, Seat, likely_places, place, rooms
from manifests.storage import Space
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from pipeline.shardfiles import PackPlace, ShardSource

SCHEME = ECScheme(4, 2)
INLINE = IngestOptions(inline=True, workers=1)


def seats(*domains: str) -> tuple[Seat, ...]:
    return tuple(Seat(number, domain) for number, domain in enumerate(domains))


def even(places: tuple[Seat, ...]) -> dict[int, Room]:
    return {seat.number: Room() for seat in places}


def test_a_store_of_as_many_backends_as_shards_turns_them_by_the_pack_id() -> None:
    six = seats(*"aaaaaa")
    for _ in range(50):
        pack = new_id()
        turn = pack.int % 6
        assert place(SCHEME, six, pack, even(six)) == [(index + turn) % 6 for index in range(6)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_fewer_backends_hold_as_equal_numbers_as_can_be(count: int) -> None:
    few = seats(*["a"] * count)
    for _ in range(30):
        held = Counter(place(SCHEME, few, new_id(), even(few)))
        assert max(held.values()) == -(-6 // count) and min(held[n] for n in range(count)) == 6 // count


def test_neighbours_lie_apart_where_backends_hold_two() -> None:
    for _ in range(30):
        places = place(SCHEME, seats(*"abc"), new_id(), even(seats(*"abc")))
        assert sorted(places[:3]) == sorted(places[3:]) == [0, 1, 2]


def test_each_pack_spreads_over_all_domains() -> None:
    twelve = seats(*"aaaabbbbcccc")
    for _ in range(100):
        chosen = place(SCHEME, twelve, new_id(), even(twelve))
        assert len(set(chosen)) == 6
        assert Counter(twelve[number].domain for number in chosen) == {"a": 2, "b": 2, "c": 2}


def test_backends_come_before_domains() -> None:
    """Domain b has one backend: it gets one shard, not half of them."""
    uneven = seats(*"aaaaaab")
    for _ in range(50):
        chosen = place(SCHEME, uneven, new_id(), even(uneven))
        assert len(set(chosen)) == 6 and 6 in chosen


def test_the_second_shard_of_a_backend_goes_where_its_domain_has_fewest() -> None:
    five = seats(*"aabcd")
    for _ in range(50):
        held = Counter(five[number].domain for number in place(SCHEME, five, new_id(), even(five)))
        assert max(held.values()) == 2  # so any one domain may be lost


def test_many_backends_are_filled_alike() -> None:
    twelve = seats(*[str(n) for n in range(12)])
    held, firsts = Counter[int](), Counter[int]()
    for _ in range(2000):
        chosen = place(SCHEME, twelve, new_id(), even(twelve))
        held.update(chosen)
        firsts[chosen[5]] += 1
    assert all(850 < held[n] < 1150 for n in range(12))
    assert all(90 < firsts[n] < 260 for n in range(12))  # parity spreads, too


def test_who_has_more_room_gets_more() -> None:
    eight = seats(*[str(n) for n in range(8)])
    spaces = {n: Space(1 << 40, (4 if n < 4 else 1) << 30) for n in range(8)}
    held = Counter[int]()
    for _ in range(1000):
        held.update(place(SCHEME, eight, new_id(), rooms(eight, spaces, 1 << 20)))
    large, small = (sum(held[n] for n in part) for part in (range(4), range(4, 8)))
    assert large > 1.5 * small and all(held[n] for n in range(8))


def test_full_and_absent_ones_are_left_out_while_there_are_others() -> None:
    eight = seats(*"abcdefgh")
    spaces = {n: Space(1 << 40, 1 << 35) for n in range(8) if n != 3}
    spaces[5] = Space(1 << 40, 3 << 20)
    for _ in range(50):
        assert not {3, 5} & set(place(SCHEME, eight, new_id(), rooms(eight, spaces, 2 << 20)))


def test_what_does_not_tell_its_room_is_as_good_as_the_others() -> None:
    two = seats("a", "b")
    found = rooms(two, {0: Space(100 << 30, 10 << 30), 1: Space(0, 0)}, 1 << 20)
    assert found[1] == Room(float(10 << 30), True) == found[0]


def test_readers_look_first_where_it_was_put() -> None:
    twelve = seats(*"aaabbbcccddd")
    for _ in range(20):
        pack = new_id()
        assert list(likely_places(SCHEME, twelve, pack)) == place(SCHEME, twelve, pack, even(twelve))


@pytest.mark.parametrize("drift", [0.0, 0.5], ids=["same room", "room that shrank"])
def test_readers_of_unequal_backends_seldom_look_in_vain(drift: float) -> None:
    """Once a look was in vain they go by the room that there is."""

    class Asked:
        def __init__(self, number: int, free: int) -> None:
            self.number, self.free = number, free

        def space(self) -> Space:
            return Space(1000 << 30, self.free)

    chance = random.Random(2)
    twelve = seats(*"abcdefghijkl")
    free = [10 << 30] * 6 + [100 << 30] * 6
    put = {seat.number: Room(float(room)) for seat, room in zip(twelve, free, strict=True)}
    now = {n: Asked(n, int(room * (1 - drift * chance.random()))) for n, room in enumerate(free)}
    source = ShardSource(uuid.uuid4(), now, twelve)  # type: ignore[arg-type]
    in_vain = 0
    for _ in range(100):
        pack = PackPlace(new_id(), SCHEME, 1000, SCHEME.shard_length(1000))
        where = place(SCHEME, twelve, pack.pack_id, put)
        for index in range(6):
            looked: list[int] = [asked.number for asked in source.candidates(pack, index)]  # type: ignore[attr-defined]
            assert sorted(looked) == list(range(12))
            in_vain += looked.index(where[index])
    assert in_vain / 600 < (0.1 if drift == 0 else 0.5)


def shard_counts(store: FileStore) -> dict[int, int]:
    return {m.number: sum(1 for _ in m.storage.list("packs")) for m in store.members.present.values()}


def test_a_store_of_nine_backends_spreads_its_packs_and_leaves_out_who_can_take_none(tmp_path: Path) -> None:
    """One is read-only, one full; the run is safe all the same, and all comes back without any two of the others."""
    (tmp_path / "data").write_bytes(bytes(range(256)) * 40_000)
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(24_000_000))
    roots = [f"memory:/{tmp_path.name}/{n}" for n in range(9)]
    try:
        with FileStore.create(roots, pack_size=128 << 10, cache=tmp_path / "cache") as store:
            store.add_backend(roots[2], read_only=True)
            PLACES[f"/{tmp_path.name}/4"].capacity = 60_000
            result = store.ingest([str(tmp_path / "data"), str(tmp_path / "noise")], options=INLINE)
            assert result.tally.packs >= 5 and result.tally.missing_shards == 0
            held = shard_counts(store)
            assert held.pop(2) == held.pop(4) == 0
            assert sum(held.values()) == 6 * result.tally.packs and len(held) == 7
            assert max(held.values()) <= result.tally.packs  # never two shards of a pack on one
        for lost in (0, 7):
            PLACES[f"/{tmp_path.name}/{lost}"].files.clear()
        with FileStore.open(roots[1], cache=tmp_path / "cache") as store:
            assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
        assert (tmp_path / "out" / "noise").read_bytes() == (tmp_path / "noise").read_bytes()
    finally:
        for location in [each for each in PLACES if each.startswith(f"/{tmp_path.name}")]:
            del PLACES[location]


def test_one_full_backend_of_six_costs_its_shards_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(random.Random(2).randbytes(400_000))
    root = f"memory:/{tmp_path.name}"
    try:
        with FileStore.create([root], cache=tmp_path / "cache") as store:
            full = PLACES[f"/{tmp_path.name}/backend-3"]
            full.capacity = full.used + 20_000
            result = store.ingest([str(tmp_path / "data")], options=INLINE)
            assert (result.exit_code, result.tally.missing_shards, result.may_lose) == (3, 1, 1)
            assert not [key for key in full.files if key.startswith("packs/")]
    finally:
        for location in [each for each in PLACES if each.startswith(f"/{tmp_path.name}")]:
            del PLACES[location]
