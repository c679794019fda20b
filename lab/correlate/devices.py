"""Device accesses: a descriptor, a frame and a place, put together.

Nothing in a guest sees a device touch memory.  A device read is derived from a
descriptor that covers a place's bytes and a frame on the sender's wire that
carries the same bytes; a device write from a frame on the receiver's wire and
a filled buffer that holds it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice

from lab.access import LEAST
from lab.capture import Frame
from lab.correlate.board import Board
from lab.correlate.holdings import Held
from lab.correlate.inputs import GuestInputs
from lab.correlate.passage import Passage, Twin
from lab.correlate.types import LINK, Place, PlaceKind
from lab.message import BLOCK_SIZE

# Bytes in front of a frame in a device's buffer: the virtio header with and without
# mergeable buffers (12, 10), with a hash (20), and none (e1000e).
DEVICE_HEADERS = (12, 10, 20, 0)
NEAR = 8  # frames that are compared in the order they left, before they are looked up by message
SHORTEST = 60  # bytes of a frame without its checksum (IEEE 802.3): a device may pad what is less


def header_in_front(used: int, frame: Frame) -> int | None:
    """Return the bytes in front of a frame in a buffer of `used` bytes; None: it is another's."""
    size = len(frame.data)
    return next((used - n for n in (size, max(size, SHORTEST)) if used - n in DEVICE_HEADERS), None)


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What one frame carries of the messages, with the places on the wire."""

    frame: Frame  # at the sender
    parts: tuple[Held, ...]  # `at` is the offset in the frame, `place` is on the wire
    tsc: int  # of the sender, when the descriptor was given to the device; 0: not known


@dataclass(kw_only=True)
class Arrival:
    """A frame at the receiver that carries message bytes and is yet to be found in RAM."""

    frame: Frame
    carried: Carried
    taken: bool = False
    covered: int = 0  # bytes of it that are known to lie in a buffer


@dataclass
class Wire:
    """The frames of the link, and which of them were accounted for."""

    board: Board
    carried: dict[int, Carried] = field(default_factory=dict)  # frame at the sender -> what
    _frames: Sequence[Frame] = ()
    _claimed: set[int] = field(default_factory=set)
    _of_length: dict[int, deque[Frame]] = field(default_factory=dict)
    _deepest: dict[int, int] = field(default_factory=dict)  # by length: where payload begins
    _with: dict[int, list[Frame]] | None = None  # message -> frames that carry some of it
    _found: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    _begun: dict[int, int] = field(default_factory=dict)  # later fragment -> its datagram's message
    _alike: int = 0  # messages seen so far, of those that are told apart by order alone

    def load(self, frames: Sequence[Frame] | None) -> None:
        """Take the sender's frames in the order they left."""
        self._frames = frames or ()
        for frame in self._frames:
            length = len(frame.data)
            self._of_length.setdefault(length, deque()).append(frame)
            self._deepest[length] = max(self._deepest.get(length, 0), _payload_at(frame))
        self._begun = self._later_fragments()

    @property
    def unclaimed(self) -> list[Frame]:
        return [frame for frame in self._frames if frame.index not in self._claimed]

    @property
    def all_claimed(self) -> bool:
        return len(self._claimed) == len(self._frames)

    def claim(
        self, size: int, parts: Sequence[Held], begins: bytes
    ) -> tuple[Frame, int, list[Held]] | None:
        """Return the frame a descriptor chain of `size` bytes became, and its header's size.

        It is the first one that left, has that length, and shows the message's bytes where the
        descriptors hold them.  In front of its payload are headers, the device's and its own:
        no hook sees them written, so what memory held there before is no part of the packet.
        With what is; where that is nothing, the frame is the one that begins as its skb did.
        """
        for frame in self._candidates(size, parts):
            header = size - len(frame.data)
            mine = _in_payload(frame, parts, header)
            if mine:
                same = self._shows(frame, mine, header)
            else:
                same = bool(begins) and frame.data.startswith(begins[: len(frame.data)])
            if same:
                self._claimed.add(frame.index)
                return frame, header, mine
        return None

    def claim_chain(self, size: int, parts: Sequence[Held]) -> tuple[Frame, int, list[Held]] | None:
        """Return the frame that several descriptors of `size` bytes became, and what is its own.

        Memory under a descriptor may hold another packet's bytes by now, and the first few of a
        block are those of every block: what the frame carries at that place decides, and of what
        it carries no more than a driver's pull of a few bytes may be missing.
        """
        unique = self.board.inputs.identity.unique
        for frame in self._carrying(parts) if unique else self._as_long(size):
            header = size - len(frame.data)
            if header not in DEVICE_HEADERS:
                continue
            mine = [part for part in parts if self._carries(frame, part, header)]
            held = sum(part.size for part in mine)
            if mine and held + LEAST > len(frame.payload):
                self._claimed.add(frame.index)
                return frame, header, mine
        return None

    def _carries(self, frame: Frame, part: Held, header: int) -> bool:
        if not self.board.inputs.identity.unique:
            return self._shows(frame, [part], header)
        at = part.at - header
        return any(
            (message, offset - start) == (part.message, part.offset - at)
            and start <= at
            and at + part.size <= start + size
            for start, message, offset, size in self._sent(frame)
        )

    def claim_cut(self, parts: Sequence[Held]) -> list[tuple[Frame, list[Held]]]:
        """Return the frames a device cut a chain into, and what of `parts` each carries.

        Segmentation in the device: it reads a packet larger than a frame and sends it in
        pieces, each with headers of its own.  `at` of a piece is its offset in the frame.
        """
        if not self.board.inputs.identity.unique:
            return []
        left = sum(part.size for part in parts)
        out: list[tuple[Frame, list[Held]]] = []
        for frame in self._carrying(parts):
            pieces = [piece for run in self._sent(frame) for piece in _pieces(parts, run)]
            if pieces:
                self._claimed.add(frame.index)
                out.append((frame, pieces))
                left -= sum(piece.size for piece in pieces)
            if left <= 0:
                break
        return out

    def _candidates(self, size: int, parts: Sequence[Held]) -> Iterator[Frame]:
        """Yield the frames a chain may have become, in their order, the likely ones first.

        Most often it is the first of its length.  Where it is none of the first few, the
        message tells which it can be; going through all of them would take ever longer.
        """
        inside = self._as_long(size)
        yield from islice(inside, NEAR)
        sure = [part for part in parts if self._is_found(part, size)]
        if not sure:
            yield from inside
            return
        for frame in self._carrying(sure):
            if size - len(frame.data) in DEVICE_HEADERS:
                yield frame

    def _as_long(self, size: int) -> Iterator[Frame]:
        fits = []
        for header in DEVICE_HEADERS:
            frames = self._of_length.get(size - header)
            if frames:
                while frames and frames[0].index in self._claimed:
                    frames.popleft()
                fits.append(frames)
        for frame in fits[0] if len(fits) == 1 else merge(*fits, key=_index_of):
            if frame.index not in self._claimed:
                yield frame

    def _is_found(self, part: Held, size: int) -> bool:
        """Tell whether a frame that shows some bytes is sure to be known by their message.

        They must be its payload, wherever that begins, and a whole block among them.
        """
        identity = self.board.inputs.identity
        if not identity.unique or identity.alike:
            return False
        depth = max([header + self._deepest.get(size - header, 0) for header in DEVICE_HEADERS])
        first = part.offset + max(0, depth - part.at)
        first += -first % BLOCK_SIZE
        return first + BLOCK_SIZE <= part.offset + part.size

    def _carrying(self, parts: Sequence[Held]) -> list[Frame]:
        """Return the frames left that carry bytes of a message of `parts`, in their order."""
        if self._with is None:
            self._with = defaultdict(list)
            for frame in self._frames:
                for message in dict.fromkeys([run[1] for run in self._sent(frame)]):
                    self._with[message].append(frame)
        found = {
            frame.index: frame
            for message in dict.fromkeys([part.message for part in parts])
            for frame in self._with.get(message, ())
            if frame.index not in self._claimed
        }
        return [found[index] for index in sorted(found)]

    def _sent(self, frame: Frame) -> list[tuple[int, int, int, int]]:
        # What `carries` says of a frame of the sender's, searched for once.
        found = self._found.get(frame.index)
        if found is None:
            found = self._found[frame.index] = self.carries(frame)
        return found

    def place(self, frame: Frame, part: Held, guest: str) -> Place:
        """Make the place on the wire that `part` of a frame is."""
        seen = f"{guest}/wire.pcap#{frame.index}"
        place = self.board.place(
            LINK,
            PlaceKind.WIRE,
            held=(part.message, part.offset, part.size),
            virtual=0,
            evidence=[seen],
        )
        place.verified_by = [seen]  # its bytes were compared when it was claimed
        return place

    def carries(self, frame: Frame) -> list[tuple[int, int, int, int]]:
        """Return (at, message, offset, size) of the message bytes a frame shows."""
        identity = self.board.inputs.identity
        if identity.unique:
            return [
                clipped
                for run in identity.find(frame.data)
                if (clipped := _within(frame, run.at, run.message, run.offset, run.size))
            ]
        payload = frame.payload
        whole = len(payload) == identity.size and self._alike < identity.count
        if frame.headers is None or not whole or not identity.agrees(payload, self._alike, 0):
            return []
        self._alike += 1
        return [(frame.headers.payload_at, self._alike - 1, 0, len(payload))]

    def _later_fragments(self) -> dict[int, int]:
        """Return the message of each fragment behind a first one that shows it.

        The last may hold one byte, and that byte be the same in all messages: it is of the
        message that its datagram's first fragment shows.
        """
        if not self.board.inputs.identity.unique:
            return {}
        out: dict[int, int] = {}
        begun: dict[tuple[str, str, int, int], int] = {}
        for frame in self._frames:
            headers = frame.headers
            if headers is None or not (headers.more_fragments or headers.fragment_offset):
                continue
            whose = (headers.ip_source, headers.ip_target, headers.protocol, headers.ip_id)
            if headers.fragment_offset == 0:
                begun.pop(whose, None)  # an id comes again after 65536 of IPv4
                shown = {message for _, message, _, size in self.carries(frame) if size >= LEAST}
                if len(shown) == 1:
                    begun[whose] = shown.pop()
            elif whose in begun:
                out[frame.index] = begun[whose]
        return out

    def _shows(self, frame: Frame, parts: Sequence[Held], header: int) -> bool:
        identity = self.board.inputs.identity
        begun = self._begun.get(frame.index)
        if begun is not None and any(part.message != begun for part in parts):
            return False
        for part in parts:
            at = part.at - header
            if at < 0 or at + part.size > len(frame.data):
                return False
            found = frame.data[at : at + part.size]
            if not identity.agrees(found, part.message, part.offset):
                return False
        return True


