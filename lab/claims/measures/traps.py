"""What probes put into kernel text and onto a stack, as guest RAM had it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.types import Measured
from lab.errors import EvidenceError

RESULT = "result.json"  # of lab.run-trap
ARMED = "armed"


def _armed_text(seen: Evidence, place: str) -> tuple[Mapping[str, Any], list[str]]:
    """Return what stood at a place of kernel text while probes were armed, and its evidence."""
    rows = list(enumerate(seen.result(RESULT).get("text", ())))
    here = [
        (number, row) for number, row in rows if (row["place"], row["moment"]) == (place, ARMED)
    ]
    if not here:
        known = ", ".join(dict.fromkeys(str(row["place"]) for _, row in rows))
        raise EvidenceError(f"{seen.name} armed no probe at {place}; it did at {known or 'none'}")
    number, row = here[0]
    return row, [f"{guest}/trap.json#text/{number}" for guest in seen.guests]


def _first_byte(seen: Evidence, place: str) -> Measured:
    row, evidence = _armed_text(seen, place)
    return made(f"0x{row['found'][:2]}", evidence)


def _kind(seen: Evidence, place: str) -> Measured:
    row, evidence = _armed_text(seen, place)
    return made(str(row["kind"]), evidence)


def _returns_to(seen: Evidence, moment: str) -> Measured:
    """Return where the probed function would return to, at a moment: before, armed."""
    for number, slot in enumerate(seen.result(RESULT).get("stack", ())):
        if slot["moment"] == moment:
            return made(
                str(slot["symbol"]).partition("+")[0],
                [f"{guest}/trap.json#stack/{number}" for guest in seen.guests],
            )
    raise EvidenceError(f"{seen.name} found no return address on a stack {moment}")


MEASURES: dict[str, Measure] = {
    "armed-first-byte": Measure(
        "the first byte of a place in kernel text while a kprobe is on it", _first_byte, "place"
    ),
    "armed-by": Measure("what the kernel put there", _kind, "place"),
    "returns-to": Measure(
        "what a function with a kretprobe returns to, by the stack", _returns_to, "moment"
    ),
}
