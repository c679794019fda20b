"""Loading modules: what they are told, and what is pushed only once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import probe, spec
from lab.deadline import Deadline
from lab.errors import ProbeRejected


class FakeShell:
    """Answers every command with one address per module."""

    def __init__(self) -> None:
        self.pushed: list[str] = []
        self.commands: list[str] = []

    def put(self, _: Path, remote: str, *, deadline: Deadline) -> None:
        self.pushed.append(remote)

    def run(self, command: str, *, deadline: Deadline, ok: bool = True) -> Any:
        self.commands.append(command)
        return SimpleNamespace(stdout="0x1000\n" * command.count("insmod"))


def load(shell: FakeShell, pushed: set[str], *names: str) -> None:
    guest: Any = SimpleNamespace(name="sender", require_shell=lambda: shell)
    probe.load(
        guest,
        {name: Path(f"{name}.ko") for name in names},
        spec.Probes(),
        nonce=bytes(16),
        records=100,
        pushed=pushed,
        deadline=Deadline(5),
    )


@pytest.fixture(autouse=True)
def _no_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_header", lambda *_: None)


def test_in_a_guest_with_both_modules_one_has_the_hooks_both_have() -> None:
    shell = FakeShell()

    load(shell, set(), "send_trace", "recv_trace")

    first, second = (c for c in shell.commands[0].split(" && ") if c.startswith("insmod"))
    assert "send_trace" in first
    assert "beside" not in first
    assert second.endswith(" beside=1")


def test_a_module_alone_in_its_guest_has_them_all() -> None:
    shell = FakeShell()

    load(shell, set(), "recv_trace")

    assert "beside" not in shell.commands[0]


def test_what_the_guest_has_is_not_pushed_again() -> None:
    shell = FakeShell()
    pushed: set[str] = set()

    load(shell, pushed, "send_trace")
    load(shell, pushed, "send_trace", "recv_trace")

    assert ["/run/send_trace.ko", "/run/recv_trace.ko"] == shell.pushed


@pytest.mark.parametrize(
    ("count", "size", "least"), [(1, 16, 4096), (1000, 16, 12_000), (100, 65507, 50_000)]
)
def test_the_ring_grows_with_messages_and_with_their_frames(
    count: int, size: int, least: int
) -> None:
    assert least < probe.records_for(count, size) <= spec.RECORDS_AT_MOST


@pytest.mark.parametrize("said", ["", "nonsense\n", "0x10zz\n", "0x" + "f" * 30 + "\n", "1\n2\n"])
def test_an_address_that_is_none_is_no_ring(said: str) -> None:
    shell = FakeShell()
    shell.run = lambda *_, **__: SimpleNamespace(stdout=said)  # type: ignore[method-assign]

    with pytest.raises(ProbeRejected, match="expected 1 rings, found"):
        load(shell, set(), "send_trace")
