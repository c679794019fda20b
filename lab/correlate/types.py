"""What correlation yields: places, movements, gaps, and the flow they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

LINK: Final = "link"  # the "guest" of a place on the wire


class PlaceKind(StrEnum):
    """What sort of memory a place is."""

    USER = "user"
    SKB_LINEAR = "skb-linear"
    SKB_FRAG = "skb-frag"
    RX_BUFFER = "rx-buffer"
    BOUNCE = "bounce"  # between a driver's memory and its device
    WIRE = "wire"
    # Kernel memory that holds message bytes and that no record ties to an skb.
    KERNEL = "kernel"


class Mover(StrEnum):
    """Who moved the bytes, as the guest sees it."""

    GUEST_CPU = "guest-cpu"
    DEVICE = "device"


class Kind(StrEnum):
    """How bytes got from one place to another; a handover moves ownership and no bytes."""

    COPY = "copy"
    DMA_READ = "dma-read"
    DMA_WRITE = "dma-write"
    HANDOVER = "handover"


class Certainty(StrEnum):
    """Whether a record shows the movement itself, or records around it."""

    OBSERVED = "observed"
    DERIVED = "derived"


class Place:
    """Where bytes of one message lie; grows while the walk finds out more about it.

    `extents` are (physical address, size), in the order of the message's bytes,
    empty where the physical address is not known.
    """

    def __init__(
        self,
        *,
        number: int,
        guest: str,
        kind: PlaceKind,
        region: str,
        virtual: int,
        size: int,
        message: int,
        offset: int,
        extents: Sequence[tuple[int, int]] = (),
        born: int = 0,
        pid: int = 0,
        evidence: Sequence[str] = (),
    ) -> None:
        self.id = number
        self.guest = guest
        self.kind = kind
        self.region = region
        self.virtual = virtual
        self.size = size
        self.message = message
        self.offset = offset
        self.extents = list(extents)
        self.born = born  # TSC of the record that made it, 0: it was there from the start
        self.pid = pid
        self.evidence = list(evidence)
        self.overwritten = False  # a later copy or device write covered some of it
        self.verified_by: list[str] = []

    @property
    def physical(self) -> int:
        return self.extents[0][0] if self.extents else 0

    @property
    def end(self) -> int:
        """The offset in the message at which the place ends."""
        return self.offset + self.size

    def at(self, offset: int) -> int:
        """Return the virtual address of the message's byte `offset`."""
        return self.virtual + offset - self.offset if self.virtual else 0

    @property
    def verified(self) -> bool:
        return bool(self.verified_by)


class Movement:
    """Bytes of one message that went from one place to another, once."""

    def __init__(
        self,
        *,
        guest: str,
        mover: Mover,
        kind: Kind,
        function: str,
        instruction: str,
        caller: str,
        source: Place,
        target: Place,
        message: int,
        offset: int,
        size: int,
        payload_size: int,
        certainty: Certainty,
        tsc: int,
        evidence: list[str],
        confirmed_by: set[str],
    ) -> None:
        self.guest = guest
        self.mover = mover
        self.kind = kind
        self.function = function
        self.instruction = instruction
        self.caller = caller
        self.source = source
        self.target = target
        self.message = message
        self.offset = offset  # of the first byte moved, in the message
        self.size = size  # bytes moved, headers included
        self.payload_size = payload_size  # of them, the message's
        self.certainty = certainty
        self.tsc = tsc  # of the guest; orders the movements of one guest
        self.evidence = evidence
        self.confirmed_by = confirmed_by


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Bytes that turned up, or should have, without a movement that brought them."""

    guest: str
    message: int | None
    between: tuple[str, str]
    bytes: int
    why: str


class Sighting(NamedTuple):
    """An skb seen at a hook while it held bytes of a message.

    A tuple, and the ledger's own entry as well: there are six of each message.
    """

    side: str  # sender or receiver
    message: int
    guest: str
    at: str
    skb: int
    head: int
    data: int
    len: int
    data_len: int
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unexplained:
    """Message bytes that a census found where no movement put them."""

    guest: str
    message: int
    physical: int
    offset: int
    size: int
    evidence: str
    page: str = ""  # what the kernel used the page for when it was found


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Two witnesses that say different things, or an invariant that does not hold."""

    what: str  # content, descriptor, frame, order, clock, digest, bytes
    guest: str
    message: int | None
    text: str
    evidence: tuple[str, ...]


class Delivered(NamedTuple):
    """Bytes that arrived in the receiver's user buffer, and what they went through."""

    message: int
    offset: int
    size: int
    copies: int
    reads: int
    writes: int
    handovers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """Everything the walk over one run found."""

    places: tuple[Place, ...]
    movements: tuple[Movement, ...]  # in causal order
    sightings: tuple[Sighting, ...]
    delivered: tuple[Delivered, ...]
    gaps: tuple[Gap, ...]
    disagreements: tuple[Disagreement, ...]
    unexplained: tuple[Unexplained, ...]
    notes: tuple[str, ...]
    most: tuple[tuple[int, tuple[int, int, int, int]], ...]  # message -> counts furthest reached
