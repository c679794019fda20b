"""Which use of which descriptor each movement by a device was.

A descriptor is given again and again, and at a gate a ring shows the last use alone.  But a device
uses a ring in order, and its frames pass its backend in the same order: counted from a gate where
both were read, the n-th frame back is the n-th packet back in the ring.  Where the ring says
lengths, each frame's is checked against them; nothing is matched across one that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lab import capture
from lab.capture import ETHERNET_SIZE, Frame
from lab.correlate.devices import DEVICE_HEADERS
from lab.errors import LabError
from lab.ledger import Message, Movement
from lab.report.rings import in_order
from lab.rundir import Descriptor, GuestDir, Queue, RingGate, RunDir
from lab.rundir.artefacts import INDEXES

KINDS: Mapping[str, str] = {"dma-read": "tx", "dma-write": "rx"}
MOST_PACKET = 1 << 17  # bytes; a packet is of 64 KiB with its headers
SHORTEST = 60  # bytes of a frame that a device may pad a shorter one to (IEEE 802.3)
ROOM = 64  # free buffers: as many as the longest frame takes; with less one may wait outside

BY_ORDER = "order"  # of the frames at the backend
BY_BOTH = "order, address"  # and a gate shows the address of that very use
BY_ADDRESS = "address"  # in a descriptor that was used once
OTHER = "by the order of frames it is another descriptor than by the address"
OLD = "the run has no count of its frames at the gates: it is older than that record"


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One use of a descriptor: which of the queue's since the first gate, from 0."""

    number: int
    descriptor: int | None  # None: the ring does not show it any more
    nth: int | None  # which of this descriptor's, from 1; None: not all before it are known
    length: int  # bytes, as the ring says
    # What a gate shows of this very use: address, length and flags of its descriptor.
    held: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A movement by a device and what it used of a ring; without uses `why` says why not."""

    guest: str
    queue: str
    message: int
    function: str
    kind: str
    size: int
    frame: str  # evidence
    evidence: str
    cited: tuple[int, ...]  # descriptors whose addresses are the movement's, of whatever use
    uses: tuple[Use, ...]
    by: str
    why: str
    at_least: bool  # the numbers of the uses may be too low by whole rounds

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors it went through, as far as anything says which."""
        known = tuple(one.descriptor for one in self.uses if one.descriptor is not None)
        return known or self.cited


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """What of a queue is known by the order of frames; the rest is not, for a reason."""

    frames: Mapping[int, tuple[int, ...]]  # frame -> numbers of uses
    round: bool  # the device came to the ring's first descriptor again
    why: str
    in_turn: bool = False  # a descriptor for each frame, and all of them in turn


def matches(run: RunDir, messages: Iterable[Message]) -> list[Match]:
    """Return a match for each movement by a device over a queue, in the ledger's order."""
    found: dict[tuple[str, str], dict[tuple[object, ...], Moved]] = {}
    for message in messages:
        for movement in message.movements:
            kind = KINDS.get(movement.kind)
            if kind is not None:
                # A frame with two pieces of a message is two movements, and one access.
                key = message.id, movement.size, movement.evidence
                found.setdefault((movement.guest, kind), {}).setdefault(key, (message, movement))
    folders = {guest: _Folder(run.guest(guest)) for guest, _ in found}
    return [
        match
        for (guest, kind), moved in found.items()
        for queue in folders[guest].queues(kind)[:1]
        for match in _of_queue(queue, folders[guest], list(moved.values()))
    ]


Moved = tuple[Message, Movement]


class _Folder:
    """A guest's rings and frames, read once."""

    def __init__(self, folder: GuestDir) -> None:
        self.name = folder.name
        self.rings = folder.rings() if folder.has("rings.json") else None
        self.frames = _frames(folder)

    def queues(self, kind: str) -> tuple[Queue, ...]:
        return () if self.rings is None else self.rings.kind(kind)


def _frames(folder: GuestDir) -> list[Frame]:
    try:
        return capture.read(folder.wire) if folder.wire.is_file() else []
    except LabError:
        return []  # the ledger says so


