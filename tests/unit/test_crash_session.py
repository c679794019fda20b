"""A trigger while a module is loaded: it ends by itself, or is cut short by what is fatal."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lab.crash.session import RUN, Session
from lab.crash.watch import Seen
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, GuestError


class Watcher:
    """Looks at nothing; something fatal comes after `dies_after` looks."""

    def __init__(self, *, dies_after: int = 0) -> None:
        self.seen = Seen()
        self.left = dies_after

    def phase(self, name: str) -> dict[str, Any]:
        self.seen.phases.append({"name": name, "seconds": 0.0})
        return self.seen.phases[-1]

    def until(self, done: Any, *, deadline: Deadline, what: str) -> bool:
        def condition() -> bool | None:
            self.left -= 1
            self.seen.fatal |= self.left == 0
            return True if self.seen.fatal or done() else None

        wait_until(condition, what=what, deadline=deadline)
        return not self.seen.fatal


def session(watcher: Watcher) -> Session:
    made = Session.__new__(Session)  # without a guest
    fake: Any = watcher
    made._watcher = fake
    return made


def endless(deadline: Deadline) -> None:
    wait_until(lambda: None, what="nothing", deadline=deadline)


def test_a_trigger_that_ends_is_a_phase() -> None:
    watcher = Watcher()

    assert session(watcher).use(lambda _: None, seconds=5)
    (phase,) = watcher.seen.phases
    assert (RUN, 0, "") == (phase["name"], phase["exit"], phase["said"])


def test_a_trigger_may_fail_as_it_likes() -> None:
    def fails(_: Deadline) -> None:
        raise GuestError("receiver", "the program ended")

    watcher = Watcher()

    assert session(watcher).use(fails, seconds=5)
    assert "the program ended" in watcher.seen.phases[0]["said"]
    assert not watcher.seen.deadline


def test_a_trigger_is_cut_short_by_what_is_fatal() -> None:
    watcher = Watcher(dies_after=3)
    start = time.monotonic()

    assert not session(watcher).use(endless, seconds=30)
    assert time.monotonic() - start < 5
    assert not watcher.seen.deadline, "it did not hang: it was ended"


def test_a_trigger_that_does_not_end_is_a_deadline() -> None:
    watcher = Watcher()

    assert not session(watcher).use(endless, seconds=0.1)
    assert watcher.seen.deadline


def test_a_mistake_of_ours_is_not_the_modules() -> None:
    def wrong(_: Deadline) -> None:
        raise TypeError("ours")

    with pytest.raises(TypeError):
        session(Watcher()).use(wrong, seconds=5)


def test_a_deadline_that_is_cut_is_over() -> None:
    deadline = Deadline(60)
    deadline.cut()

    assert deadline.expired
    with pytest.raises(DeadlineExceeded):
        deadline.check("it")
