"""Captures of the link: frames with their headers, or a fault with its place."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lab import capture
from lab.errors import TraceCorrupt
from tests.unit import cooked

PAYLOAD = b"HELLO_SEND_TRACE"


def _read(tmp_path: Path, data: bytes) -> list[capture.Frame]:
    path = tmp_path / "wire.pcap"
    path.write_bytes(data)
    return capture.read(path)


def _frame(data: bytes) -> capture.Frame:
    return capture.Frame(index=0, time_ns=0, data=data)


def test_a_datagram_is_read_with_its_headers(tmp_path: Path) -> None:
    frame = cooked.ethernet(cooked.ipv4(cooked.udp(PAYLOAD), number=7))

    (found,) = _read(tmp_path, cooked.pcap([frame]))

    headers = found.headers
    assert headers is not None
    assert ("192.168.29.100", "192.168.29.158") == (headers.ip_source, headers.ip_target)
    assert (40000, 9999, 24) == (headers.source_port, headers.target_port, headers.udp_length)
    assert (7, 42, 58) == (headers.ip_id, headers.payload_at, headers.payload_end)
    assert PAYLOAD == found.payload
    assert frame == found.data
    assert 1_000_000_000_000 == found.time_ns


def test_padding_is_no_payload() -> None:
    frame = cooked.ethernet(cooked.ipv4(cooked.udp(b"abc"), number=7)) + bytes(20)

    assert b"abc" == _frame(frame).payload


def test_a_fragment_says_where_it_belongs() -> None:
    frame = _frame(cooked.ethernet(cooked.ipv4(PAYLOAD, number=7, offset=1480, more=True)))

    headers = frame.headers
    assert headers is not None
    assert (1480, True, None) == (
        headers.fragment_offset,
        headers.more_fragments,
        headers.source_port,
    )
    assert PAYLOAD == frame.payload


def test_a_datagram_of_ipv6_is_read_with_its_headers() -> None:
    frame = _frame(cooked.ethernet(cooked.ipv6(cooked.udp(PAYLOAD), number=7), kind=0x86DD))

    headers = frame.headers
    assert headers is not None
    assert ("fd29::64", "fd29::9e", 6) == (headers.ip_source, headers.ip_target, headers.version)
    assert (40000, 9999, 24, 64) == (
        headers.source_port,
        headers.target_port,
        headers.udp_length,
        headers.ip_ttl,
    )
    assert (40, 0, 64) == (headers.ip_size, headers.fragment_size, headers.ip_total)
    assert PAYLOAD == frame.payload
    assert [("Ethernet", 14), ("IPv6", 40), ("UDP", 8)] == [
        row[:2] for row in capture.describe(frame)
    ]
    assert "src=fd29::64 dst=fd29::9e next=17 hops=64 len=24" == capture.describe(frame)[1][2]


@pytest.mark.parametrize(("offset", "ports"), [(0, 40000), (1448, None)])
def test_a_fragment_of_ipv6_has_a_header_of_its_own(offset: int, ports: int | None) -> None:
    part = cooked.udp(PAYLOAD) if offset == 0 else PAYLOAD
    packet = cooked.ipv6(part, number=7, offset=offset, more=True)
    frame = _frame(cooked.ethernet(packet, kind=0x86DD))

    headers = frame.headers
    assert headers is not None
    assert (offset, True, ports, 7) == (
        headers.fragment_offset,
        headers.more_fragments,
        headers.source_port,
        headers.ip_id,
    )
    assert PAYLOAD == frame.payload
    rows = capture.describe(frame)
    assert ("fragment", 8) == rows[2][:2]
    assert f"next=17 id=0x00000007 of a datagram, at byte {offset} more to come" == rows[2][2]
    assert len(frame.data) == sum(row[1] for row in rows) + len(PAYLOAD)


def test_options_of_ipv6_are_no_payload() -> None:
    packet = bytearray(cooked.ipv6(bytes([17, 0]) + bytes(6) + cooked.udp(PAYLOAD), number=7))
    packet[6] = 60  # destination options, then UDP
    frame = _frame(cooked.ethernet(bytes(packet), kind=0x86DD))

    assert PAYLOAD == frame.payload
    assert ("IPv6", 48) == capture.describe(frame)[1][:2]


@pytest.mark.parametrize("size", [14, 20, 53])
def test_a_packet_of_ipv6_cut_short_is_no_fault(size: int) -> None:
    frame = cooked.ethernet(cooked.ipv6(cooked.udp(PAYLOAD), number=7), kind=0x86DD)

    assert b"" == _frame(frame[:size]).payload


def test_tcp_options_are_no_payload() -> None:
    segment = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 8 << 4, 0, 0, 0, 0) + bytes(12) + PAYLOAD
    frame = bytearray(cooked.ethernet(cooked.ipv4(segment, number=7)))
    frame[23] = 6

    assert PAYLOAD == _frame(bytes(frame)).payload


@pytest.mark.parametrize("data", [b"", b"\0" * 13, cooked.ARP, cooked.ethernet(b"\x45")])
def test_what_is_no_datagram_has_no_payload(data: bytes) -> None:
    assert b"" == _frame(data).payload


def test_a_person_reads_a_frame() -> None:
    frame = cooked.ethernet(cooked.ipv4(cooked.udp(PAYLOAD), number=7))

    rows = capture.describe(_frame(frame))

    assert [("Ethernet", 14), ("IPv4", 20), ("UDP", 8)] == [row[:2] for row in rows]
    assert "src_port=40000 dst_port=9999 len=24" == rows[2][2]
    assert [("frame", 42, "neither IPv4 nor IPv6")] == capture.describe(_frame(cooked.ARP))


@pytest.mark.parametrize("cut", [3, 20, 25, 39, 45, -1])
def test_a_capture_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    data = cooked.pcap([cooked.ARP, cooked.ARP])

    with pytest.raises(TraceCorrupt, match=r"wire\.pcap"):
        _read(tmp_path, data[:cut])


def test_an_empty_capture_has_no_frames(tmp_path: Path) -> None:
    assert [] == _read(tmp_path, cooked.pcap([]))


def test_another_link_type_is_refused(tmp_path: Path) -> None:
    data = bytearray(cooked.pcap([cooked.ARP]))
    data[20] = 101

    with pytest.raises(TraceCorrupt, match="expected link type 1"):
        _read(tmp_path, bytes(data))


def test_a_frame_no_link_carries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceCorrupt, match="at most"):
        _read(tmp_path, cooked.pcap([bytes(capture.MAX_FRAME + 1)]))


def test_what_a_device_cut_wrongly_has_no_headers_of_tcp() -> None:
    # The second piece of a packet that QEMU 7.2's e1000e was to cut: its length is 0, and where
    # TCP's header would be the message goes on.
    packet = bytearray(cooked.ipv6(PAYLOAD * 2, number=7))
    packet[4:6], packet[6] = bytes(2), 6
    frame = _frame(cooked.ethernet(bytes(packet), kind=0x86DD))

    headers = frame.headers
    assert headers is not None
    assert (None, 54) == (headers.source_port, headers.payload_at)
    assert PAYLOAD * 2 == frame.payload


def test_a_packet_too_large_for_its_length_keeps_its_headers() -> None:
    segment = struct.pack(">HHIIBBHHH", 1, 2, 3, 0, 5 << 4, 0, 0, 0, 0) + bytes(65600)
    packet = bytearray(cooked.ipv6(b"", number=7))
    packet[4:6], packet[6] = bytes(2), 6
    headers = _frame(cooked.ethernet(bytes(packet) + segment, kind=0x86DD)).headers

    assert headers is not None
    assert (1, 3, 74) == (headers.source_port, headers.sequence, headers.payload_at)
