"""Which records touch a range: the same as asked one by one, and quick when there are many."""

from __future__ import annotations

import random
import time

from lab.access import PAGE
from lab.access.keep import _PHYS, _SIZE, _Places


def row(physical: int, size: int) -> tuple[int, ...]:
    fields = [0] * 32
    fields[_PHYS], fields[_SIZE] = physical, size
    return tuple(fields)


def test_ranges_that_meet_are_told_apart_from_those_that_do_not() -> None:
    chance = random.Random(7)
    for _ in range(200):
        ranges = [
            (start, start + chance.randrange(1, 40))
            for start in (chance.randrange(2 * PAGE) for _ in range(chance.randrange(1, 12)))
        ]
        rows = [row(chance.randrange(2 * PAGE), chance.randrange(1, 9)) for _ in range(60)]
        rows = [one for one in rows if one[_PHYS] // PAGE == (one[_PHYS] + one[_SIZE] - 1) // PAGE]
        expected = [
            number
            for number, one in enumerate(rows)
            if any(start < one[_PHYS] + one[_SIZE] and one[_PHYS] < end for start, end in ranges)
        ]

        assert expected == _Places(ranges).touched_by(rows)


def test_a_page_that_was_touched_very_often_costs_no_more() -> None:
    rows = [row(8 * number % PAGE, 8) for number in range(20_000)]
    start = time.monotonic()

    assert len(rows) == len(_Places.of(rows, range(len(rows))).touched_by(rows))
    assert time.monotonic() - start < 5.0  # 0.1 s on two quiet cores; pairwise it is minutes
