"""report.html: what a run found, on one page that needs nothing but itself.

Templates decide how it looks, this module what is in it, and how much: a run of 10,000
messages shows one message of each way in full, and says what it leaves out.  Whatever comes
from a guest, the payload first of all, is escaped by Jinja2; there is no script in the page and
its policy forbids any.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

from lab import paths
from lab.capture import Frame
from lab.errors import HostError
from lab.ledger import Expectation, Ledger, Message, Movement, asked, expectations
from lab.ledger.expected import not_judged
from lab.message import Messages
from lab.report import cells, evidence, questions, touches, verdict
from lab.report.conditions import conditions, notes
from lab.report.drawing import Drawing, Words, draw
from lab.report.evidence import Archive, Card, Wanted
from lab.report.frames import holds, known_addresses
from lab.report.maps import MemoryMap, maps
from lab.report.moments import Moment, Timeline, timeline
from lab.report.rings import Ring, rings
from lab.report.stations import copy_numbers, heads
from lab.report.tables import content, some, span
from lab.report.words import KINDS, PLACES, function_name
from lab.rundir import Manifest, RunDir

SHOWN_WAYS = 3  # messages in full, one of each way
SHOWN_MESSAGES = 40  # rows
SHOWN_ROWS = 24  # of any other table, and of evidence
SHOWN_ALIKE = 64  # lines of what is folded into one row
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One movement: its row in the table, and its evidence."""

    id: str
    copy: int | None
    kind: str
    what: str
    movement: Movement
    source: str
    target: str
    cards: tuple[Card, ...]
    touched: tuple[tuple[str, tuple[str, ...]], ...]  # whose accesses, and their lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Movements that look the same: the step of the first, all their bytes, the others' words."""

    step: Step
    bytes: int
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """Places that look the same: the first, all their bytes, the others' words."""

    name: str
    guest: str
    virtual: str
    region: str
    physical: str
    size: int
    content: str
    verified: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighted:
    """The skbs that one side had at one hook: the first one's row, and the others' words."""

    side: str
    hook: str
    first: tuple[str, str, str, str, str]  # skb, head, data, len and record
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One message in full, for all that went the same way."""

    message: Message
    alike: int
    wide: Drawing
    narrow: Drawing
    steps: tuple[Step, ...]
    steps_left_out: int
    rows: tuple[Row, ...]
    spots: tuple[Spot, ...]
    spots_left_out: int
    sightings: tuple[Sighted, ...]
    sightings_left_out: int
    frame: tuple[tuple[str, int, str], ...]
    frame_told: str
    maps: tuple[MemoryMap, ...]
    timeline: Timeline


def environment() -> jinja2.Environment:
    """Return where templates come from: everything put into one is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_Kept(),
    )
    made.filters["some"] = some
    made.filters["tone"] = cells.tone
    made.filters["breaks"] = cells.breaks
    made.filters["quiet"] = cells.sentence
    made.filters["codes"] = cells.codes
    made.globals["kinds"] = KINDS
    made.globals["most"] = SHOWN_ALIKE
    made.globals["later"] = _later
    return made


class _Kept(jinja2.BytecodeCache):
    """Compiled templates: to compile them takes longer than all else here.

    Each with a digest of itself, by the text of this module (what is escaped stands in it), and
    only where the folder is ours. What cannot be read or written is compiled anew.
    """

    def _path(self, bucket: Bucket) -> Path:
        own = hashlib.sha256(Path(__file__).read_bytes() + jinja2.__version__.encode()).hexdigest()
        folder = paths.private(paths.private(paths.cache()) / "templates")
        return folder / f"{bucket.key}-{own[:16]}"

    def load_bytecode(self, bucket: Bucket) -> None:
        try:
            data = self._path(bucket).read_bytes()
        except (OSError, HostError):
            return
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            bucket.bytecode_from_string(data[32:])

    def dump_bytecode(self, bucket: Bucket) -> None:
        code = bucket.bytecode_to_string()
        with contextlib.suppress(OSError, HostError):
            path = self._path(bucket)
            made = path.with_suffix(f".{os.getpid()}")
            try:
                made.write_bytes(hashlib.sha256(code).digest() + code)
                made.replace(path)
            finally:
                made.unlink(missing_ok=True)


