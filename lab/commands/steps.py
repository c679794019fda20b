"""Show a message's way step by step, and what it answers."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from pathlib import Path

from lab.commands import Console
from lab.errors import EvidenceError, PlaybookError


def show(console: Console, run: str, *, depth: str, everything: bool, debuginfo: str) -> None:
    """Print the numbered table of a run, made anew from its records."""
    from lab import rundir, steps

    if depth and not depth.isdigit():
        raise PlaybookError(f"--depth: expected a number, found '{depth}'")
    deep = int(depth) if depth else None
    found = steps.build(rundir.resolve(run), debuginfo=Path(debuginfo) if debuginfo else None)
    if console.json:
        console.result("", jsonlib.loads(found.to_json()))
    else:
        text = steps.render(found, depth=deep, everything=everything)
        console.told(text, steps.told(found, depth=deep, everything=everything))
    if found.trouble:
        raise EvidenceError("; ".join(found.trouble[:5]), log=rundir.resolve(run).file(steps.FILE))


def worksheet(console: Console, run: str, *, empty: bool, check: str) -> None:
    """Answer the worksheet's exercises from a run, or mark what somebody filled in."""
    from lab import rundir
    from lab import worksheet as sheet

    if empty:
        console.result(sheet.blank().rstrip(), None)
        return
    found = sheet.answers(rundir.resolve(run))
    if not check:
        console.result(sheet.render(found).rstrip(), sheet.to_json(found))
        return
    try:
        text = Path(check).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlaybookError(f"{check} cannot be read: {error}") from error
    checked = sheet.check(found, text)
    console.result(
        sheet.marks(checked), [{**dataclasses.asdict(one), "word": one.word} for one in checked]
    )
    wrong = [one.id for one in checked if one.right is False]
    if wrong:
        raise EvidenceError(f"{', '.join(wrong)}: not what was measured", log=check)
