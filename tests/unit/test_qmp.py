"""The monitor: refusals, deaths, panics and silence, against a QMP server of our own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, GuestError, GuestLost
from lab.qmp import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}
Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


class FakeQemu:
    """Speaks QMP on a socket; an answer of None hangs up, {} stays silent."""

    def __init__(self, path: Path, answer: Answer, *, status: str = "running") -> None:
        self.answer = answer
        # What every client asks first.
        self.greeted: dict[str, dict[str, Any]] = {
            "qmp_capabilities": {"return": {}},
            "query-status": {"return": {"status": status, "running": status == "running"}},
        }
        self.line: socket.socket | None = None
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        try:
            self.line, _ = self.server.accept()
            self.say(GREETING)
            rest = ""
            while piece := self.line.recv(65536).decode():
                rest += piece
                # Commands come one after the other, with no line ends between them.
                while rest.strip():
                    command, end = json.JSONDecoder().raw_decode(rest)
                    rest = rest[end:].lstrip()
                    said = self.greeted.pop(command["execute"], None) or self.answer(command)
                    if said is None:
                        self.line.shutdown(socket.SHUT_RDWR)
                        return
                    if said:
                        mark = {"id": command["id"]} if "id" in command else {}
                        self.say({**said, **mark})
        except OSError:
            return

    def say(self, value: dict[str, Any]) -> None:
        assert self.line is not None
        self.line.sendall(json.dumps(value).encode() + b"\r\n")

    def close(self) -> None:
        self.server.close()
        if self.line is not None:
            self.line.close()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[Answer], tuple[Monitor, FakeQemu]]]:
    made: list[tuple[Monitor, FakeQemu]] = []

    def make(answer: Answer) -> tuple[Monitor, FakeQemu]:
        fake = FakeQemu(tmp_path / "qmp", answer)
        monitor = Monitor("sender", tmp_path / "qmp")
        made.append((monitor, fake))
        monitor.connect(deadline=Deadline(5), alive=lambda: True)
        return monitor, fake

    yield make
    for monitor, fake in made:
        monitor.close()
        fake.close()


def test_a_command_is_answered(connect: Callable[[Answer], tuple[Monitor, FakeQemu]]) -> None:
    monitor, _ = connect(lambda _: {"return": {"status": "running"}})
    assert {"status": "running"} == monitor.execute("query-status")
    assert monitor.fate is None


def test_a_refusal_is_an_error(connect: Callable[[Answer], tuple[Monitor, FakeQemu]]) -> None:
    monitor, _ = connect(lambda _: {"error": {"class": "GenericError", "desc": "not now"}})
    with pytest.raises(GuestError, match="not now"):
        monitor.execute("stop")


def test_silence_ends_at_the_deadline(
    connect: Callable[[Answer], tuple[Monitor, FakeQemu]],
) -> None:
    monitor, _ = connect(lambda _: {})
    with pytest.raises(DeadlineExceeded):
        monitor.execute("query-status", deadline=Deadline(0.2))


def test_a_death_in_mid_command_is_a_lost_guest(
    connect: Callable[[Answer], tuple[Monitor, FakeQemu]],
) -> None:
    monitor, _ = connect(lambda _: None)
    with pytest.raises(GuestLost):
        monitor.execute("query-status")
    assert "lost" == monitor.fate


def test_a_panic_is_known_without_asking(
    connect: Callable[[Answer], tuple[Monitor, FakeQemu]],
) -> None:
    monitor, fake = connect(lambda _: {"return": {}})
    monitor.execute("query-status")
    event = {"event": "GUEST_PANICKED", "data": {"action": "pause"}}
    fake.say({**event, "timestamp": {"seconds": 1, "microseconds": 1}})
    fate = wait_until(lambda: monitor.fate, what="the event", deadline=Deadline(5))
    assert "panicked" == fate


def test_a_hang_up_between_commands_is_known(
    connect: Callable[[Answer], tuple[Monitor, FakeQemu]],
) -> None:
    monitor, fake = connect(lambda _: {"return": {}})
    monitor.execute("query-status")
    assert fake.line is not None
    fake.line.shutdown(socket.SHUT_RDWR)
    fate = wait_until(lambda: monitor.fate, what="the hang-up", deadline=Deadline(5))
    assert "lost" == fate


@pytest.mark.parametrize(
    ("status", "fate"),
    [("running", None), ("guest-panicked", "panicked"), ("shutdown", "shut down")],
)
def test_what_happened_before_we_came_is_known(
    tmp_path: Path, status: str, fate: str | None
) -> None:
    fake = FakeQemu(tmp_path / "qmp", lambda _: {"return": {}}, status=status)
    monitor = Monitor("sender", tmp_path / "qmp")
    try:
        monitor.connect(deadline=Deadline(5), alive=lambda: True)
        assert fate == monitor.fate
    finally:
        monitor.close()
        fake.close()


def test_a_qemu_that_never_listens_is_lost_at_once(tmp_path: Path) -> None:
    monitor = Monitor("sender", tmp_path / "qmp")
    try:
        with pytest.raises(GuestLost):
            monitor.connect(deadline=Deadline(5), alive=lambda: False)
    finally:
        monitor.close()
