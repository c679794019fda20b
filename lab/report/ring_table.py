"""The device's rings as a table: what was given to it, what it did, and for which movement.

A descriptor is used more than once, with another buffer each time: a row is one at one gate, and
a second table has every use that is a movement's (`ring_uses`).

From guest RAM at the gates (rings.json) and the ledger; of a ring that was not touched the first
descriptors stand for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.ledger import Message
from lab.report import ring_uses
from lab.report.blocks import Block, paragraph, plain, table
from lab.report.ring_uses import Match, Use
from lab.report.rings import in_order
from lab.report.tables import some
from lab.rundir import Descriptor, Queue, RingGate, RunDir
from lab.rundir.artefacts import INDEXES

MOST_RANGES = 6  # of one queue, in a line
LIKE = 2  # descriptors that are shown of those nothing happened to
MOST_ROWS = 24  # of each table, without --all
MOST_REASONS = 4
MOST_USES = 2  # that are listed in a cell; of more the first and the last
HEAD = ("DESC", "GATE", "ADDRESS", "LENGTH", "FLAGS", "BEFORE", "AFTER", "MOVEMENT")
USE_HEAD = ("USE", "DESC", "TIME", "BYTES", "MESSAGE", "MOVEMENT", "FRAME", "RECORD", "BY")
ALL = "invoke lab.rings RUN --all"
WAYS: Mapping[str, str] = {"dma-read": "reads", "dma-write": "writes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One descriptor at a gate: one that a movement cites, or else the first it was given at."""

    descriptor: int
    gate: str  # address, length and flags are those at this one
    address: str  # hexadecimal, as the device has it
    length: int
    flags: str
    before: str
    after: str
    used: tuple[tuple[int, int], ...]  # each use since the first gate: which of them, bytes
    touched: bool  # the device used it, or a movement names it
    movements: tuple[str, ...]
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One queue of one guest's device."""

    guest: str
    queue: str
    index: int
    size: int
    at: str  # of the descriptor table
    posted_before: int
    posted_after: int
    used_before: int  # the device's index
    used_after: int
    at_least: bool  # the index after may be too low by whole rounds of the ring
    entries: tuple[Entry, ...]
    matches: tuple[Match, ...]  # every movement over this queue

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def tables(run: RunDir, messages: Sequence[Message]) -> list[Table]:
    """Return every queue of a run; none where no message went over a device."""
    matched: dict[tuple[str, str], list[Match]] = {}
    for one in ring_uses.matches(run, messages):
        matched.setdefault((one.guest, one.queue), []).append(one)
    cited = _cited(messages)
    out = []
    for guest in run.guests():
        rings = guest.rings() if guest.has("rings.json") else None
        queues = rings.queues if rings is not None else ()
        out += [
            _table(guest.name, queue, cited, matched.get((guest.name, queue.kind), []))
            for queue in queues
            if queue.gates
        ]
    return out


Cited = dict[tuple[str, str, int], dict[str, list[str]]]


def _cited(messages: Sequence[Message]) -> Cited:
    # (guest, queue, descriptor) -> gate -> what moved through it as it was at that gate
    out: Cited = {}
    for message in messages:
        for movement in message.movements:
            for one in movement.evidence:
                guest, _, place = one.partition("/rings.json#")
                if not place:
                    continue
                gate, queue, number = place.split("/")
                words = _words(message.id, movement.function, movement.kind, movement.size)
                mine = out.setdefault((guest, queue, int(number)), {}).setdefault(gate, [])
                words += f", {movement.evidence[0]}"
                if words not in mine[-1:]:  # two pieces of a message in one frame are one access
                    mine.append(words)
    return out


def _words(message: int, function: str, kind: str, size: int) -> str:
    return f"message {message}: {function} {WAYS.get(kind, kind)} {size} bytes"


def _table(guest: str, queue: Queue, cited: Cited, matched: Sequence[Match]) -> Table:
    gates = in_order(queue)
    first, last = gates[0], gates[-1]
    return Table(
        guest=guest,
        queue=queue.kind,
        index=queue.index,
        size=queue.size,
        at=f"0x{queue.at:x}",
        posted_before=(first.avail_idx - first.used_idx) % INDEXES,
        posted_after=(last.avail_idx - last.used_idx) % INDEXES,
        used_before=first.used_idx,
        used_after=last.used_idx,
        at_least=last.at_least,
        entries=tuple(_entries(guest, queue, cited, _by_descriptor(matched))),
        matches=tuple(matched),
    )


def _by_descriptor(matched: Sequence[Match]) -> dict[int, list[str]]:
    """Return what moved through descriptors whose addresses at the gates are another use's."""
    out: dict[int, list[str]] = {}
    for one in matched:
        words = _words(one.message, one.function, one.kind, one.size)
        for use in one.uses if not one.cited else ():
            if use.descriptor is not None:
                out.setdefault(use.descriptor, []).append(
                    f"{words} (use #{use.number}), {one.evidence}"
                )
    return out


