"""The page that is shown at the terminal."""

from __future__ import annotations

from lab.postmortem.found import Postmortem, hexed
from lab.postmortem.log import Complaint

# Verdicts that the compiler's or the kernel's own words explain best.
IN_THEIR_WORDS = ("build-failed", "refused", "deadline", "reset", "guest-lost", "flood")
UNLISTED = "the manifest lists no files: whether they are as the attempt wrote them is not known"


def render(found: Postmortem) -> str:
    """Return the page that is shown at the terminal."""
    verdict = found.verdict
    head = verdict.word.upper()
    if verdict.word != "loaded":
        head += f" in phase '{verdict.phase}'"
    lines = [f"! {change}" for change in found.changes]
    if lines:
        lines.append("What is left of the attempt, which proves nothing, says:")
    lines += [f"{head}: {found.at}" if found.at else head, f"  {verdict.why}"]
    if verdict.complaint is not None and verdict.complaint.title != verdict.why:
        lines.append(f"  {verdict.complaint.title}")
    if found.source:
        lines.append(f"  source       {found.source}")
    if found.lacks:
        lines.append(f"  source       {found.lacks}")
    if found.member is not None:
        lines.append(f"  member       {found.member}")
    complaint = verdict.complaint
    if complaint is not None:
        lines += _rendered_fault(found, complaint)
    for title, rows in (
        ("call trace", [str(step) for step in found.steps]),
        *((what, [str(step) for step in steps]) for what, steps in found.history),
        ("last records of the trace", list(found.records)),
        ("also", list(verdict.also)),
    ):
        if rows:
            lines += [f"  {title}", *(f"    {row}" for row in rows)]
    if verdict.word in IN_THEIR_WORDS:
        lines += [f"    {line}" for line in (found.build.splitlines() or found.said)[-40:]]
    lines.append(f"  fingerprint  {found.fingerprint}")
    if not found.listed:
        lines.append(f"  note         {UNLISTED}")
    return "\n".join(lines) + "\n"


def _rendered_fault(found: Postmortem, complaint: Complaint) -> list[str]:
    lines = []
    if complaint.address is not None:
        access = f" ({complaint.access})" if complaint.access else ""
        lines.append(f"  address      0x{complaint.address:x}{access}")
    if complaint.object is not None:
        lines.append(f"  object       {complaint.object}")
    if complaint.rip is not None or complaint.rip_address is not None:
        where = str(complaint.rip) if complaint.rip else hexed(complaint.rip_address)
        lines.append(f"  instruction  {where}")
        if found.instruction:
            lines.append(f"               {found.instruction}")
    if complaint.comm is not None:
        lines.append(f"  task         {complaint.comm} ({complaint.pid})")
    registers = [f"{name} {value}" for name, value in complaint.registers]
    lines += [f"    {'  '.join(registers[at : at + 4])}" for at in range(0, len(registers), 4)]
    return lines