def _of_queue(queue: Queue, folder: _Folder, moved: Sequence[Moved]) -> Iterator[Match]:
    guest = folder.name
    uses = known_uses(queue)
    placed = _placed(queue, uses, _of_the_queue(queue, folder.frames, moved))
    taken: set[int] = set()
    for message, movement in moved:
        frame = _frame(movement)
        cited = _cited(movement, queue)
        numbers = placed.frames.get(frame, ())
        if placed.in_turn:
            mine = [_in_turn(queue, n) for n in numbers]
        else:
            unknown = Use(number=0, descriptor=None, nth=None, length=0)
            mine = [uses.get(n, replace(unknown, number=n)) for n in numbers]
        mine = _own(queue, mine, cited, taken)
        why = "" if mine else placed.why or f"frame {frame} passed when no gate was behind it"
        # Memory is given again: only of a ring that was not is its address the use's.
        known = {one.descriptor for one in mine} - {None}
        same = bool(known & cited) and not placed.round
        by = BY_BOTH if mine and (same or _agreed(mine, message, movement)) else None
        if mine and by is None:
            against = cited and known and not same and not placed.round
            by = None if against or _other(mine, message, movement) else BY_ORDER
            mine, why = (mine, "") if by else ([], OTHER)
        elif not mine:
            mine = _used_once(queue, uses, cited)
            by, why = (BY_ADDRESS, "") if mine else (None, why)
        at_least = (
            placed.round and not placed.in_turn and any(gate.at_least for gate in queue.gates)
        )
        if at_least:  # and how often it was used before is not known
            mine = [replace(one, nth=None) for one in mine]
        yield Match(
            guest=guest,
            queue=queue.kind,
            message=message.id,
            function=movement.function,
            kind=movement.kind,
            size=movement.size,
            frame=f"{guest}/wire.pcap#{frame}",
            evidence=movement.evidence[0],
            cited=tuple(sorted(cited)),
            uses=tuple(mine),
            by=by or "",
            why=why,
            at_least=at_least,
        )


def _agreed(mine: Sequence[Use], message: Message, movement: Movement) -> bool:
    return any(_covers(one, message, movement) for use in mine for one in use.held)


def _other(mine: Sequence[Use], message: Message, movement: Movement) -> bool:
    """Tell whether a gate shows that this use was of other memory: of one piece, and no table."""
    held = [one for use in mine for one in use.held]
    plain = all(not one.flags & (Descriptor.NEXT | Descriptor.INDIRECT) for one in held)
    return len(mine) == len(held) == 1 and plain and not _covers(held[0], message, movement)


def _covers(one: Descriptor, message: Message, movement: Movement) -> bool:
    place = message.places[movement.source if movement.kind == "dma-read" else movement.target]
    skip = movement.offset - place.offset  # a place may begin before what was moved of it
    for extent in place.extents:
        if 0 <= skip < extent.size:
            return one.address <= extent.physical + skip < one.address + one.length
        skip -= extent.size
    return False


def known_uses(queue: Queue) -> dict[int, Use]:
    """Return every use since the first gate that some gate still shows, by its number."""
    gates = in_order(queue)
    seen: dict[int, tuple[int, int]] = {}
    for gate in gates[1:]:
        count = _count(gates[0], gate)
        seen |= dict(enumerate(gate.used, max(count - len(gate.used), 0)))
    shown = _shown(queue, seen)
    out: dict[int, Use] = {}
    times: dict[int, int] = {}
    whole = True  # all before it are known
    for number in sorted(seen):
        descriptor, length = seen[number]
        whole = whole and number == len(out)
        times[descriptor] = times.get(descriptor, 0) + 1
        out[number] = Use(
            number=number,
            descriptor=descriptor,
            nth=times[descriptor] if whole else None,
            length=length,
            held=shown.get(number, ()),
        )
    return out


