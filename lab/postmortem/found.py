"""What one attempt showed, as values: the verdict, and all that leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.postmortem.log import Complaint, Frame
from lab.postmortem.source import Place
from lab.postmortem.verdict import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the call trace, with its line where the module's debug information knows."""

    frame: Frame
    place: Place | None

    def __str__(self) -> str:
        return f"{self.frame}  {self.place}" if self.place is not None else str(self.frame)


@dataclass(frozen=True, kw_only=True, slots=True)
class Postmortem:
    """Everything that one attempt showed."""

    run: str
    module: str
    kernel: str
    verdict: Verdict
    at: str  # file:line, a symbol, or what else names the place
    source: str  # the text of that line
    member: str | None
    instruction: str | None
    steps: tuple[Step, ...]
    history: tuple[tuple[str, tuple[Step, ...]], ...]  # of the object: allocated, freed
    fingerprint: str
    records: tuple[str, ...]
    said: tuple[str, ...]  # the last lines of the log from the fault on
    console: tuple[str, ...]
    build: str
    seconds: float | None
    taken: dict[str, Any]  # phases, as they were seen
    lacks: str = ""  # why there are no lines of source, where that is the module's own doing
    changes: tuple[str, ...] = ()  # files that are not as the attempt wrote them
    listed: bool = True  # the manifest lists its files, so that such would be noticed

    def as_json(self) -> dict[str, Any]:
        """Return the whole as JSON; `verdict, phase, at, fingerprint, run` come first in it."""
        complaint = self.verdict.complaint
        return {
            "verdict": self.verdict.word,
            "phase": self.verdict.phase,
            "at": self.at,
            "fingerprint": self.fingerprint,
            "run": self.run,
            "module": self.module,
            "kernel": self.kernel,
            "why": self.verdict.why,
            "also": list(self.verdict.also),
            "fault": None if complaint is None else _fault(complaint),
            "source": self.source,
            "member": self.member,
            "instruction": self.instruction,
            "lacks": self.lacks,
            "changes": list(self.changes),
            "listed": self.listed,
            "trace": _trace(self.steps),
            "history": [{"what": what, "trace": _trace(steps)} for what, steps in self.history],
            "records": list(self.records),
            "log": list(self.said),
            "console": list(self.console),
            "build": self.build,
            "seconds": self.seconds,
            "phases": self.taken.get("phases", []),
        }


def _trace(steps: Sequence[Step]) -> list[dict[str, str | None]]:
    return [
        {"frame": str(step.frame), "at": str(step.place) if step.place else None} for step in steps
    ]


def _fault(complaint: Complaint) -> dict[str, Any]:
    return {
        "title": complaint.title,
        "address": None if complaint.address is None else f"0x{complaint.address:x}",
        "access": complaint.access,
        "object": complaint.object,
        "comm": complaint.comm,
        "pid": complaint.pid,
        "instruction": str(complaint.rip) if complaint.rip else hexed(complaint.rip_address),
        "code": complaint.code,
        "registers": dict(complaint.registers),
    }


def hexed(value: int | None) -> str | None:
    """Return an address as people write it."""
    return None if value is None else f"0x{value:x}"
