"""What a device's addresses stand for behind an IOMMU, by its tables in the guest's RAM.

Nobody in the guest is asked: where the tables begin the IOMMU's registers say.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from lab.errors import EvidenceError, LabError
from lab.memory import GuestMemory
from lab.qmp import Monitor

ID = "iommu0"  # in QEMU
PAGE = 4096
# Intel VT-d: the global status register and, behind it, that of the root table's address, where
# QEMU's q35 has them (hw/i386/intel_iommu.h).
REGISTERS = 0xFED9_0000
STATUS = 0x1C
TRANSLATES = 1 << 31
SCALABLE = 1 << 10  # of the root table's address: tables of another kind
# Entries of a root, a context and a second-level page table, in legacy mode.
PRESENT = 1
ENTRY = 16  # bytes of a root or context entry
TYPE = 3 << 2  # of a context: 0 is by a second-level table
LEAF = 1 << 7  # of a page table's: it maps a large page
ALLOWED = 3  # read, write; an entry with neither maps nothing
ENTRY_SIZE = 8
ADDRESS = 0x000F_FFFF_FFFF_F000
BITS = 9  # of an address, for each level of tables

# A device's address, the physical one it stands for, and how many bytes on it does.
Run = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Iommu:
    """The IOMMU in front of one device."""

    root: int  # of its tables
    bus: int
    function: int  # of the device on its bus: slot and function

    def physical(self, memory: GuestMemory, address: int) -> int | None:
        """Return what a device's address stands for now; None where it may not go."""
        _, entry, size = self._entry(memory, address)
        if not entry & ALLOWED:
            return None
        return (entry & ADDRESS) + address % size

    def slot(self, memory: GuestMemory, address: int) -> int | None:
        """Return where in RAM the entry is that maps a device's page, or would; None: no table."""
        at, _, size = self._entry(memory, address)
        return at if size == PAGE else None

    def behind(self, memory: GuestMemory, ranges: Iterable[tuple[int, int]]) -> list[Run]:
        """Return what is behind ranges of device addresses, (address, size), where anything is."""
        # What descriptors say is the guest's word: 256 of them may ask for a thousand GiB.
        asked = sum(size for _, size in ranges)
        if asked > memory.size:
            raise EvidenceError(
                f"the descriptors name {asked:#x} bytes: the guest has {memory.size:#x}"
            )
        pages = {
            page
            for address, size in ranges
            for page in range(address // PAGE, (address + size + PAGE - 1) // PAGE)
        }
        out: list[Run] = []
        for page in sorted(pages):
            physical = self.physical(memory, page * PAGE)
            if physical is None:
                continue
            device, first, size = out[-1] if out else (0, 0, 0)
            if out and (device + size, first + size) == (page * PAGE, physical):
                out[-1] = device, first, size + PAGE
            else:
                out.append((page * PAGE, physical, PAGE))
        return out

    def _entry(self, memory: GuestMemory, address: int) -> tuple[int, int, int]:
        """Return where the last entry on the way to an address is, itself, and what it maps."""
        table, levels = self._table(memory)
        at = entry = 0
        size = 1 << 12 + BITS * levels
        for level in reversed(range(levels if address < size else 0)):
            size = PAGE << BITS * level
            at = table + ENTRY_SIZE * (address // size % (1 << BITS))
            (entry,) = struct.unpack("<Q", memory.read(at, ENTRY_SIZE))
            if not entry & ALLOWED or entry & LEAF:
                break
            table = entry & ADDRESS
        return at, entry, size

    def _table(self, memory: GuestMemory) -> tuple[int, int]:
        """Return where the device's page tables begin, and how many levels they have."""
        (low,) = struct.unpack("<Q", memory.read(self.root + ENTRY * self.bus, 8))
        if not low & PRESENT:
            raise LabError(f"the IOMMU's root table at {self.root:#x} has no bus {self.bus}")
        at = (low & ADDRESS) + ENTRY * self.function
        low, high = struct.unpack("<QQ", memory.read(at, ENTRY))
        if not low & PRESENT or low & TYPE:
            raise LabError(f"the IOMMU's context {self.function:#x} at {at:#x} is no page table")
        return low & ADDRESS, (high & 7) + 2  # the address width: 1 is 39 bits, 2 is 48


def find(monitor: Monitor, *, name: str) -> Iommu | None:
    """Return the IOMMU in front of the device with QEMU's id `name`; None where there is none."""
    if not any(one.get("name") == ID for one in monitor.execute("qom-list", PERIPHERALS)):
        return None
    said = monitor.human(f"xp /3wx {REGISTERS + STATUS:#x}")
    words = [int(word, 16) for word in re.findall(r"(?<=\s)0x([0-9a-f]{8})\b", said)]
    if len(words) != 3:
        raise LabError(f"QEMU shows no IOMMU: {said.strip()[:200]}")
    status, low, high = words
    root = high << 32 | low
    if not status & TRANSLATES:
        return None
    if root & SCALABLE:
        raise LabError(f"the IOMMU's root table {root:#x} is of a kind that is not read")
    for bus in monitor.execute("query-pci"):
        for device in bus["devices"]:
            if device["qdev_id"] == name:
                function = int(device["slot"]) << 3 | int(device["function"])
                return Iommu(root=root & ADDRESS, bus=int(device["bus"]), function=function)
    raise LabError(f"QEMU knows no device '{name}'")


PERIPHERALS = {"path": "/machine/peripheral"}