def _shown(queue: Queue, seen: Mapping[int, tuple[int, int]]) -> dict[int, tuple[Descriptor, ...]]:
    """Return the descriptors of uses as the gate behind, or before, shows them."""
    gates = in_order(queue)
    out: dict[int, tuple[Descriptor, ...]] = {}
    for gate in gates:
        count = _count(gates[0], gate)
        known = {one.id: one for one in gate.descriptors if one.length}
        posted = gate.posted() or frozenset()
        # What it was used for last it holds still, and what it was given for it is used for next.
        last = {seen[n][0]: n for n in range(max(count - len(gate.used), 0), count) if n in seen}
        mine = {number: at for at, number in last.items() if at not in posted}
        if not gates[-1].at_least:  # else the numbers may be others
            mine |= dict(enumerate(gate.given or (), count))
        for number, at in mine.items():
            if at in known and number in seen and seen[number][0] == at:
                one = _physical(queue, gate, known[at])
                out[number] = (one,) if one is not None else ()
    return out


def _physical(queue: Queue, gate: RingGate, one: Descriptor) -> Descriptor | None:
    if not queue.translated:
        return one
    at = gate.mapped(one.address)
    return None if at is None else replace(one, address=at)


def _count(first: RingGate, gate: RingGate) -> int:
    return (gate.used_idx - first.used_idx) % INDEXES


def _of_the_queue(queue: Queue, frames: Sequence[Frame], moved: Sequence[Moved]) -> list[Frame]:
    """Return the frames that went through a queue, in order: by who sent them."""
    at = next((_frame(one) for _, one in moved), -1)
    if not 0 <= at < len(frames):
        return []
    if queue.kind == "tx":
        return [one for one in frames if one.source_mac == frames[at].source_mac]
    me = frames[at].data[:6]
    return [one for one in frames if one.source_mac != me]


def _placed(queue: Queue, uses: Mapping[int, Use], frames: Sequence[Frame]) -> Placed:
    gates = in_order(queue)
    first = gates[0]
    out: dict[int, tuple[int, ...]] = {}
    why = ""
    again = any(_count(first, gate) > queue.size for gate in gates)
    if queue.kind == "rx" and not queue.offered:
        turns = _all_in_turn(queue, frames)
        if turns is not None:
            return turns
    for gate in gates[1:]:
        if gate.frames is None or first.frames is None:
            why = why or (OLD if not gate.counted else f"frames passed at gate '{gate.name}'")
            continue
        here = [one for one in frames if first.frames <= one.index < gate.frames]
        count = _count(first, gate)
        if queue.kind == "tx" and queue.offered:
            found, said = _one_each(gate, count, here)
        else:
            shown = [uses[n] for n in range(max(count - len(gate.used), 0), count) if n in uses]
            found, said = _by_length(queue, gate, shown, here)
            again = again or (gate.at_least and len(found) < len(here))
        out |= found
        why = said or why
    return Placed(frames=out, round=again, why=why)


def _all_in_turn(queue: Queue, frames: Sequence[Frame]) -> Placed | None:
    """Return the frames of a ring without used entries, where each fits one of its buffers.

    Its device takes the descriptors in turn, so the frames say how often it went round as well.
    """
    first, last = in_order(queue)[0], in_order(queue)[-1]
    if first.frames is None or last.frames is None or not queue.size:
        return None
    here = [one for one in frames if first.frames <= one.index < last.frames]
    room = min((one.length for one in first.descriptors if one.length), default=0)
    if any(len(one.data) > room for one in here):
        return None
    if (_count(first, last) - len(here)) % queue.size:
        return None
    return Placed(
        frames={one.index: (number,) for number, one in enumerate(here)},
        round=len(here) > queue.size,
        why="",
        in_turn=True,
    )


