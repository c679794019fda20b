"""From one end of the link to the other: which frame of the sender's an arriving one is, or is of.

Over sockets a frame arrives as it left. Over taps the host is between: what the sender left
to its device it does itself where the receiver's cannot take it so. The checksum is filled in
then, and a large packet cut into frames with headers of their own; and short ones are padded.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lab.capture import Frame, Headers

IP = 14  # where it begins in a frame
TCP, UDP = 6, 17
ROUND = 1 << 32  # TCP's sequence numbers begin anew
# Fields of headers that are not the sender's when the host has finished a packet: from, to.
IN_IPV4 = ((2, 4), (4, 6), (10, 12))  # total length, identification, checksum
IN_IPV6 = ((4, 6),)  # length
IN_TCP = ((4, 8), (13, 14), (16, 18))  # sequence number, flags, checksum
IN_UDP = ((6, 8),)  # checksum


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin:
    """Where an arriving frame comes from."""

    frame: Frame  # of the sender
    first: int  # of that frame, the bytes that have arrived
    last: int
    shift: int = 0  # and how far on they lie in it than in the one that arrived


@dataclass(kw_only=True, eq=False, slots=True)
class _Left:
    """A frame that left, and which bytes of its payload have arrived."""

    frame: Frame
    headers: Headers
    key: bytes
    arrived: list[tuple[int, int]] = field(default_factory=list)


class Passage:
    """Finds for each arriving frame, in order, the one that left."""

    def __init__(self, sent: Sequence[Frame]) -> None:
        self._alike: dict[bytes, deque[Frame]] = defaultdict(deque)
        self._left: dict[int, _Left] = {}
        self._of: dict[bytes, list[_Left]] = defaultdict(list)
        for frame in sent:
            self._alike[frame.data].append(frame)
            if frame.headers is not None and frame.payload:
                left = _Left(frame=frame, headers=frame.headers, key=_kept(frame, frame.headers))
                self._left[frame.index] = left
                self._of[left.key].append(left)

    def take(self, frame: Frame) -> Twin | None:
        """Return where a frame comes from; None where none left that it could be of."""
        if self._alike.get(frame.data):
            twin = self._alike[frame.data].popleft()
            self._arrive(twin, 0, len(twin.payload))
            return Twin(frame=twin, first=0, last=len(twin.data))
        headers = frame.headers
        if headers is None or not frame.payload:
            return None
        for left in self._of.get(_kept(frame, headers), ()):
            skip = (headers.sequence - left.headers.sequence) % ROUND
            end = skip + len(frame.payload)
            if left.frame.payload[skip:end] != frame.payload:
                continue
            if any(first < end and skip < last for first, last in left.arrived):
                continue
            if left.frame in self._alike[left.frame.data]:  # it arrives otherwise than it left
                self._alike[left.frame.data].remove(left.frame)
            self._arrive(left.frame, skip, end)
            begins = left.headers.payload_at + skip
            return Twin(
                frame=left.frame,
                first=begins,
                last=begins + len(frame.payload),
                shift=begins - headers.payload_at,
            )
        return None

    def _arrive(self, frame: Frame, first: int, last: int) -> None:
        left = self._left.get(frame.index)
        if left is None:
            return
        left.arrived.append((first, last))
        if sum(end - start for start, end in left.arrived) >= len(frame.payload):
            self._of[left.key].remove(left)


def _kept(frame: Frame, headers: Headers) -> bytes:
    """Return a frame's headers without what a host changes that finishes it."""
    shown = bytearray(frame.data[: headers.payload_at])
    above = IP + headers.ip_size + headers.fragment_size
    fields: list[tuple[int, int]] = []
    whole = headers.source_port is not None and not headers.more_fragments
    if whole and headers.protocol == TCP:
        inside = IN_IPV4 if headers.version == 4 else IN_IPV6
        fields = [(IP + start, IP + end) for start, end in inside]
        fields += [(above + start, above + end) for start, end in IN_TCP]
    elif whole and headers.protocol == UDP:
        fields = [(above + start, above + end) for start, end in IN_UDP]
    for start, end in fields:
        shown[start:end] = bytes(end - start)
    return bytes(shown)
