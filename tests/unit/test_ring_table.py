"""The rings as a table: what was given, what the device did with it, and for which movement."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import ledger, report, rings
from lab.capture import Frame
from lab.ledger.entries import Extent
from lab.report import ring_table, ring_uses
from lab.report.ring_table import Table
from lab.rundir import Descriptor, RingGate, RunDir
from tests.unit import cooked
from tests.unit.cooked import edit


def found(run: RunDir) -> dict[tuple[str, str], Table]:
    return {
        (one.guest, one.queue): one for one in ring_table.tables(run, ledger.build(run).messages)
    }


def test_a_filled_buffer_is_told_with_its_movement(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    rx = found(run)["receiver", "rx"]
    filled = [one for one in rx.entries if one.movements]

    assert 1 == len(filled)
    assert "given" == filled[0].before
    assert filled[0].after.startswith("used #0, ")
    assert "message 0: virtio-net-pci writes" in filled[0].movements[0]
    assert filled[0].movements[0].endswith("receiver/trace.bin#0")
    assert rx.used_before + 1 == rx.used_after


def test_what_was_sent_is_in_the_senders_ring(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    read = [one for one in found(run)["sender", "tx"].entries if one.movements]

    assert 1 == len(read)
    assert "read" in read[0].flags
    assert "virtio-net-pci reads" in read[0].movements[0]


def test_a_buffer_that_nobody_filled_has_no_movement(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    rx = found(run)["receiver", "rx"]
    others = [one for one in rx.entries if not one.touched]

    assert others
    assert {"given"} == {one.before for one in others} == {one.after for one in others}


@pytest.mark.parametrize("whole", [True, False])
def test_the_table_is_short_unless_it_is_asked_for_whole(tmp_path: Path, *, whole: bool) -> None:
    run = cooked.nic(tmp_path).serve()
    tables = list(found(run).values())
    text = "\n".join(ring_table.lines(tables, whole=whole))

    entries = max(len(one.entries) for one in tables)
    assert entries > ring_table.LIKE + 1
    assert whole == ("more that nothing happened to" not in text)


def test_a_status_word_is_shown_where_the_device_has_one(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()

    def mark(value: dict[str, list[dict[str, dict[str, dict[str, object]]]]]) -> None:
        for queue in value["queues"]:
            for name, gate in queue["gates"].items():
                gate["status"] = [[0, 0x60007]] if name == "received" else []

    edit(run, "receiver/rings.json", mark)
    first = found(run)["receiver", "rx"].entries[0]

    assert "given, status 0x0" == first.before
    assert "status 0x60007" in first.after


# --- A descriptor that is used again ----------------------------------------------------------


STALE = "0x1779eeb2"  # what descriptor 0 holds when the run begins


def reused(tmp_path: Path, *, record: bool = True) -> RunDir:
    """Two messages through TX descriptor 0, which holds what was used before the run."""
    run = cooked.nic(tmp_path, count=2).serve()

    def gate(at: int, address: str, length: int) -> dict[str, object]:
        made: dict[str, object] = {
            "avail_idx": at,
            "used_idx": at,
            "descriptors": [[0, address, length, 0, 1], [1, "0x0", 0, 0, 0]],
            "used": [[0, 0]] * (at - 3),
        }
        return made | {"given": []} if record else made

    def again(value: dict[str, list[dict[str, object]]]) -> None:
        for queue in value["queues"]:
            if "tx" == queue["queue"]:
                queue["gates"] = {
                    "armed": gate(3, STALE, 78),
                    "sent": gate(4, *buffers[0]),
                    "received": gate(5, *buffers[1]),
                }

    sent = [one for one in found(run)["sender", "tx"].entries if one.movements]
    buffers = [(one.address, one.length) for one in sent]
    edit(run, "sender/rings.json", again)
    return run


@pytest.mark.parametrize("record", [True, False])
def test_each_buffer_of_a_descriptor_has_a_row(tmp_path: Path, *, record: bool) -> None:
    # Nothing was the device's at any gate: its indexes say so without a record.
    run = reused(tmp_path, record=record)
    tx = found(run)["sender", "tx"]
    rows = tx.entries[:2]

    assert ["sent", "received"] == [one.gate for one in rows]
    assert [0, 0] == [one.descriptor for one in rows]
    assert rows[0].address != rows[1].address
    assert ["message 0", "message 1"] == [one.movements[0][:9] for one in rows]
    assert [1, 1] == [len(one.movements) for one in rows]
    assert [f"left over: {STALE}"] * 2 == [one.before for one in rows]
    assert [((0, 0), (1, 0))] * 2 == [one.used for one in rows]
    assert f"used #0, 0 bytes; used #1, 0 bytes; left over: {rows[1].address}" == rows[0].after
    assert "used #0, 0 bytes; used #1, 0 bytes" == rows[1].after
    assert 0 == tx.posted_before


def refilled(run: RunDir, *, given: list[int] | None) -> Table:
    """Leave RX descriptor 9 out of what the device has; None: out of the record."""

    def change(value: dict[str, list[dict[str, dict[str, dict[str, object]]]]]) -> None:
        for queue in value["queues"]:
            for gate in queue["gates"].values():
                gate["given"] = given
                gate["avail_idx"] = 262

    edit(run, "receiver/rings.json", change)
    return found(run)["receiver", "rx"]


def test_only_what_the_device_has_is_given(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    rx = refilled(run, given=[number for number in range(256) if number != 9])

    assert {"given": 255, "left over": 1} == Counter(one.before for one in rx.entries)
    assert "left over" == rx.entries[9].before
    assert rx.entries[0].after.startswith("used #0, 70 bytes; given again: 0x")


def test_what_was_not_recorded_is_not_guessed(tmp_path: Path) -> None:
    rx = refilled(cooked.nic(tmp_path).serve(), given=None)

    assert {"not recorded"} == {one.before for one in rx.entries}
    assert rx.entries[0].after.startswith("used #0, 70 bytes; then not recorded: 0x")


def test_an_index_that_may_be_too_low_is_told_so(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()

    def mark(value: dict[str, list[dict[str, dict[str, dict[str, object]]]]]) -> None:
        for queue in value["queues"]:
            for gate in queue["gates"].values():
                gate["at_least"] = True

    text = "used index 7 before, {}8 after"
    assert text.format("") in "\n".join(ring_table.lines([found(run)["receiver", "rx"]]))
    edit(run, "receiver/rings.json", mark)
    assert text.format("at least ") in "\n".join(ring_table.lines([found(run)["receiver", "rx"]]))


def test_of_a_chain_the_device_has_every_part() -> None:
    gate = RingGate(
        name="armed",
        avail_idx=1,
        used_idx=0,
        descriptors=tuple(
            Descriptor(id=at, address=4096, length=64, flags=flags, next=following)
            for at, flags, following in ((0, 0, 1), (1, 0, 2), (2, 1, 0), (3, 1, 3))
        ),
        used=(),
        given=(2, 3, 7),
    )

    assert frozenset({0, 2, 3, 7}) == gate.posted()
    assert gate.posted() == replace(gate, given=(2, 3, 7, 2)).posted()
    assert replace(gate, given=None).posted() is None
    assert frozenset() == replace(gate, given=None, avail_idx=0).posted()
    assert frozenset({0, 1, 2, 3}) == replace(gate, given=None, avail_idx=4).posted()


def test_the_report_has_one_line_of_it(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    text = report.render(ledger.build(run), run)

    lines = [line for line in text.splitlines() if line.startswith("Rings: ")]
    assert 1 == len(lines)
    assert "receiver rx descriptor 0 filled" in lines[0]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [([3], "3"), ([33, 34, 35], "33-35"), ([60, 0, 1, 2], "0-2, 60"),
     (range(0, 20, 2), "0, 2, 4, 6, 8, 10 and 4 more runs")],
)  # fmt: skip
def test_many_descriptors_are_told_as_ranges(tmp_path: Path, numbers: list[int], told: str) -> None:
    run = cooked.nic(tmp_path).serve()
    found = ledger.build(run)
    (first,) = found.messages
    rings_ids = tuple(f"receiver/rings.json#before/rx/{number}" for number in numbers)
    filled = next(one for one in first.movements if "dma-write" == one.kind)
    moved = (filled._replace(evidence=rings_ids),)
    many = replace(found, messages=(first._replace(movements=moved),))

    plural = "s" if len(numbers) > 1 else ""
    assert f"receiver rx descriptor{plural} {told} filled; all" in (
        ring_table.summary(run, many.messages)
    )


def test_over_loopback_there_is_none(tmp_path: Path) -> None:
    run = cooked.loopback(tmp_path).serve()

    assert {} == found(run)
    assert "Rings:" not in report.render(ledger.build(run), run)


class Virtio:
    """QEMU's monitor and the guest's RAM, as far as a virtqueue of eight needs them."""

    AVAIL, USED, SIZE = 0x1000, 0x2000, 8

    def __init__(self, *, avail: int, used: int, heads: list[int]) -> None:
        self.ram = bytearray(0x3000)
        struct.pack_into(f"<HH{self.SIZE}H", self.ram, self.AVAIL, 0, avail, *heads)
        struct.pack_into("<HH", self.ram, self.USED, 0, used)

    def execute(self, command: str, _: object = None) -> Any:
        if command == "x-query-virtio":
            return [{"path": "/machine/peripheral/lab0/virtio-backend"}]
        if command == "qom-list":
            return []
        where = {"vring-desc": 0, "vring-avail": self.AVAIL, "vring-used": self.USED}
        return {"vring-num": self.SIZE, **where}

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.ram[address : address + size])


@pytest.mark.parametrize(
    ("avail", "used", "given"),
    [(3, 3, []), (5, 3, [6, 1]), (10, 6, [3, 2, 7, 0]), (1, 65535, [2, 7])],
)
def test_a_virtqueue_says_what_the_device_has(avail: int, used: int, given: list[int]) -> None:
    machine: Any = Virtio(avail=avail, used=used, heads=[7, 0, 5, 6, 1, 4, 3, 2])
    held = rings.find(machine, name="lab0")
    rings.read(held, "armed", monitor=machine, memory=machine)

    assert given == held.queues["tx"]["gates"]["armed"]["given"]


# --- Which use of a descriptor a movement was ----------------------------------------------------


def counted(run: RunDir, guest: str, armed: list[int], later: list[int]) -> RunDir:
    """Say how many frames had passed the backend at each gate, before and after it was read."""

    def count(value: dict[str, list[dict[str, dict[str, dict[str, object]]]]]) -> None:
        for queue in value["queues"]:
            for name, gate in queue["gates"].items():
                gate["frames"] = armed if "armed" == name else later

    edit(run, f"{guest}/rings.json", count)
    return run


def again(tmp_path: Path) -> RunDir:
    """Three messages through TX descriptor 0, whose table shows what was sent last alone."""
    run = cooked.nic(tmp_path, count=3).serve()
    sent = [one for one in found(run)["sender", "tx"].entries if one.movements]
    buffers = [(one.address, one.length) for one in sent]

    def one(value: dict[str, list[dict[str, Any]]]) -> None:
        for queue in value["queues"]:
            if "tx" == queue["queue"]:
                for name, gate in queue["gates"].items():
                    last = buffers[2] if "sent" == name else (STALE, 78)
                    gate["descriptors"] = [[0, *last, 0, 0]]
                    gate["used"] = [] if "armed" == name else [[0, 0]] * 3

    edit(run, "sender/rings.json", one)
    # Frame 0 is an ARP request that passed before the first gate.
    return counted(run, "sender", [1, 1], [4, 4])


def test_each_movement_is_matched_with_its_use_of_one_descriptor(tmp_path: Path) -> None:
    tx = found(again(tmp_path))["sender", "tx"]

    assert [0, 1, 2] == [one.message for one in tx.matches]
    assert [(0,), (1,), (2,)] == [tuple(use.number for use in one.uses) for one in tx.matches]
    assert {(0,)} == {one.descriptors for one in tx.matches}
    assert [1, 2, 3] == [one.uses[0].nth for one in tx.matches]
    assert ["sender/wire.pcap#1", "sender/wire.pcap#2"] == [one.frame for one in tx.matches[:2]]
    assert ["order", "order", "order, address"] == [one.by for one in tx.matches]
    text = "\n".join(ring_table.lines([tx]))
    assert "3 of 3 movements matched with uses of this ring:" in text
    assert "3 movements, below" in text
    assert "used 3 times: #0 … #2" in text


def test_a_use_of_other_memory_is_no_match(tmp_path: Path) -> None:
    run = again(tmp_path)

    def other(value: dict[str, list[dict[str, Any]]]) -> None:
        for queue in value["queues"]:
            if "tx" == queue["queue"]:
                queue["gates"]["sent"]["descriptors"] = [[0, STALE, 58, 0, 0]]

    edit(run, "sender/rings.json", other)
    last = found(run)["sender", "tx"].matches[-1]

    assert () == last.uses
    assert "by the order of frames it is another descriptor than by the address" == last.why


def test_the_address_is_that_of_the_bytes_that_moved(tmp_path: Path) -> None:
    # Of a place in two pieces the second begins elsewhere, and a place may begin before it.
    (message,) = ledger.build(cooked.nic(tmp_path).serve()).messages
    read = next(one for one in message.movements if "dma-read" == one.kind)
    place = message.places[read.source]
    pieces = (place.extents[0]._replace(physical=4096, size=4), Extent(physical=65536, size=12))
    places = [*message.places]
    places[read.source] = place._replace(extents=pieces)
    message = message._replace(places=tuple(places))
    held = Descriptor(id=0, address=65540, length=8, flags=0, next=0)

    assert not ring_uses._covers(held, message, read)
    assert not ring_uses._covers(held, message, read._replace(offset=4))
    assert ring_uses._covers(held, message, read._replace(offset=8))


def test_the_report_says_how_often_a_descriptor_was_used(tmp_path: Path) -> None:
    run = again(tmp_path)
    messages = ledger.build(run).messages
    reads = [it for one in messages for it in one.movements if "dma-read" == it.kind]
    first = messages[0]._replace(movements=tuple(reads))

    assert "sender tx descriptor 0 read in 3 uses;" in ring_table.summary(run, [first])


@pytest.mark.parametrize(
    ("armed", "later", "why"),
    [
        ([0, 0], [4, 4], "the ring says 3 packets and the wire has 4 frames"),
        ([1, 1], [3, 4], "frames passed at gate 'sent'"),
        ([1, 1], [], "older than that record"),
    ],
    ids=["one-too-many", "while-it-was-read", "older"],
)
def test_what_cannot_be_matched_is_said(
    tmp_path: Path, armed: list[int], later: list[int], why: str
) -> None:
    run = counted(again(tmp_path), "sender", armed, later)
    tx = found(run)["sender", "tx"]

    assert [()] * 3 == [one.uses for one in tx.matches]
    text = " ".join(" ".join(ring_table.lines([tx])).split())
    assert "3 movements matched with no use of this ring: " in text
    assert why in text
    told = ring_table.summary(run, ledger.build(run).messages)
    assert "sender tx: the descriptors of 1 read are not known" in told
    assert why in told


def filled(
    tmp_path: Path, lengths: list[list[int]], *, used: int | None = None, size: int = 16
) -> Table:
    """Three messages, each in a frame of 58 bytes and more; the used ring says `lengths`."""
    run = cooked.nic(tmp_path, count=3, size=size).serve()

    def change(value: dict[str, list[dict[str, Any]]]) -> None:
        for queue in value["queues"]:
            if "rx" == queue["queue"]:
                queue["gates"]["received"]["used"] = lengths
                queue["gates"]["received"]["used_idx"] = 7 + (used or len(lengths))
                queue["gates"]["received"]["avail_idx"] = 263 + (used or len(lengths))

    edit(run, "receiver/rings.json", change)
    counted(run, "receiver", [1, 1], [4, 4])
    return found(run)["receiver", "rx"]


def test_a_buffer_is_matched_where_the_length_is_the_frame_s(tmp_path: Path) -> None:
    rx = filled(tmp_path, [[0, 70], [1, 70], [2, 70]])

    assert [0, 1, 2] == [one.uses[0].number for one in rx.matches]
    assert {"order, address"} == {one.by for one in rx.matches}


def test_a_length_that_is_no_frame_s_matches_nothing(tmp_path: Path) -> None:
    rx = filled(tmp_path, [[0, 70], [1, 71], [2, 70]])

    assert {"address"} == {one.by for one in rx.matches}


def test_of_a_ring_gone_through_again_the_last_are_matched(tmp_path: Path) -> None:
    # Five uses for three frames in the ring's memory of two: the first three are written over.
    rx = filled(tmp_path, [[1, 70], [2, 70]], used=5)

    assert [(), (3,), (4,)] == [tuple(use.number for use in one.uses) for one in rx.matches]
    assert "the ring does not show any more what frame 1 and before used" == rx.matches[0].why
    assert {None} == {one.uses[0].nth for one in rx.matches[1:]}


def test_an_address_that_says_another_descriptor_is_told(tmp_path: Path) -> None:
    rx = filled(tmp_path, [[0, 70], [2, 70], [1, 70]])

    assert [(0,), (), ()] == [tuple(use.number for use in one.uses) for one in rx.matches]
    text = " ".join(" ".join(ring_table.lines([rx])).split())
    assert "2 movements matched with no use of this ring: by the order of frames it is" in text
    assert "another descriptor than by the address (the first: message 1, " in text


def test_two_pieces_of_a_message_in_one_access_are_listed_once(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    (first,) = ledger.build(run).messages
    twice = first._replace(
        movements=tuple(
            it
            for one in first.movements
            for it in ([one, one._replace(offset=8)] if "dma-write" == one.kind else [one])
        )
    )
    tables = {(one.guest, one.queue): one for one in ring_table.tables(run, [twice])}

    assert [1] == [len(one.movements) for one in tables["receiver", "rx"].entries if one.movements]
    assert 1 == len(tables["receiver", "rx"].matches)


def test_a_long_table_is_cut_and_says_how_to_see_it(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, count=ring_table.MOST_ROWS + 3).serve()
    rx = found(run)["receiver", "rx"]
    short, whole = ("\n".join(ring_table.lines([rx], whole=whole)) for whole in (False, True))

    assert "… and 3 more that something happened to: invoke lab.rings RUN --all" in short
    assert "something happened to" not in whole
    assert ring_table.MOST_ROWS + 3 == len([one for one in rx.entries if one.movements])


def test_whose_descriptors_are_is_worked_out_once_for_a_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cooked.nic(tmp_path).serve()
    messages = ledger.build(run).messages
    asked: Counter[str] = Counter()
    real = RingGate.posted

    def posted(gate: RingGate) -> frozenset[int] | None:
        asked["calls"] += 1
        return real(gate)

    monkeypatch.setattr(RingGate, "posted", posted)
    tables = ring_table.tables(run, messages)

    gates = 2 * len(tables)
    assert 0 < asked["calls"] <= 3 * gates < len(tables[0].entries)


def test_a_frame_over_two_buffers_has_both_uses_and_a_movement_its_own(tmp_path: Path) -> None:
    rx = filled(tmp_path, [[0, 40], [9, 30], [1, 70], [2, 70]])

    assert [(0,), (2,), (3,)] == [tuple(use.number for use in one.uses) for one in rx.matches]
    assert {"order, address"} == {one.by for one in rx.matches}


def e1000e(tmp_path: Path, *, head: int, size: int, later: int = 4) -> Table:
    """Three messages into a ring of `size`, whose device says with its head alone where it is."""
    run = cooked.nic(tmp_path, count=3, device="e1000e").serve()

    def change(value: dict[str, list[dict[str, Any]]]) -> None:
        for queue in value["queues"]:
            if "rx" == queue["queue"]:
                del queue["avail"], queue["used"]
                queue["size"] = size
                for name, gate in queue["gates"].items():
                    gate |= {"at_least": True, "used": [], "given": list(range(size))}
                    gate["used_idx"] = 0 if "armed" == name else head
                    gate["descriptors"] = gate["descriptors"][:size]

    edit(run, "receiver/rings.json", change)
    counted(run, "receiver", [1, 1], [later, later])
    return found(run)["receiver", "rx"]


def test_of_e1000e_the_frames_say_which_descriptor_was_in_turn(tmp_path: Path) -> None:
    # Its head went from 0 to 1 in a ring of two: three frames, once round and one more.
    rx = e1000e(tmp_path, head=1, size=2)

    uses = [use for one in rx.matches for use in one.uses]
    assert [0, 1, 2] == [use.number for use in uses]
    assert [0, 1, 0] == [use.descriptor for use in uses]
    assert [1, 1, 2] == [use.nth for use in uses]
    assert {False} == {one.at_least for one in rx.matches}


def test_of_e1000e_a_head_that_is_elsewhere_matches_nothing(tmp_path: Path) -> None:
    rx = e1000e(tmp_path, head=0, size=2)

    assert [()] * 3 == [one.uses for one in rx.matches]
    assert all(one.why for one in rx.matches)


def test_frames_of_a_packet_that_the_device_cut_are_one_use(tmp_path: Path) -> None:
    # QEMU's e1000e cuts what is too long: segments with all headers, or fragments with IP's.
    header, payload = bytes(12) + b"\x08\x00", bytes(1000)
    ip = struct.pack(">BBHHHBBHII", 0x45, 0, 1028, 1, 0, 64, 17, 0, 1, 2)
    frames = [
        Frame(index=at, time_ns=0, data=header + ip + bytes(4) + b"\x03\xf0" + bytes(2) + payload)
        for at in range(3)
    ]
    whole = 42 + 3 * 1000

    assert 3 == ring_uses._frames_of(whole, frames, cuts=True)
    assert 0 == ring_uses._frames_of(whole + 1, frames, cuts=True)
    assert 0 == ring_uses._frames_of(whole, frames, cuts=False)
    assert 3 == ring_uses._frames_of(34 + 3 * 1008, frames, cuts=True)
    assert 1 == ring_uses._frames_of(1042, frames, cuts=False)
