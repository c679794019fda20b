"""The journey of a message as a drawing: boxes are places, arrows are movements.

::

    wide    sender   receiver        narrow   sender    down to the wire,
            user     user                     wire      the receiver below it
             ↓        ↑                       receiver
            kernel   kernel
             ↓        ↑
            ══ the wire ══

Over loopback the kernel's memory lies where the wire does, in one machine.  Only geometry and
words are made here; `templates/journey.svg.j2` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lab.ledger import Message, Place
from lab.report.stations import Arrow, Lane, Station, Way, way
from lab.report.tables import some
from lab.report.words import KINDS, PLACES, function_name

BOX = 66  # heights
INTERVAL = 92
RING = 44  # what a ring's badge adds to the interval before the wire
STRIP = 78  # what a handover adds to the box it happens in
TITLE = 48
FOOT = 18
ANCHOR = 44  # from a box's edge to its arrow
LETTER = 7.25  # a letter's width, at most
BESIDE = 24 + 11 + 5  # what of an arrow's room is before its words, and the next one's mark
NARROW = 36  # letters of a label that a phone has room for
GUTTER = 9  # beside the boxes, for arrows that pass one by


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One machine."""

    x: float
    y: float
    width: float
    height: float
    name: str
    kernel: str
    title: float  # x of its name: beside an arrow that enters from above
    user_line: float  # where user space ends, 0 for not drawn
    device_line: float  # where the device begins, 0 for none


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One station, with the words in it."""

    x: float
    y: float
    width: float
    height: float
    station: Station
    title: str
    size: str
    lines: tuple[str, ...]
    verified: str
    sound: bool

    @property
    def middle(self) -> float:
        return self.y + BOX / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One arrow: its path, where its mark and its words stand."""

    arrow: Arrow
    path: str
    tip: tuple[float, float, int]  # where it points, and its angle
    mark: tuple[float, float]
    label: tuple[float, float]
    what: str
    function: str
    proof: str
    target: str  # the id of the evidence in the page, "" where it is in another
    ring: tuple[float, float, float, str] | None = None  # x, y, width and words of the badge


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A place that nothing was seen to bring bytes to."""

    x: float
    y: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """All of one drawing; sizes are in CSS pixels of its own view box."""

    name: str
    width: float
    height: float
    panels: tuple[Panel, ...]
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """What a drawing says that is not in the ledger."""

    kernel: str
    device: str
    rings: Mapping[str, str]  # evidence id of a descriptor -> what it says
    anchor: str = "m0"  # beginning of the ids of the message's evidence
    linked: bool = True  # whether that evidence is in the same page


@dataclass
class _Sheet:
    """A drawing being made."""

    message: Message
    words: Words
    width: float
    wide: bool
    way: Way
    boxes: dict[int, Box] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    height: float = 0.0


def draw(message: Message, words: Words, *, wide: bool) -> Drawing:
    """Return the drawing of a message's way, for a screen or for a phone."""
    sheet = _Sheet(message, words, 1120.0 if wide else 380.0, wide, way(message))
    _lay_wide(sheet) if wide else _lay_narrow(sheet)
    lines = _lines(sheet)
    return Drawing(
        name=f"{words.anchor}-{'wide' if wide else 'narrow'}",
        width=sheet.width,
        height=sheet.height,
        panels=tuple(sheet.panels),
        boxes=tuple(sheet.boxes.values()),
        lines=tuple(lines),
        gaps=tuple(_gap(sheet, number) for number in sheet.way.gaps),
    )


# --- Where the boxes stand ------------------------------------------------------------------


