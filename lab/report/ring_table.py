"""The device's rings as a table: what was given to it, what it did, and for which movement.

From guest RAM at the gates (rings.json) and the ledger; of a ring that was not touched the first
descriptors stand for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.ledger import Ledger
from lab.report.blocks import plain, table
from lab.report.rings import in_order
from lab.rundir import Descriptor, Queue, RingGate, RunDir

LIKE = 2  # descriptors that are shown of those nothing happened to
HEAD = ("DESC", "ADDRESS", "LENGTH", "FLAGS", "BEFORE", "AFTER", "MOVEMENT")
WAYS: Mapping[str, str] = {"dma-read": "reads", "dma-write": "writes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One descriptor as it was at the first gate, or at the first at which it was given."""

    descriptor: int
    address: str  # hexadecimal, as the device has it
    length: int
    flags: str
    before: str
    after: str
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


def _movements(ledger: Ledger) -> dict[str, list[str]]:
    # "receiver/rx/5" -> what moved through that descriptor
    out: dict[str, list[str]] = {}
    for message in ledger.messages:
        for movement in message.movements:
            for one in movement.evidence:
                where, _, place = one.partition("/rings.json#")
                if not place:
                    continue
                key = f"{where}/{place.partition('/')[2]}"
                words = f"message {message.id}: {movement.function}"
                words += f" {WAYS.get(movement.kind, movement.kind)} {movement.size} bytes"
                out.setdefault(key, []).append(f"{words}, {movement.evidence[0]}")
    return out


def _table(guest: str, queue: Queue, movements: Mapping[str, list[str]]) -> Table:
    gates = in_order(queue)
    first, last = gates[0], gates[-1]
    return Table(
        guest=guest,
        queue=queue.kind,
        index=queue.index,
        size=queue.size,
        at=f"0x{queue.at:x}",
        posted_before=(first.avail_idx - first.used_idx) % (1 << 16),
        posted_after=(last.avail_idx - last.used_idx) % (1 << 16),
        used_before=first.used_idx,
        used_after=last.used_idx,
        entries=tuple(_entries(guest, queue, movements)),
    )


def _entries(guest: str, queue: Queue, movements: Mapping[str, list[str]]) -> Iterator[Entry]:
    gates = in_order(queue)
    first, last = gates[0], gates[-1]
    used = [entry for gate in queue.gates for entry in gate.used]
    taken = {number: (turn, length) for turn, (number, length) in enumerate(last.used)}
    known = {one.id: one for one in first.descriptors}
    now = {one.id: one for one in last.descriptors}
    for number in sorted({*known, *now, *(number for number, _ in used)}):
        before, gate = _given(queue, number)
        mine = movements.get(f"{guest}/{queue.kind}/{number}", [])
        if before is None and number not in taken and not mine:
            continue
        yield Entry(
            descriptor=number,
            address="-" if before is None else f"0x{before.address:x}",
            length=0 if before is None else before.length,
            flags="-" if before is None else _flags(before),
            before=_state(first, known.get(number)),
            after=_after(last, now.get(number), taken.get(number), known.get(number)),
            touched=number in taken or bool(mine),
            movements=tuple(mine),
            evidence=f"{guest}/rings.json#{gate}/{queue.kind}/{number}",
        )


def _given(queue: Queue, number: int) -> tuple[Descriptor | None, str]:
    """Return a descriptor as it was first given to the device, and the gate of that."""
    for gate in in_order(queue):
        for one in gate.descriptors:
            if one.id == number and one.length:
                return one, gate.name
    return None, in_order(queue)[-1].name


def _flags(one: Descriptor) -> str:
    words = []
    if one.flags & Descriptor.WRITE:
        words.append("write")
    if one.flags & Descriptor.NEXT:
        words.append(f"next {one.next}")
    if one.flags & Descriptor.INDIRECT:
        words.append("indirect")
    return " ".join(words) or "read"


def _state(gate: RingGate, one: Descriptor | None) -> str:
    word = "given" if one is not None and one.length else "empty"
    if not gate.has_status or one is None:
        return word
    return f"{word}, status 0x{dict(gate.status).get(one.id, 0):x}"


def _after(
    gate: RingGate, one: Descriptor | None, taken: tuple[int, int] | None, was: Descriptor | None
) -> str:
    if taken is None:
        return _state(gate, one)
    turn, length = taken
    said = f"used #{turn}, {length} bytes"
    if one is not None and gate.has_status:
        said += f", status 0x{dict(gate.status).get(one.id, 0):x}"
    again = one is not None and one.length and was is not None and was.length
    if again and one is not None and was is not None and one.address != was.address:
        said += f", given again: 0x{one.address:x}"
    return said


def summary(ledger: Ledger) -> str:
    """Return in one line which descriptors the first message went through; "" for none."""
    touched: dict[str, None] = {}
    for message in ledger.messages[:1]:
        for movement in message.movements:
            for one in movement.evidence:
                where, _, place = one.partition("/rings.json#")
                if place:
                    _, queue, number = place.split("/")
                    word = "filled" if queue == "rx" else "read"
                    touched[f"{where} {queue} descriptor {number} {word}"] = None
    return f"Rings: {', '.join(touched)}; all of them: invoke lab.rings RUN." if touched else ""


def lines(found: Sequence[Table], *, whole: bool = False) -> list[str]:
    """Return the tables as text; `whole`: every descriptor, not only those of a movement."""
    out: list[str] = []
    for one in found:
        touched = [entry for entry in one.entries if entry.touched]
        others = [entry for entry in one.entries if not entry.touched]
        shown = sorted(
            [*touched, *(others if whole else others[:LIKE])], key=lambda entry: entry.descriptor
        )
        out.append(
            f"{one.guest} {one.queue.upper()} ring {one.index}: {one.size} descriptors at {one.at},"
            f" given and not used {one.posted_before} before, {one.posted_after} after; used index"
            f" {one.used_before} before, {one.used_after} after"
        )
        rows = [
            (
                str(entry.descriptor),
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
            out += plain(table(HEAD, rows))
        left = len(one.entries) - len(shown)
        out += [f"… and {left} more that nothing happened to"] if left > 0 else []
        out.append("")
    return out[:-1]
