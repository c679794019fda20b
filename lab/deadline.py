"""The only clock and the only sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import DeadlineExceeded

T = TypeVar("T")


RUN_HINT = "raise 'deadline:' in the playbook, or run it when the host is less busy"


class Deadline:
    """A point in time by which something must have happened."""

    def __init__(self, seconds: float, *, of: str = "", hint: str | None = None) -> None:
        """Set it; `of` is whose time it is where many things are waited for by it."""
        self.seconds = seconds
        self.of = of
        self.hint = hint
        self._start = time.monotonic()

    @classmethod
    def of_run(cls, seconds: float) -> Deadline:
        """Return the deadline that a playbook gives to all a run does."""
        return cls(seconds, of="the run's deadline", hint=RUN_HINT)

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return time.monotonic() - self._start

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def expired(self) -> bool:
        return self.elapsed >= self.seconds

    def cut(self) -> None:
        """End it now: whoever still waits by it gives up."""
        self.seconds = min(self.seconds, self.elapsed)

    def within(self, seconds: float) -> Deadline:
        """Return a deadline at most `seconds` away and never later than this one."""
        return self if self.remaining <= seconds else Deadline(seconds)

    def check(self, what: str, *, since: float | None = None) -> None:
        """Raise `DeadlineExceeded` when the time is over; `since` is when the wait began."""
        if self.expired:
            raise self.exceeded(what, since=since)

    def exceeded(self, what: str, *, since: float | None = None) -> DeadlineExceeded:
        """Return the error: what was waited for, how long, and whose time that used up."""
        waited = self.elapsed if since is None else min(now() - since, self.elapsed)
        said = f"waited {waited:.1f} s for {what}"
        if self.of:
            said += f"; with that {self.of} of {self.seconds:.1f} s was used up"
        return DeadlineExceeded(said, hint=self.hint)


def now() -> float:
    """Return the time that waits are measured by."""
    return time.monotonic()


def wait_until(
    condition: Callable[[], T | None],
    *,
    what: str,
    deadline: Deadline,
    interval_s: float = 0.01,
) -> T:
    """Return the first truthy value of `condition`, asked every `interval_s` seconds."""
    start = now()
    while True:
        value = condition()
        if value:
            return value
        deadline.check(what, since=start)
        time.sleep(min(interval_s, max(deadline.remaining, 0.0005)))
