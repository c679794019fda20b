"""What a message went through, in the order of the host's clock, with the clock's bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.ledger import Message
from lab.record import Record
from lab.report.evidence import Archive, context
from lab.report.stations import copy_numbers
from lab.report.words import KINDS, function_name
from lab.rundir import HeldAt

PAUSE_NS = 20_000_000  # a longer wait is said, and whether the lab held the programs at a gate


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One thing a record shows, on the host's clock; `since_ns` counts from the first one."""

    guest: str
    kind: str  # copy, dma-read, dma-write, handover; skb where it only passed by
    what: str
    who: str
    evidence: str
    ns: int
    bound_ns: int
    since_ns: int
    pause_ns: int  # since the one before, where that is long; else 0
    why: str = ""  # what is known of that pause


@dataclass(frozen=True, kw_only=True, slots=True)
class Alike:
    """Moments that look the same and have no pause between them: one of each fragment."""

    first: Moment
    others: tuple[Moment, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """All moments of one message."""

    moments: tuple[Moment, ...]
    rows: tuple[Alike, ...]
    guests: tuple[str, ...]
    bound_ns: int  # the widest of them
    certain: bool | None  # whether the machines' order is beyond the bound; None for one machine


def timeline(message: Message, archive: Archive) -> Timeline:
    """Return the moments of a message that records carry a time of."""
    found: list[tuple[int, int, int, Moment]] = []
    for number, (kind, what, evidence) in enumerate(_entries(message)):
        record = archive.record(evidence)
        if record is None:
            continue
        line = archive.shelf(record.guest).clock
        if line is None:
            continue
        at = line.host(record.tsc)
        moment = Moment(
            guest=record.guest,
            kind=kind,
            what=what,
            who=_who(record, kind),
            evidence=evidence,
            ns=at.ns,
            bound_ns=at.bound_ns,
            since_ns=0,
            pause_ns=0,
        )
        found.append((at.ns, record.number, number, moment))
    found.sort(key=lambda entry: entry[:3])
    guests = tuple(dict.fromkeys(entry[3].guest for entry in found))
    gates = [gate for guest in guests for gate in archive.shelf(guest).folder.held_at()]
    moments = tuple(_counted([moment for *_, moment in found], gates))
    return Timeline(
        moments=moments,
        rows=tuple(_folded(moments)),
        guests=guests,
        bound_ns=max((moment.bound_ns for moment in moments), default=0),
        certain=_certain(moments, guests),
    )


def _entries(message: Message) -> Iterator[tuple[str, str, str]]:
    """Yield kind, words and evidence of each movement and sighting."""
    told = set()
    for movement, number in zip(message.movements, copy_numbers(message), strict=True):
        of = f" #{number}" if movement.kind == "copy" else ""
        name = function_name(movement)
        yield movement.kind, f"{KINDS[movement.kind]}{of}: {name}", movement.evidence[0]
        told.add(movement.evidence[0])
    for seen in (*message.skb.sender, *message.skb.receiver):
        if seen.evidence not in told:
            told.add(seen.evidence)
            yield "skb", f"skb at {seen.at.partition(':')[2] or seen.at}", seen.evidence


def _who(record: Record, kind: str) -> str:
    task = f"{record.comm}, CPU {record.cpu}, {context(record.context)}"
    # The task in whose time a device was seen to be done moved nothing.
    return f"the device; seen by a record taken in {task}" if kind.startswith("dma") else task


def _folded(moments: Sequence[Moment]) -> Iterator[Alike]:
    groups: list[dict[tuple[str, str, str], list[Moment]]] = [{}]
    for moment in moments:
        if moment.pause_ns:
            groups.append({})
        groups[-1].setdefault((moment.guest, moment.kind, moment.what), []).append(moment)
    for group in groups:
        for first, *others in group.values():
            yield Alike(first=first, others=tuple(others))


def _counted(moments: list[Moment], gates: Sequence[HeldAt]) -> Iterator[Moment]:
    before = moments[0].ns if moments else 0
    for moment in moments:
        pause = moment.ns - before
        long = pause >= PAUSE_NS
        yield Moment(
            guest=moment.guest,
            kind=moment.kind,
            what=moment.what,
            who=moment.who,
            evidence=moment.evidence,
            ns=moment.ns,
            bound_ns=moment.bound_ns,
            since_ns=moment.ns - moments[0].ns,
            pause_ns=pause if long else 0,
            why=_why(before, moment.ns, gates) if long else "",
        )
        before = moment.ns


def _why(start: int, end: int, gates: Sequence[HeldAt]) -> str:
    """Say which gates lie in a pause: only where one does the lab held the programs."""
    if not gates:
        return "whether the lab held the programs at a gate was not recorded"
    here = [gate.gate for gate in gates if gate.before_ns < end and start < gate.after_ns]
    if not here:
        return "no gate lies here: the guest ran slowly, or was not run"
    names = " and ".join(f"'{name}'" for name in dict.fromkeys(here))
    return f"at gate {names} the lab holds the programs while it looks into RAM"


def _certain(moments: tuple[Moment, ...], guests: tuple[str, ...]) -> bool | None:
    if len(guests) < 2:
        return None
    last = max((m.ns + m.bound_ns for m in moments if m.kind == "dma-read"), default=None)
    first = min((m.ns - m.bound_ns for m in moments if m.kind == "dma-write"), default=None)
    return None if last is None or first is None else last < first
