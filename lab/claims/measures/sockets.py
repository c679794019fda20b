"""socket(2) followed through the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.types import Measured, NotHere
from lab.errors import EvidenceError

# States of a function in socket.json (lab/socket/hooked.py).
CALLED, NOT_CALLED = "called", "there, not called"
INLINED = "inlined: no symbol of its own"


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
    """Return how often socket(2) called a function.

    Never 0: the source's call may be compiled into its caller, and then no call is to be seen.
    """
    row = _named_row(seen, "functions", name)
    if row["state"] == CALLED:
        return made(int(row["calls"]), row["evidence"])
    if row["state"] == INLINED:
        raise NotHere(f"{name} has no symbol of its own: compiled into its caller, not observable")
    if row["state"] == NOT_CALLED:
        raise NotHere(
            f"{name} exists and is not called on this way; what the compiler put of it into "
            "a caller is not observable"
        )
    raise EvidenceError(f"{seen.name}: calls of {name} were not followed: {row['state']}")


def _called_within(seen: Evidence, words: str) -> Measured:
    """Say whether each call of a function lies in one of another, nothing hooked between them.

    `INNER OUTER`: over all socket(2) calls of the run.
    """
    inner, outer = words.split()
    found = seen.result("socket.json")
    if not found["complete"]:
        raise EvidenceError(f"{seen.name} is not proven")
    entries: list[tuple[bool, str]] = []
    for call in found["calls"]:
        around: dict[int, str] = {}
        for step in call["steps"]:
            if step["kind"] != "entry":
                continue
            around[step["depth"]] = step["function"]
            if step["function"] == inner:
                entries.append((around.get(step["depth"] - 1) == outer, step["evidence"]))
    if not entries:
        raise EvidenceError(f"{seen.name}: {inner} was not called")
    wrong = [evidence for good, evidence in entries if not good]
    return made(not wrong, wrong or [evidence for _, evidence in entries])


MEASURES: dict[str, Measure] = {
    "proof": Measure("whether a proof of lab.run-socket holds", _proof, "proof"),
    "called-within": Measure(
        "whether socket(2) calls a function in another", _called_within, "inner and outer function"
    ),
    "kernel-calls": Measure("how often socket(2) called a function", _kernel_calls, "function"),
}
