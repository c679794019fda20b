"""The sender's device: what it was given to read, and what it read."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.capture import Frame
from lab.correlate.board import Board
from lab.correlate.devices import DEVICE_HEADERS, Carried, Wire, stranded
from lab.correlate.holdings import PHYSICAL, Extent, Held
from lab.correlate.hooks import DESCRIBED, DMA_MAP, DRIVER_XMIT, OUTBUF, given_by, uses_dma_api
from lab.correlate.inputs import blame
from lab.correlate.memory_map import GuestMap
from lab.correlate.rings import Found, RingWitness, device_address, named
from lab.correlate.skbs import Skbs
from lab.correlate.types import Certainty, Kind, Movement, Mover, Place, PlaceKind
from lab.record import Record

MOST_DESCRIPTORS = 18  # of one packet: a linear area and MAX_SKB_FRAGS


@dataclass
class Chain:
    """The descriptors of one frame, as the driver handed them over: segments in order."""

    records: list[Record] = field(default_factory=list)
    asked: list[Record] = field(default_factory=list)  # to a virtqueue that then mapped `records`
    given: Record | None = None  # to the driver: the skb that the frame is

    @property
    def size(self) -> int:
        return sum(record.size for record in self.records)


def chains(records: tuple[Record, ...], *, mapped: bool = False) -> dict[int, Chain]:
    """Return the chains of a trace by the number of the record that ends each.

    `mapped`: what a virtqueue hands its device are the addresses that the DMA API gives it.
    """
    out: dict[int, Chain] = {}
    now = Chain()
    given: Record | None = None  # to a driver, and nothing of it handed on yet by a virtqueue
    skb: Record | None = None  # given to a driver last
    for record in records:
        if record.hook in DRIVER_XMIT:
            skb = given = record
            now = Chain(given=skb)
        elif record.hook == DESCRIBED:
            if record.frags == 0:
                now = Chain()
            _append(out, now, record)
        elif record.hook == OUTBUF:
            given = None
            if record.frags == 0:
                now = Chain(given=skb if skb is not None and skb.skb == record.skb else None)
            if mapped:
                now.asked.append(record)
            else:
                _append(out, now, record)
        elif record.hook == DMA_MAP and len(now.records) < len(now.asked):
            asked = now.asked[len(now.records)]
            if record.size == asked.size:
                _append(out, now, record.of_skb(asked.skb, asked.frags))
        elif record.hook == DMA_MAP and given is not None:
            # The DMA API is told of memory, not of skbs; the driver's order says whose it is.
            _append(out, now, record.of_skb(given.skb, len(now.records)))
    return out


def _append(out: dict[int, Chain], chain: Chain, record: Record) -> None:
    if chain.records:
        out.pop(chain.records[-1].number, None)
    chain.records.append(record)
    out[record.number] = chain


def _in_front(chain: Chain) -> int:
    """Return how many bytes of a chain lie before the frame: the header its device is given.

    Of virtio (1.2, 5.1.6) the first 10, 12 or 20 of every packet, in a descriptor with the frame
    or in one of their own.  The frame is what the skb that the driver was given begins with.
    """
    given = chain.given
    at = 0
    for record in chain.asked or chain.records if given is not None else ():
        if given is not None and record.src <= given.data < record.src + record.size:
            at += given.data - record.src
            return at if at in DEVICE_HEADERS else 0
        at += record.size
    return 0


class Transmit:
    """Pairs the sender's descriptors with places and frames."""

    def __init__(self, memory: GuestMap, board: Board, skbs: Skbs, wire: Wire) -> None:
        self.memory = memory
        self.board = board
        self.skbs = skbs
        self.wire = wire
        self.guest = memory.guest
        self.rings = RingWitness(self.guest)
        mapped = uses_dma_api(board.inputs.manifest)
        self._chains = chains(memory.records, mapped=mapped)
        self._last = next(reversed(self._chains.values()), None)

    def take(self, record: Record) -> None:
        """Follow a chain when its last segment was handed over."""
        chain = self._chains.pop(record.number, None)
        if chain is None:
            return
        parts = self._parts(chain)
        # Of a chain that holds nothing known only what its skb showed says which frame it is.
        shown = self.skbs.shown.get(chain.records[-1].skb, b"")
        if not parts and not shown:
            return
        claimed = self.wire.claim(chain.size, parts, shown)
        if claimed is not None:
            frame, header, mine = claimed
            self._check_length(chain, frame, mine)
            self._taken(chain, frame, header, mine or self._strangers(chain, frame, header))
            return
        cut = self.wire.claim_cut(parts)
        if not cut:
            self._no_frame(chain, parts)
            return
        for frame, pieces in cut:
            self._taken(chain, frame, 0, pieces)
        given = sum(part.size for part in parts)
        carried = sum(piece.size for _, pieces in cut for piece in pieces)
        if carried < given:
            self.board.disagree(
                "frame",
                self.guest.name,
                parts[0].message,
                f"the device was given {given} bytes of message {parts[0].message} in one "
                f"packet, and the frames it made of it carry {carried}",
                [record.id for record in chain.records],
            )

    def _taken(self, chain: Chain, frame: Frame, header: int, parts: list[Held]) -> None:
        if not parts:
            return
        found = self._descriptors(chain, frame, parts)
        self._read(
            parts,
            frame,
            header,
            size=chain.size,
            tsc=chain.records[-1].tsc,
            evidence=list(dict.fromkeys(entry.id for entry in (*chain.records, *chain.asked)))
            + [one.evidence for one in found],
            confirmed={self.guest.witness, "wire"} | ({"rings"} if found else set()),
        )

    def _check_length(self, chain: Chain, frame: Frame, parts: list[Held]) -> None:
        """Expect a frame as long as the skb that the driver made it of."""
        given = chain.given
        if given is not None and given.skb_len != len(frame.data) and parts:
            self.board.disagree(
                "skb",
                self.guest.name,
                parts[0].message,
                f"{given.hook} was given skb 0x{given.skb:x} with len {given.skb_len}, and the "
                f"frame it became has {len(frame.data)} bytes",
                [given.id, f"{self.guest.name}/wire.pcap#{frame.index}"],
            )

    def finish(self) -> None:
        """Account for frames no record of a descriptor explains: by the rings, or not at all."""
        sent = self.rings.sent()
        room = max([len(frame.data) for frame in self.wire.unclaimed], default=0)
        room += max(DEVICE_HEADERS)
        at = 0
        while at < len(sent) and not self.wire.all_claimed:
            at += self._claim_chain(sent[at : at + MOST_DESCRIPTORS], room) or 1
        why = "no descriptor that covers them is known: " + self._why_no_descriptor()
        for frame in self.wire.unclaimed:
            carried = stranded(self.wire, frame, self.guest.name, why)
            if carried is not None:
                self.wire.carried[frame.index] = carried

    def _claim_chain(self, sent: list[Found], room: int) -> int:
        """Claim the frame that the first of some descriptors, and those behind it, became.

        Returns how many they are, 0 where there is none: headers in one, and what a page holds
        of the payload in each of the others.  `room`: no frame and its header are more bytes.
        """
        parts: list[Held] = []
        size = 0
        for count, found in enumerate(sent, 1):
            length = found.descriptor.length
            extents = [Extent(space=PHYSICAL, start=found.physical or 0, size=length, at=0)]
            parts += [part.found_at(part.at + size) for part in self.memory.holdings.find(extents)]
            size += length
            if size > room:
                break
            sendings = self._claim(size, parts, count) if parts else []
            for frame, header, mine in sendings:
                self._read(
                    mine,
                    frame,
                    header,
                    size=size,
                    tsc=max(part.place.born for part in mine),
                    evidence=[
                        one for each in sent[:count] for one in (each.evidence, *each.because)
                    ],
                    confirmed={"rings", "wire"},
                )
            if sendings:
                return count
        return 0

    def _claim(
        self, size: int, parts: list[Held], count: int
    ) -> list[tuple[Frame, int, list[Held]]]:
        if count == 1:
            claimed = self.wire.claim(size, parts, b"")
            return [] if claimed is None else [claimed]
        out = []
        while (chain := self.wire.claim_chain(size, parts)) is not None:
            out.append(chain)
            if not self.board.inputs.identity.unique:
                break  # else TCP has sent it again
        return out

    def _parts(self, chain: Chain) -> list[Held]:
        out: list[Held] = []
        at = 0
        front = _in_front(chain)
        for record in chain.records:
            if at < front:
                # The driver's header for its device.  It is written where an older message may
                # have lain, in the headroom of the skb most often, and no hook sees that.
                size = min(front - at, record.size)
                written = self.memory.kernel(record.src, size, record.src_phys)
                for lost in self.memory.holdings.clear(written):
                    lost.overwritten = True
            extents = self.memory.kernel(record.src, record.size, record.src_phys)
            parts = self.memory.holdings.find(extents)
            self.skbs.segment(record.skb, parts, index=record.frags)
            out += [part.found_at(part.at + at) for part in parts]
            at += record.size
        return out

    def _strangers(self, chain: Chain, frame: Frame, header: int) -> list[Held]:
        # The frame carries message bytes, and nothing is known to have brought them
        # to the memory under its descriptors.
        out: list[Held] = []
        for at, message, offset, size in self.wire.carries(frame):
            start = 0
            for record in chain.records:
                first = max(at + header, start)
                last = min(at + header + size, start + record.size)
                if first < last:
                    virtual = record.src + first - start
                    held = (message, offset + first - at - header, last - first)
                    out.append(self._stranger(record, virtual, held).found_at(first))
                start += record.size
        return out

    def _stranger(self, record: Record, virtual: int, held: tuple[int, int, int]) -> Held:
        extents = self.memory.kernel(virtual, held[2])
        place = self.board.place(
            self.guest.name,
            PlaceKind.SKB_FRAG if record.frags else PlaceKind.SKB_LINEAR,
            held=held,
            virtual=virtual,
            extents=[(extent.start, extent.size) for extent in extents],
            region="direct map",
            born=record.tsc,
            evidence=[record.id],
        )
        found = self.board.orphan(place)
        self.memory.holdings.clear(extents)
        self.memory.holdings.put(extents, found)
        return found

    def _descriptors(self, chain: Chain, frame: Frame, parts: list[Held]) -> list[Found]:
        # Every segment in the ring, or the ring's number was used again, or a table of
        # its own holds them; anything else is a disagreement.
        if not self.rings.present:
            return []
        found = [
            self.rings.covering("tx", record.src_phys, record.size, device=device_address(record))
            for record in chain.records
        ]
        if all(found):
            return [one for one in found if one is not None]
        last = self._last is chain
        hidden = len(chain.records) > 1 and self.rings.indirect("tx")
        if last and not hidden and not self._later_frames(frame):
            self.board.disagree(
                "descriptor",
                self.guest.name,
                parts[0].message,
                f"the driver handed {named(chain.records[0])} to the device and no "
                f"descriptor of the ring covers it",
                [record.id for record in chain.records],
            )
        return []

    def _later_frames(self, frame: Frame) -> bool:
        return any(
            other.index > frame.index and other.source_mac == frame.source_mac
            for other in self.guest.frames or ()
        )

    def _no_frame(self, chain: Chain, parts: list[Held]) -> None:
        fresh = [part for part in parts if part.place.id not in self.skbs.spent]
        if not fresh or self.guest.frames is None:
            return  # residue of what was sent before, under another packet's descriptor
        if not any(record.skb for record in chain.records):
            return  # no skb, so not a NIC's: freed pages serve other devices next
        self.board.disagree(
            "frame",
            self.guest.name,
            parts[0].message,
            f"the device was given {chain.size} bytes at 0x{chain.records[0].src_phys:x} that "
            f"hold message {parts[0].message}, and no frame carries them",
            [record.id for record in chain.records],
        )

    def _why_no_descriptor(self) -> str:
        name = given_by(self.board.inputs.manifest)
        hook = self.guest.hook(name)
        if hook is not None and hook.left_out:
            reason = f"{name} was left out"
        elif hook is None or hook.error:
            reason = f"{name} was not attached"
        else:
            reason = blame(self.guest, None)
        return f"{reason}, and {self.rings.silence('tx')}"

    def _bounced(self, place: Place) -> bool:
        """Tell whether a place is a bounce buffer: a copy from kernel memory made it."""
        made = self.board.made_by.get(place.id)
        if made is None or made.kind is not Kind.COPY:
            return False
        return self.board.bounces and made.source.kind is not PlaceKind.USER

    def _read(
        self,
        parts: list[Held],
        frame: Frame,
        header: int,
        *,
        size: int,
        tsc: int,
        evidence: list[str],
        confirmed: set[str],
    ) -> None:
        on_wire = []
        for part in parts:
            if part.place.kind is PlaceKind.KERNEL and self._bounced(part.place):
                part.place.kind = PlaceKind.BOUNCE
            place = self.wire.place(frame, part, self.guest.name)
            held = part.put_in(place, part.way.read()).found_at(part.at - header)
            movement = Movement(
                guest=self.guest.name,
                mover=Mover.DEVICE,
                kind=Kind.DMA_READ,
                function=self.board.inputs.manifest.device,
                instruction="",
                caller="",
                source=part.place,
                target=place,
                message=part.message,
                offset=part.offset,
                size=size,
                payload_size=part.size,
                certainty=Certainty.DERIVED,
                tsc=tsc,
                evidence=[*evidence, *place.evidence],
                confirmed_by=set(confirmed),
            )
            self.board.move(movement, held)
            self.skbs.spent.add(part.place.id)
            on_wire.append(held)
        self.wire.carried[frame.index] = Carried(frame=frame, parts=tuple(on_wire), tsc=tsc)
