"""Frames of a link capture: index, time, headers, payload."""

from __future__ import annotations

import io
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import dpkt

from lab.errors import TraceCorrupt
from lab.rundir import fields as checked

MAX_CAPTURE = 512 << 20  # bytes
MAX_FRAME = 1 << 18  # bytes; a segment the device was to cut is under 64 KiB
ETHERNET = 1  # LINKTYPE_ETHERNET
ETHERNET_SIZE, IPV6_SIZE = 14, 40  # bytes of headers
IPV6_OPTIONS = frozenset({0, 43, 60})  # hop by hop, routing, destination: RFC 8200, section 4
IPV6_FRAGMENT = 44
IPV6_MOST = 65535  # bytes that its length field can say; a packet of more says 0 (RFC 2675)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headers:
    """What the headers of one frame say; `payload_at` is where they end.

    In an IP fragment that is not the first, `payload_at` is where the datagram's
    bytes go on and the ports are None.  Of IPv6 `ip_ttl` is the hop limit, and `ip_id` the
    fragment header's.
    """

    source_mac: str
    target_mac: str
    ethertype: int
    version: int
    ip_size: int  # without the 8 bytes of an IPv6 fragment header
    ip_source: str
    ip_target: str
    ip_id: int
    ip_ttl: int
    ip_total: int
    protocol: int
    fragment_size: int  # 8 where IPv6 has a fragment header; IPv4 has it in its own
    fragment_offset: int
    more_fragments: bool
    source_port: int | None
    target_port: int | None
    udp_length: int | None
    payload_at: int
    payload_end: int
    sequence: int = 0  # of TCP


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame as a backend saw it."""

    index: int
    time_ns: int
    data: bytes

    @cached_property
    def headers(self) -> Headers | None:
        """The parsed headers; None when the frame carries neither IPv4 nor IPv6."""
        return parse(self.data)

    @property
    def payload(self) -> bytes:
        """What follows UDP's or TCP's header; empty where there is none."""
        headers = self.headers
        return b"" if headers is None else self.data[headers.payload_at : headers.payload_end]

    @property
    def source_mac(self) -> bytes:
        return self.data[6:12]


def read(path: Path) -> list[Frame]:
    """Return the frames of a pcap file; raise `TraceCorrupt` when it is none or cut short."""
    data = checked.read_bytes(path, most=MAX_CAPTURE)
    frames: list[Frame] = []
    order: Literal["little", "big"] = "little" if data[:1] in (b"\xd4", b"\x4d") else "big"
    end = 24
    try:
        reader = dpkt.pcap.Reader(io.BytesIO(data))
        if reader.datalink() != ETHERNET:
            raise TraceCorrupt(
                f"{path}: expected link type {ETHERNET} (Ethernet), found {reader.datalink()}",
                log=path,
            )
        for seconds, frame in reader:
            if len(frame) > MAX_FRAME:
                raise TraceCorrupt(
                    f"{path}: frame {len(frames)} at byte {end}: expected at most {MAX_FRAME}"
                    f" bytes, found {len(frame)}",
                    log=path,
                )
            # dpkt ends quietly at a record that is cut short, or gives what there is of it.
            asked = int.from_bytes(data[end + 8 : end + 12], order)
            if asked != len(frame):
                raise TraceCorrupt(
                    f"{path}: frame {len(frames)} at byte {end}: expected {asked} bytes,"
                    f" found {len(frame)}",
                    log=path,
                )
            end += 16 + len(frame)
            frames.append(Frame(index=len(frames), time_ns=int(seconds * 10**9), data=bytes(frame)))
    except (dpkt.Error, ValueError) as error:
        raise TraceCorrupt(
            f"{path}: frame {len(frames)} at byte {end}: expected a pcap record, found: {error}",
            log=path,
        ) from error
    if end != len(data):
        raise TraceCorrupt(
            f"{path}: frame {len(frames)}: expected the file to end at byte {end},"
            f" found {len(data) - end} more",
            log=path,
        )
    return frames


def parse(data: bytes) -> Headers | None:
    """Return the headers of an Ethernet frame that carries IPv4 or IPv6, None for any other."""
    if data[12:14] == dpkt.ethernet.ETH_TYPE_IP6.to_bytes(2, "big"):
        network = _ipv6(data)
    else:
        network = _ipv4(data)
    if network is None:
        return None
    source, target, length, header = None, None, None, 0
    if network.fragment_offset == 0 and network.intact:
        source, target, length, header = _transport(
            data[network.at : network.end], network.protocol
        )
    return Headers(
        source_mac=data[6:12].hex(":"),
        target_mac=data[0:6].hex(":"),
        ethertype=int.from_bytes(data[12:14], "big"),
        version=network.version,
        ip_size=network.size,
        ip_source=network.source,
        ip_target=network.target,
        ip_id=network.id,
        ip_ttl=network.ttl,
        ip_total=network.total,
        protocol=network.protocol,
        fragment_size=network.at - ETHERNET_SIZE - network.size,
        fragment_offset=network.fragment_offset,
        more_fragments=network.more_fragments,
        source_port=source,
        target_port=target,
        udp_length=length,
        payload_at=min(network.at + header, network.end),
        payload_end=network.end,
        sequence=int.from_bytes(data[network.at + 4 : network.at + 8], "big")
        if network.protocol == dpkt.ip.IP_PROTO_TCP and header
        else 0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Network:
    """What an IP header says; the packet goes on behind it, or behind its fragment, at `at`."""

    version: int
    size: int
    source: str
    target: str
    id: int
    ttl: int
    total: int
    protocol: int
    fragment_offset: int = 0
    more_fragments: bool = False
    intact: bool = True
    at: int
    end: int


def _ipv4(data: bytes) -> _Network | None:
    try:
        frame = dpkt.ethernet.Ethernet(data)
        ip = frame.data
        if frame.type != dpkt.ethernet.ETH_TYPE_IP or not isinstance(ip, dpkt.ip.IP):
            return None
    except (dpkt.Error, IndexError, ValueError):
        return None
    flags = int.from_bytes(data[20:22], "big")  # three flags and the offset in eights
    size = ip.hl * 4
    return _Network(
        version=4,
        size=size,
        source=socket.inet_ntoa(ip.src),
        target=socket.inet_ntoa(ip.dst),
        id=ip.id,
        ttl=ip.ttl,
        total=ip.len,
        protocol=ip.p,
        fragment_offset=(flags & 0x1FFF) << 3,
        more_fragments=bool(flags & 0x2000),
        at=ETHERNET_SIZE + size,
        # 0: a device was to cut it
        end=min(len(data), ETHERNET_SIZE + ip.len) if ip.len else len(data),
    )


def _ipv6(data: bytes) -> _Network | None:
    # By hand: of a record that holds the first bytes alone dpkt makes nothing.
    if len(data) < ETHERNET_SIZE + IPV6_SIZE or data[14] >> 4 != 6:
        return None
    length = int.from_bytes(data[18:20], "big")  # of what follows the header
    end = min(len(data), ETHERNET_SIZE + IPV6_SIZE + length) if length else len(data)
    at, following = ETHERNET_SIZE + IPV6_SIZE, data[20]
    # QEMU 7.2's e1000e cuts such packets as if they were IPv4: length 0, what followed the
    # first 40 bytes dealt out without headers. No receiver takes them; TCP sends again.
    intact = bool(length) or len(data) - at > IPV6_MOST
    while following in IPV6_OPTIONS and at + 8 <= end:
        following, at = data[at], at + (data[at + 1] + 1) * 8
    size = at - ETHERNET_SIZE
    number, place = 0, 0
    if following == IPV6_FRAGMENT and at + 8 <= end:
        following, place = data[at], int.from_bytes(data[at + 2 : at + 4], "big")
        number = int.from_bytes(data[at + 4 : at + 8], "big")
        at += 8
    return _Network(
        version=6,
        size=size,
        source=socket.inet_ntop(socket.AF_INET6, data[22:38]),
        target=socket.inet_ntop(socket.AF_INET6, data[38:54]),
        id=number,
        ttl=data[21],
        total=IPV6_SIZE + length,
        protocol=following,
        fragment_offset=place & 0xFFF8,
        more_fragments=bool(place & 1),
        intact=intact,
        at=min(at, end),
        end=end,
    )


def _transport(data: bytes, protocol: int) -> tuple[int | None, int | None, int | None, int]:
    # Source port, target port, UDP's length, size of the header.
    if protocol == dpkt.ip.IP_PROTO_UDP and len(data) >= 8:
        ports = int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big")
        return *ports, int.from_bytes(data[4:6], "big"), 8
    if protocol == dpkt.ip.IP_PROTO_TCP and len(data) >= 20:
        ports = int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big")
        return *ports, None, (data[12] >> 4) * 4
    return None, None, None, 0


def describe(frame: Frame) -> list[tuple[str, int, str]]:
    """Return the rows (part, bytes, fields) a person reads a frame by."""
    headers = frame.headers
    if headers is None:
        return [("frame", len(frame.data), "neither IPv4 nor IPv6")]
    macs = f"dst={headers.target_mac} src={headers.source_mac} type=0x{headers.ethertype:04x}"
    hosts = f"src={headers.ip_source} dst={headers.ip_target}"
    if headers.version == 4:
        hosts += f" id={headers.ip_id} ttl={headers.ip_ttl} proto={headers.protocol}"
        hosts += f" len={headers.ip_total}"
    else:
        hosts += f" next={frame.data[20]} hops={headers.ip_ttl} len={headers.ip_total - IPV6_SIZE}"
    rows = [("Ethernet", ETHERNET_SIZE, macs), (f"IPv{headers.version}", headers.ip_size, hosts)]
    if headers.fragment_offset or headers.more_fragments or headers.fragment_size:
        more = " more to come" if headers.more_fragments else ""
        text = f"of a datagram, at byte {headers.fragment_offset}{more}"
        if headers.fragment_size:
            text = f"next={headers.protocol} id=0x{headers.ip_id:08x} {text}"
        rows.append(("fragment", headers.fragment_size, text))
    size = headers.payload_at - ETHERNET_SIZE - headers.ip_size - headers.fragment_size
    if headers.source_port is not None:
        name = "UDP" if headers.udp_length is not None else "TCP"
        length = "" if headers.udp_length is None else f" len={headers.udp_length}"
        ports = f"src_port={headers.source_port} dst_port={headers.target_port}{length}"
        rows.append((name, size, ports))
    return rows
