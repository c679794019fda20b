"""One word for what a module did, from what was seen outside and what the kernel said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lab import spec
from lab.postmortem.leak import leaks
from lab.postmortem.log import Complaint, Entry, errno_said, unknown_symbols, version_magic
from lab.postmortem.taint import UNMARKED, blind, doubted, lost, unread

VERDICTS: tuple[str, ...] = get_args(spec.Verdict)
NUMBERS = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")
MOST_ALSO = 8
LOCKUPS = frozenset({"soft-lockup", "hung-task", "rcu-stall"})
OOM_PANIC = re.compile(r"Out of memory|deadlocked on memory")
ANNOUNCED = re.compile(r"^reboot: (?:Restarting system|machine restart)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happened, in which phase, why that is said, and the report that says it."""

    word: str
    phase: str
    why: str
    complaint: Complaint | None = None
    also: tuple[str, ...] = ()


def decide(seen: dict[str, Any], entries: Sequence[Entry], reports: Sequence[Complaint]) -> Verdict:
    """Return the verdict of an attempt; `seen` is its observations.json."""
    phases = seen.get("phases") or [{"name": "load"}]
    phase = str(phases[-1].get("name", "load"))
    reports = [*reports, *unread(seen, reports)]
    believed, notes = _believed(seen, reports)
    if seen.get("end") != "panicked":
        # QEMU is told of every panic; that one was only printed, or by an NMI of ours.
        notes += [f"said, and no panic came: {one.title}" for one in believed if _panic(one)]
        believed = [one for one in believed if not _panic(one)]
    first = next((one for one in believed if one.kind != "warn"), None)
    changed = _changed(seen)
    also = [*notes, *_also(believed, first)]
    if absent := (seen.get("changed") or {}).get("absent"):
        also.append(f"kernel text and page cache were not compared: {absent}")
    if absent := (seen.get("held") or {}).get("absent"):
        also.append(f"leaks were not looked for: {absent}")
    also += [
        f"the command ended with exit code {one['exit']}"
        for one in phases
        if one.get("name") == "run" and one.get("exit") not in (0, None)
    ]
    if trouble := _trouble(seen):
        also.append(trouble)
    if gone := lost(seen):
        also.append(
            f"{gone} records of the kernel's log were overwritten unread; "
            + (blind(seen) or f"a report of {UNMARKED} among them would have left no mark")
        )

    word, why, complaint = _word(seen, entries, reports, believed, changed)
    also += changed[1:] if word == "corrupt" else changed
    if word == "leak":
        also += [str(one) for one in leaks(seen)[1:]]
    # A panic that ends what an oops began is the verdict itself, not one thing more.
    return Verdict(word, phase, why, complaint, tuple(one for one in also if one != why))


def _word(
    seen: dict[str, Any],
    entries: Sequence[Entry],
    reports: Sequence[Complaint],
    believed: Sequence[Complaint],
    changed: Sequence[str],
) -> tuple[str, str, Complaint | None]:
    """Return the word, why, and the report that says it: the machine's end before all else."""
    first = next((one for one in believed if one.kind != "warn"), None)
    if (frozen := seen.get("frozen")) is not None:
        return "hard-lockup", _frozen(frozen), _of_nmi(reports) or first
    if (end := seen.get("end")) is not None:
        return *_ended(str(end), entries, reports), first
    if first is not None:
        return first.kind, first.title, first
    phases = seen.get("phases") or [{}]
    load, last = phases[0], phases[-1]
    trouble = _trouble(seen)
    killed = int(load.get("exit") or 0)  # of insmod: an exit code, or minus a signal
    quiet: list[tuple[bool, str, str]] = [
        (bool(changed), "corrupt", changed[0] if changed else ""),
        (bool(trouble), "corrupt", trouble),
        (
            load.get("name") == "load" and killed < 0,
            "oops",
            f"insmod was killed by signal {-killed}, as a task is that oopses; the log is silent",
        ),
        (
            load.get("name") == "load" and killed > 0,
            "refused",
            _refusal(str(load.get("said", "")), entries),
        ),
        (
            bool(seen.get("flood")),
            "flood",
            f"{_log(seen).get('records')} log records, {seen.get('console_bytes')} bytes said",
        ),
        (
            bool(seen.get("deadline")),
            "deadline",
            f"'{last.get('name')}' did not end after {last.get('seconds')} s",
        ),
        (
            last.get("name") == "again" and last.get("exit") not in (0, None),
            "leak",
            f"what it left is in the way of another load: {last.get('said')}",
        ),
    ]
    if left := leaks(seen):
        quiet.append((True, "leak", str(left[0])))
    for holds, word, why in quiet:
        if holds:
            return word, why, None
    if believed:
        return "warn", believed[0].title, believed[0]
    return *_nothing_said(seen), None


