"""How far a large file may be hashed while its parts are still being written."""

from __future__ import annotations

import random

from pipeline.restore.prefixes import HASH_STEP, MOST_EARLY, Prefixes

PART = 1 << 20


def test_parts_in_any_near_order_are_hashed_to_the_gap() -> None:
    prefixes, rng = Prefixes(), random.Random(7)
    order = list(range(100))
    for start in range(0, 100, 5):
        order[start : start + 5] = rng.sample(order[start : start + 5], 5)
    written: set[int] = set()
    for number in order:
        prefixes.note(3, number * PART, PART)
        written.add(number)
        if (due := prefixes.due()) is not None:
            row, end, worker = due
            assert row == 3 and worker is None and set(range(end // PART)) <= written
            assert end >= HASH_STEP
    assert prefixes.finish(3) is None


def test_a_file_stays_with_the_worker_that_began() -> None:
    prefixes = Prefixes()
    prefixes.note(1, 0, HASH_STEP)
    assert prefixes.due() == (1, HASH_STEP, None)
    prefixes.hashed_by(1, 4)
    prefixes.note(1, HASH_STEP, HASH_STEP)
    assert prefixes.due() == (1, 2 * HASH_STEP, 4)
    assert prefixes.due() is None
    assert prefixes.finish(1) == 4


def test_what_was_hashed_does_not_count_once_bytes_are_written_twice() -> None:
    for again in (0, PART, HASH_STEP - 1):
        prefixes = Prefixes()
        prefixes.note(1, 0, HASH_STEP)
        prefixes.due()
        prefixes.hashed_by(1, 0)
        prefixes.note(1, again, PART)
        assert prefixes.due() == (1, 0, 0), "told to forget it"
        prefixes.note(1, HASH_STEP, HASH_STEP)
        assert prefixes.due() is None


def test_an_overlap_that_came_early_is_seen_too() -> None:
    prefixes = Prefixes()
    prefixes.note(1, HASH_STEP // 2, HASH_STEP)
    prefixes.note(1, 0, HASH_STEP)
    assert prefixes.due() is None
    assert prefixes.finish(1) is None


def test_a_file_in_quite_another_order_is_given_up() -> None:
    prefixes = Prefixes()
    for number in range(MOST_EARLY + 10, 0, -1):
        prefixes.note(1, number * PART, PART)
    prefixes.note(1, 0, PART)
    assert prefixes.due() is None