def _in_turn(queue: Queue, number: int) -> Use:
    at = in_order(queue)[0].used_idx + number
    return Use(number=number, descriptor=at % queue.size, nth=number // queue.size + 1, length=0)


def _one_each(
    gate: RingGate, count: int, frames: Sequence[Frame]
) -> tuple[dict[int, tuple[int, ...]], str]:
    # A virtqueue has one use for a packet that is sent, in however many pieces.
    if count != len(frames) % INDEXES:
        return {}, (
            f"until gate '{gate.name}' the ring says {count} packets and the wire has"
            f" {len(frames)} frames"
        )
    return {one.index: (number,) for number, one in enumerate(frames)}, ""


def _by_length(
    queue: Queue, gate: RingGate, shown: Sequence[Use], frames: Sequence[Frame]
) -> tuple[dict[int, tuple[int, ...]], str]:
    # From the last one back, for the first of a full round are written over.
    out: dict[int, tuple[int, ...]] = {}
    count = _count(in_order(queue)[0], gate)
    if (
        count > len(shown)
        and (gate.avail_idx - gate.used_idx) % INDEXES < ROOM
        and not gate.at_least
    ):
        return {}, f"at gate '{gate.name}' so few buffers are left that a frame may wait for one"
    left = list(shown)
    cuts = gate.at_least and queue.kind == "tx"  # by a device that cuts packets itself
    whole = count == len(shown) and not gate.at_least
    waiting = list(frames)
    while waiting:
        mine: list[int] = []
        total = 0
        cut = 0
        while left and not cut and total <= MOST_PACKET:
            mine.append(left[-1].number)
            total += left.pop().length
            cut = _frames_of(total, waiting, cuts=cuts)
        if not cut:
            frame = waiting[-1].index
            if left or whole:
                return {}, f"at gate '{gate.name}' the ring's lengths do not fit frame {frame}"
            return out, f"the ring does not show any more what frame {frame} and before used"
        for one in waiting[-cut:]:
            out[one.index] = tuple(reversed(mine))
        del waiting[-cut:]
    if any(one.length for one in left):
        return {}, f"until gate '{gate.name}' the ring has uses for more frames than the wire"
    return out, ""


def _frames_of(total: int, frames: Sequence[Frame], *, cuts: bool) -> int:
    """Return how many frames, from the last one back, are the `total` bytes of a packet; 0: none.

    `cuts`: the device may have cut it, and each piece has a copy of the headers.
    """
    last = frames[-1]
    size = len(last.data)
    if total and any(total - one in DEVICE_HEADERS for one in (size, max(size, SHORTEST))):
        return 1
    if not cuts or last.headers is None:
        return 0
    # Segments have a copy of all headers each, fragments of those up to IP's.
    for inner in (last.headers.payload_at, _ip_end(last)):
        so_far = inner
        for count, frame in enumerate(reversed(frames), 1):
            if so_far >= total or frame.headers is None:
                break
            so_far += len(frame.data) - inner
            if so_far == total:
                return count
    return 0


def _ip_end(frame: Frame) -> int:
    headers = frame.headers
    assert headers is not None
    return ETHERNET_SIZE + headers.ip_size + headers.fragment_size


def _frame(movement: Movement) -> int:
    mark = f"{movement.guest}/wire.pcap#"
    return next((int(one[len(mark) :]) for one in movement.evidence if one.startswith(mark)), -1)


def _cited(movement: Movement, queue: Queue) -> set[int]:
    """Return the descriptors of a queue whose addresses at some gate are the movement's."""
    places = (one.partition(f"{movement.guest}/rings.json#")[2] for one in movement.evidence)
    words = [place.split("/") for place in places if place]
    return {int(number) for _, kind, number in words if kind == queue.kind}


def _own(queue: Queue, found: Sequence[Use], cited: set[int], taken: set[int]) -> list[Use]:
    """Return which of a frame's uses are a movement's, and put those of a buffer in `taken`."""
    filled = [one for one in found if one.length] or list(found)
    if queue.kind == "tx":
        return filled
    # A frame over several buffers is a movement into each: by its descriptor, or in order.
    left = [one for one in filled if one.number not in taken]
    mine = ([one for one in left if one.descriptor in cited] or left)[:1]
    taken |= {one.number for one in mine}
    return mine


def _used_once(queue: Queue, uses: Mapping[int, Use], cited: set[int]) -> list[Use]:
    """Return the use of each descriptor that was used once, if the gates show all uses."""
    gates = in_order(queue)
    if _count(gates[0], gates[-1]) > len(uses) or gates[-1].at_least:
        return []
    mine = [[one for one in uses.values() if one.descriptor == number] for number in sorted(cited)]
    return [one for (one,) in mine] if all(len(one) == 1 for one in mine) else []
