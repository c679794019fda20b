"""Which records touch a range: the same as asked one by one, and quick when there are many."""

from __future__ import annotations

import random
import time

import pytest

from lab.access import PAGE
from lab.access.keep import _CALL, _CONTENT, _FLAGS, _PHYS, _SIZE, _STORE, _Ends, _followed, _Places


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


TEXT = bytes(range(0x10, 0x40))


@pytest.mark.parametrize(
    ("piece", "stored", "followed"),
    [
        (TEXT[20:24], TEXT[20:24], True),  # __pskb_pull_tail() pulls four bytes
        (TEXT[20:24], TEXT[23:24], False),  # a byte like its last is anything
        (TEXT[20:21], TEXT[20:21], False),  # who reads byte by byte makes sums
    ],
)
def test_few_bytes_from_the_middle_are_followed_as_a_whole(
    piece: bytes, stored: bytes, *, followed: bool
) -> None:
    """Of a call that loads `piece` from where a message lies, and stores `stored` elsewhere."""
    content, rows = b"", []
    at = 0x1000
    for data, where, store in ((TEXT, at, 1), (piece, at + 20, 0), (stored, 0x5000, 1)):
        fields = list(row(where, len(data)))
        fields[_CONTENT], fields[_CALL] = len(content), 1 if where == at else 2
        fields[_FLAGS] = _STORE if store else 0
        content += data
        rows.append(tuple(fields))

    found = _followed(rows, content, {1: [0], 2: [2]}, [0], [TEXT], places=[0])

    assert ([2] if followed else []) == found


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (TEXT[-8:], True),
        (b"\x77" * 7 + TEXT[-1:], True),
        (TEXT[-6:] + bytes(2), True),  # a short frame, filled up
        (TEXT[-1:] + bytes(7), False),  # 63 as a number of eight bytes
        (b"\x77" + TEXT[-1:] + bytes(6), False),
        (bytes(8), False),
    ],
)
def test_a_small_number_is_no_end_of_a_message(data: bytes, *, told: bool) -> None:
    assert told == _Ends([TEXT]).in_(data)


def test_of_a_short_message_all_of_it_is_told_with_zeros_behind() -> None:
    assert _Ends([b"\x05"]).in_(b"\x05" + bytes(7))
    assert not _Ends([b"\x05\x06"]).in_(b"\x06" + bytes(7))


def test_the_last_byte_of_a_datagram_alone_in_a_frame_is_followed_from_the_buffer_only() -> None:
    """e1000e copies it out with the zeros behind it; what skb_copy_bits() takes is the byte."""
    end = b"\xc0\xa8" + TEXT[-1:] + bytes(5)
    buffer, skb, tail, elsewhere = 0x1000, 0x5000, 0x6000, 0x7000
    content = b""
    rows: list[tuple[int, ...]] = []
    stores: dict[int, list[int]] = {}
    for data, where, call, store in (
        *((end, buffer, 1, 0), (end, skb, 1, 1)),  # the driver's memcpy()
        *((TEXT[-1:], skb + 2, 2, 0), (TEXT[-1:], tail, 2, 1)),  # behind another fragment
        *((end, skb, 3, 0), (end, elsewhere, 3, 1)),  # of a place further on it may be anything
    ):
        fields = list(row(where, len(data)))
        fields[_CONTENT], fields[_CALL], fields[_FLAGS] = len(content), call, _STORE * store
        content += data
        if store:
            stores[call] = [len(rows)]
        rows.append(tuple(fields))

    assert [1, 3] == _followed(rows, content, stores, [0], [TEXT], places=[])
