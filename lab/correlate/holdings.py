"""Which bytes of which message lie at which guest address, at one moment of the walk.

What the walk makes by the dozen for each message are plain classes: `lab.compiled` makes
structures of C of them, where a named tuple stays a tuple of Python.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from lab.correlate.types import Place

PHYSICAL: Final = "physical"
CHUNK_BITS: Final = 14  # 16 KiB
KERNEL: Final = "kernel"  # kernel virtual addresses whose physical address no record gives


class Extent:
    """A run of addresses in one address space; `at` is its offset in a longer range.

    User memory of a workload is known by its pages and lies in the physical space,
    so that a device or the kernel reading the same page is seen to read it.
    """

    __slots__ = ("at", "size", "space", "start")

    def __init__(self, space: str, start: int, size: int, at: int) -> None:
        self.space = space
        self.start = start
        self.size = size
        self.at = at


class Way:
    """How often bytes were moved, and handed over, on their way to a place; never changed."""

    __slots__ = ("copies", "handovers", "reads", "writes")

    def __init__(
        self, copies: int = 0, reads: int = 0, writes: int = 0, handovers: int = 0
    ) -> None:
        self.copies = copies
        self.reads = reads
        self.writes = writes
        self.handovers = handovers

    def same(self, other: Way) -> bool:
        """Tell whether bytes were moved as often on both."""
        return (
            self.copies == other.copies
            and self.reads == other.reads
            and self.writes == other.writes
            and self.handovers == other.handovers
        )

    def copied(self) -> Way:
        return Way(self.copies + 1, self.reads, self.writes, self.handovers)

    def read(self) -> Way:
        return Way(self.copies, self.reads + 1, self.writes, self.handovers)

    def written(self) -> Way:
        return Way(self.copies, self.reads, self.writes + 1, self.handovers)

    def handed_over(self) -> Way:
        return Way(self.copies, self.reads, self.writes, self.handovers + 1)


class Held:
    """Message bytes in memory, and the way they went there; never changed, made anew.

    `at` is where they start in the range that was asked for.
    """

    __slots__ = ("at", "message", "offset", "place", "size", "start", "way")

    def __init__(  # noqa: PLR0917 - sixty of them a message: names would cost what making one does
        self, start: int, size: int, message: int, offset: int, place: Place, way: Way, at: int = 0
    ) -> None:
        self.start = start
        self.size = size
        self.message = message
        self.offset = offset
        self.place = place
        self.way = way
        self.at = at

    @property
    def end(self) -> int:
        return self.start + self.size

    def cut(self, start: int, end: int) -> Held:
        """Return the part between two addresses."""
        first = max(self.start, start)
        size = min(self.end, end) - first
        offset = self.offset + first - self.start
        return Held(first, size, self.message, offset, self.place, self.way, self.at)

    def found_at(self, at: int) -> Held:
        """Return the same bytes, found at another offset of a range."""
        return Held(self.start, self.size, self.message, self.offset, self.place, self.way, at)

    def put_in(self, place: Place, way: Way) -> Held:
        """Return the same bytes of the message as they are in another place."""
        return Held(self.start, self.size, self.message, self.offset, place, way, self.at)

    def piece(self, offset: int, size: int, at: int) -> Held:
        """Return `size` bytes from the message's byte `offset` on, found at `at` of a range."""
        return Held(self.start, size, self.message, offset, self.place, self.way, at)


