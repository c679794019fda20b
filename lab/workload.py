"""Sender and receiver, started when probes are ready, held at gates with known bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab import message, spec
from lab.deadline import Deadline
from lab.errors import GuestError
from lab.guest import Guest

LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
PAGE = 4096
IDLE_MS = 5000  # after so long without anything a wait for data ends, by the guest's clock
Gate = Callable[[str], None]


@dataclass(slots=True)
class Side:
    """One program of the workload and what it said at each step."""

    role: str
    guest: Guest
    said: dict[str, Any] = field(default_factory=dict)

    def start(self, argv: list[str], *, deadline: Deadline) -> None:
        agent = self.guest.require_agent()
        agent.start(self.role, f"/usr/bin/{self.role}", *argv, deadline=deadline)
        self.wait("ready", deadline=deadline)

    def go(self, *, deadline: Deadline) -> None:
        self.guest.require_agent().tell(self.role, "go", deadline=deadline)

    def wait(self, word: str, *, deadline: Deadline) -> dict[str, Any]:
        """Return what the program says at step `word`."""
        text = self.guest.require_agent().wait_said(self.role, word, deadline=deadline)
        try:
            said: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise GuestError(self.guest.name, f"{self.role} said no JSON: {text[:80]!r}") from error
        self.said[word] = said
        return said

    def pages(self) -> list[tuple[int, int]]:
        """Return the physical ranges of the pages under the program's buffer."""
        pages = self.said["ready"]["buffer"]["pages"]
        starts = [int(page["physical"], 16) for page in pages]
        return [(start, start + PAGE) for start in starts if start]

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, **self.said}


def run(
    asked: spec.Workload,
    *,
    sender: Guest,
    receiver: Guest,
    seed: int,
    gate: Gate,
    sent: Callable[[Side], None] | None = None,
    deadline: Deadline,
) -> tuple[Side, Side]:
    """Send and receive; `gate` is called while both are held at "armed", "sent", "received".

    At "sent" the message is in the receiver's socket and nothing was read yet.  `sent` is
    called before that with the receiver, as soon as the sender has said that all went out.
    """
    me = receiver.me
    on_link = {"ipv4": me.address, "ipv6": me.address6}
    address = (LOOPBACK if asked.over == "loopback" else on_link)[asked.family]
    common = ["--protocol", asked.protocol, "--address", address, "--port", str(asked.port)]
    common += ["--size", str(asked.size), "--count", str(asked.count)]
    common += ["--idle-ms", str(IDLE_MS)]
    if asked.payload is None:
        common += ["--seed", f"{seed:016x}"]
    else:
        common += ["--payload-masked", message.mask(asked.payload)]
    to, at = Side("sender", sender), Side("receiver", receiver)
    at.start(common, deadline=deadline)
    to.start([*common, *(["--connect"] if asked.connect else [])], deadline=deadline)
    gate("armed")
    at.go(deadline=deadline)
    to.go(deadline=deadline)
    to.wait("sent", deadline=deadline)
    if sent is not None:
        sent(at)
    at.wait("queued", deadline=deadline)
    gate("sent")
    at.go(deadline=deadline)
    at.wait("received", deadline=deadline)
    gate("received")
    for side in (to, at):
        side.go(deadline=deadline)
        side.wait("done", deadline=deadline)
        side.guest.require_agent().wait_exit(side.role, deadline=deadline)
    return to, at
