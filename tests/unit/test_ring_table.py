"""The rings as a table: what was given, what the device did with it, and for which movement."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import ledger, report, rings
from lab.report import ring_table
from lab.report.ring_table import Table
from lab.rundir import Descriptor, RingGate, RunDir
from tests.unit import cooked
from tests.unit.cooked import edit


def found(run: RunDir) -> dict[tuple[str, str], Table]:
    return {(one.guest, one.queue): one for one in ring_table.tables(run, ledger.build(run))}


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
    found = ledger.build(cooked.nic(tmp_path).serve())
    (first,) = found.messages
    rings_ids = tuple(f"receiver/rings.json#before/rx/{number}" for number in numbers)
    moved = tuple(one._replace(evidence=rings_ids) for one in first.movements[-1:])
    many = replace(found, messages=(first._replace(movements=moved),))

    plural = "s" if len(numbers) > 1 else ""
    assert f"receiver rx descriptor{plural} {told} filled; all" in ring_table.summary(many)


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