def _entries(
    guest: str, queue: Queue, cited: Cited, placed: Mapping[int, list[str]]
) -> Iterator[Entry]:
    gates = in_order(queue)
    first, last = gates[0], gates[-1]
    held = {gate.name: {one.id: one for one in gate.descriptors} for gate in gates}
    posted = {gate.name: gate.posted() for gate in gates}
    status = {gate.name: dict(gate.status) if gate.has_status else None for gate in gates}
    states = {gate.name: _State(posted[gate.name], status[gate.name]) for gate in (first, last)}
    uses: dict[int, list[Use]] = {}
    for use in ring_uses.known_uses(queue).values():
        if use.descriptor is not None:
            uses.setdefault(use.descriptor, []).append(use)
    numbers = {number for gate in held.values() for number in gate}
    for number in sorted(numbers | set(uses)):
        mine = cited.get((guest, queue.kind, number), {})
        shown = [(gate, held[gate.name].get(number)) for gate in gates if gate.name in mine]
        shown = shown or [_first_held(gates, held, posted, number)]
        for at, (gate, one) in enumerate(shown):
            movements = [*mine.get(gate.name, []), *(placed.get(number, []) if at == 0 else [])]
            if one is None and number not in uses and not movements:
                continue
            before, after = held[first.name].get(number), held[last.name].get(number)
            yield Entry(
                descriptor=number,
                gate=gate.name,
                address="-" if one is None else f"0x{one.address:x}",
                length=0 if one is None else one.length,
                flags="-" if one is None else _flags(one),
                before=states[first.name].of(number, before, shown=one),
                after=_after(states[last.name], number, after, uses.get(number, []), shown=one),
                used=tuple((use.number, use.length) for use in uses.get(number, [])),
                touched=number in uses or bool(movements),
                movements=tuple(movements),
                evidence=f"{guest}/rings.json#{gate.name}/{queue.kind}/{number}",
            )


def _first_held(
    gates: Sequence[RingGate],
    held: Mapping[str, Mapping[int, Descriptor]],
    posted: Mapping[str, frozenset[int] | None],
    number: int,
) -> tuple[RingGate, Descriptor | None]:
    """Return a descriptor as it was first given to the device, or else as it was first filled."""
    filled = [
        (gate, one)
        for gate in gates
        if (one := held[gate.name].get(number)) is not None and one.length
    ]
    given = [(gate, one) for gate, one in filled if number in (posted[gate.name] or ())]
    return next(iter([*given, *filled]), (gates[-1], None))


def _flags(one: Descriptor) -> str:
    words = []
    if one.flags & Descriptor.WRITE:
        words.append("write")
    if one.flags & Descriptor.NEXT:
        words.append(f"next {one.next}")
    if one.flags & Descriptor.INDIRECT:
        words.append("indirect")
    return " ".join(words) or "read"


@dataclass(frozen=True, slots=True)
class _State:
    """Whose the descriptors of a ring are at a gate; worked out once for all of them."""

    posted: frozenset[int] | None
    status: Mapping[int, int] | None  # None: the device has none

    def of(self, number: int, one: Descriptor | None, *, shown: Descriptor | None) -> str:
        """Say whose a descriptor is, and its address if that is not the row's."""
        filled = one is not None and bool(one.length)
        if self.has(number):
            word = "given"
        elif not filled:
            word = "empty"
        else:
            word = "not recorded" if self.posted is None else "left over"
        if filled and one is not None and (shown is None or one.address != shown.address):
            word += f": 0x{one.address:x}"
        return word + self.word(number)

    def has(self, number: int) -> bool:
        """Tell whether a descriptor is known to be the device's."""
        return self.posted is not None and number in self.posted

    def word(self, number: int) -> str:
        """Return the status word in a descriptor, where there is one."""
        return "" if self.status is None else f", status 0x{self.status.get(number, 0):x}"


def _after(
    state: _State,
    number: int,
    one: Descriptor | None,
    uses: Sequence[Use],
    *,
    shown: Descriptor | None,
) -> str:
    now = state.of(number, one, shown=shown)
    if not uses:
        return now
    if len(uses) > MOST_USES:
        said = f"used {len(uses)} times: #{uses[0].number} … #{uses[-1].number}"
    else:
        said = "; ".join(f"used #{use.number}, {use.length} bytes" for use in uses)
    if state.has(number):
        return f"{said}; {now.replace('given', 'given again', 1)}"
    if state.posted is None:
        return f"{said}; then {now}"
    other = one is not None and one.length and shown is not None and one.address != shown.address
    return f"{said}; {now}" if other else said + state.word(number)


def summary(run: RunDir, messages: Sequence[Message]) -> str:
    """Return in one line which descriptors the first message went through; "" for none."""
    touched: dict[str, list[Match]] = {}
    for one in ring_uses.matches(run, messages[:1]):
        touched.setdefault(f"{one.guest} {one.queue}", []).append(one)
    told = [words for queue, mine in touched.items() for words in _told(queue, mine)]
    return f"Rings: {', '.join(told)}; all of them: invoke lab.rings RUN." if told else ""


