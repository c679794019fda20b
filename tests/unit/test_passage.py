"""Frames on their way over taps: what a host finished is still what left, and no more is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lab import correlate
from lab.capture import Frame
from lab.correlate import devices
from lab.correlate.board import Board
from lab.correlate.holdings import Held, Way
from lab.correlate.passage import Passage
from lab.correlate.types import PlaceKind
from tests.unit import cooked

A, B = b"\x52\x54\x00\x29\x00\x64", b"\x52\x54\x00\x29\x00\x9e"
MOST = 1448  # bytes of TCP in a frame


def frame(index: int, data: bytes) -> Frame:
    return Frame(index=index, time_ns=index, data=data)


def packet(
    version: int, protocol: int, body: bytes, *, number: int = 1, fragment: int = 0, ttl: int = 64
) -> bytes:
    if version == 6:
        head = struct.pack(">IHBB", 6 << 28, len(body), protocol, ttl)
        return B + A + b"\x86\xdd" + head + bytes(15) + b"\x01" + bytes(15) + b"\x02" + body
    facts = (0x45, 0, 20 + len(body), number, fragment, ttl, protocol, number)
    head = struct.pack(">BBHHHBBH", *facts)
    return B + A + b"\x08\x00" + head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + body


def tcp(payload: bytes, *, sequence: int, flags: int = 0x18, checksum: int = 0) -> bytes:
    ports = struct.pack(">HH", 1234, 9999)
    return ports + struct.pack(">IIBBHHH", sequence, 5, 5 << 4, flags, 512, checksum, 0) + payload


def udp(payload: bytes, *, checksum: int = 0) -> bytes:
    return struct.pack(">HHHH", 1234, 9999, 8 + len(payload), checksum) + payload


TEXT = bytes(at % 251 for at in range(4000))


def test_a_frame_that_arrives_as_it_left_is_that_frame() -> None:
    data = packet(4, 17, udp(TEXT[:100]))
    passage = Passage([frame(0, data), frame(1, data)])

    found = [passage.take(frame(at, data)) for at in range(3)]

    assert [0, 1] == [twin.frame.index for twin in found if twin is not None]
    assert found[2] is None  # two left


@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_the_host_filled_in(version: int) -> None:
    left, came = (packet(version, 17, udp(TEXT[:100], checksum=sum_)) for sum_ in (0xBC7C, 0xE2E5))

    twin = Passage([frame(0, left)]).take(frame(0, came))

    assert twin is not None
    assert (len(left) - 100, len(left), 0) == (twin.first, twin.last, twin.shift)


@pytest.mark.parametrize("version", [4, 6])
def test_frames_cut_of_a_large_packet_are_its_parts_in_any_order(version: int) -> None:
    begins = (1 << 32) - 2000  # sequence numbers begin anew within it
    left = packet(version, 6, tcp(TEXT, sequence=begins))
    passage = Passage([frame(0, left)])
    spans = []
    for number, at in enumerate((MOST, 0, 2 * MOST)):
        part = TEXT[at : at + MOST]
        body = tcp(part, sequence=(begins + at) % (1 << 32), flags=0x10, checksum=7)
        came = packet(version, 6, body, number=number + 2)
        twin = passage.take(frame(number, came))
        assert twin is not None
        assert left[twin.first : twin.last] == part
        assert came[twin.first - twin.shift :][: len(part)] == part
        spans.append((twin.first - len(left) + len(TEXT), twin.last - len(left) + len(TEXT)))
    assert [(MOST, 2 * MOST), (0, MOST), (2 * MOST, 4000)] == spans


def test_a_short_frame_that_was_padded() -> None:
    left = packet(4, 17, b"x", fragment=185)  # the last byte of a datagram, by itself
    twin = Passage([frame(0, left)]).take(frame(0, left + bytes(15)))

    assert twin is not None
    assert (34, 35) == (twin.first, twin.last)


def test_what_was_sent_twice_arrives_twice_and_not_three_times() -> None:
    sent = packet(4, 6, tcp(TEXT[:312], sequence=9, checksum=1))
    again = packet(4, 6, tcp(TEXT[:312], sequence=9, checksum=1), number=2)
    came = packet(4, 6, tcp(TEXT[:312], sequence=9, checksum=2), number=3)
    passage = Passage([frame(0, sent), frame(1, again)])

    found = [passage.take(frame(at, came)) for at in range(3)]

    assert [0, 1] == [twin.frame.index for twin in found if twin is not None]
    assert found[2] is None


def test_what_came_finished_does_not_come_as_it_left_as_well() -> None:
    sent = packet(4, 17, udp(TEXT[:100], checksum=1))
    passage = Passage([frame(0, sent)])

    assert passage.take(frame(0, packet(4, 17, udp(TEXT[:100], checksum=2)))) is not None
    assert passage.take(frame(1, sent)) is None


@pytest.mark.parametrize(
    "came",
    [
        packet(4, 17, udp(TEXT[:99] + b"?", checksum=2)),
        packet(4, 17, udp(TEXT[:100], checksum=2), number=2),
        A + B + packet(4, 17, udp(TEXT[:100], checksum=2))[12:],
        packet(4, 17, udp(TEXT[:100], checksum=2), ttl=63),
        packet(4, 17, udp(TEXT[:50], checksum=2)),
        packet(6, 17, udp(TEXT[:100], checksum=2)),
    ],
    ids=["payload", "number", "macs", "ttl", "half of it", "version"],
)
def test_what_never_left_has_no_twin(came: bytes) -> None:
    assert (
        Passage([frame(0, packet(4, 17, udp(TEXT[:100], checksum=1)))]).take(frame(0, came)) is None
    )


def test_of_tcp_bytes_are_known_by_their_number_too() -> None:
    zeros = Passage([frame(0, packet(4, 6, tcp(bytes(2000), sequence=100)))])

    assert zeros.take(frame(0, packet(4, 6, tcp(bytes(10), sequence=99, checksum=1)))) is None
    assert zeros.take(frame(0, packet(4, 6, tcp(bytes(10), sequence=2095, checksum=1)))) is None
    assert zeros.take(frame(0, packet(4, 6, tcp(bytes(10), sequence=2090, checksum=1))))


def test_a_header_that_ends_with_a_byte_of_the_message_is_no_payload() -> None:
    """Of 256 frames one ends its header with the byte that comes before in the message."""
    one = frame(0, packet(4, 17, udp(TEXT[:100])))
    assert one.headers is not None
    begins = one.headers.payload_at

    assert (begins, 3, 501, 99) == devices._within(one, begins - 1, 3, 500, 100)
    assert (begins, 3, 500, 100) == devices._within(one, begins, 3, 500, 120)
    assert devices._within(one, 10, 3, 500, 8) is None


@pytest.mark.parametrize("size", [1000, 12])  # of 12 bytes no whole block says the message
def test_a_frame_is_found_wherever_it_left(tmp_path: Path, size: int) -> None:
    """The first few are compared in their order, those behind them looked up by message."""
    count = 3 * devices.NEAR
    board = Board(correlate.load(cooked.nic(tmp_path, size=size, count=count).serve()))
    text = board.inputs.identity.bytes_of
    sent = [frame(at, packet(4, 17, udp(text(at)), number=at)) for at in range(count)]
    wire = devices.Wire(board)
    wire.load(sent)
    begins, header = len(sent[0].data) - size, 12

    def held(message: int, offset: int, length: int, where: int) -> Held:
        place = board.place(
            "sender", PlaceKind.KERNEL, held=(message, offset, length), virtual=0, evidence=["x#0"]
        )
        return Held(0, length, message, offset, place, Way(), where)

    def claimed(*parts: Held, shown: bytes = b"") -> tuple[int, list[int]] | None:
        found = wire.claim(len(sent[0].data) + header, parts, shown)
        return None if found is None else (found[0].index, [part.at for part in found[2]])

    behind, residue = count - 2, held(1, 0, 10, 2)
    assert claimed(residue) is None
    assert claimed(residue, shown=sent[behind - 1].data[:begins]) == (behind - 1, [])
    assert claimed(residue, held(behind, 0, size, header + begins)) == (behind, [header + begins])
    assert claimed(held(behind, 0, size, header + begins)) is None  # it is gone
    assert claimed(held(0, 0, size, header + begins)) == (0, [header + begins])
    assert [0, behind - 1, behind] == sorted(
        {one.index for one in sent} - {one.index for one in wire.unclaimed}
    )


def test_residue_under_a_descriptor_claims_no_packet(tmp_path: Path) -> None:
    """The first bytes of a block are alike in all: where a head was used again, offset decides."""
    board = Board(correlate.load(cooked.nic(tmp_path, size=3000).serve()))
    text = board.inputs.identity.bytes_of(0)
    sent = frame(0, packet(4, 6, tcp(text, sequence=1)))
    assert sent.headers is not None
    at = sent.headers.payload_at

    def held(offset: int, size: int, where: int) -> Held:
        place = board.place(
            "sender", PlaceKind.KERNEL, held=(0, offset, size), virtual=0, evidence=["x#0"]
        )
        return Held(start=0, place=place, at=where, message=0, offset=offset, size=size, way=Way())

    def claimed(*parts: Held) -> list[int] | None:
        wire = devices.Wire(board)
        wire.load([sent])
        found = wire.claim_chain(len(sent.data), parts)
        return None if found is None else [part.offset for part in found[2]]

    assert text[:4] == text[1600:1604]
    assert [0, 4] == claimed(held(0, 4, at), held(4, 2996, at + 4))
    assert [4] == claimed(held(1600, 4, at), held(4, 2996, at + 4))
    assert claimed(held(1600, 4, at)) is None
    assert claimed(held(0, 4, at)) is None  # and where is the rest
