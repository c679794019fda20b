"""What the kernel guarantees of every skb, held against what the records say of those seen.

A record that breaks a rule is no account of an skb: the probe lies, or its file does.  Rules
of one record need no other; those of two hold where nothing that changes an skb ran between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from lab.correlate.board import Board
from lab.correlate.hooks import DRIVER_XMIT, OUTBUF
from lab.correlate.inputs import ACCESS_LOG, GuestInputs
from lab.correlate.types import Sighting
from lab.record import Flag, Record

QUEUE: Final = "__dev_queue_xmit"
LOOPBACK_XMIT: Final = "loopback_xmit"
NETIF_RX: Final = "__netif_rx"
PAGE_TO_SKB: Final = "virtio_net:page_to_skb"
VIRTIO_XMIT: Final = "virtio_net:start_xmit"
ENQUEUE: Final = "__udp_enqueue_schedule_skb"
CONSUME: Final = "skb_consume_udp"
# What moves bytes within an skb, or gives it another head; len stays.
CHANGES: Final = frozenset({"skb_copy_bits", "skb_copy_and_csum_bits", "pskb_expand_head"})
XMIT: Final = frozenset({*DRIVER_XMIT, LOOPBACK_XMIT})
ETHERNET: Final = 14
# From one hook to the next an skb stays as it is, less what is pulled off its front.
SAME: Final = {
    **{(QUEUE, name): 0 for name in XMIT},
    (VIRTIO_XMIT, OUTBUF): 0,
    (OUTBUF, OUTBUF): 0,
    (LOOPBACK_XMIT, NETIF_RX): ETHERNET,  # eth_type_trans()
    (ENQUEUE, CONSUME): 0,
}
# The second is called by the first, with the skb that the first was given.
INSIDE: Final = {OUTBUF: VIRTIO_XMIT, NETIF_RX: LOOPBACK_XMIT}
# Records whose bytes are those at `data`, and where in these an IP header begins.
IP_AT: Final = {QUEUE: ETHERNET, **dict.fromkeys(XMIT, ETHERNET), NETIF_RX: 0}
SHOWN_AT_DATA: Final = frozenset({*IP_AT, ENQUEUE, "tcp_rcv_established"})
DEVICE_HEADERS: Final = (10, 12)  # of virtio, in front of a frame in its buffer
BYTES_MOST: Final = 64  # of a record
IPV4, IPV6 = 0x0800, 0x86DD


class Broken(NamedTuple):
    """A rule that does not hold: what is wrong, and the records that say so."""

    text: str
    records: tuple[Record, ...]


def check(board: Board) -> None:
    """Hold every skb that was seen with a message against the rules."""
    for guest in board.inputs.guests:
        if guest.witness == ACCESS_LOG or guest.trace is None:
            continue
        seen: dict[str, Sighting] = {}
        for one in board.sightings:
            if one.guest == guest.name:
                seen.setdefault(one.evidence, one)
        for broken in _broken(guest, board, seen):
            of = next((seen[one.id] for one in broken.records if one.id in seen), None)
            if of is not None:
                ids = [one.id for one in broken.records]
                board.disagree("skb", guest.name, of.message, broken.text, ids)


def _broken(guest: GuestInputs, board: Board, seen: Iterable[str]) -> Iterator[Broken]:
    mine = [record for record in guest.records if record.flags & Flag.SKB and record.skb]
    wanted = set(seen)
    datagram = board.inputs.identity.size if board.inputs.manifest.protocol == "udp" else None
    for record in mine:
        if record.id in wanted:
            for text in of_one(record, direct_map=guest.direct_map, datagram=datagram):
                yield Broken(f"{record.hook}: {text}", (record,))
    if guest.trace is not None and guest.trace.complete and not guest.trace.skipped:
        attached = frozenset(
            hook.name for hook in guest.hooks if hook.attached and not hook.left_out
        )
        yield from of_several(mine, attached=attached)
        yield from _made_otherwise(mine)


# --- One record ------------------------------------------------------------------------------


def of_one(
    record: Record, *, direct_map: int | None = None, datagram: int | None = None
) -> list[str]:
    """Return what cannot be of an skb as one record has it."""
    length, data_length, data = record.skb_len, record.skb_data_len, record.data
    hook, size, shown = record.hook, record.size, record.bytes
    linear = length - data_length
    tail = data + linear
    if linear < 0:
        return [f"data_len {data_length} is more than len {length}"]
    broken: list[str] = []
    if record.head > data:
        broken.append(f"data 0x{data:x} lies before head 0x{record.head:x}")
    if tail > record.shinfo > 0:
        broken.append(f"the linear area ends at 0x{tail:x}, past its end 0x{record.shinfo:x}")
    own = not record.src and not record.dst  # src_phys is that of data
    physical = record.src_phys
    if own and direct_map is not None and physical and data - physical != direct_map:
        broken.append(f"data 0x{data:x} is not what lies at physical 0x{physical:x}")
    if shown and hook in SHOWN_AT_DATA:
        if len(shown) != min(linear, BYTES_MOST):
            broken.append(f"{len(shown)} bytes are shown of a linear area of {linear}")
        told = _told(hook, shown)
        if told is not None and told != length:
            broken.append(f"len is {length}, and its IP header makes it {told}")
    if hook == PAGE_TO_SKB and size and size - length not in DEVICE_HEADERS:
        broken.append(f"len is {length}, of {size} bytes in the buffer")
    if datagram is not None and length != datagram and hook in (ENQUEUE, CONSUME):
        broken.append(f"len is {length}, of a datagram of {datagram} bytes")
    return broken


def _told(hook: str, shown: bytes) -> int | None:
    """Return the length that the IP header of a packet gives its skb, None where none is shown."""
    at = IP_AT.get(hook)
    if at is None:
        return None
    version = shown[at] >> 4 if len(shown) > at else 0
    kind = int.from_bytes(shown[at - 2 : at], "big") if at else {4: IPV4, 6: IPV6}.get(version)
    told = 0  # longer than the field can say
    if kind == IPV4 and version == 4 and len(shown) >= at + 20:
        told = at + int.from_bytes(shown[at + 2 : at + 4], "big")
    elif kind == IPV6 and version == 6 and len(shown) >= at + 40:
        told = at + 40 + int.from_bytes(shown[at + 4 : at + 6], "big")
        at += 40
    return told if told > at else None


# --- Several --------------------------------------------------------------------------------


def of_several(records: Sequence[Record], *, attached: frozenset[str]) -> Iterator[Broken]:
    """Yield where an skb is not the one, or not as, an earlier hook had it; none may be lost."""
    last: dict[int, Record] = {}  # skb -> its record before
    changed: set[int] = set()  # skbs, since then
    inside: dict[tuple[int, str], Record] = {}  # by CPU and hook
    queued = _Queued()
    waiting: dict[int, set[int]] = defaultdict(set)  # sk -> skbs in its queue
    known = attached >= CHANGES
    for record in records:
        hook, skb = record.hook, record.skb
        if hook in CHANGES:
            changed.add(skb)
            continue
        before, last[skb] = last.get(skb), record
        pulled = None if before is None else SAME.get((before.hook, hook))
        if before is not None and pulled is not None:
            yield from _changed(before, record, pulled, whole=known and skb not in changed)
        changed.discard(skb)
        outer = INSIDE.get(hook)
        if outer is not None:
            by = inside.get((record.cpu, outer))
            if by is not None and by.skb != skb:
                yield Broken(
                    f"{hook} was called with skb 0x{skb:x} by {outer}, which was given skb "
                    f"0x{by.skb:x}",
                    (record, by),
                )
        if hook in XMIT:
            inside[record.cpu, hook] = record
            # What a packet is cut into are new skbs: each is shorter than what was queued.
            if QUEUE in attached and queued.lacks(skb, record.skb_len):
                yield Broken(f"{hook} was given skb 0x{skb:x}, which was not queued", (record,))
        elif hook == QUEUE:
            queued.put(skb, record.skb_len)
        elif hook == ENQUEUE:
            waiting[record.sk].add(skb)
        elif hook == CONSUME and ENQUEUE in attached:
            if skb not in waiting[record.sk]:
                text = f"{hook} has skb 0x{skb:x}, which is in no queue of its socket"
                yield Broken(text, (record,))
            waiting[record.sk].discard(skb)


class _Queued:
    """The skbs that were queued, each with its len when it last was."""

    def __init__(self) -> None:
        self._length: dict[int, int] = {}
        self._count: dict[int, int] = {}  # of each length: there are few, and skbs are many

    def put(self, skb: int, length: int) -> None:
        before = self._length.get(skb)
        if before is not None:
            self._count[before] -= 1
            if not self._count[before]:
                del self._count[before]
        self._length[skb] = length
        self._count[length] = self._count.get(length, 0) + 1

    def lacks(self, skb: int, length: int) -> bool:
        """Tell whether an skb was not queued, nor is shorter than one it could be cut of."""
        return skb not in self._length and length >= max(self._count, default=0)


def _made_otherwise(records: Sequence[Record]) -> Iterator[Broken]:
    """Yield where a datagram waits in another skb than the driver made of its head."""
    made: dict[int, Record] = {}  # by head
    for record in records:
        if record.hook == PAGE_TO_SKB:
            made[record.head] = record
        elif record.hook == ENQUEUE:
            first = made.pop(record.head, None)
            if first is not None and first.skb != record.skb and _pulled_only(first, record):
                yield Broken(
                    f"{record.hook} has skb 0x{record.skb:x}, and {first.hook} made skb "
                    f"0x{first.skb:x} of its head",
                    (record, first),
                )


def _pulled_only(first: Record, record: Record) -> bool:
    # Fragments that were put together are more than the first one had.
    return record.data - first.data == first.skb_len - record.skb_len


def _changed(before: Record, after: Record, pulled: int, *, whole: bool) -> Iterator[Broken]:
    pairs = [("len", before.skb_len - pulled, after.skb_len)]
    if whole:
        pairs += [
            ("data_len", before.skb_data_len, after.skb_data_len),
            ("head", before.head, after.head),
            ("data", before.data + pulled, after.data),
            ("end", before.shinfo, after.shinfo),
        ]
    for name, expected, found in pairs:
        if found != expected:
            shown = f"{expected} to {found}" if "len" in name else f"0x{expected:x} to 0x{found:x}"
            yield Broken(
                f"between {before.hook} and {after.hook} {name} of skb 0x{after.skb:x} went from "
                f"{shown}",
                (after, before),
            )