class Holdings:
    """The message bytes one guest's memory holds; what is written over is gone."""

    def __init__(self) -> None:
        self._spaces: dict[str, _Space] = {}

    def find(self, extents: Iterable[Extent]) -> list[Held]:
        """Return what lies in a range, by address, `at` counted from the range's start."""
        out: list[Held] = []
        for extent in extents:
            here = self._spaces.get(extent.space)
            if here is None:
                continue
            start = extent.start
            end = start + extent.size
            for held in here.touching(start, end):
                first = held.start
                inside = start <= first and first + held.size <= end
                part = held if inside else held.cut(start, end)
                where = extent.at + (first - start if first > start else 0)
                out.append(part if where == part.at else part.found_at(where))
        return join(out) if len(out) > 1 else out

    def clear(self, extents: Iterable[Extent]) -> list[Place]:
        """Forget what lay in a range and return the places that lost bytes."""
        lost: list[Place] = []
        for extent in extents:
            here = self._spaces.get(extent.space)
            if here is None:
                continue
            start = extent.start
            end = start + extent.size
            for held in here.touching(start, end):
                here.remove(held)
                if held.start < start:
                    here.insert(held.cut(held.start, start))
                if held.end > end:
                    here.insert(held.cut(end, held.end))
                lost.append(held.place)
        return lost

    def put(self, extents: Iterable[Extent], held: Held) -> None:
        """Record that a range, already cleared, now holds `held`, whole and in order."""
        inside = held.at
        for extent in extents:
            at = extent.at
            first = max(at, inside)
            last = min(at + extent.size, inside + held.size)
            if first >= last:
                continue
            here = self._spaces.get(extent.space)
            if here is None:
                here = self._spaces[extent.space] = _Space()
            begins, offset = extent.start + first - at, held.offset + first - inside
            here.insert(Held(begins, last - first, held.message, offset, held.place, held.way))

    def raise_handovers(self, place: Place, extents: Iterable[Extent]) -> None:
        """Count one more handover for everything a place still holds in its ranges."""
        for extent in extents:
            here = self._spaces.get(extent.space)
            if here is None:
                continue
            for held in here.touching(extent.start, extent.start + extent.size):
                if held.place is place:
                    here.replace(held.put_in(place, held.way.handed_over()))


class _Space:
    """The runs of one address space, none over another.

    By chunks of addresses, and in order within each, so that a run more costs the same however
    many there are.  What crosses into the next chunk is two runs; `join` makes one of them.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, tuple[list[int], list[Held]]] = {}  # starts, and the runs

    def touching(self, start: int, end: int) -> list[Held]:
        number, last_number = start >> CHUNK_BITS, end - 1 >> CHUNK_BITS
        if number < last_number:
            return self._across(start, end)
        if number not in self._chunks:
            return []
        starts, runs = self._chunks[number]
        first = bisect_left(starts, start)
        last = bisect_left(starts, end, first)
        if first and starts[first - 1] + runs[first - 1].size > start:
            first -= 1
        return runs[first:last]

    def _across(self, start: int, end: int) -> list[Held]:
        # Chunks of which there are any: a record may say anything of how far a range goes.
        number, last_number = start >> CHUNK_BITS, end - 1 >> CHUNK_BITS
        if last_number - number < len(self._chunks):
            numbers = [one for one in range(number, last_number + 1) if one in self._chunks]
        else:
            numbers = sorted([one for one in self._chunks if number <= one <= last_number])
        out: list[Held] = []
        for one in numbers:
            first, last = one << CHUNK_BITS, one + 1 << CHUNK_BITS
            out += self.touching(max(start, first), min(end, last))
        return out

    def insert(self, held: Held) -> None:
        start = held.start
        number = start >> CHUNK_BITS
        edge = number + 1 << CHUNK_BITS
        if start + held.size > edge:
            self.insert(held.cut(start, edge))
            self.insert(held.cut(edge, held.end))
            return
        if number not in self._chunks:
            self._chunks[number] = ([], [])
        starts, runs = self._chunks[number]
        at = bisect_left(starts, start)
        starts.insert(at, start)
        runs.insert(at, held)

    def remove(self, held: Held) -> None:
        starts, runs = self._chunks[held.start >> CHUNK_BITS]
        at = bisect_left(starts, held.start)
        del starts[at], runs[at]

    def replace(self, held: Held) -> None:
        starts, runs = self._chunks[held.start >> CHUNK_BITS]
        runs[bisect_left(starts, held.start)] = held


def join(parts: Iterable[Held]) -> list[Held]:
    """Make one of neighbours that are one run of one place."""
    out: list[Held] = []
    for part in sorted(parts, key=lambda held: held.at):
        last = out[-1] if out else None
        if (
            last is not None
            and last.place is part.place
            and last.at + last.size == part.at
            and last.offset + last.size == part.offset
            and last.way.same(part.way)
        ):
            out[-1] = last.piece(last.offset, last.size + part.size, last.at)
        else:
            out.append(part)
    return out
