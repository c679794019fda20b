"""What memory holds, byte by byte, beside what `Holdings` says of it in runs."""

from __future__ import annotations

import random

from lab.correlate.holdings import CHUNK_BITS, Extent, Held, Holdings, Way
from lab.correlate.types import Place, PlaceKind

CHUNK = 1 << CHUNK_BITS
FIRST, LAST = 5 * CHUNK, 8 * CHUNK  # of the memory that is written to
AROUND = 40  # bytes: near an edge, where runs are cut


def place(number: int) -> Place:
    return Place(
        number=number,
        guest="sender",
        kind=PlaceKind.KERNEL,
        region="",
        virtual=0,
        size=0,
        message=number,
        offset=0,
    )


def told(holdings: Holdings, start: int, size: int) -> dict[int, tuple[int, int]]:
    """Return message and offset of each byte of a range, by address."""
    return {
        start + held.at + byte: (held.message, held.offset + byte)
        for held in holdings.find([Extent("physical", start, size, 0)])
        for byte in range(held.size)
    }


def test_a_range_is_found_whichever_chunks_it_lies_in() -> None:
    # Against a plain table of bytes: what is over an edge, inside a chunk, and over several.
    chance = random.Random(0x10AB)
    holdings = Holdings()
    memory: dict[int, tuple[int, int]] = {}
    for number in range(100):
        edge = chance.randrange(FIRST, LAST + 1, CHUNK)
        start = edge + chance.randrange(-AROUND, AROUND)
        size = chance.choice([1, 7, AROUND, CHUNK, 2 * CHUNK + 1])
        extents = [Extent("physical", start, size, 0)]
        holdings.clear(extents)
        holdings.put(extents, Held(0, size, number, 3, place(number), Way()))
        memory |= {start + byte: (number, 3 + byte) for byte in range(size)}
        near = chance.randrange(FIRST, LAST + 1, CHUNK) - AROUND
        for length in (0, 1, 2 * AROUND, CHUNK + AROUND):
            seen = {at: memory[at] for at in range(near, near + length) if at in memory}
            assert seen == told(holdings, near, length)


def test_a_range_of_any_length_is_looked_into() -> None:
    """A record, or a descriptor, may say anything of how far it goes."""
    holdings = Holdings()
    lies = {at: place(at) for at in (3, 7 * CHUNK - 1, (1 << 63) + 5)}
    for at, where in lies.items():
        held = Held(0, 2, at % 1000, 3, where, Way())
        holdings.put([Extent("physical", at, 2, 0)], held)

    for start, size in ((0, (1 << 64) - 1), (1, 1 << 64), (4, 1 << 62), (1 << 62, (1 << 63) + 6)):
        found = holdings.find([Extent("physical", start, size, 0)])
        covered = [at for at in lies if start < at + 2 and at < start + size]
        assert covered == [held.place.id for held in found]
    lost = holdings.clear([Extent("physical", 0, 1 << 65, 0)])
    assert [*lies] == list(dict.fromkeys(one.id for one in lost))
    assert [] == holdings.find([Extent("physical", 0, 1 << 65, 0)])
