"""What is left of a crash, made readable: from a run directory alone.

::

    observations.json ─┐
    kernel.log ────────┼── decide ── verdict ──┬── postmortem.json
    module/*.ko.debug ─┘   where: line, member ┘   postmortem.txt
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lab import record
from lab.errors import EvidenceError, LabError, TraceCorrupt
from lab.postmortem import observed, where
from lab.postmortem.crashes import Group, digest, fingerprint, group
from lab.postmortem.found import Postmortem, Step
from lab.postmortem.log import Complaint, Entry, complaints, read
from lab.postmortem.page import render
from lab.postmortem.source import Debug
from lab.postmortem.verdict import VERDICTS, Verdict, decide
from lab.rundir import Fields, GuestDir, RunDir

__all__ = ["VERDICTS", "Group", "Postmortem", "Step", "analyse", "group", "matches", "render"]

LAST_RECORDS = 8
LAST_LINES = 12
UNKNOWN = "unknown"


def analyse(run: RunDir) -> Postmortem:
    """Return the post-mortem of an attempt; reads its run directory and nothing else.

    Files that are not as the attempt wrote them are in its `changes`.  Where no verdict can be
    made of what is left it raises `EvidenceError`, which begins with them.
    """
    changes = run.attempt_changes()
    try:
        return replace(_of(run), changes=changes)
    except LabError as error:
        if changes:
            raise EvidenceError(f"{'; '.join(changes)}: {error}", log=run.path) from error
        raise


def _of(run: RunDir) -> Postmortem:
    manifest = run.manifest_json()
    path = run.file("manifest.json")
    if (experiment := manifest.get("experiment")) is not None:
        raise Fields(manifest, path).fault(
            f"none in a run of the experiment {json.dumps(experiment)}",
            manifest.get("kind"), "kind",
        )  # fmt: skip
    name = str(manifest.get("module", UNKNOWN))
    kernel = str(manifest.get("kernel", UNKNOWN))
    build = where.text_of(run.file("build.log"))
    guest = run.attempt_guest()
    if guest is None or not guest.has(observed.FILE):
        # What was built is kept before it is loaded: without it there was nothing to load.
        if build and not run.file("module").exists():
            return _not_built(run, name, kernel, build)
        missing = run.file("GUEST") / observed.FILE if guest is None else guest.file(observed.FILE)
        raise TraceCorrupt(
            f"{missing}: expected what was seen of the module, found no file",
            log=path,
            hint=f"{run.file('journal.jsonl')} says how far it came",
        )
    seen = observed.read(guest)
    entries = read(where.text_of(guest.file("kernel.log")))
    verdict = decide(seen, entries, complaints(entries))
    debug, own = _debug(run, verdict.complaint)
    steps = where.steps(verdict.complaint, debug, own)
    at, source = where.found_at(verdict, steps, seen, run)
    member = where.member(verdict.complaint, debug, own, run)
    return Postmortem(
        run=str(run.path),
        module=own or name,
        kernel=kernel,
        verdict=verdict,
        at=at,
        source=source,
        member=member,
        instruction=where.instruction(verdict.complaint, run, own),
        steps=steps,
        history=where.history(verdict.complaint, debug, own),
        fingerprint=fingerprint(verdict, steps, seen, module=own or name),
        records=_records(guest),
        said=_said(verdict, entries),
        console=tuple(where.text_of(guest.file("console.log")).splitlines()[-LAST_LINES:]),
        build=build,
        seconds=_seconds(seen),
        taken=seen,
        lacks=_lacks(verdict, debug, own),
        listed="files" in manifest,
    )


def _lacks(verdict: Verdict, debug: Debug | None, own: str) -> str:
    if debug is None or debug.present or verdict.word == "loaded":
        return ""
    return f"no debug information in {own}.ko: build with -g"


def _not_built(run: RunDir, name: str, kernel: str, build: str) -> Postmortem:
    found = re.search(
        r"^([\w./-]+\.[chS]):(\d+)(?::\d+)?: (?:fatal )?error: (.*)$", build, re.MULTILINE
    )
    lost = re.search(r"^ERROR: modpost: (.*)$", build, re.MULTILINE)
    why = found[3] if found else lost[1] if lost else (build.splitlines() or [""])[0]
    verdict = Verdict("build-failed", "build", why)
    at = f"{found[1]}:{found[2]}" if found else ""
    return Postmortem(
        run=str(run.path), module=name, kernel=kernel, verdict=verdict, at=at, source="",
        member=None, instruction=None, steps=(), history=(), records=(), said=(), console=(),
        build=build, fingerprint=digest("build-failed", at, why), seconds=None, taken={},
        listed="files" in run.manifest_json(),
    )  # fmt: skip


def _debug(run: RunDir, complaint: Complaint | None) -> tuple[Debug | None, str]:
    """Return the debug information of the module the fault lies in, or else of the first."""
    found = {
        path.name.removesuffix(".ko.debug"): path
        for path in sorted(run.file("module").glob("*.ko.debug"))
    }
    steps = complaint.steps if complaint is not None else ()
    blamed = [step.module for step in steps if step.module is not None]
    for name in (*blamed, *found):
        if name in found:
            return Debug(found[name]), name
    return None, ""


def _records(guest: GuestDir) -> tuple[str, ...]:
    """Return the last records of a probe's ring, if one was watching."""
    if not guest.trace.is_file():
        return ()
    try:
        records = record.read(guest.trace, guest=guest.name).records
    except LabError as error:
        return (f"the trace is damaged: {error}",)
    last = records[max(0, len(records) - LAST_RECORDS) :]
    return tuple(
        f"{one.id} {one.hook} {one.kind.name} {one.comm} tsc={one.tsc} skb=0x{one.skb:x} "
        f"src=0x{one.src:x} dst=0x{one.dst:x} size={one.size}"
        for one in last
    )


def _said(verdict: Verdict, entries: Sequence[Entry]) -> tuple[str, ...]:
    if verdict.complaint is not None:
        return verdict.complaint.lines[:200]
    return tuple(entry.text for entry in entries[-LAST_LINES:])


def _seconds(seen: dict[str, Any]) -> float | None:
    value = seen.get("seconds")
    return float(value) if isinstance(value, int | float) else None


def matches(found: Postmortem, verdict: str | None, at: str | None) -> list[str]:
    """Return what of an expectation does not hold; empty when all of it does.

    `at` is a beginning of the place: `null_write.c`, `null_write.c:23`.
    """
    faults = []
    if verdict is not None and found.verdict.word != verdict:
        faults.append(f"verdict {verdict}, found {found.verdict.word}")
    if at is not None and not _begins(found.at, at):
        faults.append(f"at {at}, found {found.at or 'no place'}")
    return faults


def _begins(place: str, wanted: str) -> bool:
    # null_deref.c:1 is not the beginning of null_deref.c:12.
    return place.startswith(wanted) and not place[len(wanted) : len(wanted) + 1].isdigit()
