"""A capture of a tap, brought to what any program that reads captures expects: bare frames.

QEMU 7.2's filter-dump writes a packet as the tap has it, behind the virtio header that says
which checksum to fill in and where to cut; from 8.0 on it leaves that header out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

GLOBAL = 24  # bytes in front of all packets, and in front of each
RECORD = struct.Struct("<IIII")  # seconds, microseconds, bytes kept, bytes there were
SOURCE = 6  # where a frame has the MAC of who sent it
HEADERS = (0, 10, 12, 20)  # bytes: none, plain, with mergeable buffers, with a hash


def bare(pcap: bytes, macs: Sequence[bytes]) -> bytes:
    """Return a capture without virtio headers; `macs` are those that frames come from.

    How long the headers are show the frames: one of `macs` stands where it should in most.
    What is no whole record is left as it is, for its reader to complain of.
    """
    packets = list(_packets(pcap))
    header = max(
        HEADERS,
        key=lambda size: sum(_source(packet, size) in macs for _, packet in packets),
    )
    if header == 0:
        return pcap
    out = [pcap[:GLOBAL]]
    end = GLOBAL
    for (seconds, fraction, kept, there), packet in packets:
        end += RECORD.size + kept
        cut = min(header, kept)
        out += [RECORD.pack(seconds, fraction, kept - cut, there - cut), packet[cut:]]
    return b"".join([*out, pcap[end:]])


def count(pcap: bytes) -> int:
    """Return how many whole packets a capture has, which may still be written."""
    return sum(1 for _ in _packets(pcap))


def _source(packet: bytes, header: int) -> bytes:
    return packet[header + SOURCE : header + SOURCE + 6]


def _packets(pcap: bytes) -> Iterator[tuple[tuple[int, int, int, int], bytes]]:
    at = GLOBAL
    while at + RECORD.size <= len(pcap):
        seconds, fraction, kept, there = RECORD.unpack_from(pcap, at)
        start = at + RECORD.size
        if start + kept > len(pcap):
            return
        yield (seconds, fraction, kept, there), pcap[start : start + kept]
        at = start + kept
