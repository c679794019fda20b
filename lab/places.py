"""Who touched a place of a run: `lab.accesses RUN --place receiver/rx-buffer`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lab import access, accesses, correlate
from lab.blocks import Table
from lab.correlate import Inputs, Place, outside
from lab.correlate.inputs import RECEIVER
from lab.correlate.rings import RingWitness
from lab.correlate.types import LINK, PlaceKind
from lab.errors import EvidenceError, PlaybookError, did_you_mean
from lab.rundir import RunDir


def names(run: RunDir) -> list[str]:
    """Return the places of a run in RAM, as `--place` takes them, in the order of the way."""
    inputs = correlate.load(run)
    return list(dict.fromkeys(_name(place, inputs) for place in _places(inputs)))


def told(run: RunDir, wanted: str, *, whole: bool = False) -> Iterator[str | Table]:
    """Yield who touched the place called `wanted`, one run of accesses a row.

    `whole`: to all of it, not only to the message's bytes.  The log has that for user buffers
    and for the buffers a device was given; for others it raises `EvidenceError`.
    """
    inputs = correlate.load(run)
    symbols = {guest.name: guest.symbols for guest in inputs.guests}
    found = [place for place in _places(inputs) if _name(place, inputs) == wanted]
    if not found:
        known = names(run)
        raise PlaybookError(
            f"run {run.name} has no place '{wanted}'{did_you_mean(wanted, known)}",
            hint="--place " + " | ".join(known),
        )
    lost: dict[Path, int] = {}
    for place in found:
        folder = run.guest(place.guest)
        path = folder.file("access.bin")
        if not path.is_file():
            absent = dict(run.manifest().witnesses).get("access-log", "absent")
            raise EvidenceError(f"run {run.name} has no access log: {absent}", log=folder.path)
        log = access.read(path, guest=place.guest)
        for start, size in _whole(inputs, place) if whole else place.extents:
            yield f"{wanted} message {place.message} physical {start:#x} size {size}"
            rows = accesses.touches(log, start, start + size, symbols=symbols[place.guest])
            if rows:
                yield Table(accesses.TOUCH_HEAD, tuple(rows), accesses.TOUCH_RIGHT)
        lost[path] = log.lost
    for path, count in lost.items():
        if count:
            yield f"incomplete: {count} accesses did not fit into {path.parent.name}/{path.name}"


def lines(told: Iterable[str | Table]) -> list[str]:
    """Return what `told` yields as plain lines, one for each run of accesses."""
    out: list[str] = []
    for block in told:
        out += accesses.touched_lines(block.rows) if isinstance(block, Table) else [block]
    return out


def _whole(inputs: Inputs, place: Place) -> list[tuple[int, int]]:
    """Return the extents of all the memory that a place is a part of."""
    guest = next(guest for guest in inputs.guests if guest.name == place.guest)
    if place.kind is PlaceKind.USER:
        for work in guest.workloads:
            buffer = work.ready.buffer
            if buffer.virtual <= place.virtual < buffer.virtual + buffer.size:
                runs = buffer.extents(buffer.virtual, buffer.size)
                return [(start, size) for _, start, size in runs if start is not None]
    if place.kind in (PlaceKind.RX_BUFFER, PlaceKind.BOUNCE):
        found = RingWitness(guest).covering("rx", place.physical, place.size)
        if found is not None and found.physical is not None:
            return [(found.physical, found.descriptor.length)]
    raise EvidenceError(
        f"of {_name(place, inputs)} only the message's bytes were logged",
        hint="--all is for user buffers and RX buffers",
    )


def _places(inputs: Inputs) -> list[Place]:
    # Of a run without probes the log's own account is the only one.
    log = outside.look(inputs) if inputs.manifest.probe_kind == "none" else None
    flow = correlate.follow(inputs if log is None else log.inputs)
    return [place for place in flow.places if place.guest != LINK and place.extents]


def _name(place: Place, inputs: Inputs) -> str:
    # Over loopback one guest has both programs: which one's buffer it is says the buffer.
    side = place.guest
    if place.kind is PlaceKind.USER and inputs.loopback:
        work = next((guest.role(RECEIVER) for guest in inputs.guests), None)
        buffer = None if work is None else work.ready.buffer
        if buffer and buffer.virtual <= place.virtual < buffer.virtual + buffer.size:
            side = RECEIVER
    return f"{side}/{place.kind}"
