"""Show a message's way step by step, and what it answers."""

from __future__ import annotations

import json as jsonlib
import os
import sys
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
    elif sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        from rich.console import Console as Terminal

        Terminal().print(steps.rich_table(found, depth=deep, everything=everything))
        console.result(steps.notes(found).rstrip(), None)
    else:
        text = steps.render(found, depth=deep, everything=everything)
        console.result(text.rstrip(), None)
    if found.trouble:
        raise EvidenceError("; ".join(found.trouble[:5]), log=rundir.resolve(run).file(steps.FILE))
