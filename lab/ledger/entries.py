"""The ledger: what a run proves, as frozen values, and its JSON.

Of what a message has many a run has a hundred thousand: those entries are named tuples, which
are made in a third of the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lab.correlate.types import Sighting
from lab.ledger import text
from lab.rundir import WORKLOAD

SCHEMA = 1
INTERRUPTED = "the run was interrupted and did not end"
LOG = "/access.bin"  # what ends the names of logs of accesses in `lost`
LACKING = re.compile(rf"(\S+/{re.escape(WORKLOAD)}) (?:is missing|has no \w+):")


class Extent(NamedTuple):
    """A physically contiguous run of a place."""

    physical: int
    size: int


class Place(NamedTuple):
    """Where bytes of a message lay; `offset` is the first one's in the message."""

    guest: str
    place: str
    region: str
    virtual: int
    physical: int
    extents: tuple[Extent, ...]
    offset: int
    size: int
    content_verified: bool
    evidence: tuple[str, ...]

    def at(self, offset: int) -> int:
        """Return the virtual address of the message's byte `offset`."""
        return self.virtual + offset - self.offset if self.virtual else 0


class Movement(NamedTuple):
    """Bytes that went from one place to another, once; places are numbers in `places`."""

    guest: str
    mover: str
    kind: str
    function: str
    instruction: str
    caller: str
    source: int
    target: int
    offset: int
    size: int
    payload_size: int
    certainty: str
    evidence: tuple[str, ...]
    confirmed_by: tuple[str, ...]


class Skb(NamedTuple):
    """The skbs of both sides; None: one side was not seen."""

    sender: tuple[Sighting, ...]
    receiver: tuple[Sighting, ...]
    same_object: bool | None
    same_head: bool | None


class Totals(NamedTuple):
    """How often each byte was moved on its way, however many calls that took.

    Where some of its bytes took another way than others, the counts are the larger ones
    and `least_…` the smallest.
    """

    guest_cpu_copies: int
    least_guest_cpu_copies: int
    device_reads: int
    least_device_reads: int
    device_writes: int
    least_device_writes: int
    handovers: int
    least_handovers: int

    @property
    def even(self) -> bool:
        """Tell whether all bytes were copied as often."""
        return self.guest_cpu_copies == self.least_guest_cpu_copies

    def spread(self, name: str) -> tuple[int, int]:
        """Return how often some byte and how often another was moved, the least and the most."""
        return getattr(self, f"least_{name}"), getattr(self, name)


class Message(NamedTuple):
    """One message's way from user buffer to user buffer."""

    id: int
    size: int
    protocol: str
    over: str
    complete: bool
    places: tuple[Place, ...]
    movements: tuple[Movement, ...]
    skb: Skb
    totals: Totals

    @property
    def sent_again(self) -> int:
        """Bytes that devices read besides those that reached the receiver: TCP's second tries."""
        reads = sum([one.payload_size for one in self.movements if one.kind == "dma-read"])
        return max(0, reads - self.totals.device_reads * self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Incomplete:
    """Why the ledger does not account for everything."""

    guest: str
    message: int | None
    between: tuple[str, ...]
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unexplained:
    """Message bytes in guest RAM that no movement put there."""

    guest: str
    message: int
    physical: int
    offset: int
    size: int
    evidence: str
    page: str  # what the kernel used the page for when it was found; "": nobody looked


@dataclass(frozen=True, kw_only=True, slots=True)
class Touch:
    """Message bytes that a CPU loaded and that were not copied on, by the access log.

    A "read" went nowhere: a checksum, a program that looks, a probe that notes them down.  A
    "spill" went with a register onto a kernel stack, and no further.
    """

    kind: str
    guest: str
    message: int
    function: str
    caller: str
    physical: int  # of the bytes read; where a spill put them
    offset: int
    size: int
    times: int  # accesses
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Two witnesses that say different things, or an invariant that does not hold."""

    what: str
    guest: str
    message: int | None
    text: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """What one run proves."""

    schema: int
    playbook: str
    complete: bool
    lost: Mapping[str, int]  # records
    messages_lost: tuple[int, ...]  # sent, and never taken by the receiver
    accelerator: Mapping[str, str]
    link: Mapping[str, object]
    witnesses: Mapping[str, str]
    messages: tuple[Message, ...]
    incomplete: tuple[Incomplete, ...]
    unexplained: tuple[Unexplained, ...]
    touches: tuple[Touch, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Complete, and no two witnesses disagree: anything else is exit code 6."""
        return self.complete and not self.disagreements

    @property
    def lacks(self) -> str:
        """Return the file without which it cannot be told where messages lay, "" where it is there.

        What is not in a ledger that lacks it was not looked for.
        """
        found = (LACKING.match(entry.why) for entry in self.incomplete)
        return next((one[1] for one in found if one), "")

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended the run before it was whole: of it nothing can be expected."""
        return any(entry.why == INTERRUPTED for entry in self.incomplete)

    @property
    def records_lost(self) -> int:
        """How many records of probes are missing: with one of them a ledger is incomplete."""
        return sum(lost for name, lost in self.lost.items() if not name.endswith(LOG))

    @property
    def accesses_lost(self) -> int:
        """How many accesses the logs lack; beside probes these decide nothing."""
        return sum(lost for name, lost in self.lost.items() if name.endswith(LOG))

    @property
    def searched(self) -> bool:
        """Whether RAM was searched: only then does "nothing unexplained" say anything."""
        return self.witnesses.get("census") == "present"

    def as_json(self) -> dict[str, object]:
        """Return the ledger as JSON values, addresses as hexadecimal text."""
        return text.values(self)

    def to_json(self) -> str:
        """Return ledger.json, the same text for the same run, byte for byte.

        A place, a movement or a sighting is one line, for people who look into it.
        """
        return "".join(self.pieces())

    def pieces(self) -> Iterator[str]:
        """Yield ledger.json a message at a time: of ten thousand the whole is 36 MB."""
        return text.pieces(self)
