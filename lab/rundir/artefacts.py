"""What the files of a run directory say, as frozen values."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from lab.rundir import conditions
from lab.rundir.fields import Json

PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class UserBuffer:
    """The buffer a workload sends from or receives into, with the pages under it."""

    virtual: int
    size: int
    region: str
    mapping: str
    pages: tuple[tuple[int, int], ...]  # virtual and physical address of each page

    @cached_property
    def _physical(self) -> dict[int, int]:
        # By page number: addresses of pages all have the same hash, as far as a small table looks.
        return {virtual // PAGE: physical for virtual, physical in self.pages}

    @cached_property
    def _known(self) -> list[int]:
        return sorted(self._physical)

    def extents(self, virtual: int, size: int) -> list[tuple[int, int | None, int]]:
        """Return (virtual, physical, size) of each run of pages under a range.

        The physical address is None where no page is known.
        """
        known = self._physical
        into = virtual % PAGE
        if into + size <= PAGE:  # most often
            page = known.get(virtual // PAGE)
            return [(virtual, None if page is None else page + into, size)] if size > 0 else []
        out: list[tuple[int, int | None, int]] = []
        end = virtual + size
        while virtual < end:
            into = virtual % PAGE
            number = virtual // PAGE
            page = known.get(number)
            physical = None if page is None else page + into
            behind = number + 1 if page is not None else self._next_known(number, end)
            length = min(end, behind * PAGE) - virtual
            if out and _adjoins(out[-1], physical):
                out[-1] = (out[-1][0], out[-1][1], out[-1][2] + length)
            else:
                out.append((virtual, physical, length))
            virtual += length
        return out

    def _next_known(self, number: int, end: int) -> int:
        # Of pages that are not known there may be as many as a file says.
        at = bisect_left(self._known, number)
        return self._known[at] if at < len(self._known) else end // PAGE + 1


def _adjoins(run: tuple[int, int | None, int], physical: int | None) -> bool:
    if run[1] is None or physical is None:
        return run[1] is None and physical is None
    return run[1] + run[2] == physical


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """What a workload said before anything moved."""

    role: str
    pid: int
    fd: int
    protocol: str
    local: str
    peer: str
    size: int
    count: int
    slots: int
    slot_size: int
    buffer: UserBuffer

    def slot(self, index: int) -> int:
        """Return the virtual address message `index` is sent from or received into."""
        return self.buffer.virtual + (index % max(self.slots, 1)) * self.slot_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchanged:
    """One message as `sent` or `received` reports it."""

    index: int
    slot: int
    size: int
    returned: int
    errno: int
    peer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One message that a workload still holds at the end, with its digest."""

    index: int
    slot: int
    digest: str
    hex: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Everything one workload reported; None where it never came that far."""

    role: str
    ready: Ready
    messages: tuple[Exchanged, ...]  # of `sent` or `received`, the first 1024
    total: int | None  # messages sent or received in all
    bytes: int
    failed: int
    timed_out: bool
    held: tuple[Held, ...]  # as many as fit in a line
    held_first: int  # the messages held at the end are `held_first` and the next `held_total`
    held_total: int
    held_digest: str  # of all of these, one after the other; "" where it was not said
    done: bool


class Hit(NamedTuple):
    """A run of message bytes found in guest RAM; the lowest where several messages have them.

    A tuple, because of ten thousand messages there are fifty thousand.
    """

    physical: int
    message: int
    offset: int
    size: int
    page: str = ""  # what the kernel used its first page for, such as "slab kmalloc-512"


@dataclass(frozen=True, kw_only=True, slots=True)
class CensusGate:
    """What one search of a guest's RAM found."""

    name: str
    hits: tuple[Hit, ...]
    not_listed: int  # hits beyond what one census lists
    scanned_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """The message searched in a guest's RAM at gates."""

    needles: str
    gates: tuple[CensusGate, ...]

    @property
    def absent(self) -> str | None:
        """Say why there was no search; None where there was one."""
        if self.needles.startswith("absent"):
            return self.needles.partition(":")[2].strip() or "not taken"
        return None if self.gates else "no gate was reached"


