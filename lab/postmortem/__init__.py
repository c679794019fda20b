"""What is left of a crash, made readable: from a run directory alone.

::

    observations.json ─┐
    kernel.log ────────┼── decide ── verdict ──┬── postmortem.json
    module/*.ko.debug ─┘   source line, member ┘   postmortem.txt
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import record
from lab.errors import LabError
from lab.postmortem.log import Complaint, Entry, Frame, complaints, read
from lab.postmortem.source import SMALL, Debug, Place
from lab.postmortem.verdict import VERDICTS, Verdict, decide
from lab.rundir import GuestDir, RunDir

__all__ = ["VERDICTS", "Group", "Postmortem", "Step", "analyse", "group", "matches", "render"]

FRAMES = 5  # of a fingerprint
LAST_RECORDS = 8
LAST_LINES = 12
UNKNOWN = "unknown"


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
    fingerprint: str
    records: tuple[str, ...]
    said: tuple[str, ...]  # the last lines of the log from the fault on
    console: tuple[str, ...]
    build: str
    seconds: float | None
    taken: dict[str, Any]  # phases, as they were seen

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
            "trace": [
                {"frame": str(step.frame), "at": str(step.place) if step.place else None}
                for step in self.steps
            ],
            "records": list(self.records),
            "log": list(self.said),
            "console": list(self.console),
            "build": self.build,
            "seconds": self.seconds,
            "phases": self.taken.get("phases", []),
        }


def _fault(complaint: Complaint) -> dict[str, Any]:
    return {
        "title": complaint.title,
        "address": None if complaint.address is None else f"0x{complaint.address:x}",
        "access": complaint.access,
        "comm": complaint.comm,
        "pid": complaint.pid,
        "instruction": str(complaint.rip) if complaint.rip else _hex(complaint.rip_address),
        "code": complaint.code,
        "registers": dict(complaint.registers),
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"0x{value:x}"


# -- from a run directory -------------------------------------------------------------


def analyse(run: RunDir) -> Postmortem:
    """Return the post-mortem of an attempt; reads its run directory and nothing else."""
    manifest = _dictionary(run.read_json("manifest.json"))
    name = str(manifest.get("module", UNKNOWN))
    kernel = str(manifest.get("kernel", UNKNOWN))
    build = _text_of(run.file("build.log"))
    guest = next((run.guest(str(one)) for one in manifest.get("guests", ["receiver"])), None)
    if guest is None or not guest.has("observations.json"):
        return _not_built(run, name, kernel, build)
    seen = _dictionary(_json(guest, "observations.json"))
    entries = read(_text_of(guest.file("kernel.log")))
    verdict = decide(seen, entries, complaints(entries))
    debug, own = _debug(run, verdict.complaint)
    steps = _steps(verdict.complaint, debug, own)
    at, source = _at(verdict, steps, seen, run)
    member = _member(verdict.complaint, debug, own, run)
    return Postmortem(
        run=str(run.path),
        module=own or name,
        kernel=kernel,
        verdict=verdict,
        at=at,
        source=source,
        member=member,
        instruction=_instruction(verdict.complaint, run, own),
        steps=steps,
        fingerprint=fingerprint(verdict, steps, seen),
        records=_records(guest),
        said=_said(verdict, entries),
        console=tuple(_text_of(guest.file("console.log")).splitlines()[-LAST_LINES:]),
        build=build,
        seconds=_seconds(seen),
        taken=seen,
    )


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
        member=None, instruction=None, steps=(), records=(), said=(), console=(), build=build,
        fingerprint=_digest("build-failed", at, why), seconds=None, taken={},
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


def _steps(complaint: Complaint | None, debug: Debug | None, own: str) -> tuple[Step, ...]:
    if complaint is None:
        return ()
    found = []
    for frame in complaint.steps:
        place = None
        if debug is not None and frame.module == own:
            after = frame is not complaint.rip
            place = debug.place(frame.function, frame.offset, after_call=after)
            if place is not None and place.file.startswith("/"):  # inlined from a header
                place = debug.own_place(frame.function, frame.offset) or place
        found.append(Step(frame=frame, place=place))
    return tuple(found)


def _at(
    verdict: Verdict, steps: Sequence[Step], seen: dict[str, Any], run: RunDir
) -> tuple[str, str]:
    """Return the place to look at and its line of source, the module's own if there is one."""
    for step in steps:
        if step.place is not None and not step.place.file.startswith("/"):
            return f"{step.place} {step.frame.function}+0x{step.frame.offset:x}", _line(
                run, step.place
            )
    complaint = verdict.complaint
    if complaint is not None and complaint.file is not None:
        return f"{complaint.file}:{complaint.line}", ""
    if steps:
        return str(steps[0].frame), ""
    if verdict.word == "corrupt":
        return verdict.why.partition(":")[0], ""
    for phase in seen.get("phases", []):
        for line in str(phase.get("where", "")).splitlines():
            if found := re.search(r"([A-Za-z_][\w.]*\+0x[0-9a-f]+/0x[0-9a-f]+ \[\w+\])", line):
                return found[1], ""
    return "", ""


