"""An IOMMU's tables in a guest's RAM: what a device's addresses stand for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import iommu, rings
from lab.errors import EvidenceError, LabError
from lab.iommu import Iommu
from lab.memory import GuestMemory

ROOT, CONTEXT, TOP, MIDDLE, LAST = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
FUNCTION = 5 << 3
PRESENT, READ_WRITE, LARGE = 1, 3, 1 << 7
DEVICE = 0xFFFF_F000  # the highest page below 4 GiB, where Linux begins to give addresses


class Ram:
    """A guest's RAM with tables in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_bytes(bytes(1 << 20))
        self.put(ROOT, CONTEXT | PRESENT, 0)
        self.put(CONTEXT + 16 * FUNCTION, TOP | PRESENT, 1)  # 39 bits: three levels
        self.put(TOP + 8 * (DEVICE >> 30), MIDDLE | READ_WRITE)
        self.put(MIDDLE + 8 * (DEVICE >> 21 & 511), LAST | READ_WRITE)

    def put(self, at: int, *words: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(struct.pack(f"<{len(words)}Q", *words))

    def map(self, device: int, physical: int) -> None:
        self.put(LAST + 8 * (device >> 12 & 511), physical | READ_WRITE)


@pytest.fixture
def ram(tmp_path: Path) -> Ram:
    return Ram(tmp_path / "ram")


@pytest.fixture
def memory(ram: Ram) -> Iterator[GuestMemory]:
    with GuestMemory(ram.path) as opened:
        yield opened


IT = Iommu(root=ROOT, bus=0, function=FUNCTION)


def test_an_address_is_followed_through_the_tables(ram: Ram, memory: GuestMemory) -> None:
    ram.map(DEVICE, 0x7_1000)
    assert 0x7_1606 == IT.physical(memory, DEVICE + 0x606)
    assert IT.physical(memory, DEVICE - 0x1000) is None
    assert IT.physical(memory, 1 << 30) is None
    assert IT.physical(memory, 1 << 39) is None


def test_a_large_page_is_one_entry(ram: Ram, memory: GuestMemory) -> None:
    ram.put(MIDDLE + 8 * (DEVICE >> 21 & 511), 0x4020_0000 | READ_WRITE | LARGE)
    assert 0x403F_F123 == IT.physical(memory, DEVICE + 0x123)
    assert IT.slot(memory, DEVICE) is None


def test_runs_are_as_long_as_both_addresses_go_on(ram: Ram, memory: GuestMemory) -> None:
    ram.map(DEVICE - 0x2000, 0x7_1000)
    ram.map(DEVICE - 0x1000, 0x7_2000)
    ram.map(DEVICE, 0x7_1000)
    found = IT.behind(memory, [(DEVICE - 0x3000, 8), (DEVICE - 0x1800, 0x1000), (DEVICE, 1)])
    assert [(DEVICE - 0x2000, 0x7_1000, 0x2000), (DEVICE, 0x7_1000, 0x1000)] == found


def test_what_nobody_has_memory_for_is_not_looked_up(memory: GuestMemory) -> None:
    """A guest's descriptors may name 4 GiB each: page by page that would take the host's memory."""
    with pytest.raises(EvidenceError, match="descriptors name 0x10000000000 bytes"):
        IT.behind(memory, [(0, 1 << 32)] * 256)


def test_the_place_of_an_entry_is_known_before_it_maps_anything(memory: GuestMemory) -> None:
    assert LAST + 8 * 511 == IT.slot(memory, DEVICE)
    assert IT.slot(memory, 1 << 30) is None


def test_a_bus_or_a_context_that_is_none_is_told(ram: Ram, memory: GuestMemory) -> None:
    with pytest.raises(LabError, match="has no bus 3"):
        Iommu(root=ROOT, bus=3, function=0).physical(memory, 0)
    ram.put(CONTEXT + 16 * FUNCTION, TOP | PRESENT | 2 << 2, 1)
    with pytest.raises(LabError, match="no page table"):
        IT.physical(memory, 0)


# --- What QEMU says of it -------------------------------------------------------------------


class Monitor:
    """Answers as QEMU does."""

    def __init__(self, *, there: bool = True, words: tuple[int, ...]) -> None:
        self.there = there
        self.words = words

    def execute(self, command: str, _: object = None) -> Any:
        if command == "qom-list":
            return [{"name": iommu.ID}] if self.there else [{"name": "lab0"}]
        lab0 = {"qdev_id": "lab0", "bus": 0, "slot": 5, "function": 0}
        return [{"devices": [{"qdev_id": "ssh0"}, lab0]}]

    def human(self, line: str) -> str:
        assert "xp /3wx 0xfed9001c" == line
        return "fed9001c: " + " ".join(f"0x{word:08x}" for word in self.words)


def find(*words: int, there: bool = True, name: str = "lab0") -> Iommu | None:
    monitor: Any = Monitor(there=there, words=words)
    return iommu.find(monitor, name=name)


def test_where_the_tables_begin_the_registers_say() -> None:
    assert IT == find(0xC700_0000, ROOT, 0)


def test_without_one_or_while_it_is_off_addresses_are_physical() -> None:
    assert find(0xC700_0000, ROOT, 0, there=False) is None
    assert find(0x4700_0000, ROOT, 0) is None


@pytest.mark.parametrize(
    ("words", "name", "message"),
    [
        ((0xC700_0000, ROOT), "lab0", "shows no IOMMU"),
        ((0xC700_0000, ROOT | 1 << 10, 0), "lab0", "of a kind that is not read"),
        ((0xC700_0000, ROOT, 0), "lab7", "knows no device 'lab7'"),
    ],
)
def test_what_cannot_be_read_is_told(words: tuple[int, ...], name: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        find(*words, name=name)


# --- Rings behind it ------------------------------------------------------------------------


def test_a_ring_is_read_where_the_tables_say_that_it_lies(ram: Ram, memory: GuestMemory) -> None:
    ram.map(DEVICE - 0x1000, 0x7_1000)
    ram.map(DEVICE, 0x6_1000)
    ram.put(0x7_1FF8, 0x1122)
    ram.put(0x6_1000, 0x3344)
    held = rings.Rings(device="/machine/peripheral/lab0", iommu=IT)
    found = held.read(memory, DEVICE - 8, 16, part=("rx", "desc"))
    assert struct.pack("<QQ", 0x1122, 0x3344) == found
    assert [(0x7_1FF8, 0x7_2000), (0x6_1000, 0x6_1008)] == held.pages()
    assert {"desc": "0x71ff8", "device": {"desc": f"{DEVICE - 8:#x}"}} == held.starts(
        "rx", {"desc": DEVICE - 8}
    )


def test_a_ring_that_nothing_maps_is_an_error(memory: GuestMemory) -> None:
    held = rings.Rings(device="/machine/peripheral/lab0", iommu=IT)
    with pytest.raises(LabError, match="maps nothing at 0xfffff000, where the rx ring is"):
        held.read(memory, DEVICE, 16, part=("rx", "desc"))


def test_what_descriptors_stand_for_is_kept_and_where_what_is_unmapped_was_entered(
    ram: Ram, memory: GuestMemory
) -> None:
    ram.map(DEVICE, 0x7_1000)
    held = rings.Rings(device="/machine/peripheral/lab0", iommu=IT)
    gone = DEVICE - 0x5000
    given = [[0, f"{DEVICE + 0x600:#x}", 64, 2, 1], [1, f"{gone:#x}", 64, 0, 0]]
    slot = LAST + 8 * (gone >> 12 & 511)
    assert {
        "behind": [[f"{DEVICE:#x}", "0x71000", 4096]],
        "entries": [[f"{gone:#x}", f"{slot:#x}"]],
    } == held.behind(memory, given)
    assert [(slot, slot + 8)] == held.pages()
    held.queues["rx"] = {"gates": {"armed": {"descriptors": given, **held.behind(memory, given)}}}
    assert [(0x7_1600, 0x7_1640)] == held.posted()


def test_without_an_iommu_addresses_are_as_they_are(memory: GuestMemory) -> None:
    held = rings.Rings(device="/machine/peripheral/lab0")
    assert {} == held.behind(memory, [[0, "0x1000", 64, 2, 0]])
    assert bytes(8) == held.read(memory, 0x8000, 8, part=("rx", "desc"))
    assert {"desc": "0x8000"} == held.starts("rx", {"desc": 0x8000})
