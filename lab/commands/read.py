"""Read what runs left."""

from __future__ import annotations

import contextlib
import json as jsonlib
from typing import Any

from lab import paths
from lab.commands import Console


def runs(console: Console) -> None:
    rows: list[dict[str, Any]] = []
    for path in sorted(paths.runs().glob("*")):
        if path.is_symlink() or not (path / "manifest.json").is_file():
            continue
        complete = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            complete = jsonlib.loads((path / "ledger.json").read_text()).get("complete")
        rows.append({"run": str(path), "complete": complete})
    words = {True: "COMPLETE", False: "INCOMPLETE", None: "no ledger"}
    text = "\n".join(f"{words[row['complete']]:<11} {row['run']}" for row in rows)
    console.result(text or f"no run in {paths.runs()}", rows)


def lines(console: Console, run: str, grep: str) -> None:
    from lab import report, rundir

    for line in report.lines(rundir.resolve(run), grep=grep or None):
        print(line)
    del console


def accesses(console: Console, run: str, place: str) -> None:
    from lab import places, rundir

    found = rundir.resolve(run)
    if not place:
        console.result("\n".join(places.names(found)), places.names(found))
        return
    rows = list(places.lines(found, place))
    console.result("\n".join(rows), rows)
