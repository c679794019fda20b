"""The runs there are: when, what was asked, what they came to."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.ledger import expected
from lab.report.blocks import Block, plain, table
from lab.rundir import JOURNAL, transport
from lab.rundir.faults import interrupted
from lab.rundir.making import is_being_made

HEAD = 4096  # bytes of ledger.json in which `complete` stands
DISAGREEMENTS = b'\n  "disagreements": ['  # as only the ledger's own list begins a line
# What kinds of experiment without a ledger write, and their words for no trouble, and for some.
OWN = {
    "chain": ("chain.json", "AGREED", "DISAGREEMENT"),
    "known": ("known.json", "COMPLETE", "DISAGREEMENT"),
    "trap": ("result.json", "COMPLETE", "DISAGREEMENT"),
    "as-written": ("as_written.json", "COMPLETE", "INCOMPLETE"),
    "socket": ("socket.json", "PROVEN", "NOT PROVEN"),
}
# What these kinds write besides a ledger; where it has trouble the ledger's word is not enough.
BESIDE = {"arrival": "arrival.json", "steps": "steps.json"}
BAD = ("unproven", "failed")  # states of a sweep's cells
UNEXPECTED = ", NOT AS EXPECTED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run; `complete` is None where it has no result, `size` in bytes on disk."""

    run: str
    when: str  # UTC
    playbook: str
    message: str  # "5 x 1400 tcp"
    complete: bool | None
    verdict: str
    size: int
    kind: str = "run"  # or "sweep", "claims": folders of many
    kernel: str = ""
    probes: str = ""

    def as_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


def row(path: Path) -> Row | None:
    """Return what a run directory says of itself; None for a folder that is none."""
    manifest = _read(path / "manifest.json")
    if not manifest:
        return _folder(path)
    complete, verdict = _verdict(path, str(manifest.get("experiment", "message")))
    if "files" not in manifest and interrupted(path / JOURNAL):
        complete, verdict = None, "INTERRUPTED"
    elif is_being_made(path):
        complete, verdict = None, "being made"
    elif _read(path / expected.FILE).get("failed"):
        verdict += UNEXPECTED
    probes = manifest.get("probes")
    crash = _read(path / "postmortem.json").get("verdict")
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
        verdict=str(crash) if crash else verdict,
        size=_size(path),
        kernel=str(manifest.get("kernel", "")),
        probes=str(probes.get("kind", "")) if isinstance(probes, dict) else "",
    )


def _folder(path: Path) -> Row | None:
    """Return what a folder of many runs says of itself: one of a sweep, or of claims."""
    index, judged = _read(path / "index.json"), _read(path / "claims.json")
    taken = _read(path / "experiments.json").get("experiments")
    cells = index.get("cells")
    if isinstance(cells, list):
        bad = sum(isinstance(one, dict) and one.get("state") in BAD for one in cells)
        kind, name, message = "sweep", f"sweep {index.get('playbook', '?')}", f"{len(cells)} cells"
        complete = index.get("proven") is True
        verdict = "PROVEN" if complete else f"NOT PROVEN: {bad} cells"
    elif isinstance(taken, dict):
        kind, name, message = "claims", "claims", f"{len(taken)} experiments"
        complete = bool(judged)
        verdict = "JUDGED" if judged else "not judged"
        if judged:
            message = str(judged.get("summary", message)).partition(":")[0]
    else:
        return None
    return Row(
        run=str(path),
        when=_when(path.name),
        playbook=name,
        message=message,
        complete=complete,
        verdict=verdict,
        size=_size(path),
        kind=kind,
    )


def _size(path: Path) -> int:
    return sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()
    )


def render(rows: Sequence[Row]) -> str:
    """Return the runs as plain text."""
    return "\n".join(plain(told(rows)))


def told(rows: Sequence[Row]) -> list[Block]:
    """Return the runs as a table, oldest first."""
    head = ("WHEN (UTC)", "VERDICT", "PLAYBOOK", "MESSAGES", "KERNEL", "PROBES", "MIB", "RUN")
    cells = [
        (
            one.when,
            one.verdict,
            one.playbook,
            one.message,
            one.kernel,
            one.probes,
            f"{one.size / (1 << 20):.1f}",
            one.run,
        )
        for one in rows
    ]
    return table(head, cells, right="MIB")


def _when(name: str) -> str:
    found = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z", name)
    return "{}-{}-{} {}:{}:{}".format(*found.groups()) if found else ""


def _verdict(path: Path, experiment: str) -> tuple[bool | None, str]:
    """Return whether a run is complete, and its word, from the file of its kind of result."""
    if experiment in OWN:
        name, good, bad = OWN[experiment]
        found = _read(path / name)
        complete = found.get("complete", not found["trouble"] if "trouble" in found else None)
        return (None, "no result") if complete is None else (complete, good if complete else bad)
    complete = _complete(path / "ledger.json")
    if complete is None:
        return None, "no ledger"
    if complete and _disagree(path / "ledger.json"):
        return True, "DISAGREEMENT"
    if complete and experiment in BESIDE and _read(path / BESIDE[experiment]).get("trouble"):
        return False, "INCOMPLETE"
    return complete, "COMPLETE" if complete else "INCOMPLETE"


def _disagree(path: Path) -> bool:
    """Tell whether a ledger's witnesses disagree: the list is near its end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        at = text.rfind(DISAGREEMENTS) + len(DISAGREEMENTS)
        return at >= len(DISAGREEMENTS) and text[at : at + 1] != b"]"


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
