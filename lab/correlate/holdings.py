"""Which bytes of which message lie at which guest address, at one moment of the walk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from lab.correlate.types import Place

PHYSICAL = "physical"
CHUNK_BITS = 14  # 16 KiB
KERNEL = "kernel"  # kernel virtual addresses whose physical address no record gives
new = tuple.__new__  # takes half as long as calling a named tuple, of which a message has sixty


class Extent(NamedTuple):
    """A run of addresses in one address space; `at` is its offset in a longer range.

    User memory of a workload is known by its pages and lies in the physical space,
    so that a device or the kernel reading the same page is seen to read it.
    """

    space: str
    start: int
    size: int
    at: int


class Way(NamedTuple):
    """How often bytes were moved, and handed over, on their way to a place."""

    copies: int = 0
    reads: int = 0
    writes: int = 0
    handovers: int = 0

    def copied(self) -> Way:
        copies, reads, writes, handovers = self
        return new(Way, (copies + 1, reads, writes, handovers))

    def read(self) -> Way:
        return Way(self.copies, self.reads + 1, self.writes, self.handovers)

    def written(self) -> Way:
        return Way(self.copies, self.reads, self.writes + 1, self.handovers)

    def handed_over(self) -> Way:
        copies, reads, writes, handovers = self
        return new(Way, (copies, reads, writes, handovers + 1))


class Held(NamedTuple):
    """Message bytes in memory, and the way they went there.

    `at` is where they start in the range that was asked for.
    """

    start: int
    size: int
    message: int
    offset: int
    place: Place
    way: Way
    at: int = 0

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
        start, size, message, offset, place, way, _ = self
        return new(Held, (start, size, message, offset, place, way, at))

    def put_in(self, place: Place, way: Way) -> Held:
        """Return the same bytes of the message as they are in another place."""
        start, size, message, offset, _, _, at = self
        return new(Held, (start, size, message, offset, place, way, at))


class Holdings:
    """The message bytes one guest's memory holds; what is written over is gone."""

    def __init__(self) -> None:
        self._spaces: dict[str, _Space] = {}

    def find(self, extents: Iterable[Extent]) -> list[Held]:
        """Return what lies in a range, by address, `at` counted from the range's start."""
        out: list[Held] = []
        for space, start, size, at in extents:
            here = self._spaces.get(space)
            if here is None:
                continue
            end = start + size
            for held in here.touching(start, end):
                first = held.start
                inside = start <= first and first + held.size <= end
                part = held if inside else held.cut(start, end)
                where = at + (first - start if first > start else 0)
                out.append(part if where == part.at else part.found_at(where))
        return join(out) if len(out) > 1 else out

    def clear(self, extents: Iterable[Extent]) -> list[Place]:
        """Forget what lay in a range and return the places that lost bytes."""
        lost: list[Place] = []
        for space, start, size, _ in extents:
            here = self._spaces.get(space)
            if here is None:
                continue
            end = start + size
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
        for space, start, size, at in extents:
            _, length, message, offset, place, way, inside = held
            first = max(at, inside)
            last = min(at + size, inside + length)
            if first >= last:
                continue
            if space not in self._spaces:
                self._spaces[space] = _Space()
            begins, offset = start + first - at, offset + first - inside
            self._spaces[space].insert(
                new(Held, (begins, last - first, message, offset, place, way, 0))
            )

    def raise_handovers(self, place: Place, extents: Iterable[Extent]) -> None:
        """Count one more handover for everything a place still holds in its ranges."""
        for space, start, size, _ in extents:
            here = self._spaces.get(space)
            if here is None:
                continue
            for held in here.touching(start, start + size):
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
            edges = [*range(number + 1 << CHUNK_BITS, end, 1 << CHUNK_BITS)]
            pieces = zip([start, *edges], [*edges, end], strict=True)
            return [held for piece in pieces for held in self.touching(*piece)]
        if number not in self._chunks:
            return []
        starts, runs = self._chunks[number]
        first = bisect_left(starts, start)
        last = bisect_left(starts, end, first)
        if first and starts[first - 1] + runs[first - 1].size > start:
            first -= 1
        return runs[first:last]

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
            and last.way == part.way
        ):
            out[-1] = last._replace(size=last.size + part.size)
        else:
            out.append(part)
    return out
