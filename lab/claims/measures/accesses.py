"""How the instructions of a copy took the message's bytes, as QEMU's plugin logged them."""

from __future__ import annotations

from lab.access import Access
from lab.claims.evidence import Evidence, Movement
from lab.claims.measures.base import Measure, made, parse_hex
from lab.claims.types import Measured
from lab.errors import EvidenceError


def _first_copy(seen: Evidence) -> tuple[list[Access], list[Access]]:
    """Return the loads and the stores of message bytes in the first copy."""
    seen.witness("access-log")
    first = seen.copies[0]
    log = seen.accesses(first["guest"])
    for one in first["evidence"]:
        file, _, number = one.partition("#")
        if file == f"{first['guest']}/access.bin":
            call = log.records[int(number)].call
            return _of_call(seen, first, [row for row in log.records if row.call == call])
    raise EvidenceError(f"{seen.name}: the access log did not see the first copy")


def _of_call(
    seen: Evidence, first: Movement, rows: list[Access]
) -> tuple[list[Access], list[Access]]:
    """Return those of one call's accesses that lie in the message's two places.

    An interrupt in the middle of a copy stores too, on a stack.
    """
    ends = []
    for end, store in (("source", False), ("target", True)):
        place = seen.places[first[end]]
        start = parse_hex(place["virtual"]) + first["offset"] - place["offset"]
        ends.append(
            [
                row
                for row in rows
                if row.store is store and start <= row.virtual < start + first["size"]
            ]
        )
    loads, stores = ends
    if sum(row.size for row in loads) != sum(row.size for row in stores):
        raise EvidenceError(f"{seen.name}: the first copy's loads and stores differ in bytes")
    if not loads:
        raise EvidenceError(f"{seen.name}: no load of the first copy is in the access log")
    return loads, stores


def _width(seen: Evidence, _: str) -> Measured:
    """Return how many bytes one access of the first copy takes; several where they differ."""
    rows = [row for side in _first_copy(seen) for row in side]
    widths = tuple(sorted({width for row in rows for width in (row.narrowest, row.widest)}))
    return made(widths[0] if len(widths) == 1 else widths, [row.id for row in rows])


def _stored(seen: Evidence, _: str) -> Measured:
    """Return how many of the message's bytes the first copy's instructions stored."""
    stores = _first_copy(seen)[1]
    return made(len({at for row in stores for at in _addresses(row)}), [row.id for row in stores])


def _addresses(row: Access) -> range:
    return range(row.virtual, row.virtual + row.size)


def _through_register(seen: Evidence, _: str) -> Measured:
    """Say whether one instruction loads and another stores, so that a register is between.

    An instruction that does both is a string move (Intel SDM, MOVS): no general register
    ever holds the bytes.
    """
    loads, stores = _first_copy(seen)
    places = [
        {row.instruction + at for row in side for at in (0, row.reach)} for side in (loads, stores)
    ]
    return made(not places[0] & places[1], [row.id for row in (*loads, *stores)])


MEASURES: dict[str, Measure] = {
    "copy-out-width": Measure("bytes of one load or store of the first copy", _width),
    "copy-out-stored": Measure("bytes of the message that the first copy stored", _stored),
    "copy-out-through-register": Measure(
        "whether the first copy loads by one instruction and stores by another",
        _through_register,
    ),
}
