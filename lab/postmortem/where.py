"""Where it happened: line, struct member and instruction, by the module's debug information."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.postmortem.found import Step
from lab.postmortem.leak import leaks
from lab.postmortem.log import Complaint, Frame
from lab.postmortem.source import SMALL, Debug, Place
from lab.postmortem.verdict import Verdict
from lab.rundir import RunDir


def steps(complaint: Complaint | None, debug: Debug | None, own: str) -> tuple[Step, ...]:
    """Return the call trace with the lines of those steps that are in the module itself."""
    if complaint is None:
        return ()
    return _placed(complaint.steps, debug, own, exact=complaint.rip)


def history(
    complaint: Complaint | None, debug: Debug | None, own: str
) -> tuple[tuple[str, tuple[Step, ...]], ...]:
    """Return what was done with the object before, with lines as in the call trace."""
    if complaint is None:
        return ()
    return tuple((what, _placed(frames, debug, own)) for what, frames in complaint.history)


def _placed(
    frames: Sequence[Frame], debug: Debug | None, own: str, *, exact: Frame | None = None
) -> tuple[Step, ...]:
    found = []
    for frame in frames:
        place = None
        if debug is not None and frame.module == own:
            after = frame is not exact
            place = debug.place(frame.function, frame.offset, after_call=after)
            if place is not None and place.of_kernel:  # inlined from a header
                place = debug.own_place(frame.function, frame.offset) or place
        found.append(Step(frame=frame, place=place))
    return tuple(found)


def found_at(
    verdict: Verdict, steps: Sequence[Step], seen: dict[str, Any], run: RunDir
) -> tuple[str, str]:
    """Return the place to look at and its line of source, the module's own if there is one."""
    for step in steps:
        if step.place is not None and not step.place.of_kernel:
            return f"{step.place} {step.frame.function}+0x{step.frame.offset:x}", _line(
                run, step.place
            )
    complaint = verdict.complaint
    if complaint is not None and complaint.file is not None:
        return f"{complaint.file}:{complaint.line}", ""
    if steps:
        return str(steps[0].frame), ""
    return _without_trace(verdict, seen), ""


def _without_trace(verdict: Verdict, seen: dict[str, Any]) -> str:
    if verdict.word == "corrupt":
        return verdict.why.partition(":")[0]
    if verdict.word == "leak":
        return next((one.name for one in leaks(seen)), "")
    for phase in seen.get("phases", []):
        for line in str(phase.get("where", "")).splitlines():
            if found := re.search(r"([A-Za-z_][\w.]*\+0x[0-9a-f]+/0x[0-9a-f]+ \[\w+\])", line):
                return found[1]
    return ""


def _line(run: RunDir, place: Place) -> str:
    path = run.file("module") / "src" / place.file
    if ".." in Path(place.file).parts or not path.is_file():
        return ""
    lines = text_of(path).splitlines()
    return lines[place.line - 1].strip() if 0 < place.line <= len(lines) else ""


def member(complaint: Complaint | None, debug: Debug | None, own: str, run: RunDir) -> str | None:
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


def instruction(complaint: Complaint | None, run: RunDir, own: str) -> str | None:
    """Return the instruction that faulted, disassembled when the module was built."""
    if complaint is None:
        return None
    if complaint.rip is not None and complaint.rip.module == own:
        wanted = f"<{complaint.rip.function}+0x{complaint.rip.offset:x}>"
        for line in text_of(run.file("module") / f"{own}.dis").splitlines():
            if line.startswith(wanted):
                return line[len(wanted) :].strip()
    return complaint.code


def text_of(path: Path) -> str:
    """Return what a file of a run holds, "" where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
