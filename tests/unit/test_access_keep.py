"""Which records touch a range: the same as asked one by one, and quick when there are many."""

from __future__ import annotations

import random
import time

import pytest

from lab.access import PAGE
from lab.access.keep import (
    _CALL,
    _CONTENT,
    _FLAGS,
    _NARROWEST,
    _PHYS,
    _SIZE,
    _STORE,
    _WIDEST,
    _Ends,
    _followed,
    _Places,
)


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


def follow(
    *accesses: tuple[bytes, int, int, bool], text: bytes, narrowest: int = 1, places: bool = False
) -> list[int]:
    """Return which of `accesses` (bytes, address, call, store) carry on what the first one has."""
    content = b""
    rows: list[tuple[int, ...]] = []
    stores: dict[int, list[int]] = {}
    for data, where, call, store in accesses:
        fields = list(row(where, len(data)))
        fields[_CONTENT], fields[_CALL], fields[_FLAGS] = len(content), call, _STORE * store
        fields[_NARROWEST], fields[_WIDEST] = min(narrowest, len(data)), min(8, len(data))
        content += data
        if store:
            stores.setdefault(call, []).append(len(rows))
        rows.append(tuple(fields))
    return _followed(rows, content, stores, [0], [text], places=[0] if places else [])


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
    found = follow(
        (TEXT, 0x1000, 1, True),
        (piece, 0x1000 + 20, 2, False),
        (stored, 0x5000, 2, True),
        text=TEXT,
        places=True,
    )

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
    found = follow(
        (end, buffer, 1, False),
        (end, skb, 1, True),  # the driver's memcpy()
        (TEXT[-1:], skb + 2, 2, False),
        (TEXT[-1:], tail, 2, True),  # behind another fragment
        (end, skb, 3, False),
        (end, elsewhere, 3, True),  # of a place further on it may be anything
        text=TEXT,
    )

    assert [1, 3] == found


POINTER = bytes.fromhex("004910505cb1feff")  # of a kernel: its last byte is one of any message


@pytest.mark.parametrize(("narrowest", "carried"), [(8, []), (1, [2])])
def test_a_pointer_stored_whole_carries_no_byte_on(narrowest: int, carried: list[int]) -> None:
    """Who looks at the last byte, and pushes a register that ends with the same, copies nothing."""
    text = TEXT[:-1] + b"\xff"
    assert carried == follow(
        (text, 0x1000, 1, True),
        (text[-1:], 0x1000 + len(text) - 1, 2, False),
        (POINTER, 0x5000, 2, True),
        text=text,
        narrowest=narrowest,
    )


@pytest.mark.parametrize(
    ("later", "carried"), [(TEXT[-2:], [2, 4]), (b"\x77" * 7 + TEXT[-1:], [2])]
)
def test_what_lay_there_at_another_time_is_not_carried_on(later: bytes, carried: list[int]) -> None:
    """The place that has the end of a message had a number before that ends like it."""
    assert carried == follow(
        (TEXT[-2:], 0x1000, 1, True),
        (TEXT[-2:], 0x1000, 2, False),
        (TEXT[-2:], 0x5000, 2, True),
        (later, 0x5000, 3, False),
        (later, 0x6000, 3, True),
        text=TEXT,
    )


@pytest.mark.parametrize(("at", "carried"), [(5, [2]), (8, [])])
def test_a_piece_is_one_where_it_lies_in_the_message(at: int, carried: list[int]) -> None:
    """Message 4 holds the number 4, as many places of a kernel do."""
    text = bytes.fromhex("0942d751cd0400000000b1b2b3b4b5b6")
    assert carried == follow(
        (text, 0x1000, 1, True),
        (text[5:9], 0x1000 + at, 2, False),
        (text[5:9], 0x5000, 2, True),
        text=text,
        places=True,
    )


@pytest.mark.parametrize(("at", "carried"), [(0, []), (8, [2])])
def test_what_was_pushed_next_to_a_message_is_no_piece_of_it(at: int, carried: list[int]) -> None:
    """Registers of an interrupted copy: one holds eight bytes of a message, another a number."""
    text = TEXT[:8] + b"\x01\x00\x00\x00" + TEXT[12:]
    pushed = b"\x01\x00\x00\x00\x00\x00\x00\x00" + text[4:12] + POINTER
    assert carried == follow(
        (pushed, 0x1000, 1, True),
        (pushed[at : at + 4], 0x1000 + at, 2, False),
        (pushed[at : at + 4], 0x5000, 2, True),
        text=text,
        places=True,
    )
