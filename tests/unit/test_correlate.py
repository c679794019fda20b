"""Following bytes by address: every movement found, every gap and disagreement too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import correlate
from lab.capture import Frame
from lab.correlate import Flow, Kind, PlaceKind
from lab.correlate.board import Board
from lab.correlate.devices import Wire
from lab.correlate.holdings import PHYSICAL, Extent, Held, Holdings, Way
from lab.correlate.rings import RingWitness
from lab.correlate.spans import Index, missing
from lab.correlate.types import Place
from lab.message import derive
from lab.record import Kind as At
from tests.unit import cooked
from tests.unit.cooked import DIRECT_MAP, Cook

CSUM = "csum_and_copy_from_iter_full"
MEMCPY = "virtio_net:page_to_skb>memcpy"
OUTBUF = "virtqueue_add_outbuf"
RECEIVE_BUF = "virtio_net:receive_buf"
QUEUE_AND_DRIVER = ("__dev_queue_xmit", "virtio_net:start_xmit")


def follow(cook: Cook) -> Flow:
    return correlate.follow(cook.serve())


def kinds(flow: Flow) -> list[str]:
    return [movement.kind.value for movement in flow.movements]


def disagreements(flow: Flow) -> list[str]:
    return [entry.what for entry in flow.disagreements]


# --- What is right --------------------------------------------------------------------------


def test_a_short_datagram_over_the_link(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path))

    assert ["copy", "dma-read", "dma-write", "copy", "copy"] == kinds(flow)
    assert [CSUM, MEMCPY, "_copy_to_iter"] == [
        m.function for m in flow.movements if m.kind is Kind.COPY
    ]
    assert ["user", "skb-linear", "wire", "rx-buffer", "skb-linear", "user"] == [
        place.kind.value for place in flow.places
    ]
    assert () == flow.gaps + flow.disagreements + flow.unexplained
    assert all(place.verified and place.evidence for place in flow.places)


def test_every_movement_has_evidence_that_is_there(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    flow = correlate.follow(run)

    for movement in flow.movements:
        assert movement.evidence
        assert movement.confirmed_by
        for entry in movement.evidence:
            file, _, number = entry.partition("#")
            assert run.file(file).is_file()
            assert number
    read, write = (m for m in flow.movements if m.kind in (Kind.DMA_READ, Kind.DMA_WRITE))
    assert ["sender/trace.bin#4", "sender/rings.json#sent/tx/0", "sender/wire.pcap#1"] == (
        read.evidence
    )
    assert ["receiver/trace.bin#0", "receiver/rings.json#armed/rx/0", "receiver/wire.pcap#1"] == (
        write.evidence
    )
    assert {"probe:kmod", "wire", "rings"} == read.confirmed_by
    assert {"probe:kmod", "wire", "rings", "census"} == write.confirmed_by


def test_the_call_of_memcpy_is_named_with_its_instruction(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path))

    copy = next(m for m in flow.movements if m.function == MEMCPY)
    assert "page_to_skb+0x277 [virtio_net]" == copy.instruction
    assert ("observed", 58, 16) == (copy.certainty.value, copy.size, copy.payload_size)


def test_over_loopback_one_skb_changes_hands(tmp_path: Path) -> None:
    flow = follow(cooked.loopback(tmp_path))

    assert ["copy", "handover", "copy"] == kinds(flow)
    handover = flow.movements[1]
    assert handover.source is handover.target
    assert (58, 16, "observed") == (
        handover.size,
        handover.payload_size,
        handover.certainty.value,
    )
    assert ["sender/trace.bin#3", "sender/trace.bin#4", "sender/trace.bin#5"] == handover.evidence
    assert 1 == len({seen.skb for seen in flow.sightings})
    assert () == flow.gaps + flow.disagreements + flow.unexplained


@pytest.mark.parametrize("size", [1, 16, 66, 67, 1142, 1143, 1452, 1453, 4000, 65527])
def test_ipv6_is_followed_to_the_last_byte(tmp_path: Path, size: int) -> None:
    flow = follow(cooked.nic(tmp_path, size=size, count=2, family="ipv6"))

    assert () == flow.gaps + flow.disagreements
    assert 2 * size == sum(entry.size for entry in flow.delivered)
    wires = [place for place in flow.places if place.kind is PlaceKind.WIRE]
    assert 2 * (1 if size <= 1452 else -(-(size + 8) // 1448)) == len(wires)


def test_a_header_that_ends_as_the_message_goes_on_is_no_part_of_it(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, size=3000)
    inputs = correlate.load(cook.serve())
    data = bytearray(cook.sender.frames[2])  # the second fragment: 34 bytes of headers
    data[33] = cook.messages.bytes(0)[1471]

    frame = Frame(index=0, time_ns=0, data=bytes(data))
    assert [(34, 0, 1472, 1480)] == Wire(Board(inputs)).carries(frame)


@pytest.mark.parametrize(("family", "size"), [("ipv4", 1473), ("ipv6", 1449 + 1440)])
def test_a_datagrams_last_byte_is_of_the_message_that_its_first_ones_show(
    tmp_path: Path, family: str, size: int
) -> None:
    """The last byte is alike in all: the number of the datagram says whose it is."""
    cook = cooked.nic(tmp_path, size=size, count=2, family=family)
    inputs = correlate.load(cook.serve())
    board = Board(inputs)
    wire = Wire(board)
    wire.load(inputs.guests[0].frames)
    tails = [frame for frame in wire.unclaimed if frame.headers and frame.headers.fragment_offset]
    first, second = tails[len(tails) // 2 - 1], tails[-1]
    assert first.payload == second.payload
    offset = size - len(first.payload)
    place = board.place("sender", PlaceKind.KERNEL, held=(1, offset, 1), virtual=1, evidence=[])
    at = len(first.data) - len(first.payload)
    part = Held(0, 1, 1, offset, place, Way(copies=1), at)

    claimed = wire.claim(len(first.data), [part], b"")

    assert claimed is not None
    assert (second.index, 0) == (claimed[0].index, claimed[1])


@pytest.mark.parametrize("known", [True, False])
def test_fragments_that_are_put_together_change_their_head(tmp_path: Path, *, known: bool) -> None:
    """The last one's skb takes over what the first one's held; a head nobody had is a fault."""
    cook = cooked.loopback(tmp_path)
    events = cook.sender.events
    at = next(n for n, event in enumerate(events) if event["hook"] == "loopback_xmit")
    other = events[at]["head"] - 0x4000
    first = {"skb": events[at]["skb"] + 256, "head": other}
    if known:
        queued = events[at - 1] | first | {"tsc": events[at]["tsc"] - 2}
        events[at:at] = [queued, events[at] | first | {"tsc": events[at]["tsc"] - 1}]
    for hook in ("__udp_enqueue_schedule_skb", "skb_consume_udp"):
        cooked.change(cook.sender, hook, head=other)

    assert ([] if known else ["handover"]) == disagreements(follow(cook))


@pytest.mark.parametrize("size", [1, 7, 16, 86, 87, 1162, 1163, 1472, 1473, 9000, 65507])
@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback])
def test_every_byte_arrives_whatever_the_size(
    tmp_path: Path, cook: Callable[..., Cook], size: int
) -> None:
    flow = follow(cook(tmp_path, size=size))

    spans = [(entry.offset, entry.offset + entry.size) for entry in flow.delivered]
    assert [] == missing([(0, size)], spans)
    assert size == sum(entry.size for entry in flow.delivered)
    assert () == flow.gaps + flow.disagreements + flow.unexplained


def test_a_frame_built_on_the_buffer_is_not_copied(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path, size=1000))

    assert ["copy", "dma-read", "dma-write", "copy"] == kinds(flow)
    assert PlaceKind.RX_BUFFER is flow.movements[-1].source.kind


def test_a_last_fragment_copied_once_more_is_told(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path, size=1472 + 1480 + 50))

    assert {2, 3} == {entry.copies for entry in flow.delivered}
    assert "some of its bytes were copied 2 times, others 3" in flow.notes[0]


@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback])
@pytest.mark.parametrize("payload", [None, b"HELLO_SEND_TRACE", b"HI"])
def test_slots_are_used_again(
    tmp_path: Path, cook: Callable[..., Cook], payload: bytes | None
) -> None:
    flow = follow(cook(tmp_path, count=11, slots=4, payload=payload))

    assert list(range(11)) == [entry.message for entry in flow.delivered]
    assert () == flow.gaps + flow.disagreements + flow.unexplained


def test_user_buffers_that_cross_pages_are_one_place(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path, size=9000))

    users = [place for place in flow.places if place.kind is PlaceKind.USER]
    assert [9000, 9000] == [place.size for place in users]
    assert all(len(place.extents) > 1 and place.verified for place in users)


# --- TCP: clones, linearizing, segmentation, coalescing -------------------------------------


def named(flow: Flow) -> list[str]:
    return [m.function for m in flow.movements if m.kind is Kind.COPY]


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({}, {4}),
        ({"size": 1, "count": 9}, {4}),
        ({"size": 7, "count": 3, "together": True}, {4}),
        ({"size": 40, "count": 9, "payload": b"HELLO"}, {4}),
        ({"size": 1448}, {3}),
        ({"size": 1449}, {3, 4}),  # a byte in a second frame, which the driver copies
        ({"size": 65536}, {3}),
        ({"size": 1000, "count": 5, "together": True}, {3}),
    ],
)
@pytest.mark.parametrize("over", ["link", "loopback"])
def test_a_tcp_stream_balances(
    tmp_path: Path, over: str, options: dict[str, Any], copies: set[int]
) -> None:
    flow = follow(cooked.tcp(tmp_path, over=over, **options))

    size = options.get("size", 16)
    for message in range(options.get("count", 1)):
        mine = [entry for entry in flow.delivered if entry.message == message]
        spans = [(entry.offset, entry.offset + entry.size) for entry in mine]
        assert [] == missing([(0, size)], spans)
        assert size == sum(entry.size for entry in mine)
    assert (copies if over == "link" else {2}) == {entry.copies for entry in flow.delivered}
    assert {(1, 1, 0) if over == "link" else (0, 0, 1)} == {
        (entry.reads, entry.writes, entry.handovers) for entry in flow.delivered
    }
    assert () == flow.gaps + flow.disagreements + flow.unexplained


def test_a_frag_is_made_linear_before_the_device_reads_it(tmp_path: Path) -> None:
    flow = follow(cooked.tcp(tmp_path))

    assert ["_copy_from_iter", "skb_copy_bits", MEMCPY, "_copy_to_iter"] == named(flow)
    linearized = flow.movements[1]
    assert (PlaceKind.SKB_FRAG, PlaceKind.SKB_LINEAR) == (
        linearized.source.kind,
        linearized.target.kind,
    )
    read = next(m for m in flow.movements if m.kind is Kind.DMA_READ)
    assert read.source is linearized.target
    heads = {seen.at: seen.head for seen in flow.sightings if seen.side == "sender"}
    # The clone shares the head of the skb that was filled until it gets one of its own.
    assert heads["__tcp_transmit_skb"] == heads["__dev_queue_xmit"] != heads["skb_copy_bits"]


def test_a_long_segment_is_cut_by_copying(tmp_path: Path) -> None:
    flow = follow(cooked.tcp(tmp_path, size=4000))

    assert ["_copy_from_iter", *["skb_copy_and_csum_bits"] * 3, *["_copy_to_iter"] * 3] == (
        named(flow)
    )
    assert 3 == kinds(flow).count("dma-read")


def test_two_messages_in_one_skb_are_two_movements_of_one_record(tmp_path: Path) -> None:
    flow = follow(cooked.tcp(tmp_path, over="loopback", size=24, count=2, together=True))

    assert [(0, 24, 2, 1), (1, 24, 2, 1)] == [
        (entry.message, entry.size, entry.copies, entry.handovers) for entry in flow.delivered
    ]
    assert ["copy", "copy", "handover", "handover", "copy", "copy"] == kinds(flow)
    assert 1 == len({m.evidence[0] for m in flow.movements if m.kind is Kind.HANDOVER})
    assert () == flow.gaps


def test_segments_that_a_socket_joins_are_copied_once_more(tmp_path: Path) -> None:
    flow = follow(cooked.tcp(tmp_path, size=100, count=3, coalesce=True))

    assert [3, 4, 4] == [entry.copies for entry in flow.delivered]
    assert 5 == named(flow).count("skb_copy_bits")  # three to send, two to join
    assert () == flow.gaps + flow.disagreements + flow.unexplained


def test_what_is_sent_again_by_another_copy_between_skbs_is_copied_again(tmp_path: Path) -> None:
    """To the same place, where the first copy was freed by then."""
    cook = cooked.tcp(tmp_path, size=100)
    once = next(one for one in cook.sender.events if one["hook"] == "skb_copy_bits")
    again = {"hook": "skb_copy_and_csum_bits", "tsc": once["tsc"] + 5}
    cook.sender.events.append(once | again)

    found = named(follow(cook))

    assert (1, 1) == (found.count("skb_copy_bits"), found.count("skb_copy_and_csum_bits"))


def test_a_frame_that_the_device_drops_and_tcp_sends_again_is_no_gap(tmp_path: Path) -> None:
    flow = follow(cooked.tcp(tmp_path, dropped=2))

    assert () == flow.gaps + flow.disagreements + flow.unexplained
    assert 3 == [movement.kind for movement in flow.movements].count(Kind.DMA_READ)
    assert 1 == [movement.kind for movement in flow.movements].count(Kind.DMA_WRITE)
    given = [one.evidence[1] for one in flow.movements if one.kind is Kind.DMA_READ]
    assert 3 == len(set(given)), "the same memory, each time by a descriptor of its own"
    assert any(
        note.startswith("2 of the frames that reached their end of the link went into no buffer")
        for note in flow.notes
    )


def test_a_frame_in_no_buffer_is_a_gap_where_the_hook_may_have_missed_it(tmp_path: Path) -> None:
    cook = cooked.tcp(tmp_path, dropped=2)
    cook.missed[RECEIVE_BUF] = 1

    assert 2 == " ".join(gap.why for gap in follow(cook).gaps).count("saw no buffer with this")


def test_a_frame_in_no_buffer_is_a_gap_where_the_rings_show_one_that_nobody_reported(
    tmp_path: Path,
) -> None:
    cook = cooked.tcp(tmp_path, dropped=1)
    gate = cook.receiver.queues["rx"]["gates"]["received"]
    ident, used = gate["used"][-1]
    gate["used"].append([ident + 1, used])
    gate["used_idx"] += 1

    assert "saw no buffer with this frame" in " ".join(gap.why for gap in follow(cook).gaps)


def test_a_frame_in_no_buffer_is_a_gap_where_its_bytes_only_came_before(tmp_path: Path) -> None:
    cook = cooked.tcp(tmp_path, dropped=1)
    for guest in (cook.sender, cook.receiver):
        guest.frames.reverse()  # what was dropped is the second now

    assert "saw no buffer with this frame" in " ".join(gap.why for gap in follow(cook).gaps)


def test_a_frame_in_no_buffer_is_a_gap_where_its_bytes_never_came_again(tmp_path: Path) -> None:
    cook = cooked.tcp(tmp_path, count=2)
    last = [one for one in cook.receiver.events if one["hook"] == RECEIVE_BUF][-1]
    cook.receiver.events.remove(last)

    assert "saw no buffer with this frame" in " ".join(gap.why for gap in follow(cook).gaps)


def test_headers_alone_that_are_copied_move_no_message(tmp_path: Path) -> None:
    cook = cooked.tcp(tmp_path)
    header: dict[str, Any] = {"skb": 0x1000, "head": 0x2000, "data": 0x2040, "shinfo": 0x2200}
    cook.receiver.hook(
        "skb_copy_bits", **header, src=DIRECT_MAP + 0x0B80_0000, src_phys=0x0B80_0000,
        dst=DIRECT_MAP + 0x0B90_0000, dst_phys=0x0B90_0000, size=20, bytes=bytes(20),
    )  # fmt: skip

    assert 4 == len(named(follow(cook)))


def test_memory_used_again_by_another_skb_is_no_source(tmp_path: Path) -> None:
    """What the record shows decides, not what an address once held."""
    cook = cooked.tcp(tmp_path)
    page = cooked.PAGES
    cook.sender.hook(
        "skb_copy_bits", skb=0x1000, head=0x2000, data=0x2040, shinfo=0x2200,
        src=DIRECT_MAP + page, src_phys=page, dst=DIRECT_MAP + 0x0B90_0000,
        dst_phys=0x0B90_0000, size=16, bytes=b"something else!!",
    )  # fmt: skip

    flow = follow(cook)

    assert 4 == len(named(flow))
    assert () == flow.gaps + flow.disagreements


def test_a_copy_that_shows_other_bytes_carries_nothing_on(tmp_path: Path) -> None:
    cook = cooked.tcp(tmp_path)
    cooked.change(cook.sender, "skb_copy_bits", bytes=b"something else!!")

    assert follow(cook).gaps


def test_a_head_that_moves_with_the_message_in_it_is_a_copy(tmp_path: Path) -> None:
    """pskb_expand_head() after the message came to lie in the linear area."""
    flow = follow(_moved_head(tmp_path))

    assert [CSUM, "pskb_expand_head", MEMCPY, "_copy_to_iter"] == named(flow)
    assert [4] == [entry.copies for entry in flow.delivered]
    assert () == flow.gaps + flow.disagreements


def test_a_head_that_moved_unseen_leaves_a_gap(tmp_path: Path) -> None:
    flow = follow(_moved_head(tmp_path, without=("pskb_expand_head",)))

    assert ["pskb_expand_head was left out"] == [gap.why for gap in flow.gaps]


def _moved_head(tmp_path: Path, without: tuple[str, ...] = ()) -> Cook:
    cook = cooked.nic(tmp_path, without=without)
    guest = cook.sender
    xmit = next(e for e in guest.events if e["hook"] == "__dev_queue_xmit")
    old, new = xmit["data"], DIRECT_MAP + 0x0700_0000
    at = guest.events.index(xmit) + 1
    moved = {
        **xmit, "hook": "pskb_expand_head", "kind": At.RETURN, "tsc": xmit["tsc"] + 1,
        "head": new - 18, "data": new, "shinfo": new + 1700, "src": old,
        "src_phys": old - DIRECT_MAP, "dst": new, "dst_phys": new - DIRECT_MAP,
        "size": 58, "ret": 58, "dev": "",
    }  # fmt: skip
    guest.events.insert(at, moved)
    for event in guest.events[at + 1 :]:
        if event["hook"] in ("virtio_net:start_xmit", OUTBUF):
            event |= {"head": new - 18, "data": new, "shinfo": new + 1700}
        if event["hook"] == "virtio_net:start_xmit":
            event |= {"src_phys": new - DIRECT_MAP}
        if event["hook"] == OUTBUF:
            event |= {"src": new - 12, "src_phys": new - 12 - DIRECT_MAP}
    for gate in guest.queues["tx"]["gates"].values():
        for row in gate["descriptors"]:
            if row[2] == 70:
                row[1] = f"0x{new - 12 - DIRECT_MAP:x}"
    return cook


TCP_CARRIERS = [
    ("link", {}, "_copy_from_iter"),
    ("link", {}, "skb_copy_bits"),
    ("link", {"size": 4000}, "skb_copy_and_csum_bits"),
    ("link", {}, MEMCPY),
    ("link", {}, "_copy_to_iter"),
    ("link", {"size": 100, "count": 3, "coalesce": True}, "skb_copy_bits"),
    ("loopback", {}, "_copy_from_iter"),
    ("loopback", {}, "_copy_to_iter"),
]


@pytest.mark.parametrize(("over", "options", "hook"), TCP_CARRIERS)
def test_without_a_hook_that_carries_tcp_there_is_a_gap(
    tmp_path: Path, over: str, options: dict[str, Any], hook: str
) -> None:
    flow = follow(cooked.tcp(tmp_path, over=over, without=(hook,), **options))

    assert flow.gaps
    assert any(f"{hook} was left out" in gap.why for gap in flow.gaps)


@pytest.mark.parametrize("hook", cooked.SEND_HOOKS + cooked.RECV_HOOKS + cooked.SKB_HOOKS)
@pytest.mark.parametrize(("over", "copies"), [("link", 4), ("loopback", 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_without_any_hook_tcp_counts_stand_or_there_is_a_gap(
    tmp_path: Path, over: str, copies: int, hook: str, count: int
) -> None:
    flow = follow(cooked.tcp(tmp_path, over=over, without=(hook,), count=count))

    devices = (1, 1, 0) if over == "link" else (0, 0, 1)
    found = [(e.copies, e.reads, e.writes, e.handovers) for e in flow.delivered]
    assert flow.gaps or found == [(copies, *devices)] * count
    assert () == flow.disagreements


def test_a_clones_handover_is_each_messages_own(tmp_path: Path) -> None:
    """An skb given out again tells nothing of the message it once held."""
    hooks = ("__tcp_transmit_skb", "__dev_queue_xmit")
    cook = cooked.tcp(tmp_path, over="loopback", count=2, without=hooks)
    for event in cook.sender.events:  # both messages go in the same skb
        if event["hook"] in ("loopback_xmit", "__netif_rx", "tcp_rcv_established"):
            event["skb"] = 0xFF11_0000_0200_0000

    flow = follow(cook)

    assert [0, 1] == [m.message for m in flow.movements if m.kind is Kind.HANDOVER]
    assert [1, 1] == [entry.handovers for entry in flow.delivered]


# --- Hooks taken away -----------------------------------------------------------------------

CARRIERS = [
    (cooked.nic, CSUM, 2),
    (cooked.nic, MEMCPY, 2),
    (cooked.nic, "_copy_to_iter", 2),
    (cooked.loopback, "_copy_from_iter", 1),
    (cooked.loopback, "_copy_to_iter", 1),
]
PATHS = [(cooked.nic, (3, 1, 1, 0)), (cooked.loopback, (2, 0, 0, 1))]


@pytest.mark.parametrize(("cook", "hook", "seen"), CARRIERS)
@pytest.mark.parametrize(
    ("payload", "count"), [(None, 1), (None, 3), (b"HELLO_SEND_TRACE", 1), (b"HI", 3)]
)
def test_without_a_hook_that_carries_a_copy_there_is_a_gap(
    tmp_path: Path,
    *,
    cook: Callable[..., Cook],
    hook: str,
    seen: int,
    payload: bytes | None,
    count: int,
) -> None:
    flow = follow(cook(tmp_path, without=(hook,), payload=payload, count=count))

    assert count == len(flow.gaps)
    assert {f"{hook} was left out"} == {gap.why for gap in flow.gaps}
    assert {16} == {gap.bytes for gap in flow.gaps}
    # What is known beyond the gap is still shown.
    assert count * seen == kinds(flow).count("copy")


@pytest.mark.parametrize(("cook", "counts"), PATHS)
@pytest.mark.parametrize("hook", cooked.SEND_HOOKS + cooked.RECV_HOOKS)
@pytest.mark.parametrize("size", [16, 1400])
def test_without_any_hook_the_counts_stand_or_there_is_a_gap(
    tmp_path: Path,
    cook: Callable[..., Cook],
    counts: tuple[int, int, int, int],
    hook: str,
    size: int,
) -> None:
    flow = follow(cook(tmp_path, without=(hook,), size=size))

    copies = counts[0] - (size == 1400 and cook is cooked.nic)
    found = [(e.copies, e.reads, e.writes, e.handovers) for e in flow.delivered]
    assert flow.gaps or found == [(copies, *counts[1:])]
    assert () == flow.disagreements


@pytest.mark.parametrize(
    "hooks",
    [
        (OUTBUF, RECEIVE_BUF),
        ("virtio_net:start_xmit", "__dev_queue_xmit", "ip_generic_getfrag", OUTBUF),
        ("virtio_net:page_to_skb", "__udp_enqueue_schedule_skb", RECEIVE_BUF),
        ("loopback_xmit", "__netif_rx", "__dev_queue_xmit"),
    ],
)
@pytest.mark.parametrize(("cook", "counts"), PATHS)
def test_other_witnesses_stand_in_for_hooks_that_carry_no_copy(
    tmp_path: Path,
    cook: Callable[..., Cook],
    counts: tuple[int, int, int, int],
    hooks: tuple[str, ...],
) -> None:
    flow = follow(cook(tmp_path, without=hooks))

    assert [counts] == [(e.copies, e.reads, e.writes, e.handovers) for e in flow.delivered]
    assert () == flow.gaps + flow.disagreements


def test_a_handover_no_hook_saw_is_derived(tmp_path: Path) -> None:
    flow = follow(cooked.loopback(tmp_path, without=("loopback_xmit",)))

    (handover,) = (m for m in flow.movements if m.kind is Kind.HANDOVER)
    assert "derived" == handover.certainty.value
    assert {"sender/trace.bin#1", "sender/trace.bin#2"} < set(handover.evidence)


def test_the_rings_alone_prove_a_device_access(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path, without=(OUTBUF, RECEIVE_BUF)))

    read, write = (m for m in flow.movements if m.kind in (Kind.DMA_READ, Kind.DMA_WRITE))
    assert ["sender/rings.json#sent/tx/0", "sender/wire.pcap#1"] == read.evidence
    assert ["receiver/rings.json#armed/rx/0", "receiver/wire.pcap#1"] == write.evidence
    assert {"rings", "wire"} == read.confirmed_by


def test_a_ring_without_content_proves_no_write(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, without=(RECEIVE_BUF, MEMCPY))
    cook.receiver.gates.clear()

    flow = follow(cook)

    assert "dma-write" not in kinds(flow)
    assert flow.gaps


@pytest.mark.parametrize(
    ("hook", "where", "words"),
    [
        (OUTBUF, "sender", f"{OUTBUF} was left out, and the rings were not read"),
        (RECEIVE_BUF, "receiver", f"{RECEIVE_BUF} was left out, and the rings were not read"),
    ],
)
def test_a_device_access_without_a_descriptor_is_a_gap(
    tmp_path: Path, hook: str, where: str, words: str
) -> None:
    cook = cooked.nic(tmp_path, without=(hook,))
    cook.skip_files.add(f"{where}/rings.json")

    flow = follow(cook)

    assert any(words in gap.why and gap.guest == where for gap in flow.gaps)


# --- The driver's copy ----------------------------------------------------------------------


def test_a_copy_the_compiler_inlined_is_derived(tmp_path: Path) -> None:
    """-ENOENT: the call is not in this kernel, and page_to_skb's own record stands in."""
    flow = follow(cooked.nic(tmp_path, absent=(MEMCPY,)))

    copy = flow.movements[3]
    assert ("derived", "virtio_net:page_to_skb", 16) == (
        copy.certainty.value,
        copy.function,
        copy.payload_size,
    )
    assert ["receiver/trace.bin#1"] == copy.evidence
    assert [3] == [entry.copies for entry in flow.delivered]
    assert () == flow.gaps