def page(
    ledger: Ledger,
    run: RunDir,
    expected: Sequence[Expectation] | None = None,
    archive: Archive | None = None,
) -> str:
    """Return report.html of a run; `expected` as in `report.told`."""
    manifest = run.manifest()
    archive = archive or Archive(run)
    groups = _groups(ledger)
    shown = [
        _shown(ledger, messages, f"m{number}", archive, manifest)
        for number, messages in enumerate(groups[:SHOWN_WAYS])
    ]
    first = shown[0]
    if expected is None:
        expected = expectations(ledger, asked(manifest))
    held = _alike(one for one in expected if one.held)
    failed = _alike(one for one in expected if not one.held)
    return environment().get_template("run.html.j2").render(
        run=run.name,
        word=verdict.word(ledger),
        sentences=verdict.sentences(ledger),
        ledger=ledger,
        unseen=partial(verdict.unseen, ledger),
        manifest=manifest,
        shown=shown,
        ways_left_out=len(groups) - len(shown),
        messages=[_row(message) for message in ledger.messages[:SHOWN_MESSAGES]],
        messages_left_out=max(0, len(ledger.messages) - SHOWN_MESSAGES),
        answers=questions.answers(ledger, first.message, manifest, first.frame_told),
        ring_key=RING_KEY,
        rings=[ring for guest in manifest.guests for ring in _rings(run, guest, first.message)],
        incomplete=ledger.incomplete[:SHOWN_ROWS],
        incomplete_left_out=max(0, len(ledger.incomplete) - SHOWN_ROWS),
        disagreements=ledger.disagreements[:SHOWN_ROWS],
        disagreements_left_out=max(0, len(ledger.disagreements) - SHOWN_ROWS),
        unexplained=ledger.unexplained[:SHOWN_ROWS],
        unexplained_left_out=max(0, len(ledger.unexplained) - SHOWN_ROWS),
        expected=held[:SHOWN_ROWS],
        expected_left_out=max(0, len(held) - SHOWN_ROWS),
        failed=failed[:SHOWN_ROWS],
        not_judged=not_judged(ledger, manifest),
        failed_left_out=max(0, len(failed) - SHOWN_ROWS),
        touches=touches.rows(ledger, first.message.id)[:SHOWN_ROWS],
        conditions=list(conditions(ledger, manifest)),
        notes=notes(ledger),
    )  # fmt: skip


def _alike(found: Iterable[Expectation]) -> list[tuple[Expectation, str]]:
    """Return expectations that say the same of several messages as one, and of which it is."""
    groups: dict[tuple[object, ...], list[Expectation]] = {}
    for one in found:
        name, message, expected, seen = one
        groups.setdefault((name, expected, seen, message is None), []).append(one)
    return [(group[0], _of(group)) for group in groups.values()]


def _of(group: Sequence[Expectation]) -> str:
    ids = [one.message for one in group if one.message is not None]
    if len(ids) > 1:
        return f" of {len(ids)} messages, {min(ids)} to {max(ids)}"
    return f" of message {ids[0]}" if ids else ""


def _groups(ledger: Ledger) -> list[list[Message]]:
    """Return the messages by the way they went, what is incomplete first."""
    groups: dict[tuple[object, ...], list[Message]] = {}
    for message in ledger.messages:
        steps = {(m.kind, m.function, m.guest) for m in message.movements}
        key = (message.complete, message.totals, frozenset(steps))
        groups.setdefault(key, []).append(message)
    return sorted(groups.values(), key=lambda group: (group[0].complete, group[0].id))


# --- One message ----------------------------------------------------------------------------