def _line(run: RunDir, place: Place) -> str:
    path = run.file("module") / "src" / place.file
    if ".." in Path(place.file).parts or not path.is_file():
        return ""
    lines = _text_of(path).splitlines()
    return lines[place.line - 1].strip() if 0 < place.line <= len(lines) else ""


def _member(complaint: Complaint | None, debug: Debug | None, own: str, run: RunDir) -> str | None:
    """Name the member whose offset the faulting address is, if the fault is the module's."""
    if complaint is None or debug is None or complaint.rip is None or complaint.address is None:
        return None
    if complaint.rip.module != own or complaint.address >= SMALL:
        return None
    for place in (
        debug.place(complaint.rip.function, complaint.rip.offset),
        debug.own_place(complaint.rip.function, complaint.rip.offset),
    ):
        if place is not None and (line := _line(run, place)):
            return debug.member(complaint.address, line)
    return None


def _instruction(complaint: Complaint | None, run: RunDir, own: str) -> str | None:
    """Return the instruction that faulted, disassembled when the module was built."""
    if complaint is None:
        return None
    if complaint.rip is not None and complaint.rip.module == own:
        wanted = f"<{complaint.rip.function}+0x{complaint.rip.offset:x}>"
        for line in _text_of(run.file("module") / f"{own}.dis").splitlines():
            if line.startswith(wanted):
                return line[len(wanted) :].strip()
    return complaint.code


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


# -- telling one crash from another --------------------------------------------------------


def fingerprint(verdict: Verdict, steps: Sequence[Step], seen: dict[str, Any]) -> str:
    """Return what is equal for the same fault: the verdict and the first frames by name."""
    names = [step.frame.name for step in steps[:FRAMES]]
    if not names:
        # Numbers differ between attempts; what is around them does not.
        names = [re.sub(r"0x[0-9a-f]+|\d+", "N", verdict.why)]
        names += [str(phase.get("name")) for phase in seen.get("phases", [])[-1:]]
    return _digest(verdict.word, *names)


def _digest(*parts: str) -> str:
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


def group(base: Path) -> list[Group]:
    """Return the attempts below `base` by fingerprint, the most frequent first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(base.glob("*/postmortem.json")):
        if path.parent.is_symlink():  # `last` is one of the others
            continue
        try:
            one = _dictionary(RunDir(path.parent).read_json(path.name))
        except LabError:
            continue
        if isinstance(one.get("fingerprint"), str) and one.get("verdict") != "loaded":
            found.setdefault(one["fingerprint"], []).append({**one, "run": path.parent.name})
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
    return sorted(groups, key=lambda one: (-one.count, one.fingerprint))


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


# -- for people ------------------------------------------------------------------------------


def render(found: Postmortem) -> str:
    """Return the page that is shown at the terminal."""
    verdict = found.verdict
    head = f"{verdict.word.upper()} in phase '{verdict.phase}'"
    lines = [f"{head}: {found.at}" if found.at else head, f"  {verdict.why}"]
    if found.source:
        lines.append(f"  source       {found.source}")
    if found.member is not None:
        lines.append(f"  member       {found.member}")
    complaint = verdict.complaint
    if complaint is not None:
        lines += _rendered_fault(found, complaint)
    for title, rows in (
        ("call trace", [str(step) for step in found.steps]),
        ("last records of the trace", list(found.records)),
        ("also", list(verdict.also)),
    ):
        if rows:
            lines += [f"  {title}", *(f"    {row}" for row in rows)]
    if verdict.word in ("build-failed", "refused", "deadline", "reset", "guest-lost", "flood"):
        lines += [f"    {line}" for line in (found.build.splitlines() or found.said)[-40:]]
    lines.append(f"  fingerprint  {found.fingerprint}")
    return "\n".join(lines) + "\n"


def _rendered_fault(found: Postmortem, complaint: Complaint) -> list[str]:
    lines = []
    if complaint.address is not None:
        access = f" ({complaint.access})" if complaint.access else ""
        lines.append(f"  address      0x{complaint.address:x}{access}")
    if complaint.rip is not None or complaint.rip_address is not None:
        where = str(complaint.rip) if complaint.rip else _hex(complaint.rip_address)
        lines.append(f"  instruction  {where}")
        if found.instruction:
            lines.append(f"               {found.instruction}")
    if complaint.comm is not None:
        lines.append(f"  task         {complaint.comm} ({complaint.pid})")
    registers = [f"{name} {value}" for name, value in complaint.registers]
    lines += [f"    {'  '.join(registers[at : at + 4])}" for at in range(0, len(registers), 4)]
    return lines


# -- reading -----------------------------------------------------------------------------------


def _dictionary(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(guest: GuestDir, name: str) -> object:
    return RunDir(guest.path).read_json(name)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
