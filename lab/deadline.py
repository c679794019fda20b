"""The only clock and the only sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import DeadlineExceeded

T = TypeVar("T")


class Deadline:
    """A point in time by which something must have happened."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()

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
        return Deadline(min(seconds, self.remaining))

    def check(self, what: str) -> None:
        """Raise `DeadlineExceeded` when the time is over."""
        if self.expired:
            raise DeadlineExceeded(f"waited {self.seconds:.1f} s for {what}")


def wait_until(
    condition: Callable[[], T | None],
    *,
    what: str,
    deadline: Deadline,
    interval_s: float = 0.01,
) -> T:
    """Return the first truthy value of `condition`, asked every `interval_s` seconds."""
    while True:
        value = condition()
        if value:
            return value
        deadline.check(what)
        time.sleep(min(interval_s, max(deadline.remaining, 0.0005)))
