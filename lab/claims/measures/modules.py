"""What became of a module that was tried, and what it printed."""

from __future__ import annotations

from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made, parse_hex
from lab.claims.types import Measured, NotHere, Value
from lab.errors import EvidenceError

NEVER_LOADED = ("build-failed", "refused")


def _need_loaded(seen: Evidence) -> None:
    """Raise `NotHere` for a module that never ran: it says nothing of what it would do."""
    found = seen.postmortem
    if found["verdict"] in NEVER_LOADED:
        raise NotHere(f"never loaded on {found['kernel']}: {found['verdict']}: {found['why']}")


def _phase(seen: Evidence, _: str) -> Measured:
    return made(str(seen.postmortem["phase"]), ["postmortem.json#phase"])


def _try_verdict(seen: Evidence, _: str) -> Measured:
    _need_loaded(seen)
    return made(str(seen.postmortem["verdict"]), ["postmortem.json#verdict"])


def _fault_address(seen: Evidence, _: str) -> Measured:
    """Say what kind of address the module faulted on: NULL, user or kernel."""
    fault = seen.postmortem["fault"]
    if not fault or not fault["address"]:
        raise EvidenceError(f"{seen.name} did not fault on an address")
    address = parse_hex(fault["address"])
    kind = "NULL" if address < 1 << 12 else "user" if address < 1 << 47 else "kernel"
    return made(kind, [f"postmortem.json#fault.address={fault['address']}"])


def _log_lines(seen: Evidence, text: str) -> Measured:
    """Return how many lines of the kernel's log hold a text."""
    if seen.run.has("postmortem.json"):
        _need_loaded(seen)
    rows = [evidence for evidence, line in seen.log() if text in line]
    return made(len(rows), rows or ["receiver/kernel.log"])


def _fact(seen: Evidence, name: str) -> Measured:
    """Return what a module of facts printed: a line `[FACT] name=value`."""
    for evidence, line in seen.log():
        _, found, said = line.partition("[FACT] ")
        if found and said.partition("=")[0] == name:
            word = said.partition("=")[2].strip()
            value: Value = word
            if word in ("yes", "no"):
                value = word == "yes"
            elif word.lstrip("-").isdigit():
                value = int(word)
            return made(value, [evidence])
    raise EvidenceError(f"{seen.name}: no module printed a fact called {name}")


MEASURES: dict[str, Measure] = {
    "verdict": Measure("what became of a module that was tried", _try_verdict),
    "phase": Measure("when a module that was tried came to its end, such as build", _phase),
    "fault-address": Measure("the kind of address a module faulted on", _fault_address),
    "log-lines": Measure("lines of the kernel's log with a text", _log_lines, "text"),
    "fact": Measure("what a module of facts printed", _fact, "fact"),
}
