"""What people ask of a run, answered from its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lab.ledger import Ledger, Message, Movement, Place
from lab.ledger.entries import LOG
from lab.report.stations import copy_numbers
from lab.report.tables import some, spread, times
from lab.report.verdict import looked_on, short, unseen
from lab.report.words import PLACES, function_name
from lab.rundir import Manifest

MOST = 6  # entries of one answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A question, what the ledger says to it, and the evidence to look at."""

    question: str
    answer: str
    evidence: tuple[str, ...] = ()


def answers(ledger: Ledger, message: Message, manifest: Manifest, frame: str) -> list[Answer]:
    """Return the answers a ledger gives about one of its messages.

    `frame` says what the message's frame is, "" where there is none.
    """
    reads = [movement for movement in message.movements if movement.kind == "dma-read"]
    writes = [movement for movement in message.movements if movement.kind == "dma-write"]
    copies = [movement for movement in message.movements if movement.kind == "copy"]
    found = [
        _how_many(message),
        Answer(
            question="Who made each copy?",
            answer=_each(_copiers(message)) or "No copy was seen.",
            evidence=_proof(copies),
        ),
        Answer(
            question="What did a device read, and from where?",
            answer=_each(_accesses(message, reads, "read")) or _no_device(message, "read"),
            evidence=_proof(reads),
        ),
        Answer(
            question="What did a device write, and where to?",
            answer=_each(_accesses(message, writes, "wrote")) or _no_device(message, "written"),
            evidence=_proof(writes),
        ),
        _same_skb(message),
        _wire(message, frame),
        _where(ledger, message),
        _lost(ledger),
        _conditions(manifest),
        _why(ledger, message),
    ]
    if not ledger.lacks:
        return found
    about = {_lost(ledger).question, _conditions(manifest).question}
    return [
        one if one.question in about else replace(one, answer=unseen(ledger, ""), evidence=())
        for one in found
    ]


def _how_many(message: Message) -> Answer:
    totals = message.totals
    proven = "" if message.complete else " that are proven; more went unseen"
    copied = spread(totals.spread("guest_cpu_copies"), "copy", "copies")
    each = "" if totals.even else " of each byte"
    return Answer(
        question="How many times were the bytes copied?",
        answer=f"{copied}{each} by guest CPUs{proven}; "
        f"{spread(totals.spread('device_reads'), 'device read')}, "
        f"{spread(totals.spread('device_writes'), 'device write')}, "
        f"{spread(totals.spread('handovers'), 'handover')}.",
    )


def _each(parts: Iterator[str]) -> str:
    found = list(parts)
    more = len(found) - MOST
    return " ".join(found[:MOST]) + (f" And {more} more." if more > 0 else "")


def _proof(movements: list[Movement]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(movement.evidence[0] for movement in movements))[:MOST]


def _copiers(message: Message) -> Iterator[str]:
    groups: dict[tuple[int, str, str, str], list[Movement]] = {}
    for movement, number in zip(message.movements, copy_numbers(message), strict=True):
        if movement.kind == "copy":
            key = (number, movement.guest, function_name(movement), _ends(message, movement))
            groups.setdefault(key, []).append(movement)
    for (number, guest, name, ends), mine in groups.items():
        caller = f", called from {mine[0].caller}" if mine[0].caller else ""
        calls = f" in {len(mine)} calls" if len(mine) > 1 else ""
        derived = "; derived" if mine[0].certainty == "derived" else ""
        size = some(sum(movement.payload_size for movement in mine), "byte")
        yield f"#{number}: {name} on {guest}{caller}, {size} from {ends}{calls}{derived}."


def _ends(message: Message, movement: Movement) -> str:
    source, target = message.places[movement.source], message.places[movement.target]
    return f"{_name(source)} to {_name(target)}"


def _name(place: Place) -> str:
    return PLACES.get(place.place, place.place)


def _accesses(message: Message, movements: list[Movement], verb: str) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Movement]] = {}
    for movement in movements:
        groups.setdefault((movement.function, movement.guest), []).append(movement)
    way = "from" if verb == "read" else "to"
    for (function, guest), mine in groups.items():
        place = message.places[mine[0].source if verb == "read" else mine[0].target]
        address = f"physical 0x{place.physical:x}" if place.physical else "an address not known"
        virtual = f" (virtual 0x{place.virtual:x})" if place.virtual else ""
        often = f" in {len(mine)} accesses" if len(mine) > 1 else ""
        first = "the first lies" if len(mine) > 1 else "the message lies"
        yield (
            f"{function} of {guest} {verb} {sum(one.size for one in mine)} bytes{often}, "
            f"{sum(one.payload_size for one in mine)} of them the message's, {way} the "
            f"{_name(place)}: {first} at {address}{virtual}."
        )