INDEXES = 1 << 16  # ring indexes wrap here


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """One entry of a descriptor table; `address` is the device's, behind an IOMMU no physical."""

    id: int
    address: int
    length: int
    flags: int
    next: int

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RingGate:
    """One virtqueue at one moment."""

    name: str
    avail_idx: int
    used_idx: int
    descriptors: tuple[Descriptor, ...]
    used: tuple[tuple[int, int], ...]  # descriptor id and length, as the used ring says
    # Device address, physical address, size: what the IOMMU's tables mapped then.
    behind: tuple[tuple[int, int, int], ...] = ()
    # Device page, and where the entry is that mapped it before.
    entries: tuple[tuple[int, int], ...] = ()
    # Of e1000e: descriptor id and the status word in it, where that is not 0; virtio has none.
    status: tuple[tuple[int, int], ...] = ()
    has_status: bool = False
    given: tuple[int, ...] | None = None  # heads of what the device has; None: not recorded
    at_least: bool = False  # the used index may be too low by whole rounds
    # Frames that had passed the backend, before and after the ring was read.
    counted: tuple[int, ...] = ()

    @property
    def frames(self) -> int | None:
        """Return how many frames had passed by then; None where some did meanwhile, or unknown."""
        return self.counted[0] if len(set(self.counted)) == 1 else None

    def posted(self) -> frozenset[int] | None:
        """Return the descriptors that are the device's, None where the gate does not tell.

        A descriptor keeps its address and length when the device has used it: having them says
        nothing.  Without a record all or none are known by the indexes, and no others.
        """
        if self.given is None:
            count = (self.avail_idx - self.used_idx) % INDEXES
            ids = frozenset(one.id for one in self.descriptors)
            return ids if count and count == len(ids) else None if count else frozenset()
        known = {one.id: one for one in self.descriptors}
        out: set[int] = set()
        for head in self.given:
            at: int | None = head
            while at is not None and at not in out:
                out.add(at)
                one = known.get(at)
                at = one.next if one is not None and one.flags & Descriptor.NEXT else None
        return frozenset(out)

    def mapped(self, address: int) -> int | None:
        """Return the physical address that a device's address stood for, None for nothing."""
        at = bisect_right(self.behind, address, key=itemgetter(0)) - 1
        if at < 0:
            return None
        device, physical, size = self.behind[at]
        return physical + address - device if address < device + size else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """One virtqueue, at every gate it was read at."""

    kind: str  # rx or tx
    index: int
    size: int
    gates: tuple[RingGate, ...]
    translated: bool = False  # the device is behind an IOMMU
    at: int = 0  # where the device has its descriptor table
    offered: int = 0  # and its available ring; 0: it has none, or nothing says where


@dataclass(frozen=True, kw_only=True, slots=True)
class Rings:
    """The virtqueues of the lab link's device, read from guest RAM at gates."""

    device: str
    queues: tuple[Queue, ...]

    def kind(self, kind: str) -> tuple[Queue, ...]:
        return tuple(queue for queue in self.queues if queue.kind == kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldAt:
    """When, on the host's clock, sender and receiver were held at a gate."""

    gate: str
    before_ns: int  # what they said before, they had done by then
    after_ns: int  # what they were let go to do, they did later


@dataclass(frozen=True, kw_only=True, slots=True)
class TscSample:
    """One ping: the guest read its TSC between two readings of the host's clock."""

    before_ns: int
    tsc: int
    after_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What ran, with what, on what; `values` is the whole of it.

    `over` to `payload` are a message's; "", 0 and None where the experiment sent none.
    """

    experiment: str
    playbook: str
    over: str
    family: str
    protocol: str
    connected: bool
    size: int
    count: int
    seed: int | None
    payload: bytes | None
    accelerator: str
    accelerator_why: str
    device: str
    backend: str
    offloads: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]  # of the link's device: iommu, swiotlb, mrg_rxbuf
    kernel: str
    probe_kind: str
    without: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]  # guest -> ranges of its BPF ring, "0x1000-0x2000 …"
    witnesses: tuple[tuple[str, str], ...]
    guests: tuple[str, ...]
    drifted: tuple[str, ...]
    values: Mapping[str, Json]

    @property
    def link(self) -> str:
        """What carried the messages, for a person."""
        if self.over != "link":
            return "lo"
        options = ", ".join(f"{name} {value}" for name, value in self.options)
        settings = "".join(f", {name} {value}" for name, value in self.settings)
        return f"{self.device}{' with ' if options else ''}{options} over {self.backend}{settings}"

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """MTU, copybreak, delay and loss of the link, those that are not the usual ones."""
        link = self.values.get("link")
        if self.over != "link" or not isinstance(link, dict):
            return ()
        return tuple(conditions.set_otherwise(link, device=self.device).items())

    @property
    def transport(self) -> str:
        return transport(self.protocol, family=self.family, connected=self.connected)


def transport(protocol: str, *, family: str, connected: bool) -> str:
    """Say how a message goes, less what goes without saying: "connected udp on IPv6"."""
    first = "connected " if connected and protocol == "udp" else ""
    return f"{first}{protocol}{' on IPv6' if family == 'ipv6' else ''}"
