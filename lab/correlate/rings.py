"""What the descriptor tables in guest RAM say about one physical range.

Behind an IOMMU a descriptor holds an address of the device.  What that stands for the IOMMU's
tables say, as far as they mapped it when a ring was read, the records of the DMA API, and in the
access log what was stored in the tables; where none does, it is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lab.correlate.hooks import DMA_MAP, DMA_UNMAP
from lab.correlate.inputs import GuestInputs
from lab.record import Record
from lab.rundir import Descriptor, Queue, RingGate

ARMED = "armed"  # the gate before anything was sent
PAGE_BITS = 12
MOST_LENGTH = 1 << 20  # bytes of one descriptor that are looked at; the largest is 64 KiB
INDEXES = 1 << 16  # ring indexes wrap here


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A descriptor, with the gate and the queue it was read at."""

    guest: str
    gate: str
    queue: Queue
    descriptor: Descriptor
    physical: int | None  # where its buffer begins; None where nothing says it
    used: int | None  # bytes the device says it wrote; None where no gate shows it used
    because: tuple[str, ...] = ()  # what says where it begins, if not the rings

    @property
    def evidence(self) -> str:
        return f"{self.guest}/rings.json#{self.gate}/{self.queue.kind}/{self.descriptor.id}"


def device_address(record: Record) -> int | None:
    """Return the address its device has of the memory a record names, where the record says it."""
    return record.aux if record.hook in (DMA_MAP, DMA_UNMAP) and record.aux else None


def named(record: Record) -> str:
    """Name a record's memory: by its physical address, and the device's where that differs."""
    device = device_address(record)
    other = "" if device in (None, record.src_phys) else f" (device address 0x{device:x})"
    return f"0x{record.src_phys:x}{other}"


