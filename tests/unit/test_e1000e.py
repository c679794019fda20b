"""A link whose device is no virtio device: the DMA API and registers instead of virtqueues."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from lab import correlate, rings
from lab.access import tables
from lab.correlate import Flow, Kind, PlaceKind
from lab.errors import LabError
from tests.unit import cooked

UNMAP = "dma_unmap_page_attrs"
MAP = "dma_map_page_attrs"


def follow(tmp_path: Path, size: int, **changes: Any) -> Flow:
    return correlate.follow(cooked.nic(tmp_path, size=size, device="e1000e", **changes).serve())


def kinds(flow: Flow) -> list[Kind]:
    return [movement.kind for movement in flow.movements]


def test_a_short_frame_is_copied_out_of_the_buffer_by_the_driver(tmp_path: Path) -> None:
    flow = follow(tmp_path, 16)
    assert not flow.gaps
    assert not flow.disagreements
    assert [Kind.COPY, Kind.DMA_READ, Kind.DMA_WRITE, Kind.COPY, Kind.COPY] == kinds(flow)
    assert "e1000e:e1000_clean_rx_irq>memcpy" == flow.movements[3].function
    assert {"e1000e"} == {m.function for m in flow.movements if m.kind is not Kind.COPY}
    assert "receiver/trace.bin#0" in flow.movements[2].evidence
    assert PlaceKind.RX_BUFFER is flow.movements[2].target.kind


def test_a_longer_one_is_received_where_the_device_wrote_it(tmp_path: Path) -> None:
    flow = follow(tmp_path, 1000)
    assert not flow.gaps
    assert not flow.disagreements
    assert [Kind.COPY, Kind.DMA_READ, Kind.DMA_WRITE, Kind.COPY] == kinds(flow)


@pytest.mark.parametrize("hook", [MAP, UNMAP])
def test_without_the_dma_api_s_hook_the_rings_still_say_it(tmp_path: Path, hook: str) -> None:
    flow = follow(tmp_path, 16, without=[hook])
    assert not flow.gaps
    assert 5 == len(flow.movements)


@pytest.mark.parametrize(
    ("guest", "hook"), [("sender", MAP), ("receiver", UNMAP)], ids=["read", "write"]
)
def test_without_both_the_device_s_access_is_unaccounted(
    tmp_path: Path, guest: str, hook: str
) -> None:
    cook = cooked.nic(tmp_path, device="e1000e", without=[hook])
    cook.skip_files.add(f"{guest}/rings.json")
    flow = correlate.follow(cook.serve())
    assert flow.gaps
    assert any(hook in gap.why for gap in flow.gaps)


def test_a_frame_split_over_two_buffers_is_put_together(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, size=1000, device="e1000e")
    whole = next(one for one in cook.receiver.events if one["hook"] == UNMAP)
    frame, data = cook.receiver.frames[-1], whole["src_phys"]
    page = {"src": whole["src"] + 42, "src_phys": data + 42, "size": 4096, "bytes": frame[42:106]}
    cook.receiver.events.insert(1, whole | page | {"tsc": whole["tsc"] + 1})
    whole |= {"size": 128, "bytes": frame[:42].ljust(64, b"\0")}
    flow = correlate.follow(cook.serve())
    assert not flow.gaps
    assert not flow.disagreements
    assert "receiver/trace.bin#1" in flow.movements[2].evidence


def test_a_buffer_taken_back_with_other_bytes_is_not_the_frame_s(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, device="e1000e")
    cooked.change(cook.receiver, UNMAP, bytes=bytes(64))
    flow = correlate.follow(cook.serve())
    assert flow.gaps or flow.disagreements


def test_memory_mapped_for_another_s_packet_is_no_part_of_the_frame(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, device="e1000e")
    cooked.change(cook.sender, MAP, src=cooked.DIRECT_MAP + 0x0700_0000, src_phys=0x0700_0000)
    assert correlate.follow(cook.serve()).disagreements


# --- A packet that the device cuts ------------------------------------------------------------


@pytest.fixture
def cut(tmp_path: Path) -> cooked.Cook:
    cook = cooked.nic(tmp_path, size=1000, device="e1000e")
    for guest in (cook.sender, cook.receiver):
        guest.frames[1:] = [cooked.frame_of(cook, 0, 0, 480), cooked.frame_of(cook, 0, 480, 520)]
    cook.receiver.events.clear()
    return cook


def test_each_frame_a_device_made_of_a_packet_is_a_read_of_its_part(cut: cooked.Cook) -> None:
    flow = correlate.follow(cut.serve())
    reads = [one for one in flow.movements if one.kind is Kind.DMA_READ]
    assert [(0, 480), (480, 520)] == [(one.offset, one.payload_size) for one in reads]
    assert not flow.disagreements
    assert {"sender"} != {gap.guest for gap in flow.gaps}


def test_a_part_of_the_packet_that_is_in_no_frame_is_missed(cut: cooked.Cook) -> None:
    cut.sender.frames.pop()
    flow = correlate.follow(cut.serve())
    assert any("carry 480" in one.text for one in flow.disagreements)


# --- The rings, by the device's registers ---------------------------------------------------------

BASE = 0xFEBC_0000
RING = {"rx": 0x10_0000, "tx": 0x20_0000}
SIZE = 8


class Machine:
    """QEMU's monitor and the guest's RAM, as far as the rings need them."""

    def __init__(self) -> None:
        self.ram = bytearray(0x30_0000)
        self.head = {"rx": 0, "tx": 0}
        self.tail = {"rx": SIZE - 1, "tx": 0}
        self.said: str | None = None
        self.other: dict[int, int] = {}
        for number in range(SIZE):
            self.write("rx", number, struct.pack("<QQ", 0x5000 + number * 0x1000, 0))

    def write(self, queue: str, number: int, entry: bytes) -> None:
        at = RING[queue] + 16 * number
        self.ram[at : at + 16] = entry

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.ram[address : address + size])

    def execute(self, command: str, _: object = None) -> Any:
        if command == "x-query-virtio":
            return [{"path": "/machine/peripheral/ssh0/virtio-backend"}]
        region = {"bar": 0, "address": BASE}
        return [{"devices": [{"qdev_id": "lab0", "regions": [region]}]}]

    def human(self, line: str) -> str:
        if self.said is not None:
            return self.said
        count, _, address = line.removeprefix("xp /").partition("wx ")
        first = int(address, 16) - BASE
        words = [self.register(first + 4 * at) for at in range(int(count))]
        rows = [words[at : at + 4] for at in range(0, len(words), 4)]
        return "\r\n".join(
            f"{int(address, 16) + 16 * at:016x}: " + " ".join(f"0x{word:08x}" for word in row)
            for at, row in enumerate(rows)
        )

    def register(self, at: int) -> int:
        for queue, first in rings.REGISTERS.items():
            known = {0: RING[queue], 8: 16 * SIZE, 16: self.head[queue], 24: self.tail[queue]}
            if first <= at < first + 28:
                return known.get(at - first, 0)
        return self.other.get(at, 0)

    def gate(self, held: rings.Rings, name: str) -> None:
        rings.read(held, name, monitor=self, memory=self)  # type: ignore[arg-type]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def gate(held: rings.Rings, queue: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = held.queues[queue]["gates"][name]
    return found


def test_the_registers_say_where_the_rings_are(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.gate(held, "armed")
    assert (0x5000, 0x5800) == held.posted()[0]
    assert {(0x10_0000, 0x10_0080), (0x20_0000, 0x20_0080)} == set(held.pages())


def test_what_the_device_wrote_back_is_used(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.gate(held, "armed")
    machine.write("rx", 0, rings.RECEIVED.pack(0, 3, 60, 0))
    machine.write("tx", 0, tables.E1000E.pack(0, 1 << 29, 0))  # a context: no buffer
    machine.write("tx", 1, tables.E1000E.pack(0x7000, 1 << 29 | 1 << 20 | 58, 1))
    machine.head |= {"rx": 1, "tx": 2}
    machine.tail |= {"tx": 2}
    machine.gate(held, "received")
    assert [[0, 60]] == gate(held, "rx", "received")["used"]
    assert [0, "0x0", 0, 0, 0] == gate(held, "rx", "received")["descriptors"][0]
    assert [1, "0x7000", 58, 0, 0] == gate(held, "tx", "received")["descriptors"][1]
    assert [[0, 0], [1, 58]] == gate(held, "tx", "received")["used"]


def test_what_the_device_has_is_between_head_and_tail(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.head["rx"], machine.tail["rx"] = 6, 1
    machine.gate(held, "armed")
    assert [0, 6, 7] == gate(held, "rx", "armed")["given"]
    assert [] == gate(held, "tx", "armed")["given"]


def test_the_used_index_counts_on_from_gate_to_gate(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    for name, head in (("armed", 0), ("sent", 6), ("received", 3)):
        machine.head["tx"] = machine.tail["tx"] = head
        machine.gate(held, name)
    assert [0, 6, 11] == [gate(held, "tx", at)["used_idx"] for at in ("armed", "sent", "received")]
    used = [number for number, _ in gate(held, "tx", "received")["used"]]
    assert [3, 4, 5, 6, 7, 0, 1, 2] == used
    assert gate(held, "tx", "received")["at_least"]


def test_a_descriptor_given_to_a_new_buffer_says_nothing_of_the_old_one(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.gate(held, "armed")
    machine.write("rx", 1, rings.RECEIVED.pack(0, 3, 90, 0))
    machine.head["rx"], machine.tail["rx"] = 2, 1
    machine.gate(held, "received")
    assert [[1, 90]] == gate(held, "rx", "received")["used"]
    assert [0, "0x5000", 2048, 2, 0] == gate(held, "rx", "received")["descriptors"][0]


def test_a_split_packet_s_buffers_are_four_of_a_descriptor(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.other = {rings.RECEIVE_CONTROL: rings.SPLIT, rings.SPLIT_CONTROL: 4 << 8 | 1}
    for number in range(4):
        machine.write("rx", 2 * number, struct.pack("<QQ", 0x5000, 0x6000))
        machine.write("rx", 2 * number + 1, struct.pack("<QQ", 2**64 - 1, 2**64 - 1))
    machine.tail["rx"] = 3
    machine.gate(held, "armed")
    assert [(0x5000, 0x5080), (0x6000, 0x7000)] == held.posted()[:2]
    written = rings.SPLIT_RECEIVED.pack(0, 3, 42, 0, 0, 1000, 0, 0, 0)
    machine.write("rx", 0, written[:16])
    machine.write("rx", 1, written[16:])
    machine.head["rx"] = 1
    machine.gate(held, "received")
    assert [[0, 42], [1, 1000]] == gate(held, "rx", "received")["used"][:2]


def test_indexes_go_on_where_the_ring_begins_anew(machine: Machine) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.head["rx"], machine.tail["rx"] = 7, 6
    machine.gate(held, "armed")
    machine.head["rx"] = 1
    machine.gate(held, "received")
    assert 2 == gate(held, "rx", "received")["used_idx"] - gate(held, "rx", "armed")["used_idx"]


@pytest.mark.parametrize("said", ["", "unknown command", "fe: 0x1", "Cannot access memory"])
def test_a_monitor_that_shows_no_registers_is_an_error(machine: Machine, said: str) -> None:
    held = rings.find(machine, name="lab0")  # type: ignore[arg-type]
    machine.said = said
    with pytest.raises(LabError, match="shows no registers"):
        machine.gate(held, "armed")


def test_a_device_that_is_not_there_is_an_error(machine: Machine) -> None:
    held = rings.find(machine, name="other")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="no device 'other'"):
        machine.gate(held, "armed")
