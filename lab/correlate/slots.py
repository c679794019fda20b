"""The slots of the workloads' buffers: which message each holds, or is to hold."""

from __future__ import annotations

from lab.correlate.board import Board
from lab.correlate.holdings import Held, Way
from lab.correlate.memory_map import GuestMap
from lab.record import Record
from lab.rundir import Ready


class Slots:
    """Message `i` is sent from, and received into, slot `i % slots` of a buffer."""

    def __init__(self, memory: GuestMap, board: Board) -> None:
        self.memory = memory
        self.board = board
        self.identity = board.inputs.identity
        self._now: dict[int, int] = {}  # slot of the sender -> message it holds
        self._sent: dict[int, int] = {}  # message -> bytes copied out of its slot
        self._next: dict[int, int] = {}  # slot of the receiver -> message expected there
        for work in memory.guest.workloads:
            if work.role == "sender":
                for message in range(min(self.identity.count, work.ready.slots)):
                    self._fill(work.ready, message)

    def sends(self, ready: Ready, record: Record, size: int) -> None:
        """Before bytes are copied out of a slot: put there what it holds by now.

        A program fills its slot again for message i + slots once message i is gone; no
        record shows that, but the bytes do, and for messages that are alike the order.
        """
        if not ready.slot_size or not ready.slots:
            return
        slot, offset = divmod(record.user - ready.buffer.virtual, ready.slot_size)
        now = self._now.get(slot)
        if now is None:
            return
        then = now
        run = self.identity.starts(record.bytes[:size])
        if run is not None and run.message % ready.slots == slot:
            then = run.message
        elif offset == 0 and self._sent.get(now, 0) >= self.identity.size:
            then = now + ready.slots
        if then != now and then < self.identity.count:
            self._fill(ready, then)
            now = then
        self._sent[now] = self._sent.get(now, 0) + size

    def awaited(self, ready: Ready, record: Record, shown: bytes) -> tuple[int, int] | None:
        """Return message and offset of what is received, told by slot and order alone."""
        if not ready.slot_size or not ready.slots:
            return None
        slot, offset = divmod(record.user - ready.buffer.virtual, ready.slot_size)
        message = self._next.get(slot, slot)
        if message >= self.identity.count or offset >= self.identity.size:
            return None
        return (message, offset) if self.identity.agrees(shown, message, offset) else None

    def receives(self, ready: Ready, record: Record, held: Held) -> None:
        """Note what arrived in a slot of the receiver."""
        if ready.slot_size and held.offset + held.size >= self.identity.size:
            slot = (record.user - ready.buffer.virtual) // ready.slot_size
            self._next[slot] = held.message + ready.slots

    def _fill(self, ready: Ready, message: int) -> None:
        place = self.board.start(message)
        extents = self.memory.user(ready.pid, place.virtual, place.size)
        for lost in self.memory.holdings.clear(extents):
            lost.overwritten = True
        self._now[message % max(ready.slots, 1)] = message
        self.memory.holdings.put(
            extents,
            Held(0, place.size, message, 0, place, Way()),
        )