class RingWitness:
    """Looks descriptors up in one guest's rings.json."""

    def __init__(self, guest: GuestInputs) -> None:
        self.guest = guest.name
        self.rings = guest.rings
        self.translated = guest.rings is not None and any(
            queue.translated for queue in guest.rings.queues
        )
        self._mappings = guest.mappings if self.translated else ()
        self._named: set[tuple[str, int, int]] = set()
        self._pages: dict[tuple[str, bool], dict[int, list[Found]]] = {}

    @property
    def present(self) -> bool:
        return self.rings is not None and bool(self.rings.queues)

    def posted(self, kind: str) -> int:
        """Return how many buffers the device had, at the first gate, before it took any more.

        A driver fills a queue up again only when it runs low: they are seldom as many as
        the queue has room for.
        """
        if self.rings is None:
            return 0
        first = [next(iter(queue.gates), None) for queue in self.rings.kind(kind)]
        return min(
            ((gate.avail_idx - gate.used_idx) % INDEXES for gate in first if gate is not None),
            default=0,
        )

    def covering(
        self, kind: str, physical: int, size: int, *, device: int | None = None
    ) -> Found | None:
        """Return a descriptor that covers a range, one shown as used rather than another.

        Behind an IOMMU by the address that the device has of the range, if that is known; then
        its tables must not say that it stood for other memory.
        """
        by_device = self.translated and device is not None
        wanted = device if by_device and device is not None else physical
        fits: list[Found] = []
        for found in self._index(kind, by_device=by_device).get(wanted >> PAGE_BITS, []):
            start = found.descriptor.address if by_device else found.physical
            if start is None or not start <= wanted <= start + found.descriptor.length - size:
                continue
            if by_device and found.physical not in (None, physical - (wanted - start)):
                continue  # the address was given to other memory by then
            fits.append(found)
        if not fits:
            return None
        # Memory is given again: then rather what is of this size, and was not named yet.
        best = min(
            fits,
            key=lambda one: (
                one.used is None, one.descriptor.length != size, self.is_named(one)
            ),
        )  # fmt: skip
        self._named.add(_key(best))
        return best

    def is_named(self, found: Found) -> bool:
        """Tell whether a descriptor was already said to cover some range."""
        return _key(found) in self._named

    def sent(self) -> list[Found]:
        """Return the descriptors a device may have read from, each address once.

        Behind an IOMMU once for each piece of memory that its address is known to have stood for.
        """
        seen: dict[tuple[int, int], Found] = {}
        for found in self._all("tx"):
            descriptor = found.descriptor
            key = descriptor.address, descriptor.length
            if descriptor.flags & Descriptor.WRITE or not descriptor.length:
                continue
            seen.setdefault(key, found)
        return [
            one
            for found in seen.values()
            for one in ([found] if found.physical is not None else self._by_records(found))
        ]

    def unknown(self, kind: str) -> list[Found]:
        """Return the descriptors of whose addresses nothing says what memory they stand for."""
        out = {
            found.descriptor.address: found
            for found in self._all(kind)
            if found.descriptor.length and found.physical is None and not self._by_records(found)
        }
        return list(out.values())

    def silence(self, kind: str) -> str:
        """Say why the rings do not help either."""
        if not self.present:
            return "the rings were not read"
        unknown = self.unknown(kind) if self.translated else []
        if not unknown and self.indirect(kind):
            return "the rings point at tables that are freed by then"
        if not unknown:
            return "the rings show none"
        first = unknown[0]
        return (
            f"of 0x{first.descriptor.address:x}, the device's address in {first.evidence}, "
            f"no record and no table of the IOMMU says what memory it is"
        )

    def indirect(self, kind: str) -> bool:
        """Tell whether a descriptor points at a table the rings do not show."""
        return any(
            descriptor.flags & Descriptor.INDIRECT for _, _, descriptor in self._descriptors(kind)
        )

    def filled(self) -> list[Found]:
        """Return the buffers the device filled since the first gate, in order.

        The addresses are those of the gate before anything arrived: the driver gives
        a used descriptor's number to a new buffer at once.  E1000e's device writes the length
        into the descriptor itself, so with the new buffer that is gone: `used` is None.
        """
        out: list[Found] = []
        if self.rings is None:
            return out
        for queue in self.rings.kind("rx"):
            first = next((gate for gate in queue.gates if gate.name == ARMED), None)
            if first is None:
                continue
            posted = {descriptor.id: descriptor for descriptor in first.descriptors}
            for number, length in _since(queue, first) if queue.offered else _passed(queue, first):
                descriptor = posted.pop(number, None)
                if descriptor is not None:
                    found = self._found(queue, first, descriptor)
                    out.append(replace(found, used=length))
        return out

    def after(self, physical: int, count: int) -> list[Found]:
        """Return the `count` buffers the device filled behind the one at an address."""
        filled = self.filled()
        for number, found in enumerate(filled):
            if found.physical == physical:
                return filled[number + 1 : number + 1 + count]
        return []

    # --- Descriptors ------------------------------------------------------------------------

    def _index(self, kind: str, *, by_device: bool) -> dict[int, list[Found]]:
        # By page: a queue is gone through once, not once for every frame.
        if (kind, by_device) not in self._pages:
            pages: dict[int, list[Found]] = {}
            for found in self._all(kind):
                start = found.descriptor.address if by_device else found.physical
                if start is None or not _fits(kind, found.descriptor):
                    continue
                last = start + min(found.descriptor.length, MOST_LENGTH)
                for page in range(start >> PAGE_BITS, (last >> PAGE_BITS) + 1):
                    pages.setdefault(page, []).append(found)
            self._pages[kind, by_device] = pages
        return self._pages[kind, by_device]

    def _all(self, kind: str) -> Iterator[Found]:
        for queue, gate, descriptor in self._descriptors(kind):
            if not descriptor.flags & Descriptor.INDIRECT:
                yield self._found(queue, gate, descriptor)

    def _found(self, queue: Queue, gate: RingGate, descriptor: Descriptor) -> Found:
        address = descriptor.address
        return Found(
            guest=self.guest,
            gate=gate.name,
            queue=queue,
            descriptor=descriptor,
            physical=gate.mapped(address) if queue.translated else address,
            used=_used(queue, descriptor.id),
        )

    def _by_records(self, found: Found) -> list[Found]:
        # One address may have stood for one piece of memory after the other.
        address = found.descriptor.address
        known = {
            physical + address - device: evidence
            for device, physical, size, evidence in self._mappings
            if device <= address < device + size
        }
        return [
            replace(found, physical=physical, because=(evidence,))
            for physical, evidence in known.items()
        ]

    def _descriptors(self, kind: str) -> Iterator[tuple[Queue, RingGate, Descriptor]]:
        if self.rings is None:
            return
        for queue in self.rings.kind(kind):
            for gate in queue.gates:
                for descriptor in gate.descriptors:
                    yield queue, gate, descriptor


def _key(found: Found) -> tuple[str, int, int]:
    return found.queue.kind, found.descriptor.id, found.descriptor.address


def _fits(kind: str, descriptor: Descriptor) -> bool:
    writable = bool(descriptor.flags & Descriptor.WRITE)
    return writable if kind == "rx" else not writable


def _used(queue: Queue, number: int) -> int | None:
    for gate in queue.gates:
        for used, length in gate.used:
            if used == number:
                return length
    return None


def _passed(queue: Queue, first: RingGate) -> list[tuple[int, int | None]]:
    # A device without a ring of used ones goes through its descriptors in their order.
    if not queue.size:
        return []
    most = max((gate.used_idx - first.used_idx) % INDEXES for gate in queue.gates)
    if most > queue.size:
        return []
    lengths = {number: length for gate in queue.gates for number, length in gate.used}
    numbers = [(first.used_idx + at) % queue.size for at in range(most)]
    return [(number, lengths.get(number)) for number in numbers]


def _since(queue: Queue, first: RingGate) -> list[tuple[int, int]]:
    # The used entries of the gate that shows the most of them, without those before `first`.
    best: list[tuple[int, int]] = []
    for gate in queue.gates:
        new = (gate.used_idx - first.used_idx) % INDEXES
        if gate is not first and new <= queue.size:
            entries = list(gate.used)[-new:] if new else []
            if len(entries) > len(best):
                best = entries
    return best
