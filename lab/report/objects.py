"""A drawing of kernel objects that point at each other: a box each, an arrow for each pointer.

A pointer's arrow is whole where the record says that it holds the address of the object that
it is drawn to, and broken where it holds another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDE, NARROW = 1120, 362
GAP = 64  # between boxes beside each other: room for an arrow
TITLE, ROW, FOOT = 52, 24, 10
BETWEEN = 58  # between boxes below each other


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One field of an object; `to` is the number of the object that it should point at."""

    name: str
    value: int
    text: str = ""  # instead of the value
    to: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One object, where it lies, and its fields; None leaves a row empty."""

    name: str
    address: int  # 0: what it is has none that is known
    made: str  # by whom
    members: tuple[Member | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """An object where it is drawn."""

    x: float
    y: float
    width: float
    height: float
    thing: Thing
    rows: tuple[tuple[float, str, str], ...]  # y, name, value


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """An arrow: path, tip as a polygon, and where its sign stands."""

    name: str
    holds: bool
    path: str
    tip: str
    sign: tuple[float, float]
    label: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The whole drawing."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    pointers: tuple[Pointer, ...]


def draw(things: Sequence[Thing], *, wide: bool) -> Objects:
    """Return the objects beside each other, or one below the other for a phone."""
    most = max(len(thing.members) for thing in things)
    boxes = []
    y = 0.0
    for number, thing in enumerate(things):
        each = (WIDE - GAP * (len(things) - 1)) / len(things) if wide else NARROW
        members = [one for one in thing.members if wide or one is not None]
        height = TITLE + ROW * (most if wide else len(members)) + FOOT
        x, top = (number * (each + GAP), 0.0) if wide else (0.0, y)
        rows = tuple(
            (top + TITLE + ROW * place + 16, one.name, one.text or f"{one.value:016x}")
            for place, one in enumerate(members)
            if one is not None
        )
        boxes.append(Box(x=x, y=top, width=each, height=height, thing=thing, rows=rows))
        y += height + BETWEEN
    pointers = [
        pointer
        for number, thing in enumerate(things)
        for pointer in _pointers(things, boxes, number, thing, wide=wide)
    ]
    return Objects(
        width=WIDE if wide else NARROW,
        height=max(box.y + box.height for box in boxes),
        boxes=tuple(boxes),
        pointers=tuple(pointers),
    )


def _pointers(
    things: Sequence[Thing], boxes: Sequence[Box], number: int, thing: Thing, *, wide: bool
) -> Iterator[Pointer]:
    for row, one in enumerate(thing.members):
        if one is None or one.to is None:
            continue
        holds = one.value == things[one.to].address != 0
        ahead = one.to > number
        # It leaves the first box at the edge that faces the other, and ends at that one's.
        first, second = (number, one.to) if ahead else (one.to, number)
        back = -9.0 if ahead else 9.0
        if wide:
            edges = boxes[first].x + boxes[first].width, boxes[second].x
        else:
            edges = boxes[first].y + boxes[first].height, boxes[second].y
        start, end = edges if ahead else edges[::-1]
        if wide:
            y = float(TITLE + ROW * row + 12)
            yield Pointer(
                name=one.name,
                holds=holds,
                path=f"M{start:g} {y:g} H{end + back:g}",
                tip=f"{end:g},{y:g} {end + back:g},{y - 5:g} {end + back:g},{y + 5:g}",
                sign=(sum(edges) / 2, y - 6),
                label=None,
            )
        else:
            x, y = (40.0 if ahead else NARROW / 2 + 24), sum(edges) / 2 + 5
            yield Pointer(
                name=one.name,
                holds=holds,
                path=f"M{x:g} {start:g} V{end + back:g}",
                tip=f"{x:g},{end:g} {x - 5:g},{end + back:g} {x + 5:g},{end + back:g}",
                sign=(x + 14, y),
                label=(x + 26, y),
            )