def _lay_wide(sheet: _Sheet) -> None:
    out, turn, into = (sheet.way.lane(lane) for lane in Lane)
    link = sheet.message.over == "link"
    rows = max(len(out), len(into), 1)
    span = rows * (BOX + INTERVAL) + (RING if link else 0)
    bottom = TITLE + span
    half = (sheet.width - 40) / 2
    for lane, x in ((out, 0.0), (into, sheet.width - half)):
        top_down = lane if lane is out else lane[::-1]
        for number, row in enumerate(top_down):
            y = TITLE + number * (span - (RING if link else 0)) / len(top_down)
            _row(sheet, row, x=x + 18, y=y, width=half - 36)
    deep = _turn_height(sheet, turn)
    for number, row in enumerate(turn):
        inset = 0.0 if link else 18.0
        _row(
            sheet,
            row,
            x=inset,
            y=bottom + number * (BOX + 20),
            width=sheet.width - 2 * inset,
            height=deep,
        )
    end = bottom + (len(turn) - 1) * (BOX + 20) + deep if turn else bottom
    if link:
        for name, x, there in (
            (_guest(sheet, Lane.OUT), 0.0, out),
            (_guest(sheet, Lane.IN), sheet.width - half, into),
        ):
            _panel(sheet, name, (x, 0, half, bottom - 14), line=bool(there))
    else:
        _panel(sheet, _guest(sheet, Lane.OUT), (0, 0, sheet.width, end + FOOT), line=bool(out))
    sheet.height = end + FOOT + 2


def _lay_narrow(sheet: _Sheet) -> None:
    link = sheet.message.over == "link"
    y = float(TITLE)
    start = 0.0
    for lane in Lane:
        rows = sheet.way.lane(lane)
        if link and lane is Lane.IN:
            y += INTERVAL + RING - 10
            start = y
            y += TITLE
        for number, row in enumerate(rows):
            turn = lane is Lane.TURN
            deep = _turn_height(sheet, rows) if turn else BOX
            inset = 0.0 if turn and link else 12.0
            _row(sheet, row, x=inset, y=y, width=sheet.width - 2 * inset, height=deep)
            last = number == len(rows) - 1
            y += deep + (0 if turn and link and last else INTERVAL)
        if link and lane is Lane.OUT:
            _panel(
                sheet,
                _guest(sheet, lane),
                (0, start, sheet.width, y + RING - 14 - start),
                line=True,
            )
            y += RING
        if link and lane is Lane.IN:
            y -= INTERVAL if rows else 0
            _panel(
                sheet, _guest(sheet, lane), (0, start, sheet.width, y + FOOT - start), line=False
            )
    if not link:
        y -= INTERVAL
        _panel(sheet, _guest(sheet, Lane.OUT), (0, 0, sheet.width, y + FOOT), line=True)
    sheet.height = y + FOOT + 2


def _turn_height(sheet: _Sheet, turn: Sequence[Sequence[Station]]) -> float:
    handed = any(arrow.kind == "handover" for arrow in sheet.way.arrows)
    return BOX + (STRIP if handed and turn else 0)


def _guest(sheet: _Sheet, lane: Lane) -> str:
    for station in sheet.way.stations:
        if station.lane is lane:
            return station.guest
    return {"out": "sender", "in": "receiver"}.get(lane.value, "")


def _panel(
    sheet: _Sheet, name: str, area: tuple[float, float, float, float], *, line: bool
) -> None:
    x, y, width, height = area
    sheet.panels.append(
        Panel(
            x=x,
            y=y,
            width=width,
            height=height,
            name=name,
            kernel=sheet.words.kernel,
            title=x + (18 if sheet.wide else 12 + ANCHOR + 24),
            user_line=y + TITLE + BOX + 8 if line and sheet.wide else 0,
            device_line=y + height - RING - 8 if sheet.message.over == "link" and sheet.wide else 0,
        )
    )


def _row(
    sheet: _Sheet,
    row: Sequence[Station],
    *,
    x: float,
    y: float,
    width: float,
    height: float = BOX,
) -> None:
    each = (width - 12 * (len(row) - 1)) / len(row)
    for number, station in enumerate(row):
        box = _box(sheet.message, station, roomy=each > 260)
        left = x + number * (each + 12)
        sheet.boxes[station.number] = replace(box, x=left, y=y, width=each, height=height)


