"""The descriptor rings of a guest's link device, read from outside, asking nobody in the guest.

Where they lie the device knows: QEMU says it of a virtio device, and of e1000e its registers do.
What they hold is in the guest's RAM.  Behind an IOMMU the rings, and the buffers they name, are
at addresses of the device; what these stand for the IOMMU's tables say, which are in RAM as well.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

from lab import iommu
from lab.access.tables import DESCRIPTOR, E1000E, buffer_of
from lab.errors import LabError
from lab.iommu import Iommu
from lab.memory import GuestMemory
from lab.qmp import Monitor

INDEXES = 1 << 16  # the indexes of a virtqueue wrap here; those of e1000e are counted on to it
DEVICE_WRITES = 2  # virtio 1.2, 2.7.5: VIRTQ_DESC_F_WRITE
USED = struct.Struct("<II")  # virtio 1.2, 2.7.8: id, len
QUEUES = {"rx": 0, "tx": 1}  # virtio 1.2, 5.1.2: receiveq1, transmitq1

# Intel 82574 GbE Controller datasheet: registers (10.2) and descriptors (7.1.6, 7.2.10).
BUFFER_SIZES = (2048, 1024, 512, 256)  # RCTL.BSIZE with BSEX off
RECEIVE_CONTROL = 0x100
REGISTERS = {"rx": 0x2800, "tx": 0x3800}  # base low, base high, length, -, head, -, tail
RECEIVED = struct.Struct("<QIHH")  # written back: -, status and error, length, VLAN
SPLIT = 1 << 10  # RCTL.DTYP: header and data of a packet in up to four buffers, for jumbo frames
SPLIT_CONTROL = 0x2170  # PSRCTL: the sizes of the four
SPLIT_GIVEN = struct.Struct("<4Q")
SPLIT_RECEIVED = struct.Struct("<QIHH4HQ")  # -, status, length 0, VLAN, -, lengths 1 to 3, -


@dataclass(slots=True)
class Rings:
    """What the rings of one guest's link device held at each gate."""

    device: str  # where QEMU has it
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    at_first: dict[str, int] = field(default_factory=dict)  # the used index, by queue
    heads: dict[str, tuple[int, int]] = field(default_factory=dict)  # e1000e: head, and used so far
    iommu: Iommu | None = None  # in front of the device
    lie: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=dict)

    def posted(self) -> list[tuple[int, int]]:
        """Return the physical ranges to fill that the first gate shows, the left-over ones too."""
        gates = self.queues["rx"]["gates"] if "rx" in self.queues else {}
        first: dict[str, Any] = next(iter(gates.values()), {"descriptors": []})
        given = [
            (int(address, 16), length)
            for _, address, length, flags, _ in first["descriptors"]
            if flags & DEVICE_WRITES and length
        ]
        if self.iommu is None:
            return [(address, address + length) for address, length in given]
        runs = [(int(a, 16), int(b, 16), size) for a, b, size in first.get("behind", ())]
        return [piece for address, length in given for piece in _pieces(address, length, runs)]

    def tables(self) -> list[tuple[int, int]]:
        """Return where the descriptors of what is sent lie, if they have physical addresses."""
        virtqueue = ("tx", "avail") in self.lie and self.iommu is None
        return self.lie["tx", "desc"] if virtqueue else []

    def pages(self) -> list[tuple[int, int]]:
        """Return the physical ranges of the rings themselves."""
        return [run for runs in self.lie.values() for run in runs]

    def read(self, memory: GuestMemory, address: int, size: int, *, part: tuple[str, str]) -> bytes:
        """Return a part of a queue, read at the address that its device has of it."""
        if self.iommu is None:
            runs = [(address, address + size)]
        else:
            runs = _pieces(address, size, self.iommu.behind(memory, [(address, size)]))
        if sum(end - start for start, end in runs) != size:
            raise LabError(f"the IOMMU maps nothing at {address:#x}, where the {part[0]} ring is")
        self.lie[part] = runs
        return b"".join(memory.read(start, end - start) for start, end in runs)

    def starts(self, queue: str, addresses: dict[str, int]) -> dict[str, Any]:
        """Return where the parts of a queue begin, for rings.json."""
        lie = {part: f"{self.lie[queue, part][0][0]:#x}" for part in addresses}
        if self.iommu is None:
            return lie
        return {**lie, "device": {part: f"{at:#x}" for part, at in addresses.items()}}

    def behind(self, memory: GuestMemory, given: list[list[Any]]) -> dict[str, Any]:
        """Return what the addresses in descriptors stand for now, for rings.json."""
        if self.iommu is None:
            return {}
        ranges = [(int(address, 16), length) for _, address, length, _, _ in given if length]
        found = self.iommu.behind(memory, ranges)
        entries = []
        for page in sorted({address // iommu.PAGE * iommu.PAGE for address, _ in ranges}):
            # What a device read is mapped no longer; the access log shows what was entered here.
            mapped = any(device <= page < device + size for device, _, size in found)
            at = None if mapped else self.iommu.slot(memory, page)
            if at is not None:
                self.lie["iommu", f"{at:#x}"] = [(at, at + iommu.ENTRY_SIZE)]
                entries.append([f"{page:#x}", f"{at:#x}"])
        behind = [[f"{device:#x}", f"{at:#x}", size] for device, at, size in found]
        return {"behind": behind, "entries": entries}

    def to_json(self) -> dict[str, Any]:
        """Return the content of rings.json."""
        return {"device": self.device, "queues": list(self.queues.values())}


def find(monitor: Monitor, *, name: str) -> Rings:
    """Return the rings of the device with QEMU's id `name`, not read yet."""
    for entry in monitor.execute("x-query-virtio"):
        path = str(entry["path"])
        if path.startswith(f"/machine/peripheral/{name}/"):
            return Rings(device=path, iommu=iommu.find(monitor, name=name))
    return Rings(device=f"/machine/peripheral/{name}", iommu=iommu.find(monitor, name=name))


def read(rings: Rings, gate: str, *, monitor: Monitor, memory: GuestMemory) -> None:
    """Add what the rings hold now under the name of `gate`."""
    virtio = rings.device.endswith("/virtio-backend")
    registers = None if virtio else _registers(monitor, rings.device)
    for name in QUEUES:
        if registers is None:
            _virtqueue(rings, gate, name, monitor=monitor, memory=memory)
        else:
            _e1000e(rings, gate, name, registers=registers, monitor=monitor, memory=memory)


def _pieces(address: int, size: int, runs: list[iommu.Run]) -> list[tuple[int, int]]:
    """Return the physical ranges behind a range of device addresses, as far as `runs` say."""
    out = []
    for device, physical, length in runs:
        first, last = max(address, device), min(address + size, device + length)
        if first < last:
            out.append((physical + first - device, physical + last - device))
    return out


# -- virtio ------------------------------------------------------------------------------------


def _virtqueue(
    rings: Rings, gate: str, name: str, *, monitor: Monitor, memory: GuestMemory
) -> None:
    status = monitor.execute(
        "x-query-virtio-queue-status", {"path": rings.device, "queue": QUEUES[name]}
    )
    size = int(status["vring-num"])
    desc, avail, used = (int(status[f"vring-{part}"]) for part in ("desc", "avail", "used"))
    table = rings.read(memory, desc, DESCRIPTOR.size * size, part=(name, "desc"))
    offered = rings.read(memory, avail, 4 + 2 * size, part=(name, "avail"))
    taken = rings.read(memory, used, 4 + USED.size * size, part=(name, "used"))
    (avail_idx,), (used_idx,) = (struct.unpack_from("<H", one, 2) for one in (offered, taken))
    first = rings.at_first.setdefault(name, used_idx)
    filled = min((used_idx - first) % INDEXES, size)
    queue = rings.queues.setdefault(
        name,
        {
            "queue": name,
            "index": QUEUES[name],
            "size": size,
            **rings.starts(name, {"desc": desc, "avail": avail, "used": used}),
            "gates": {},
        },
    )
    given: list[list[Any]] = [
        [at, f"{address:#x}", length, flags, following]
        for at, (address, length, flags, following) in enumerate(DESCRIPTOR.iter_unpack(table))
    ]
    queue["gates"][gate] = {
        "avail_idx": avail_idx,
        "used_idx": used_idx,
        "descriptors": given,
        # The heads of what the device has.  It uses them in the order they were given in, as QEMU's
        # virtio-net does and vhost-net without zero copy.
        "given": [
            struct.unpack_from("<H", offered, 4 + 2 * (at % size))[0]
            for at in range(used_idx, used_idx + (avail_idx - used_idx) % INDEXES)
        ],
        # What the device gave back since the first gate, oldest first.
        "used": [
            list(USED.unpack_from(taken, 4 + USED.size * (at % size)))
            for at in range(used_idx - filled, used_idx)
        ],
        **rings.behind(memory, given),
    }


# -- e1000e ------------------------------------------------------------------------------------


def _e1000e(
    rings: Rings, gate: str, name: str, *, registers: int, monitor: Monitor, memory: GuestMemory
) -> None:
    low, high, length, _, head, _, tail = _words(monitor, registers + REGISTERS[name], 7)
    base = high << 32 | low
    table = rings.read(memory, base, length, part=(name, "desc"))
    given: list[Given]
    written: list[Lengths]
    each = 1  # buffers of a descriptor
    if name == "tx":
        given = [_sent(*entry) for entry in E1000E.iter_unpack(table)]
        status = [entry[2] for entry in E1000E.iter_unpack(table)]
        written = [(one[1],) for one in given]
    else:
        (control,) = _words(monitor, registers + RECEIVE_CONTROL, 1)
        if control & SPLIT:
            status = [entry[1] for entry in SPLIT_RECEIVED.iter_unpack(table)]
            (sizes,) = _words(monitor, registers + SPLIT_CONTROL, 1)
            given, written = _split(table, sizes)
            each = 4
        else:
            status = [entry[1] for entry in RECEIVED.iter_unpack(table)]
            given, written = _whole(table, BUFFER_SIZES[control >> 16 & 3])
    size = len(written)
    first = rings.at_first.setdefault(name, head)
    # The head tells where the device is, not how often it went round: a gate is passed before
    # that, or `done` is too low by whole rounds.
    before, done = rings.heads.get(name, (first, 0))
    done += (head - before) % size
    rings.heads[name] = head, done
    mine = {at % size for at in range(head, head + (tail - head) % size)}
    if name == "rx":
        # The device writes over the address of what it fills, and the driver gives it a new one.
        given = [one if at // each in mine else NO_BUFFER for at, one in enumerate(given)]
    used = [
        [at % size * each + part, length]
        for at in range(first + max(done - size, 0), first + done)
        for part, length in enumerate(written[at % size])
        if name == "tx" or at % size not in mine
    ]
    queue = rings.queues.setdefault(
        name,
        {
            "queue": name,
            "index": QUEUES[name],
            "size": size * each,
            **rings.starts(name, {"desc": base}),
            "gates": {},
        },
    )
    rows: list[list[Any]] = [
        [number, f"{address:#x}", length, flags, 0]
        for number, (address, length, flags) in enumerate(given)
    ]
    queue["gates"][gate] = {
        "avail_idx": (first + done + (tail - head) % size) * each % INDEXES,
        "used_idx": (first + done) * each % INDEXES,
        "at_least": True,
        "descriptors": rows,
        "given": [at for at in range(len(given)) if at // each in mine],
        "used": used,
        # One word for all buffers of a descriptor; the driver gives an empty one with 0 in it.
        "status": [[number * each, word] for number, word in enumerate(status) if word],
        **rings.behind(memory, rows),
    }


Given = tuple[int, int, int]  # address, length, flags; zeros where there is no buffer
NO_BUFFER: Given = (0, 0, 0)
Lengths = tuple[int, ...]  # what the device wrote to each buffer of a descriptor


def _whole(table: bytes, size: int) -> tuple[list[Given], list[Lengths]]:
    entries = list(RECEIVED.iter_unpack(table))
    return [(entry[0], size, DEVICE_WRITES) for entry in entries], [(one[2],) for one in entries]


def _split(table: bytes, sizes: int) -> tuple[list[Given], list[Lengths]]:
    # 82574, 7.1.7: the first size counts in 128 bytes, the others in KiB.
    room = [(sizes & 0x7F) * 128, *((sizes >> shift & 0x3F) << 10 for shift in (8, 16, 24))]
    given = [
        (address, length, DEVICE_WRITES) if length else NO_BUFFER
        for entry in SPLIT_GIVEN.iter_unpack(table)
        for address, length in zip(entry, room, strict=True)
    ]
    return given, [(entry[2], *entry[5:8]) for entry in SPLIT_RECEIVED.iter_unpack(table)]


def _sent(address: int, command: int, _: int) -> Given:
    length = buffer_of(command)
    return NO_BUFFER if length is None else (address, length, 0)


def _registers(monitor: Monitor, path: str) -> int:
    """Return the physical address of a PCI device's first region."""
    name = path.rpartition("/")[2]
    for bus in monitor.execute("query-pci"):
        for device in bus["devices"]:
            if device["qdev_id"] == name:
                return int(device["regions"][0]["address"])
    raise LabError(f"QEMU knows no device '{name}'")


def _words(monitor: Monitor, address: int, count: int) -> list[int]:
    said = monitor.human(f"xp /{count}wx {address:#x}")
    found = re.findall(r"(?<=\s)0x([0-9a-f]{8})\b", said)
    if len(found) != count:
        raise LabError(f"QEMU shows no registers at {address:#x}: {said.strip()[:200]}")
    return [int(word, 16) for word in found]
