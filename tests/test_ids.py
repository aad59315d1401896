"""Ids: UUIDv7 that sort after all that was seen, whatever the clock says."""

from __future__ import annotations

import time
import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import ids

YEAR_MS = 365 * 24 * 3600 * 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that stands at what is in the list, in milliseconds."""
    now = [1_750_000_000_000]
    monkeypatch.setattr("manifests.ids.time.time_ns", lambda: now[0] * 1_000_000 + 999_999)
    return now


def assert_version_7(identity: uuid.UUID) -> None:
    assert identity.version == 7
    assert identity.variant == uuid.RFC_4122
    assert str(identity)[14] == "7"
    assert str(identity)[19] in "89ab"


def test_an_id_carries_the_time_of_its_making() -> None:
    before = time.time_ns() // 1_000_000
    identity = ids.new_id()
    assert before <= ids.time_ms(identity) <= time.time_ns() // 1_000_000
    assert_version_7(identity)


def test_the_time_is_milliseconds_in_the_first_48_bits(clock: list[int]) -> None:
    identity = ids.new_id()
    assert int.from_bytes(identity.bytes[:6], "big") == ids.time_ms(identity) == clock[0]


def test_ids_of_one_millisecond_differ_in_all_other_bits(clock: list[int]) -> None:
    made = [ids.new_id() for _ in range(300)]
    assert len(set(made)) == 300
    ones = zeros = 0
    for identity in made:
        assert_version_7(identity)
        ones |= identity.int
        zeros |= ~identity.int
    random_bits = (1 << 76) - 1 & ~(0x3 << 62)
    assert ones & zeros & ((1 << 80) - 1) == random_bits


def test_ids_sort_in_order_while_the_clock_stands(clock: list[int]) -> None:
    chain = [ids.new_id()]
    for _ in range(200):
        chain.append(ids.new_id(chain[-1]))
    for form in (chain, [i.bytes for i in chain], [str(i) for i in chain]):
        assert all(a < b for a, b in pairwise(form))  # type: ignore[operator]


@pytest.mark.parametrize("behind", [1, 1000, 10 * YEAR_MS, 55 * YEAR_MS])
def test_an_id_sorts_after_the_newest_seen_when_the_clock_stands_behind(clock: list[int], behind: int) -> None:
    newest = ids.new_id()
    clock[0] -= behind
    later = ids.new_id(newest)
    assert ids.time_ms(later) == ids.time_ms(newest) + 1
    assert newest < later
    assert_version_7(later)


def test_an_old_id_seen_does_not_hold_the_time_back(clock: list[int]) -> None:
    old = ids.new_id()
    clock[0] += 5000
    assert ids.time_ms(ids.new_id(old)) == clock[0]
    assert ids.time_ms(ids.new_id(ids.NIL)) == clock[0]


@given(st.integers(0, (1 << 128) - (1 << 80) - 1))
def test_an_id_sorts_after_any_that_was_seen(seen: int) -> None:
    newest = uuid.UUID(int=seen)
    later = ids.new_id(newest)
    assert later > newest
    assert_version_7(later)
