"""The worksheet's own lines, taken again and explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.types import Measured
from lab.errors import EvidenceError


def _own_lines(seen: Evidence, of: str) -> list[Mapping[str, Any]]:
    """Return the lines of a kind, or of a kind and a length: "COPY1", "COPY1 22"."""
    found = seen.result("as_written.json")
    if not found["complete"]:
        raise EvidenceError(f"{seen.name} is not explained: {'; '.join(found['trouble'])}")
    kind, _, length = of.partition(" ")
    rows = [
        one
        for one in found["lines"]
        if one["kind"] == kind and (not length or str(one["length"]) == length)
    ]
    if not rows:
        raise EvidenceError(f"{seen.name} has no line {of}")
    return rows


def _line_what(seen: Evidence, of: str) -> Measured:
    """Say what the lines of a kind and length were; several words where they differ."""
    rows = _own_lines(seen, of)
    words = tuple(dict.fromkeys(str(one["what"]) for one in rows))
    ids = [one[key] for one in rows for key in ("log", "evidence")]
    return made(words[0] if len(words) == 1 else words, ids)


def _line_lengths(seen: Evidence, of: str) -> Measured:
    rows = {int(one["length"]): str(one["log"]) for one in _own_lines(seen, of)}
    return made(tuple(rows), rows.values())


def _from_rodata(seen: Evidence, _: str) -> Measured:
    """Say whether the sender's message lay in the .rodata of its program."""
    rodata = str(seen.result("as_written.json")["rodata"])
    rows = [one for one in _own_lines(seen, "COPY1") if one["what"] == "message"]
    return made(bool(rodata), [*filter(None, [rodata]), *(one["evidence"] for one in rows)])


MEASURES: dict[str, Measure] = {
    "line-what": Measure("what lines of the worksheet's own modules were", _line_what, "line"),
    "line-lengths": Measure("their lengths", _line_lengths, "line"),
    "sent-from-rodata": Measure("whether the worksheet's sender sent from .rodata", _from_rodata),
}
