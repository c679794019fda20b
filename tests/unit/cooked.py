"""Cooked run directories: what two guests would have left, right or wrong on request.

The numbers follow shared facts of Linux 6.12 (headroom, header sizes, when the
virtio driver copies); a cook writes the artefacts a real run writes, so that
evidence code reads them the way it reads a real run's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lab import fnv
from lab import message as messages
from lab.message import Messages
from lab.record import HOOK_COPY, HOOK_LEFT_OUT, Flag, Hook, Kind, encode_section
from lab.rundir import RunDir

SEED = 0x0123456789ABCDEF
IP_LAST = 158  # the receiver's address, and an IPv4 header, end with it
DIRECT_MAP = 0xFF11_0000_0000_0000
PAGE = 4096
SENDER_MAC = bytes.fromhex("525400000064")
RECEIVER_MAC = bytes.fromhex("52540000009e")
PORT = 9999

SEND_HOOKS = (
    "_copy_from_iter",
    "csum_and_copy_from_iter_full",
    "ip_generic_getfrag",
    "__tcp_transmit_skb",
    "__dev_queue_xmit",
    "loopback_xmit",
    "__netif_rx",
    "virtio_net:start_xmit",
    "virtqueue_add_outbuf",
    "e1000e:e1000_xmit_frame",
    "dma_map_page_attrs",
)
RECV_HOOKS = (
    "virtio_net:receive_buf",
    "virtio_net:page_to_skb",
    "virtio_net:page_to_skb>memcpy",
    "virtio_net:xdp_linearize_page>memcpy",
    "dma_unmap_page_attrs",
    "e1000e:e1000_clean_rx_irq>memcpy",
    "__udp_enqueue_schedule_skb",
    "tcp_rcv_established",
    "sock_def_readable",
    "_copy_to_iter",
    "csum_and_copy_to_iter",
    "skb_consume_udp",
)
# In a guest that has both modules they are send_trace's.
SKB_HOOKS = ("skb_copy_bits", "skb_copy_and_csum_bits", "pskb_expand_head", "swiotlb_bounce>memcpy")
COPY_HOOKS = frozenset(
    {
        "_copy_from_iter",
        "csum_and_copy_from_iter_full",
        "virtio_net:page_to_skb>memcpy",
        "virtio_net:xdp_linearize_page>memcpy",
        "e1000e:e1000_clean_rx_irq>memcpy",
        "_copy_to_iter",
        "csum_and_copy_to_iter",
        *SKB_HOOKS,
    }
)

Event = dict[str, Any]


@dataclass
class Kitchen:
    """One guest: its memory as far as messages lie in it, and what its witnesses saw."""

    name: str
    pid: int
    tsc: int = 1_000_000
    events: list[Event] = field(default_factory=list)
    memory: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # phys -> run
    gates: list[dict[str, Any]] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    workloads: list[dict[str, Any]] = field(default_factory=list)
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tick(self, by: int = 1000) -> int:
        self.tsc += by
        return self.tsc

    def hook(self, name: str, **fields: Any) -> Event:
        """Record that a hook ran."""
        event: Event = {"hook": name, "tsc": self.tick(), "pid": self.pid, "tgid": self.pid}
        event["comm"] = fields.pop("comm", self.name)
        event.update(fields)
        self.events.append(event)
        return event

    def store(self, physical: int, message: int, offset: int, size: int) -> None:
        """Put message bytes into RAM, over whatever lay there."""
        for start in list(self.memory):
            other = self.memory[start]
            if start < physical + size and physical < start + other[2]:
                del self.memory[start]
        self.memory[physical] = (message, offset, size)

    def gate(self, name: str) -> None:
        """Search all RAM for the messages."""
        hits: list[dict[str, Any]] = []
        for physical, (message, offset, size) in sorted(self.memory.items()):
            last = hits[-1] if hits else None
            if (
                last is not None
                and int(last["physical"], 16) + last["size"] == physical
                and last["message"] == message
                and last["offset"] + last["size"] == offset
            ):
                last["size"] += size
                continue
            hits.append(
                {
                    "physical": f"0x{physical:x}",
                    "message": message,
                    "offset": offset,
                    "size": size,
                }
            )
        self.gates.append({"gate": name, "hits": hits, "scanned_bytes": 512 << 20, "seconds": 0.2})


@dataclass
class Cook:
    """A run in the making; change anything before `serve`."""

    path: Path
    over: str
    size: int
    count: int
    protocol: str
    payload: bytes | None
    slots: int
    guests: dict[str, Kitchen]
    device: str = "virtio-net-pci"
    family: str = "ipv4"
    lost: tuple[int, ...] = ()  # messages that never arrive at the receiver
    without: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    seed: int = SEED
    heads: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)  # whose again
    again: int = 0  # messages after which memory of a stream is given out again, 0: never
    header: dict[str, Any] = field(default_factory=dict)  # of every section
    missed: dict[str, int] = field(default_factory=dict)
    skip_files: set[str] = field(default_factory=set)
    manifest: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)

    @property
    def sender(self) -> Kitchen:
        return self.guests["sender"]

    @property
    def receiver(self) -> Kitchen:
        return self.guests["receiver" if self.over == "link" else "sender"]

    @property
    def messages(self) -> Messages:
        seed = self.seed if self.payload is None else None
        return Messages(seed=seed, payload=self.payload, size=self.size, count=self.count)

    @property
    def vnet(self) -> int:
        """Bytes of the device's own in front of a frame."""
        return VNET if self.device == "virtio-net-pci" else 0

    @property
    def slot_size(self) -> int:
        return -(-self.size // 64) * 64

    @property
    def taken(self) -> list[int]:
        """The messages in the receiver's own order."""
        return [number for number in range(self.count) if number not in self.lost]

    @property
    def slice(self) -> int:
        """Bytes of a datagram in one fragment of MTU 1500; of IPv6 less two headers."""
        return SLICE if self.family == "ipv4" else SLICE_6

    @property
    def local(self) -> str:
        """The sender's end, as its program says it before it sends."""
        if self.protocol == "tcp":
            return "192.168.29.100:40000"
        return "[::]:0" if self.family == "ipv6" else "0.0.0.0:0"

    @property
    def peer(self) -> str:
        if self.family == "ipv6":
            return f"[fd29::9e]:{PORT}"
        return f"{'192.168.29.158' if self.over == 'link' else '127.0.0.1'}:{PORT}"

    @property
    def whole(self) -> int:
        """The most bytes of a message that is one frame."""
        return SLICE - 8 if self.family == "ipv4" else 1500 - 40 - 8

    def headers(self, offset: int) -> int:
        """Bytes of Ethernet, IP and, in front of a message's first byte, UDP."""
        ip = 20 if self.family == "ipv4" else 40 + (8 if self.size > self.whole else 0)
        return 14 + ip + (8 if offset == 0 else 0)

    # --- Memory ---------------------------------------------------------------------------

    def buffer(self, role: str, virtual: int, physical: int) -> None:
        """Give a workload its buffer, its pages apart from each other."""
        size = self.slots * self.slot_size
        first = virtual & ~(PAGE - 1)
        count = -(-(virtual + size - first) // PAGE)
        pages = [(first + n * PAGE, physical + n * 3 * PAGE) for n in range(count)]
        self.buffers[role] = (virtual, pages)

    def user(self, role: str, at: int) -> int:
        return self.buffers[role][0] + at

    def runs(self, role: str, at: int, size: int) -> list[tuple[int, int]]:
        """Return (physical, size) of each page's part of a range of a buffer."""
        virtual, pages = self.buffers[role]
        known = dict(pages)
        out = []
        start, end = virtual + at, virtual + at + size
        while start < end:
            length = min(end, (start & ~(PAGE - 1)) + PAGE) - start
            out.append((known[start & ~(PAGE - 1)] + (start & (PAGE - 1)), length))
            start += length
        return out

    def store_user(
        self,
        guest: Kitchen,
        role: str,
        message: int,
        offset: int,
        size: int,
        *,
        at: int | None = None,
    ) -> None:
        slot = (message % self.slots) * self.slot_size if at is None else at
        for physical, length in self.runs(role, slot + offset, size):
            guest.store(physical, message, offset, length)
            offset += length

    # --- Serving --------------------------------------------------------------------------

    def serve(self) -> RunDir:
        """Write the run directory."""
        run = RunDir(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        run.write_manifest(self._manifest() | self.manifest)
        for guest in self.guests.values():
            self._serve_guest(run, guest)
        for name in self.skip_files:
            (self.path / name).unlink()
        return run

    def _manifest(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "playbook": "nic" if self.over == "link" else "loopback",
            "over": self.over,
            "size": self.size,
            "count": self.count,
            "protocol": self.protocol,
            "family": self.family,
            "kernel": "6.12.117+deb12-amd64",
            "accelerator": {"name": "tcg", "why": "/dev/kvm did not carry the lab's kernel"},
            "link": {
                "device": self.device,
                "backend": "dgram",
                "offloads": {"tx-checksum": "off", "scatter-gather": "off", "gro": "on"},
                "netdev": "lab0",
            },
            "probes": {"kind": "kmod", "modules": {}, "without": list(self.without)},
            "witnesses": {},
            "drifted": [],
            "guests": list(self.guests),
        }
        if self.payload is None:
            out["seed"] = f"{self.seed:x}"
        else:
            out["payload_masked"] = messages.mask(self.payload)
        return out

    def _serve_guest(self, run: RunDir, guest: Kitchen) -> None:
        folder = run.guest(guest.name)
        folder.path.mkdir(exist_ok=True)
        trace = b""
        if guest is self.sender:
            trace += self._section(guest, "send_trace", SEND_HOOKS + SKB_HOOKS)
        if guest is self.receiver:
            shared = () if guest is self.sender else SKB_HOOKS
            trace += self._section(guest, "recv_trace", RECV_HOOKS + shared)
        folder.trace.write_bytes(trace)
        folder.write_json("census.json", {"needles": "tag", "gates": guest.gates})
        samples = [
            {"before_ns": 10**9 + n * 10**8, "tsc": 500_000 + n * 2 * 10**8}
            | {"after_ns": 10**9 + n * 10**8 + 40_000}
            for n in (0, 1, 2)
        ]
        folder.write_json("tsc.json", {"samples": samples})
        if self.over == "link":
            folder.write_json(
                "rings.json", {"device": "virtio-net", "queues": list(guest.queues.values())}
            )
            folder.wire.write_bytes(pcap(guest.frames))
        folder.write_json("workload.json", guest.workloads)
        folder.symbols.write_text(SYMBOLS)

    def _section(self, guest: Kitchen, name: str, hooks: Sequence[str]) -> bytes:
        gone = {*self.without, *self.absent}
        table = []
        for hook in hooks:
            flags = HOOK_COPY if hook in COPY_HOOKS else 0
            flags |= HOOK_LEFT_OUT if hook in self.without else 0
            error = -2 if hook in self.absent else 0
            hits = sum(event["hook"] == hook for event in guest.events)
            table.append(
                Hook(hook, error, flags, 0 if hook in gone else hits, self.missed.get(hook, 0))
            )
        events = [e for e in guest.events if e["hook"] in hooks and e["hook"] not in gone]
        return encode_section(
            events, name=name, nonce=bytes(range(16, 32)), hooks=table, **self.header
        )

    # --- What the programs say ------------------------------------------------------------

    def report(self) -> None:
        """Let both workloads say what they did; all went well."""
        for role, guest in (("sender", self.sender), ("receiver", self.receiver)):
            virtual, pages = self.buffers[role]
            verb = "sent" if role == "sender" else "received"
            numbers = list(range(self.count)) if role == "sender" else self.taken
            pid = guest.pid if role == "sender" or self.over == "link" else guest.pid + 1
            guest.workloads.append(
                {
                    "role": role,
                    "ready": {
                        "role": role,
                        "pid": pid,
                        "fd": 3,
                        "protocol": self.protocol,
                        "local": self.local,
                        "peer": self.peer,
                        "size": self.size,
                        "count": self.count,
                        "slots": self.slots,
                        "slot_size": self.slot_size,
                        "buffer": {
                            "virtual": f"0x{virtual:x}",
                            "size": self.slots * self.slot_size,
                            "region": "heap" if role == "sender" else "stack",
                            "mapping": "",
                            "pages": [
                                {"virtual": f"0x{v:x}", "physical": f"0x{p:x}"} for v, p in pages
                            ],
                        },
                    },
                    verb: {
                        "messages": [
                            {
                                "index": n,
                                "slot": n % self.slots,
                                "size": self.size,
                                "returned": self.size,
                                "errno": 0,
                            }
                            for n in range(len(numbers))
                        ],
                        verb: len(numbers),
                        "failed": 0,
                        "bytes": len(numbers) * self.size,
                        "timed_out": False,
                    },
                    "done": {
                        "messages": [
                            {
                                "index": n,
                                "slot": n % self.slots,
                                "digest": f"{fnv.digest(self.messages.bytes(message)):016x}",
                                "hex": self.messages.bytes(message)[:64].hex(),
                            }
                            for n, message in list(enumerate(numbers))[-self.slots :]
                        ]
                    },
                }
            )


SYMBOLS = """\
ffffffff81000000 T _text
ffffffff81500000 T ip_generic_getfrag
ffffffff81501000 T udp_recvmsg
ffffffff81502000 T dev_hard_start_xmit
ffffffff81600000 T memcpy_orig
ffffffff81601000 T _copy_from_iter
ffffffff81602000 T csum_and_copy_from_iter_full
ffffffff81603000 T _copy_to_iter
ffffffffc0100000 t page_to_skb\t[virtio_net]
ffffffffc0101000 t receive_buf\t[virtio_net]
ffffffffc0110000 t e1000_clean_rx_irq\t[e1000e]
"""


def pcap(frames: Iterable[bytes]) -> bytes:
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 1)
    for number, frame in enumerate(frames):
        out += struct.pack("<IIII", 1000, number, len(frame), len(frame)) + frame
    return out


def ethernet(payload: bytes, *, kind: int = 0x0800) -> bytes:
    return RECEIVER_MAC + SENDER_MAC + struct.pack(">H", kind) + payload


def ipv4(
    payload: bytes, *, number: int, offset: int = 0, more: bool = False, kind: int = 17
) -> bytes:
    flags = (0x2000 if more else 0) | offset >> 3
    number &= 0xFFFF
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), number, flags, 64, kind, 0)
    return head + bytes((192, 168, 29, 100)) + bytes((192, 168, 29, IP_LAST)) + payload


