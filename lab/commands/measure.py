"""Run playbooks, and tell what they came to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.commands import Console, crash, kernel_of, lab_name
from lab.errors import (
    LedgerIncomplete,
    PlaybookError,
    hinted,
)

if TYPE_CHECKING:
    from lab import experiment, spec

SLOW_S = 2.0  # of a report: then it is said what would make it faster


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line changes in a playbook; "" leaves it as it is."""

    size: str = ""
    count: str = ""
    family: str = ""
    protocol: str = ""
    connect: bool = False
    payload: str = ""
    without: str = ""
    comm: str = ""
    probes: str = ""
    kernel: str = ""
    modules: str = ""
    headers: str = ""
    reset: bool = True
    locked: bool = False
    offline: bool = False
    task: str = ""  # whose options these are


def asked_for(name: str, options: Options) -> spec.Playbook:
    """Return playbook `name` as the command line changes it."""
    from lab import playbook

    kernel = (
        kernel_of(options.kernel, options.modules, options.headers)
        if options.kernel or options.modules or options.headers
        else None
    )
    asked = playbook.load(name)
    with hinted(hint=f"invoke --help {options.task}"):
        return playbook.override(
            asked,
            size=options.size or None,
            count=options.count or None,
            family=options.family or None,
            protocol=options.protocol or None,
            connect=options.connect or None,
            payload=options.payload or None,
            without=options.without or None,
            comm=options.comm or None,
            probes=options.probes or None,
            kernel=kernel,
        )


def one_of(over: str, loopback: str, link: str) -> str:
    """Return the playbook for --over; the first where there is only one."""
    if link and over not in ("loopback", "link"):
        raise PlaybookError(f"--over: expected loopback or link, found '{over}'")
    return link if link and over == "link" else loopback


def run(console: Console, lab: str, name: str, options: Options) -> None:
    from lab import experiment

    asked = asked_for(name, options)
    if asked.experiment == "crash":
        if not options.reset:
            raise PlaybookError("--no-reset: a module is tried in a guest that is clean")
        crash.play(console, lab, asked, locked=options.locked, offline=options.offline)
        return
    if asked.sweep != type(asked.sweep)():
        raise PlaybookError(
            f"playbook '{asked.name}' asks for many runs", hint=f"invoke lab.sweep {name}"
        )
    outcome = experiment.run(
        asked,
        lab_name=lab_name(lab),
        journal=console.journal,
        command=experiment.describe_command(),
        reset=options.reset,
        locked=options.locked,
        offline=options.offline,
    )
    tell_outcome(console, outcome)


def sweep(console: Console, lab: str, name: str, options: Options) -> None:
    from lab import experiment
    from lab import sweep as sweeps

    asked = asked_for(name, options)
    found = sweeps.run(
        asked,
        lab_name=lab_name(lab),
        journal=console.journal,
        command=experiment.describe_command(),
        locked=options.locked,
        offline=options.offline,
    )
    value = sweeps.to_json(asked, found) | {"sweep": str(found.folder)}
    if not console.json:
        console.told(sweeps.render(found), sweeps.told(found))
    console.result(str(found.folder), value)
    if not found.proven:
        bad = sum(one.state in (sweeps.UNPROVEN, sweeps.FAILED) for one in found.results)
        raise LedgerIncomplete(
            f"{bad} of {len(found.results)} cells are not proven",
            log=found.folder / "index.json",
            hint=f"invoke lab.report {found.folder}/RUN",
        )


def recompute(console: Console, run: str) -> None:
    from lab import experiment, fnv, rundir

    found = rundir.resolve(run)
    if found.is_attempt():
        crash.recompute(console, found)
        return
    start = time.monotonic()
    outcome = experiment.analyse(found, journal=console.journal)
    if time.monotonic() - start > SLOW_S and not fnv.COMPILED:
        console.journal.say("invoke lab.compile, once: reports of large runs take half as long")
    tell_outcome(console, outcome)


def tell_outcome(console: Console, outcome: experiment.Outcome) -> None:
    path = outcome.run.path
    if not console.json:
        console.told((path / "report.txt").read_text(encoding="utf-8"), outcome.told)
    # Of 10,000 messages the value takes a second to make.
    console.result(str(path), {**outcome.value, "run": str(path)} if console.json else {})
    if outcome.trouble:
        raise LedgerIncomplete(
            "; ".join(outcome.trouble), log=path / outcome.result, hint=outcome.hint or None
        )
