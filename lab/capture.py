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


@dataclass(frozen=True, kw_only=True, slots=True)
class Headers:
    """What the headers of one frame say; `payload_at` is where they end.

    In an IP fragment that is not the first, `payload_at` is where the datagram's
    bytes go on and the ports are None.
    """

    source_mac: str
    target_mac: str
    ethertype: int
    ip_source: str
    ip_target: str
    ip_id: int
    ip_ttl: int
    ip_total: int
    protocol: int
    fragment_offset: int
    more_fragments: bool
    source_port: int | None
    target_port: int | None
    udp_length: int | None
    payload_at: int
    payload_end: int


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame as a backend saw it."""

    index: int
    time_ns: int
    data: bytes

    @cached_property
    def headers(self) -> Headers | None:
        """The parsed headers; None when the frame carries no IPv4."""
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
    """Return the headers of an Ethernet frame that carries IPv4, None for any other."""
    try:
        frame = dpkt.ethernet.Ethernet(data)
        ip = frame.data
        if frame.type != dpkt.ethernet.ETH_TYPE_IP or not isinstance(ip, dpkt.ip.IP):
            return None
    except (dpkt.Error, IndexError, ValueError):
        return None
    start = 14 + ip.hl * 4
    end = min(len(data), 14 + ip.len) if ip.len else len(data)  # 0: a device was to cut it
    flags = int.from_bytes(data[20:22], "big")  # three flags and the offset in eights
    fragment_offset = (flags & 0x1FFF) << 3
    source, target, length, header = None, None, None, 0
    if fragment_offset == 0:
        source, target, length, header = _transport(data[start:end], ip.p)
    return Headers(
        source_mac=frame.src.hex(":"),
        target_mac=frame.dst.hex(":"),
        ethertype=frame.type,
        ip_source=socket.inet_ntoa(ip.src),
        ip_target=socket.inet_ntoa(ip.dst),
        ip_id=ip.id,
        ip_ttl=ip.ttl,
        ip_total=ip.len,
        protocol=ip.p,
        fragment_offset=fragment_offset,
        more_fragments=bool(flags & 0x2000),
        source_port=source,
        target_port=target,
        udp_length=length,
        payload_at=min(start + header, end),
        payload_end=end,
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
        return [("frame", len(frame.data), "not IPv4")]
    macs = f"dst={headers.target_mac} src={headers.source_mac} type=0x{headers.ethertype:04x}"
    hosts = (
        f"src={headers.ip_source} dst={headers.ip_target} id={headers.ip_id} "
        f"ttl={headers.ip_ttl} proto={headers.protocol} len={headers.ip_total}"
    )
    rows = [("Ethernet", 14, macs), ("IPv4", (frame.data[14] & 15) * 4, hosts)]
    if headers.fragment_offset or headers.more_fragments:
        more = " more to come" if headers.more_fragments else ""
        rows.append(("fragment", 0, f"of a datagram, at byte {headers.fragment_offset}{more}"))
    size = headers.payload_at - 14 - (frame.data[14] & 15) * 4
    if headers.source_port is not None:
        name = "UDP" if headers.udp_length is not None else "TCP"
        length = "" if headers.udp_length is None else f" len={headers.udp_length}"
        ports = f"src_port={headers.source_port} dst_port={headers.target_port}{length}"
        rows.append((name, size, ports))
    return rows
