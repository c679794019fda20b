"""socket_test in a guest: told to call socket(2), case by case; and what goes wrong meanwhile."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lab.deadline import Deadline, wait_until
from lab.errors import GuestError
from lab.guest import Guest

PROGRAM = "socket_test"
FAULT = "socket_fault"
PARAMETERS = f"/sys/module/{FAULT}/parameters"
GROWTH = 10  # a tenth of an object for each call is no leak, only not yet freed
SETTLE_S = 5.0
# The word each command's answer begins with.
ANSWERS = {
    "call": "called",
    "close": "closed",
    "limit": "limited",
    "unlimit": "unlimited",
    "watch": "watched",
    "message": "messaged",
    "repeat": "repeated",
    "held": "holding",
}


@dataclass(slots=True)
class Caller:
    """The program, and what it was told and answered."""

    guest: Guest
    deadline: Deadline
    ready: dict[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> None:
        agent = self.guest.require_agent()
        agent.start(PROGRAM, f"/usr/bin/{PROGRAM}", deadline=self.deadline)
        self.ready = self._wait("ready")

    def case(self, name: str, command: str) -> dict[str, Any]:
        """Tell the program a command and keep its answer under `name`."""
        answer = self._tell(command)
        self.cases.append({"name": name, "command": command, "answer": answer})
        return answer

    def other_program(self, name: str, *argv: str) -> None:
        """Let another program run to its end, and keep when that was."""
        agent = self.guest.require_agent()
        before = agent.ping(deadline=self.deadline).tsc
        pid = agent.start(name, *argv, deadline=self.deadline)
        exited = agent.wait_exit(name, deadline=self.deadline)
        after = agent.ping(deadline=self.deadline).tsc
        answer = {"pid": pid, "exit": exited, "before": before, "after": after}
        self.cases.append({"name": name, "command": " ".join(argv), "answer": answer})

    def repeat(self, name: str, count: int, arguments: str) -> dict[str, Any]:
        """Tell the program to call many times; return what it said, and what stayed in slabs.

        An inode is freed a grace period after its socket, so slabs are looked at again
        until they hold hardly more than before (`settled`), or a leak is plain.
        """
        answer = self._tell(f"repeat {count} {arguments}")
        before = answer["before"]["slabs"]

        def settled() -> dict[str, Any] | None:
            held = self._tell("held")
            grown = max(
                slab["objects"] - before[key]["objects"] for key, slab in held["slabs"].items()
            )
            return held if grown * GROWTH < count or patience.expired else None

        patience = self.deadline.within(SETTLE_S)
        answer["settled"] = wait_until(
            settled,
            what=f"slabs of {self.guest.name} to settle",
            deadline=self.deadline,
            interval_s=0.1,
        )
        return {"name": name, "command": f"repeat {count} {arguments}", "answer": answer}

    def stop(self) -> None:
        agent = self.guest.require_agent()
        agent.ask(f"kill {PROGRAM} TERM", expect=f"ok kill {PROGRAM}", deadline=self.deadline)
        agent.wait_exit(PROGRAM, deadline=self.deadline)

    def _tell(self, command: str) -> dict[str, Any]:
        agent = self.guest.require_agent()
        agent.tell(PROGRAM, command, deadline=self.deadline)
        return self._wait(ANSWERS[command.partition(" ")[0]])

    def _wait(self, word: str) -> dict[str, Any]:
        text = self.guest.require_agent().wait_said(PROGRAM, word, deadline=self.deadline)
        try:
            said: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise GuestError(self.guest.name, f"{PROGRAM} said no JSON: {text[:80]!r}") from error
        return said


def set_fault(guest: Guest, *, fail: int = 0, signal: int = 0, deadline: Deadline) -> None:
    """Say what happens at the function: an errno that it returns, a signal that is sent."""
    agent = guest.require_agent()
    for name, value in (("fail", fail), ("signal", signal)):
        agent.put(f"{PARAMETERS}/{name}", str(value).encode(), mode=0, deadline=deadline)
