"""Claims of a text, held against runs: confirmed, refuted, depends, not testable here.

::

    claims/NAME.yaml -- load --> Text --- lab.settle (machine) --> a folder of runs
                                   |                                     |
                                   '----------- judge <------------------'
                                                  |
                                      Verdict×n --+-- claims.json, table, docs/claims.md

A verdict comes from measured values alone, and each leads to the record that carries it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.claims import judge as judging
from lab.claims.evidence import Evidence
from lab.claims.measures import MEASURES
from lab.claims.reading import folder, load, names, parse
from lab.claims.types import (
    CONFIRMED,
    DEPENDS,
    NOT_HERE,
    REFUTED,
    UNDECIDED,
    WORDS,
    Claim,
    Experiment,
    Judged,
    Measured,
    NotHere,
    Test,
    Text,
    Verdict,
)
from lab.errors import EvidenceError, TraceCorrupt
from lab.rundir import RunDir

__all__ = [
    "CONFIRMED",
    "DEPENDS",
    "DONE",
    "FAILED",
    "INDEX",
    "MEASURES",
    "NOT_HERE",
    "REFUTED",
    "UNAVAILABLE",
    "UNDECIDED",
    "WORDS",
    "Claim",
    "Experiment",
    "Judged",
    "Test",
    "Text",
    "Verdict",
    "folder",
    "judge",
    "load",
    "names",
    "narrowed",
    "parse",
    "taken_in",
    "used",
]

INDEX = "experiments.json"
DONE, FAILED, UNAVAILABLE = "done", "failed", "unavailable"


def narrowed(text: Text, ids: frozenset[str]) -> Text:
    """Return the text with these claims only."""
    return replace(text, claims=tuple(one for one in text.claims if one.id in ids))


def used(texts: Sequence[Text]) -> frozenset[str]:
    """Return the experiments that some test asks for, as TEXT/EXPERIMENT."""
    return frozenset(
        f"{text.name}/{test.on}" for text in texts for claim in text.claims for test in claim.tests
    )


def taken_in(folder: Path) -> dict[str, Any]:
    """Return what a folder's index says of each experiment, by TEXT/EXPERIMENT."""
    index = RunDir(folder).read_json(INDEX)
    found = index.get("experiments") if isinstance(index, dict) else None
    if not isinstance(found, dict):
        raise TraceCorrupt(f"{folder / INDEX}: expected experiments", log=folder / INDEX)
    return dict(found)


def judge(
    texts: Sequence[Text], taken: Path, *, trouble: Mapping[str, str] | None = None
) -> tuple[Judged, ...]:
    """Judge every claim by the runs of a folder that `lab.settle` filled.

    `trouble` says of runs, by name, why what they came to is not to be believed.
    """
    runs = taken_in(taken)
    known: dict[str, Evidence] = {}

    def judged(text: Text) -> Judged:
        def look(test: Test) -> tuple[Measured, Mapping[str, str]]:
            key = f"{text.name}/{test.on}"
            if key not in known:
                known[key] = _evidence(taken, key, runs.get(key), trouble or {})
            seen = known[key]
            found = MEASURES[test.measure].function(seen, test.of)
            shown = tuple(f"{seen.name}/{one}" for one in found.evidence)
            return Measured(value=found.value, evidence=shown), seen.conditions

        return Judged(
            text=text, verdicts=tuple(judging.verdict(claim, look) for claim in text.claims)
        )

    return tuple(judged(text) for text in texts)


def _evidence(taken: Path, key: str, told: Any, trouble: Mapping[str, str]) -> Evidence:
    if not isinstance(told, dict):
        raise EvidenceError(f"{key} was not run")
    name = str(told.get("name", ""))
    if told.get("state") == UNAVAILABLE:
        if name and (taken / name).exists():
            raise EvidenceError(f"{key} is said to be unavailable, and there is a run of it")
        raise NotHere(str(told.get("reason", "")))
    if told.get("state") != DONE:
        raise EvidenceError(f"{key} failed: {told.get('reason', '')}")
    if Path(name).name != name:
        raise EvidenceError(f"{key}: expected the name of a run in {taken}, found '{name}'")
    run = RunDir(taken / name)
    changes = run.attempt_changes() if run.is_attempt() else run.changes()
    if wrong := "; ".join(changes) or trouble.get(name):
        raise EvidenceError(f"{key}: {wrong}", log=run.path)
    return Evidence(name, run)
