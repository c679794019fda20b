"""What a device was given to read, by what CPUs were seen to store in its descriptors.

A ring shows what was given last: the driver takes the same descriptor for the next packet, and
of several pieces it makes a table of its own, which is freed when the device is done with it.
But each was stored by a CPU, in order, and the log has it::

    desc[head]         address, length, flags, next     a piece, or a table of them
    avail.ring[n]      head
    avail.idx          n + 1                            from here on it is the device's

E1000e's has no tables, and the last descriptor of a packet says that it is the last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lab.access.layout import PAGE, Ranges
from lab.access.log import Access, AccessLog

DESCRIPTOR = struct.Struct("<QIHH")  # virtio 1.2, 2.7.5: addr, len, flags, next
NEXT, WRITE, INDIRECT = 1, 2, 4  # virtio 1.2, 2.7.5: flags
MOST_PIECES = 1024  # virtio 1.2, 2.7.5.3.1: no table has more than the queue; ours have 256
INDEX, SLOTS = 2, 4  # virtio 1.2, 2.7.6: where in the available ring idx and the entries lie

# Intel 82574 GbE Controller datasheet, 7.2.10: the second word of what it sends.
E1000E = struct.Struct("<QII")  # buffer, length and command, status
COMMAND = 8  # where in it that word lies
LAST = 1 << 24
EXTENDED = 1 << 29
TYPE = 0xF << 20  # of an extended one; 0: it sets a context and has no buffer
LENGTHS = {True: 0xFFFFF, False: 0xFFFF}  # by whether it is extended


@dataclass(frozen=True, slots=True)
class Piece:
    """Memory that a device may read, and the store that put it into a descriptor."""

    physical: int
    size: int
    stored: Access


@dataclass(frozen=True, slots=True)
class Given:
    """One packet as a device was given it; `stored` made it the device's."""

    stored: Access
    pieces: tuple[Piece, ...]


def indirect(stores: Iterable[tuple[int, bytes]], tables: Ranges) -> set[tuple[int, int]]:
    """Return the ranges of the tables that descriptors in `tables` pointed at.

    `stores` are physical addresses and bytes, in order.  A descriptor is stored in parts: of one
    that is half another's a range too many may come out.
    """
    known = [*tables]
    seen: dict[int, bytearray] = {}
    out = set()
    for physical, data in stores:
        if not any(start < physical + len(data) and physical < end for start, end in known):
            continue
        for at, entry in _overlaid(seen, physical, data):
            address, length, flags, _ = DESCRIPTOR.unpack(entry)
            if flags & INDIRECT and _is_table(length) and at % DESCRIPTOR.size == 0:
                out.add((address, address + length))
    return out


def given(log: AccessLog, *, table: int, offered: int, size: int) -> Iterator[Given]:
    """Yield what was given through a queue, in order: its parts are at these physical addresses."""
    rings = [(table, table + DESCRIPTOR.size * size), (offered, offered + SLOTS + 2 * size)]
    stores = [one for one in log.records if one.store and one.in_ram]
    apart = indirect(((one.physical, one.bytes) for one in stores), rings[:1])
    pages = {at for start, end in (*rings, *apart) for at in range(start // PAGE, -(-end // PAGE))}
    seen: dict[int, bytearray] = {}
    owner: dict[int, Access] = {}
    for one in stores:
        if one.physical // PAGE not in pages:
            continue
        for at, _ in _overlaid(seen, one.physical, one.bytes):
            if one.physical <= at < one.end:  # has its address
                owner[at] = one
        if one.touches(offered + INDEX, offered + SLOTS):
            head = _head(seen, offered, size)
            pieces = [] if head is None else _pieces(seen, owner, table, head, size)
            if pieces:
                yield Given(one, tuple(pieces))


def buffer_of(command: int) -> int | None:
    """Return how long a buffer that e1000e sends is; None for a descriptor that has none."""
    extended = bool(command & EXTENDED)
    return None if extended and not command & TYPE else command & LENGTHS[extended]


def given_e1000e(log: AccessLog, *, table: int, size: int) -> Iterator[Given]:
    """Yield what was given to e1000e, in order."""
    end = table + E1000E.size * size
    seen: dict[int, bytearray] = {}
    owner: dict[int, Access] = {}
    pieces: dict[int, Piece] = {}  # of a packet whose last is yet to come
    for one in log.records:
        if not one.store or not one.touches(table, end):
            continue
        for at, entry in _overlaid(seen, one.physical, one.bytes):
            if one.physical <= at < one.end:
                owner[at] = one
            if at not in owner or not one.physical <= at + COMMAND < one.end:
                continue  # the driver clears the status of what was sent
            address, command, _ = E1000E.unpack(entry)
            length = buffer_of(command)
            if length is None:
                continue
            pieces[at] = Piece(address, length, owner[at])
            if command & LAST:
                yield Given(one, tuple(pieces.values()))
                pieces = {}


def _is_table(length: int) -> bool:
    return 0 < length <= MOST_PIECES * DESCRIPTOR.size and length % DESCRIPTOR.size == 0


def _overlaid(
    seen: dict[int, bytearray], physical: int, data: bytes
) -> Iterator[tuple[int, bytearray]]:
    """Put bytes where they belong; yield each sixteen that changed, and where they lie."""
    end = physical + len(data)
    for at in range(physical // DESCRIPTOR.size * DESCRIPTOR.size, end, DESCRIPTOR.size):
        entry = seen.setdefault(at, bytearray(DESCRIPTOR.size))
        first, last = max(at, physical), min(at + DESCRIPTOR.size, end)
        entry[first - at : last - at] = data[first - physical : last - physical]
        yield at, entry


def _word(seen: dict[int, bytearray], at: int) -> int | None:
    start = at // DESCRIPTOR.size * DESCRIPTOR.size
    entry = seen.get(start)
    return None if entry is None else int.from_bytes(entry[at - start :][:2], "little")


def _head(seen: dict[int, bytearray], offered: int, size: int) -> int | None:
    index = _word(seen, offered + INDEX)
    if index is None:
        return None
    # Linux stores the index anew for each packet: virtqueue_add_split().
    return _word(seen, offered + SLOTS + 2 * ((index - 1) % size))


def _pieces(
    seen: dict[int, bytearray], owner: dict[int, Access], table: int, head: int, size: int
) -> list[Piece]:
    """Return the pieces of a packet whose first descriptor is number `head` of the ring."""
    at = table + DESCRIPTOR.size * head
    entry = seen.get(at)
    if entry is not None:
        address, length, flags, _ = DESCRIPTOR.unpack(entry)
        if flags & INDIRECT:  # and in such a table there is none: virtio 1.2, 2.7.5.3.1
            count = length // DESCRIPTOR.size if _is_table(length) else 0
            return list(_chain(seen, owner, address, 0, count))
    return list(_chain(seen, owner, table, head, size))


def _chain(
    seen: dict[int, bytearray], owner: dict[int, Access], table: int, first: int, size: int
) -> Iterator[Piece]:
    number = first
    for _ in range(size):
        at = table + DESCRIPTOR.size * number
        if number >= size or at not in owner:
            return
        address, length, flags, number = DESCRIPTOR.unpack(seen[at])
        if flags & INDIRECT:
            return
        if not flags & WRITE:
            yield Piece(address, length, owner[at])
        if not flags & NEXT:
            return