def _nothing_said(seen: dict[str, Any]) -> tuple[str, str]:
    """Return what is said where nothing is to be told: that it is well, if that is known."""
    if (gone := lost(seen)) and (why := blind(seen)):
        said = f"{gone} records were overwritten unread; {why}"
        return "flood", f"whether it complained cannot be known: {said}"
    counted = "loads" in (seen.get("held") or {})
    stayed = ", nothing stayed behind" if counted else ""
    return "loaded", f"nothing complained, nothing changed{stayed}"


def _panic(report: Complaint) -> bool:
    return report.kind == "panic"


def _log(seen: dict[str, Any]) -> dict[str, Any]:
    log = seen.get("log")
    return log if isinstance(log, dict) else {}


def _trouble(seen: dict[str, Any]) -> str:
    trouble = _log(seen).get("trouble")
    return f"the kernel's log could not be read to its end: {trouble}" if trouble else ""


def _believed(
    seen: dict[str, Any], reports: Sequence[Complaint]
) -> tuple[list[Complaint], list[str]]:
    """Leave out lockups that a starved host made: they count wall time."""
    lockups = seen.get("lockups", [])
    sure = {str(one["text"]).strip() for one in lockups if one["believed"]}
    doubts = {
        str(one["text"]).strip(): f"the guest had {one['share']:.0%} of a CPU"
        for one in lockups
        if str(one["text"]).strip() not in sure
    }
    if why := doubted(seen):
        doubts |= {one.title: why for one in reports if not one.lines}
    kept, notes = [], []
    for one in reports:
        if one.kind in LOCKUPS and one.title in doubts:
            notes.append(f"not believed, {doubts[one.title]}: {one.title}")
        else:
            kept.append(one)
    return kept, notes


def _also(believed: Sequence[Complaint], first: Complaint | None) -> list[str]:
    """Return the other complaints, those that differ in numbers alone together."""
    found: dict[str, list[str]] = {}
    for one in believed:
        if one is not first:
            found.setdefault(NUMBERS.sub("N", one.title), []).append(one.title)
    return [
        titles[0] if len(titles) == 1 else f"{titles[0]} ({len(titles)} times)"
        for titles in found.values()
    ][:MOST_ALSO]


def _changed(seen: dict[str, Any]) -> list[str]:
    changed = seen.get("changed") or {}
    text = (changed.get("text") or {}).get("listed", [])
    files = (changed.get("files") or {}).get("listed", [])
    return [
        *(f"kernel text at {one['at']}: {one['old']} became {one['new']}" for one in text),
        *(
            f"page cache of {one['file']} at {one['at']}: {one['old']} became {one['new']}"
            for one in files
        ),
    ]


def _frozen(frozen: dict[str, Any]) -> str:
    how = (
        f"the guest's clock tick stands still while its vCPU burns {frozen['cpu_s']} s of CPU"
        if frozen["how"] == "burns CPU"
        else f"halted with interrupts off: no tick and no heartbeat for {frozen['seconds']} s"
    )
    nmi = str(frozen.get("nmi", "not sent"))
    said = "an NMI came through" if nmi == "panicked" else f"an NMI: {nmi}"
    return f"{how}; {said}"


def _of_nmi(reports: Sequence[Complaint]) -> Complaint | None:
    for one in reports:
        if one.kind == "panic" and "NMI" in one.title:
            return one
    return None


def _ended(end: str, entries: Sequence[Entry], reports: Sequence[Complaint]) -> tuple[str, str]:
    panics = [one for one in reports if one.kind == "panic"]
    if end == "panicked":
        if any(OOM_PANIC.search(one.title) for one in panics):
            return "oom", panics[0].title
        return "panic", panics[0].title if panics else "the kernel declared a panic"
    if end == "guest-reset":
        if any(ANNOUNCED.match(entry.text) for entry in entries):
            return "reset", "the kernel rebooted"
        return "reset", "without a word of the kernel: a triple fault, or a reset by hand"
    if end == "guest-shutdown":
        return "poweroff", "the kernel turned the machine off"
    return "guest-lost", f"QEMU ended: {end}"


def _refusal(said: str, entries: Sequence[Entry]) -> str:
    why = errno_said(said)
    if missing := unknown_symbols(entries):
        why += f": {', '.join(missing)}"
    elif (magic := version_magic(entries)) is not None:
        why += f": {magic}"
    return why
