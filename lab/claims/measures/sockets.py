"""socket(2) followed through the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.types import Measured
from lab.errors import EvidenceError


def _named_row(seen: Evidence, kind: str, name: str) -> Mapping[str, Any]:
    found = seen.result("socket.json")
    if not found["complete"]:
        raise EvidenceError(f"{seen.name} is not proven")
    for row in found[kind]:
        if row["name"] == name:
            return dict(row)
    raise EvidenceError(f"{seen.name} has none of its {kind} called {name}")


def _proof(seen: Evidence, name: str) -> Measured:
    row = _named_row(seen, "proofs", name)
    return made(bool(row["holds"]), row["evidence"])


def _kernel_calls(seen: Evidence, name: str) -> Measured:
    """Return how often socket(2) called a function; 0 where it has no symbol of its own."""
    row = _named_row(seen, "functions", name)
    return made(int(row["calls"]), row["evidence"] or [f"socket.json#functions/{name}"])


MEASURES: dict[str, Measure] = {
    "proof": Measure("whether a proof of lab.run-socket holds", _proof, "proof"),
    "kernel-calls": Measure("how often socket(2) called a function", _kernel_calls, "function"),
}
