"""What every measure is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lab.claims.evidence import Evidence
from lab.claims.types import Measured, Value
from lab.errors import EvidenceError

Function = Callable[[Evidence, str], Measured]
MOST_EVIDENCE = 8
REACH = 1 << 16  # bytes behind skb->head at which its data may lie


@dataclass(frozen=True, slots=True)
class Measure:
    """One word of the vocabulary; `of` says what must be named with it."""

    what: str
    function: Function
    of: str = ""


def made(value: Value, evidence: Iterable[str]) -> Measured:
    """Return a value with the records that carry it; raise `EvidenceError` where none does."""
    ids = tuple(dict.fromkeys(evidence))
    if not ids:
        raise EvidenceError(f"nothing carries the value {value!r}")
    return Measured(value=value, evidence=ids[:MOST_EVIDENCE])


def parse_hex(text: str) -> int:
    """Return an address that stands in hexadecimal."""
    return int(text, 16)
