"""A drawing of calls in time: a bar from each entry to its return, callees below their caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDE, NARROW = 1120, 362
ROW, BAR = 30, 24
LETTER = 7.3  # pixels of a letter of a label
TICKS, FEW_TICKS = 4, 2  # spaces between ticks, wide and narrow


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One call, in nanoseconds since the first."""

    name: str
    depth: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A call where it is drawn; `label` is empty where it has no room."""

    x: float
    y: float
    width: float
    height: float
    label: str
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """The whole drawing."""

    width: float
    height: float
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]


def draw(spans: Sequence[Span], *, unit: str, wide: bool) -> Spans:
    """Return the calls as bars; `unit` says what a nanosecond here is."""
    width = WIDE if wide else NARROW
    last = max(1, *(span.end for span in spans))
    bars = []
    for span in spans:
        x, long = span.start / last * width, max(2.0, (span.end - span.start) / last * width)
        told = f"{span.name}, {span.end - span.start} {unit}"
        label = next((t for t in (told, span.name) if len(t) * LETTER + 12 <= long), "")
        bars.append(Bar(x=x, y=span.depth * ROW, width=long, height=BAR, label=label, title=told))
    spaces = TICKS if wide else FEW_TICKS
    ticks = tuple(
        (width * number / spaces, f"{round(last * number / spaces / 1000)} µs")
        for number in range(spaces + 1)
    )
    height = (max(span.depth for span in spans) + 1) * ROW + 22
    return Spans(width=width, height=height, bars=tuple(bars), ticks=ticks)