def _shown(
    ledger: Ledger, group: Sequence[Message], anchor: str, archive: Archive, manifest: Manifest
) -> Shown:
    message = group[0]
    made = Messages(
        seed=manifest.seed, payload=manifest.payload, size=manifest.size, count=manifest.count
    )
    data = made.bytes(message.id)
    words = Words(
        kernel=f"Linux {manifest.kernel}",
        device=manifest.device,
        rings=archive.descriptors(message, heads(message)),
        anchor=anchor,
    )
    frame = _frame(message, archive)
    steps = tuple(_steps(message, anchor, archive, data))
    spots = _alike_spots(list(_spots(message, data, searched=ledger.searched)))
    sightings = list(_sightings(message))
    return Shown(
        message=message,
        alike=len(group),
        wide=draw(message, words, wide=True),
        narrow=draw(message, words, wide=False),
        steps=steps,
        steps_left_out=len(message.movements) - len(steps),
        rows=tuple(_rows(message, {step.id: step for step in steps}, anchor)),
        spots=tuple(spots[:SHOWN_ROWS]),
        spots_left_out=max(0, len(spots) - SHOWN_ROWS),
        sightings=tuple(sightings[:SHOWN_ROWS]),
        sightings_left_out=max(0, len(sightings) - SHOWN_ROWS),
        frame=() if frame is None else tuple(_frame_rows(frame)),
        frame_told="" if frame is None else _told(message, frame),
        maps=tuple(maps(message, archive.run)),
        timeline=timeline(message, archive),
    )


def _alike_movements(message: Message) -> list[list[int]]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, (one, copy) in enumerate(
        zip(message.movements, copy_numbers(message), strict=True)
    ):
        of = copy if one.kind == "copy" else None
        key = one.kind, one.function, one.guest, of, one.certainty, one.confirmed_by
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _rows(message: Message, steps: Mapping[str, Step], anchor: str) -> Iterator[Row]:
    for first, *others in _alike_movements(message):
        all_of_them = [message.movements[number] for number in (first, *others)]
        told = (
            f"{_end(message, one.source, one.offset)} → {_end(message, one.target, one.offset)}, "
            f"{some(one.payload_size, 'byte')}, {one.evidence[0]}"
            for one in all_of_them[1:]
        )
        yield Row(
            step=steps[f"{anchor}-{first}"],
            bytes=sum(one.payload_size for one in all_of_them),
            others=tuple(told),
        )


def _alike_spots(spots: Sequence[Spot]) -> list[Spot]:
    groups: dict[tuple[str, ...], list[Spot]] = {}
    for one in spots:
        groups.setdefault((one.name, one.guest, one.region, one.verified), []).append(one)
    return [
        replace(
            first,
            size=first.size + sum(one.size for one in others),
            others=tuple(
                f"virtual {one.virtual}, physical {one.physical}, {some(one.size, 'byte')}"
                for one in others
            ),
        )
        for first, *others in groups.values()
    ]


def kept(message: Message) -> list[int]:
    """Return which movements are shown: those that links lead to, and as many more as fit."""
    first = {*heads(message), *(group[0] for group in _alike_movements(message))}
    others = [n for n in range(len(message.movements)) if n not in first]
    return sorted([*first, *others[: max(0, SHOWN_ROWS - len(first))]])


def _steps(message: Message, anchor: str, archive: Archive, data: bytes) -> Iterator[Step]:
    numbers = copy_numbers(message)
    for number in kept(message):
        movement = message.movements[number]
        wanted = Wanted(message=data, offset=movement.offset, size=movement.payload_size)
        yield Step(
            id=f"{anchor}-{number}",
            copy=numbers[number] if movement.kind == "copy" else None,
            kind=movement.kind,
            what=function_name(movement),
            movement=movement,
            source=_end(message, movement.source, movement.offset),
            target=_end(message, movement.target, movement.offset),
            cards=tuple(archive.card(one, wanted) for one in movement.evidence),
            touched=tuple(_touched(message, movement, archive)),
        )