def _told(queue: str, mine: Sequence[Match]) -> Iterator[str]:
    word = "filled" if mine[0].queue == "rx" else "read"
    numbers = [number for one in mine for number in one.descriptors]
    if numbers:
        known = sum(1 for one in mine if one.descriptors)
        again = "" if len(set(numbers)) >= known else f" in {known} uses"
        plural = "s" * (len(set(numbers)) > 1)
        yield f"{queue} descriptor{plural} {_ranges(sorted(set(numbers)))} {word}{again}"
    lost = [one for one in mine if not one.descriptors]
    if lost:
        what = some(len(lost), "write" if word == "filled" else "read")
        why = lost[0].why or "the ring does not show them any more"
        yield f"{queue}: the descriptors of {what} are not known ({why})"


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as people list them: "0-44, 60", in the order of a ring's descriptors."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    more = len(told) - MOST_RANGES
    return ", ".join(told[:MOST_RANGES]) + (f" and {more} more runs" if more > 0 else "")


def lines(found: Sequence[Table], *, whole: bool = False) -> list[str]:
    """Return the tables as text."""
    return list(plain(told(found, whole=whole)))


def told(found: Sequence[Table], *, whole: bool = False) -> list[Block]:
    """Return the tables; `whole`: every descriptor, not only those of a movement."""
    out: list[Block] = []
    for one in found:
        touched = [entry for entry in one.entries if entry.touched]
        touched.sort(key=lambda entry: not entry.movements)  # those of a movement first
        others = [entry for entry in one.entries if not entry.touched]
        most = len(touched) if whole else MOST_ROWS
        like = len(others) if whole else LIKE
        shown = sorted([*touched[:most], *others[:like]], key=lambda entry: entry.descriptor)
        out.append(
            f"{one.guest} {one.queue.upper()} ring {one.index}: {one.size} descriptors at {one.at},"
            f" given and not used {one.posted_before} before, {one.posted_after} after; used index"
            f" {one.used_before} before, {'at least ' * one.at_least}{one.used_after} after"
        )
        rows = [
            (
                str(entry.descriptor),
                entry.gate,
                entry.address,
                str(entry.length),
                entry.flags,
                entry.before,
                entry.after,
                _moved(entry),
            )
            for entry in shown
        ]
        if rows:
            out += table(HEAD, rows)
        much = len(touched[most:])
        if much:
            out.append(f"… and {much} more that something happened to: {ALL}")
        left = len(others[like:])
        out += [f"… and {left} more that nothing happened to"] if left else []
        out += _of_uses(one, whole=whole)
        out.append("")
    return out[:-1]


def _moved(entry: Entry) -> str:
    if len(entry.movements) > 1:
        return f"{len(entry.movements)} movements, below"
    return "".join(entry.movements) or "-"


def _of_uses(one: Table, *, whole: bool) -> Iterator[Block]:
    """Say which use each movement was, where a descriptor's row does not already."""
    plainly = all(len(entry.movements) <= 1 and len(entry.used) <= 1 for entry in one.entries)
    known = [match for match in one.matches if match.uses]
    if known and (whole or not plainly):
        shown = known if whole else known[:MOST_ROWS]
        of = some(len(one.matches), "movement")
        yield f"{len(known)} of {of} matched with uses of this ring:"
        yield from table(USE_HEAD, [_row(match) for match in shown], right="BYTES MESSAGE TIME")
        more = len(known) - len(shown)
        if more:
            yield f"… and {more} more: {ALL}"
    lost: dict[str, list[Match]] = {}
    for match in one.matches:
        if not match.uses:
            lost.setdefault(match.why, []).append(match)
    for why, mine in [*lost.items()][:MOST_REASONS]:
        first = f"message {mine[0].message}, {mine[0].evidence}"
        what = f"{some(len(mine), 'movement')} matched with no use of this ring: {why}"
        yield from paragraph(f"{what} (the first: {first})")
    more = sum(map(len, [*lost.values()][MOST_REASONS:]))
    if more:
        yield f"… and {more} more, for other reasons: --json"


def _row(match: Match) -> tuple[str, ...]:
    last = match.uses[-1]
    return (
        "≥" * match.at_least + _each([use.number for use in match.uses], "#"),
        _each([use.descriptor for use in match.uses]),
        "-" if last.nth is None else str(last.nth),
        str(match.size),
        str(match.message),
        f"{match.function} {WAYS.get(match.kind, match.kind)}",
        match.frame.partition("/")[2],
        match.evidence,
        match.by,
    )


def _each(numbers: Sequence[int | None], mark: str = "") -> str:
    known = [f"{mark}{number}" for number in numbers if number is not None]
    if len(known) < len(numbers):
        return "-"
    return known[0] if len(known) == 1 else f"{known[0]}-{known[-1]}"
