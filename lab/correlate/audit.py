"""What holds at the end of the walk: content verified, bytes balanced, causes before effects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from lab.correlate import skb_rules
from lab.correlate.board import Board, label
from lab.correlate.hooks import XMIT_OF
from lab.correlate.identity import Identity
from lab.correlate.inputs import ACCESS_LOG, RECEIVER, SENDER, GuestInputs, blame
from lab.correlate.naming import elsewhere
from lab.correlate.spans import Index, Span, missing
from lab.correlate.types import (
    Disagreement,
    Gap,
    Kind,
    Movement,
    Mover,
    Place,
    PlaceKind,
    Unexplained,
)
from lab.message import BLOCK_SIZE
from lab.rundir import Hit

DIRECT_MAP_SIZE = 1 << 36  # bytes looked at: 64 GiB, vmalloc lies terabytes further up
MOST_TOLD = 4
# Why bytes did not arrive; `lab.ledger.reasons` says what else is known of these.
NO_FRAME: Final = "no frame carries them"
NEVER_GIVEN: Final = "the message was queued to the device and its driver was never given it"
WAIT_ENDED: Final = "the receiver's wait for it ended first"


def finish(board: Board) -> None:
    """Check every invariant; what fails becomes a gap or a disagreement."""
    for message in range(board.inputs.identity.count):
        board.start(message)
    _verify_places(board)
    for guest in board.inputs.guests:
        _check_addresses(guest, board)
    _check_delivery(board)
    skb_rules.check(board)
    _check_call_sites(board)
    _check_order(board)
    _check_clocks(board)
    _check_out_of_user(board)
    _check_held(board)


def notes(board: Board) -> Iterator[str]:
    """Say what a reader of the counts should know."""
    counts: dict[int, set[int]] = defaultdict(set)
    for entry in board.delivered:
        counts[entry.message].add(entry.copies)
    uneven: dict[tuple[int, int], list[int]] = defaultdict(list)
    for message, found in counts.items():
        if len(found) > 1:
            uneven[min(found), max(found)].append(message)
    for (fewest, most), messages in uneven.items():
        yield (
            f"{_named(messages)} bytes were copied {fewest} times, others {most}; "
            f"the count is the larger"
        )
    if board.dropped:
        frames = ", ".join(board.dropped[:4]) + (" and more" if len(board.dropped) > 4 else "")
        yield (
            f"{len(board.dropped)} of the frames that reached their end of the link went into no "
            f"buffer, and their bytes came again: {frames}"
        )
    for guest in board.inputs.guests:
        left_out = sum(gate.not_listed for gate in guest.census.gates) if guest.census else 0
        if left_out:
            yield f"{guest.name}: {left_out} census hits are not listed in the file"


def _named(messages: list[int]) -> str:
    """Return which messages they are, as the beginning of a sentence about some of their bytes."""
    if len(messages) == 1:
        return f"message {messages[0]}: some of its"
    first, last = min(messages), max(messages)
    of = "" if last - first + 1 == len(messages) else f"{len(messages)} of "
    return f"{of}messages {first} to {last}: some of their"


# --- Content --------------------------------------------------------------------------------


def _verify_places(board: Board) -> None:
    identity = board.inputs.identity
    gates = {
        guest.name: [(gate.name, _index(gate.hits)) for gate in guest.census.gates]
        for guest in board.inputs.guests
        if guest.census is not None
    }
    for place in board.places:
        for gate, hits in gates.get(place.guest, []) if place.extents else []:
            found = _covering(place, hits, identity)
            if found:
                ids = [f"{place.guest}/census.json#{gate}/{number}" for number in found]
                place.verified_by = ids
                break
    for movement in board.movements:
        if movement.target.verified and movement.target.kind is not PlaceKind.WIRE:
            movement.confirmed_by.add("census")


def _index(hits: Sequence[Hit]) -> Index[tuple[int, Hit]]:
    return Index([(hit.physical, hit.physical + hit.size, (n, hit)) for n, hit in enumerate(hits)])


def _covering(place: Place, hits: Index[tuple[int, Hit]], identity: Identity) -> list[int]:
    # The numbers of the hits that together show every byte of the place, in its place.
    used: list[int] = []
    offset = place.offset
    for start, size in place.extents:
        spans: list[Span] = []
        for begin, end, (number, hit) in hits.touching(start, start + size):
            first, last = max(start, begin), min(start + size, end)
            here = offset + first - start
            if not _same(identity, place, hit, (first, last), here):
                continue
            spans.append((first, last))
            if number not in used:
                used.append(number)
        if spans != [(start, start + size)] and missing([(start, start + size)], spans):
            return []
        offset += size
    return used


def _same(identity: Identity, place: Place, hit: Hit, span: Span, offset: int) -> bool:
    """Tell whether what a hit found at `span` is what the place holds from `offset` on.

    By content: a payload that repeats itself, or is sent twice, is found at its lowest offset.
    """
    if hit.message >= identity.count:
        return False
    here, size = hit.offset + span[0] - hit.physical, span[1] - span[0]
    if hit.message == place.message and here == offset >= 0:  # most often
        return here + size <= identity.size
    found = identity.bytes_of(hit.message)[here : here + size]
    return len(found) == size and identity.agrees(found, place.message, offset)


def unexplained(board: Board) -> list[Unexplained]:
    """Return the census hits, or parts of them, that no place covers; each once."""
    out: dict[tuple[str, int, int], Unexplained] = {}
    for guest in board.inputs.guests:
        if guest.census is None:
            continue
        places = [place for place in board.places if place.guest == guest.name]
        extents = Index(list(_extents(places)))
        for gate in guest.census.gates:
            for number, hit in enumerate(gate.hits):
                for first, last in _uncovered(hit, extents, board.inputs.identity):
                    shift = first - hit.physical
                    out.setdefault(
                        (guest.name, first, last),
                        Unexplained(
                            guest=guest.name,
                            message=hit.message,
                            physical=first,
                            offset=hit.offset + shift,
                            size=last - first,
                            evidence=f"{guest.name}/census.json#{gate.name}/{number}",
                            page=hit.page,
                        ),
                    )
    return list(out.values())


def _extents(places: Sequence[Place]) -> Iterator[tuple[int, int, tuple[int, Place]]]:
    # Start, end, and with them the offset in the message and the place.
    for place in places:
        offset = place.offset
        for start, size in place.extents:
            yield start, start + size, (offset, place)
            offset += size


def _uncovered(hit: Hit, extents: Index[tuple[int, Place]], identity: Identity) -> list[Span]:
    end = hit.physical + hit.size
    spans = []
    for start, stop, (offset, place) in extents.touching(hit.physical, end):
        first, last = max(start, hit.physical), min(stop, end)
        here = offset + first - start
        if _same(identity, place, hit, (first, last), here):
            spans.append((first, last))
    if spans == [(hit.physical, end)]:  # most often
        return []
    # Blocks begin alike, so a run in one page can seem to go on for a few bytes in the page
    # that merely follows in physical memory: beside a part that is explained, less than a
    # block is no copy.
    least = BLOCK_SIZE if spans else 1
    rest = missing([(hit.physical, end)], spans)
    return [(first, last) for first, last in rest if last - first >= least]


def _check_addresses(guest: GuestInputs, board: Board) -> None:
    """Expect one distance between virtual and physical addresses all over the direct map."""
    start = guest.direct_map
    if start is None or len(guest.distances) == 1:
        return
    wrong = [
        (virtual, physical, record)
        for record in guest.records
        for virtual, physical in ((record.src, record.src_phys), (record.dst, record.dst_phys))
        if virtual
        and physical
        and virtual - physical != start
        and start <= virtual < start + DIRECT_MAP_SIZE
    ]
    for virtual, physical, record in wrong[:MOST_TOLD]:
        board.disagree(
            "address",
            guest.name,
            None,
            f"{record.hook} has virtual {virtual:#x} with physical {physical:#x}, where the "
            f"direct map has {virtual - start:#x}",
            [record.id],
        )


# --- Delivery -------------------------------------------------------------------------------


def _check_delivery(board: Board) -> None:
    size = board.inputs.identity.size
    arrived: dict[int, list[Span]] = defaultdict(list)
    for entry in board.delivered:
        arrived[entry.message].append((entry.offset, entry.offset + entry.size))
    # The receiver's device already said which frames are in no buffer.
    reported = {gap.message for gap in board.gaps if gap.between[0].startswith("the wire")}
    for message in range(board.inputs.identity.count):
        for first, last in missing([(0, size)], arrived[message]):
            for before, lost in _last_places(board, message, first, last):
                if before.kind is not PlaceKind.WIRE or message not in reported:
                    _undelivered(board, before, lost)


def _last_places(board: Board, message: int, first: int, last: int) -> list[tuple[Place, int]]:
    """Return where bytes were last known to be, and how many: of each kind the first place.

    Of a datagram one fragment may be lost, and the others wait for it at the receiver.
    """
    targets = [movement.target for movement in board.of_message[message]]
    cuts = {first, last}
    cuts.update(at for place in targets for at in (place.offset, place.end) if first < at < last)
    ends = sorted(cuts)
    found: dict[tuple[str, PlaceKind], tuple[Place, int]] = {}
    for start, end in pairwise(ends):
        before = board.last(message, start)
        place, size = found.get((before.guest, before.kind), (before, 0))
        found[before.guest, before.kind] = place, size + end - start
    return sorted(found.values(), key=lambda one: one[0].id)


def _undelivered(board: Board, before: Place, size: int) -> None:
    receiver = board.receiver
    name = RECEIVER if receiver is None else receiver.name
    board.gaps.append(
        Gap(
            guest=name if before.guest in ("link", name) else before.guest,
            message=before.message,
            between=(label(before), "the receiver's user buffer"),
            bytes=size,
            why=_why_undelivered(board, before),
        )
    )


def _why_undelivered(board: Board, before: Place) -> str:
    receiver = board.receiver
    if before.kind is PlaceKind.WIRE:
        return _no_capture(receiver) or "the frame did not arrive at the receiver's end of the link"
    guest = next((one for one in board.inputs.guests if one.name == before.guest), None)
    if before.kind is PlaceKind.USER:
        return blame(guest, "out of user memory")
    if guest is not None and guest is board.sender and not board.inputs.loopback:
        return _no_capture(guest) or _queued_only(board, guest, before) or NO_FRAME
    work = None if receiver is None else receiver.role(RECEIVER)
    if work is not None and work.timed_out:
        return WAIT_ENDED
    return blame(guest, "into user memory")


def _queued_only(board: Board, guest: GuestInputs, before: Place) -> str:
    # A loss of the message, not of the trace: the driver's hook was there and missed nothing.
    name = XMIT_OF.get(board.inputs.manifest.device, "")
    hook = guest.hook(name)
    seen = {seen.at for seen in board.seen_of[before.message]}
    if hook is None or not hook.attached or hook.missed or name in seen:
        return ""
    if "__dev_queue_xmit" not in seen:
        return ""
    return NEVER_GIVEN


def _no_capture(guest: GuestInputs | None) -> str:
    absent = guest is not None and guest.frames is None
    return f"{guest.name}/wire.pcap is absent" if guest is not None and absent else ""


# --- Order and balance ----------------------------------------------------------------------


def _check_order(board: Board) -> None:
    """No movement before its cause: what was read somewhere was put there first."""
    for orphan in board.orphans:
        for movement in board.of_message[orphan.message]:
            if (
                movement.guest == orphan.guest
                and movement.kind in (Kind.COPY, Kind.DMA_WRITE)
                and movement.tsc > orphan.born
                and _overlap(movement.target, orphan)
            ):
                board.disagree(
                    "order",
                    orphan.guest,
                    orphan.message,
                    f"{label(orphan)} was read before {movement.function} put anything there",
                    [*orphan.evidence, *movement.evidence],
                )
    for movement in board.movements:
        here = movement.guest == movement.source.guest
        if here and movement.tsc and movement.source.born > movement.tsc:
            board.disagree(
                "order",
                movement.guest,
                movement.message,
                f"{movement.function} moved bytes that reached {label(movement.source)} later",
                movement.evidence,
            )


def _check_call_sites(board: Board) -> None:
    """Expect a hook at a call in the function that it is named by."""
    # The access log has the instruction that copied, which lies in the function called.
    probed = {guest.name for guest in board.inputs.guests if guest.witness != ACCESS_LOG}
    for movement in board.movements:
        known = movement.guest in probed and movement.instruction
        where = elsewhere(movement) if known else ""
        if where:
            board.disagree(
                "copy",
                movement.guest,
                movement.message,
                f"{movement.function} has an instruction elsewhere: {where}",
                movement.evidence,
            )


def _check_clocks(board: Board) -> None:
    """Expect that programs moved the message while the host had let them go, by its own clock.

    An offset that is wrong by more than its bound would show causes after their effects, and a
    reader of the timeline could not tell.  The host knows of three moments, when it held both
    programs: what it let them do they did later, and what they had said they had done before.
    """
    sender, receiver = board.sender, board.receiver
    for guest, inside, after, before in (
        (sender, _leaves_user, "armed", "sent"),
        (receiver, _reaches_user, "sent", "received"),
    ):
        if guest is None or guest.clock is None or guest.witness == "access-log":
            continue  # the emulator stamps accesses with the host's TSC, which needs no map
        held = {one.gate: one for one in guest.held_at}
        mine = [one for one in board.movements if one.tsc and inside(one, guest)]
        if not mine or after not in held or before not in held:
            continue
        first, last = (pick(mine, key=lambda one: one.tsc) for pick in (min, max))
        began, ended = guest.clock.host(first.tsc), guest.clock.host(last.tsc)
        early = held[after].after_ns - began.ns - began.bound_ns
        late = ended.ns - ended.bound_ns - held[before].before_ns
        for movement, wrong, which in (
            (first, early, f"before it was let go at the gate '{after}'"),
            (last, late, f"after it had said so at the gate '{before}'"),
        ):
            if wrong > 0:
                board.disagree(
                    "clock",
                    guest.name,
                    movement.message,
                    f"the clock of {guest.name} is off by {wrong} ns more than its bound: "
                    f"{movement.function} ran {which}, by the host's clock",
                    [movement.evidence[0], f"{guest.name}/tsc.json"],
                )


def _reaches_user(movement: Movement, receiver: GuestInputs) -> bool:
    return (
        movement.guest == receiver.name
        and movement.target.kind is PlaceKind.USER
        and movement.mover is Mover.GUEST_CPU
        and movement.kind is Kind.COPY
    )


def _overlap(left: Place, right: Place) -> bool:
    if left is right or left.guest != right.guest:
        return False
    return any(a < d + e and d < a + b for a, b in left.extents for d, e in right.extents) or (
        not left.extents and not right.extents and left.virtual == right.virtual
    )


def _check_out_of_user(board: Board) -> None:
    """Bytes sent are the bytes moved out of the sender's user memory, each once."""
    sender = board.sender
    work = None if sender is None else sender.role(SENDER)
    if sender is None or work is None:
        return
    told = {entry.index: max(entry.returned, 0) for entry in work.messages}
    for message, returned in told.items():
        out = sum(m.payload_size for m in board.of_message[message] if _leaves_user(m, sender))
        if out > returned:
            board.disagree(
                "bytes",
                sender.name,
                message,
                f"send returned {returned} bytes and {out} were moved out of user memory",
                [f"{sender.name}/workload.json#{SENDER}/sent"]
                + [m.evidence[0] for m in board.of_message[message] if _leaves_user(m, sender)],
            )
    copied = sum(
        m.payload_size
        for movements in board.of_message.values()
        for m in movements
        if _leaves_user(m, sender)
    )
    lacking = work.bytes - copied
    if work.total and lacking > 0 and not board.gaps:
        board.gaps.append(
            Gap(
                guest=sender.name,
                message=None,
                between=("sender user buffer", "sender kernel memory"),
                bytes=lacking,
                why=blame(sender, "out of user memory"),
            )
        )