def _no_device(message: Message, verb: str) -> str:
    if message.over == "loopback":
        return f"Nothing was {verb} by a device: over loopback none is on the way."
    return f"No record shows that a device has {verb} it."


def _same_skb(message: Message) -> Answer:
    sent, received = message.skb.sender, message.skb.receiver
    match message.skb.same_object, message.skb.same_head:
        case None, _:
            said = "Not known: the skb of one side was not seen."
        case True, True:
            said = "Yes: the same skb, with the same head"
        case True, _:
            said = "The same skb, with another head"
        case False, True:
            said = "No: a clone, which shares the head"
        case _:
            said = "No: different skbs"
    if sent and received:
        said += (
            f". The sender's was 0x{sent[-1].skb:x} with head 0x{sent[-1].head:x}, the "
            f"receiver's 0x{received[-1].skb:x} with head 0x{received[-1].head:x}."
        )
    return Answer(
        question="Is the receiver's skb the one that was sent?",
        answer=said,
        evidence=tuple(seen.evidence for seen in (*sent[-1:], *received[-1:])),
    )


def _wire(message: Message, frame: str) -> Answer:
    question = "What went over the wire?"
    if message.over == "loopback":
        return Answer(question=question, answer="Nothing: the skb never left the kernel.")
    wires = [place for place in message.places if place.place == "wire"]
    if not wires:
        return Answer(question=question, answer="No frame with the message was seen.")
    return Answer(
        question=question,
        answer=f"{some(len(wires), 'frame')}. {frame}",
        evidence=tuple(place.evidence[0] for place in wires[:MOST]),
    )


def _where(ledger: Ledger, message: Message) -> Answer:
    verified = sum(place.content_verified for place in message.places)
    names = ", ".join(dict.fromkeys(f"{_name(place)} ({place.guest})" for place in message.places))
    searched = (
        f"{len(ledger.unexplained)} runs of message bytes in RAM are unexplained"
        if ledger.searched
        else "RAM was not searched for more"
    )
    return Answer(
        question="Where did the bytes lie, and were there copies nobody explains?",
        answer=f"In {some(len(message.places), 'place')}: {names}. {verified} of them "
        f"{'is' if verified == 1 else 'are'} verified by content; {searched}.",
    )


def _lost(ledger: Ledger) -> Answer:
    lost = {name: count for name, count in ledger.lost.items() if count}
    if lost:
        words = ", ".join(f"{lost_of(name, count)} of {name}" for name, count in lost.items())
        said = f"Yes: {words}."
        if ledger.accesses_lost and short(ledger):
            said += " Accesses are not records: the ledger is by the probes, which "
            said += f"lost {some(ledger.records_lost, 'record')}, and that log is not held "
            said += "against them."
    else:
        said = f"No: 0 records were lost by {', '.join(ledger.lost) or 'any log'}."
    if ledger.messages_lost:
        said += f" Of the messages {len(ledger.messages_lost)} were."
    if not ledger.complete:
        said += f" The ledger is incomplete: {ledger.incomplete[0].why}."
    return Answer(question="Was anything lost?", answer=said)


def lost_of(name: str, count: int) -> str:
    """Return what a log lost, in its unit: accesses are no records of a probe."""
    return some(count, "access", "accesses") if name.endswith(LOG) else some(count, "record")


def _conditions(manifest: Manifest) -> Answer:
    offloads = ", ".join(f"{name} {value}" for name, value in manifest.offloads)
    link = manifest.link
    sent = manifest.transport.replace(manifest.protocol, manifest.protocol.upper())
    with_ = f" with {offloads}" if offloads and manifest.over == "link" else ""
    return Answer(
        question="Under which conditions does it hold?",
        answer=f"{sent} over {manifest.over} ({link}){with_}; Linux "
        f"{manifest.kernel}; accelerator {manifest.accelerator}; "
        f"{some(manifest.count, 'message')} of {some(manifest.size, 'byte')}.",
    )


def _why(ledger: Ledger, message: Message) -> Answer:
    present = looked_on(ledger)
    lossy = "".join(f" ({text})" for text in short(ledger))
    agree = min((len(movement.confirmed_by) for movement in message.movements), default=0)
    against = len(ledger.disagreements)
    derived = sum(movement.certainty == "derived" for movement in message.movements)
    seen = len(message.movements) - derived
    disagree = f"They disagree {times(against)}" if against else "No two of them disagree"
    return Answer(
        question="Why believe it?",
        answer=f"Every movement names its record: {seen} observed by one, {derived} derived from "
        f"records around them. {some(len(present), 'witness', 'witnesses')} looked on "
        f"({', '.join(present)}){lossy}, and each movement is confirmed by at least {agree} of "
        f"them. {disagree}. The run directory recomputes all of it: "
        "invoke lab.report.",
    )
