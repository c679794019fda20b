"""The ledger as a person reads it: one sentence, then the worksheet's tables with live values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lab import capture
from lab.ledger import (
    Expectation,
    Ledger,
    Message,
    Movement,
    Place,
    Totals,
    Unexplained,
    asked,
    expectations,
)
from lab.ledger.expected import not_judged, not_judged_words
from lab.message import Messages
from lab.report import ring_table, touches
from lab.report.blocks import Block, Lines, paragraph, plain, shown, table
from lab.report.conditions import foreign
from lab.report.crash import page as crash_page
from lab.report.evidence import Archive
from lab.report.frames import holds, known_addresses
from lab.report.log import cited, lines
from lab.report.page import page
from lab.report.pcapng import wire
from lab.report.perfetto import trace
from lab.report.sheet import sheet
from lab.report.stations import copy_numbers
from lab.report.tables import content, some, spread
from lab.report.verdict import looked_on, lost_words, sentences, short, unseen
from lab.report.words import function_name
from lab.rundir import Manifest, RunDir

__all__ = [
    "Archive",
    "Lines",
    "blocks",
    "cited",
    "crash_page",
    "function_name",
    "lines",
    "page",
    "plain",
    "render",
    "sheet",
    "shown",
    "text",
    "told",
    "trace",
    "wire",
]

SHOWN_MESSAGES = 1  # in full; the others as one line of totals
SHOWN_ROWS = 14  # of one table
NOT_MOVED = "Nothing was seen to move."
NO_SKB = "No skb that holds the message was seen."
NO_FRAME = "No frame carries the message."

PLACES = {
    "user": "user",
    "skb-linear": "skb",
    "skb-frag": "frag",
    "rx-buffer": "rx",
    "bounce": "bounce",
    "wire": "wire",
    "kernel": "kernel",
}
LONG_PLACES = {
    "user": "user buffer",
    "skb-linear": "skb linear",
    "skb-frag": "skb frag",
    "rx-buffer": "RX buffer",
    "bounce": "bounce buffer",
    "kernel": "kernel memory",
}


def render(ledger: Ledger, run: RunDir) -> str:
    """Return report.txt: plain, the same for the same run, at most 110 columns wide."""
    return text(told(ledger, run))


def text(blocks: Sequence[Block]) -> str:
    """Return what is told as lines of plain text."""
    return "\n".join(plain(blocks)) + "\n"


def told(ledger: Ledger, run: RunDir, expected: Sequence[Expectation] | None = None) -> list[Block]:
    """Return what report.txt says, to be shown at any width.

    `expected` is what the playbook expected and was found, where it is known already.
    """
    manifest = run.manifest()
    if expected is None:
        expected = expectations(ledger, asked(manifest))
    out: list[Block] = [*_verdict(ledger), *_conditions(ledger, manifest), *_trouble(ledger)]
    out += _expected(ledger, expected, not_judged(ledger, manifest))
    for message in ledger.messages[:SHOWN_MESSAGES]:
        out += ["", *(_copies(message) or [unseen(ledger, NOT_MOVED)])]
        out += ["", *_addresses(ledger, message, _messages(manifest))]
        out += ["", *(_skbs(message) or [unseen(ledger, NO_SKB)])]
        if message.over == "link":
            out += ["", *(_frame(message, run) or [unseen(ledger, NO_FRAME)])]
        out += _touches(ledger, message)
    if len(ledger.messages) > SHOWN_MESSAGES:
        out += ["", *_others(ledger)]
    out += ["", *_totals(ledger), *_rings(ledger, run), *_witnesses(ledger)]
    if found := foreign(manifest):
        out += paragraph(f"Foreign: {found}.")
    out += _notes(ledger)
    return out


def _messages(manifest: Manifest) -> Messages:
    return Messages(
        seed=manifest.seed, payload=manifest.payload, size=manifest.size, count=manifest.count
    )


# --- The verdict ----------------------------------------------------------------------------


def _verdict(ledger: Ledger) -> list[Block]:
    return [line for text in sentences(ledger) for line in paragraph(text)]


def _conditions(ledger: Ledger, manifest: Manifest) -> list[Block]:
    offloads = ", ".join(f"{name} {value}" for name, value in manifest.offloads)
    link = manifest.link
    parts = [
        f"{ledger.playbook}: {manifest.transport} over {manifest.over} ({link}",
        f"{'; ' + offloads if offloads and manifest.over == 'link' else ''}), ",
        f"Linux {manifest.kernel}, {manifest.accelerator}",
    ]
    drift = ["drifted: " + ", ".join(manifest.drifted)] if manifest.drifted else []
    return [line for text in ("".join(parts), *drift) for line in paragraph(text)]


def _trouble(ledger: Ledger) -> list[Block]:
    out: list[Block] = []
    faults = ledger.incomplete
    if ledger.interrupted:  # what it did not come to is no gap in what it did
        faults = tuple(entry for entry in faults if not entry.between)
    for entry in faults[:SHOWN_ROWS]:
        of = "" if entry.message is None else f"message {entry.message}: "
        gap = f"{entry.bytes} bytes between {' and '.join(entry.between)}: "
        out += paragraph(f"- {entry.guest}: {of}{gap if entry.between else ''}{entry.why}")
    out += _more(len(faults), "reason")
    for one in ledger.disagreements[:SHOWN_ROWS]:
        out += paragraph(f"! {one.guest}: {one.text} ({', '.join(one.evidence)})")
    out += _more(len(ledger.disagreements), "disagreement")
    unexplained = "that no movement put there"
    if ledger.lacks:
        unexplained = f"whose way cannot be told without {ledger.lacks}"
    for hit in ledger.unexplained[:SHOWN_ROWS]:
        out += paragraph(
            f"? {hit.guest}: {hit.size} bytes of message {hit.message} at physical "
            f"0x{hit.physical:x}{_page_of(hit)} {unexplained} ({hit.evidence})"
        )
    out += _more(len(ledger.unexplained), "unexplained run")
    return out


def _expected(
    ledger: Ledger, found: Sequence[Expectation], without: Mapping[str, str]
) -> list[Block]:
    """Say what the playbook expected, what of it was found otherwise, and what was not judged."""
    failed = [one for one in found if not one.held]
    out: list[Block] = []
    for one in failed[:SHOWN_ROWS]:
        out += paragraph(f"! expected {one}")
    out += _more(len(failed), "failed expectation")
    held = Counter([(one.name, one.expected) for one in found if one.held])
    if held:
        several = len(ledger.messages) > 1
        of = [
            f"{name} {wanted} (x {many})" if several and many > 1 else f"{name} {wanted}"
            for (name, wanted), many in held.items()
        ]
        out += paragraph(f"Expected by the playbook, and held: {', '.join(of)}.")
    if without:
        out += paragraph(f"Not judged: {not_judged_words(without)}.")
    return out


def _page_of(hit: Unexplained) -> str:
    return f" ({hit.page})" if hit.page else ""


def _more(count: int, what: str) -> list[Block]:
    left = count - SHOWN_ROWS
    return [f"  … and {some(left, f'more {what}')} in ledger.json"] if left > 0 else []


# --- Tables ---------------------------------------------------------------------------------


def _copies(message: Message) -> list[Block]:
    if not message.movements:
        return []
    rows = []
    numbers = copy_numbers(message)
    for movement, number in list(zip(message.movements, numbers, strict=True))[:SHOWN_ROWS]:
        name = f"#{number}" if movement.kind == "copy" else "-"
        source, target = message.places[movement.source], message.places[movement.target]
        rows.append(
            (
                name,
                _what(movement),
                _end(source, movement.offset),
                "same" if movement.kind == "handover" else _end(target, movement.offset),
                str(movement.payload_size if movement.kind != "handover" else 0),
                movement.evidence[0],
            )
        )
    head = ("COPY", "FUNCTION", "SOURCE", "DEST", "LEN", "PROVEN BY")
    out = [*table(head, rows), *_more(len(message.movements), "movement")]
    return out + _seen_by_programs(message)


def _seen_by_programs(message: Message) -> list[Block]:
    """Name the records of the BPF programs beside the modules' that the table has."""
    found: dict[tuple[str, str], list[str]] = {}
    pairs = zip(message.movements, copy_numbers(message), strict=True)
    for movement, number in list(pairs)[:SHOWN_ROWS]:
        name = f"copy #{number}" if movement.kind == "copy" else _what(movement)
        for one in movement.evidence[1:]:
            file, _, record = one.partition("#")
            if file.endswith("/bpf.bin"):
                found.setdefault((name, file), []).append(f"#{record}")
    told = [f"{name} {file}{', '.join(records)}" for (name, file), records in found.items()]
    return paragraph(f"Seen by the BPF programs too: {'; '.join(told)}.") if told else []


