"""Which skb holds which message bytes, and where one skb changes hands."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from lab.correlate.board import Board, plain
from lab.correlate.holdings import KERNEL, PHYSICAL, Extent, Held
from lab.correlate.hooks import DRIVER_XMIT, RECEIVE_SIDE, SEND_SIDE
from lab.correlate.memory_map import GuestMap
from lab.correlate.types import (
    Certainty,
    Kind,
    Movement,
    Mover,
    Place,
    PlaceKind,
    Sighting,
)
from lab.record import Flag, Record

GETFRAG: Final = "ip_generic_getfrag"
TCP_TRANSMIT: Final = "__tcp_transmit_skb"
PAGE_TO_SKB: Final = "virtio_net:page_to_skb"
FIRST_OF_TRIP: Final = "__dev_queue_xmit"
TRANSMIT: Final = DRIVER_XMIT | {"__dev_queue_xmit", "loopback_xmit"}
_tuple: Final = tuple.__new__  # takes half as long as calling a named tuple
ARRIVE: Final = frozenset({"__netif_rx", "__udp_enqueue_schedule_skb", "tcp_rcv_established"})


class Skbs:
    """Follows the skbs of one guest."""

    def __init__(self, memory: GuestMap, board: Board) -> None:
        self.memory = memory
        self.board = board
        self.identity = board.inputs.identity
        self._frags: dict[int, list[list[Extent]]] = defaultdict(list)
        # skb_shared_info -> frags: TCP sends clones, which share it with the skb they are of
        self._shared: dict[int, list[list[Extent]]] = {}
        # getfrag calls whose copy is yet to be seen, and where each is to go
        self._filling: list[tuple[Record, list[Extent]]] = []
        self._left: set[int] = set()  # skbs seen to be transmitted
        self._messages: dict[int, list[Held]] = {}  # skb -> what it was last seen to hold
        self._open: dict[int, tuple[int, list[Movement]]] = {}  # skb -> head and handovers
        self._xmit: dict[int, list[Record]] = defaultdict(list)  # skb -> records on the way out
        self._arrived: dict[int, list[Record]] = defaultdict(list)
        self._handed: set[int] = set()  # ids of places
        self.spent: set[int] = set()  # ids of places that were sent: a device read them
        self.shown: dict[int, bytes] = {}  # skb -> what it began with when it was transmitted

    def take(self, record: Record) -> None:
        """Note what an skb record shows."""
        hook, skb = record.hook, record.skb
        if not record.flags & Flag.SKB or not skb:
            return
        if hook == GETFRAG:
            self._getfrag(record)
            return
        transmits = hook in TRANSMIT
        if transmits:
            self.shown[skb] = record.bytes
        if hook in (FIRST_OF_TRIP, PAGE_TO_SKB):  # what it held before is gone
            self._messages.pop(skb, None)
        if hook == TCP_TRANSMIT:
            self._tell_frag(record)
        parts = self._parts(record)
        if not parts:
            return
        self._messages[skb] = parts
        self._name(record, parts)
        self._sight(record, parts)
        if transmits:
            self._left.add(skb)
            self._xmit[skb].append(record)
        if hook == "loopback_xmit":
            self._hand_over(record, parts)
        if hook in ARRIVE:
            self._arrive(record)
        if hook == "skb_consume_udp":
            self._messages.pop(skb, None)
            self._open.pop(skb, None)

    def copied_between(self, record: Record, places: list[Place]) -> None:
        """Tie what a copy between skbs has just made to the skb it was made in, if that is known.

        The record's skb is the source's.  It is the target's too where an skb is made
        linear; where it is cut or joined, the skb that holds the bytes shows up later.
        """
        find = self.memory.holdings.find
        parts = [held for place in places for held in find(ranges(place)) if held.place is place]
        inside = [part for part in parts if record.head <= part.place.virtual < record.shinfo]
        self._name(record, inside)
        if inside:
            self._messages[record.skb] = inside
        if parts:
            self._sight(record, parts)

    def copied_in(self, places: list[Place]) -> None:
        """Tie places a copy has just made to the skb that asked for them."""
        if not places:
            return
        for record, asked in self._filling:
            parts = [held for held in self.memory.holdings.find(asked) if held.place in places]
            if parts:
                self._name(record, parts)
                self._sight(record, parts)
        self._filling = []

    def segment(self, skb: int, parts: list[Held], *, index: int) -> None:
        """Name the places a descriptor of an skb covers."""
        self._left.add(skb)
        for part in parts:
            if part.place.kind is PlaceKind.KERNEL:
                part.place.kind = PlaceKind.SKB_FRAG if index else PlaceKind.SKB_LINEAR

    def derive_handover(self, record: Record, parts: list[Held]) -> list[Held]:
        """Count a handover where loopback's own hook saw none.

        Bytes that the sender's copy put at an address and the receiver's copy reads at
        the same one changed owner without moving.
        """
        fresh = [part for part in parts if not part.way.handovers]
        for place in dict.fromkeys(part.place.id for part in fresh):
            mine = [part for part in fresh if part.place.id == place]
            skb = self._skb_of(mine[0].place)
            seen = [*self._xmit.get(skb, ()), *self._arrived.get(skb, ())]
            ids = [entry.id for entry in seen]
            first = seen[0] if seen else record
            self._record_handover(
                first,
                mine,
                function="loopback",
                certainty=Certainty.DERIVED,
                # First what shows the skb on its way; the copies at both ends are why it is one.
                evidence=list(dict.fromkeys([*ids, record.id, *mine[0].place.evidence])),
            )
        return [
            part if part.way.handovers else part.put_in(part.place, part.way.handed_over())
            for part in parts
        ]

    def _getfrag(self, record: Record) -> None:
        if record.skb in self._left:  # the kernel uses this skb's memory again
            self._left.discard(record.skb)
            self._frags.pop(record.skb, None)
            self._shared.pop(record.shinfo, None)
            self._messages.pop(record.skb, None)
            self._xmit.pop(record.skb, None)
            self._arrived.pop(record.skb, None)
        asked = self.memory.kernel(record.dst, record.size, record.dst_phys)
        self._frags[record.skb].append(asked)
        self._filling.append((record, asked))

    def _tell_frag(self, record: Record) -> None:
        if record.frags == 0:
            self._shared[record.shinfo] = []
        told = self._shared.setdefault(record.shinfo, [])
        told.append(self.memory.kernel(record.src, record.size, record.src_phys))

    def _parts(self, record: Record) -> list[Held]:
        find = self.memory.holdings.find
        linear = record.skb_len - record.skb_data_len
        parts = self._linear(record, linear) if linear > 0 else []
        if record.skb_data_len and record.src:
            # page_to_skb: the frags lie in the buffer it was given; TCP: this frag
            parts += find(self.memory.kernel(record.src, record.size, record.src_phys))
        elif record.skb_data_len and record.hook in SEND_SIDE:
            frags = self._frags.get(record.skb) or self._shared.get(record.shinfo, [])
            for asked in frags:
                parts += [part for part in find(asked) if part.place not in _places(parts)]
        if not parts and record.hook not in (PAGE_TO_SKB, TCP_TRANSMIT):
            parts = self._messages.get(record.skb, []) if record.skb_data_len or not linear else []
            if record.hook in SEND_SIDE:  # what went before is not sent by another trip
                parts = [part for part in parts if part.place.id not in self.spent]
        return parts

    def _linear(self, record: Record, size: int) -> list[Held]:
        # What the linear area holds, compared with the bytes the record shows.
        extents = self.memory.kernel(record.data, size)
        parts = self.memory.holdings.find(extents)
        stale = [part for part in parts if not self._agrees(record, part)]
        if stale:
            # Freed, and another packet's by now: skb heads are given out again at once.  What
            # was brought there later than what is gone is this packet's: of the one before a
            # few bytes may be left where this one has headers.
            gone = max(part.place.born for part in stale)
            for part in stale:
                part.place.overwritten = True
            for part in parts:
                if part.place.born <= gone:
                    self.memory.holdings.clear(self.memory.kernel(record.data + part.at, part.size))
            parts = [part for part in parts if part.place.born > gone]
        if self.spent and record.hook in SEND_SIDE:
            parts = [part for part in parts if self._still_there(record, part)]
        return parts or self._strangers(record, size)

    def _agrees(self, record: Record, part: Held) -> bool:
        seen = record.bytes[part.at : part.at + part.size]
        return self.identity.agrees(seen, part.message, part.offset)

    def _still_there(self, record: Record, part: Held) -> bool:
        # A place that was sent once is residue unless the record shows its bytes again.
        return part.place.id not in self.spent or bool(record.bytes[part.at : part.at + part.size])

    def _strangers(self, record: Record, size: int) -> list[Held]:
        # Message bytes in an skb that nothing is known to have brought there.
        out = []
        for run in self.identity.find(record.bytes[:size]):
            length = run.size
            if run.at + run.size == len(record.bytes):  # goes on behind what is shown
                length = min(size - run.at, self.identity.size - run.offset)
            extents = self.memory.kernel(record.data + run.at, length)
            place = self.board.place(
                self.memory.guest.name,
                PlaceKind.SKB_LINEAR,
                held=(run.message, run.offset, length),
                virtual=record.data + run.at,
                extents=plain(extents, PHYSICAL),
                region="direct map",
                born=record.tsc,
                evidence=[record.id],
            )
            held = self.board.orphan(place)
            self.memory.holdings.clear(extents)
            self.memory.holdings.put(extents, held)
            out.append(held.found_at(run.at))
        return out

    def _name(self, record: Record, parts: list[Held]) -> None:
        for part in parts:
            place = part.place
            if place.kind is not PlaceKind.KERNEL:
                continue
            end = record.shinfo or record.data + record.skb_len - record.skb_data_len
            inside = record.head <= place.virtual < end
            place.kind = PlaceKind.SKB_LINEAR if inside else PlaceKind.SKB_FRAG

    def _sight(self, record: Record, parts: list[Held]) -> None:
        side = self._side(record, parts)
        for message in _messages(parts):
            if record.src and record.frags and self._seen(record, message):
                continue
            seen = (
                side,
                message,
                self.memory.guest.name,
                record.hook,
                record.skb,
                record.head,
                record.data,
                record.skb_len,
                record.skb_data_len,
                record.id,
            )
            self.board.sight(_tuple(Sighting, seen))

    def _side(self, record: Record, parts: list[Held]) -> str:
        if record.hook in SEND_SIDE:
            return "sender"
        if record.hook in RECEIVE_SIDE or self.memory.guest is not self.board.sender:
            return "receiver"
        # Either side may copy between skbs; over loopback the handover is what parts them.
        return "receiver" if any(part.way.handovers for part in parts) else "sender"

    def _seen(self, record: Record, message: int) -> bool:
        # One call may leave several records, one for each frag.
        if not self.board.sightings:
            return False
        last = self.board.sightings[-1]
        return (last.skb, last.at, last.message) == (record.skb, record.hook, message)

    # --- Handovers --------------------------------------------------------------------------

    def _hand_over(self, record: Record, parts: list[Held]) -> None:
        made = self._record_handover(
            record,
            parts,
            function=record.hook,
            certainty=Certainty.OBSERVED,
            evidence=[record.id],
        )
        self._open[record.skb] = (record.head, made)

    def _record_handover(
        self,
        record: Record,
        parts: list[Held],
        *,
        function: str,
        certainty: Certainty,
        evidence: list[str],
    ) -> list[Movement]:
        for place in _places(parts):
            self.spent.add(place.id)
            if place.id not in self._handed:
                self._handed.add(place.id)
                self.memory.holdings.raise_handovers(place, ranges(place))
        made = []
        for message in _messages(parts):
            mine = [part for part in parts if part.message == message]
            payload = sum([part.size for part in mine])
            movement = Movement(
                guest=self.memory.guest.name,
                mover=Mover.GUEST_CPU,
                kind=Kind.HANDOVER,
                function=function,
                instruction="",
                caller=self.memory.guest.symbols.show(record.caller),
                source=mine[0].place,
                target=mine[0].place,
                message=message,
                offset=mine[0].offset,
                size=record.skb_len or payload,
                payload_size=payload,
                certainty=certainty,
                tsc=record.tsc,
                evidence=list(evidence),
                confirmed_by={self.memory.guest.witness},
            )
            now = self.memory.holdings.find(ranges(mine[0].place))
            self.board.move(movement, now[0] if now else mine[0])
            made.append(movement)
        return made

    def _arrive(self, record: Record) -> None:
        self._arrived[record.skb].append(record)
        head, movements = self._open.get(record.skb, (0, []))
        for movement in movements:
            movement.evidence.append(record.id)
            if head != record.head and not self._joined(record.head, movement):
                self.board.disagree(
                    "handover",
                    self.memory.guest.name,
                    movement.message,
                    f"skb 0x{record.skb:x} was handed over with head 0x{head:x} and has head "
                    f"0x{record.head:x} at {record.hook}",
                    movement.evidence,
                )

    def _joined(self, head: int, movement: Movement) -> bool:
        """Tell whether a head is another's that was handed over with bytes of the same message.

        Where fragments are put together, the skb of the last that came is given what the
        skb of the first one held: skb_morph() in inet_frag_reasm_prepare().
        """
        return any(
            other == head and any(one.message == movement.message for one in movements)
            for other, movements in self._open.values()
        )

    def _skb_of(self, place: Place) -> int:
        for sighting in reversed(self.board.seen_of[place.message]):
            if sighting.guest == place.guest:
                return sighting.skb
        return 0


def ranges(place: Place) -> list[Extent]:
    """Return where a place lies, by physical address where that is known."""
    if not place.extents:
        return [Extent(KERNEL, place.virtual, place.size, 0)]
    out: list[Extent] = []
    at = 0
    for start, size in place.extents:
        out.append(Extent(PHYSICAL, start, size, at))
        at += size
    return out


def _places(parts: list[Held]) -> list[Place]:
    if len(parts) == 1:
        return [parts[0].place]
    return list({part.place.id: part.place for part in parts}.values())


def _messages(parts: list[Held]) -> list[int]:
    if len(parts) == 1:
        return [parts[0].message]
    return list(dict.fromkeys(part.message for part in parts))
