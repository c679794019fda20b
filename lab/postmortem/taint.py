"""What a kernel marks itself with when it complains: what is left of a report that nobody read.

The log is a ring in guest RAM, and what overtakes its reader is gone.  The bits of `tainted_mask`
stay (the kernel's admin-guide/tainted-kernels).  Hung tasks, RCU stalls, lockdep's reports and
the OOM killer set none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lab.postmortem.log import Complaint


@dataclass(frozen=True, slots=True)
class Mark:
    """One bit: its letter in a report's "Tainted:", what sets it, and what reports go with it."""

    bit: int
    letter: str
    says: str
    kind: str  # of the report that is missing
    told_by: frozenset[str]  # kinds of report, each of which accounts for the bit


MARKS = (
    Mark(7, "D", "an oops", "oops", frozenset({"oops"})),
    Mark(14, "L", "a soft lockup", "soft-lockup", frozenset({"soft-lockup"})),
    Mark(
        *(5, "B", "a page or an object that was written over or freed twice", "bug"),
        frozenset({"bug", "kfence", "kasan", "slub"}),
    ),
    Mark(9, "W", "a WARNING, or a BUG that it survived", "warn", frozenset({"warn", "bug"})),
)
UNMARKED = "a hung task, an RCU stall, a lock or the OOM killer"
WATCHED = sum(1 << mark.bit for mark in MARKS)


def unread(seen: dict[str, Any], reports: Sequence[Complaint]) -> list[Complaint]:
    """Return a report without a text for every mark that none of the reports accounts for."""
    return [
        Complaint(kind=mark.kind, title=_title(mark, lost(seen)), seconds=0.0, lines=())
        for mark in _new(seen)
        if not any(one.kind in mark.told_by for one in reports)
    ]


def doubted(seen: dict[str, Any]) -> str:
    """Return what is said of a soft lockup that only its mark tells of, if the host starved it."""
    weighed = _taint(seen).get("soft_lockup")
    if isinstance(weighed, dict) and not weighed.get("believed"):
        return f"the guest had {float(weighed.get('share', 0)):.0%} of a CPU"
    return ""


def blind(seen: dict[str, Any]) -> str:
    """Say why the marks tell nothing, "" where they do."""
    before = _taint(seen).get("before")
    if not isinstance(before, int):
        return "this kernel does not say what it is tainted by"
    letters = "".join(mark.letter for mark in MARKS if before >> mark.bit & 1)
    return f"the kernel was tainted {letters} before" if letters else ""


def lost(seen: dict[str, Any]) -> int:
    """Return how many records of the log were overwritten before they were read."""
    log = seen.get("log")
    count = log.get("lost") if isinstance(log, dict) else 0
    return count if isinstance(count, int) else 0


def _taint(seen: dict[str, Any]) -> dict[str, Any]:
    value = seen.get("tainted")
    return value if isinstance(value, dict) else {}


def _new(seen: dict[str, Any]) -> Iterator[Mark]:
    before, now = _taint(seen).get("before"), _taint(seen).get("now")
    if isinstance(before, int) and isinstance(now, int):
        yield from (mark for mark in MARKS if now & ~before & 1 << mark.bit)


def _title(mark: Mark, gone: int) -> str:
    why = f"{gone} records of its log were overwritten unread" if gone else "its log has none"
    return f"the kernel marked itself {mark.letter}, {mark.says}, and no report was read: {why}"