def _index_of(frame: Frame) -> int:
    return frame.index


def _payload_at(frame: Frame) -> int:
    return 0 if frame.headers is None else frame.headers.payload_at


def _in_payload(frame: Frame, parts: Sequence[Held], header: int) -> list[Held]:
    """Return what of `parts` lies behind the headers of the frame that they are in."""
    begins = header + _payload_at(frame)
    out = []
    for part in parts:
        skip = begins - part.at
        if skip <= 0:
            out.append(part)
        elif skip < part.size:
            out.append(part.piece(part.offset + skip, part.size - skip, begins))
    return out


def _within(
    frame: Frame, at: int, message: int, offset: int, size: int
) -> tuple[int, int, int, int] | None:
    # A header's last byte may be, by chance, the one that comes before in the message.
    if frame.headers is None:
        return at, message, offset, size
    first = max(at, frame.headers.payload_at)
    last = min(at + size, frame.headers.payload_end)
    return (first, message, offset + first - at, last - first) if first < last else None


def _pieces(parts: Sequence[Held], run: tuple[int, int, int, int]) -> list[Held]:
    at, message, offset, size = run
    out = []
    for part in parts:
        first = max(offset, part.offset)
        last = min(offset + size, part.offset + part.size)
        if part.message == message and first < last:
            out.append(part.piece(first, last - first, at + first - offset))
    return out


