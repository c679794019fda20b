"""Addresses in records to extents of one guest's memory."""

from __future__ import annotations

from collections import Counter

from lab.correlate.board import Board
from lab.correlate.holdings import KERNEL, PHYSICAL, Extent, Holdings
from lab.correlate.inputs import RECEIVER, SENDER, GuestInputs
from lab.rundir import Ready, Workload


class GuestMap:
    """One guest's memory as its records and workloads describe it."""

    def __init__(self, guest: GuestInputs, board: Board) -> None:
        self.guest = guest
        self.board = board
        self.holdings = Holdings()
        self.records = guest.records
        self._direct_map = self._find_direct_map()

    def kernel(self, virtual: int, size: int, physical: int = 0) -> list[Extent]:
        """Return the extent of a kernel range; empty for address 0."""
        if not virtual or size <= 0:
            return []
        physical = physical or self.to_physical(virtual)
        if physical:
            return [Extent(space=PHYSICAL, start=physical, size=size, at=0)]
        return [Extent(space=KERNEL, start=virtual, size=size, at=0)]

    def to_physical(self, virtual: int) -> int:
        """Return the physical address of a direct map address, 0 where that is unknown."""
        if self._direct_map is None or virtual < self._direct_map:
            return 0
        physical = virtual - self._direct_map
        return physical if physical < 1 << 46 else 0

    def to_virtual(self, physical: int) -> int:
        """Return the direct map address of a physical one, 0 where that is unknown."""
        return 0 if self._direct_map is None else self._direct_map + physical

    def user(self, pid: int, virtual: int, size: int) -> list[Extent]:
        """Return the extents of a user range: pages of a workload's buffer where it lies in one."""
        if not virtual or size <= 0:
            return []
        ready = self.buffer_at(pid, virtual)
        if ready is None:
            return [Extent(space=f"user {pid}", start=virtual, size=size, at=0)]
        out: list[Extent] = []
        inside = min(size, ready.buffer.virtual + ready.buffer.size - virtual)
        for start, physical, length in ready.buffer.extents(virtual, inside):
            space = PHYSICAL if physical is not None else f"user {pid}"
            address = start if physical is None else physical
            out.append(Extent(space=space, start=address, size=length, at=start - virtual))
        if inside < size:
            rest = Extent(
                space=f"user {pid}", start=virtual + inside, size=size - inside, at=inside
            )
            out.append(rest)
        return out

    def workload(self, pid: int) -> Workload | None:
        return next((work for work in self.guest.workloads if work.ready.pid == pid), None)

    def buffer_at(self, pid: int, virtual: int, role: str | None = None) -> Ready | None:
        """Return the workload whose buffer a user address lies in."""
        work = self.workload(pid)
        if work is None or (role is not None and work.role != role):
            return None
        buffer = work.ready.buffer
        return work.ready if 0 <= virtual - buffer.virtual < buffer.size else None

    def sends_from(self, pid: int, virtual: int) -> Ready | None:
        return self.buffer_at(pid, virtual, SENDER)

    def receives_into(self, pid: int, virtual: int) -> Ready | None:
        return self.buffer_at(pid, virtual, RECEIVER)

    def _find_direct_map(self) -> int | None:
        # The records carry both addresses of what they saw; their difference is the
        # start of the direct map (its place is random: never a constant of ours).
        seen: Counter[int] = Counter()
        for record in self.records:
            for virtual, physical in (
                (record.src, record.src_phys),
                (record.dst, record.dst_phys),
            ):
                if virtual and physical:
                    seen[virtual - physical] += 1
        return seen.most_common(1)[0][0] if seen else None