def _touched(
    message: Message, movement: Movement, archive: Archive
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield who loaded and stored the bytes at both ends, as the emulator saw it."""
    for end, number in (("source", movement.source), ("target", movement.target)):
        place = message.places[number]
        if place.physical:
            lines = archive.touched(place.guest, place.physical, min(place.size, 64))
            if lines:
                yield f"{end}: {PLACES.get(place.place, place.place)}", tuple(lines)


def _end(message: Message, number: int, offset: int) -> str:
    place = message.places[number]
    if place.place == "wire":
        return f"the wire {place.evidence[0]}"
    at = place.at(offset)
    return f"{PLACES.get(place.place, place.place)} {f'0x{at:x}' if at else 'not known'}"


def _spots(message: Message, data: bytes, *, searched: bool) -> Iterator[Spot]:
    for place in message.places:
        wire = place.place == "wire"
        last = place.evidence[-1] if place.evidence else ""
        gate = last.rpartition("#")[2].partition("/")[0]
        verified = f"RAM, gate '{gate}'" if "census" in last else "frame"
        if not place.content_verified:
            verified = "no: not searched"
            if searched:
                verified = "no: used again since" if place.physical else "no: not looked for"
        yield Spot(
            name=PLACES.get(place.place, place.place),
            guest=place.guest,
            virtual="no address" if wire else _address(place.virtual),
            region=place.region or "–",
            physical="no address" if wire else _address(place.physical),
            size=place.size,
            content=content(data[place.offset : place.offset + min(place.size, 16)])
            if place.content_verified
            else "–",
            verified=verified,
        )


def _address(value: int) -> str:
    return f"0x{value:x}" if value else "not known"


def _sightings(message: Message) -> Iterator[Sighted]:
    groups: dict[tuple[str, str], list[tuple[str, str, str, str, str]]] = {}
    for side, seen in (("sender", message.skb.sender), ("receiver", message.skb.receiver)):
        for one in seen:
            hook = one.at.partition(":")[2] or one.at
            addresses = f"0x{one.skb:x}", f"0x{one.head:x}", f"0x{one.data:x}"
            groups.setdefault((side, hook), []).append((*addresses, str(one.len), one.evidence))
    for (side, hook), (first, *others) in groups.items():
        told = (
            f"skb {skb}, head {head}, data {data}, len {size}, {record}"
            for skb, head, data, size, record in others
        )
        yield Sighted(side=side, hook=hook, first=first, others=tuple(told))


def _later(moments: Sequence[Moment]) -> list[str]:
    return [f"+{one.since_ns / 1000:.1f} µs  {one.evidence}  {one.who}" for one in moments]


# --- The wire -------------------------------------------------------------------------------


def _frame(message: Message, archive: Archive) -> Frame | None:
    wire = next((place for place in message.places if place.place == "wire"), None)
    if wire is None:
        return None
    guest, _, number = wire.evidence[0].partition("/wire.pcap#")
    frames = archive.shelf(guest).frames
    return frames[int(number)] if int(number) < len(frames) else None


def _frame_rows(frame: Frame) -> Iterator[tuple[str, int, str]]:
    for part, size, text in evidence.rows(frame):
        yield part, size, text or content(frame.payload)


def _told(message: Message, frame: Frame) -> str:
    """Say how large a frame is, and that no address of the run is in it."""
    known = known_addresses(message)
    found = [address for address in known if holds(frame, address)]
    told = f"of {len(known)} addresses of the run searched for in it, none is there"
    if found:
        told = f"it holds the address 0x{found[0]:x}"
    return f"The first is {len(frame.data)} bytes long; {told}."


# --- All messages, rings and conditions -----------------------------------------------------


RING_KEY = (
    ("free", "lowest: neither given nor used"),
    ("posted", "low and pale: given to the device, not used yet"),
    ("used", "high and full: used by the device"),
    ("mine", "highest: held the message's buffer then"),
    ("unknown", "lowest and red: this gate did not record it"),
)
COUNTS = ("guest_cpu_copies", "device_reads", "device_writes", "handovers")


def _row(message: Message) -> tuple[str, ...]:
    totals = message.totals
    start = message.places[0] if message.places else None
    end = message.places[-1] if message.places else None
    return (
        str(message.id),
        "complete" if message.complete else "incomplete",
        *(span(*totals.spread(name)) for name in COUNTS),
        _address(start.virtual) if start else "–",
        _address(end.virtual) if end else "–",
    )


def _rings(run: RunDir, guest: str, message: Message) -> list[Ring]:
    folder = run.guest(guest)
    if not folder.has("rings.json"):
        return []
    used = [
        one.partition("#")[2]
        for movement in message.movements
        for one in movement.evidence
        if one.startswith(f"{guest}/rings.json#")
    ]
    return rings(guest, folder.rings(), used)
