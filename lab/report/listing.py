"""The runs there are: when, what was asked, what they came to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.report.tables import table
from lab.rundir import transport

HEAD = 4096  # bytes of ledger.json in which its verdict stands


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run; `complete` is None where it has no ledger, `size` in bytes on disk."""

    run: str
    when: str  # UTC
    playbook: str
    message: str  # "5 x 1400 tcp"
    complete: bool | None
    verdict: str
    size: int

    def as_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


def row(path: Path) -> Row | None:
    """Return what a run directory says of itself; None for a folder that is none."""
    manifest = _read(path / "manifest.json")
    if not manifest:
        return None
    crash = _read(path / "postmortem.json").get("verdict")
    complete = _complete(path / "ledger.json")
    if complete is None:
        complete = _read(path / "socket.json").get("complete")
    words = {True: "COMPLETE", False: "INCOMPLETE", None: "no ledger"}
    asked = ""
    if manifest.get("size"):
        way = transport(
            str(manifest.get("protocol", "")),
            family=str(manifest.get("family", "")),
            connected=manifest.get("connect") is True,
        )
        asked = f"{manifest.get('count')} x {manifest.get('size')} {way}"
    return Row(
        run=str(path),
        when=_when(path.name),
        playbook=str(manifest.get("playbook", manifest.get("kind", "?"))),
        message=asked,
        complete=complete,
        verdict=str(crash) if crash else words[complete],
        size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    )


def render(rows: Sequence[Row]) -> str:
    """Return the runs as a table, oldest first."""
    return "\n".join(
        table(
            ("WHEN (UTC)", "VERDICT", "PLAYBOOK", "MESSAGES", "MIB", "RUN"),
            [
                (
                    one.when,
                    one.verdict,
                    one.playbook,
                    one.message,
                    f"{one.size / (1 << 20):.1f}",
                    one.run,
                )
                for one in rows
            ],
            right="MIB",
        )
    )


def _when(name: str) -> str:
    found = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z", name)
    return "{}-{}-{} {}:{}:{}".format(*found.groups()) if found else ""


def _complete(path: Path) -> bool | None:
    """Return a ledger's verdict from its beginning: one of 10,000 messages is 40 MB."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r'"complete": (true|false)', file.read(HEAD))
    except OSError:
        return None
    return None if found is None else found[1] == "true"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
