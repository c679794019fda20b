"""The memory of each machine, with what of a message and of its device's rings lay where."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.errors import LabError
from lab.ledger import Message
from lab.report.words import PLACES
from lab.rundir import Fields, GuestDir, RunDir

HEIGHT = 330.0  # of a bar
TOP = 50.0
STEP = 36.0  # between labels
MOST = 9  # labels of one machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One thing at a physical address; `y` on the bar, `label` beside it."""

    name: str
    virtual: str
    physical: int
    size: int
    kind: str
    y: float
    label: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryMap:
    """One machine's RAM; `left_out` marks found no room."""

    guest: str
    ram: int  # bytes
    height: float
    marks: tuple[Mark, ...]
    left_out: int


def maps(message: Message, run: RunDir) -> list[MemoryMap]:
    """Return a map of each machine in which the message lay."""
    out = []
    for guest in dict.fromkeys(place.guest for place in message.places if place.physical):
        folder = run.guest(guest)
        found = [*_of_message(message, guest), *_of_rings(folder)]
        found.sort(key=lambda mark: mark.physical)
        ram = max(_ram(folder), *(mark.physical + mark.size for mark in found))
        shown = found[:MOST]
        height = max(HEIGHT, STEP * len(shown))
        out.append(
            MemoryMap(
                guest=guest,
                ram=ram,
                height=height,
                marks=tuple(_placed(shown, ram, height)),
                left_out=len(found) - len(shown),
            )
        )
    return out


def _of_message(message: Message, guest: str) -> list[Mark]:
    kinds: dict[str, list[Mark]] = {}
    for place in message.places:
        if place.guest != guest or not place.physical:
            continue
        name = PLACES.get(place.place, place.place)
        if message.over == "loopback" and place.place == "user":
            name = f"{'sender' if place is message.places[0] else 'receiver'}'s {name}"
        mark = Mark(
            name=name,
            virtual=f"0x{place.virtual:x}" if place.virtual else "",
            physical=place.physical,
            size=place.size,
            kind=place.place,
            y=0,
            label=0,
        )
        kinds.setdefault(name, []).append(mark)
    # Many pieces of one kind would hide the others: the first stands for them.
    return [
        Mark(
            name=f"{name} ×{len(marks)}" if len(marks) > 1 else name,
            virtual=marks[0].virtual,
            physical=marks[0].physical,
            size=marks[0].size,
            kind=marks[0].kind,
            y=0,
            label=0,
        )
        for name, marks in kinds.items()
    ]


def _of_rings(folder: GuestDir) -> list[Mark]:
    if not folder.has("rings.json"):
        return []
    path = folder.file("rings.json")
    out = []
    try:
        top = Fields(RunDir(folder.path).read_json("rings.json"), path)
        for queue in top.each("queues"):
            if not queue.has("desc"):
                continue
            address = queue.address("desc")
            name = f"{queue.text('queue').upper()} ring {queue.size('index', 0)}"
            size = 16 * queue.size("size", 0)
            out.append(
                Mark(
                    name=f"{name}, descriptors",
                    virtual="",
                    physical=address,
                    size=size,
                    kind="ring",
                    y=0,
                    label=0,
                )
            )
    except LabError:
        return []
    return out


def _ram(folder: GuestDir) -> int:
    """Return the size of a guest's RAM as its command line says it, 0 where that is not known."""
    path = folder.file("argv")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"^-m\n(\d{1,9})M$", text, re.MULTILINE)
    return int(found[1]) << 20 if found else 0


def _placed(marks: list[Mark], ram: int, height: float) -> list[Mark]:
    """Spread the labels so that none covers another, each near its mark."""
    ys = [TOP + height * mark.physical / max(ram, 1) for mark in marks]
    labels = []
    low = TOP + 8
    for y in ys:
        low = max(y, low)
        labels.append(low)
        low += STEP
    high = TOP + height - 8
    for number in range(len(labels) - 1, -1, -1):
        labels[number] = min(labels[number], high)
        high = labels[number] - STEP
    return [
        Mark(
            name=mark.name,
            virtual=mark.virtual,
            physical=mark.physical,
            size=mark.size,
            kind=mark.kind,
            y=round(y, 1),
            label=round(label, 1),
        )
        for mark, y, label in zip(marks, ys, labels, strict=True)
    ]
