"""What a ledger comes to, in one word and a sentence or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter

from lab.ledger import Ledger, Message, Totals
from lab.report.tables import often, some, spread
from lab.report.words import function_name


def word(ledger: Ledger) -> str:
    """Return COMPLETE, INCOMPLETE, INTERRUPTED or DISAGREEMENT."""
    if ledger.interrupted:
        return "INTERRUPTED"
    if not ledger.complete:
        return "INCOMPLETE"
    return "DISAGREEMENT" if ledger.disagreements else "COMPLETE"


def sentences(ledger: Ledger) -> list[str]:
    """Return the verdict; the first sentence begins with its word."""
    if ledger.interrupted:
        return ["INTERRUPTED: the run did not end; below is what it had written by then."]
    if not ledger.complete:
        return [f"INCOMPLETE: {_first_reason(ledger)}"]
    if ledger.disagreements:
        first = ledger.disagreements[0]
        return [f"DISAGREEMENT: {first.guest}: {first.text}"]
    most = largest(ledger)
    what = some(most.size, "byte")
    if len(ledger.messages) > 1:
        what = f"{len(ledger.messages)} messages of {some(most.size, 'byte')} each"
    devices = "no device touched them"
    totals = Counter([message.totals for message in ledger.messages])
    reads, writes = _spread(totals, "device_reads"), _spread(totals, "device_writes")
    if any(reads + writes):
        devices = f"read {often(*reads)} and written {often(*writes)} by devices"
    if again := sum(message.sent_again for message in ledger.messages):
        devices += f" and {some(again, 'byte')} sent again"
    handovers = _spread(totals, "handovers")
    if any(handovers):
        devices += f", {spread(handovers, 'handover')}"
    return [
        f"COMPLETE: {what}{_copied(totals)} by guest CPUs, {devices}; {skb_words(most)}.",
        f"Copied by {', '.join(_copiers([most, *ledger.messages]))}.",
    ]


def _spread(totals: Iterable[Totals], name: str) -> tuple[int, int]:
    """Return how often one byte was moved and another, of all messages."""
    found = [one.spread(name) for one in totals]
    return min(least for least, _ in found), max(most for _, most in found)


def _copied(totals: Counter[Totals]) -> str:
    counts: Counter[tuple[int, int]] = Counter()
    for one, messages in totals.items():
        counts[one.spread("guest_cpu_copies")] += messages
    ways = {
        way: ("" if way[0] == way[1] else "each byte ") + f"copied {often(*way)}"
        for way in sorted(counts, reverse=True)
    }
    if len(ways) == 1:
        (text,) = ways.values()
        return f", {text}" if text.startswith("each") else f" {text}"
    told = (
        f"{counts[way]} {'with ' if text.startswith('each') else ''}{text}"
        for way, text in ways.items()
    )
    return f" ({' and '.join(told)})"


def largest(ledger: Ledger) -> Message:
    """Return the message that was copied most often."""
    return max(ledger.messages, key=attrgetter("totals.guest_cpu_copies"))


def lost_words(ledger: Ledger) -> str:
    """Say how many records the probes lost, and apart from them what an access log did."""
    accesses = ledger.accesses_lost
    also = f", {some(accesses, 'access', 'accesses')}" if accesses else ""
    return f"{some(ledger.records_lost, 'record')}{also}"


def looked_on(ledger: Ledger) -> list[str]:
    """Return the witnesses that lost nothing which would keep them from being held against."""
    return [name for name, state in ledger.witnesses.items() if state == "present"]


def short(ledger: Ledger) -> list[str]:
    """Return the witnesses that looked on and lost some of it, with what they lost."""
    return [
        f"{name}: {state.replace(':', ',', 1)}"
        for name, state in ledger.witnesses.items()
        if state.startswith("lost ")
    ]


def unseen(ledger: Ledger, said: str) -> str:
    """Return what is said of something that was not seen, where anybody could have looked."""
    return f"Not to be told without {ledger.lacks}." if ledger.lacks else said


def skb_words(message: Message) -> str:
    """Say whether both sides had the same skb."""
    match message.skb.same_object, message.skb.same_head:
        case True, True:
            return "same skb, same head"
        case True, _:
            return "same skb, another head"
        case False, True:
            return "a clone, same head"
        case False, _:
            return "different skbs"
        case _:
            one = "one" if message.skb.sender or message.skb.receiver else "neither"
            return f"{one} side's skb was seen"


def _first_reason(ledger: Ledger) -> str:
    if ledger.lacks:
        return ledger.incomplete[0].why
    # Lost records explain every gap; a gap explains what the programs then say.
    lost = (entry for entry in ledger.incomplete if "lost records" in entry.why)
    gaps = (entry for entry in ledger.incomplete if entry.between)
    first = next(lost, None) or next(gaps, None) or ledger.incomplete[0]
    if ledger.messages_lost and first.message in ledger.messages_lost:
        sent = len(ledger.messages)
        return f"{len(ledger.messages_lost)} of {some(sent, 'message')} lost: {first.why}"
    size = sum(entry.bytes for entry in ledger.incomplete if entry.why == first.why)
    if not first.between:
        return f"{first.guest}: {first.why}"
    return f"{size} bytes unaccounted for on {first.guest}: {first.why}"


def _copiers(messages: Sequence[Message]) -> list[str]:
    """Return who copied any of the messages, those of the first of them first."""
    names = dict.fromkeys(
        (function_name(movement), movement.guest)
        for message in messages
        for movement in message.movements
        if movement.kind == "copy"
    )
    if messages[0].over == "loopback":
        return [function for function, _ in names]
    return [f"{function} ({guest})" for function, guest in names]
