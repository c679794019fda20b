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
]

INDEX = "experiments.json"
DONE, FAILED, UNAVAILABLE = "done", "failed", "unavailable"


def narrowed(text: Text, ids: frozenset[str]) -> Text:
    """Return the text with these claims only."""
    return replace(text, claims=tuple(one for one in text.claims if one.id in ids))


def judge(texts: Sequence[Text], taken: Path) -> tuple[Judged, ...]:
    """Judge every claim by the runs of a folder that `lab.settle` filled."""
    index = RunDir(taken).read_json(INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("experiments"), dict):
        raise TraceCorrupt(f"{taken / INDEX}: expected experiments", log=taken / INDEX)
    runs: dict[str, Any] = dict(index["experiments"])  # type: ignore[arg-type]
    known: dict[str, Evidence] = {}

    def judged(text: Text) -> Judged:
        def look(test: Test) -> tuple[Measured, Mapping[str, str]]:
            key = f"{text.name}/{test.on}"
            if key not in known:
                known[key] = _evidence(taken, key, runs.get(key))
            seen = known[key]
            found = MEASURES[test.measure].function(seen, test.of)
            shown = tuple(f"{seen.name}/{one}" for one in found.evidence)
            return Measured(value=found.value, evidence=shown), seen.conditions

        return Judged(
            text=text, verdicts=tuple(judging.verdict(claim, look) for claim in text.claims)
        )

    return tuple(judged(text) for text in texts)


def _evidence(taken: Path, key: str, told: Any) -> Evidence:
    if not isinstance(told, dict):
        raise EvidenceError(f"{key} was not run")
    if told.get("state") == UNAVAILABLE:
        raise NotHere(str(told.get("reason", "")))
    if told.get("state") != DONE:
        raise EvidenceError(f"{key} failed: {told.get('reason', '')}")
    return Evidence(str(told["name"]), RunDir(taken / str(told["name"])))
