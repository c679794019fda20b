"""Read what runs left."""

from __future__ import annotations

import contextlib
import json as jsonlib
from pathlib import Path
from typing import Any

from lab import paths
from lab.commands import Console
from lab.errors import PlaybookError


def runs(console: Console) -> None:
    from lab.rundir.prune import runs as known

    rows: list[dict[str, Any]] = []
    for path in known(paths.runs()):
        ledger, found = _read(path / "ledger.json"), _read(path / "postmortem.json")
        ledger = ledger or _read(path / "socket.json")
        complete, verdict = ledger.get("complete"), found.get("verdict")
        if (path / "manifest.json").is_file():
            rows.append({"run": str(path), "complete": complete, "verdict": verdict})
    words = {True: "COMPLETE", False: "INCOMPLETE", None: "no ledger"}
    text = "\n".join(
        f"{(row['verdict'] or words[row['complete']]):<12} {row['run']}" for row in rows
    )
    console.result(text or f"no run in {paths.runs()}", rows)


def prune(console: Console, keep: int) -> None:
    from lab.rundir import prune as pruning

    if keep < 0:
        raise PlaybookError(f"--prune {keep}: expected how many of the newest runs to keep")
    removed = pruning.prune(paths.runs(), keep=keep)
    console.result(
        f"{len(removed.paths)} runs removed, {removed.bytes >> 20} MiB freed",
        {"removed": list(removed.paths), "bytes": removed.bytes},
    )


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = jsonlib.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def lines(console: Console, run: str, grep: str) -> None:
    from lab import report, rundir, socket

    found = rundir.resolve(run)
    of = socket.lines if found.manifest().experiment == "socket" else report.lines
    for line in of(found, grep=grep or None):
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