def ipv6(payload: bytes, *, number: int, offset: int | None = None, more: bool = False) -> bytes:
    """Return an IPv6 packet, with a fragment header where there is an offset."""
    following = 17
    if offset is not None:
        payload = struct.pack(">BBHI", 17, 0, offset | int(more), number) + payload
        following = 44
    head = struct.pack(">IHBB", 6 << 28, len(payload), following, 64)
    ends = bytes.fromhex("fd29") + bytes(13), b"\x64", b"\x9e"
    return head + ends[0] + ends[1] + ends[0] + ends[2] + payload


def udp(payload: bytes) -> bytes:
    return struct.pack(">HHHH", 40000, PORT, 8 + len(payload), 0) + payload


ARP = RECEIVER_MAC + SENDER_MAC + bytes.fromhex("0806") + bytes(28)


# --- Over the link ------------------------------------------------------------------------

SLICE = 1480  # bytes of an IP datagram in one frame of MTU 1500
SLICE_6 = 1448  # the same of IPv6: 1500 less 40 and 8, in eights
VNET = 12  # bytes of the virtio header


def nic(
    path: Path,
    *,
    size: int = 16,
    count: int = 1,
    payload: bytes | None = None,
    slots: int = 4,
    device: str = "virtio-net-pci",
    family: str = "ipv4",
    lost: Sequence[int] = (),
    without: Sequence[str] = (),
    absent: Sequence[str] = (),
    seed: int = SEED,
    heads: Mapping[tuple[int, int], tuple[int, int, int]] | None = None,
) -> Cook:
    """Cook UDP over a link whose backend has no vnet header.

    `heads`: a fragment, as (message, number), that lies where another one did, so many bytes
    further on.
    """
    cook = Cook(
        path=path,
        over="link",
        size=size,
        count=count,
        protocol="udp",
        payload=payload,
        slots=slots,
        guests={"sender": Kitchen("sender", 301), "receiver": Kitchen("receiver", 302)},
        device=device,
        family=family,
        lost=tuple(lost),
        without=tuple(without),
        absent=tuple(absent),
        seed=seed,
        heads=dict(heads or {}),
    )
    # Behind what the sender did with the frame, however many there are.
    cook.receiver.tsc += max(500_000, 5000 * count * len(_slices(cook, 0)))
    cook.buffer("sender", 0x5555_5555_9040, 0x0A00_0000)
    cook.buffer("receiver", 0x7FFC_1000_0A80, 0x0B00_0000)
    _rings(cook)
    cook.sender.frames.append(ARP)
    cook.receiver.frames.append(ARP)
    for number in range(count):
        cook.store_user(cook.sender, "sender", number, 0, size)
        _send(cook, number)
    cook.sender.gate("sent")
    cook.receiver.gate("sent")
    for number in cook.taken:
        _receive(cook, number)
    for guest in (cook.sender, cook.receiver):
        guest.gate("received")
    _close_rings(cook)
    cook.report()
    return cook


