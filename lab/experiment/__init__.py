"""The one place that knows the order of stages: from a question to its answer.

::

    playbook -- take --> run directory -- analyse --> Outcome
                         (machine)        (evidence, from the directory alone)

What a kind of experiment does at these two stages is its own module here, and one line of
`KINDS`; what its playbooks may ask is one line of `lab.spec.SECTIONS`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab import paths, rundir, spec, topology
from lab.errors import LabError, TraceCorrupt
from lab.experiment.outcome import Outcome
from lab.experiment.stand import (
    Stand,
    describe_command,
    new_run,
    of_link,
    setup_for,
    stand,
    unlike,
)
from lab.journal import Journal
from lab.ledger import expected
from lab.rundir.making import being_made

__all__ = [
    "KINDS",
    "Kind",
    "Outcome",
    "Stand",
    "analyse",
    "describe_command",
    "kind_of",
    "new_run",
    "of_link",
    "run",
    "setup_for",
    "stand",
    "unlike",
]


class Take(Protocol):
    """Measure on a pair that is ready; write every artefact of the run, the manifest first."""

    def __call__(
        self,
        ready: Stand,
        asked: spec.Playbook,
        run_dir: rundir.RunDir,
        *,
        journal: Journal,
        command: str,
    ) -> None: ...


class Analyse(Protocol):
    """Compute result file and report.txt of a run from its directory alone."""

    def __call__(
        self, run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal
    ) -> Outcome: ...


class Guests(Protocol):
    """Name the guests that take part."""

    def __call__(self, asked: spec.Playbook) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What one kind of experiment does at each stage."""

    guests: Guests
    take: Take
    analyse: Analyse


# By its module here, which is imported when a run is of that kind.
KINDS: dict[spec.Experiment, str] = {
    "message": "message",
    "chain": "chain",
    "steps": "steps",
    "socket": "socket",
    "known": "known",
    "trap": "trap",
    "as-written": "as_written",
    "arrival": "arrival",
}


def kind_of(name: spec.Experiment) -> Kind:
    """Return what one kind of experiment does."""
    module = importlib.import_module(f"lab.experiment.{KINDS[name]}")
    return Kind(guests=module.guests, take=module.take, analyse=module.analyse)


def run(
    asked: spec.Playbook,
    *,
    lab_name: str,
    journal: Journal,
    command: str,
    reset: bool = True,
    locked: bool = False,
    offline: bool = False,
) -> Outcome:
    """Take one measurement and analyse it; the run directory is kept however it ends."""
    kind = kind_of(asked.experiment)
    setup, modules = setup_for(asked, journal=journal, locked=locked, offline=offline)
    topology.refuse_busy(lab_name)  # before there is a run directory with nothing in it
    run_dir = new_run(asked, setup, paths.runs(), guests=kind.guests(asked))
    journal.to_file(run_dir.path / "journal.jsonl")
    with being_made(run_dir.path):
        return _made(
            kind, run_dir, asked, setup, modules,
            lab_name=lab_name, journal=journal, command=command, reset=reset,
        )  # fmt: skip


def _made(
    kind: Kind,
    run_dir: rundir.RunDir,
    asked: spec.Playbook,
    setup: topology.Setup,
    modules: dict[str, Path],
    *,
    lab_name: str,
    journal: Journal,
    command: str,
    reset: bool,
) -> Outcome:
    try:
        with stand(setup, modules, lab_name=lab_name, journal=journal, reset=reset) as ready:
            kind.take(ready, asked, run_dir, journal=journal, command=command)
    except LabError as error:
        error.hint = error.hint or "invoke lab.reset, then again"
        error.log = error.log or run_dir.path / "journal.jsonl"
        error.add_note(f"run: {run_dir.path}")
        raise
    return kind.analyse(run_dir, asked.expect, journal=journal)


def analyse(run_dir: rundir.RunDir, *, journal: Journal) -> Outcome:
    """Compute again what a run came to; it is asked what it was asked when it was taken."""
    manifest = run_dir.manifest()
    expect = expected.asked(manifest)
    for name in KINDS:
        if name == manifest.experiment:
            return kind_of(name).analyse(run_dir, expect, journal=journal)
    raise TraceCorrupt(
        f"{run_dir.name}: there is no experiment '{manifest.experiment}'",
        log=run_dir.file("manifest.json"),
        hint=f"one of {', '.join(KINDS)}",
    )
