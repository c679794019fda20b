"""The device's rings as a table: what was given to it, what it did, and for which movement.

A descriptor is used more than once, with another buffer each time: a row is one at one gate.

From guest RAM at the gates (rings.json) and the ledger; of a ring that was not touched the first
descriptors stand for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.ledger import Ledger
from lab.report.blocks import Block, plain, table
from lab.report.rings import in_order
from lab.rundir import Descriptor, Queue, RingGate, RunDir
from lab.rundir.artefacts import INDEXES

MOST_RANGES = 6  # of one queue, in a line
LIKE = 2  # descriptors that are shown of those nothing happened to
HEAD = ("DESC", "GATE", "ADDRESS", "LENGTH", "FLAGS", "BEFORE", "AFTER", "MOVEMENT")
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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def tables(run: RunDir, ledger: Ledger) -> list[Table]:
    """Return every queue of a run; none where no message went over a device."""
    mine = _movements(ledger)
    out = []
    for guest in run.guests():
        rings = guest.rings() if guest.has("rings.json") else None
        queues = rings.queues if rings is not None else ()
        out += [_table(guest.name, queue, mine) for queue in queues if queue.gates]
    return out


Cited = dict[tuple[str, str, int], dict[str, list[str]]]


def _movements(ledger: Ledger) -> Cited:
    # (guest, queue, descriptor) -> gate -> what moved through it as it was at that gate
    out: Cited = {}
    for message in ledger.messages:
        for movement in message.movements:
            for one in movement.evidence:
                guest, _, place = one.partition("/rings.json#")
                if not place:
                    continue
                gate, queue, number = place.split("/")
                words = f"message {message.id}: {movement.function}"
                words += f" {WAYS.get(movement.kind, movement.kind)} {movement.size} bytes"
                at = out.setdefault((guest, queue, int(number)), {})
                at.setdefault(gate, []).append(f"{words}, {movement.evidence[0]}")
    return out


def _table(guest: str, queue: Queue, cited: Cited) -> Table:
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
        entries=tuple(_entries(guest, queue, cited)),
    )


def _entries(guest: str, queue: Queue, cited: Cited) -> Iterator[Entry]:
    gates = in_order(queue)
    first, last = gates[0], gates[-1]
    held = {gate.name: {one.id: one for one in gate.descriptors} for gate in gates}
    uses = _uses(first, last)
    numbers = {number for gate in held.values() for number in gate}
    for number in sorted(numbers | set(uses)):
        mine = cited.get((guest, queue.kind, number), {})
        shown = [(gate, held[gate.name].get(number)) for gate in gates if gate.name in mine]
        shown = shown or [_first_held(gates, held, number)]
        for gate, one in shown:
            movements = mine.get(gate.name, [])
            if one is None and number not in uses and not movements:
                continue
            yield Entry(
                descriptor=number,
                gate=gate.name,
                address="-" if one is None else f"0x{one.address:x}",
                length=0 if one is None else one.length,
                flags="-" if one is None else _flags(one),
                before=_state(first, number, held[first.name].get(number), shown=one),
                after=_after(last, number, held[last.name].get(number), uses, shown=one),
                used=tuple(uses.get(number, ())),
                touched=number in uses or bool(movements),
                movements=tuple(movements),
                evidence=f"{guest}/rings.json#{gate.name}/{queue.kind}/{number}",
            )


def _uses(first: RingGate, last: RingGate) -> dict[int, list[tuple[int, int]]]:
    """Return when the device used each descriptor since the first gate, and with what length."""
    # The last gate has the latest of them, no more than the ring has room for.
    count = (last.used_idx - first.used_idx) % INDEXES
    out: dict[int, list[tuple[int, int]]] = {}
    for turn, (number, length) in enumerate(last.used, max(count - len(last.used), 0)):
        out.setdefault(number, []).append((turn, length))
    return out


def _first_held(
    gates: Sequence[RingGate], held: Mapping[str, Mapping[int, Descriptor]], number: int
) -> tuple[RingGate, Descriptor | None]:
    """Return a descriptor as it was first given to the device, or else as it was first filled."""
    filled = [
        (gate, one)
        for gate in gates
        if (one := held[gate.name].get(number)) is not None and one.length
    ]
    given = [(gate, one) for gate, one in filled if number in (gate.posted() or ())]
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


def _state(gate: RingGate, number: int, one: Descriptor | None, *, shown: Descriptor | None) -> str:
    """Say whose a descriptor is at a gate, and its address if that is not the row's."""
    posted = gate.posted()
    filled = one is not None and bool(one.length)
    if posted is not None and number in posted:
        word = "given"
    elif not filled:
        word = "empty"
    else:
        word = "not recorded" if posted is None else "left over"
    if filled and one is not None and (shown is None or one.address != shown.address):
        word += f": 0x{one.address:x}"
    return word + _status(gate, number)


def _status(gate: RingGate, number: int) -> str:
    return f", status 0x{dict(gate.status).get(number, 0):x}" if gate.has_status else ""


def _after(
    gate: RingGate,
    number: int,
    one: Descriptor | None,
    uses: Mapping[int, Sequence[tuple[int, int]]],
    *,
    shown: Descriptor | None,
) -> str:
    state = _state(gate, number, one, shown=shown)
    if number not in uses:
        return state
    said = "; ".join(f"used #{turn}, {length} bytes" for turn, length in uses[number])
    posted = gate.posted()
    if posted is not None and number in posted:
        return f"{said}; {state.replace('given', 'given again', 1)}"
    if posted is None:
        return f"{said}; then {state}"
    other = one is not None and one.length and shown is not None and one.address != shown.address
    return f"{said}; {state}" if other else said + _status(gate, number)


def summary(ledger: Ledger) -> str:
    """Return in one line which descriptors the first message went through; "" for none."""
    touched: dict[tuple[str, str], list[int]] = {}
    for message in ledger.messages[:1]:
        for movement in message.movements:
            for one in movement.evidence:
                where, _, place = one.partition("/rings.json#")
                if place:
                    _, queue, number = place.split("/")
                    word = "filled" if queue == "rx" else "read"
                    mine = touched.setdefault((f"{where} {queue}", word), [])
                    if int(number) not in mine:
                        mine.append(int(number))
    told = [
        f"{queue} descriptor{'s' * (len(numbers) > 1)} {_ranges(numbers)} {word}"
        for (queue, word), numbers in touched.items()
    ]
    return f"Rings: {', '.join(told)}; all of them: invoke lab.rings RUN." if told else ""


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
        others = [entry for entry in one.entries if not entry.touched]
        shown = sorted(
            [*touched, *(others if whole else others[:LIKE])], key=lambda entry: entry.descriptor
        )
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
                "; ".join(entry.movements) or "-",
            )
            for entry in shown
        ]
        if rows:
            out += table(HEAD, rows)
        left = len(one.entries) - len(shown)
        out += [f"… and {left} more that nothing happened to"] if left > 0 else []
        out.append("")
    return out[:-1]