def _box(message: Message, station: Station, *, roomy: bool) -> Box:
    places = [message.places[number] for number in station.places]
    first = places[0]
    several = f" ×{len(places)}" if len(places) > 1 else ""
    rest = f" + {len(places) - 1} more" if len(places) > 1 else ""
    good = sum(place.content_verified for place in places)
    if station.kind == "wire":
        lines = (f"{first.evidence[0]}{rest}", "a frame has no address")
    else:
        region = f" · {first.region}" if first.region and roomy else ""
        lines = (
            f"{'virtual  ' if roomy else ''}{_address(first.virtual)}{region}",
            f"{'physical ' if roomy else ''}{_address(first.physical)}{rest}",
        )
    return Box(
        x=0,
        y=0,
        width=0,
        height=0,
        station=station,
        title=_owner(message, station) + PLACES.get(station.kind, station.kind) + several,
        size=some(sum(place.size for place in places), "byte"),
        lines=lines,
        verified=_verified(places, good),
        sound=good == len(places),
    )


def _owner(message: Message, station: Station) -> str:
    """Say whose buffer it is where both programs run in one machine."""
    if message.over == "link" or station.kind != "user":
        return ""
    return "sender's " if station.lane is Lane.OUT else "receiver's "


def _verified(places: Sequence[Place], good: int) -> str:
    if len(places) > 1:
        return f"{good} of {len(places)} verified"
    return "verified" if good else "not verified"


def _address(value: int) -> str:
    return f"0x{value:x}" if value else "not known"


# --- How the arrows go ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Track:
    """Where an arrow and its words go."""

    path: str
    tip: tuple[float, float, int]
    mark: tuple[float, float]
    label: tuple[float, float]
    ring: tuple[float, float, float, str] | None


def _lines(sheet: _Sheet) -> list[Line]:
    """Return the arrows; those of one interval stand beside each other."""
    beside: dict[tuple[int, int], list[Arrow]] = {}
    for arrow in sheet.way.arrows:
        beside.setdefault((arrow.source, arrow.target), []).append(arrow)
    out = []
    for (source, target), mine in beside.items():
        for number, arrow in enumerate(mine):
            if source == target:
                out.append(_inside(sheet, arrow, number, len(mine)))
            else:
                out.append(_between(sheet, arrow, number, len(mine)))
    order = {arrow.movements: n for n, arrow in enumerate(sheet.way.arrows)}
    return sorted(out, key=lambda line: order[line.arrow.movements])


def _between(sheet: _Sheet, arrow: Arrow, number: int, of: int) -> Line:
    source, target = sheet.boxes[arrow.source], sheet.boxes[arrow.target]
    narrower = min(source, target, key=lambda box: box.width)
    x = narrower.x + ANCHOR + number * narrower.width / of
    down = target.y > source.y
    begin = source.y + source.height if down else source.y
    end = target.y - 9 if down else target.y + target.height + 9
    ring = None
    if _passes(sheet, source, target, x):
        gutter = source.x - GUTTER
        turn = begin + (16 if down else -16)
        path = f"M{x:g} {begin:g} V{turn:g} H{gutter:g} V{target.middle:g} H{target.x - 9:g}"
        tip = (target.x, target.middle, 0)
        top = begin if down else begin - INTERVAL
    else:
        path = f"M{x:g} {begin:g} V{end:g}"
        tip = (x, end + 9, 90) if down else (x, end - 9, 270)
        # The words stand in the first interval from the kernel's side, free of ring badges.
        near = source if arrow.kind != "dma-write" else target
        if arrow.kind == "dma-write" and not sheet.wide:
            top = source.y + source.height - 8
        elif down:
            top = near.y + near.height
        else:
            top = near.y - INTERVAL if near is source else near.y + near.height
        ring = _ring(sheet, arrow, source, target)
    line = _line(sheet, arrow, _Track(path, tip, (x, top + 46), (x + 24, top + 30), ring))
    if sheet.wide or of == 1:
        return line
    # Beside each other on a phone two have room for little.
    times = f" ×{len(arrow.movements)}" if len(arrow.movements) > 1 else ""
    proof = line.proof.partition(" ")[0].rpartition("/")[2]
    what = line.what.partition(" · ")[0].removesuffix(times) + times
    room = int((narrower.width / of - BESIDE) / LETTER)
    function = line.function if len(line.function) <= room else f"{line.function[: room - 1]}…"
    return replace(line, what=what, function=function, proof=proof)


def _passes(sheet: _Sheet, source: Box, target: Box, x: float) -> bool:
    """Tell whether a box stands in the way between two."""
    low, high = sorted((source.middle, target.middle))
    return any(
        low < box.middle < high and box.x < x < box.x + box.width
        for box in sheet.boxes.values()
        if box is not source and box is not target
    )


