"""Every reader of what others wrote, each with bytes it likes; for tests and for a fuzzer.

`readers(folder)` gives them by name.  A reader may take what it is fed or refuse it with an
error of ours; anything else is a bug.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import access, capture, kernel, ledger, playbook, postmortem, record, report, rings
from lab.agent import Agent
from lab.deadline import Deadline
from lab.errors import LabError
from lab.iommu import Iommu
from lab.memory import GuestMemory
from lab.report import listing, log
from lab.rundir import RunDir, reading
from tests.unit import cooked

Reader = Callable[[bytes], object]
PANIC = b"""\
<4>[    5.1] BUG: kernel NULL pointer dereference, address: 0000000000000010
<4>[    5.1] #PF: supervisor write access in kernel mode
<4>[    5.1] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
<4>[    5.1] CPU: 0 UID: 0 PID: 135 Comm: insmod Tainted: G           OE
<4>[    5.1] RIP: 0010:null_write_init+0x101/0xff0 [null_write]
<4>[    5.1] Call Trace:
<4>[    5.1]  do_one_initcall+0x5b/0x320
<4>[    5.1] ---[ end trace 0000000000000000 ]---
<0>[    5.2] Kernel panic - not syncing: Fatal exception
"""
SEEN = b"""\
{"phases": [{"name": "load", "exit": null, "said": "", "where": "", "seconds": 0.1}],
 "end": "panicked", "events": [{"event": "GUEST_PANICKED"}], "flood": false,
 "frozen": {"how": "burns CPU", "cpu_s": 1.0, "seconds": 1.1, "nmi": "panicked"},
 "tainted": {"before": 0, "now": 640, "soft_lockup": {"share": 0.1, "believed": false}},
 "held": {"loads": 3, "pages": [1, 4, 7],
          "caches": {"kmalloc-64": {"size": 64, "objects": [1, 4, 7]}}},
 "log": {"first": 0, "records": 9, "lost": 0, "trouble": null}, "console_bytes": 1,
 "lockups": [{"text": "soft lockup", "believed": false, "share": 0.1}], "deadline": false,
 "changed": {"text": {"listed": [{"at": "0x1", "old": "00", "new": "01"}]}}, "seconds": 1.0}
