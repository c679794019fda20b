"""Addresses in records to extents of one guest's memory."""

from __future__ import annotations

from lab.correlate.board import Board
from lab.correlate.holdings import KERNEL, PHYSICAL, Extent, Holdings
from lab.correlate.inputs import GuestInputs
from lab.rundir import Ready


class GuestMap:
    """One guest's memory as its records and workloads describe it."""

    def __init__(self, guest: GuestInputs, board: Board) -> None:
        self.guest = guest
        self.board = board
        self.holdings = Holdings()
        self.records = guest.records
        self._direct_map = guest.direct_map
        self._ready = {work.ready.pid: work.ready for work in reversed(guest.workloads)}

    def kernel(self, virtual: int, size: int, physical: int = 0) -> list[Extent]:
        """Return the extent of a kernel range; empty for address 0."""
        if not virtual or size <= 0:
            return []
        physical = physical or self.to_physical(virtual)
        if physical:
            return [Extent(PHYSICAL, physical, size, 0)]
        return [Extent(KERNEL, virtual, size, 0)]

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
            return [Extent(f"user {pid}", virtual, size, 0)]
        out: list[Extent] = []
        inside = min(size, ready.buffer.virtual + ready.buffer.size - virtual)
        for start, physical, length in ready.buffer.extents(virtual, inside):
            if physical is None:
                out.append(Extent(f"user {pid}", start, length, start - virtual))
            else:
                out.append(Extent(PHYSICAL, physical, length, start - virtual))
        if inside < size:
            out.append(Extent(f"user {pid}", virtual + inside, size - inside, inside))
        return out

    def buffer_at(self, pid: int, virtual: int) -> Ready | None:
        """Return the workload whose buffer a user address lies in."""
        ready = self._ready.get(pid)
        if ready is None:
            return None
        return ready if 0 <= virtual - ready.buffer.virtual < ready.buffer.size else None
