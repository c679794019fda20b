"""The debugger's port against a QEMU that is a thread: packets, refusals, a line that dies."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lab import debugger
from lab.deadline import Deadline
from lab.debugger import Debugger, frame, unframe
from lab.errors import DeadlineExceeded, GuestLost, HostError
from lab.guest import Guest

Answer = Callable[[bytes], list[bytes] | None]  # packets to send; None: hang up


class FakeQemu:
    """Listens where a guest's port would be and answers as told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gdb"
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(self.path))
        self.server.listen(1)
        self.heard: list[bytes] = []
        self.answers: dict[bytes, list[bytes] | None] = {
            b"qSupported": [b"T05thread:01;", b"PacketSize=1000"]
        }
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        line, _ = self.server.accept()
        with line:
            line.sendall(frame(b"T02thread:01;"))  # QEMU says so unasked
            data = b""
            while more := line.recv(4096):
                data += more
                while True:
                    body, data = unframe(data)
                    if body is None:
                        break
                    self.heard.append(body)
                    said = self.answers.get(body, [b"OK"])
                    if said is None:
                        return
                    line.sendall(b"+" + b"".join(frame(one) for one in said))


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(tmp_path)
    yield fake
    fake.server.close()


def guest_at(folder: Path) -> Guest:
    monitor = SimpleNamespace(execute=lambda _: [{"filename": f"unix:{folder}/gdb"}])
    return cast(
        "Guest",
        SimpleNamespace(
            name="sender",
            folder=SimpleNamespace(own=folder),
            require_monitor=lambda: monitor,
            check=lambda: None,
        ),
    )


def test_frame_and_unframe() -> None:
    assert frame(b"g") == b"$g#67"
    assert unframe(b"+$OK#9a$T05#b9") == (b"OK", b"$T05#b9")
    assert unframe(b"$OK#9") == (None, b"$OK#9")


def test_registers_memory_and_breakpoints(qemu: FakeQemu, tmp_path: Path) -> None:
    general = list(range(16))
    raw = struct.pack("<17Q", *general, 0xFFFF_8000) + bytes(28) + struct.pack("<2Q", 1, 0xABC)
    qemu.answers[b"g"] = [raw.hex().encode()]
    qemu.answers[b"m1000,4"] = [b"01020304"]
    qemu.answers[b"m2000,4"] = [b"E14"]
    with Debugger(guest_at(tmp_path)) as port:
        at = port.registers()
        assert (at["rdi"], at["r15"], at.rsp, at.rip, at.gs_base) == (5, 15, 7, 0xFFFF_8000, 0xABC)
        assert port.read(0x1000, 4) == bytes([1, 2, 3, 4])
        assert port.read(0x2000, 4) is None
        port.set(0x5000)
        port.set(0x5000)
        assert port.is_set(0x5000)
    assert qemu.heard.count(b"Z0,5000,1") == 1
    assert qemu.heard[-2:] == [b"z0,5000,1", b"D"]  # it goes on as it was


def test_a_refused_breakpoint_is_told(qemu: FakeQemu, tmp_path: Path) -> None:
    qemu.answers[b"Z0,5000,1"] = [b"E22"]
    with Debugger(guest_at(tmp_path)) as port, pytest.raises(HostError, match="refuses"):
        port.set(0x5000)


def test_a_guest_that_does_not_stop(qemu: FakeQemu, tmp_path: Path) -> None:
    qemu.answers[b"c"] = []
    with Debugger(guest_at(tmp_path)) as port:
        port.resume()
        with pytest.raises(DeadlineExceeded):
            port.stopped(Deadline(0.05))


def test_a_line_that_dies_is_a_lost_guest(qemu: FakeQemu, tmp_path: Path) -> None:
    qemu.answers[b"g"] = None
    with Debugger(guest_at(tmp_path)) as port, pytest.raises(GuestLost):
        port.registers()


def test_no_port_is_a_lost_guest(tmp_path: Path) -> None:
    with pytest.raises(GuestLost), Debugger(guest_at(tmp_path)):
        pass


def test_qemu_that_cannot_open_its_port(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    monitor = SimpleNamespace(execute=lambda _: [], human=lambda _: "Could not open gdbserver")
    guest.require_monitor = lambda: monitor  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(HostError, match="not open"):
        debugger.open_port(guest)