def stranded(wire: Wire, frame: Frame, guest: str, why: str) -> Carried | None:
    """Take in a frame that carries message bytes no device is known to have read."""
    board = wire.board
    parts = []
    for at, message, offset, size in wire.carries(frame):
        seen = f"{guest}/wire.pcap#{frame.index}"
        place = board.place(
            LINK, PlaceKind.WIRE, held=(message, offset, size), virtual=0, evidence=[seen]
        )
        place.verified_by = [seen]
        parts.append(board.orphan(place, why, where=guest).found_at(at))
    return Carried(frame=frame, parts=tuple(parts), tsc=0) if parts else None


def arrivals(wire: Wire, receiver: GuestInputs, sender: GuestInputs) -> list[Arrival]:
    """Match the receiver's frames with the sender's, in order."""
    board = wire.board
    passage = Passage(sender.frames or ())
    out: list[Arrival] = []
    for frame in receiver.frames or ():
        twin = passage.take(frame)
        carried = None if twin is None else _brought(wire.carried.get(twin.frame.index), twin)
        mine = f"{receiver.name}/wire.pcap#{frame.index}"
        if carried is None and twin is None:
            carried = stranded(wire, frame, receiver.name, "the frame is not on the sender's wire")
            if carried is not None:
                board.disagree(
                    "frame",
                    receiver.name,
                    carried.parts[0].message,
                    "a frame with message bytes arrived that never left the sender",
                    [mine],
                )
        if carried is None:
            continue
        for part in carried.parts:
            if mine not in part.place.evidence:
                part.place.evidence.append(mine)
        out.append(Arrival(frame=frame, carried=carried))
    return out


def _brought(carried: Carried | None, twin: Twin) -> Carried | None:
    """Return what of a frame of the sender's came in the one that arrived, and where in that."""
    if carried is None or twin.last - twin.first == len(twin.frame.data):
        return carried
    parts = []
    for part in carried.parts:
        first = max(part.at, twin.first)
        last = min(part.at + part.size, twin.last)
        if first < last:
            offset = part.offset + first - part.at
            parts.append(part.piece(offset, last - first, first - twin.shift))
    return Carried(frame=carried.frame, parts=tuple(parts), tsc=carried.tsc) if parts else None


def buffer_parts(arrival: Arrival, header: int, skip: int, size: int) -> list[Held]:
    """Return what a buffer of `size` bytes holds of a frame, from its byte `skip` on.

    `at` of the result is the offset in the buffer; `header` is what lies in front.
    """
    out = []
    for part in arrival.carried.parts:
        first = max(part.at, skip)
        last = min(part.at + part.size, skip + size - header)
        if first < last:
            out.append(
                part.piece(part.offset + first - part.at, last - first, header + first - skip)
            )
    return out