def _leaves_user(movement: Movement, sender: GuestInputs) -> bool:
    return (
        movement.guest == sender.name
        and movement.source.kind is PlaceKind.USER
        and movement.target.kind is not PlaceKind.USER
        and movement.mover in (Mover.GUEST_CPU, Mover.DEVICE)
    )


def _check_held(board: Board) -> None:
    """Expect a census to find what a user buffer still holds."""
    if not board.inputs.identity.searchable:
        return
    for role, guest in ((SENDER, board.sender), (RECEIVER, board.receiver)):
        work = None if guest is None else guest.role(role)
        if guest is None or work is None or guest.census is None or guest.census.absent:
            continue
        if any(gate.not_listed for gate in guest.census.gates):
            continue
        held = {entry.index for entry in work.held}
        for place in board.places:
            if (
                place.guest == guest.name
                and place.kind is PlaceKind.USER
                and place.extents
                and place.message in held
                and not place.overwritten
                and not place.verified
                and not _cut_short(place)
                and _in_buffer(place, guest, role)
            ):
                board.disagreements.append(
                    Disagreement(
                        what="content",
                        guest=guest.name,
                        message=place.message,
                        text=f"the census does not find message {place.message} in "
                        f"{label(place)}, where it should lie",
                        evidence=(*place.evidence, f"{guest.name}/census.json"),
                    )
                )


def _cut_short(place: Place) -> bool:
    # A buffer may run over into a page by less than a census takes for a part of a message.
    return len(place.extents) > 1 and min(size for _, size in place.extents) < BLOCK_SIZE


def _in_buffer(place: Place, guest: GuestInputs, role: str) -> bool:
    work = guest.role(role)
    if work is None:
        return False
    buffer = work.ready.buffer
    return 0 <= place.virtual - buffer.virtual < buffer.size
