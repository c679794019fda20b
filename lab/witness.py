"""What is seen from outside the guests: RAM searched, rings read, the wire captured.

Nothing here asks the guest anything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import access, kernel, pages, process, rings
from lab.btf import Btf
from lab.deadline import Deadline
from lab.errors import EvidenceError
from lab.guest import PAIR, Guest
from lab.memory import GuestMemory
from lab.message import BLOCK_SIZE, Messages
from lab.rings import Rings
from lab.tap import captured

LINK_DEVICE = "lab0"
MOST_HITS = 1 << 16  # three places of each of 10,000 messages, and what they leave behind
MOST_FRAME = 1 << 17  # bytes; a packet that a device was given to cut has 64 KiB and headers


def census(
    memory: GuestMemory, messages: Messages, gate: str, names: PageNames | None = None
) -> dict[str, Any]:
    """Search all of a guest's RAM for the messages; return the maximal runs found.

    With `names` each says what the kernel uses the page for, in which it begins.
    """
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
    named = None if names is None or not hits else names.of(memory)
    if isinstance(named, pages.Pages):
        for hit in hits:
            hit["page"] = named.name(int(hit["physical"], 16))
    return {
        "gate": gate,
        "hits": hits,
        **({"pages": f"absent: {named}"} if isinstance(named, str) else {}),
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


def read_rings(guest: Guest, held: Rings | None, gate: str) -> Rings:
    """Add to `held` (None: nothing yet) what the link device's rings hold now."""
    monitor = guest.require_monitor()
    found = rings.find(monitor, name=LINK_DEVICE) if held is None else held
    before = _passed(guest)
    with guest.memory() as memory:
        rings.read(found, gate, monitor=monitor, memory=memory)
    for queue in found.queues.values():
        # Twice the same: no frame passed while the rings were read.
        queue["gates"][gate]["frames"] = [before, _passed(guest)]
    return found


def _passed(guest: Guest) -> int:
    """Return how many frames have passed the guest's backend since its capture began."""
    path = Capture(guest).path
    return captured.count(process.read_given(path)) if path.is_file() else 0


class PageNames:
    """Names the pages of one guest; its symbols and types are read once."""

    def __init__(self, kallsyms: Path) -> None:
        self._symbols = kernel.addresses(kallsyms.read_bytes(), pages.NEEDED)
        self._near: int | None = None
        self._types: Btf | None = None

    def of(self, memory: GuestMemory) -> pages.Pages | str:
        """Return what names the pages as they are now, or why nothing can."""
        try:
            found = kernel.find(memory, near=self._near)
            self._near = found.at
            named = pages.Pages(found, self._symbols, self._types)
        except (EvidenceError, KeyError, ValueError) as error:
            return str(error)
        self._types = named.types
        return named


class AccessLog:
    """What the CPUs of one guest load and store, logged by the plugin while it is armed.

    Where it is not `wanted` it is never armed, as where the guest has none.
    """

    def __init__(self, guest: Guest, *, wanted: bool = True) -> None:
        self.guest = guest
        there = wanted and guest.access_log.exists()
        self.control = access.Control(guest.access_log) if there else None

    def arm(self, *, deadline: Deadline) -> None:
        """Begin to log, now."""
        if self.control is not None:
            self.control.arm(deadline=deadline, check=self.guest.check, poke=self._poke(deadline))

    def disarm(self, *, deadline: Deadline) -> None:
        """End to log; what was logged is whole afterwards."""
        if self.control is not None:
            self.control.disarm(
                deadline=deadline, check=self.guest.check, poke=self._poke(deadline)
            )

    def _poke(self, deadline: Deadline) -> Callable[[], object]:
        # The plugin looks at its orders when a vCPU idles or resumes: make it.  On a busy host
        # that takes as long as it takes; a dead guest is told by the agent, who checks for it.
        return lambda: self.guest.require_agent().ping(deadline=deadline)

    def keep(
        self, messages: Messages, *, held: Rings | None, buffers: list[tuple[int, int]]
    ) -> bytes | None:
        """Return of the log what concerns the messages, for the run; None without a log."""
        if self.control is None:
            return None
        posted = [] if held is None else held.posted()
        kept = access.keep(
            self.control.raw(),
            [messages.bytes(index) for index in range(messages.count)],
            needle=messages.needle(),
            ranges=[] if held is None else held.pages(),
            sources=[*buffers, *posted],
            tables=[] if held is None else held.tables(),
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
                "maxlen": MOST_FRAME,
            },
        )

    def stop(self) -> None:
        """End the capture; the file is complete afterwards."""
        self.guest.require_monitor().execute("object-del", {"id": "wire"})

    def keep(self, target: Path) -> None:
        """Move the capture to where the run keeps it, as Ethernet frames whatever the backend."""
        macs = [bytes.fromhex(me.link_mac.replace(":", "")) for me in PAIR]
        with contextlib.suppress(FileNotFoundError):
            target.write_bytes(captured.bare(process.read_given(self.path), macs))
            self.path.unlink()