def _rings(cook: Cook) -> None:
    for guest in cook.guests.values():
        for kind, index in (("rx", 0), ("tx", 1)):
            posted = [
                [n, f"0x{0x0C00_0000 + n * 1536:x}", 1536, 2, 0] if kind == "rx"
                else [n, "0x0", 0, 0, n + 1]
                for n in range(256)
            ]  # fmt: skip
            guest.queues[kind] = {
                "queue": kind,
                "index": index,
                "size": 256,
                "desc": "0x1000",
                "avail": "0x2000",
                "used": "0x3000",
                "gates": {
                    "armed": {
                        "avail_idx": 263 if kind == "rx" else 7,
                        "used_idx": 7,
                        "descriptors": posted,
                        "given": list(range(256)) if kind == "rx" else [],
                        "used": [],
                    }
                },
            }
        guest.queues["rx"]["now"] = {"posted": posted_copy(guest, "rx"), "used": []}
        guest.queues["tx"]["now"] = {"posted": posted_copy(guest, "tx"), "used": []}


def posted_copy(guest: Kitchen, kind: str) -> list[list[Any]]:
    return [list(row) for row in guest.queues[kind]["gates"]["armed"]["descriptors"]]


def _close_rings(cook: Cook) -> None:
    for guest in cook.guests.values():
        for kind in ("rx", "tx"):
            queue = guest.queues[kind]
            now = queue.pop("now")
            gate = "received" if kind == "rx" else "sent"
            queue["gates"][gate] = {
                "avail_idx": (263 if kind == "rx" else 7) + len(now["used"]),
                "used_idx": 7 + len(now["used"]),
                "descriptors": now["posted"],
                "given": list(range(256)) if kind == "rx" else [],
                "used": now["used"],
            }


