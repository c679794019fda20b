"""Ranges: what of one is missing in others, and what lies across one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Generic, TypeVar

Span = tuple[int, int]  # the first byte, and the one behind the last
T = TypeVar("T")


def missing(wanted: Sequence[Span], there: Sequence[Span]) -> list[Span]:
    """Return what of `wanted` is not in `there`."""
    out = list(wanted)
    for first, last in there:
        rest: list[Span] = []
        for start, end in out:
            if last <= start or end <= first:
                rest.append((start, end))
                continue
            if start < first:
                rest.append((start, first))
            if last < end:
                rest.append((last, end))
        out = rest
    return sorted(out)


class Index(Generic[T]):
    """Values by the range of addresses each lies in."""

    def __init__(self, entries: Sequence[tuple[int, int, T]]) -> None:
        self._entries = sorted(entries, key=itemgetter(0, 1))
        self._starts = [entry[0] for entry in self._entries]
        # As far as any of those up to each goes: behind what ends before a range none is looked at.
        self._ends = list(accumulate([entry[1] for entry in self._entries], max))

    def touching(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return start, end and value of what overlaps a range, by address."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end, first)
        return [entry for entry in self._entries[first:last] if entry[1] > start]
