"""Which bytes of which message lie at which guest address, at one moment of the walk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from lab.correlate.types import Place

PHYSICAL = "physical"
KERNEL = "kernel"  # kernel virtual addresses whose physical address no record gives


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """A run of addresses in one address space; `at` is its offset in a longer range.

    User memory of a workload is known by its pages and lies in the physical space,
    so that a device or the kernel reading the same page is seen to read it.
    """

    space: str
    start: int
    size: int
    at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Message bytes in memory, with how often each was moved on its way there.

    `at` is where they start in the range that was asked for.
    """

    start: int
    size: int
    message: int
    offset: int
    place: Place
    copies: int
    reads: int
    writes: int
    handovers: int
    at: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size

    def cut(self, start: int, end: int, at: int | None = None) -> Held:
        """Return the part between two addresses; `at` says where in a range it starts."""
        first = max(self.start, start)
        # Written out: dataclasses.replace() takes three times as long, and this is the walk's
        # innermost step.
        return Held(
            start=first,
            size=min(self.end, end) - first,
            message=self.message,
            offset=self.offset + first - self.start,
            place=self.place,
            copies=self.copies,
            reads=self.reads,
            writes=self.writes,
            handovers=self.handovers,
            at=self.at if at is None else at,
        )


class Holdings:
    """The message bytes one guest's memory holds; what is written over is gone."""

    def __init__(self) -> None:
        self._spaces: dict[str, list[tuple[int, Held]]] = {}

    def find(self, extents: Iterable[Extent]) -> list[Held]:
        """Return what lies in a range, by address, `at` counted from the range's start."""
        out: list[Held] = []
        for extent in extents:
            end = extent.start + extent.size
            for held in self._touching(extent.space, extent.start, end):
                at = extent.at + max(held.start, extent.start) - extent.start
                out.append(held.cut(extent.start, end, at))
        return join(out)

    def clear(self, extents: Iterable[Extent]) -> list[Place]:
        """Forget what lay in a range and return the places that lost bytes."""
        lost: list[Place] = []
        for extent in extents:
            end = extent.start + extent.size
            entries = self._spaces.get(extent.space, [])
            for held in self._touching(extent.space, extent.start, end):
                del entries[_index(entries, held.start)]
                if held.start < extent.start:
                    _insert(entries, held.cut(held.start, extent.start))
                if held.end > end:
                    _insert(entries, held.cut(end, held.end))
                lost.append(held.place)
        return lost

    def put(self, extents: Iterable[Extent], held: Held) -> None:
        """Record that a range, already cleared, now holds `held`, whole and in order."""
        for extent in extents:
            first = max(extent.at, held.at)
            last = min(extent.at + extent.size, held.at + held.size)
            if first >= last:
                continue
            entries = self._spaces.setdefault(extent.space, [])
            part = replace(
                held,
                start=extent.start + first - extent.at,
                size=last - first,
                offset=held.offset + first - held.at,
                at=0,
            )
            _insert(entries, part)

    def raise_handovers(self, place: Place, extents: Iterable[Extent]) -> None:
        """Count one more handover for everything a place still holds in its ranges."""
        for extent in extents:
            entries = self._spaces.get(extent.space, [])
            for held in self._touching(extent.space, extent.start, extent.start + extent.size):
                if held.place is place:
                    raised = replace(held, handovers=held.handovers + 1)
                    entries[_index(entries, held.start)] = (held.start, raised)

    def _touching(self, space: str, start: int, end: int) -> list[Held]:
        entries = self._spaces.get(space, [])
        number = _index(entries, start)
        if number and entries[number - 1][1].end > start:
            number -= 1
        out = []
        while number < len(entries) and entries[number][0] < end:
            out.append(entries[number][1])
            number += 1
        return out


def _index(entries: list[tuple[int, Held]], start: int) -> int:
    return bisect_left(cast("list[tuple[int, ...]]", entries), (start,))


def _insert(entries: list[tuple[int, Held]], held: Held) -> None:
    entries.insert(_index(entries, held.start), (held.start, held))


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
            and counts(last) == counts(part)
        ):
            out[-1] = replace(last, size=last.size + part.size)
        else:
            out.append(part)
    return out


def counts(held: Held) -> tuple[int, int, int, int]:
    """Return copies, device reads, device writes, handovers."""
    return held.copies, held.reads, held.writes, held.handovers
