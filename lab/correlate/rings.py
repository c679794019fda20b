"""What the descriptor tables in guest RAM say about one physical range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.rundir import Descriptor, Queue, RingGate, Rings

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
    used: int | None  # bytes the device says it wrote; None where no gate shows it used

    @property
    def evidence(self) -> str:
        return f"{self.guest}/rings.json#{self.gate}/{self.queue.kind}/{self.descriptor.id}"


class RingWitness:
    """Looks descriptors up in one guest's rings.json."""

    def __init__(self, guest: str, rings: Rings | None) -> None:
        self.guest = guest
        self.rings = rings
        self._pages: dict[str, dict[int, list[Found]]] = {}

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

    def covering(self, kind: str, physical: int, size: int) -> Found | None:
        """Return a descriptor that covers a range, one shown as used rather than another."""
        best: Found | None = None
        for found in self._index(kind).get(physical >> PAGE_BITS, []):
            descriptor = found.descriptor
            end = descriptor.address + descriptor.length
            if descriptor.address <= physical and physical + size <= end:
                best = found
                if found.used is not None:
                    break
        return best

    def _index(self, kind: str) -> dict[int, list[Found]]:
        # By page: a queue is gone through once, not once for every frame.
        if kind not in self._pages:
            pages: dict[int, list[Found]] = {}
            for queue, gate, descriptor in self._descriptors(kind):
                if descriptor.flags & Descriptor.INDIRECT or not self._fits(kind, descriptor):
                    continue
                found = Found(
                    guest=self.guest,
                    gate=gate.name,
                    queue=queue,
                    descriptor=descriptor,
                    used=_used(queue, descriptor.id),
                )
                last = descriptor.address + min(descriptor.length, MOST_LENGTH)
                for page in range(descriptor.address >> PAGE_BITS, (last >> PAGE_BITS) + 1):
                    pages.setdefault(page, []).append(found)
            self._pages[kind] = pages
        return self._pages[kind]

    def sent(self) -> list[Found]:
        """Return the descriptors a device may have read from, each address once."""
        seen: dict[tuple[int, int], Found] = {}
        for queue, gate, descriptor in self._descriptors("tx"):
            if descriptor.flags & (Descriptor.INDIRECT | Descriptor.WRITE):
                continue
            key = descriptor.address, descriptor.length
            if descriptor.length and key not in seen:
                seen[key] = Found(
                    guest=self.guest,
                    gate=gate.name,
                    queue=queue,
                    descriptor=descriptor,
                    used=_used(queue, descriptor.id),
                )
        return list(seen.values())

    def indirect(self, kind: str) -> bool:
        """Tell whether a descriptor points at a table the rings do not show."""
        return any(
            descriptor.flags & Descriptor.INDIRECT for _, _, descriptor in self._descriptors(kind)
        )

    def filled(self) -> list[Found]:
        """Return the buffers the device filled since the first gate, in order.

        The addresses are those of the gate before anything arrived: the driver gives
        a used descriptor's number to a new buffer at once.
        """
        out: list[Found] = []
        if self.rings is None:
            return out
        for queue in self.rings.kind("rx"):
            first = next((gate for gate in queue.gates if gate.name == ARMED), None)
            if first is None:
                continue
            posted = {descriptor.id: descriptor for descriptor in first.descriptors}
            for number, length in _since(queue, first):
                descriptor = posted.pop(number, None)
                if descriptor is not None:
                    out.append(
                        Found(
                            guest=self.guest,
                            gate=first.name,
                            queue=queue,
                            descriptor=descriptor,
                            used=length,
                        )
                    )
        return out

    def after(self, physical: int, count: int) -> list[Found]:
        """Return the `count` buffers the device filled behind the one at an address."""
        filled = self.filled()
        for number, found in enumerate(filled):
            if found.descriptor.address == physical:
                return filled[number + 1 : number + 1 + count]
        return []

    def _fits(self, kind: str, descriptor: Descriptor) -> bool:
        writable = bool(descriptor.flags & Descriptor.WRITE)
        return writable if kind == "rx" else not writable

    def _descriptors(self, kind: str) -> Iterator[tuple[Queue, RingGate, Descriptor]]:
        if self.rings is None:
            return
        for queue in self.rings.kind(kind):
            for gate in queue.gates:
                for descriptor in gate.descriptors:
                    yield queue, gate, descriptor


def _used(queue: Queue, number: int) -> int | None:
    for gate in queue.gates:
        for used, length in gate.used:
            if used == number:
                return length
    return None


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
