"""The receiver's device: which buffers it filled, and with which frames."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import cached_property

from lab.correlate.board import Board, plain
from lab.correlate.devices import DEVICE_HEADERS, Arrival, buffer_parts, header_in_front
from lab.correlate.holdings import PHYSICAL, Extent, Held
from lab.correlate.hooks import DMA_UNMAP, filled_by
from lab.correlate.inputs import GuestInputs
from lab.correlate.memory_map import GuestMap
from lab.correlate.rings import ARMED, INDEXES, Found, RingWitness, device_address, named
from lab.correlate.spans import Index
from lab.correlate.types import Certainty, Gap, Kind, Movement, Mover, PlaceKind
from lab.record import Record
from lab.rundir import Hit

HEADERS = 34  # bytes of Ethernet and IPv4: the least a device splits off
BYTES_MOST = 64  # of a record
MERGEABLE_HEADER = 12  # bytes; its last two say over how many buffers a frame goes


class Receive:
    """Pairs the frames that arrived with the buffers that hold them."""

    def __init__(
        self, memory: GuestMap, board: Board, arrivals: list[Arrival], sender: GuestInputs
    ) -> None:
        self.memory = memory
        self.board = board
        self.arrivals = arrivals
        self.sender = sender
        self.guest = memory.guest
        self._waiting = deque(arrivals)
        self._beginnings: dict[int, dict[bytes, deque[Arrival]]] = {}  # by the header in front
        self.rings = RingWitness(self.guest)
        self.filled = filled_by(board.inputs.manifest)
        virtio = board.inputs.manifest.device.startswith("virtio")
        self._headers = DEVICE_HEADERS if virtio else (0,)

    def begin(self) -> None:
        """Place frames by the rings alone, where no hook says which buffer was filled."""
        if any(record.hook == self.filled for record in self.memory.records):
            return
        filled = self.rings.filled()
        for arrival in self.arrivals:
            for number in range(len(filled)):
                count = self._whole(arrival, filled[number:])
                if count:
                    del filled[: number + count]  # buffers are filled in the order of the frames
                    break

    def _whole(self, arrival: Arrival, filled: list[Found]) -> int:
        """Place a frame in the first of some buffers and those behind it; return how many.

        A packet that nobody cut goes over as many as it needs: each but the last is full.
        """
        if filled[0].used is None:  # where it was all in this one, its bytes say so
            size = len(arrival.frame.data)
            if size > filled[0].descriptor.length:
                return 0
            return int(self._by_rings(arrival, [replace(filled[0], used=size)], 0))
        size = 0
        for count, found in enumerate(filled, 1):
            if found.used is None:
                break
            size += found.used
            header = header_in_front(size, arrival.frame)
            if header is not None and self._by_rings(arrival, filled[:count], header):
                return count
            if size > len(arrival.frame.data) + max(DEVICE_HEADERS):
                break
        return 0

    def _by_rings(self, arrival: Arrival, filled: list[Found], header: int) -> bool:
        """Place what buffers hold of a frame; tell whether all of them were seen to hold it."""
        skip, pieces = 0, []
        for number, found in enumerate(filled):
            front = header if number == 0 else 0
            pieces.append((found, front, skip))
            skip += (found.used or 0) - front
        if not all(self._seen(arrival, *piece) for piece in pieces):
            return False
        for found, front, skip in pieces:
            self._by_ring(arrival, found, front, skip=skip)
        return True

    def _seen(self, arrival: Arrival, found: Found, header: int, skip: int) -> bool:
        start = found.physical
        return start is not None and all(
            self._content_seen(start + part.at, part)
            for part in buffer_parts(arrival, header, skip, found.used or 0)
        )

    def take(self, record: Record) -> None:
        """Follow a buffer the driver was told is filled."""
        if record.hook != self.filled:
            return
        if record.hook == DMA_UNMAP:
            found = self._piece(record)
            if found is not None:
                self._fill_piece(record, *found)
                return
        else:
            held = self._held(record)
            if held is not None:
                self._fill(record, *held)
                return
        # Another frame's: what the buffer held before is gone.
        extents = self.memory.kernel(record.src, record.size, record.src_phys)
        for lost in self.memory.holdings.clear(extents):
            lost.overwritten = True
        self._strangers(record)

    def _held(self, record: Record) -> tuple[Arrival, int] | None:
        """Return the first frame that a buffer holds, and the bytes in front of it."""
        for header in DEVICE_HEADERS:
            shown = record.bytes[header : record.size]
            if not shown:
                continue
            # Whose first bytes are none that a record shows whole, the shorter is any frame's.
            whole = len(record.bytes) == min(BYTES_MOST, record.size)
            if whole and (record.size >= BYTES_MOST or _buffers(record, header) == 1):
                alike = self._by_beginning(header).get(shown, deque())
                while alike and alike[0].taken:
                    alike.popleft()
            else:
                alike = self._waiting
            for arrival in alike:
                if not arrival.taken and self._holds(record, arrival, header):
                    return arrival, header
        return None

    def _by_beginning(self, header: int) -> dict[bytes, deque[Arrival]]:
        # By what a record shows of a frame, behind so many bytes of the device's.
        found = self._beginnings.get(header)
        if found is None:
            found = self._beginnings[header] = {}
            for arrival in self.arrivals:
                begins = arrival.frame.data[: BYTES_MOST - header]
                found.setdefault(begins, deque()).append(arrival)
        return found

    def finish(self) -> None:
        """Report frames that arrived and are in no buffer."""
        if all(arrival.taken for arrival in self.arrivals):
            return
        came = {
            _bytes_of(part): one.frame.index
            for one in self.arrivals
            if one.taken
            for part in one.carried.parts
        }
        heard = self._all_heard()
        unnamed = {one.used for one in self.rings.filled() if not self.rings.is_named(one)}
        why = self._why()
        for arrival in self.arrivals:
            if arrival.taken:
                continue
            sizes = {len(arrival.frame.data) + header for header in self._headers}
            if heard and unnamed.isdisjoint(sizes) and _came_again(arrival, came):
                self.board.dropped.append(f"{self.guest.name}/wire.pcap#{arrival.frame.index}")
                continue
            for part in arrival.carried.parts:
                self.board.gaps.append(
                    Gap(
                        guest=self.guest.name,
                        message=part.message,
                        between=(
                            f"the wire ({self.guest.name}/wire.pcap#{arrival.frame.index})",
                            f"{self.guest.name} RX buffer",
                        ),
                        bytes=part.size,
                        why=why,
                    )
                )

    def _all_heard(self) -> bool:
        """Tell whether a buffer that was filled must have been seen."""
        hook, trace = self.guest.hook(self.filled), self.guest.trace
        whole = trace is not None and trace.complete
        return whole and hook is not None and hook.attached and not hook.missed

    def _why(self) -> str:
        hook = self.guest.hook(self.filled)
        if hook is not None and hook.left_out:
            reason = f"{self.filled} was left out"
        elif hook is None or hook.error:
            reason = f"{self.filled} was not attached"
        else:
            reason = f"{self.filled} saw no buffer with this frame"
        return f"{reason}, and {self.rings.silence('rx')}"

    def _holds(self, record: Record, arrival: Arrival, header: int) -> bool:
        data = arrival.frame.data
        if _buffers(record, header) > 1:
            if not header < record.size < len(data) + header:
                return False
        elif record.size != len(data) + header:
            return False
        shown = record.bytes[header : record.size]
        return bool(shown) and data[: len(shown)] == shown

    def _fill(self, record: Record, arrival: Arrival, header: int) -> None:
        arrival.taken = True
        physical = record.src_phys or self.memory.to_physical(record.src)
        found = self.rings.covering("rx", physical, record.size)
        self._check_ring(record, arrival, found)
        self._write(
            arrival,
            buffer_parts(arrival, header, 0, record.size),
            virtual=record.src,
            extents=self.memory.kernel(record.src, record.size, record.src_phys),
            size=record.size,
            tsc=record.tsc,
            evidence=[record.id] + ([found.evidence] if found else []),
            confirmed={self.guest.witness, "wire"} | ({"rings"} if found else set()),
        )
        self._check_order(record, arrival)
        more = _buffers(record, header) - 1
        if more > 0:
            self._rest(arrival, physical, record.size - header, more)

    def _piece(self, record: Record) -> tuple[Arrival, int, int] | None:
        # A buffer is taken back whole, however much of it is filled, and a frame may go over
        # several: where in the frame a buffer's bytes come from say the bytes.
        for arrival in self._waiting:
            rest = arrival.frame.data[arrival.covered :]
            for header in (0,) if arrival.covered else self._headers:
                shown = record.bytes[header:][: len(rest)]
                alike = _alike(shown, rest)
                if shown and alike == len(shown):
                    return arrival, header, min(record.size - header, len(rest))
                if alike >= HEADERS:  # headers alone, the rest lies in the next buffer
                    return arrival, header, alike
        return None

    def _fill_piece(self, record: Record, arrival: Arrival, header: int, size: int) -> None:
        skip = arrival.covered
        arrival.taken = True
        arrival.covered += size
        if arrival.covered == len(arrival.frame.data):
            self._waiting.remove(arrival)
        physical = record.src_phys or self.memory.to_physical(record.src)
        found = self.rings.covering("rx", physical, header + size, device=device_address(record))
        self._check_ring(record, arrival, found)
        self._write(
            arrival,
            buffer_parts(arrival, header, skip, header + size),
            virtual=record.src,
            extents=self.memory.kernel(record.src, record.size, record.src_phys),
            size=header + size,
            tsc=record.tsc,
            evidence=[record.id] + ([found.evidence] if found else []),
            confirmed={self.guest.witness, "wire"} | ({"rings"} if found else set()),
        )
        self._check_order(record, arrival)

    def _rest(self, arrival: Arrival, physical: int, skip: int, count: int) -> None:
        # A frame that goes over several buffers: the rings say which the others are.
        for found in self.rings.after(physical, count):
            self._by_ring(arrival, found, 0, skip=skip)
            skip += found.used or 0

    def _by_ring(self, arrival: Arrival, found: Found, header: int, *, skip: int = 0) -> bool:
        """Place what a buffer holds of a frame; tell whether it was seen to hold it."""
        size = found.used or 0
        parts = buffer_parts(arrival, header, skip, size)
        start = found.physical
        if start is None or not parts or not self._seen(arrival, found, header, skip):
            return False
        arrival.taken = True
        self._write(
            arrival,
            parts,
            virtual=self.memory.to_virtual(start),
            extents=[Extent(space=PHYSICAL, start=start, size=size, at=0)],
            size=size,
            tsc=0,
            evidence=[found.evidence],
            confirmed={"rings", "wire"},
        )
        return True

    def _content_seen(self, physical: int, part: Held) -> bool:
        # A ring says where and how much, never what: another witness must have seen it.
        end = physical + part.size
        for start, last, hit in self._hits.touching(physical, end):
            inside = start <= physical and end <= last
            same = hit.message == part.message
            if inside and same and hit.offset + physical - start == part.offset:
                return True
        identity = self.board.inputs.identity
        for start, _, record in self._shown.touching(physical, physical + 1):
            seen = record.bytes[physical - start :][: part.size]
            if identity.agrees(seen, part.message, part.offset):
                return True
        return False

    @cached_property
    def _hits(self) -> Index[Hit]:
        """What the census found, by physical address."""
        census = self.guest.census
        gates = census.gates if census is not None else ()
        return Index(
            [(hit.physical, hit.physical + hit.size, hit) for gate in gates for hit in gate.hits]
        )

    @cached_property
    def _shown(self) -> Index[Record]:
        """The records that show bytes of a buffer, by physical address."""
        return Index(
            [
                (record.src_phys, record.src_phys + len(record.bytes), record)
                for record in self.memory.records
                if record.src_phys and record.bytes and not record.skb
            ]
        )

    def _write(
        self,
        arrival: Arrival,
        parts: list[Held],
        *,
        virtual: int,
        extents: list[Extent],
        size: int,
        tsc: int,
        evidence: list[str],
        confirmed: set[str],
    ) -> None:
        frame = f"{self.guest.name}/wire.pcap#{arrival.frame.index}"
        for lost in self.memory.holdings.clear(extents):
            lost.overwritten = True
        for part in parts:
            runs = [
                (extent.start + part.at - extent.at, part.size)
                for extent in extents
                if extent.space == PHYSICAL and plain([extent], PHYSICAL)
            ]
            place = self.board.place(
                self.guest.name,
                PlaceKind.RX_BUFFER,
                held=(part.message, part.offset, part.size),
                virtual=virtual + part.at if virtual else 0,
                extents=runs,
                region="direct map" if runs else "kernel",
                born=tsc,
                evidence=[*evidence],
            )
            held = part.put_in(place, part.way.written())
            self.memory.holdings.put(extents, held)
            movement = Movement(
                guest=self.guest.name,
                mover=Mover.DEVICE,
                kind=Kind.DMA_WRITE,
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
                evidence=[*evidence, frame],
                confirmed_by=set(confirmed),
            )
            self.board.move(movement, held)

    def _check_ring(self, record: Record, arrival: Arrival, found: Found | None) -> None:
        # Buffers posted before the run are used up one by one; while the first of them
        # last, every buffer filled must be one of them.
        if not self.rings.present:
            return
        evidence = [record.id, f"{self.guest.name}/wire.pcap#{arrival.frame.index}"]
        message = arrival.carried.parts[0].message
        if found is None:
            if arrival.frame.index < self.rings.posted("rx"):
                self.board.disagree(
                    "descriptor",
                    self.guest.name,
                    message,
                    f"the driver found the frame at {named(record)} and no descriptor "
                    f"of the ring covers it",
                    evidence,
                )
        elif (
            record.hook != DMA_UNMAP
            and found.used is not None
            and found.used != record.size
            and self._once(found)
        ):
            self.board.disagree(
                "descriptor",
                self.guest.name,
                message,
                f"the driver was told of {record.size} bytes and the used ring says {found.used}",
                [*evidence, found.evidence],
            )

    def _once(self, found: Found) -> bool:
        # A descriptor's number is given to a new buffer; then its length is another's.
        queue = found.queue
        lengths = {
            length
            for gate in queue.gates
            for used, length in gate.used
            if used == found.descriptor.id
        }
        # Of a ring that was gone through more than once the first lengths are written over.
        first = next((gate for gate in queue.gates if gate.name == ARMED), queue.gates[0])
        most = max((gate.used_idx - first.used_idx) % INDEXES for gate in queue.gates)
        return len(lengths) == 1 and most <= queue.size

    def _check_order(self, record: Record, arrival: Arrival) -> None:
        here, there = self.guest.clock, self.sender.clock
        sent = arrival.carried.tsc
        if here is None or there is None or not sent or self.guest is self.sender:
            return
        if here.host(record.tsc).surely_before(there.host(sent)):
            self.board.disagree(
                "order",
                self.guest.name,
                arrival.carried.parts[0].message,
                "the receiver's buffer was filled before the sender's device was given the frame",
                [record.id, f"{self.guest.name}/wire.pcap#{arrival.frame.index}"],
            )

    def _strangers(self, record: Record) -> None:
        # A buffer with message bytes that no frame on the wire accounts for.
        for run in self.board.inputs.identity.find(record.bytes[: record.size]):
            size = min(record.size - run.at, self.board.inputs.identity.size - run.offset)
            extents = self.memory.kernel(record.src + run.at, size)
            place = self.board.place(
                self.guest.name,
                PlaceKind.RX_BUFFER,
                held=(run.message, run.offset, size),
                virtual=record.src + run.at,
                extents=plain(extents, PHYSICAL),
                region="direct map",
                born=record.tsc,
                evidence=[record.id],
            )
            why = "no frame on the receiver's wire holds what is in the buffer"
            if self.guest.frames is None:
                why = f"{self.guest.name}/wire.pcap is absent"
            else:
                self.board.disagree("frame", self.guest.name, run.message, why, [record.id])
            held = self.board.orphan(place, why)
            self.memory.holdings.clear(extents)
            self.memory.holdings.put(extents, held)


def _alike(left: bytes, right: bytes) -> int:
    """Return how many bytes two texts begin with alike."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(left), len(right)))


def _buffers(record: Record, header: int) -> int:
    if header != MERGEABLE_HEADER or len(record.bytes) < MERGEABLE_HEADER:
        return 1
    return int.from_bytes(record.bytes[10:12], "little") or 1


def _came_again(arrival: Arrival, came: dict[tuple[int, int, int], int]) -> bool:
    """Tell whether other frames brought the same bytes, and one of them after this.

    `came`: what arrived, and the last frame that brought it.
    """
    last = [came.get(_bytes_of(part)) for part in arrival.carried.parts]
    return None not in last and any(one is not None and one > arrival.frame.index for one in last)


def _bytes_of(part: Held) -> tuple[int, int, int]:
    return part.message, part.offset, part.size
