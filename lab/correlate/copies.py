"""Copies by guest CPUs: what moves when a copying function was seen to run."""

from __future__ import annotations

from typing import Final

from lab.correlate.board import Board, label, plain
from lab.correlate.holdings import PHYSICAL, Extent, Held
from lab.correlate.hooks import filled_by
from lab.correlate.inputs import ACCESS_LOG, ENOENT, RECEIVER, SENDER
from lab.correlate.memory_map import GuestMap
from lab.correlate.skbs import Skbs
from lab.correlate.slots import Slots
from lab.correlate.types import (
    Certainty,
    Delivered,
    Kind,
    Movement,
    Mover,
    Place,
    PlaceKind,
)
from lab.message import SEARCHABLE_SIZE
from lab.record import Flag, Record
from lab.record import Kind as At
from lab.rundir import Ready

PAGE_TO_SKB: Final = "virtio_net:page_to_skb"
PAGE_TO_SKB_COPY: Final = "virtio_net:page_to_skb>memcpy"
# What copies between a driver's memory and a bounce buffer, either way.
BOUNCE: Final = "swiotlb_bounce"
# Copies whose record names an skb: of the source for the first two, of both for the last.
BETWEEN_SKBS: Final = frozenset({"skb_copy_bits", "skb_copy_and_csum_bits", "pskb_expand_head"})


class Copy:
    """One call of a copying function, with both its ends.

    `sends` is the sender whose buffer is the source, `receives` the receiver whose buffer is
    the target.
    """

    def __init__(
        self,
        record: Record,
        size: int,
        *,
        source: list[Extent],
        target: list[Extent],
        source_address: int,
        target_address: int,
        src_user: bool = False,
        dst_user: bool = False,
        sends: Ready | None = None,
        receives: Ready | None = None,
        certainty: Certainty = Certainty.OBSERVED,
    ) -> None:
        self.record = record
        self.size = size
        self.source = source
        self.target = target
        self.source_address = source_address
        self.target_address = target_address
        self.src_user = src_user
        self.dst_user = dst_user
        self.sends = sends
        self.receives = receives
        self.certainty = certainty

    def seen(self, at: int, size: int) -> bytes:
        """Return what the record shows of the bytes copied, `at` being where to start."""
        return self.record.bytes[at : at + size]


def copied(record: Record) -> int:
    """Return how many bytes a call copied."""
    if record.kind is not At.RETURN:
        return record.size
    if record.hook.endswith("_full"):  # returns whether all of it was
        return record.size if record.ret else 0
    return max(0, min(record.ret, record.size))


