"""Load and unload a module again and again; count what its kernel holds in between.

What grows by an object or a page with every load, through two windows of loads, may still be
noise, which a busy host draws out; through three windows more it is not: that comes and goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lab.crash.held import Held, Layout
from lab.crash.session import LOAD, RUN, UNLOAD, Session
from lab.deadline import Deadline
from lab.errors import DeadlineExceeded, EvidenceError, GuestError

LOADS = 3  # in each window
WINDOWS = 2
MOST_WINDOWS = 5  # while something grows
MOST_S = 15.0  # for all loads
DROP = "/proc/sys/vm/drop_caches"
SHRINK = b"2"  # caches of the file system, and what waits to be freed by RCU in batches
SETTLE_S = 0.2  # a grace period of RCU is over by then
QUICK_S = 5.0


class Step(Protocol):
    """Load, use or unload the module, as a part of `phase`; return whether to go on."""

    def __call__(self, *, phase: dict[str, Any] | None = None) -> bool: ...


def look(session: Session, steps: Sequence[Step], loads: int) -> None:
    """Take `steps`, which load, use and unload, again, and write down what the kernel holds."""
    seen = session.seen
    done = (LOAD, RUN, UNLOAD)
    took = sum(phase["seconds"] for phase in seen.phases if phase["name"] in done)
    if seen.complained:
        seen.held = {"absent": "the kernel complained before"}
        return
    if took * loads * WINDOWS > MOST_S:
        seen.held = {"absent": f"{loads * WINDOWS} loads of {took:.1f} s would take too long"}
        return
    try:
        layout = session.layout()
        counts = [_count(session, layout)]
        phase = session.watcher.phase("again")
        while len(counts) <= WINDOWS or (len(counts) <= MOST_WINDOWS and _grows(counts, loads)):
            if not all(step(phase=phase) for _ in range(loads) for step in steps):
                return  # what came in between is the verdict
            counts.append(_count(session, layout))
    except (EvidenceError, GuestError, DeadlineExceeded) as error:
        seen.held = {"absent": str(error)}
        return
    seen.held = _changes(counts, loads)


def _grows(counts: Sequence[Held], loads: int) -> bool:
    """Say whether anything has grown by one with every load so far."""
    first, last = counts[0], counts[-1]
    least = loads * (len(counts) - 1)
    grown = [number - first.objects.get(name, 0) for name, number in last.objects.items()]
    return max([last.pages - first.pages, *grown]) >= least


def _count(session: Session, layout: Layout) -> Held:
    """Count once the guest has freed what it was about to free."""
    session.guest.require_agent().put(DROP, SHRINK, mode=0, deadline=Deadline(QUICK_S))
    over = Deadline(SETTLE_S)
    session.watcher.until(lambda: over.expired, deadline=Deadline(QUICK_S), what="RCU")
    return session.held(layout)


def _changes(counts: Sequence[Held], loads: int) -> dict[str, Any]:
    """Return the counts of what changed at all; which of them are leaks is decided later."""
    objects = {
        name: [one.objects.get(name, 0) for one in counts] for name in sorted(counts[-1].objects)
    }
    return {
        "loads": loads,
        "caches": {
            name: {"size": counts[-1].sizes[name], "objects": numbers}
            for name, numbers in objects.items()
            if len(set(numbers)) > 1
        },
        "pages": [one.pages for one in counts],
    }
