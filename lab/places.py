"""Who touched a place of a run: `lab.accesses RUN --place receiver/rx-buffer`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab import access, accesses, correlate
from lab.correlate import Inputs, Place
from lab.correlate.types import LINK
from lab.errors import EvidenceError
from lab.rundir import RunDir


def names(run: RunDir) -> list[str]:
    """Return the places of a run in RAM, as `--place` takes them, in the order of the way."""
    return list(dict.fromkeys(_name(place) for place in _places(correlate.load(run))))


def lines(run: RunDir, wanted: str) -> Iterator[str]:
    """Yield a line for each run of accesses to the place called `wanted`."""
    inputs = correlate.load(run)
    symbols = {guest.name: guest.symbols for guest in inputs.guests}
    found = [place for place in _places(inputs) if _name(place) == wanted]
    if not found:
        raise EvidenceError(
            f"run {run.name} has no place '{wanted}'", hint="--place " + " | ".join(names(run))
        )
    lost: dict[Path, int] = {}
    for place in found:
        folder = run.guest(place.guest)
        path = folder.file("access.bin")
        if not path.is_file():
            absent = dict(run.manifest().witnesses).get("access-log", "absent")
            raise EvidenceError(f"run {run.name} has no access log: {absent}", log=folder.path)
        log = access.read(path, guest=place.guest)
        for start, size in place.extents:
            yield f"{wanted} message {place.message} physical {start:#x} size {size}"
            yield from accesses.touched(log, start, start + size, symbols=symbols[place.guest])
        lost[path] = log.lost
    for path, count in lost.items():
        if count:
            yield f"incomplete: {count} accesses did not fit into {path.parent.name}/{path.name}"


def _places(inputs: Inputs) -> list[Place]:
    flow = correlate.follow(inputs)
    return [place for place in flow.places if place.guest != LINK and place.extents]


def _name(place: Place) -> str:
    return f"{place.guest}/{place.kind}"