def _ring(
    sheet: _Sheet, arrow: Arrow, source: Box, target: Box
) -> tuple[float, float, float, str] | None:
    """Return the badge of the descriptor that a device's access goes through."""
    if not arrow.kind.startswith("dma"):
        return None
    wire = target if arrow.kind == "dma-read" else source
    kernel = source if arrow.kind == "dma-read" else target
    y = wire.y - RING - 4 if wire.y > kernel.y else kernel.y - TITLE - RING + 6
    words = _descriptor(sheet, arrow)
    return kernel.x, y, min(kernel.width, 28 + LETTER * len(words)), words


def _descriptor(sheet: _Sheet, arrow: Arrow) -> str:
    side = "TX ring" if arrow.kind == "dma-read" else "RX ring"
    others = len(arrow.movements) - 1
    # Of the place that is drawn, which is the first movement's; another's would contradict it.
    for one in sheet.message.movements[arrow.movements[0]].evidence:
        if one in sheet.words.rings:
            more = f" (+{others})" if others else ""  # a narrow badge has no room for words
            return f"{side} · {sheet.words.rings[one]}{more}"
    whose = "the first's" if others else "its descriptor"
    return f"{side} · {whose} is in no snapshot"


def _inside(sheet: _Sheet, arrow: Arrow, number: int, of: int) -> Line:
    """Return a handover: it stays where it is."""
    box = sheet.boxes[arrow.source]
    y = box.y + BOX + 16
    begin = box.x + ANCHOR + number * box.width / of
    end = begin + (box.width / of - 2 * ANCHOR if sheet.wide else 52)
    if sheet.wide and of == 1:  # from below the arrow that comes to below the one that goes
        end = (sheet.width + 40) / 2 + 18 + ANCHOR
    path = f"M{begin:g} {y:g} H{end - 9:g}"
    if sheet.wide:
        mark, label = (begin + 24, y), (begin + 46, y + 22)
    else:
        mark, label = (begin + 20, y), (end + 12, y + 4)
    return _line(sheet, arrow, _Track(path, (end, y, 0), mark, label, None))


def _line(sheet: _Sheet, arrow: Arrow, track: _Track) -> Line:
    movements = [sheet.message.movements[number] for number in arrow.movements]
    first = movements[0]
    rest = f" + {len(movements) - 1} more" if len(movements) > 1 else ""
    times = f" ×{len(movements)}" if len(movements) > 1 else ""
    payload = sum(movement.payload_size for movement in movements)
    copies = "–".join(str(n) for n in dict.fromkeys((min(arrow.copies), max(arrow.copies)))) \
        if arrow.copies else ""  # fmt: skip
    what = KINDS[arrow.kind] + (f" #{copies}" if copies else "")
    moved = some(payload, "byte") + times
    if arrow.kind == "handover":
        moved = "no byte moves"
    elif arrow.kind.startswith("dma"):
        moved = f"{payload} of {sum(movement.size for movement in movements)} bytes{times}"
    function = function_name(first) + (" (derived)" if _derived(arrow, first.certainty) else "")
    told = f"{what} · {moved}"
    if not sheet.wide and len(told) > NARROW:  # the second line has room for the bytes
        told, function = what + times, f"{moved.removesuffix(times)} · {function}"
    return Line(
        arrow=arrow,
        path=track.path,
        tip=track.tip,
        mark=track.mark,
        label=track.label,
        what=told,
        function=function,
        proof=f"{first.evidence[0]}{rest}",
        target=f"{sheet.words.anchor}-{arrow.movements[0]}" if sheet.words.linked else "",
        ring=track.ring,
    )


def _derived(arrow: Arrow, certainty: str) -> bool:
    return certainty == "derived" and not arrow.kind.startswith("dma")


def _gap(sheet: _Sheet, number: int) -> Gap:
    box = sheet.boxes[number]
    station = box.station
    below = sheet.wide and station.lane is Lane.IN
    return Gap(x=box.x + ANCHOR, y=box.y + BOX + 8 if below else box.y - INTERVAL + 8)