class Copies:
    """Carries message bytes from place to place along the copies of one guest."""

    def __init__(self, memory: GuestMap, board: Board, skbs: Skbs) -> None:
        self.memory = memory
        self.board = board
        self.skbs = skbs
        self.identity = board.inputs.identity
        self.slots = Slots(memory, board)
        self.made: list[Place] = []  # by the copy that was taken last

    # --- From records to copies -------------------------------------------------------------

    def take(self, record: Record) -> bool:
        """Follow the copy a record shows; tell whether it moved message bytes."""
        copy = self._copy(record)
        return copy is not None and self._follow(copy)

    def _copy(self, record: Record) -> Copy | None:
        size = copied(record)
        if size <= 0:
            return None
        source_address, target_address = record.src, record.dst
        src_user = bool(record.flags & Flag.SRC_USER)
        dst_user = bool(record.flags & Flag.DST_USER)
        sends = receives = None
        if src_user or dst_user:
            user = self.memory.user(record.tgid, record.user, size)
            buffer = self.memory.buffer_at(record.tgid, record.user)
            role = "" if buffer is None else buffer.role
        if src_user:
            source_address, source = record.user, user
            sends = buffer if role == SENDER else None
        else:
            source = self.memory.kernel(record.src, size, record.src_phys)
        if dst_user:
            target_address, target = record.user, user
            receives = buffer if role == RECEIVER else None
        else:
            target = self.memory.kernel(record.dst, size, record.dst_phys)
        if not source or not target:
            return None
        return Copy(
            record,
            size,
            source=source,
            target=target,
            source_address=source_address,
            target_address=target_address,
            src_user=src_user,
            dst_user=dst_user,
            sends=sends,
            receives=receives,
        )

    def take_between_skbs(self, record: Record) -> None:
        """Follow a copy from an skb to another, or within one.

        Where the bytes lie says the record's source, not the skb: it may be a frag, and it
        may hold headers alone.
        """
        if self.take(record):
            self.skbs.copied_between(record, self.made)

    def take_page_to_skb(self, record: Record) -> bool:
        """Derive the driver's copy where the compiler left no call of memcpy to hook.

        page_to_skb() says what it was given and what it made: when the skb's head lies
        outside the buffer, the bytes of its linear area were copied out of it.  That
        is proof enough only where the call cannot be seen in this kernel (-ENOENT).
        A hook that was left out on purpose, or that is attached and saw nothing, must
        leave the bytes unaccounted: what was asked for did not happen.
        """
        hook = self.memory.guest.hook(PAGE_TO_SKB_COPY)
        if hook is None or hook.left_out or hook.error != -ENOENT:
            return False
        inside = record.src <= record.head < record.src + record.size
        linear = record.skb_len - record.skb_data_len
        header = record.size - record.skb_len  # the device's, in front of the frame
        if not record.skb or inside or linear <= 0 or header < 0:
            return False
        source = self.memory.kernel(
            record.src + header, linear, record.src_phys and record.src_phys + header
        )
        copy = Copy(
            record=record,
            size=linear,
            source=source,
            target=self.memory.kernel(record.data, linear),
            source_address=record.src + header,
            target_address=record.data,
            certainty=Certainty.DERIVED,
        )
        return self._follow(copy)

    # --- Following --------------------------------------------------------------------------

    def _follow(self, copy: Copy) -> bool:
        self.made = []
        if not copy.record.bytes and not copy.source:
            return False
        if copy.sends is not None:
            self.slots.sends(copy.sends, copy.record, copy.size)
        parts = self._proven(copy, self.memory.holdings.find(copy.source))
        parts += self._orphans(copy, parts)
        there = self.memory.holdings.find(copy.target)
        if parts and there and self._seen_before(copy, parts, there):
            return True
        loops = copy.receives is not None and self.board.inputs.loopback
        if loops and any(not part.way.handovers for part in parts):
            parts = self.skbs.derive_handover(copy.record, parts)
        for place in self.memory.holdings.clear(copy.target) if there else ():
            place.overwritten = True
        for part in parts:
            self._move(copy, part)
        return bool(parts)

    def _proven(self, copy: Copy, parts: list[Held]) -> list[Held]:
        # Bytes are what the address says only if the record shows the same bytes.
        out = []
        for part in parts:
            seen = copy.seen(part.at, part.size)
            if not seen:
                # Bytes behind what a record shows.  Another program's copy of memory that once
                # held a message is most often one of memory that was used again.
                if self._ours(copy) or not (copy.src_user or copy.dst_user):
                    out.append(part)
            elif self.identity.agrees(seen, part.message, part.offset):
                out.append(part)
            elif self._ours(copy):
                self.board.disagree(
                    "content",
                    self.memory.guest.name,
                    part.message,
                    f"{copy.record.hook} read {seen[:16].hex()} from {label(part.place)}, "
                    f"where byte {part.offset} of message {part.message} should be "
                    f"{self.identity.bytes_of(part.message)[part.offset :][:16].hex()}",
                    [copy.record.id, *part.place.evidence],
                )
                out.append(part)
            else:
                # Freed and used again by somebody else.
                self.memory.holdings.clear(copy.source)
                part.place.overwritten = True
        return out

    def _ours(self, copy: Copy) -> bool:
        if copy.src_user:
            return copy.sends is not None
        if copy.dst_user:
            return copy.receives is not None
        # Within the kernel memory is used again at once; a buffer that a device filled anew
        # is known to be another's only where the hook that says so is attached.
        if copy.record.hook != PAGE_TO_SKB_COPY:
            return False
        filled = self.memory.guest.hook(filled_by(self.board.inputs.manifest))
        return filled is not None and filled.attached and not filled.left_out

    def _orphans(self, copy: Copy, known: list[Held]) -> list[Held]:
        # Message bytes at an address that nothing is known to have brought them to.
        out: list[Held] = []
        for part in known:
            if part.at <= 0 and copy.size <= part.at + part.size:
                return out  # all of it is known: nothing in it has to be searched
        for at, message, offset, size in self._strangers(copy):
            end = at + size
            for part in known:
                if part.at < end and at < part.at + part.size:
                    end = max(at, part.at)
            # The last byte of a header may be the message's byte before those behind it.
            if end <= at or (end < at + size and end - at < SEARCHABLE_SIZE):
                continue
            out.append(self._orphan(copy, (at, message, offset, end - at)))
        return out

    def _strangers(self, copy: Copy) -> list[tuple[int, int, int, int]]:
        shown = copy.seen(0, copy.size)
        found = []
        for run in self.identity.find(shown):
            size = run.size
            if run.at + run.size == len(shown):  # goes on behind what the record shows
                size = min(copy.size - run.at, self.identity.size - run.offset)
            found.append((run.at, run.message, run.offset, size))
        if not found and not self.identity.unique and copy.receives is not None:
            message = self.slots.awaited(copy.receives, copy.record, shown)
            return [] if message is None else [(0, *message, min(copy.size, self._rest(message)))]
        return found

    def _orphan(self, copy: Copy, run: tuple[int, int, int, int]) -> Held:
        at, message, offset, size = run
        extents = _part(copy.source, at, size)
        runs = plain(extents, PHYSICAL)
        place = self.board.place(
            self.memory.guest.name,
            PlaceKind.USER if copy.src_user else PlaceKind.KERNEL,
            held=(message, offset, size),
            virtual=copy.source_address + at,
            extents=runs,
            region="user" if copy.src_user else _kernel_region(runs),
            born=copy.record.tsc,
            evidence=[copy.record.id],
        )
        held = self.board.orphan(place).found_at(at)
        self.memory.holdings.clear(extents)
        self.memory.holdings.put(extents, held.found_at(0))
        return held

    def _seen_before(self, copy: Copy, parts: list[Held], there: list[Held]) -> bool:
        # One copy may be seen by two hooks, an outer and an inner function.  What the access
        # log shows are acts: the same again is another.  So it is of two functions between
        # skbs, none of which calls the other: TCP sends again what is still in the same place
        # by skb_copy_bits, which it had sent by skb_copy_and_csum_bits.
        if self.memory.guest.witness == ACCESS_LOG:
            return False
        if [(p.at, p.message, p.offset, p.size) for p in there] != [
            (p.at, p.message, p.offset, p.size) for p in parts
        ]:
            return False
        made = [self.board.made_by.get(part.place.id) for part in there]
        for movement, part in zip(made, parts, strict=True):
            if (
                movement is None
                or movement.source is not part.place
                or movement.function == copy.record.hook
                or {movement.function, copy.record.hook} <= BETWEEN_SKBS
            ):
                return False
        for movement in made:
            if movement is not None:
                movement.evidence.append(copy.record.id)
        return True

    def _move(self, copy: Copy, part: Held) -> None:
        record = copy.record
        place = self._target(copy, part)
        held = part.put_in(place, part.way.copied())
        self.memory.holdings.put(copy.target, held)
        symbols = self.memory.guest.symbols
        at_call = record.kind is At.CALLSITE
        movement = Movement(
            guest=self.memory.guest.name,
            mover=Mover.GUEST_CPU,
            kind=Kind.COPY,
            function=record.hook,
            instruction=symbols.show(record.aux) if at_call else "",
            caller=symbols.show(record.caller),
            source=part.place,
            target=place,
            message=part.message,
            offset=part.offset,
            size=copy.size,
            payload_size=part.size,
            certainty=copy.certainty,
            tsc=record.tsc,
            evidence=[record.id],
            confirmed_by={self.memory.guest.witness},
        )
        self.board.move(movement, held)
        self.made.append(place)
        if copy.receives is not None:
            way = held.way
            self.board.delivered.append(
                Delivered(
                    held.message, held.offset, held.size,
                    way.copies, way.reads, way.writes, way.handovers,
                )
            )  # fmt: skip
            self.slots.receives(copy.receives, record, held)

    def _rest(self, run: tuple[int, int]) -> int:
        return self.identity.size - run[1]

    def _target(self, copy: Copy, part: Held) -> Place:
        record = copy.record
        name = self.memory.guest.name
        virtual = copy.target_address + part.at
        extents = _part(copy.target, part.at, part.size)
        runs = plain(extents, PHYSICAL)
        if copy.dst_user:
            grown = self._grow(record, part, virtual, runs)
            if grown is not None:
                return grown
        return self.board.place(
            name,
            PlaceKind.USER if copy.dst_user else self._kind(record, part),
            held=(part.message, part.offset, part.size),
            virtual=virtual,
            extents=runs,
            region=self._region(copy, runs),
            born=record.tsc,
            pid=record.tgid if copy.dst_user else 0,
            evidence=[record.id],
        )

    def _kind(self, record: Record, part: Held) -> PlaceKind:
        made = self.board.made_by.get(part.place.id)
        written = made is not None and made.mover is Mover.DEVICE
        bounced = record.hook.startswith(BOUNCE)
        if written and (bounced or self.board.bounces):
            part.place.kind = PlaceKind.BOUNCE  # the device's, and not the driver's own
            return PlaceKind.RX_BUFFER
        return PlaceKind.BOUNCE if bounced else PlaceKind.KERNEL

    def _grow(
        self, record: Record, part: Held, virtual: int, runs: list[tuple[int, int]]
    ) -> Place | None:
        # A user buffer filled by several copies is one place.
        for movement in reversed(self.board.of_message[part.message]):
            place = movement.target
            if (
                place.kind is PlaceKind.USER
                and place.guest == self.memory.guest.name
                and place.pid == record.tgid
                and place.virtual + place.size == virtual
                and place.end == part.offset
            ):
                place.size += part.size
                place.extents = _joined(place.extents, runs)
                place.evidence.append(record.id)
                return place
        return None

    def _region(self, copy: Copy, runs: list[tuple[int, int]]) -> str:
        if not copy.dst_user:
            return _kernel_region(runs)
        ready = self.memory.buffer_at(copy.record.tgid, copy.record.user)
        return "user" if ready is None else f"user {ready.buffer.region}".strip()


def _kernel_region(runs: list[tuple[int, int]]) -> str:
    return "direct map" if runs else "kernel"


def _part(extents: list[Extent], at: int, size: int) -> list[Extent]:
    """Return a piece of a range, its extents counted from the piece's start."""
    if len(extents) == 1 and at == extents[0].at == 0 and size == extents[0].size:
        return extents
    out = []
    for extent in extents:
        first = max(extent.at, at)
        last = min(extent.at + extent.size, at + size)
        if first < last:
            start = extent.start + first - extent.at
            out.append(Extent(extent.space, start, last - first, first - at))
    return out


def _joined(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> list[tuple[int, int]]:
    # Empty means unknown, and what is unknown in part is unknown.
    if not left or not right:
        return []
    if left[-1][0] + left[-1][1] == right[0][0]:
        return [*left[:-1], (left[-1][0], left[-1][1] + right[0][1]), *right[1:]]
    return [*left, *right]