def _what(movement: Movement) -> str:
    match movement.kind:
        case "dma-read":
            return f"{movement.function} reads"
        case "dma-write":
            return f"{movement.function} writes"
        case "handover":
            return f"handover ({function_name(movement)}){_derived(movement)}"
        case _:
            return function_name(movement) + _derived(movement)


def _derived(movement: Movement) -> str:
    """Say where no record shows the movement itself; of a device none ever does."""
    return " (derived)" if movement.certainty == "derived" else ""


def _end(place: Place, offset: int) -> str:
    if place.place == "wire":
        return "wire " + place.evidence[0].partition("/")[2]
    return f"{PLACES[place.place]} 0x{place.at(offset):x}"


def _virtual(place: Place) -> str:
    return f"0x{place.virtual:x}" if place.virtual else "not known"


def _unverified(ledger: Ledger, message: Message, place: Place) -> str:
    """Say why no content is shown: nobody looked, or the memory was used again by then."""
    if not ledger.searched:
        return "not searched"
    if not place.physical:
        return "not looked for"
    if place.place != "user" or _used_again(ledger, message, place):
        return "used again since"
    return "not found"


def _used_again(ledger: Ledger, message: Message, place: Place) -> bool:
    """Tell whether a later message was in the same slot of a program's buffer.

    It has 8192 slots of 256 bytes, fewer of larger messages: guest/workload.h.
    """
    end = place.virtual + place.size
    return any(
        other.place == "user"
        and other.guest == place.guest
        and other.virtual < end
        and place.virtual < other.virtual + other.size
        for later in ledger.messages[message.id + 1 :]
        for other in later.places
    )


