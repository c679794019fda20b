"""What is seen from outside the guests: RAM searched, rings read, the wire captured.

Nothing here asks the guest anything.
"""

from __future__ import annotations

import contextlib
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import access, process
from lab.deadline import Deadline
from lab.errors import GuestError
from lab.guest import Guest
from lab.memory import GuestMemory
from lab.message import BLOCK_SIZE, Messages

DESCRIPTOR = struct.Struct("<QIHH")  # virtio 1.2, 2.7.5: addr, len, flags, next
DEVICE_WRITES = 2  # virtio 1.2, 2.7.5: VIRTQ_DESC_F_WRITE
USED = struct.Struct("<II")  # virtio 1.2, 2.7.8: id, len
QUEUES = {"rx": 0, "tx": 1}  # virtio 1.2, 5.1.2: receiveq1, transmitq1
MOST_HITS = 4096


def census(memory: GuestMemory, messages: Messages, gate: str) -> dict[str, Any]:
    """Search all of a guest's RAM for the messages; return the maximal runs found."""
    start = time.monotonic()
    needle = messages.needle()
    # Less than a block is no copy: a program's register that held the start of one, or
    # the needle by chance.
    least = min(messages.size, BLOCK_SIZE)
    hits: list[dict[str, Any]] = []
    fragments = 0
    scanned = sum(end - begin for begin, end in memory.extents())
    more = 0
    if needle is not None:
        seen_to = -1
        for at in memory.find(needle):
            if at < seen_to:
                continue
            found = _run_around(memory, messages, at)
            if found is None:
                continue
            if found[3] < least:
                fragments += 1
                continue
            address, index, offset, size = found
            seen_to = address + size
            if len(hits) >= MOST_HITS:
                more += 1
                continue
            hits.append(
                {"physical": f"{address:#x}", "message": index, "offset": offset, "size": size}
            )
    return {
        "gate": gate,
        "hits": hits,
        "hits_not_listed": more,
        "fragments": fragments,
        "scanned_bytes": scanned,
        "seconds": round(time.monotonic() - start, 4),
    }


def _run_around(
    memory: GuestMemory, messages: Messages, at: int
) -> tuple[int, int, int, int] | None:
    """Return (physical, message, offset, size) of the message bytes around `at`."""
    margin = messages.size
    start = max(0, at - margin)
    window = memory.read(start, min(memory.size, at + margin) - start)
    found = messages.locate(window, at - start)
    if found is None:
        return None
    return start + found.start, found.index, found.offset, found.size


@dataclass(slots=True)
class Rings:
    """Reads the virtqueues of one guest's link device at gates."""

    guest: Guest
    path: str = ""
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    _armed: dict[str, int] = field(default_factory=dict)

    def read(self, gate: str) -> None:
        """Add what the rings hold now, from guest RAM, under the name of `gate`."""
        if not self.path:
            self.path = _find_device(self.guest)
        with self.guest.memory() as memory:
            for name, number in QUEUES.items():
                self._queue(memory, gate, name, number)

    def _queue(self, memory: GuestMemory, gate: str, name: str, number: int) -> None:
        status = self.guest.require_monitor().execute(
            "x-query-virtio-queue-status", {"path": self.path, "queue": number}
        )
        size = int(status["vring-num"])
        desc, avail, used = (int(status[f"vring-{part}"]) for part in ("desc", "avail", "used"))
        table = memory.read(desc, DESCRIPTOR.size * size)
        avail_idx = struct.unpack("<H", memory.read(avail + 2, 2))[0]
        used_idx = struct.unpack("<H", memory.read(used + 2, 2))[0]
        first = self._armed.setdefault(name, used_idx)
        filled = min((used_idx - first) & 0xFFFF, size)
        queue = self.queues.setdefault(
            name,
            {
                "queue": name,
                "index": number,
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
                for at, (address, length, flags, following) in enumerate(
                    DESCRIPTOR.iter_unpack(table)
                )
            ],
            # What the device gave back since the first gate, oldest first.
            "used": [
                list(USED.unpack(memory.read(used + 4 + USED.size * (at % size), USED.size)))
                for at in range(used_idx - filled, used_idx)
            ],
        }

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
        found = []
        for queue in self.queues.values():
            size = int(queue["size"])
            sizes = {"desc": DESCRIPTOR.size * size, "avail": 4 + 2 * size, "used": 4 + 8 * size}
            for part, length in sizes.items():
                start = int(queue[part], 16)
                found.append((start, start + length))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the content of rings.json."""
        return {"device": self.path, "queues": list(self.queues.values())}


def _find_device(guest: Guest) -> str:
    for entry in guest.require_monitor().execute("x-query-virtio"):
        path = str(entry["path"])
        if path.startswith("/machine/peripheral/lab0/"):
            return path
    raise GuestError(guest.name, "QEMU knows no virtio device 'lab0'")


class AccessLog:
    """What the CPUs of one guest load and store, logged by the plugin while it is armed."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        there = guest.access_log.exists()
        self.control = access.Control(guest.access_log) if there else None

    def arm(self, *, deadline: Deadline) -> None:
        """Begin to log, now."""
        if self.control is not None:
            self.control.arm(deadline=deadline, check=self.guest.check, poke=self._poke)

    def disarm(self, *, deadline: Deadline) -> None:
        """End to log; what was logged is whole afterwards."""
        if self.control is not None:
            self.control.disarm(deadline=deadline, check=self.guest.check, poke=self._poke)

    def _poke(self) -> None:
        # The plugin looks at its orders when a vCPU idles or resumes: make it.
        self.guest.require_agent().ping(deadline=Deadline(5.0))

    def keep(
        self, messages: Messages, *, rings: Rings | None, buffers: list[tuple[int, int]]
    ) -> bytes | None:
        """Return of the log what concerns the messages, for the run; None without a log."""
        if self.control is None:
            return None
        posted = [] if rings is None else rings.posted()
        kept = access.keep(
            self.control.raw(),
            [messages.bytes(index) for index in range(messages.count)],
            needle=messages.needle(),
            ranges=[] if rings is None else rings.pages(),
            sources=[*buffers, *posted],
        )
        self.control.release()
        return kept

    def close(self) -> None:
        """Let go of the log; the plugin sleeps on."""
        if self.control is not None:
            self.control.close()


class Capture:
    """The wire as a guest's backend sees it, written by QEMU while a run lasts."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.path = guest.folder.own / "wire.pcap"

    def start(self) -> None:
        """Begin a new capture."""
        self.path.unlink(missing_ok=True)
        self.guest.require_monitor().execute(
            "object-add",
            {
                "qom-type": "filter-dump",
                "id": "wire",
                "netdev": "link",
                "file": str(self.path),
                "maxlen": 65536,
            },
        )

    def stop(self) -> None:
        """End the capture; the file is complete afterwards."""
        self.guest.require_monitor().execute("object-del", {"id": "wire"})

    def keep(self, target: Path) -> None:
        """Move the capture to where the run keeps it."""
        with contextlib.suppress(FileNotFoundError):
            target.write_bytes(process.read_given(self.path))
            self.path.unlink()
