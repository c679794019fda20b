"""Runs of one call that adjoin, joined; and message bytes within them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lab.access import PAGE, Access
from lab.accesses.types import Extents
from lab.message import Run

LOOK_BACK = 16  # stretches of one call that a run may still join


@dataclass(slots=True)
class Stretch:
    """Runs of one call, in one direction, whose bytes adjoin."""

    records: list[Access]
    virtual: int
    bytes: bytearray
    pages: dict[int, int] = field(default_factory=dict)  # virtual page -> physical page

    @property
    def end(self) -> int:
        return self.virtual + len(self.bytes)

    @property
    def first(self) -> int:
        return min(record.first for record in self.records)

    @property
    def last(self) -> int:
        return max(record.last for record in self.records)

    def extents(self, start: int, end: int) -> Extents:
        """Return the physical extents of the virtual range."""
        out: list[tuple[int, int]] = []
        while start < end:
            size = min(end, (start // PAGE + 1) * PAGE) - start
            physical = self.pages[start // PAGE] * PAGE + start % PAGE
            if out and out[-1][0] + out[-1][1] == physical:
                out[-1] = (out[-1][0], out[-1][1] + size)
            else:
                out.append((physical, size))
            start += size
        return tuple(out)

    def within(self, start: int, end: int) -> list[Access]:
        """Return the records that overlap the virtual range."""
        return [r for r in self.records if r.virtual < end and start < r.virtual + r.size]

    def join(self, other: Stretch) -> bool:
        """Take in another stretch if it adjoins, and agrees where both have bytes."""
        low, high = max(self.virtual, other.virtual), min(self.end, other.end)
        if low > high:
            return False
        mine = self.bytes[low - self.virtual : high - self.virtual]
        if mine != other.bytes[low - other.virtual : high - other.virtual]:
            return False
        if any(self.pages.get(page, frame) != frame for page, frame in other.pages.items()):
            return False
        left, right = (self, other) if self.virtual <= other.virtual else (other, self)
        both = left.bytes + right.bytes[max(0, left.end - right.virtual) :]
        self.virtual, self.bytes = left.virtual, both
        self.pages |= other.pages
        self.records += other.records
        return True


@dataclass(slots=True)
class Piece:
    """Message bytes in a stretch."""

    stretch: Stretch
    run: Run
    used: list[tuple[int, int]] = field(default_factory=list)  # offsets that a store carried on

    @property
    def virtual(self) -> int:
        return self.stretch.virtual + self.run.start

    @property
    def extents(self) -> Extents:
        return self.stretch.extents(self.virtual, self.virtual + self.run.size)

    @property
    def records(self) -> list[Access]:
        return self.stretch.within(self.virtual, self.virtual + self.run.size)

    @property
    def first(self) -> int:
        """The number of the first access that saw some of it."""
        return min(record.first for record in self.records)

    @property
    def last(self) -> int:
        return max(record.last for record in self.records)

    @property
    def stop(self) -> int:
        """The offset in the message behind it."""
        return self.run.offset + self.run.size

    def at(self, offset: int) -> int:
        """Return the virtual address of the message's byte `offset`."""
        return self.virtual + offset - self.run.offset


def stretches(records: Iterable[Access]) -> list[Stretch]:
    """Join the runs of each call, in either direction, that adjoin."""
    groups: dict[tuple[int, int, bool], list[Stretch]] = defaultdict(list)
    for record in records:
        if not record.in_ram:
            continue
        new = Stretch(
            [record],
            record.virtual,
            bytearray(record.bytes),
            {record.virtual // PAGE: record.physical // PAGE},
        )
        group = groups[record.vcpu, record.call, record.store]
        joined = True
        while joined:  # what has grown may now adjoin another
            joined = False
            for old in group[: -LOOK_BACK - 1 : -1]:
                if old.join(new):
                    group.remove(old)
                    new, joined = old, True
                    break
        group.append(new)
    return [stretch for group in groups.values() for stretch in group]


def call_of(stretch: Stretch) -> tuple[int, int]:
    """Return the vCPU and the call that all of a stretch is by."""
    return stretch.records[0].vcpu, stretch.records[0].call