def _addresses(ledger: Ledger, message: Message, messages: Messages) -> list[Block]:
    rows = []
    data = messages.bytes(message.id)
    for number, place in enumerate(message.places[:SHOWN_ROWS]):
        wire = place.place == "wire"
        where = "the wire" if wire else f"{_side(message, number)} {LONG_PLACES[place.place]}"
        physical = f"0x{place.physical:x}" if place.physical else "not known"
        rows.append(
            (
                where,
                "no address" if wire else _virtual(place),
                place.region or "-",
                "no address" if wire else physical,
                content(data[place.offset : place.offset + min(place.size, 16)])
                if place.content_verified
                else _unverified(ledger, message, place),
                _verified(place),
            )
        )
    head = ("LOCATION", "VIRTUAL ADDRESS", "REGION", "PHYSICAL", "CONTENT", "VERIFIED")
    return [*table(head, rows), *_more(len(message.places), "place")]


def _side(message: Message, number: int) -> str:
    # Over loopback both programs live in one guest, and so does the skb between them.
    place = message.places[number]
    if message.over == "link":
        return place.guest
    if place.place != "user":
        return "kernel"
    return "sender" if number == 0 else "receiver"


def _verified(place: Place) -> str:
    # The gate of the census, or the frame.
    if not place.content_verified:
        return "no"
    last = place.evidence[-1]
    file, _, what = last.rpartition("#")
    return f"RAM, {what.partition('/')[0]}" if "census" in file else "frame"


def _skbs(message: Message) -> list[Block]:
    sides = (("sender", message.skb.sender), ("receiver", message.skb.receiver))
    rows = [
        (
            side,
            seen.at.partition(":")[2] or seen.at,
            f"0x{seen.skb:x}",
            f"0x{seen.head:x}",
            f"0x{seen.data:x}",
            str(seen.len),
            seen.evidence.rpartition("/")[2].replace("trace.bin", ""),
        )
        for side, all_seen in sides
        for seen in all_seen
    ]
    if not rows:
        return []
    head = ("SIDE", "AT", "SKB", "SKB->HEAD", "SKB->DATA", "LEN", "RECORD")
    return [*table(head, rows[:SHOWN_ROWS]), *_more(len(rows), "sighting")]


def _touches(ledger: Ledger, message: Message) -> list[Block]:
    rows = touches.rows(ledger, message.id)
    if not rows:
        return []
    return ["", *table(touches.HEAD, rows[:SHOWN_ROWS]), *_more(len(rows), "reader")]