def reused(count: int, *, fragment: int) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Say that a fragment of each message lies within what was one of an earlier message."""
    return {(one, fragment): (one - 8, 1, 512) for one in range(8, count)}


def _slices(cook: Cook, number: int) -> list[tuple[int, int]]:
    # (offset, size) of the message's part in each frame.
    if cook.size <= cook.whole:
        return [(0, cook.size)]
    out = [(0, cook.slice - 8)]
    while out[-1][0] + out[-1][1] < cook.size:
        offset = out[-1][0] + out[-1][1]
        out.append((offset, min(cook.slice, cook.size - offset)))
    return out


def frame_of(cook: Cook, number: int, offset: int, size: int) -> bytes:
    part = cook.messages.bytes(number)[offset : offset + size]
    if offset == 0:
        part = struct.pack(">HHHH", 40000, PORT, 8 + cook.size, 0) + part
    at = 0 if offset == 0 else offset + 8
    more = offset + size < cook.size
    if cook.family == "ipv6":
        fragment = at if cook.size > cook.whole else None
        return ethernet(ipv6(part, number=100 + number, offset=fragment, more=more), kind=0x86DD)
    return ethernet(ipv4(part, number=100 + number, offset=at, more=more))


def _send(cook: Cook, number: int) -> None:
    guest, data = cook.sender, cook.messages.bytes(number)
    slot = (number % cook.slots) * cook.slot_size
    for index, (offset, size) in enumerate(_slices(cook, number)):
        frame = frame_of(cook, number, offset, size)
        header = cook.headers(offset)
        whose, which, further = cook.heads.get((number, index), (number, index, 0))
        page = 0x0100_0000 + (whose * 64 + which) * 2048 + further
        head = DIRECT_MAP + page
        start = page + 18 + header  # physical address of the payload: Ethernet at head+18
        skb = {
            "skb": DIRECT_MAP + 0x0200_0000 + (number * 64 + index) * 256,
            "head": head,
            "shinfo": head + 1728,
        }
        part = data[offset : offset + size]
        guest.hook(
            "ip_generic_getfrag", **skb, data=head + 32, skb_len=len(frame) - 14,
            dst=DIRECT_MAP + start, dst_phys=start, size=size,
        )  # fmt: skip
        guest.hook(
            "csum_and_copy_from_iter_full", kind=Kind.RETURN, flags=Flag.SRC_USER,
            user=cook.user("sender", slot + offset), dst=DIRECT_MAP + start, dst_phys=start,
            size=size, ret=size, bytes=part[:64], caller=0xFFFFFFFF81500061,
        )  # fmt: skip
        guest.store(start, number, offset, size)
        seen: Event = {**skb, "data": head + 18, "skb_len": len(frame), "src_phys": page + 18}
        seen["bytes"] = frame[:64]
        guest.hook("__dev_queue_xmit", **seen, dev="lab0")
        given = 18 - cook.vnet
        memory: Event = {"src": head + given, "src_phys": page + given}
        memory["size"] = len(frame) + cook.vnet
        if cook.vnet:
            guest.hook("virtio_net:start_xmit", **seen, dev="lab0")
            guest.hook(
                "virtqueue_add_outbuf", **skb, data=head + 18, skb_len=len(frame), **memory,
                aux=0xFF11_0000_0777_0000,
            )  # fmt: skip
        else:
            guest.hook("e1000e:e1000_xmit_frame", **seen, dev="lab0")
            guest.hook(
                "dma_map_page_attrs", kind=Kind.RETURN, **memory, aux=page + given,
                bytes=frame[:64],
            )  # fmt: skip
        now = guest.queues["tx"]["now"]
        ident = len(now["used"]) % 256
        now["posted"][ident] = [ident, f"0x{page + given:x}", len(frame) + cook.vnet, 0, 0]
        now["used"].append([ident, 0])
        guest.frames.append(frame)
        if number not in cook.lost:
            cook.receiver.frames.append(frame)
            _arrive(cook, number, offset, size, frame)


Piece = tuple[int, int, int]  # message, offset in it, size


def _arrive(cook: Cook, number: int, offset: int, size: int, frame: bytes) -> None:
    header = cook.headers(offset)
    skb, data, where, frag = _take_in(cook, frame, header, [(number, offset, size)])
    cook.receiver.queues["rx"].setdefault("parts", {}).setdefault(number, []).append(
        (skb, data, header, offset, size, where, frag)
    )
    if offset + size == cook.size:
        _enqueue(cook, number, SOFTIRQ)


SOFTIRQ: dict[str, Any] = {"comm": "swapper/0", "pid": 0, "tgid": 0, "context": 1}


def _store_pieces(guest: Kitchen, at: int, pieces: Sequence[Piece]) -> None:
    for message, offset, size in pieces:
        guest.store(at, message, offset, size)
        at += size


def _take_in(
    cook: Cook, frame: bytes, header: int, pieces: Sequence[Piece]
) -> tuple[Event, int, int, int]:
    """Let the device fill a buffer and the driver make an skb of it, as mergeable buffers do.

    Returns the skb, where its linear area and its payload lie, and the bytes in its frag.
    """
    guest = cook.receiver
    now = guest.queues["rx"]["now"]
    ident = len(now["used"]) % 256
    buffer = int(now["posted"][ident][1], 16)
    # e1000e fills up what is shorter than Ethernet's least.
    now["used"].append([ident, len(frame) + cook.vnet if cook.vnet else max(len(frame), 60)])
    now["posted"][ident] = [ident, f"0x{0x0D00_0000 + len(now['used']) * 1536:x}", 1536, 2, 0]
    payload_at = buffer + cook.vnet + header
    _store_pieces(guest, payload_at, pieces)
    if not cook.vnet:
        return _take_in_e1000e(cook, frame, header, pieces, buffer)
    vnet = bytes(10) + b"\x01\x00"
    guest.hook(
        "virtio_net:receive_buf", src=DIRECT_MAP + buffer, src_phys=buffer,
        size=len(frame) + VNET, bytes=(vnet + frame)[:64], dev="lab0", **SOFTIRQ,
    )  # fmt: skip
    head, data, frag = buffer, buffer + VNET, 0
    if len(frame) <= 128:
        head = 0x0300_0000 + len(now["used"]) * 1024
        data = head + 96
        guest.hook(
            "virtio_net:page_to_skb>memcpy", kind=Kind.CALLSITE, dst=DIRECT_MAP + data,
            dst_phys=data, src=DIRECT_MAP + buffer + VNET, src_phys=buffer + VNET,
            size=len(frame), bytes=frame[:64], aux=0xFFFFFFFFC0100277, **SOFTIRQ,
        )  # fmt: skip
        _store_pieces(guest, data + header, pieces)
    elif len(frame) > 1204:
        head, frag = 0x0300_0000 + len(now["used"]) * 1024, len(frame) - 14
        data = head + 96
        guest.hook(
            "virtio_net:page_to_skb>memcpy", kind=Kind.CALLSITE, dst=DIRECT_MAP + data,
            dst_phys=data, src=DIRECT_MAP + buffer + VNET, src_phys=buffer + VNET,
            size=14, bytes=frame[:14], aux=0xFFFFFFFFC0100277, **SOFTIRQ,
        )  # fmt: skip
    skb = {
        "skb": DIRECT_MAP + 0x0400_0000 + len(now["used"]) * 256,
        "head": DIRECT_MAP + head,
        "shinfo": DIRECT_MAP + head + (704 if head != buffer else 1216),
    }
    guest.hook(
        "virtio_net:page_to_skb", kind=Kind.RETURN, src=DIRECT_MAP + buffer, src_phys=buffer,
        size=len(frame) + VNET, **skb, data=DIRECT_MAP + data, skb_len=len(frame),
        skb_data_len=frag, frags=1 if frag else 0, **SOFTIRQ,
    )  # fmt: skip
    return skb, data, payload_at if frag else data + header, frag


COPYBREAK = 256  # e1000e copies shorter frames


def _take_in_e1000e(
    cook: Cook, frame: bytes, header: int, pieces: Sequence[Piece], buffer: int
) -> tuple[Event, int, int, int]:
    guest = cook.receiver
    number = len(guest.queues["rx"]["now"]["used"])
    padded = frame.ljust(60, b"\0")
    guest.hook(
        "dma_unmap_page_attrs", src=DIRECT_MAP + buffer, src_phys=buffer, size=1522,
        bytes=padded[:64], aux=buffer, **SOFTIRQ,
    )  # fmt: skip
    head = data = buffer
    if len(frame) < COPYBREAK:
        head = 0x0300_0000 + number * 1024
        data = head + 64
        guest.hook(
            "e1000e:e1000_clean_rx_irq>memcpy", kind=Kind.CALLSITE, dst=DIRECT_MAP + data,
            dst_phys=data, src=DIRECT_MAP + buffer, src_phys=buffer, size=len(padded),
            bytes=padded[:64], aux=0xFFFFFFFFC0110277, **SOFTIRQ,
        )  # fmt: skip
        _store_pieces(guest, data + header, pieces)
    skb = {
        "skb": DIRECT_MAP + 0x0400_0000 + number * 256,
        "head": DIRECT_MAP + head,
        "shinfo": DIRECT_MAP + head + 1728,
    }
    return skb, data, data + header, 0


def _enqueue(cook: Cook, number: int, softirq: dict[str, Any]) -> None:
    guest = cook.receiver
    skb, data, header, _, size, _, frag = guest.queues["rx"]["parts"][number][0]
    shown = b"" if frag else cook.messages.bytes(number)[: min(size, 64)]
    guest.hook(
        "__udp_enqueue_schedule_skb", **skb, data=DIRECT_MAP + data + header,
        src_phys=data + header, skb_len=cook.size,
        skb_data_len=cook.size - (0 if frag else size),
        sk=DIRECT_MAP + 0x600_0000, dev="lab0", bytes=shown, **softirq,
    )  # fmt: skip
    guest.hook("sock_def_readable", sk=DIRECT_MAP + 0x600_0000, **softirq)


def _receive(cook: Cook, number: int) -> None:
    guest, content = cook.receiver, cook.messages.bytes(number)
    slot = (cook.taken.index(number) % cook.slots) * cook.slot_size
    parts = guest.queues["rx"].get("parts", {}).get(number, [])
    function = "_copy_to_iter" if len(parts) == 1 else "csum_and_copy_to_iter"
    for _, _, _, offset, size, where, _ in parts:
        guest.hook(
            function, kind=Kind.RETURN, flags=Flag.DST_USER, src=DIRECT_MAP + where,
            src_phys=where, user=cook.user("receiver", slot + offset), size=size, ret=size,
            bytes=content[offset : offset + size][:64], caller=0xFFFFFFFF81501368,
        )  # fmt: skip
        cook.store_user(guest, "receiver", number, offset, size, at=slot)
    skb, data, header, _, size, _, frag = parts[0]
    guest.hook(
        "skb_consume_udp", **skb, data=DIRECT_MAP + data + header, skb_len=cook.size,
        skb_data_len=cook.size - (0 if frag else size), sk=DIRECT_MAP + 0x600_0000, size=cook.size,
    )  # fmt: skip
    if number == cook.taken[-1]:
        guest.queues["rx"].pop("parts")


# --- TCP ------------------------------------------------------------------------------------

MSS = 1448  # bytes of TCP payload in a frame of MTU 1500, with the timestamp option
TCP_HEADERS = 66  # Ethernet, IPv4, TCP with the timestamp option
ROOM = 320  # MAX_TCP_HEADER, in front of an skb's payload
PAGES = 0x0900_0000


def _stream(cook: Cook, first: int, last: int) -> list[Piece]:
    """Return which bytes of which messages lie in a range of the stream."""
    out = []
    while first < last:
        message, offset = divmod(first, cook.size)
        size = min(cook.size - offset, last - first)
        out.append((message, offset, size))
        first += size
    return out


def _shown(cook: Cook, first: int, last: int) -> bytes:
    pieces = _stream(cook, first, min(last, first + 64))
    return b"".join(cook.messages.bytes(n)[at : at + size] for n, at, size in pieces)


def _page(at: int) -> int:
    # The physical address of a byte of the stream: page frags of 32 KiB, not side by side.
    return PAGES + at // CHUNK * 2 * CHUNK + at % CHUNK


def _chunks(first: int, last: int) -> list[tuple[int, int]]:
    cuts = [first, *range((first // CHUNK + 1) * CHUNK, last, CHUNK), last]
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def _segment(cook: Cook, first: int, last: int) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", 40000, PORT, first, 1, 0x80, 0x18, 500, 0, 0) + bytes(12)
    pieces = _stream(cook, first, last)
    body = b"".join(cook.messages.bytes(n)[at : at + size] for n, at, size in pieces)
    return ethernet(ipv4(tcp + body, number=500 + first + len(cook.sender.frames), kind=6))


def torn(tmp_path: Path) -> Cook:
    """Cook a datagram of three fragments, of which the second got lost at the sender."""
    cook = nic(tmp_path, size=3000)
    for hook in ("virtio_net:start_xmit", "virtqueue_add_outbuf"):
        given = [event for event in cook.sender.events if event["hook"] == hook]
        cook.sender.events.remove(given[1])
    cook.receiver.frames.remove(cook.sender.frames.pop(2))
    first, _, last = [e for e in cook.receiver.events if e["hook"] == "virtio_net:receive_buf"]
    cook.receiver.events[:] = [first, last]
    cook.receiver.workloads[0]["received"]["timed_out"] = True
    return cook


def tcp(
    path: Path,
    *,
    over: str = "link",
    size: int = 16,
    count: int = 1,
    payload: bytes | None = None,
    slots: int = 4,
    together: bool = False,
    coalesce: bool = False,
    dropped: int = 0,
    again: int = 0,
    without: Sequence[str] = (),
    absent: Sequence[str] = (),
) -> Cook:
    """Cook a TCP stream; the link's device takes no frags and computes no checksum.

    `together`: all messages in one skb, as Nagle would.  `coalesce`: the receiving socket
    copies small segments behind the first.  `dropped`: how often each skb is sent in vain,
    as the receiver's device drops it.  `again`: what is sent lies where so many messages
    before a page of the stream was.
    """
    link = over == "link"
    guests = {"sender": Kitchen("sender", 301)}
    if link:
        guests["receiver"] = Kitchen("receiver", 302)
        guests["receiver"].tsc += 500_000
    cook = Cook(
        path=path, over=over, size=size, count=count, protocol="tcp", payload=payload,
        slots=slots, guests=guests, without=tuple(without), absent=tuple(absent), again=again,
    )  # fmt: skip
    cook.buffer("sender", 0x5555_5555_9040, 0x0A00_0000)
    cook.buffer("receiver", 0x7FFC_1000_0A80, 0x0B00_0000)
    if link:
        _rings(cook)
    total = size * count
    cuts = [0, total] if together else [size * n for n in range(count + 1)]
    arrived: list[tuple[int, int, int, Event]] = []
    written = 0
    for number, (first, last) in enumerate(pairwise(cuts)):
        while written < last:
            written = _write_message(cook, written)
        for _ in range(dropped):
            _transmit(cook, number, first, last, arrives=False)
        arrived += _transmit(cook, number, first, last)
    for guest in cook.guests.values():
        guest.gate("sent")
    if coalesce:
        arrived = _coalesce(cook, arrived)
    for number in range(count):
        _read_message(cook, number, arrived)
    for guest in cook.guests.values():
        guest.gate("received")
    if link:
        _close_rings(cook)
    cook.report()
    return cook


def _write_message(cook: Cook, at: int) -> int:
    guest, number = cook.sender, at // cook.size
    cook.store_user(guest, "sender", number, 0, cook.size)
    slot = (number % cook.slots) * cook.slot_size
    for first, last in _chunks(at, at + cook.size):
        guest.hook(
            "_copy_from_iter", kind=Kind.RETURN, flags=Flag.SRC_USER,
            user=cook.user("sender", slot + first - at), dst=DIRECT_MAP + _page(first),
            dst_phys=_page(first), size=last - first, ret=last - first,
            bytes=_shown(cook, first, last),
        )  # fmt: skip
        _store_pieces(guest, _page(first), _stream(cook, first, last))
    return at + cook.size


def _transmit(
    cook: Cook, number: int, first: int, last: int, *, arrives: bool = True
) -> list[tuple[int, int, int, Event]]:
    """Send one skb; returns (first, last, physical address, skb) of each that arrived."""
    guest, size = cook.sender, last - first
    head = DIRECT_MAP + 0x0100_0000 + number * 0x4000
    mine: Event = {"head": head, "shinfo": head + 512}
    original: Event = {"skb": DIRECT_MAP + 0x0200_0000 + number * 512, **mine}
    clone: Event = {"skb": original["skb"] + 232, **mine}
    for index, (a, b) in enumerate(_chunks(first, last)):
        guest.hook(
            "__tcp_transmit_skb", **original, data=head + ROOM, skb_len=size, skb_data_len=size,
            frags=index, src=DIRECT_MAP + _page(a), src_phys=_page(a), size=b - a,
            bytes=_shown(cook, a, b), sk=DIRECT_MAP + 0x500_0000,
        )  # fmt: skip
    begin = bytearray(_segment(cook, first, min(last, first + MSS))[:TCP_HEADERS])
    whole = TCP_HEADERS - 14 + size  # 0 of what is longer than IPv4 can say
    begin[16:18] = struct.pack(">H", whole if whole < 1 << 16 else 0)
    out: Event = {"skb_len": TCP_HEADERS + size, "skb_data_len": size, "bytes": bytes(begin[:64])}
    out |= {"data": head + ROOM - TCP_HEADERS, "dev": "lo" if cook.over == "loopback" else "lab0"}
    guest.hook("__dev_queue_xmit", **clone, **out)
    if cook.over == "loopback":
        guest.hook("loopback_xmit", **clone, **out)
        out |= {"data": out["data"] + 14, "skb_len": whole, "bytes": bytes(begin[14:])}
        guest.hook("__netif_rx", **clone, **out)
        out |= {"data": out["data"] + 20, "skb_len": 32 + size, "bytes": bytes(begin[34:])}
        guest.hook("tcp_rcv_established", **clone, **out, context=1)
        return [(a, b, _page(a), clone) for a, b in _chunks(first, last)]
    made = []
    for a in range(first, last, MSS):
        b = min(a + MSS, last)
        _send_segment(cook, number, clone, (a, b), alone=size <= MSS)
        if arrives:
            made.append((a, b, *_receive_segment(cook, a, b)))
    return made


def _send_segment(
    cook: Cook, number: int, clone: Event, part: tuple[int, int], *, alone: bool
) -> None:
    guest, (first, last) = cook.sender, part
    frame = _segment(cook, first, last)
    page = 0x0600_0000 + first // MSS * 0x1000 + number * 0x4000
    before = number - cook.again * (1 + (first - number * cook.size) // MSS)
    if cook.again and before >= 0:
        page = _page(before * cook.size)
    head, data = DIRECT_MAP + page, page + ROOM - TCP_HEADERS
    new = {"head": head, "shinfo": head + 3776}
    skb = {**clone, **new} if alone else {"skb": DIRECT_MAP + 0x0280_0000 + first * 4, **new}
    seen = {"data": DIRECT_MAP + data, "skb_len": len(frame), "src_phys": data}
    if alone:  # __skb_linearize(): a head of its own, then the frags behind the headers
        guest.hook(
            "pskb_expand_head", kind=Kind.RETURN, **skb, data=DIRECT_MAP + data,
            skb_len=len(frame), skb_data_len=len(frame) - TCP_HEADERS,
            src=clone["head"] + ROOM - TCP_HEADERS, dst=DIRECT_MAP + data, dst_phys=data,
            src_phys=clone["head"] - DIRECT_MAP + ROOM - TCP_HEADERS, size=TCP_HEADERS,
            ret=TCP_HEADERS, bytes=frame[:64],
        )  # fmt: skip
    for index, (a, b) in enumerate(_chunks(first, last)):
        target = page + ROOM + a - first
        guest.hook(
            "skb_copy_bits" if alone else "skb_copy_and_csum_bits",
            **(skb if alone else clone), data=DIRECT_MAP + data if alone else clone["head"] + 254,
            skb_len=len(frame), skb_data_len=last - first, frags=index, aux=TCP_HEADERS,
            src=DIRECT_MAP + _page(a), src_phys=_page(a), dst=DIRECT_MAP + target,
            dst_phys=target, size=b - a, bytes=_shown(cook, a, b),
        )  # fmt: skip
        _store_pieces(guest, target, _stream(cook, a, b))
    guest.hook("virtio_net:start_xmit", **skb, **seen, dev="lab0", bytes=frame[:64])
    guest.hook(
        "virtqueue_add_outbuf", **skb, data=DIRECT_MAP + data, skb_len=len(frame),
        src=DIRECT_MAP + data - VNET, src_phys=data - VNET, size=len(frame) + VNET, aux=1,
    )  # fmt: skip
    now = guest.queues["tx"]["now"]
    ident = len(now["used"]) % 256
    now["posted"][ident] = [ident, f"0x{data - VNET:x}", len(frame) + VNET, 0, 0]
    now["used"].append([ident, 0])
    guest.frames.append(frame)
    cook.receiver.frames.append(frame)


def _receive_segment(cook: Cook, first: int, last: int) -> tuple[int, Event]:
    frame = cook.receiver.frames[-1]
    skb, data, where, frag = _take_in(cook, frame, TCP_HEADERS, _stream(cook, first, last))
    cook.receiver.hook(
        "tcp_rcv_established", **skb, data=DIRECT_MAP + data + 34, src_phys=data + 34,
        skb_len=32 + last - first, skb_data_len=last - first if frag else 0,
        bytes=frame[34 : 66 if frag else 98], **SOFTIRQ,
    )  # fmt: skip
    return where, skb


def _coalesce(
    cook: Cook, arrived: list[tuple[int, int, int, Event]]
) -> list[tuple[int, int, int, Event]]:
    """Copy every segment behind the first, into its tail room."""
    guest = cook.receiver
    first, end, where, skb = arrived[0]
    out = [arrived[0]]
    for a, b, source, other in arrived[1:]:
        target = where + end - first
        guest.hook(
            "skb_copy_bits", **other, data=DIRECT_MAP + source, skb_len=b - a, aux=0,
            src=DIRECT_MAP + source, src_phys=source, dst=DIRECT_MAP + target, dst_phys=target,
            size=b - a, bytes=_shown(cook, a, b), **SOFTIRQ,
        )  # fmt: skip
        _store_pieces(guest, target, _stream(cook, a, b))
        out.append((a, b, target, skb))
        end = b
    return out


def _read_message(cook: Cook, number: int, arrived: list[tuple[int, int, int, Event]]) -> None:
    guest = cook.receiver
    first, last = number * cook.size, (number + 1) * cook.size
    slot = (number % cook.slots) * cook.slot_size
    task = {} if cook.over == "link" else {"pid": guest.pid + 1, "tgid": guest.pid + 1}
    for start, end, where, _ in arrived:
        a, b = max(first, start), min(last, end)
        if a >= b:
            continue
        guest.hook(
            "_copy_to_iter", kind=Kind.RETURN, flags=Flag.DST_USER, size=b - a, ret=b - a,
            src=DIRECT_MAP + where + a - start, src_phys=where + a - start,
            user=cook.user("receiver", slot + a - first), bytes=_shown(cook, a, b), **task,
        )  # fmt: skip
        cook.store_user(guest, "receiver", number, a - first, b - a)


# --- Over loopback --------------------------------------------------------------------------


def loopback(
    path: Path,
    *,
    size: int = 16,
    count: int = 1,
    payload: bytes | None = None,
    slots: int = 4,
    without: Sequence[str] = (),
    absent: Sequence[str] = (),
) -> Cook:
    """Cook UDP over loopback: one skb from the sender's copy to the receiver's."""
    cook = Cook(
        path=path,
        over="loopback",
        size=size,
        count=count,
        protocol="udp",
        payload=payload,
        slots=slots,
        guests={"sender": Kitchen("sender", 301)},
        without=tuple(without),
        absent=tuple(absent),
    )
    cook.buffer("sender", 0x5555_5555_9040, 0x0A00_0000)
    cook.buffer("receiver", 0x7FFC_1000_0A80, 0x0B00_0000)
    guest = cook.sender
    for number in range(count):
        cook.store_user(guest, "sender", number, 0, size)
        _loop(cook, number)
    guest.gate("sent")
    for number in range(count):
        _loop_receive(cook, number)
    guest.gate("received")
    cook.report()
    return cook


CHUNK = 32768  # bytes of a page frag
LINEAR_MOST = 16004  # bytes of payload that still lie in the linear area over loopback


def _loop_parts(cook: Cook, number: int) -> list[tuple[int, int, int]]:
    # (offset, size, physical) of each chunk the payload lies in.
    page = 0x0100_0000 + number * 0x4_0000
    if cook.size <= LINEAR_MOST:
        return [(0, cook.size, page + 44)]
    return [
        (offset, min(CHUNK, cook.size - offset), 0x0800_0000 + number * 0x4_0000 + offset * 2)
        for offset in range(0, cook.size, CHUNK)
    ]


def _loop_skb(cook: Cook, number: int) -> Event:
    head = DIRECT_MAP + 0x0100_0000 + number * 0x4_0000
    room = 64 + cook.size if cook.size <= LINEAR_MOST else 448
    return {"skb": DIRECT_MAP + 0x0200_0000 + number * 256, "head": head, "shinfo": head + room}


def _loop(cook: Cook, number: int) -> None:
    guest, content = cook.sender, cook.messages.bytes(number)
    skb, parts = _loop_skb(cook, number), _loop_parts(cook, number)
    frag = cook.size if cook.size > LINEAR_MOST else 0
    slot = (number % cook.slots) * cook.slot_size
    done = 0
    for offset, size, physical in parts:
        guest.hook(
            "ip_generic_getfrag", **skb, data=skb["head"] + 16,
            skb_len=44 if not frag else 28 + done, skb_data_len=done,
            dst=DIRECT_MAP + physical, dst_phys=physical, size=size,
        )  # fmt: skip
        guest.hook(
            "_copy_from_iter", kind=Kind.RETURN, flags=Flag.SRC_USER,
            user=cook.user("sender", slot + offset), dst=DIRECT_MAP + physical,
            dst_phys=physical, size=size, ret=size, bytes=content[offset : offset + 64][:size],
            caller=0xFFFFFFFF81500061,
        )  # fmt: skip
        guest.store(physical, number, offset, size)
        done += size
    frame = ethernet(ipv4(udp(content), number=number))
    linear = frame[:42] if frag else frame
    shown = linear[:64]
    wire = {"skb_len": 42 + cook.size, "skb_data_len": frag, "dev": "lo"}
    guest.hook("__dev_queue_xmit", **skb, data=skb["head"] + 2, bytes=shown, **wire)
    guest.hook("loopback_xmit", **skb, data=skb["head"] + 2, bytes=shown, **wire)
    wire["skb_len"] = 28 + cook.size
    guest.hook("__netif_rx", **skb, data=skb["head"] + 16, bytes=linear[14:78], **wire)
    guest.hook(
        "__udp_enqueue_schedule_skb", **skb, data=skb["head"] + 44, skb_len=cook.size,
        skb_data_len=frag, sk=DIRECT_MAP + 0x600_0000, dev="lo", context=1,
        bytes=b"" if frag else content[:64],
    )  # fmt: skip
    guest.hook("sock_def_readable", sk=DIRECT_MAP + 0x600_0000, context=1)


def _loop_receive(cook: Cook, number: int) -> None:
    guest, content = cook.sender, cook.messages.bytes(number)
    skb = _loop_skb(cook, number)
    slot = (number % cook.slots) * cook.slot_size
    task = {"pid": guest.pid + 1, "tgid": guest.pid + 1, "comm": "receiver"}
    for offset, size, physical in _loop_parts(cook, number):
        guest.hook(
            "_copy_to_iter", kind=Kind.RETURN, flags=Flag.DST_USER, src=DIRECT_MAP + physical,
            src_phys=physical, user=cook.user("receiver", slot + offset), size=size, ret=size,
            bytes=content[offset : offset + 64][:size], caller=0xFFFFFFFF81501368, **task,
        )  # fmt: skip
        cook.store_user(guest, "receiver", number, offset, size)
    guest.hook(
        "skb_consume_udp", **skb, data=skb["head"] + 44, skb_len=cook.size,
        skb_data_len=cook.size if cook.size > LINEAR_MOST else 0, size=cook.size,
        sk=DIRECT_MAP + 0x600_0000, **task,
    )  # fmt: skip


# --- Spoiling -------------------------------------------------------------------------------


def change(guest: Kitchen, hook: str, **fields: Any) -> None:
    """Change fields of every record of a hook."""
    for event in guest.events:
        if event["hook"] == hook:
            event.update(fields)


def edit(run: RunDir, name: str, how: Callable[[Any], None]) -> None:
    """Change a JSON artefact in place."""
    path = run.file(name)
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))