"""
INFO = b"""\
OSRELEASE=6.12.1
PAGESIZE=4096
SYMBOL(prb)=ffffffff82a00000
SYMBOL(_stext)=ffffffff81000000
SYMBOL(swapper_pg_dir)=ffffffff82000000
NUMBER(phys_base)=0
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
OFFSET(printk_ringbuffer.desc_ring)=0
"""
SPOKEN = b"hello 1 6.12\npong 1 17\nout x a%20b\nexit x 0\nheartbeat 1 5\nok start x 3\nfile a 00\n"


@dataclass(frozen=True, slots=True)
class Eater:
    """A reader and something it reads without complaint."""

    # A file of a megabyte is too long for what hypothesis says of an example that fails.
    likes: bytes = field(repr=False)
    read: Reader

    def eat(self, data: bytes) -> bool:
        """Feed it; say whether it took it.  Only errors of ours come out as a no."""
        try:
            self.read(data)
        except LabError:
            return False
        return True


def readers(folder: Path) -> dict[str, Eater]:
    """Return all readers; they write below `folder`."""
    found = {**_of_run(folder / "run"), **_of_crash(folder / "crash")}
    found["playbook"] = Eater(
        playbook.load("nic").source, lambda data: playbook.problems(data, "x.yaml")
    )
    found["agent"] = Eater(SPOKEN, _agent)
    ram = folder / "ram"
    found["ram"] = Eater(INFO.ljust(8192, b"\0"), lambda data: _ram(ram, data))
    found["ring"] = Eater(_ring(), lambda data: _drain(ram, data))
    found["descriptors"] = Eater(_descriptors(), lambda data: _queues(ram, data, None))
    found["descriptors-iommu"] = Eater(
        _descriptors(), lambda data: _queues(ram, data, Iommu(root=ROOT, bus=0, function=8))
    )
    return {**found, **_of_results(folder / "results")}


def _of_run(folder: Path) -> dict[str, Eater]:
    """Return one eater for each file of a run; what reads it is the whole way to the report."""
    folder.mkdir(parents=True)
    run = cooked.nic(folder).serve()
    files = sorted(path for path in run.path.rglob("*") if path.is_file())

    def eater(path: Path) -> Eater:
        likes = path.read_bytes()

        def read(data: bytes) -> object:
            path.write_bytes(data)
            try:
                direct = {"trace.bin": record.read, "access.bin": access.read}.get(path.name)
                if direct is not None:
                    direct(path, guest=path.parent.name)
                if path.suffix == ".pcap":
                    for frame in capture.read(path):
                        capture.describe(frame)
                return report.render(ledger.build(run), run)
            finally:
                path.write_bytes(likes)

        return Eater(likes, read)

    return {str(path.relative_to(run.path)): eater(path) for path in files}


def _of_results(folder: Path) -> dict[str, Eater]:
    """Return one eater for each file of results, which lists and claims read again."""
    run = cooked.nic(folder / "20260101T000000Z-nic-01234567").serve()
    run.write_text("ledger.json", ledger.build(run).to_json())
    crash = RunDir(folder / "20260101T000001Z-try-x-01234567")
    crash.path.mkdir()
    crash.write_text("manifest.json", '{"playbook": "try-x", "kind": "try"}')
    found = '{"fingerprint": "0123456789ab", "verdict": "oops", "at": "x.c:1", "module": "x"}'
    crash.write_text("postmortem.json", found)

    def eater(path: Path) -> Eater:
        likes = path.read_bytes()

        def read(data: bytes) -> object:
            path.write_bytes(data)
            try:
                rows = [row for one in (run, crash) if (row := listing.row(one.path)) is not None]
                return listing.render(rows), postmortem.group(folder), log.cited(run)
            finally:
                path.write_bytes(likes)

        return Eater(likes, read)

    files = (run.file("ledger.json"), crash.file("postmortem.json"), crash.file("manifest.json"))
    return {f"results/{path.name}": eater(path) for path in files}


def _of_crash(folder: Path) -> dict[str, Eater]:
    files = {
        "manifest.json": b'{"module": "x.c", "kernel": "6.12", "guests": ["receiver"]}',
        "receiver/observations.json": SEEN,
        "receiver/kernel.log": PANIC,
        "receiver/console.log": PANIC,
        "build.log": b"x.c:1:2: error: no\n",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    def eater(name: str) -> Eater:
        def read(data: bytes) -> object:
            (folder / name).write_bytes(data)
            try:
                found = postmortem.analyse(RunDir(folder))
                return found.as_json(), postmortem.render(found)
            finally:
                (folder / name).write_bytes(files[name])

        return Eater(files[name], read)

    return {f"crash/{name}": eater(name) for name in files}


def _ram(path: Path, data: bytes) -> None:
    path.write_bytes(data + bytes(-len(data) % 4096 or 4096))
    with GuestMemory(path) as memory:
        found = kernel.find(memory)
        found.physical(found.text_at)
        with contextlib.suppress(ValueError):  # so the watcher takes a log that was written over
            found.log().new(last=True)


# A ring at the beginning of RAM, its two chunks behind it; and the queues of a link device.
CHUNK = record.CHUNK_SIZE
ROOT, CONTEXT, TABLES = 0x1000, 0x2000, (0x3000, 0x4000, 0x5000)
QUEUE_SIZE, PARTS = 16, {"vring-desc": 0x6000, "vring-avail": 0x6800, "vring-used": 0x7000}


def _ring() -> bytes:
    events = [{"hook": "__dev_queue_xmit", "skb": 0x1000, "bytes": b"x"}] * 3
    raw = bytearray(record.encode_section(events, capacity=2 * record.EVENTS_PER_CHUNK))
    head, body = raw[: record.HEADER_SIZE], bytes(raw[record.HEADER_SIZE :])
    places = record.HEADER_SIZE, record.HEADER_SIZE + CHUNK
    struct.pack_into("<2Q", head, record.CHUNKS_AT, *places)
    return bytes(head) + body


def _drain(ram: Path, data: bytes) -> None:
    """Read a ring as it lies in guest RAM, and then the trace that it makes."""
    ram.write_bytes(data)
    os.truncate(ram, record.HEADER_SIZE + 2 * CHUNK)
    with GuestMemory(ram) as memory:
        section = record.dump(memory.read(0, record.HEADER_SIZE), memory.read)
    trace = ram.with_name("trace.bin")
    trace.write_bytes(section)
    list(record.read(trace, guest="sender").records)


def _descriptors() -> bytes:
    raw = bytearray(0x8000)

    def put(at: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", raw, at, *words)

    put(ROOT, CONTEXT | 1, 0)
    put(CONTEXT + 16 * 8, TABLES[0] | 1, 1)
    put(TABLES[0], TABLES[1] | 3)
    put(TABLES[1], TABLES[2] | 3)
    for page in range(8):
        put(TABLES[2] + 8 * page, page << 12 | 3)
    for number in range(QUEUE_SIZE):
        struct.pack_into("<QIHH", raw, PARTS["vring-desc"] + 16 * number, 0x1000, 60, 2, 0)
    struct.pack_into("<HHHH", raw, PARTS["vring-avail"], 0, 3, 0, 1)
    struct.pack_into("<HHIIII", raw, PARTS["vring-used"], 0, 1, 0, 60, 1, 60)
    return bytes(raw)


class _Device:
    """QEMU's monitor, as far as a queue is asked for."""

    def execute(self, command: str, *_: object) -> object:
        assert command == "x-query-virtio-queue-status"
        return {"vring-num": QUEUE_SIZE, **PARTS}


def _queues(ram: Path, data: bytes, behind: Iommu | None) -> object:
    ram.write_bytes(data.ljust(0x8000, b"\0"))
    monitor: Any = _Device()
    found = rings.Rings(device="/machine/peripheral/lab0/virtio-backend", iommu=behind)
    with GuestMemory(ram) as memory:
        for gate in ("armed", "sent"):
            rings.read(found, gate, monitor=monitor, memory=memory)
    path = ram.with_name("rings.json")
    path.write_text(json.dumps(found.to_json()), encoding="utf-8")
    reading.read_rings(json.loads(path.read_text(encoding="utf-8")), path)
    return found.posted()


def _agent(data: bytes) -> None:
    """Let a guest say this on the agent's line; its end must be heard whatever it said."""
    ours, theirs = socket.socketpair()
    agent = Agent("receiver", Path("none"), check=lambda: None)
    agent._socket.close()
    agent._socket, agent._open = ours, True
    reading = threading.Thread(target=agent._read, daemon=True)
    try:
        reading.start()
        theirs.sendall(data)
        theirs.close()
        reading.join(5)
        assert not reading.is_alive()
        assert not agent._open, "the reader died before the line's end"
        agent.ping(deadline=Deadline(0.001))
    finally:
        theirs.close()
        agent.close()
