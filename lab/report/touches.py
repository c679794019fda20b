"""What CPUs did with the message's bytes besides copying them: reads and spills."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from lab.ledger import Ledger, Touch

HEAD = ("TOUCHED BY", "FUNCTION", "CALLED FROM", "LEN", "ACCESSES", "SEEN IN")
MEANS = {"read": "reads", "spill": "spills"}
OURS = frozenset({"[send_trace]", "[recv_trace]"})
PROBES = "the probes"


def rows(ledger: Ledger, message: int) -> list[tuple[str, str, str, str, str, str]]:
    """Return the rows of one message's touches; what our own probes read is one row a guest."""
    mine = [touch for touch in ledger.touches if touch.message == message]
    return [_row(*found) for found in _grouped(mine)]


def _grouped(touches: list[Touch]) -> Iterator[tuple[tuple[str, ...], list[Touch]]]:
    def key(touch: Touch) -> tuple[str, ...]:
        if touch.function in OURS:
            return touch.guest, touch.kind, PROBES, ""
        return touch.guest, touch.kind, touch.function, touch.caller

    for name, group in groupby(sorted(touches, key=key), key=key):
        yield name, list(group)


def _row(name: tuple[str, ...], group: list[Touch]) -> tuple[str, str, str, str, str, str]:
    guest, kind, function, caller = name
    return (
        f"{guest} {MEANS[kind]}",
        function,
        caller or "-",
        str(max(touch.size for touch in group)),
        str(sum(touch.times for touch in group)),
        group[0].evidence[0] if group[0].evidence else "-",
    )
