"""The descriptor rings of a guest's link device, read from outside, asking nobody in the guest.

Where they lie the device knows: QEMU says it of a virtio device, and of e1000e its registers do.
What they hold is in the guest's RAM.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

from lab.errors import LabError
from lab.memory import GuestMemory
from lab.qmp import Monitor

INDEXES = 1 << 16  # the indexes of a virtqueue wrap here; those of e1000e are counted on to it
DESCRIPTOR = struct.Struct("<QIHH")  # virtio 1.2, 2.7.5: addr, len, flags, next
DEVICE_WRITES = 2  # virtio 1.2, 2.7.5: VIRTQ_DESC_F_WRITE
USED = struct.Struct("<II")  # virtio 1.2, 2.7.8: id, len
QUEUES = {"rx": 0, "tx": 1}  # virtio 1.2, 5.1.2: receiveq1, transmitq1

# Intel 82574 GbE Controller datasheet: registers (10.2) and descriptors (7.1.6, 7.2.10).
BUFFER_SIZES = (2048, 1024, 512, 256)  # RCTL.BSIZE with BSEX off
RECEIVE_CONTROL = 0x100
REGISTERS = {"rx": 0x2800, "tx": 0x3800}  # base low, base high, length, -, head, -, tail
RECEIVED = struct.Struct("<QIHH")  # written back: -, status and error, length, VLAN
GIVEN = struct.Struct("<QII")  # buffer, length and command, status
DONE = 1  # the device has written the descriptor back
EXTENDED = 1 << 29
TYPE = 0xF << 20  # of an extended descriptor; 0: it sets a context and has no buffer
LENGTHS = {True: 0xFFFFF, False: 0xFFFF}  # by whether it is extended


@dataclass(slots=True)
class Rings:
    """What the rings of one guest's link device held at each gate."""

    device: str  # where QEMU has it
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    at_first: dict[str, int] = field(default_factory=dict)  # the used index, by queue

    def posted(self) -> list[tuple[int, int]]:
        """Return the physical ranges that were the device's to fill at the first gate."""
        gates = self.queues["rx"]["gates"] if "rx" in self.queues else {}
        first: dict[str, Any] = next(iter(gates.values()), {"descriptors": []})
        return [
            (int(address, 16), int(address, 16) + length)
            for _, address, length, flags, _ in first["descriptors"]
            if flags & DEVICE_WRITES and length
        ]

    def pages(self) -> list[tuple[int, int]]:
        """Return the physical ranges of the rings themselves."""
        return [
            (int(queue[part], 16), int(queue[part], 16) + size)
            for queue in self.queues.values()
            for part, size in _parts(queue).items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of rings.json."""
        return {"device": self.device, "queues": list(self.queues.values())}


def find(monitor: Monitor, *, name: str) -> Rings:
    """Return the rings of the device with QEMU's id `name`, not read yet."""
    for entry in monitor.execute("x-query-virtio"):
        path = str(entry["path"])
        if path.startswith(f"/machine/peripheral/{name}/"):
            return Rings(device=path)
    return Rings(device=f"/machine/peripheral/{name}")


def read(rings: Rings, gate: str, *, monitor: Monitor, memory: GuestMemory) -> None:
    """Add what the rings hold now under the name of `gate`."""
    virtio = rings.device.endswith("/virtio-backend")
    registers = None if virtio else _registers(monitor, rings.device)
    for name in QUEUES:
        if registers is None:
            _virtqueue(rings, gate, name, monitor=monitor, memory=memory)
        else:
            _e1000e(rings, gate, name, registers=registers, monitor=monitor, memory=memory)


def _parts(queue: dict[str, Any]) -> dict[str, int]:
    size = int(queue["size"])
    sizes = {"desc": DESCRIPTOR.size * size, "avail": 4 + 2 * size, "used": 4 + 8 * size}
    return {part: length for part, length in sizes.items() if part in queue}


# -- virtio ------------------------------------------------------------------------------------


def _virtqueue(
    rings: Rings, gate: str, name: str, *, monitor: Monitor, memory: GuestMemory
) -> None:
    status = monitor.execute(
        "x-query-virtio-queue-status", {"path": rings.device, "queue": QUEUES[name]}
    )
    size = int(status["vring-num"])
    desc, avail, used = (int(status[f"vring-{part}"]) for part in ("desc", "avail", "used"))
    table = memory.read(desc, DESCRIPTOR.size * size)
    avail_idx = struct.unpack("<H", memory.read(avail + 2, 2))[0]
    used_idx = struct.unpack("<H", memory.read(used + 2, 2))[0]
    first = rings.at_first.setdefault(name, used_idx)
    filled = min((used_idx - first) % INDEXES, size)
    queue = rings.queues.setdefault(
        name,
        {
            "queue": name,
            "index": QUEUES[name],
            "size": size,
            "desc": f"{desc:#x}",
            "avail": f"{avail:#x}",
            "used": f"{used:#x}",
            "gates": {},
        },
    )
    queue["gates"][gate] = {
        "avail_idx": avail_idx,
        "used_idx": used_idx,
        "descriptors": [
            [at, f"{address:#x}", length, flags, following]
            for at, (address, length, flags, following) in enumerate(DESCRIPTOR.iter_unpack(table))
        ],
        # What the device gave back since the first gate, oldest first.
        "used": [
            list(USED.unpack(memory.read(used + 4 + USED.size * (at % size), USED.size)))
            for at in range(used_idx - filled, used_idx)
        ],
    }


# -- e1000e ------------------------------------------------------------------------------------


def _e1000e(
    rings: Rings, gate: str, name: str, *, registers: int, monitor: Monitor, memory: GuestMemory
) -> None:
    low, high, length, _, head, _, tail = _words(monitor, registers + REGISTERS[name], 7)
    size = length // DESCRIPTOR.size
    base = high << 32 | low
    table = memory.read(base, length)
    first = rings.at_first.setdefault(name, head)
    done = (head - first) % size
    if name == "rx":
        (control,) = _words(monitor, registers + RECEIVE_CONTROL, 1)
        given = _receiving(table, BUFFER_SIZES[control >> 16 & 3])
        written = {at: entry[2] for at, entry in enumerate(RECEIVED.iter_unpack(table))}
        used = [[at % size, written[at % size]] for at in range(first, first + done)]
        # Given to a new buffer since: what the device wrote there is gone.
        used = [entry for entry in used if not given[entry[0]][2]]
    else:
        given = _sending(table)
        used = [[at % size, given[at % size][2]] for at in range(first, first + done)]
    queue = rings.queues.setdefault(
        name,
        {
            "queue": name,
            "index": QUEUES[name],
            "size": size,
            "desc": f"{base:#x}",
            "gates": {},
        },
    )
    queue["gates"][gate] = {
        "avail_idx": (first + done + (tail - head) % size) % INDEXES,
        "used_idx": (first + done) % INDEXES,
        "descriptors": given,
        "used": used,
    }


def _receiving(table: bytes, size: int) -> list[list[Any]]:
    out: list[list[Any]] = []
    for at, (address, status, _, _) in enumerate(RECEIVED.iter_unpack(table)):
        # The device writes over the address.
        mine = bool(address) and not status & DONE
        out.append([at, f"{address:#x}", size, DEVICE_WRITES, 0] if mine else [at, "0x0", 0, 0, 0])
    return out


def _sending(table: bytes) -> list[list[Any]]:
    out: list[list[Any]] = []
    for at, (address, command, _) in enumerate(GIVEN.iter_unpack(table)):
        extended = bool(command & EXTENDED)
        buffer = not extended or bool(command & TYPE)
        out.append(
            [at, f"{address:#x}", command & LENGTHS[extended], 0, 0]
            if buffer
            else [at, "0x0", 0, 0, 0]
        )
    return out


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