def _frame(message: Message, run: RunDir) -> list[Block]:
    wire = next((place for place in message.places if place.place == "wire"), None)
    if wire is None:
        return []
    guest, _, number = wire.evidence[0].partition("/wire.pcap#")
    frame = capture.read(run.guest(guest).wire)[int(number)]
    rows = [(part, str(size), text) for part, size, text in capture.describe(frame)]
    if frame.payload:
        rows.append(("payload", str(len(frame.payload)), content(frame.payload)))
    found = [address for address in known_addresses(message) if holds(frame, address)]
    told = f"{len(known_addresses(message))} addresses searched for in it, none there"
    if found:
        told = f"holds the address 0x{found[0]:x}"
    return [
        *table(("THE FRAME", "LEN", f"{len(frame.data)} bytes, {wire.evidence[0]}: {told}"), rows)
    ]


# --- The end --------------------------------------------------------------------------------


def _others(ledger: Ledger) -> list[Block]:
    groups: dict[tuple[bool, Totals], int] = {}
    for message in ledger.messages:
        key = message.complete, message.totals
        groups[key] = groups.get(key, 0) + 1
    out = []
    for (complete, totals), number in groups.items():
        word = "complete" if complete else "incomplete"
        out += paragraph(f"{some(number, 'message')} {word}: {_counts(totals)}")
    out.append("Above: message 0; all of them are in ledger.json.")
    return out


def _counts(totals: Totals) -> str:
    return ", ".join(
        (
            spread(totals.spread("guest_cpu_copies"), "guest CPU copy", "guest CPU copies"),
            spread(totals.spread("device_reads"), "device read"),
            spread(totals.spread("device_writes"), "device write"),
            spread(totals.spread("handovers"), "handover"),
        )
    )


def _totals(ledger: Ledger) -> list[Block]:
    whole = all(message.complete for message in ledger.messages)
    proven = "" if whole else " (those that are proven; more went unseen)"
    places = [place for message in ledger.messages for place in message.places]
    verified = sum(place.content_verified for place in places)
    several = len(ledger.messages) > 1
    counts = ("each message: " if several else "") + _counts(_of_all(ledger.messages))
    stray = f"{some(len(ledger.unexplained), 'unexplained run')} of message bytes in RAM"
    return paragraph(
        f"Totals: {counts}{proven}; {'the run: ' if several else ''}"
        f"{verified} of {some(len(places), 'place')} verified "
        f"by content; {stray if ledger.searched else 'RAM was not searched for more'}; "
        f"{lost_words(ledger)} lost{_messages_lost(ledger)}."
    )


def _of_all(messages: Sequence[Message]) -> Totals:
    """Return the most and the least that any byte of any message was moved."""
    columns = zip(*{message.totals for message in messages}, strict=True)
    ends = (max, min) * (len(Totals._fields) // 2)
    return Totals(*(pick(column) for pick, column in zip(ends, columns, strict=True)))


def _messages_lost(ledger: Ledger) -> str:
    lost = ledger.messages_lost
    return f", {some(len(lost), 'message')} lost" if lost else ""


def _rings(ledger: Ledger, run: RunDir) -> list[Block]:
    text = ring_table.summary(run, ledger.messages)
    return paragraph(text) if text else []


def _witnesses(ledger: Ledger) -> list[Block]:
    present = looked_on(ledger)
    lossy = "".join(f"; {text}" for text in short(ledger))
    absent = [
        f"{name} ({state.partition(':')[2].strip()})"
        for name, state in ledger.witnesses.items()
        if state.startswith("absent")
    ]
    without = f"; absent: {', '.join(absent)}" if absent else ""
    return paragraph(f"Witnesses: {', '.join(present) or 'none'}{lossy}{without}.")


def _notes(ledger: Ledger) -> list[Block]:
    out = [line for note in ledger.notes for line in paragraph(f"Note: {note}.")]
    if any(m.mover == "device" for message in ledger.messages for m in message.movements):
        out += paragraph(
            "Note: device reads and writes are seen from the guests: no guest CPU touched the "
            "bytes. Between two QEMU guests it was a host CPU that moved them."
        )
    if ledger.accelerator.get("name") == "tcg":
        out += paragraph("Note: under tcg durations are emulated; counts and addresses are not.")
    return out
