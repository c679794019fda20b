"""Where the walk writes down what it finds, in the order it finds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lab.correlate.holdings import Extent, Held, Way
from lab.correlate.inputs import RECEIVER, SENDER, Inputs, blame
from lab.correlate.types import (
    Delivered,
    Disagreement,
    Gap,
    Movement,
    Place,
    PlaceKind,
    Sighting,
)
from lab.rundir import Ready


class Board:
    """All places, movements, gaps and disagreements of one run."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.places: list[Place] = []
        self.orphans: list[Place] = []
        self.movements: list[Movement] = []
        self.sightings: list[Sighting] = []
        self.seen_of: dict[int, list[Sighting]] = defaultdict(list)  # by message
        self.delivered: list[Delivered] = []
        self.gaps: list[Gap] = []
        self.dropped: list[str] = []  # frames in no buffer whose bytes another frame brought
        self.disagreements: list[Disagreement] = []
        self.of_message: dict[int, list[Movement]] = defaultdict(list)
        self.made_by: dict[int, Movement] = {}  # place id -> the movement that made it
        self.most: dict[int, tuple[int, int, int, int]] = defaultdict(lambda: (0, 0, 0, 0))
        self.sender = inputs.with_role(SENDER)
        self.receiver = inputs.with_role(RECEIVER)
        self._starts: dict[int, Place] = {}

    @property
    def bounces(self) -> bool:
        """Whether nothing that a device reads or writes is the driver's own memory."""
        return "swiotlb" in dict(self.inputs.manifest.options)

    def place(
        self,
        guest: str,
        kind: PlaceKind,
        *,
        held: tuple[int, int, int],
        virtual: int,
        extents: Sequence[tuple[int, int]] = (),
        region: str = "",
        born: int = 0,
        pid: int = 0,
        evidence: Sequence[str] = (),
    ) -> Place:
        """Add a place that holds `held`: message, offset in it, size."""
        message, offset, size = held
        made = Place(
            number=len(self.places),
            guest=guest,
            kind=kind,
            region=region,
            virtual=virtual,
            size=size,
            message=message,
            offset=offset,
            extents=extents,
            born=born,
            pid=pid,
            evidence=evidence,
        )
        self.places.append(made)
        return made

    def start(self, message: int) -> Place:
        """Return the place of a message in the sender's user buffer, where it begins."""
        if message not in self._starts:
            guest = self.sender
            work = None if guest is None else guest.role(SENDER)
            ready = None if work is None else work.ready
            name = SENDER if guest is None else guest.name
            size = self.inputs.manifest.size
            virtual = 0 if ready is None else ready.slot(message)
            self._starts[message] = self.place(
                name,
                PlaceKind.USER,
                held=(message, 0, size),
                virtual=virtual,
                extents=[] if ready is None else physical(ready, virtual, size),
                region="" if ready is None else f"user {ready.buffer.region}".strip(),
                pid=0 if ready is None else ready.pid,
                evidence=[f"{name}/workload.json#{SENDER}/ready"],
            )
        return self._starts[message]

    def sight(self, seen: Sighting) -> None:
        """Add an skb that was seen."""
        self.sightings.append(seen)
        self.seen_of[seen.message].append(seen)

    def move(self, movement: Movement, held: Held) -> None:
        """Add a movement that left its target holding `held`."""
        self.movements.append(movement)
        self.of_message[movement.message].append(movement)
        if movement.target is not movement.source:
            self.made_by[movement.target.id] = movement
        self.reached(held)

    def reached(self, held: Held) -> None:
        copies, reads, writes, handovers = self.most[held.message]
        way = held.way
        if (
            way.copies > copies
            or way.reads > reads
            or way.writes > writes
            or way.handovers > handovers
        ):
            self.most[held.message] = (
                max(copies, way.copies),
                max(reads, way.reads),
                max(writes, way.writes),
                max(handovers, way.handovers),
            )

    def last(self, message: int, offset: int) -> Place:
        """Return the place a message's byte was last known to be."""
        for movement in reversed(self.of_message[message]):
            target = movement.target
            if target.offset <= offset < target.end:
                return target
        return self.start(message)

    def orphan(self, found: Place, why: str | None = None, *, where: str = "") -> Held:
        """Take a place in that nothing is known to have brought bytes to, as a gap.

        The walk goes on from it, so that the report shows what lies behind the gap;
        the gap itself keeps the ledger incomplete.  `where` is the guest of a place that
        is in none.
        """
        before = self.last(found.message, found.offset)
        guest = next((g for g in self.inputs.guests if g.name == found.guest), None)
        if why is None:
            leaves = before.kind is PlaceKind.USER
            direction = "out of user memory" if leaves else "within the kernel"
            why = blame(guest or self.sender, direction)
        self.gaps.append(
            Gap(
                guest=where or found.guest,
                message=found.message,
                between=(label(before), label(found)),
                bytes=found.size,
                why=why,
            )
        )
        self.orphans.append(found)
        way = Way(*self.most[found.message])
        return Held(0, found.size, found.message, found.offset, found, way)

    def disagree(
        self, what: str, guest: str, message: int | None, text: str, evidence: Sequence[str]
    ) -> None:
        self.disagreements.append(
            Disagreement(
                what=what, guest=guest, message=message, text=text, evidence=tuple(evidence)
            )
        )


def physical(ready: Ready, virtual: int, size: int) -> list[tuple[int, int]]:
    """Return the physical runs under a user range, empty unless every page is known."""
    runs = ready.buffer.extents(virtual, size)
    if any(run[1] is None for run in runs):
        return []
    return [(run[1], run[2]) for run in runs if run[1] is not None]


def plain(extents: Sequence[Extent], space: str) -> list[tuple[int, int]]:
    """Return (address, size) of extents, empty unless all lie in `space`."""
    runs = [(extent.start, extent.size) for extent in extents if extent.space == space]
    return runs if len(runs) == len(extents) else []


def label(place: Place) -> str:
    """Name a place for a person: what it is, where, and its address."""
    names = {
        PlaceKind.USER: "user buffer",
        PlaceKind.SKB_LINEAR: "skb linear area",
        PlaceKind.SKB_FRAG: "skb frag",
        PlaceKind.RX_BUFFER: "RX buffer",
        PlaceKind.BOUNCE: "bounce buffer",
        PlaceKind.WIRE: "wire",
        PlaceKind.KERNEL: "kernel memory",
    }
    if place.kind is PlaceKind.WIRE:
        return f"the wire ({place.evidence[0]})" if place.evidence else "the wire"
    where = f"0x{place.virtual:x}" if place.virtual else "at an address not known"
    return f"{place.guest} {names[place.kind]} {where}"
