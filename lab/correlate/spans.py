"""Ranges: what of one is missing in others, and what lies across one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
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
        self._entries = sorted(entries, key=lambda entry: entry[:2])
        self._longest = max((end - start for start, end, _ in entries), default=0)

    def touching(self, start: int, end: int) -> Iterator[tuple[int, int, T]]:
        """Yield start, end and value of what overlaps a range, by address."""
        first = start - self._longest
        number = bisect_left(self._entries, first, key=lambda entry: entry[0])
        while number < len(self._entries) and self._entries[number][0] < end:
            if self._entries[number][1] > start:
                yield self._entries[number]
            number += 1