def test_a_copy_left_out_on_purpose_is_never_derived(tmp_path: Path) -> None:
    flow = follow(cooked.nic(tmp_path, without=(MEMCPY,)))

    assert all(m.certainty.value == "observed" for m in flow.movements if m.kind is Kind.COPY)
    assert ["virtio_net:page_to_skb>memcpy was left out"] == [gap.why for gap in flow.gaps]


def test_a_copy_that_an_attached_hook_did_not_see_is_never_derived(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.receiver.events = [e for e in cook.receiver.events if e["hook"] != MEMCPY]

    flow = follow(cook)

    assert ["no hook that is attached saw what brought them"] == [gap.why for gap in flow.gaps]


# --- Disagreements and broken invariants ----------------------------------------------------


def test_content_that_is_not_the_message_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cooked.change(cook.receiver, "_copy_to_iter", bytes=b"something else!!")

    flow = follow(cook)

    assert ["content"] == disagreements(flow)
    assert "_copy_to_iter read" in flow.disagreements[0].text


def test_a_census_that_does_not_find_a_user_buffer_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    hits = cook.receiver.gates[-1]["hits"]
    hits[:] = [hit for hit in hits if not hit["physical"].startswith("0xb")]

    flow = follow(cook)

    assert ["content"] == disagreements(flow)
    assert "the census does not find message 0" in flow.disagreements[0].text


def test_a_descriptor_that_is_in_no_ring_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.queues["tx"]["gates"]["sent"]["descriptors"][0][1] = "0x7000000"

    flow = follow(cook)

    assert ["descriptor"] == disagreements(flow)
    assert ["sender/trace.bin#4"] == list(flow.disagreements[0].evidence)


def test_a_ring_number_used_again_is_no_disagreement(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, count=2)
    cook.sender.queues["tx"]["gates"]["sent"]["descriptors"][0][1] = "0x7000000"

    assert [] == disagreements(follow(cook))


def test_a_buffer_that_is_in_no_ring_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    for gate in cook.receiver.queues["rx"]["gates"].values():
        for row in gate["descriptors"]:
            row[1] = "0x7000000"

    assert ["descriptor"] == disagreements(follow(cook))


def test_a_used_length_that_differs_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.receiver.queues["rx"]["gates"]["received"]["used"][0][1] = 71

    flow = follow(cook)

    assert ["descriptor"] == disagreements(flow)
    assert "the used ring says 71" in flow.disagreements[0].text


def test_a_ring_gone_through_twice_says_no_more_how_long_the_first_were(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    gate = cook.receiver.queues["rx"]["gates"]["received"]
    gate["used"][0][1] = 71  # of the same number, one round later
    gate["used_idx"] += 256

    assert [] == disagreements(follow(cook))


def test_what_another_packet_left_where_a_frame_has_headers_is_not_the_frame_s(
    tmp_path: Path,
) -> None:
    """The first fragment's UDP header lies where a later fragment had eight bytes of a message."""
    cook = cooked.nic(tmp_path, family="ipv6", size=3000, count=2, heads={(1, 0): (0, 1, 0)})
    flow = follow(cook)

    assert () == flow.gaps + flow.disagreements + flow.unexplained


@pytest.mark.parametrize("without", [(), ("virtio_net:start_xmit",), QUEUE_AND_DRIVER])
def test_the_device_s_header_lies_where_an_older_message_did(
    tmp_path: Path, without: tuple[str, ...]
) -> None:
    """virtio_net writes it into the headroom of the skb, and no hook sees that.

    Where no hook showed the frame's own headers either, they lie where the message did as well.
    """
    reused = cooked.reused(12, fragment=4)
    flow = follow(cooked.nic(tmp_path, size=6000, count=12, heads=reused, without=without))

    assert () == flow.gaps + flow.disagreements
    assert 12 * 6000 == sum(one.payload_size for one in flow.movements if one.kind == "dma-read")


def test_the_device_s_header_lies_where_a_page_of_the_stream_was(tmp_path: Path) -> None:
    flow = follow(cooked.tcp(tmp_path, size=2800, count=12, again=4))

    assert () == flow.gaps + flow.disagreements
    assert 12 * 2800 == sum(one.payload_size for one in flow.movements if one.kind == "dma-read")


def test_the_device_s_header_may_have_a_descriptor_of_its_own(tmp_path: Path) -> None:
    """Where the headroom does not do it lies in skb->cb, and what was there is not the frame's."""
    cook = cooked.nic(tmp_path, size=6000, count=2)
    guest = cook.sender
    old = guest.events[0]["dst"]  # where the first message lies, by now long sent
    last = max(at for at, one in enumerate(guest.events) if one["hook"] == OUTBUF)
    whole = guest.events[last]
    header = whole | {
        "src": old,
        "src_phys": old - cooked.DIRECT_MAP,
        "size": 12,
        "tsc": guest.tick(),
    }
    rest = {"src": whole["src"] + 12, "src_phys": whole["src_phys"] + 12, "frags": 1}
    rest["size"] = whole["size"] - 12
    guest.events[last:] = [header, whole | rest | {"tsc": guest.tick()}, *guest.events[last + 1 :]]
    rings = guest.queues["tx"]["gates"]["sent"]["descriptors"]
    rings[len(guest.queues["tx"]["gates"]["sent"]["used"])] = [
        20,
        hex(header["src_phys"]),
        12,
        0,
        0,
    ]

    flow = follow(cook)

    assert () == flow.gaps + flow.disagreements


def test_a_header_s_last_byte_that_is_the_message_s_one_before_is_no_part_of_it(
    tmp_path: Path,
) -> None:
    """e1000e copies a short frame whole; of a later fragment the byte before may be any."""
    size, first = 1600, 1472  # of the second fragment
    seed = next(one for one in range(9999) if derive(one, 0, size)[first - 1] == cooked.IP_LAST)
    cook = cooked.nic(tmp_path, size=size, device="e1000e", seed=seed)
    flow = follow(cook)

    assert () == flow.gaps + flow.disagreements + flow.unexplained
    assert 1 == sum(one.function.endswith("memcpy") for one in flow.movements)


def test_a_descriptor_without_a_frame_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.frames.pop()

    flow = follow(cook)

    assert "frame" in disagreements(flow)
    assert any("no frame carries them" in entry.text for entry in flow.disagreements)
    assert flow.gaps


def test_a_buffer_without_a_frame_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.receiver.frames.pop()

    flow = follow(cook)

    assert ["frame"] == disagreements(flow)
    assert any("no frame on the receiver's wire" in gap.why for gap in flow.gaps)


def test_a_frame_that_never_left_the_sender_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    frame = bytearray(cook.receiver.frames[-1])
    frame[22] = 63  # its time to live
    cook.receiver.frames[-1] = bytes(frame)

    flow = follow(cook)

    assert "frame" in disagreements(flow)


def test_a_frame_lost_on_the_way_is_a_gap_and_no_disagreement(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.receiver.frames.pop()
    cook.receiver.events.clear()
    cook.receiver.gates.clear()

    flow = follow(cook)

    assert ["the frame did not arrive at the receiver's end of the link"] == [
        gap.why for gap in flow.gaps
    ]
    assert [] == [what for what in disagreements(flow) if what != "content"]


def test_without_a_capture_there_is_no_device_access(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.skip_files |= {"sender/wire.pcap", "receiver/wire.pcap"}

    flow = follow(cook)

    assert not {"dma-read", "dma-write"} & set(kinds(flow))
    assert any("wire.pcap is absent" in gap.why for gap in flow.gaps)


def test_an_effect_before_its_cause_disagrees(tmp_path: Path) -> None:
    """The driver's copy is stamped after the receiver's copy that needs it."""
    cook = cooked.nic(tmp_path)
    cook.receiver.events[1]["tsc"] = cook.receiver.tsc + 10_000

    flow = follow(cook)

    assert "order" in disagreements(flow)
    assert any("was read before" in entry.text for entry in flow.disagreements)
    assert flow.gaps


def test_a_frame_received_before_it_was_sent_disagrees(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    for event in cook.sender.events:
        event["tsc"] += 10**9

    flow = follow(cook)

    assert ["order"] == disagreements(flow)
    assert "before the sender's device was given the frame" in flow.disagreements[0].text


def test_bytes_that_leave_user_memory_twice_disagree(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    again = dict(next(e for e in cook.sender.events if e["hook"] == CSUM))
    again |= {"tsc": cook.sender.tick(), "dst": DIRECT_MAP + 0x5000000, "dst_phys": 0x5000000}
    cook.sender.events.append(again)

    flow = follow(cook)

    assert ["bytes"] == disagreements(flow)
    assert "send returned 16 bytes and 32 were moved" in flow.disagreements[0].text


def test_bytes_that_were_sent_and_never_left_user_memory_are_a_gap(tmp_path: Path) -> None:
    """Though all that the message should have has arrived."""
    cook = cooked.nic(tmp_path)
    cook.sender.workloads[0]["sent"]["bytes"] += 16

    (gap,) = follow(cook).gaps

    assert (16, ("sender user buffer", "sender kernel memory")) == (gap.bytes, gap.between)


def test_a_handover_that_changes_the_head_disagrees(tmp_path: Path) -> None:
    cook = cooked.loopback(tmp_path)
    cooked.change(cook.sender, "__netif_rx", head=DIRECT_MAP + 0x7000000)

    assert {"handover", "skb"} == {*disagreements(follow(cook))}


def test_message_bytes_nobody_put_there_are_unexplained(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    for gate in cook.sender.gates:
        gate["hits"].append({"physical": "0x7654000", "message": 0, "offset": 0, "size": 16})

    flow = follow(cook)

    (hit,) = flow.unexplained
    assert ("sender", 0x7654000, 16) == (hit.guest, hit.physical, hit.size)
    assert hit.evidence.startswith("sender/census.json#sent/")


@pytest.mark.parametrize(("more", "told"), [(0, []), (15, []), (16, [16]), (32, [32])])
def test_what_goes_on_behind_a_place_is_unexplained_from_a_block_on(
    tmp_path: Path, more: int, told: list[int]
) -> None:
    """Less than a block may be another page's beginning, which is that of every block."""
    cook = cooked.nic(tmp_path, size=3000)
    (gate,) = (one for one in cook.sender.gates if one["gate"] == "sent")
    first = next(hit for hit in gate["hits"] if (hit["offset"], hit["size"]) == (0, 1472))
    first["size"] += more
    cook.sender.gates[:] = [gate]

    flow = follow(cook)

    assert told == [hit.size for hit in flow.unexplained]
    assert all(int(first["physical"], 16) + 1472 == hit.physical for hit in flow.unexplained)


def test_another_message_in_a_place_is_unexplained_and_does_not_verify(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, count=2)
    for gate in cook.sender.gates:
        for hit in gate["hits"]:
            hit["message"] = 1 - hit["message"]

    flow = follow(cook)

    assert flow.unexplained
    assert not any(place.verified for place in flow.places if place.guest == "sender")


# --- Memory that is used again --------------------------------------------------------------


def test_residue_under_another_packet_is_no_movement(tmp_path: Path) -> None:
    """Skb heads are given out again at once: an acknowledgement lies where the message lay."""
    cook = cooked.nic(tmp_path)
    guest = cook.sender
    reused = {
        key: value
        for key, value in guest.events[3].items()
        if key not in ("hook", "tsc", "bytes", "comm", "pid", "tgid")
    }
    guest.hook("virtio_net:start_xmit", **reused, bytes=b"\x45" * 58)
    outbuf = dict(guest.events[4])
    outbuf.pop("hook")
    guest.hook(OUTBUF, **(outbuf | {"tsc": guest.tick()}))

    flow = follow(cook)

    assert ["copy", "dma-read", "dma-write", "copy", "copy"] == kinds(flow)
    assert () == flow.gaps + flow.disagreements


def test_another_program_reading_freed_memory_is_no_movement(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    copy = dict(next(e for e in cook.receiver.events if e["hook"] == "_copy_to_iter"))
    copy |= {"tsc": cook.receiver.tick(), "tgid": 77, "bytes": b"ELF", "size": 3, "ret": 3}
    cook.receiver.events.append(copy)

    flow = follow(cook)

    assert 3 == kinds(flow).count("copy")
    assert () == flow.disagreements


def test_another_program_reading_behind_what_a_record_shows_is_no_movement(tmp_path: Path) -> None:
    """A pipe's page lies where a message lay, which no byte of the record tells."""
    cook = cooked.nic(tmp_path)
    copy = dict(next(e for e in cook.receiver.events if e["hook"] == "_copy_to_iter"))
    before = 106
    copy |= {"tsc": cook.receiver.tick(), "tgid": 77, "user": 0x1234000, "size": 163, "ret": 163}
    copy |= {"src": copy["src"] - before, "src_phys": copy["src_phys"] - before}
    cook.receiver.events.append(copy | {"bytes": b'28,"slot":928,"digest":"1b4c25aa' * 2})

    flow = follow(cook)

    assert 3 == kinds(flow).count("copy")
    assert () == flow.disagreements


def test_a_message_read_by_another_program_is_a_movement(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    copy = dict(next(e for e in cook.receiver.events if e["hook"] == "_copy_to_iter"))
    copy |= {"tsc": cook.receiver.tick(), "tgid": 77, "user": 0x1234000}
    cook.receiver.events.append(copy)

    flow = follow(cook)

    assert 77 == flow.places[-1].pid
    assert 4 == kinds(flow).count("copy")
    assert 1 == len(flow.delivered)


@pytest.mark.parametrize("ret", [0, -14, 5])
def test_a_short_copy_moves_what_it_returned(tmp_path: Path, ret: int) -> None:
    cook = cooked.nic(tmp_path)
    cooked.change(cook.receiver, "_copy_to_iter", ret=ret)

    flow = follow(cook)

    assert max(ret, 0) == sum(entry.size for entry in flow.delivered)
    assert [16 - max(ret, 0)] == [gap.bytes for gap in flow.gaps]


def test_one_copy_seen_by_two_hooks_is_one_copy(tmp_path: Path) -> None:
    cook = cooked.loopback(tmp_path)
    inner = next(e for e in cook.sender.events if e["hook"] == "_copy_to_iter")
    outer = dict(inner) | {"hook": "csum_and_copy_to_iter", "tsc": inner["tsc"] + 5}
    cook.sender.events.append(outer)

    flow = follow(cook)

    assert 2 == kinds(flow).count("copy")
    assert 2 == len(flow.movements[-1].evidence)


# --- Parts ----------------------------------------------------------------------------------


def _place() -> Place:
    return Place(
        number=0,
        guest="sender",
        kind=PlaceKind.KERNEL,
        region="",
        virtual=0,
        size=100,
        message=0,
        offset=0,
    )


def _held(place: Place, **fields: int) -> Held:
    given = {"start": 0, "size": 100, "message": 0, "offset": 0, **fields}
    return Held(place=place, way=Way(), **given)


def _range(start: int, size: int, at: int = 0) -> Extent:
    return Extent(space=PHYSICAL, start=start, size=size, at=at)


def test_holdings_find_parts_with_their_offsets() -> None:
    holdings = Holdings()
    holdings.put([_range(1000, 60), _range(5000, 40, 60)], _held(_place()))

    (found,) = holdings.find([_range(1050, 10), _range(5000, 5, 10)])

    assert (0, 15, 50) == (found.at, found.size, found.offset)


def test_what_is_written_over_is_gone() -> None:
    holdings = Holdings()
    holdings.put([_range(1000, 100)], _held(_place()))
    holdings.clear([_range(1040, 20)])

    found = holdings.find([_range(900, 300)])

    assert [(100, 40, 0), (160, 40, 60)] == [(h.at, h.size, h.offset) for h in found]


def test_missing_is_what_no_span_covers() -> None:
    assert [(0, 2), (5, 6)] == missing([(0, 10)], [(2, 5), (6, 8), (8, 12)])
    assert [] == missing([(0, 10)], [(0, 4), (3, 10)])


def test_an_index_finds_what_overlaps() -> None:
    index = Index([(0, 100, "long"), (10, 20, "a"), (30, 40, "b")])

    assert ["long", "b"] == [value for _, _, value in index.touching(20, 31)]
    assert ["long", "a"] == [value for _, _, value in index.touching(19, 30)]
    assert ["long"] == [value for _, _, value in index.touching(99, 1 << 64)]
    assert [] == index.touching(100, 200)
    assert [] == index.touching(-5, 0)


def test_rings_that_were_not_read_say_nothing(tmp_path: Path) -> None:
    guest = correlate.load(cooked.nic(tmp_path).serve()).guests[0]
    rings = RingWitness(dataclasses.replace(guest, rings=None))

    assert not rings.present
    assert rings.covering("tx", 0, 1) is None
    assert [] == rings.sent() == rings.filled()


# --- What a burst brings --------------------------------------------------------------------


@pytest.mark.parametrize(("posted", "found"), [(0, []), (4, ["descriptor"])])
def test_only_buffers_posted_before_the_run_must_be_in_the_ring(
    tmp_path: Path, posted: int, found: list[str]
) -> None:
    """The driver posts new ones meanwhile, which no gate may show."""
    cook = cooked.nic(tmp_path)
    for gate in cook.receiver.queues["rx"]["gates"].values():
        for row in gate["descriptors"]:
            row[1] = "0x7000000"
    armed = cook.receiver.queues["rx"]["gates"]["armed"]
    armed["avail_idx"] = armed["used_idx"] + posted

    assert found == disagreements(follow(cook))


@pytest.mark.parametrize(("skb", "found"), [(0, []), (0xFF11_0000_0200_0000, ["frame", "skb"])])
def test_pages_that_serve_another_device_next_are_no_frame_that_was_lost(
    tmp_path: Path, skb: int, found: list[str]
) -> None:
    cook = cooked.tcp(tmp_path)
    cook.sender.hook(
        OUTBUF, skb=skb, src=DIRECT_MAP + cooked.PAGES, src_phys=cooked.PAGES, size=32768
    )

    assert found == disagreements(follow(cook))


def test_of_a_datagram_only_the_fragment_that_was_lost_is_said_to_be_lost(tmp_path: Path) -> None:
    """The others are in the receiver, and wait there for it."""
    cook = cooked.torn(tmp_path)

    gaps = follow(cook).gaps

    assert [
        ("sender", 1480, "no frame carries them"),
        ("receiver", 1520, "the receiver's wait for it ended first"),
    ] == [(gap.guest, gap.bytes, gap.why) for gap in gaps]
    assert "sender skb linear area" in gaps[0].between[0]
    assert "receiver RX buffer" in gaps[1].between[0]


@pytest.mark.parametrize(
    ("missed", "why"),
    [
        (0, "the message was queued to the device and its driver was never given it"),
        (1, "no frame carries them"),
    ],
)
def test_a_message_the_sender_dropped_is_told_from_a_record_it_lost(
    tmp_path: Path, missed: int, why: str
) -> None:
    cook = cooked.nic(tmp_path)
    later = ("virtio_net:start_xmit", OUTBUF)
    cook.sender.events = [e for e in cook.sender.events if e["hook"] not in later]
    for guest in (cook.sender, cook.receiver):
        guest.frames.pop()
    cook.receiver.events.clear()
    cook.sender.queues["tx"]["gates"].pop("sent")
    cook.missed["virtio_net:start_xmit"] = missed

    assert [why] == [gap.why for gap in follow(cook).gaps]


@pytest.mark.parametrize(("rest", "found"), [(11, []), (16, ["content"])])
def test_a_rest_too_short_for_a_census_is_no_disagreement(
    tmp_path: Path, rest: int, found: list[str]
) -> None:
    """A user buffer that runs over into its last page by a few bytes."""
    size = cooked.PAGE - 0xA80 + rest  # from 0xa80 in its first page on
    cook = cooked.nic(tmp_path, size=size)
    for gate in cook.receiver.gates:
        gate["hits"] = [
            hit for hit in gate["hits"] if int(hit["physical"], 16) != 0x0B00_0000 + 3 * cooked.PAGE
        ]

    assert found == disagreements(follow(cook))
