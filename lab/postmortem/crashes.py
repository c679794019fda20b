"""Telling one crash from another: fingerprints, and attempts that ended alike."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.postmortem.found import Step
from lab.postmortem.verdict import Verdict
from lab.rundir import RunDir

FRAMES = 5  # of a fingerprint


def fingerprint(
    verdict: Verdict, steps: Sequence[Step], seen: dict[str, Any], *, module: str
) -> str:
    """Return what is equal for the same fault: the verdict and the first frames by name.

    Where there are no frames the module has to do.
    """
    names = [step.frame.name for step in steps[:FRAMES]]
    if not names:
        # Numbers differ between attempts; what is around them does not.
        names = [re.sub(r"0x[0-9a-f]+|\d+", "N", verdict.why)]
        names.append(module)
        names += [str(phase.get("name")) for phase in seen.get("phases", [])[-1:]]
    return digest(verdict.word, *names)


def digest(*parts: str) -> str:
    """Return twelve hexadecimal digits of these texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Attempts that ended alike."""

    fingerprint: str
    verdict: str
    at: str
    module: str
    count: int
    last: str


def group(base: Path) -> tuple[list[Group], list[tuple[str, str]]]:
    """Return the attempts below `base` by fingerprint, the most frequent first.

    And those that are left out, with the reason: a file that is not as the attempt wrote it.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    left_out: list[tuple[str, str]] = []
    for path in sorted(base.glob("*/postmortem.json")):
        if path.parent.is_symlink():  # `last` is one of the others
            continue
        run = RunDir(path.parent)
        try:
            one = run.read_json(path.name)
            changes = run.attempt_changes()
        except LabError as error:
            left_out.append((run.name, str(error)))
            continue
        if changes:
            left_out.append((run.name, "; ".join(changes)))
            continue
        if not isinstance(one, dict):
            continue
        if one.get("changes"):
            why = f"its post-mortem was made of changed files: invoke lab.report {run.name}"
            left_out.append((run.name, why))
            continue
        key = one.get("fingerprint")
        if isinstance(key, str) and one.get("verdict") != "loaded":
            found.setdefault(key, []).append({**one, "run": path.parent.name})
    groups = [
        Group(
            fingerprint=key,
            verdict=str(many[-1].get("verdict")),
            at=str(many[-1].get("at")),
            module=str(many[-1].get("module")),
            count=len(many),
            last=str(many[-1]["run"]),
        )
        for key, many in found.items()
    ]
    return sorted(groups, key=lambda one: (-one.count, one.fingerprint)), left_out
