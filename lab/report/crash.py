"""report.html of a module that was tried: from postmortem.json and the sources beside it.

What a guest said stands in the page as text, escaped, and bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.report.page import environment
from lab.rundir import RunDir

AROUND = 5  # lines of source before and behind the one at fault
SHOWN_LINES = 200  # of any log
ENDED_WELL = ("loaded",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of source; `fault` is where it happened."""

    number: int
    text: str
    fault: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One thing that was done with the module, and how it ended."""

    name: str
    words: tuple[tuple[str, str], ...]
    here: bool  # where the verdict fell


def page(run: RunDir) -> str:
    """Return report.html of an attempt; raise `TraceCorrupt` without a post-mortem."""
    found: dict[str, Any] = {**_EMPTY, **_dictionary(run.read_json("postmortem.json"))}
    manifest = run.manifest_json()
    fault = {**_NO_FAULT, **_dictionary(found["fault"])}
    return environment().get_template("crash.html.j2").render(
        run=run.name,
        found=found,
        fault=fault if found["fault"] else None,
        good=found["verdict"] in ENDED_WELL and not found["changes"],
        changes=list(map(str, found["changes"])),
        traces=list(_traces(found)),
        source=list(_source(run, str(found["at"]))),
        phases=list(_phases(found)),
        registers=sorted(_dictionary(fault["registers"]).items()),
        log=list(map(str, found["log"]))[:SHOWN_LINES],
        log_left_out=max(0, len(found["log"]) - SHOWN_LINES),
        build=str(found["build"]).splitlines()[-SHOWN_LINES:],
        conditions=list(_conditions(manifest)),
    )  # fmt: skip


_NO_FAULT: dict[str, Any] = {
    "title": "", "address": None, "access": "", "object": None, "comm": "", "pid": "",
    "instruction": "", "code": "", "registers": {},
}  # fmt: skip
_EMPTY: dict[str, Any] = {
    "verdict": "unknown", "phase": "", "at": "", "fingerprint": "", "module": "", "kernel": "",
    "why": "", "also": [], "fault": None, "source": "", "member": None, "instruction": None,
    "lacks": "", "changes": [],
    "trace": [], "history": [], "records": [], "log": [], "console": [], "build": "",
    "seconds": None, "phases": [],
}  # fmt: skip


def _traces(found: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the call trace, and who allocated and freed the object where that is known."""
    yield "trace", found["trace"]
    for one in found["history"]:
        told = _dictionary(one)
        yield str(told.get("what", "")), list(told.get("trace", []))


def _dictionary(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _source(run: RunDir, at: str) -> Iterator[Line]:
    """Yield the lines around `file:line …`, of the module's own sources only."""
    file, _, rest = at.partition(":")
    number = rest.partition(" ")[0]
    folder = run.file("module") / "src"
    if not number.isdigit() or ".." in Path(file).parts or Path(file).is_absolute():
        return
    path = folder / file
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = int(number)
    for at_line in range(max(1, wanted - AROUND), min(len(lines), wanted + AROUND) + 1):
        yield Line(number=at_line, text=lines[at_line - 1][:200], fault=at_line == wanted)


def _phases(found: dict[str, Any]) -> Iterator[Phase]:
    for phase in found["phases"]:
        told = _dictionary(phase)
        words = tuple(
            (str(key), value if isinstance(value, str) else json.dumps(value))
            for key, value in told.items()
            if key != "name" and value not in (None, "", [], {})
        )
        name = str(told.get("name", ""))
        yield Phase(name=name, words=words, here=name == found["phase"])


def _words(values: dict[str, Any]) -> str:
    """Return what is set in a dictionary, as a person reads it."""
    return ", ".join(
        f"{key} ({_words(value)})"
        if isinstance(value, dict)
        else f"{key} {'yes' if value is True else value}"
        for key, value in values.items()
        if value not in (None, False, "", [], {})
    )


def _conditions(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("module", "kernel", "accelerator", "trial", "cmdline", "versions", "command"):
        value = manifest.get(name)
        if name == "accelerator" and isinstance(value, dict):
            yield name, f"{value.get('name', 'unknown')}: {value.get('why', '')}"
        elif isinstance(value, dict):
            yield name, _words(value)
        elif value:
            yield name, str(value)
